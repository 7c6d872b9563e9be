//! Everybody that two policy sets may be about: identities, classes, and the parts of the world that either set names,
//! each part standing for itself by an address that is in no smaller one.

use crate::flows::PeerName;
use crate::inventory::Inventory;
use crate::judge::Who;
use crate::policy::model::{Peer, Policy};
use crate::policy::{At, IdPattern, PolicySet};
use bulkhead_common::{Class, PeerId};
use ipnet::{IpAddrRange, IpNet};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;

/// Everybody, and who fits which pattern.
#[derive(Debug)]
pub struct Ends<'a> {
    inventory: &'a Inventory,
    /// By one of their IDs.
    by_id: HashMap<&'a str, Vec<PeerId>>,
    /// By pattern, for those that aren't a single ID.
    globs: HashMap<&'a str, Vec<PeerId>>,
    /// The parts, and the address that stands for each.
    parts: BTreeMap<IpNet, IpAddr>,
    names: BTreeMap<IpAddr, IpNet>,
}

impl<'a> Ends<'a> {
    /// Those of the inventory, and what these sets name of the world.
    pub fn of(inventory: &'a Inventory, sets: impl IntoIterator<Item = &'a PolicySet>) -> Self {
        let mut by_id: HashMap<&str, Vec<PeerId>> = HashMap::new();
        for (peer, facts) in &inventory.identities {
            for id in &facts.identity.ids {
                by_id.entry(id.as_str()).or_default().push(*peer);
            }
        }
        let mut ends = Self { inventory, by_id, globs: HashMap::new(), parts: BTreeMap::new(), names: BTreeMap::new() };
        let mut nets: BTreeSet<IpNet> = BTreeSet::new();
        for policy in sets.into_iter().flat_map(PolicySet::iter) {
            policy.selector.iter().for_each(|p| ends.glob(&p.value));
            let peers = |list: &'a [At<Peer>]| list.iter().map(|p| &p.value);
            let rules = policy.ingress.iter().chain(&policy.egress).flatten().flat_map(|r| peers(&r.peers));
            let edges = policy.edges.iter().flat_map(|e| peers(&e.from).chain(peers(&e.to)));
            let denies = policy.denies.iter().flat_map(|d| peers(&d.from).chain(peers(&d.to)));
            let excepts = policy.denies.iter().flat_map(|d| &d.except);
            let excepts = excepts.flat_map(|e| e.from.iter().chain(&e.to).flat_map(|list| peers(list)));
            for peer in rules.chain(edges).chain(denies).chain(excepts) {
                match peer {
                    Peer::Id(pattern) => ends.glob(pattern),
                    Peer::Class(_) => {}
                    Peer::Cidr { net, except } => {
                        nets.insert(*net);
                        nets.extend(except);
                    }
                }
            }
        }
        for net in &nets {
            if let Some(address) = own_address(net, &nets) {
                ends.parts.insert(*net, address);
                ends.names.insert(address, *net);
            }
        }
        ends
    }

    fn glob(&mut self, pattern: &'a IdPattern) {
        if pattern.is_exact() || self.globs.contains_key(pattern.as_str()) {
            return;
        }
        let fits = |peer: &&PeerId| {
            self.inventory.identities.get(peer).is_some_and(|f| f.identity.ids.iter().any(|id| pattern.matches(id)))
        };
        let all = self.inventory.identities.keys().filter(fits).copied().collect();
        self.globs.insert(pattern.as_str(), all);
    }

    fn matching(&self, pattern: &IdPattern) -> &[PeerId] {
        let map = if pattern.is_exact() { &self.by_id } else { &self.globs };
        map.get(pattern.as_str()).map_or(&[], Vec::as_slice)
    }

    /// Those whom the policy selects.
    pub fn selected(&self, policy: &Policy) -> Vec<Who> {
        let here = |peer: &PeerId| match (policy.namespace(), self.inventory.identities.get(peer)) {
            (Some(namespace), Some(facts)) => facts.identity.namespace == namespace,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let all: BTreeSet<PeerId> = policy.selector.iter().flat_map(|p| self.matching(p)).copied().collect();
        all.into_iter().filter(here).map(Who::Peer).collect()
    }

    /// Those whom a rule names.
    pub fn named(&self, peers: &[At<Peer>]) -> Vec<Who> {
        let mut all = BTreeSet::new();
        for peer in peers {
            match &peer.value {
                Peer::Id(pattern) => all.extend(self.matching(pattern).iter().copied().map(Who::Peer)),
                Peer::Class(class) => {
                    all.insert(Who::Peer(class.id()));
                    if *class == Class::World {
                        all.extend(self.parts.values().copied().map(Who::Address));
                    }
                }
                Peer::Cidr { net, except } => {
                    let within = |a: &&IpAddr| net.contains(*a) && !except.iter().any(|e| e.contains(*a));
                    all.extend(self.parts.values().filter(within).copied().map(Who::Address));
                }
            }
        }
        all.into_iter().collect()
    }

    /// The ends that stand for the parts of the world in which this address lies, the smallest first; the last is all
    /// of the world.
    pub fn around(&self, address: IpAddr) -> impl Iterator<Item = Who> {
        let length = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let parts = (0..=length).rev().filter_map(move |n| self.parts.get(&IpNet::new(address, n).ok()?.trunc()));
        parts.map(|a| Who::Address(*a)).chain([Who::Peer(Class::World.id())])
    }

    /// What an end is called.
    pub fn name(&self, who: Who, peer: impl FnOnce(PeerId) -> PeerName) -> PeerName {
        match who {
            Who::Peer(p) => peer(p),
            Who::Address(a) => {
                let id = self.names.get(&a).map_or_else(|| a.to_string(), ToString::to_string);
                PeerName { id, namespace: String::new() }
            }
        }
    }
}

/// An address of this part that lies in none of the smaller ones, if there is one.
fn own_address(net: &IpNet, all: &BTreeSet<IpNet>) -> Option<IpAddr> {
    // In order of address and then of length: what a prefix holds stands right behind it.
    let behind_it = (Bound::Excluded(net), Bound::Unbounded);
    let smaller: Vec<&IpNet> = all.range::<IpNet, _>(behind_it).take_while(|n| net.contains(*n)).collect();
    let taken = |a: &IpAddr| smaller.iter().any(|n| n.contains(a));
    let behind = smaller.iter().filter_map(|n| following(n.broadcast()));
    std::iter::once(net.network()).chain(behind).find(|a| net.contains(a) && !taken(a))
}

/// The next address.
fn following(address: IpAddr) -> Option<IpAddr> {
    let mut range = match address {
        IpAddr::V4(a) => IpAddrRange::V4(ipnet::Ipv4AddrRange::new(a, [255; 4].into())),
        IpAddr::V6(a) => IpAddrRange::V6(ipnet::Ipv6AddrRange::new(a, [255; 16].into())),
    };
    range.nth(1)
}
