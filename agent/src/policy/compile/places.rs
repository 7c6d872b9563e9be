//! Who is where: cgroups, addresses and prefixes, with the parts of the world that rules tell apart.
//!
//! A rule's CIDR refines the world and nothing else, so a prefix gets the part's number only where the owner of the
//! range is the world; inside a workload's or another class's range it isn't written at all. Among the endpoints, the
//! longer prefix wins, and an address over any prefix.

use super::super::compile::Warning;
use crate::image::{Image, masked};
use crate::inventory::{Inventory, Owner, Place};
use bulkhead_common::maps::{MAX_LEVEL, PrefixKey};
use bulkhead_common::slots::Binding;
use bulkhead_common::{Addr, Class, PeerId};
use ipnet::IpNet;
use litemap::LiteMap;
use std::collections::BTreeMap;

/// Which classes there are without anybody's saying so. An endpoint for the same prefix takes its place.
const BUILT_IN: [(PrefixKey, Class); 9] = [
    (PrefixKey { bits: 0, addr: Addr([0; 16]) }, Class::World),
    (PrefixKey { bits: 96, addr: Addr::v4([0; 4]) }, Class::World),
    (PrefixKey { bits: 100, addr: Addr::v4([224, 0, 0, 0]) }, Class::Multicast),
    (PrefixKey { bits: 128, addr: Addr::v4([255; 4]) }, Class::Multicast),
    (PrefixKey { bits: 8, addr: Addr([0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) }, Class::Multicast),
    // A link-local address says nothing of who is there, and a workload has one too: never the world.
    (PrefixKey { bits: 112, addr: Addr::v4([169, 254, 0, 0]) }, Class::Unknown),
    (PrefixKey { bits: 10, addr: Addr([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) }, Class::Unknown),
    (PrefixKey { bits: 128, addr: Addr::v4([169, 254, 169, 254]) }, Class::Metadata),
    (
        PrefixKey { bits: 128, addr: Addr([0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54]) },
        Class::Metadata,
    ),
];

/// The key of a prefix as rules write it.
pub(super) fn key(net: &IpNet) -> PrefixKey {
    match net {
        IpNet::V4(n) => PrefixKey { bits: u32::from(n.prefix_len()) + 96, addr: Addr::v4(n.network().octets()) },
        IpNet::V6(n) => PrefixKey { bits: n.prefix_len().into(), addr: Addr(n.network().octets()) },
    }
}

/// Prefixes, and which lengths occur: a search tries those only.
struct Trie<T> {
    entries: BTreeMap<PrefixKey, T>,
    /// The greatest first.
    lengths: Vec<u32>,
}

impl<T: Copy> Trie<T> {
    fn of(entries: BTreeMap<PrefixKey, T>) -> Self {
        let mut lengths: Vec<u32> = entries.keys().map(|k| k.bits).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { entries, lengths }
    }

    /// The longest prefix of at most `bits` bits that holds the address.
    fn longest(&self, addr: &Addr, bits: u32) -> Option<(PrefixKey, T)> {
        self.lengths.iter().filter(|n| **n <= bits).find_map(|n| {
            let key = PrefixKey { bits: *n, addr: masked(addr, *n) };
            self.entries.get(&key).map(|found| (key, *found))
        })
    }
}

/// Fills in everything but rules and baselines.
pub(super) fn fill(image: &mut Image, inventory: &Inventory, parts: &[(IpNet, PeerId)], warnings: &mut Vec<Warning>) {
    image.built_ins = inventory.built_ins;
    cgroups(image, inventory, warnings);

    let mut at_addr: Vec<(Addr, Owner)> = Vec::with_capacity(inventory.endpoints.len());
    let mut at_port = BTreeMap::new();
    let mut at_prefix: BTreeMap<PrefixKey, Owner> = BTreeMap::new();
    for e in &inventory.endpoints {
        let taken = match e.place {
            Place::Addr(addr) => {
                at_addr.push((addr, e.owner));
                continue;
            }
            Place::Port(key) => better(at_port.entry(key).or_insert(e.owner), e.owner),
            Place::Prefix(key) => {
                let key = PrefixKey { bits: key.bits.min(128), addr: masked(&key.addr, key.bits) };
                better(at_prefix.entry(key).or_insert(e.owner), e.owner)
            }
        };
        if let Some((kept, other)) = taken {
            warnings.push(Warning::ClaimedTwice { place: e.place, kept, other });
        }
    }
    // Of addresses there may be very many: sorted once, they are a map.
    at_addr.sort_by_key(|(addr, _)| u128::from_be_bytes(addr.0));
    at_addr.dedup_by(|(addr, owner), (last, kept)| {
        if addr != last {
            return false;
        }
        if let Some((kept, other)) = better(kept, *owner) {
            warnings.push(Warning::ClaimedTwice { place: Place::Addr(*addr), kept, other });
        }
        true
    });
    for (prefix, class) in BUILT_IN {
        at_prefix.entry(prefix).or_insert(Owner::Class(class));
    }

    let owners = Trie::of(at_prefix);
    let parts = Trie::of(parts.iter().map(|(net, peer)| (key(net), *peer)).collect());
    // The world at a place is the smallest part of it that some rule names. A prefix of IPv6 that is short enough to
    // hold the IPv4 addresses in their widened form doesn't mean them.
    let bind = |owner: Owner, addr: &Addr, bits: u32| match owner {
        Owner::Workload { peer, instance } => Binding { instance, ..Binding::of(peer) },
        Owner::Class(Class::World) => {
            let v4 = addr.is_v4() && bits >= 96;
            let part = parts.longest(addr, bits).filter(|(key, _)| !v4 || key.bits >= 96);
            Binding::of(part.map_or(Class::World.id(), |(_, part)| part))
        }
        Owner::Class(class) => Binding::of(class.id()),
    };
    let owner = |addr: &Addr, bits: u32| owners.longest(addr, bits).map_or(Owner::Class(Class::World), |(_, o)| o);

    for (prefix, o) in &owners.entries {
        image.prefixes.insert(*prefix, bind(*o, &prefix.addr, prefix.bits));
    }
    for (prefix, part) in &parts.entries {
        if owner(&prefix.addr, prefix.bits) == Owner::Class(Class::World) {
            image.prefixes.insert(*prefix, Binding::of(*part));
        }
    }
    let bound = at_addr.into_iter().map(|(addr, o)| (addr, bind(o, &addr, 128)));
    // In order and without doubles.
    image.addresses = LiteMap::from_sorted_store_unchecked(bound.collect());
    let mut rest = Vec::new();
    for (key, o) in &at_port {
        image.address_ports.insert(*key, bind(*o, &key.addr, 128));
        match image.addresses.get_mut(&key.addr) {
            Some(others) => others.flags |= Binding::HAS_PORTS,
            None => {
                let others = bind(owner(&key.addr, 128), &key.addr, 128);
                rest.push((key.addr, Binding { flags: others.flags | Binding::HAS_PORTS, ..others }));
            }
        }
    }
    image.addresses.extend(rest);
}

/// Keeps the better of two owners of one place; returns both if they differ.
fn better(kept: &mut Owner, other: Owner) -> Option<(Owner, Owner)> {
    let rank = |o: &Owner| match o {
        Owner::Class(Class::KubeApiserver) => (0, 0, 0),
        Owner::Workload { peer, instance } => (1, peer.0, *instance),
        Owner::Class(class) => (2, *class as u32, 0),
    };
    if *kept == other {
        return None;
    }
    let worse = if rank(&other) < rank(kept) { std::mem::replace(kept, other) } else { other };
    Some((*kept, worse))
}

fn cgroups(image: &mut Image, inventory: &Inventory, warnings: &mut Vec<Warning>) {
    let mut level = |id: u64, level: u32| {
        if level > MAX_LEVEL {
            warnings.push(Warning::TooDeep { cgroup: id, level });
        } else {
            image.levels |= 1 << level;
        }
    };
    inventory.cgroups.iter().for_each(|c| level(c.id, c.level));
    inventory.attach_points.iter().for_each(|a| level(a.id, a.level));
    for c in &inventory.cgroups {
        let binding = Binding { peer: c.peer, instance: c.instance, flags: c.flags };
        let kept = image.cgroups.entry(c.id).or_insert(binding);
        if *kept != binding {
            let (first, second) = (kept.peer.min(c.peer), kept.peer.max(c.peer));
            if binding < *kept {
                *kept = binding;
            }
            warnings.push(Warning::SharedCgroup { cgroup: c.id, kept: first, other: second });
        }
    }
    for a in &inventory.attach_points {
        let binding = image.cgroups.entry(a.id).or_insert(Binding::of(PeerId::UNKNOWN_WORKLOAD));
        binding.flags |= Binding::ATTACH_POINT;
        if binding.peer != PeerId::UNKNOWN_WORKLOAD {
            warnings.push(Warning::AttachPointIsWorkload { cgroup: a.id, peer: binding.peer });
        }
    }
}
