//! From one image to the next: which cells of the kernel's tables are written, and with what.
//!
//! [`State`] is what the kernel holds: for each key its place in the slot array and its payload. [`State::plan`]
//! compares it with an image and gives a [`Plan`]; [`protocol`] says in which order a plan is carried out, and how it
//! is cleaned up afterwards. A plan that doesn't fit is refused before anything is written.
//!
//! Pure: it names neither aya nor a system call, so the order can be checked step by step against a model.
//!
//! The trie of prefixes needs more than a comparison. A lookup ends at the longest prefix *in the trie*, whether or not
//! that prefix exists in the reader's epoch, so each entry carries in each half the *effective* payload: what the
//! longest prefix that does exist in that epoch says.

pub mod protocol;

use crate::image::{Image, masked};
use bulkhead_common::maps::{self, AddrPort, LEVELS, PrefixKey, RuleKey};
use bulkhead_common::slots::ABSENT;
use bulkhead_common::{Addr, PeerId};
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;

/// One of the keyed maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// [`maps::CGROUPS`]
    Cgroups,
    /// [`maps::ADDRESSES`]
    Addresses,
    /// [`maps::ADDRESS_PORTS`]
    AddressPorts,
    /// [`maps::PREFIXES`]
    Prefixes,
    /// [`maps::RULES`]
    Rules,
}

impl Table {
    /// Every table, in the order of [`Key`].
    pub const ALL: [Self; 5] = [Self::Cgroups, Self::Addresses, Self::AddressPorts, Self::Prefixes, Self::Rules];

    /// The name of its map.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cgroups => maps::CGROUPS,
            Self::Addresses => maps::ADDRESSES,
            Self::AddressPorts => maps::ADDRESS_PORTS,
            Self::Prefixes => maps::PREFIXES,
            Self::Rules => maps::RULES,
        }
    }
}

/// A key of any of the keyed maps. All keys of one table stand together in the order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// A cgroup's id.
    Cgroup(u64),
    /// An address.
    Address(Addr),
    /// An address and port.
    AddressPort(AddrPort),
    /// A prefix.
    Prefix(PrefixKey),
    /// A rule or a pair's header.
    Rule(RuleKey),
}

impl Key {
    /// The table that it is a key of.
    pub const fn table(&self) -> Table {
        match self {
            Self::Cgroup(_) => Table::Cgroups,
            Self::Address(_) => Table::Addresses,
            Self::AddressPort(_) => Table::AddressPorts,
            Self::Prefix(_) => Table::Prefixes,
            Self::Rule(_) => Table::Rules,
        }
    }
}

/// Where a payload stands: two halves, one for even epochs and one for odd ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cell {
    /// An element of [`maps::SLOTS`].
    Slot(u32),
    /// An element of [`maps::BASELINES`].
    Baseline(PeerId),
}

/// An entry of a keyed map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its place in [`maps::SLOTS`].
    pub index: u32,
    /// What it says in the present epoch.
    pub payload: u64,
}

/// How much fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacities {
    /// Entries of [`maps::CGROUPS`].
    pub cgroups: u32,
    /// Entries of [`maps::ADDRESSES`].
    pub addresses: u32,
    /// Entries of [`maps::ADDRESS_PORTS`].
    pub address_ports: u32,
    /// Entries of [`maps::PREFIXES`].
    pub prefixes: u32,
    /// Entries of [`maps::RULES`].
    pub rules: u32,
    /// Elements of [`maps::SLOTS`], including the one that is never used.
    pub slots: u32,
    /// Elements of [`maps::BASELINES`].
    pub identities: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        use maps::capacity as c;
        Self {
            cgroups: c::CGROUPS,
            addresses: c::ADDRESSES,
            address_ports: c::ADDRESS_PORTS,
            prefixes: c::PREFIXES,
            rules: c::RULES,
            slots: c::SLOTS,
            identities: c::IDENTITIES,
        }
    }
}

impl Capacities {
    /// How many entries the table holds.
    pub const fn of(&self, table: Table) -> u32 {
        match table {
            Table::Cgroups => self.cgroups,
            Table::Addresses => self.addresses,
            Table::AddressPorts => self.address_ports,
            Table::Prefixes => self.prefixes,
            Table::Rules => self.rules,
        }
    }
}

/// An image that can't be put into the maps. Nothing has been written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A map is too small.
    #[error(
        "the map {map} holds {capacity} entries, and this change needs {needed} at once (what it removes stays until \
         what it adds is in force); raise its limit in the configuration, or make the change in smaller steps"
    )]
    Full {
        /// The map's name.
        map: &'static str,
        /// How many entries there would be.
        needed: usize,
        /// How many fit.
        capacity: u32,
    },
    /// Cgroups lie at too many different depths.
    #[error(
        "cgroups of workloads and attach points lie at {levels} different depths at once, and only {LEVELS} are looked \
         at; attach nearer to the workloads, or at fewer places"
    )]
    Levels {
        /// How many different depths there would be.
        levels: u32,
    },
    /// An identity's number lies outside the array of baselines.
    #[error("identity number {number} doesn't fit the {capacity} identities that the map BASELINES holds")]
    Identity {
        /// The number.
        number: u32,
        /// How many fit.
        capacity: u32,
    },
}

