//! From the peers that policies name to the numbers that the kernel compares.
//!
//! Each distinct pattern is matched once. Two names stand for many peers: "any workload" for every identity, and the
//! world for every part of it that some rule names. A set holds these as themselves wherever it can.

use super::super::diagnostic::At;
use super::super::model::{Peer, Policy};
use super::super::pattern::IdPattern;
use super::super::rules::RuleTable;
use super::super::set::PolicySet;
use crate::identity::SpiffeId;
use crate::inventory::Inventory;
use bulkhead_common::{Class, PeerId};
use foldhash::HashMap;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Who a rule's end can be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PeerSet {
    /// Every workload that has an identity. Then no identity stands in `ids`.
    pub(super) any: bool,
    /// Identities, classes and parts of the world, in order. The world stands for its parts as well.
    pub(super) ids: Rc<[PeerId]>,
}

impl PeerSet {
    /// Whether it holds this peer; "any workload" and the world only if they stand in it as themselves.
    pub(super) fn holds(&self, peer: PeerId) -> bool {
        if peer == PeerId::ANY_WORKLOAD || peer.is_identity() && self.any {
            return self.any;
        }
        let has = |p| self.ids.binary_search(&p).is_ok();
        has(peer) || peer.is_cidr() && has(Class::World.id())
    }

    /// What both hold.
    pub(super) fn meet(&self, other: &Self) -> Self {
        let both: BTreeSet<PeerId> =
            self.ids.iter().chain(other.ids.iter()).copied().filter(|p| self.holds(*p) && other.holds(*p)).collect();
        Self { any: self.any && other.any, ids: both.into_iter().collect() }
    }
}

/// Whom each pattern matches, and which parts of the world are told apart.
pub(super) struct Peers<'a> {
    inventory: &'a Inventory,
    /// Every SPIFFE ID with the identities that have it, in order of the text.
    by_id: Vec<(&'a str, PeerId)>,
    matched: HashMap<&'a str, PeerSet>,
    parts: Vec<(IpNet, PeerId)>,
}

impl<'a> Peers<'a> {
    pub(super) fn new(set: &'a PolicySet, inventory: &'a Inventory, table: &mut RuleTable) -> Self {
        let mut by_id: Vec<_> = inventory
            .identities
            .iter()
            .flat_map(|(peer, facts)| facts.identity.ids.iter().map(|id| (id.as_str(), *peer)))
            .collect();
        by_id.sort_unstable();
        Self { inventory, by_id, matched: HashMap::default(), parts: parts(set, table) }
    }

    /// Every identity's number.
    pub(super) fn identities(&self) -> impl Iterator<Item = PeerId> + use<'a> {
        self.inventory.identities.keys().copied()
    }

    /// Whom a list of peers names.
    pub(super) fn resolve(&mut self, peers: &'a [At<Peer>]) -> PeerSet {
        if let [At { value: Peer::Id(pattern), .. }] = peers {
            return self.pattern(pattern);
        }
        let (mut any, mut ids) = (false, BTreeSet::new());
        for peer in peers {
            match &peer.value {
                Peer::Id(pattern) => {
                    let matched = self.pattern(pattern);
                    any |= matched.any;
                    ids.extend(matched.ids.iter().copied());
                }
                Peer::Class(class) => {
                    ids.insert(class.id());
                }
                Peer::Cidr { net, except } => {
                    let meant = |part: &IpNet| net.contains(part) && !except.iter().any(|e| e.contains(part));
                    ids.extend(self.parts.iter().filter(|(part, _)| meant(part)).map(|(_, id)| *id));
                }
            }
        }
        if any {
            ids.retain(|p| !p.is_identity());
        }
        PeerSet { any, ids: ids.into_iter().collect() }
    }

    /// The identities that a policy selects.
    pub(super) fn selected(&mut self, policy: &'a Policy) -> PeerSet {
        let matched: Vec<PeerSet> = policy.selector.iter().map(|p| self.pattern(p)).collect();
        let known = &self.inventory.identities;
        let here = |p: &PeerId| {
            policy.namespace().is_none_or(|ns| known.get(p).is_some_and(|facts| facts.identity.namespace == ns))
        };
        if let [PeerSet { any: false, ids }] = &matched[..] {
            return PeerSet { any: false, ids: ids.iter().copied().filter(here).collect() };
        }
        let mut ids: BTreeSet<PeerId> = matched.iter().flat_map(|m| m.ids.iter().copied()).collect();
        if matched.iter().any(|m| m.any) {
            ids.extend(self.identities());
        }
        ids.retain(here);
        PeerSet { any: false, ids: ids.into_iter().collect() }
    }

    /// The identities that have this ID.
    pub(super) fn having(&self, id: &SpiffeId) -> PeerSet {
        let start = self.by_id.partition_point(|(known, _)| *known < id.as_str());
        let all = self.by_id[start..].iter().take_while(|(known, _)| *known == id.as_str());
        PeerSet { any: false, ids: all.map(|(_, peer)| *peer).collect() }
    }

    fn pattern(&mut self, pattern: &'a IdPattern) -> PeerSet {
        if let Some(known) = self.matched.get(pattern.as_str()) {
            return known.clone();
        }
        let found = self.search(pattern);
        self.matched.insert(pattern.as_str(), found.clone());
        found
    }

    fn search(&self, pattern: &IdPattern) -> PeerSet {
        if pattern.is_any() {
            return PeerSet { any: true, ids: Rc::default() };
        }
        let prefix = pattern.literal_prefix();
        let start = self.by_id.partition_point(|(id, _)| *id < prefix);
        let near = self.by_id[start..].iter().take_while(|(id, _)| id.starts_with(prefix));
        let ids: BTreeSet<PeerId> = near.filter(|(id, _)| pattern.matches_text(id)).map(|(_, peer)| *peer).collect();
        // A glob over a trust domain that everybody is in says the same as "any workload", in far fewer entries.
        if !pattern.is_exact() && ids.len() == self.inventory.identities.len() {
            return PeerSet { any: true, ids: Rc::default() };
        }
        PeerSet { any: false, ids: ids.into_iter().collect() }
    }
}

/// The parts of the world that rules tell apart, each without the smaller ones inside it.
pub(super) fn parts(set: &PolicySet, table: &mut RuleTable) -> Vec<(IpNet, PeerId)> {
    nets(set).into_iter().map(|net| (net, table.part_number(net))).collect()
}

/// What bounds them.
pub(super) fn nets(set: &PolicySet) -> BTreeSet<IpNet> {
    set.iter().flat_map(named_nets).collect()
}

/// Every CIDR that a policy names, also as an exception: each bounds a part of the world.
fn named_nets(policy: &Policy) -> Vec<IpNet> {
    let Policy { ingress, egress, edges, denies, .. } = policy;
    let rules = ingress.iter().chain(egress).flatten().flat_map(|rule| &rule.peers);
    let edges = edges.iter().flat_map(|e| e.from.iter().chain(&e.to));
    let denies = denies.iter().flat_map(|d| {
        let excepted = d.except.iter().flat_map(|e| e.from.iter().chain(&e.to).flatten());
        d.from.iter().chain(&d.to).chain(excepted)
    });
    let mut nets = Vec::new();
    for peer in rules.chain(edges).chain(denies) {
        if let Peer::Cidr { net, except } = &peer.value {
            nets.push(*net);
            nets.extend(except);
        }
    }
    nets
}
