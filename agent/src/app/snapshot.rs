//! What the one task publishes for everybody else: whole, immutable, one epoch.

use super::keep::Kept;
use super::naming::Naming;
use super::sightings::Sightings;
use crate::config::narrow;
use crate::declog;
use crate::flows::outside::Outsiders;
use crate::flows::series::Series;
use crate::flows::{self, Count, Edge, Edges, PeerName};
use crate::history::{Backend, Service};
use crate::identity::Identity;
use crate::inventory::Inventory;
use crate::policy::{PolicySet, RuleTable};
use crate::report::Surface;
use crate::serve::api::{AddressLine, EdgeLine, Filter, Status};
use crate::store;
use bulkhead_common::PeerId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
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
    /// Names of addresses.
    pub naming: Naming,
    /// How far the history has got.
    pub kept: Kept,
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
            naming: Naming::default(),
            kept: Kept::default(),
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

/// How many addresses of an edge are told one by one.
const ADDRESSES: usize = 64;

/// One state of affairs.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// For `status`.
    pub status: Status,
    /// Whether this is a cluster's node.
    pub on_cluster: bool,
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
    /// What runs the workloads of each identity, on a cluster.
    pub owners: BTreeMap<PeerName, BTreeSet<String>>,
    /// The counters.
    pub edges: Edges,
    /// The same for peers outside, by address.
    pub outside: Arc<Outsiders>,
    /// Names of their addresses.
    pub naming: Naming,
    /// What was refused or would be.
    pub series: Series,
}

impl Snapshot {
    /// The edges that fit, by name.
    pub fn edges(&self, filter: &Filter) -> Vec<EdgeLine> {
        let mut addresses = self.addresses();
        self.edges
            .named(|p| self.names.peer(p))
            .into_iter()
            .filter(|(edge, _)| filter.fits(edge))
            .map(|(edge, count)| {
                let mut addresses = addresses.remove(&edge).unwrap_or_default();
                addresses.sort_by_key(|a| (Reverse(a.count.total), a.address));
                let more = addresses.len().saturating_sub(ADDRESSES);
                addresses.truncate(ADDRESSES);
                let owners = |name: &PeerName| self.owners.get(name).cloned().unwrap_or_default();
                EdgeLine {
                    source_owners: owners(&edge.source),
                    destination_owners: owners(&edge.destination),
                    edge,
                    count,
                    addresses,
                    more_addresses: u64::try_from(more).unwrap_or(u64::MAX),
                }
            })
            .collect()
    }

    /// Who answers for the Services that aren't just somebody's other address.
    pub fn services(&self) -> Vec<Service> {
        let mut all = Vec::new();
        for s in &self.inventory.services {
            let answers = s.backends.iter().map(|(peer, port)| Backend { peer: self.names.peer(*peer), port: *port });
            let backends: BTreeSet<Backend> = answers.collect();
            all.extend(s.ports.iter().map(|(protocol, port)| Service {
                name: self.names.peer(s.peer),
                protocol: *protocol,
                port: *port,
                backends: backends.clone(),
            }));
        }
        all
    }

    /// The addresses of peers outside, by edge.
    fn addresses(&self) -> BTreeMap<Edge, Vec<AddressLine>> {
        let now = Instant::now();
        let mut all: BTreeMap<Edge, Vec<AddressLine>> = BTreeMap::new();
        for (key, seen) in self.outside.by_address() {
            let address = narrow(&key.addr);
            let name = self.naming.name(key.edge.own_and_peer().0, address, now).map(|n| n.to_string());
            let count = Count { total: seen.counts.attempts, first: seen.first, last: seen.last };
            let edge = flows::edge(&key.edge, |p| self.names.peer(p));
            all.entry(edge).or_default().push(AddressLine { address, name, count });
        }
        all
    }
}
