//! From one image to the next: which cells of the kernel's tables are written, and with what.
//!
//! [`State`] is what the kernel holds: for each key its place and its payload. [`State::plan`]
//! compares it with an image and gives a [`Plan`]; [`protocol`] says in which order a plan is carried out, and how it
//! is cleaned up afterwards. A plan that doesn't fit is refused before anything is written.
//!
//! Pure: it names neither aya nor a system call, so the order can be checked step by step against a model.
//!
//! The trie of prefixes needs more than a comparison. A lookup ends at the longest prefix *in the trie*, whether or not
//! that prefix exists in the reader's epoch, so each entry carries in each half the *effective* payload: what the
//! longest prefix that does exist in that epoch says.

pub mod protocol;
mod seats;

use crate::image::{Image, masked};
use bulkhead_common::maps::{self, AddrPort, LEVELS, PrefixKey, RuleKey};
use bulkhead_common::places::{self, GONE, PROBES};
use bulkhead_common::slots::ABSENT;
use bulkhead_common::{Addr, PeerId};
use seats::Seats;
use std::collections::{BTreeMap, BTreeSet, HashSet};
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

    /// Where its search begins; a prefix isn't searched for.
    fn home(&self, seed: u64) -> u32 {
        match self {
            Self::Cgroup(id) => places::home(seed, &[*id]),
            Self::Address(a) => places::home(seed, &places::address(a)),
            Self::AddressPort(k) => places::home(seed, &places::address_port(k)),
            Self::Rule(k) => places::home(seed, &places::rule(k)),
            Self::Prefix(_) => 0,
        }
    }

    /// What stands in a slot where this key isn't.
    const fn nothing(&self) -> u64 {
        match self {
            Self::Prefix(_) => ABSENT,
            _ => GONE,
        }
    }
}

/// Where a payload stands: two halves, one for even epochs and one for odd ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cell {
    /// A place of a table; of [`Table::Prefixes`], an element of [`maps::SLOTS`].
    Slot(Table, u32),
    /// An element of [`maps::BASELINES`].
    Baseline(PeerId),
    /// The size of a searched table, less one.
    Mask(Table),
}

/// An entry of one of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its place, or its element of [`maps::SLOTS`].
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
    /// Too many keys begin their search near one another.
    #[error(
        "the map {map} has no place left among the {PROBES} where one of its keys is searched for; raise its limit in \
         the configuration"
    )]
    Crowded {
        /// The map's name.
        map: &'static str,
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
    /// Its place, until now nobody's.
    pub index: u32,
    /// What the present epoch finds there: what it found before, or for a prefix what a shorter one says.
    pub present: u64,
    /// What the next epoch finds there.
    pub next: u64,
}

/// An entry that exists and says something else in the next epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// Its key.
    pub key: Key,
    /// Its place.
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
    /// Tables that get another size: everything in them is added there and taken away here.
    pub sizes: Vec<(Table, u32)>,
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    capacities: Capacities,
    /// The seed of the searches.
    seed: u64,
    entries: BTreeMap<Key, Entry>,
    baselines: BTreeMap<PeerId, u64>,
    /// The levels that are looked at.
    levels: u32,
    /// The built-ins that are on.
    built_ins: u32,
    /// The places of every table but that of prefixes.
    seats: BTreeMap<Table, Seats>,
    /// Indexes of the slot array that were used once and aren't any more.
    free: BTreeSet<u32>,
    /// Every index from here on has never been used; index 0 never is.
    fresh: u32,
}

/// What was read back from the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Entries of the present epoch.
    pub entries: BTreeMap<Key, Entry>,
    /// The sizes of the searched tables.
    pub sizes: BTreeMap<Table, u32>,
    /// Places without an entry that don't say so, or where a search doesn't end.
    pub gone: Vec<(Table, u32)>,
    /// Baselines that are there.
    pub baselines: BTreeMap<PeerId, u64>,
    /// The levels that are looked at.
    pub levels: u32,
    /// The built-ins that are on.
    pub built_ins: u32,
}

/// Two keys stand at one place, or one stands where it would never be found. No agent makes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entry {key:?} stands at {index}, which is another entry's, out of range, or not where it is searched for")]
pub struct BadIndex {
    /// The key.
    pub key: Key,
    /// The index.
    pub index: u32,
}

