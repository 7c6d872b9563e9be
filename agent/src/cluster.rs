//! A cluster's node: what the API server says becomes workloads, peers, postures and policies.
//!
//! The watches ([`watch`]) only keep the objects; what they mean is worked out anew from all of them ([`view`]) whenever
//! something changed, and laid over the agent's file. So a lost, doubled or late event can't leave anything wrong, and
//! while the API server is away the last state holds.
//!
//! | module | what it is |
//! |---|---|
//! | [`pod`] | what of a pod matters |
//! | [`cgroup`] | where the kubelet puts pods |
//! | [`services`] | Service addresses and who answers there |
//! | [`builtin`] | what a cluster needs, as named policies |
//! | [`view`] | all objects together, laid over the configuration |
//! | [`dump`] | the objects as kubectl prints them, for judging offline |
//! | [`crd`] | the custom resources |
//! | [`watch`] | the objects, kept in step |
//! | [`publish`] | this node's pods, for the other nodes |
//! | [`conditions`] | what becomes of a policy, from what the nodes say |
//! | [`lease`] | who sums that up |
//! | [`summary`] | the status of policies, written by that one |
//! | [`leave`] | whether enforcement ends with the agent |

mod backoff;
pub mod builtin;
pub mod cgroup;
pub mod conditions;
pub mod crd;
pub mod dump;
pub mod lease;
pub mod leave;
pub mod pod;
pub mod publish;
pub mod services;
pub mod summary;
pub mod view;
pub mod watch;

#[cfg(test)]
mod tests;
