//! What the agent can be told to do over its control socket, as both ends know it.

use crate::app::overrides::Target;
use crate::flows::PeerName;
use crate::identity::SpiffeId;
use crate::policy::Scope;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// The body of `POST /orders`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Withdraw an ID: it is denied both ways, and its live connections end.
    Revoke {
        /// The ID.
        id: SpiffeId,
        /// Why.
        reason: String,
        /// Only say what would be cut.
        dry_run: bool,
        /// Also if nothing here has the ID.
        #[serde(default)]
        unseen: bool,
    },
    /// Give a revoked ID back what its rules allow.
    Restore {
        /// The ID.
        id: SpiffeId,
        /// Done if it isn't revoked.
        #[serde(default)]
        again: bool,
    },
    /// Turn enforcement to audit for a while.
    BreakGlass {
        /// Where.
        scope: Scope,
        /// For how many seconds.
        seconds: u64,
        /// Why.
        reason: String,
        /// Also if nothing here is in that scope.
        #[serde(default)]
        unseen: bool,
    },
    /// End break-glass, everywhere.
    EndBreakGlass {
        /// Done if it isn't on.
        #[serde(default)]
        again: bool,
    },
    /// Turn something to enforce, and back again unless that is confirmed.
    Enforce {
        /// What.
        target: Target,
        /// For how many seconds.
        seconds: u64,
        /// Only say what would be cut.
        dry_run: bool,
        /// Also if there is no such thing here.
        #[serde(default)]
        unseen: bool,
    },
    /// Keep what is on trial.
    Confirm {
        /// Done if nothing is.
        #[serde(default)]
        again: bool,
    },
    /// Turn it back.
    Revert {
        /// What was turned to enforce; `None`: what is on trial.
        target: Option<Target>,
        /// Done if it isn't enforced by command.
        #[serde(default)]
        again: bool,
    },
    /// Take everything off this node, and wait for the end. The answer comes before it is done.
    TakeOff,
    /// Say which live connections these policies would cut in the place of those in force.
    Live {
        /// Texts of policy files, by name.
        policies: BTreeMap<String, String>,
        /// Also what is turned to enforce, for the time of the question.
        enforce: Option<Target>,
    },
}

/// What came of an order.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// In words.
    pub text: String,
    /// The ruleset in force.
    pub epoch: u32,
    /// The live connections that were cut, or would be.
    pub cut: Option<Cutting>,
    /// Whether there was nothing to do.
    #[serde(default)]
    pub already: bool,
    /// Whether it is about something that isn't known here.
    #[serde(default)]
    pub unseen: bool,
}

/// A look at the live connections.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cutting {
    /// When, milliseconds since 1970.
    pub time: u64,
    /// By which ruleset; of a dry run, the one in force beside the one that was asked about.
    pub epoch: u32,
    /// Whether nothing was cut.
    pub dry_run: bool,
    /// Network namespaces that were looked into.
    pub namespaces: u64,
    /// Sockets that were looked at.
    pub looked_at: u64,
    /// Sockets that don't pass.
    pub sockets: u64,
    /// From the look at what is to change until all of them were ended, microseconds.
    pub took_us: u64,
    /// Between whom they were.
    pub connections: Vec<CutLine>,
    /// What couldn't be looked at or ended.
    pub faults: Vec<String>,
}

/// Live connections of one kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct CutLine {
    /// Who opened them.
    pub source: PeerName,
    /// Who was connected to.
    pub destination: PeerName,
    /// The IP protocol.
    pub protocol: u8,
    /// The destination's port.
    pub port: u16,
    /// Why they don't pass.
    pub reason: String,
    /// The rule that denies; absent: none allows.
    pub rule: Option<String>,
    /// How many sockets; a connection between two workloads of this host has two.
    pub sockets: u64,
}

/// Why an order wasn't followed: one sentence that says what to do next.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It makes no sense here.
    #[error("{0}")]
    Bad(String),
    /// It couldn't be done; what was in force before is.
    #[error("{0}")]
    Failed(String),
}

/// An order on its way to the one task that may follow it.
#[derive(Debug)]
pub struct Request {
    /// The order.
    pub order: Order,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Done, Refusal>>,
}