/// A new entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insert {
    /// Its key.
    pub key: Key,
    /// Its place in the slot array, until now unused.
    pub index: u32,
    /// What the present epoch finds there: nothing, or for a prefix what a shorter one says.
    pub present: u64,
    /// What the next epoch finds there.
    pub next: u64,
}

/// An entry that exists and says something else in the next epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// Its key.
    pub key: Key,
    /// Its place in the slot array.
    pub index: u32,
    /// What the next epoch finds there. For an entry that goes: nothing, or for a prefix what a shorter one says.
    pub next: u64,
}

/// The difference between what the kernel holds and an image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Entries to add, in the order of their keys.
    pub inserts: Vec<Insert>,
    /// Entries to change.
    pub writes: Vec<Write>,
    /// Entries to take away.
    pub removals: Vec<Write>,
    /// Baselines that differ, with what the next epoch finds.
    pub baselines: Vec<(PeerId, u64)>,
    /// The levels to look at.
    pub levels: u32,
    /// The built-ins that are on.
    pub built_ins: u32,
}

impl Plan {
    /// Whether the kernel holds the image already, but for levels and built-ins.
    pub fn is_empty(&self) -> bool {
        self.inserts.is_empty() && self.writes.is_empty() && self.removals.is_empty() && self.baselines.is_empty()
    }
}

/// What the kernel holds in the present epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    entries: BTreeMap<Key, Entry>,
    baselines: BTreeMap<PeerId, u64>,
    /// The levels that are looked at.
    levels: u32,
    /// The built-ins that are on.
    built_ins: u32,
    /// Indexes of the slot array that were used once and aren't any more.
    free: BTreeSet<u32>,
    /// Every index from here on has never been used; 0 and 1 mean the same, since index 0 never is.
    fresh: u32,
}

/// Two keys name the same element of the slot array, or one names an element that isn't there. No agent makes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entry {key:?} points at element {index} of SLOTS, which is out of range or another entry's")]
pub struct BadIndex {
    /// The key.
    pub key: Key,
    /// The index.
    pub index: u32,
}

impl State {
    /// The state as read back from the kernel.
    pub fn restore(
        entries: BTreeMap<Key, Entry>,
        baselines: BTreeMap<PeerId, u64>,
        levels: u32,
        built_ins: u32,
        slots: u32,
    ) -> Result<Self, BadIndex> {
        let mut used = BTreeSet::new();
        for (key, entry) in &entries {
            if entry.index == 0 || entry.index >= slots || !used.insert(entry.index) {
                return Err(BadIndex { key: *key, index: entry.index });
            }
        }
        let fresh = used.last().map_or(1, |last| last + 1);
        let free = (1..fresh).filter(|i| !used.contains(i)).collect();
        Ok(Self { entries, baselines, levels, built_ins, free, fresh })
    }

    /// Every entry.
    pub fn entries(&self) -> &BTreeMap<Key, Entry> {
        &self.entries
    }

    /// Every baseline that is there.
    pub fn baselines(&self) -> &BTreeMap<PeerId, u64> {
        &self.baselines
    }

    /// The levels that are looked at.
    pub fn levels(&self) -> u32 {
        self.levels
    }

    /// The built-ins that are on.
    pub fn built_ins(&self) -> u32 {
        self.built_ins
    }

    /// How many entries the table holds.
    pub fn len(&self, table: Table) -> usize {
        self.entries.keys().filter(|k| k.table() == table).count()
    }

