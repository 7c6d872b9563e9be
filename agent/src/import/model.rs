//! What the kinds of policy have in common once they are read: who isolates whom and allows what, and ordered rules of
//! the tiers around that.

use super::estate::Scope;
use super::selector::Selector;
use super::tree::Spot;
use crate::policy::IdPattern;
use ipnet::IpNet;
use std::fmt;
use std::sync::Arc;

/// The object that something came from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Source {
    pub(super) file: Arc<str>,
    pub(super) kind: String,
    /// Empty for what is cluster-wide.
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) spot: Spot,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Pods by their labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pods {
    pub(super) spot: Spot,
    pub(super) scope: Scope,
    pub(super) pods: Selector,
}

/// One end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    /// Whoever it is.
    Anybody,
    Pods(Pods),
    /// By address.
    Block {
        net: IpNet,
        except: Vec<IpNet>,
    },
    /// Nodes, by their labels.
    Nodes(Selector),
    /// Names in the DNS.
    Domains,
    /// By SPIFFE ID.
    Ids(Vec<IdPattern>),
}

/// Ports as the kinds have them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Port {
    /// All ports of the protocol.
    All(u8),
    /// From the first to the last.
    Range(u8, u16, u16),
    /// By name, with any of these protocols.
    Named(Vec<u8>, String),
}

/// What becomes of what fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Accept,
    Deny,
    /// What stands behind it in the tier isn't asked.
    Pass,
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Clause {
    pub(super) spot: Spot,
    pub(super) action: Action,
    pub(super) peers: Vec<(Spot, Peer)>,
    /// `None`: all.
    pub(super) ports: Option<Vec<(Spot, Port)>>,
    /// Whom a deny doesn't mean: lists of peers.
    pub(super) unless: Vec<Vec<(Spot, Peer)>>,
}

/// A policy that leaves those whom it selects only what it allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Isolation {
    pub(super) source: Source,
    pub(super) subject: Pods,
    /// `Some` isolates.
    pub(super) ingress: Option<Vec<Clause>>,
    pub(super) egress: Option<Vec<Clause>>,
}

/// Which rules come first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Tier {
    /// Before those that isolate.
    Admin,
    /// Where nothing isolates.
    Baseline,
}

/// A policy of ordered rules; what none of them fits goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ordered {
    pub(super) source: Source,
    pub(super) tier: Tier,
    /// The lowest comes first; `None`: nobody says where it stands.
    pub(super) priority: Option<i64>,
    pub(super) subject: Pods,
    pub(super) ingress: Vec<Clause>,
    pub(super) egress: Vec<Clause>,
}

/// Everything that was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Everything {
    pub(super) isolations: Vec<Isolation>,
    pub(super) ordered: Vec<Ordered>,
}

/// Which way something errs that isn't carried as it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Errs {
    /// Less is allowed than the original allows.
    Stricter,
    /// More is allowed: what the original refuses here, nobody refuses any more if it is taken away.
    Looser,
    /// Neither: it never decided about a connection.
    Neither,
}

impl Errs {
    /// The word on the terminal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stricter => "stricter",
            Self::Looser => "LOOSER",
            Self::Neither => "neither",
        }
    }
}

/// Something that isn't carried as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct Finding {
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// The object: its kind, namespace and name.
    pub object: String,
    /// The field.
    pub field: String,
    /// Which way the import errs.
    pub errs: Errs,
    /// Why, and what to do.
    pub reason: String,
}

/// Gathers findings, each once.
#[derive(Debug, Default)]
pub(super) struct Findings(std::collections::BTreeSet<Finding>);

impl Findings {
    pub(super) fn add(&mut self, source: &Source, spot: &Spot, errs: Errs, reason: impl Into<String>) {
        self.0.insert(Finding {
            file: Arc::clone(&source.file),
            line: spot.line,
            column: spot.column,
            object: source.to_string(),
            field: spot.path.clone(),
            errs,
            reason: reason.into(),
        });
    }

    pub(super) fn all(self) -> Vec<Finding> {
        self.0.into_iter().collect()
    }
}
