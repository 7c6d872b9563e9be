//! What the one task publishes for everybody else: whole, immutable, one epoch.

use super::sightings::Sightings;
use crate::declog;
use crate::flows::series::Series;
use crate::flows::{Edges, PeerName};
use crate::identity::Identity;
use crate::inventory::Inventory;
use crate::policy::{PolicySet, RuleTable};
use crate::report::Surface;
use crate::serve::api::{EdgeLine, Filter, Status};
use crate::store;
use bulkhead_common::PeerId;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What numbers mean.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Identities.
    pub identities: BTreeMap<PeerId, Identity>,
    /// Rules, and parts of the world.
    pub rules: Arc<RuleTable>,
}

impl Names {
    /// The name of a peer.
    pub fn peer(&self, peer: PeerId) -> PeerName {
        PeerName::of(peer, |p| self.identities.get(&p), |p| self.rules.part(p).map(|net| net.to_string()))
    }

    /// The name of a rule; `None` for no rule.
    pub fn rule(&self, number: u32) -> Option<String> {
        if number == 0 {
            return None;
        }
        Some(self.rules.rule(number).map_or_else(|| format!("rule {number}"), ToString::to_string))
    }
}

/// How those are who write down what happens, and what they want to know.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// Details for the history.
    pub sightings: Sightings,
    /// The history.
    pub history: watch::Receiver<store::Health>,
    /// The decision log, if there is one.
    pub log: watch::Receiver<Option<declog::Health>>,
    /// The lateral-movement surface, once it was computed.
    pub surface: watch::Receiver<Option<Surface>>,
}

impl Default for Accounts {
    /// Nobody writes anything down.
    fn default() -> Self {
        Self {
            sightings: Sightings::default(),
            history: watch::channel(store::Health::default()).1,
            log: watch::channel(None).1,
            surface: watch::channel(None).1,
        }
    }
}

impl Accounts {
    /// What is wrong with them.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.history.borrow().faults.clone();
        faults.extend(self.log.borrow().as_ref().and_then(|l| l.fault.clone()));
        faults
    }
}

/// One state of affairs.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// For `status`.
    pub status: Status,
    /// The set of maps that the counters are of.
    pub generation: u64,
    /// How the history is.
    pub history: store::Health,
    /// The lateral-movement surface, once it was computed.
    pub surface: Option<Surface>,
    /// What the ruleset was compiled from; shared by all snapshots until it changes ...
    pub inventory: Arc<Inventory>,
    /// ... and its policies.
    pub policies: Arc<PolicySet>,
    /// What numbers mean.
    pub names: Arc<Names>,
    /// The counters.
    pub edges: Edges,
    /// What was refused or would be.
    pub series: Series,
}

impl Snapshot {
    /// The edges that fit, by name.
    pub fn edges(&self, filter: &Filter) -> Vec<EdgeLine> {
        self.edges
            .named(|p| self.names.peer(p))
            .into_iter()
            .filter(|(edge, _)| filter.fits(edge))
            .map(|(edge, count)| EdgeLine { edge, count })
            .collect()
    }
}
