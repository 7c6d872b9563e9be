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
//! | [`census`] | who there is, for an import |
//! | [`cgroup`] | where the kubelet puts pods |
//! | [`sandboxes`] | which addresses they were given |
//! | [`newcomers`] | which pods others may not know yet |
//! | [`services`] | Service addresses and who answers there |
//! | [`callers`] | whom the API server calls |
//! | [`builtin`] | what a cluster needs, as named policies |
//! | [`view`] | all objects together, laid over the configuration |
//! | [`dump`] | the objects as kubectl prints them, for judging offline |
//! | [`crd`] | the custom resources |
//! | [`watch`] | the objects, kept in step |
//! | [`kept`] | what of them is kept |
//! | [`peers`] | what agents say of other nodes' pods |
//! | [`publish`] | this node's pods, for the other nodes |
//! | [`conditions`] | what becomes of a policy, from what the nodes say |
//! | [`lease`] | who sums that up |
//! | [`summary`] | the status of policies, written by that one |
//! | `absent` | the pods of nodes that have no agent, told by that one too |
//! | [`denials`] | Events of what was denied |
//! | [`taint`] | the taint that keeps pods off a node without an agent |
//! | [`leave`] | whether enforcement ends with the agent |
//! | [`left`] | what the node knew of itself, for an agent that finds nothing in force |

pub(crate) mod absent;
mod backoff;
pub mod builtin;
pub mod callers;
pub mod census;
pub mod cgroup;
pub mod conditions;
pub mod crd;
pub mod denials;
pub mod dump;
pub mod kept;
pub mod lease;
pub mod leave;
pub mod left;
pub mod newcomers;
pub mod node;
pub mod peers;
pub mod pod;
pub mod publish;
pub mod sandboxes;
pub mod services;
pub mod summary;
pub mod taint;
pub mod view;
pub mod watch;

#[cfg(test)]
pub(crate) mod tests;
