//! What the kernel holds, and how it differs from an image.
//!
//! Each key of a searched table has a place there ([`super::seats`]); a table that has become too small gets a new size,
//! and then everything in it is added at its new place and taken away from its old one.

use super::seats::Seats;
use super::{Capacities, Cell, Entry, Insert, Key, Plan, Refused, Table, Write, payloads};
use crate::image::{Image, join, masked};
use bulkhead_common::PeerId;
use bulkhead_common::maps::{LEVELS, PrefixKey};
use bulkhead_common::places::{self, GONE, PROBES};
use bulkhead_common::slots::{ABSENT, Baseline, Binding};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What the kernel holds in the present epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    capacities: Capacities,
    /// The seed of the searches.
    seed: u64,
    entries: BTreeMap<Key, Entry>,
    /// How many of them each table holds.
    lens: [usize; Table::ALL.len()],
    baselines: BTreeMap<PeerId, u64>,
    /// The levels that are looked at.
    levels: u32,
    /// The built-ins that are on.
    built_ins: u32,
    /// The places of every table but that of prefixes.
    pub(super) seats: BTreeMap<Table, Seats>,
    /// Indexes of the slot array that were used once and aren't any more.
    pub(super) free: BTreeSet<u32>,
    /// Every index from here on has never been used; index 0 never is.
    pub(super) fresh: u32,
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
            lens: [0; Table::ALL.len()],
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
            state.lens[key.table() as usize] += 1;
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

    /// The same as an image. What no agent ever writes isn't in it.
    pub fn image(&self) -> Image {
        let mut image = Image { levels: self.levels, built_ins: self.built_ins, ..Image::default() };
        for (key, Entry { payload, .. }) in &self.entries {
            let binding = Binding::decode(*payload);
            match (key, binding) {
                (Key::Rule(k), _) => drop(image.rules.insert(*k, *payload)),
                (Key::Cgroup(k), Some(b)) => drop(image.cgroups.insert(*k, b)),
                (Key::Address(k), Some(b)) => drop(image.addresses.insert(*k, b)),
                (Key::AddressPort(k), Some(b)) => drop(image.address_ports.insert(*k, b)),
                (Key::Prefix(k), Some(b)) => drop(image.prefixes.insert(*k, b)),
                (_, None) => {}
            }
        }
        image.baselines = self.baselines.iter().filter_map(|(k, v)| Some((*k, Baseline::decode(*v)?))).collect();
        image
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
        self.lens[table as usize]
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
    pub(super) fn advance(&mut self, plan: &Plan) {
        // What moves to a larger table is taken away and added.
        for Write { key, .. } in &plan.removals {
            if self.entries.remove(key).is_some() {
                self.lens[key.table() as usize] -= 1;
            }
        }
        let inserts = plan.inserts.iter().map(|Insert { key, index, next, .. }| (*key, *index, *next));
        let writes = plan.writes.iter().map(|Write { key, index, next }| (*key, *index, *next));
        for (key, index, payload) in inserts.chain(writes) {
            if self.entries.insert(key, Entry { index, payload }).is_none() {
                self.lens[key.table() as usize] += 1;
            }
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
        if plan.inserts.len() > self.entries.len() / 4 {
            // They came in the order of their keys, which leaves nodes half full.
            self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        }
    }

    /// Gives tables other sizes. Gives back how they were.
    pub(super) fn resize(&mut self, sizes: &[(Table, u32)]) -> Vec<(Table, Seats)> {
        let swap = |(table, size): &(Table, u32)| self.seats.insert(*table, Seats::new(*size)).map(|old| (*table, old));
        sizes.iter().filter_map(swap).collect()
    }

    /// The size of a searched table, less one.
    pub(super) fn mask(&self, table: Table) -> u64 {
        self.seats.get(&table).map_or(0, |s| u64::from(s.size() - 1))
    }

    /// A key stands at this place from now on.
    pub(super) fn take(&mut self, table: Table, index: u32) {
        match self.seats.get_mut(&table) {
            Some(seats) => seats.take(index),
            None if self.free.remove(&index) => {}
            None => self.fresh = self.fresh.max(index + 1),
        }
    }

    /// Nothing stands at this place any more, and no run looks at it. Gives the cells where a search ends again.
    pub(super) fn leave(&mut self, table: Table, index: u32) -> Vec<Cell> {
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