    /// Compares with an image.
    pub fn plan(&self, next: &Image, capacities: &Capacities) -> Result<Plan, Refused> {
        let mut plan = Plan { levels: next.levels, built_ins: next.built_ins, ..Plan::default() };
        let mut indexes = self.free.iter().copied().chain(self.fresh.max(1)..);
        let mut used: BTreeMap<Table, usize> = BTreeMap::new();

        for (key, old, new) in join(self.entries.iter().map(|(k, e)| (*k, *e)), payloads(next)) {
            *used.entry(key.table()).or_default() += 1;
            match (old, new) {
                (None, Some(payload)) => {
                    let index = indexes.next().unwrap_or(u32::MAX);
                    plan.inserts.push(Insert { key, index, present: self.shadowed(&key), next: payload });
                }
                (Some(entry), None) => {
                    plan.removals.push(Write { key, index: entry.index, next: shadowed(next, &key) });
                }
                (Some(entry), Some(payload)) if entry.payload != payload => {
                    plan.writes.push(Write { key, index: entry.index, next: payload });
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        for (id, old, new) in
            join(self.baselines.iter().map(|(k, v)| (*k, *v)), next.baselines.iter().map(|(k, v)| (*k, v.encode())))
        {
            if old != new {
                plan.baselines.push((id, new.unwrap_or(ABSENT)));
            }
        }

        for (table, needed) in &used {
            let capacity = capacities.of(*table);
            if *needed > capacity as usize {
                return Err(Refused::Full { map: table.name(), needed: *needed, capacity });
            }
        }
        let needed = used.values().sum::<usize>() + 1;
        if needed > capacities.slots as usize {
            return Err(Refused::Full { map: maps::SLOTS, needed, capacity: capacities.slots });
        }
        let levels = (self.levels | next.levels).count_ones();
        if levels > LEVELS {
            return Err(Refused::Levels { levels });
        }
        if let Some((id, _)) = next.baselines.last_key_value()
            && id.0 >= capacities.identities
        {
            return Err(Refused::Identity { number: id.0, capacity: capacities.identities });
        }
        Ok(plan)
    }

    /// What a reader of the present epoch finds at a key that isn't there.
    fn shadowed(&self, key: &Key) -> u64 {
        let Key::Prefix(prefix) = key else { return ABSENT };
        (0..prefix.bits)
            .rev()
            .find_map(|bits| {
                self.entries.get(&Key::Prefix(PrefixKey { bits, addr: masked(&prefix.addr, bits) })).map(|e| e.payload)
            })
            .unwrap_or(ABSENT)
    }

    /// The plan is in force: this is what the kernel holds now. Indexes that it gave up aren't free yet.
    fn advance(&mut self, plan: &Plan) {
        for Insert { key, index, next, .. } in &plan.inserts {
            self.entries.insert(*key, Entry { index: *index, payload: *next });
            self.take(*index);
        }
        for Write { key, index, next } in &plan.writes {
            self.entries.insert(*key, Entry { index: *index, payload: *next });
        }
        for Write { key, .. } in &plan.removals {
            self.entries.remove(key);
        }
        for (id, payload) in &plan.baselines {
            if *payload == ABSENT {
                self.baselines.remove(id);
            } else {
                self.baselines.insert(*id, *payload);
            }
        }
        self.levels = plan.levels;
        self.built_ins = plan.built_ins;
    }

    /// Marks an index as used.
    fn take(&mut self, index: u32) {
        if !self.free.remove(&index) {
            self.fresh = self.fresh.max(index + 1);
        }
    }

    /// Marks an index as unused.
    fn give_back(&mut self, index: u32) {
        self.free.insert(index);
    }
}

/// What a reader of the image finds at a key that isn't there.
fn shadowed(image: &Image, key: &Key) -> u64 {
    match key {
        Key::Prefix(p) if p.bits > 0 => image.longest_prefix(&p.addr, p.bits - 1).map_or(ABSENT, |b| b.encode()),
        _ => ABSENT,
    }
}

/// Everything of an image that has a key, in the order of [`Key`].
pub fn payloads(image: &Image) -> impl Iterator<Item = (Key, u64)> {
    let cgroups = image.cgroups.iter().map(|(k, b)| (Key::Cgroup(*k), b.encode()));
    let addresses = image.addresses.iter().map(|(k, b)| (Key::Address(*k), b.encode()));
    let ports = image.address_ports.iter().map(|(k, b)| (Key::AddressPort(*k), b.encode()));
    let prefixes = image.prefixes.iter().map(|(k, b)| (Key::Prefix(*k), b.encode()));
    let rules = image.rules.iter().map(|(k, v)| (Key::Rule(*k), *v));
    cgroups.chain(addresses).chain(ports).chain(prefixes).chain(rules)
}

/// Walks two sequences that are ordered by key and pairs what has the same key.
fn join<K: Ord + Copy, A, B>(
    left: impl Iterator<Item = (K, A)>,
    right: impl Iterator<Item = (K, B)>,
) -> impl Iterator<Item = (K, Option<A>, Option<B>)> {
    let (mut left, mut right): (Peekable<_>, Peekable<_>) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || {
        let key = match (left.peek(), right.peek()) {
            (Some((l, _)), Some((r, _))) => *l.min(r),
            (Some((k, _)), None) | (None, Some((k, _))) => *k,
            (None, None) => return None,
        };
        let a = left.next_if(|(k, _)| *k == key).map(|(_, v)| v);
        let b = right.next_if(|(k, _)| *k == key).map(|(_, v)| v);
        Some((key, a, b))
    })
}

#[cfg(test)]
mod tests;
