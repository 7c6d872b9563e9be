//! A cluster's node: what the API server says becomes workloads, peers, postures and policies.
//!
//! The watches ([`watch`]) only keep the objects; what they mean is worked out anew from all of them ([`view`]) whenever
//! something changed, and laid over the agent's file. So a lost, doubled or late event can't leave anything wrong, and
//! while the API server is away the last state holds.
//!
//! | module | what it is |
//! |---|---|
//! | [`pod`] | what of a pod matters |
//! | [`node`] | what of a node matters |
//! | [`cgroup`] | where the kubelet puts pods |
//! | [`services`] | Service addresses and who answers there |
//! | [`builtin`] | what a cluster needs, as named policies |
//! | [`view`] | all objects together, laid over the configuration |
//! | [`crd`] | the custom resources |
//! | [`watch`] | the objects, kept in step |
//! | [`kept`] | what of them is kept |
//! | [`peers`] | what agents say of other nodes' pods |
//! | [`publish`] | this node's pods, for the other nodes |
//! | [`conditions`] | what becomes of a policy, from what the nodes say |
//! | [`lease`] | who sums that up |
//! | [`summary`] | the status of policies, written by that one |
//! | [`denials`] | Events of what was denied |
//! | [`taint`] | the taint that keeps pods off a node without an agent |
//! | [`leave`] | whether enforcement ends with the agent |

mod backoff;
pub mod builtin;
pub mod cgroup;
pub mod conditions;
pub mod crd;
pub mod denials;
pub mod kept;
pub mod lease;
pub mod leave;
pub mod node;
pub mod peers;
pub mod pod;
pub mod publish;
pub mod services;
pub mod summary;
pub mod taint;
pub mod view;
pub mod watch;

#[cfg(test)]
pub(crate) mod tests;