impl State {
    /// Nothing, in the smallest tables.
    pub fn new(capacities: Capacities, seed: u64) -> Self {
        let searched = Table::ALL.into_iter().filter(|t| *t != Table::Prefixes);
        Self {
            seats: searched.map(|t| (t, Seats::new(places::SMALLEST))).collect(),
            capacities,
            seed,
            entries: BTreeMap::new(),
            baselines: BTreeMap::new(),
            levels: 0,
            built_ins: 0,
            free: BTreeSet::new(),
            fresh: 1,
        }
    }

    /// The state as read back from the kernel, and the cells that are to say "nothing" again in both halves.
    ///
    /// # Errors
    /// When an entry stands where it can't be.
    pub fn restore(capacities: Capacities, seed: u64, found: Found) -> Result<(Self, Vec<Cell>), BadIndex> {
        let mut state = Self::new(capacities, seed);
        for (table, seats) in &mut state.seats {
            let size = found.sizes.get(table).copied().unwrap_or_default();
            if size.is_power_of_two() && size <= places::most_places(capacities.of(*table)) {
                *seats = Seats::new(size);
            }
        }
        let mut used = BTreeSet::new();
        for (key, entry) in &found.entries {
            let bad = BadIndex { key: *key, index: entry.index };
            match state.seats.get_mut(&key.table()) {
                Some(seats) => {
                    let way = entry.index.wrapping_sub(key.home(seed)) & (seats.size() - 1);
                    if !seats.has(entry.index) || way >= PROBES || seats.is_taken(entry.index) {
                        return Err(bad);
                    }
                    seats.take(entry.index);
                }
                None if entry.index == 0 || entry.index > capacities.prefixes || !used.insert(entry.index) => {
                    return Err(bad);
                }
                None => {}
            }
        }
        state.fresh = used.last().map_or(1, |last| last + 1);
        state.free = (1..state.fresh).filter(|i| !used.contains(i)).collect();
        for (table, place) in &found.gone {
            if let Some(seats) = state.seats.get_mut(table).filter(|s| s.has(*place)) {
                seats.mark_gone(*place);
            }
        }
        let mut clear = Vec::new();
        for (table, place) in &found.gone {
            if state.seats.get(table).is_some_and(|s| !s.has(*place) || s.is_gone(*place)) {
                clear.extend(state.leave(*table, *place));
            }
        }
        let Found { entries, sizes: _, gone: _, baselines, levels, built_ins } = found;
        Ok((Self { entries, baselines, levels, built_ins, ..state }, clear))
    }

