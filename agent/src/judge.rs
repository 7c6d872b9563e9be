//! A policy set that can be asked about any number of links: who the names of a history are, and what the compiled
//! tables say of two of them.
//!
//! Suggest, simulate and the comparison of sets all judge through this, so that they can't differ in what a link means.
//! Addresses of the host's configuration play no part: a history has said already who was at an address, and only the
//! world is looked up again, since a rule may name any part of it.
//!
//! Pure; it answers what the kernel would, since it asks the tables that the kernel gets.

use crate::config::widen;
use crate::flows::PeerName;
use crate::history::Record;
use crate::identity::{Identity, SCHEME};
use crate::image::Image;
use crate::inventory::{IdentityFacts, Inventory, Posture};
use crate::policy::{Mode, Policy, PolicySet, RuleRef, RuleTable, compile};
use bulkhead_common::verdict::{self, Flow, Judgement};
use bulkhead_common::{Class, PeerId, proto};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// An end of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Who {
    /// An identity, a class, or the unknown workload.
    Peer(PeerId),
    /// The world, at this address.
    Address(IpAddr),
}

impl Who {
    /// The identity's number, if it is one.
    pub fn workload(self) -> Option<PeerId> {
        match self {
            Self::Peer(p) if p.is_identity() => Some(p),
            _ => None,
        }
    }

    /// The class, if it is one.
    pub fn class(self) -> Option<Class> {
        match self {
            Self::Peer(p) => p.class(),
            Self::Address(_) => Some(Class::World),
        }
    }
}

/// Everybody that a history and an inventory speak of, numbered.
#[derive(Clone, Debug)]
pub struct Cast {
    inventory: Inventory,
    numbers: BTreeMap<PeerName, PeerId>,
}

impl Cast {
    /// The inventory's identities with their numbers, and after them those that only these names speak of, under the
    /// strictest posture there is.
    pub fn of<'a>(inventory: &Inventory, names: impl IntoIterator<Item = &'a PeerName>) -> Self {
        let mut cast = Self {
            inventory: Inventory { identities: inventory.identities.clone(), ..Inventory::default() },
            numbers: BTreeMap::new(),
        };
        for (peer, facts) in &inventory.identities {
            cast.numbers.entry(name_of(&facts.identity)).or_insert(*peer);
        }
        let strangers: BTreeSet<&PeerName> = names.into_iter().collect();
        for name in strangers {
            if let Some(identity) = identity_of(name) {
                cast.add(identity, inventory.strictest());
            }
        }
        cast
    }

    /// The number of this identity, a new one if it has none.
    pub fn add(&mut self, identity: Identity, posture: Posture) -> PeerId {
        let last = self.inventory.identities.last_key_value().map(|(n, _)| PeerId(n.0 + 1));
        let next = last.unwrap_or(PeerId::FIRST_IDENTITY).max(PeerId::FIRST_IDENTITY);
        *self.numbers.entry(name_of(&identity)).or_insert_with(|| {
            self.inventory.identities.insert(next, IdentityFacts { identity, posture, ports: BTreeMap::new() });
            next
        })
    }

    /// Everybody.
    pub const fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Everybody, with these postures.
    pub fn under(&self, posture: impl Fn(PeerId) -> Posture) -> Inventory {
        let mut inventory = self.inventory.clone();
        inventory.identities.iter_mut().for_each(|(peer, facts)| facts.posture = posture(*peer));
        inventory
    }

    /// Who has this name; `None` for one that no rule can speak of. A part of the world is the world.
    pub fn peer(&self, name: &PeerName) -> Option<PeerId> {
        if let Some(peer) = self.numbers.get(name) {
            return Some(*peer);
        }
        match name.id.as_str() {
            UNKNOWN_WORKLOAD => Some(PeerId::UNKNOWN_WORKLOAD),
            id => Class::from_name(id).map(Class::id).or_else(|| part(name).map(|_| Class::World.id())),
        }
    }

    /// Both ends of a record; `None` for an end that no rule can speak of.
    pub fn ends(&self, record: &Record) -> (Option<Who>, Option<Who>) {
        let end = |name: &PeerName| {
            let peer = self.peer(name)?;
            let address = record.address.map(|a| a.to_canonical()).or_else(|| part(name).map(|net| net.network()));
            Some(match (peer.class(), address) {
                (Some(Class::World), Some(address)) => Who::Address(address),
                _ => Who::Peer(peer),
            })
        };
        (end(&record.link.source), end(&record.link.destination))
    }

    /// What is known of an identity.
    pub fn facts(&self, peer: PeerId) -> Option<&IdentityFacts> {
        self.inventory.identities.get(&peer)
    }

    /// The name of a peer.
    pub fn name(&self, peer: PeerId) -> PeerName {
        PeerName::of(peer, |p| self.facts(p).map(|f| &f.identity), |_| None)
    }
}

const UNKNOWN_WORKLOAD: &str = "unknown-workload";

/// The name of an identity, as histories have it.
pub fn name_of(identity: &Identity) -> PeerName {
    PeerName { id: identity.to_string(), namespace: identity.namespace.clone() }
}

/// The identity of that name, if it is one.
fn identity_of(name: &PeerName) -> Option<Identity> {
    if !name.id.starts_with(SCHEME) {
        return None;
    }
    let ids = name.id.split('+').map(|id| id.parse().ok()).collect::<Option<BTreeSet<_>>>()?;
    Some(Identity { namespace: name.namespace.clone(), ids })
}

/// The part of the world of that name.
fn part(name: &PeerName) -> Option<IpNet> {
    name.id.parse().ok()
}

/// A policy set, compiled for a cast.
#[derive(Debug)]
pub struct Judge {
    image: Image,
    rules: RuleTable,
}

impl Judge {
    /// Compiles the set for those in this inventory, by the postures that it gives them. Policies in audit are taken as
    /// enforced: the audited verdict is the same, and reasons and rules are then told of that one.
    pub fn of(set: &PolicySet, inventory: &Inventory) -> Self {
        let enforced: PolicySet = set.iter().map(|policy| Policy { mode: Mode::Enforce, ..policy.clone() }).collect();
        Self::as_it_is(&enforced, inventory)
    }

    /// Compiles the set with the modes that it has.
    pub fn as_it_is(set: &PolicySet, inventory: &Inventory) -> Self {
        let mut rules = RuleTable::default();
        let image = compile(set, inventory, &mut rules).image;
        Self { image, rules }
    }

    /// What both ends say, and why.
    pub fn judge(&self, from: Who, to: Who, protocol: u8, port: u16) -> Judgement {
        let proto = proto::judged(protocol);
        let flow = Flow { src: self.peer(from, proto, 0), dst: self.peer(to, proto, port), proto, port };
        verdict::judge(&self.image, &flow)
    }

    /// The number by which the tables know this end.
    pub fn peer(&self, who: Who, proto: u8, port: u16) -> PeerId {
        match who {
            Who::Peer(peer) => peer,
            Who::Address(address) => match verdict::resolve(&self.image, &widen(address), proto, port).peer {
                // The history says that it was the world; a class by address is none of a rule's parts.
                part if part.is_cidr() => part,
                _ => Class::World.id(),
            },
        }
    }

    /// The rule of that number.
    pub fn rule(&self, number: u32) -> Option<&RuleRef> {
        self.rules.rule(number)
    }
}
