//! Which rule stands for addresses of the world: single addresses where they stay the same, a small network where they
//! all lie in one, and the class `world` where they come and go, because then nobody knows the next one.

use super::evidence::{Evidence, Known, Sight};
use super::sort::Length;
use super::write::short;
use crate::history::Record;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How many addresses are listed one by one.
const LISTED: usize = 4;
/// The networks in which the addresses of one service are thought to stay.
const V4_PREFIX: u8 = 24;
const V6_PREFIX: u8 = 64;

/// What stands for some addresses of the world.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Part {
    World,
    Net(IpNet),
}

/// A part of the world, the evidence for it, and why it is this part.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) part: Part,
    pub(super) evidence: Evidence,
    pub(super) why: String,
}

/// What was chosen for the addresses of one link, and which of them were left out as slips.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice<'a> {
    pub(super) parts: Vec<Chosen>,
    pub(super) once: Vec<Sight<'a>>,
}

/// Chooses for the sights that `needed` says need a rule.
pub(super) fn choose<'a>(
    known: &Known<'a>,
    length: Length,
    keep_once: bool,
    needed: impl Fn(&Sight<'a>) -> bool,
) -> Choice<'a> {
    let mut groups: BTreeMap<Group, Vec<&Sight<'a>>> = BTreeMap::new();
    let seen = || known.sights.iter().filter(|s| s.evidence.established > 0);
    let nameless = seen().filter(|s| s.name().is_none()).count();
    for sight in seen() {
        let group = match (sight.name(), sight.address) {
            (Some(name), _) => Group::Name(name.to_owned()),
            (None, Some(address)) if nameless <= LISTED => Group::Address(address),
            (None, _) => Group::Others,
        };
        groups.entry(group).or_default().push(sight);
    }
    let mut choice = Choice::default();
    for (group, sights) in groups {
        let evidence = Evidence::of(sights.iter().flat_map(|s| s.records.iter().copied()));
        if !keep_once && length.is_once(&evidence) {
            choice.once.extend(sights.into_iter().cloned());
        } else if sights.iter().any(|s| needed(s)) {
            choice.parts.extend(group.parts(&sights, evidence));
        }
    }
    choice.unite(known);
    choice
}

impl Sight<'_> {
    /// The DNS name by which the workload had asked for the address.
    pub(super) fn name(&self) -> Option<&str> {
        self.records.iter().filter_map(|r: &&Record| r.name.as_deref()).min()
    }
}

/// Addresses that belong together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Name(String),
    Address(IpAddr),
    Others,
}

impl Group {
    fn parts(&self, sights: &[&Sight<'_>], evidence: Evidence) -> Vec<Chosen> {
        let of = match self {
            Self::Name(name) => format!(" of {}", short(name)),
            Self::Address(_) | Self::Others => String::new(),
        };
        let Some(addresses) = sights.iter().map(|s| s.address).collect::<Option<Vec<IpAddr>>>() else {
            return vec![Chosen { part: Part::World, evidence, why: format!("addresses{of} weren't kept") }];
        };
        let steady = |s: &&Sight<'_>| s.evidence.days * 2 >= evidence.days;
        let number = addresses.len();
        if number <= LISTED && sights.iter().all(steady) {
            let why = if of.is_empty() { String::new() } else { format!("an address{of}") };
            let single = |s: &&Sight<'_>| {
                let part = s.address.map_or(Part::World, |a| Part::Net(IpNet::from(a)));
                Chosen { part, evidence: s.evidence.clone(), why: why.clone() }
            };
            return sights.iter().map(single).collect();
        }
        let mut nets: Vec<IpNet> = addresses.iter().map(around).collect();
        nets.sort_unstable();
        nets.dedup();
        let families = |v4: bool| nets.iter().filter(|n| matches!(n, IpNet::V4(_)) == v4).count();
        if families(true) <= 1 && families(false) <= 1 {
            let chosen = |net: &IpNet| {
                let inside = sights.iter().filter(|s| s.address.is_some_and(|a| net.contains(&a)));
                let evidence = Evidence::of(inside.clone().flat_map(|s| s.records.iter().copied()));
                let why = format!("{} addresses{of}, all in this network", inside.count());
                Chosen { part: Part::Net(*net), evidence, why }
            };
            return nets.iter().map(chosen).collect();
        }
        let no_name = if of.is_empty() { "" } else { "; a rule can't name a DNS name" };
        let why = format!("{number} addresses{of}, in {} networks{no_name}", nets.len());
        vec![Chosen { part: Part::World, evidence, why }]
    }
}

/// The network in which an address's neighbours are thought to be.
fn around(address: &IpAddr) -> IpNet {
    match address {
        IpAddr::V4(a) => Ipv4Net::new(*a, V4_PREFIX).map_or_else(|_| (*address).into(), |n| n.trunc().into()),
        IpAddr::V6(a) => Ipv6Net::new(*a, V6_PREFIX).map_or_else(|_| (*address).into(), |n| n.trunc().into()),
    }
}

impl Choice<'_> {
    /// One rule for what others say already: all of it is the world if any of it is, and a network holds its addresses.
    fn unite(&mut self, known: &Known<'_>) {
        if let Some(world) = self.parts.iter().find(|c| c.part == Part::World) {
            let why = match self.parts.iter().filter(|c| c.part == Part::World).count() {
                1 => world.why.clone(),
                n => format!("{} and {} more", world.why, n - 1),
            };
            self.parts = vec![Chosen { part: Part::World, evidence: known.evidence.clone(), why }];
            return;
        }
        let nets: Vec<IpNet> = self.parts.iter().filter_map(|c| c.net()).collect();
        let mut kept: BTreeMap<Part, Chosen> = BTreeMap::new();
        for chosen in std::mem::take(&mut self.parts) {
            let Some(net) = chosen.net() else { continue };
            if !nets.iter().any(|n| *n != net && n.contains(&net)) {
                kept.entry(chosen.part.clone()).or_insert(chosen);
            }
        }
        self.parts = kept.into_values().collect();
    }
}

impl Chosen {
    fn net(&self) -> Option<IpNet> {
        match self.part {
            Part::Net(net) => Some(net),
            Part::World => None,
        }
    }
}
