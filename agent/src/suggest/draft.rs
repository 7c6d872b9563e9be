//! Rules as they are put together, before they are written: for each identity and each direction the peers, and for
//! each peer its ports with the evidence.

use super::evidence::Evidence;
use super::sort::Mark;
use bulkhead_common::{Class, PeerId};
use ipnet::IpNet;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Which half of a link a rule is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Half {
    /// The destination's.
    Ingress,
    /// The source's.
    Egress,
}

/// Whom a suggested rule names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Named {
    Id(String),
    Class(Class),
    Net(IpNet),
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Class(class) => f.write_str(class.as_str()),
            Self::Net(net) => write!(f, "{net}"),
        }
    }
}

/// One port of one peer.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) evidence: Evidence,
    pub(super) marks: BTreeSet<Mark>,
    pub(super) why: String,
}

/// The ports of one peer, by protocol and number.
pub(super) type Openings = BTreeMap<(u8, u16), Opening>;

/// What one identity needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) ingress: BTreeMap<Named, Openings>,
    pub(super) egress: BTreeMap<Named, Openings>,
}

/// What all need.
pub(super) type Drafts = BTreeMap<PeerId, Draft>;

impl Draft {
    pub(super) fn half(&self, half: Half) -> &BTreeMap<Named, Openings> {
        match half {
            Half::Ingress => &self.ingress,
            Half::Egress => &self.egress,
        }
    }

    pub(super) fn add(&mut self, half: Half, named: Named, port: (u8, u16), opening: Opening) {
        let rules = match half {
            Half::Ingress => &mut self.ingress,
            Half::Egress => &mut self.egress,
        };
        rules.entry(named).or_default().insert(port, opening);
    }
}

/// Protocols and ports.
pub(super) type Ports = Vec<(u8, u16)>;
/// The peers of one rule.
pub(super) type Sharing<'a> = Vec<(&'a Named, &'a Openings)>;

/// Peers that share all their ports, so that one rule says it for all of them without allowing anything more.
pub(super) fn rules(peers: &BTreeMap<Named, Openings>) -> Vec<(Ports, Sharing<'_>)> {
    let mut rules: BTreeMap<Ports, Sharing<'_>> = BTreeMap::new();
    for (named, openings) in peers {
        rules.entry(openings.keys().copied().collect()).or_default().push((named, openings));
    }
    // By the first peer and not by the ports: what concerns one peer stands together.
    let mut rules: Vec<_> = rules.into_iter().collect();
    rules.sort_by(|a, b| a.1[0].0.cmp(b.1[0].0));
    rules
}