    /// How much fits.
    pub fn capacities(&self) -> &Capacities {
        &self.capacities
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
    ///
    /// # Errors
    /// When it doesn't fit.
    pub fn plan(&self, next: &Image) -> Result<Plan, Refused> {
        let mut plan = Plan { levels: next.levels, built_ins: next.built_ins, ..Plan::default() };
        let mut used: BTreeMap<Table, usize> = BTreeMap::new();

        for (key, old, new) in join(self.entries.iter().map(|(k, e)| (*k, *e)), payloads(next)) {
            *used.entry(key.table()).or_default() += 1;
            match (old, new) {
                // Its place follows, when it is clear that there is room.
                (None, Some(next)) => plan.inserts.push(Insert { key, index: 0, present: ABSENT, next }),
                (Some(entry), None) => {
                    plan.removals.push(Write { key, index: entry.index, next: shadowed(next, &key) });
                }
                (Some(entry), Some(payload)) if entry.payload != payload => {
                    plan.writes.push(Write { key, index: entry.index, next: payload });
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        for (table, needed) in &used {
            let capacity = self.capacities.of(*table);
            if *needed > capacity as usize {
                return Err(Refused::Full { map: table.name(), needed: *needed, capacity });
            }
        }
        let mut indexes = self.free.iter().copied().chain(self.fresh..);
        for insert in plan.inserts.iter_mut().filter(|i| i.key.table() == Table::Prefixes) {
            insert.index = indexes.next().unwrap_or(u32::MAX);
            insert.present = self.shadowed(&insert.key);
        }
        for (table, seats) in &self.seats {
            self.seat(*table, seats, used.get(table).copied().unwrap_or(0), next, &mut plan)?;
        }
        for (id, old, new) in
            join(self.baselines.iter().map(|(k, v)| (*k, *v)), next.baselines.iter().map(|(k, v)| (*k, v.encode())))
        {
            if old != new {
                plan.baselines.push((id, new.unwrap_or(ABSENT)));
            }
        }

        let levels = (self.levels | next.levels).count_ones();
        if levels > LEVELS {
            return Err(Refused::Levels { levels });
        }
        if let Some((id, _)) = next.baselines.last_key_value()
            && id.0 >= self.capacities.identities
        {
            return Err(Refused::Identity { number: id.0, capacity: self.capacities.identities });
        }
        Ok(plan)
    }

    /// Finds places for what a plan adds to a searched table. Where there are too few, everything in the table gets a
    /// place in a larger one.
    fn seat(&self, table: Table, seats: &Seats, needed: usize, next: &Image, plan: &mut Plan) -> Result<(), Refused> {
        let most = places::most_places(self.capacities.of(table));
        let wanted = places::places(u32::try_from(needed).unwrap_or(u32::MAX));
        if wanted <= seats.size() {
            let mut promised = HashSet::new();
            let new = plan.inserts.iter_mut().filter(|i| i.key.table() == table);
            let all_sit = new.fold(true, |so_far, insert| {
                let Some(place) = seats.first(insert.key.home(self.seed), &promised) else { return false };
                promised.insert(place);
                insert.index = place;
                insert.present = if seats.is_gone(place) { GONE } else { ABSENT };
                so_far
            });
            if all_sit {
                return Ok(());
            }
        }
        let mut size = wanted.max(seats.size() * 2);
        loop {
            if size > most {
                return Err(Refused::Crowded { map: table.name() });
            }
            let (seats, mut taken) = (Seats::new(size), HashSet::new());
            let mut inserts = Vec::new();
            for (key, next) in payloads(next).filter(|(k, _)| k.table() == table) {
                let Some(index) = seats.first(key.home(self.seed), &taken) else { break };
                taken.insert(index);
                inserts.push(Insert { key, index, present: ABSENT, next });
            }
            if inserts.len() == payloads(next).filter(|(k, _)| k.table() == table).count() {
                plan.inserts.retain(|i| i.key.table() != table);
                plan.writes.retain(|w| w.key.table() != table);
                plan.removals.retain(|w| w.key.table() != table);
                plan.inserts.append(&mut inserts);
                let old = self.entries.iter().filter(|(k, _)| k.table() == table);
                plan.removals.extend(old.map(|(key, e)| Write { key: *key, index: e.index, next: GONE }));
                plan.sizes.push((table, size));
                return Ok(());
            }
            size *= 2;
        }
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

    /// The plan is in force: this is what the kernel holds now. Places that it gave up aren't free yet.
    fn advance(&mut self, plan: &Plan) {
        // What moves to a larger table is taken away and added.
        for Write { key, .. } in &plan.removals {
            self.entries.remove(key);
        }
        for Insert { key, index, next, .. } in &plan.inserts {
            self.entries.insert(*key, Entry { index: *index, payload: *next });
        }
        for Write { key, index, next } in &plan.writes {
            self.entries.insert(*key, Entry { index: *index, payload: *next });
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

    /// Gives tables other sizes. Gives back how they were.
    fn resize(&mut self, sizes: &[(Table, u32)]) -> Vec<(Table, Seats)> {
        let swap = |(table, size): &(Table, u32)| self.seats.insert(*table, Seats::new(*size)).map(|old| (*table, old));
        sizes.iter().filter_map(swap).collect()
    }

    /// The size of a searched table, less one.
    fn mask(&self, table: Table) -> u64 {
        self.seats.get(&table).map_or(0, |s| u64::from(s.size() - 1))
    }

    /// A key stands at this place from now on.
    fn take(&mut self, table: Table, index: u32) {
        match self.seats.get_mut(&table) {
            Some(seats) => seats.take(index),
            None if self.free.remove(&index) => {}
            None => self.fresh = self.fresh.max(index + 1),
        }
    }

    /// Nothing stands at this place any more, and no run looks at it. Gives the cells where a search ends again.
    fn leave(&mut self, table: Table, index: u32) -> Vec<Cell> {
        let Some(seats) = self.seats.get_mut(&table) else {
            self.free.insert(index);
            return Vec::new();
        };
        if !seats.has(index) {
            // Of a table that was too small.
            return vec![Cell::Slot(table, index)];
        }
        seats.leave(index).into_iter().map(|place| Cell::Slot(table, place)).collect()
    }
}

/// What a reader of the image finds at a key that isn't there any more.
fn shadowed(image: &Image, key: &Key) -> u64 {
    match key {
        Key::Prefix(p) if p.bits > 0 => image.longest_prefix(&p.addr, p.bits - 1).map_or(ABSENT, |b| b.encode()),
        key => key.nothing(),
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
