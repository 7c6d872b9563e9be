//! The kernel's tables as the commit protocol sees them: [`Kernel`] over system calls and mapped memory.

use super::memory::{ControlWords, Rows, Shares};
use super::retired::{Retirement, beside};
use super::sys;
use crate::plan::protocol::Kernel;
use crate::plan::{BadIndex, Capacities, Cell, Entry, Found, Key, State, Table};
use bulkhead_common::maps::{self, Control, EdgeKey, PrefixKey, RuleKey};
use bulkhead_common::outside;
use bulkhead_common::places::{self, GONE, KEY};
use bulkhead_common::slots::ABSENT;
use bulkhead_common::{Direction, PeerId};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};

/// Waits for program runs to end.
///
/// Replacing a map inside a map of maps waits, inside the system call, until every run that may have seen the former
/// one has ended (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`). membarrier(2) doesn't serve: with one CPU online
/// it returns at once, and with `nohz_full` it fails.
#[derive(Clone, Debug)]
pub(super) struct Grace(Arc<Maps>);

#[derive(Debug)]
struct Maps {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    pub(super) fn new() -> io::Result<Self> {
        let inner = sys::map_create(sys::MAP_TYPE_ARRAY, 4, 4, 1, None)?;
        let outer = sys::map_create(sys::MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1, Some(inner.as_fd()))?;
        Ok(Self(Arc::new(Maps { outer, inner })))
    }

    pub(super) fn wait(&self) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        sys::map_update(self.0.outer.as_fd(), &0u32, &self.0.inner.as_raw_fd())
    }
}

/// The tables that are searched, in the order of [`Control::masks`], and how many words a place has.
const SEARCHED: [(Table, usize); 4] = [
    (Table::Cgroups, places::CGROUP_WORDS),
    (Table::Addresses, places::ADDRESS_WORDS),
    (Table::AddressPorts, places::ADDRESS_PORT_WORDS),
    (Table::Rules, places::RULE_WORDS),
];

/// So many places of a table are looked at before what was mapped for that goes.
const VIEW: u32 = 1 << 14;

/// The maps that a commit writes.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) control: ControlWords,
    pub(super) shares: Shares,
    rows: BTreeMap<Table, Rows>,
    baselines: Rows,
    prefixes: OwnedFd,
    retired: Retirement,
    grace: Grace,
    /// The wait that began right after the last commit; nothing that it left was done since.
    wait: Option<JoinHandle<io::Result<()>>>,
    capacities: Capacities,
}

/// Why pinned tables can't be read back.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    BadIndex(#[from] BadIndex),
}

impl Tables {
    /// Over maps whose shapes have been checked.
    pub(super) fn new<'fd>(
        map: impl Fn(&str) -> io::Result<BorrowedFd<'fd>>,
        capacities: Capacities,
    ) -> io::Result<Self> {
        let rows = |name, words| {
            let fd = map(name)?;
            Rows::new(fd, sys::map_info(fd)?.max_entries, words)
        };
        let mut all = BTreeMap::from([(Table::Prefixes, rows(maps::SLOTS, 2)?)]);
        for (table, words) in SEARCHED {
            all.insert(table, rows(table.name(), words)?);
        }
        Ok(Self {
            control: ControlWords::new(map(maps::CONTROL)?)?,
            shares: Shares::new(map(outside::SHARES)?)?,
            rows: all,
            baselines: rows(maps::BASELINES, 2)?,
            prefixes: sys::duplicate(map(maps::PREFIXES)?)?,
            retired: Retirement::new(map(maps::RETIRED)?)?,
            grace: Grace::new()?,
            wait: None,
            capacities,
        })
    }

    /// Makes new maps ready: how they are searched, and by which seed.
    pub(super) fn begin(&mut self, seed: u64) -> io::Result<State> {
        self.control.seed().store(seed, Ordering::Release);
        for n in 0..SEARCHED.len() {
            for half in [0, 1] {
                self.control.mask(n, half).store(places::SMALLEST - 1, Ordering::Release);
            }
        }
        self.retired.begin()?;
        Ok(State::new(self.capacities, seed))
    }

    /// Begins to wait for the program runs of the former epoch, beside everything else: right after a commit, whose
    /// settling is then the first to ask for that.
    pub(super) fn begin_to_wait(&mut self) {
        let grace = self.grace.clone();
        // Without a thread for it, whoever settles waits.
        self.wait = Builder::new().name("program-runs".into()).spawn(move || grace.wait()).ok();
    }

    /// Whether that wait is over, or none was begun.
    pub(super) fn is_alone(&self) -> bool {
        self.wait.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes back what was mapped for a commit. What counts beside rules is read all the time.
    pub(super) fn unmap(&mut self) {
        self.rows.iter_mut().filter(|(table, _)| **table != Table::Rules).for_each(|(_, rows)| rows.unmap());
        self.baselines.unmap();
    }

    fn rows(&self, table: Table) -> &Rows {
        // Every table was put there by `new`.
        &self.rows[&table]
    }

    /// What stands in the tables now, by the half of the present epoch. Changes nothing.
    pub(super) fn read(&self) -> io::Result<Found> {
        let present = (self.epoch() & 1) as usize;
        let mut found = Found {
            levels: self.control.levels().load(Ordering::Acquire),
            built_ins: self.control.flags().load(Ordering::Acquire) & Control::PASS_ALL,
            ..Found::default()
        };
        for (n, (table, _)) in SEARCHED.into_iter().enumerate() {
            let mut view = self.rows(table).again()?;
            let size = self.control.mask(n, present).load(Ordering::Acquire).saturating_add(1);
            found.sizes.insert(table, size);
            for place in 0..view.len() {
                if place.is_multiple_of(VIEW) {
                    view.unmap();
                }
                let rows = &view;
                let payload = rows.slot(place, present);
                let searched = (size..size.saturating_mul(2)).contains(&place);
                if payload != ABSENT && payload != GONE && searched {
                    if let Some(key) = key(rows, table, place) {
                        found.entries.insert(key, Entry { index: place, payload });
                    }
                } else if payload != ABSENT || rows.slot(place, 1 - present) != ABSENT {
                    found.gone.push((table, place));
                }
            }
        }
        let slots = self.rows(Table::Prefixes);
        for (key, index) in sys::map_read_all::<PrefixKey, u32>(self.prefixes.as_fd())? {
            let payload = if index < slots.len() { slots.slot(index, present) } else { ABSENT };
            found.entries.insert(Key::Prefix(key), Entry { index, payload });
        }
        for index in 0..self.baselines.len() {
            let payload = self.baselines.slot(index, present);
            if payload != ABSENT {
                found.baselines.insert(PeerId(index), payload);
            }
        }
        Ok(found)
    }

    /// Reads back what is in force, and clears away what an interrupted commit left: afterwards both halves are equal
    /// and every entry belongs to the present epoch.
    pub(super) fn restore(&mut self) -> Result<State, RestoreError> {
        let other = 1 - (self.epoch() & 1) as usize;
        let mut found = self.read()?;
        let slots = self.rows(Table::Prefixes).len();
        let lost =
            found.entries.iter().find(|(k, e)| k.table() == Table::Prefixes && (e.index == 0 || e.index >= slots));
        if let Some((key, entry)) = lost {
            return Err(BadIndex { key: *key, index: entry.index }.into());
        }
        self.grace.wait()?;
        for (table, size) in &found.sizes {
            self.write(Cell::Mask(*table), other, u64::from(size.saturating_sub(1)));
        }
        for (key, entry) in &found.entries {
            self.rows(key.table()).set_slot(entry.index, other, entry.payload);
        }
        for index in 0..self.baselines.len() {
            let payload = self.baselines.slot(index, 1 - other);
            if self.baselines.slot(index, other) != payload {
                self.baselines.set_slot(index, other, payload);
            }
        }
        self.retired.resume(&self.rows[&Table::Rules])?;
        let mut counted = Vec::new();
        for (table, place) in &found.gone {
            let rows = self.rows(*table);
            rows.set_slot(*place, 0, GONE);
            rows.set_slot(*place, 1, GONE);
            if let Some(Key::Rule(rule)) = key(rows, *table, *place) {
                counted.push((rule, *place));
            }
        }
        self.retire(&counted)?;
        let gone: Vec<PrefixKey> = found
            .entries
            .iter()
            .filter(|(_, e)| e.payload == ABSENT)
            .filter_map(|(k, _)| if let Key::Prefix(p) = k { Some(*p) } else { None })
            .collect();
        if !gone.is_empty() {
            self.delete(&gone)?;
            self.grace.wait()?;
        }
        found.entries.retain(|_, e| e.payload != ABSENT);
        let (state, clear) = State::restore(self.capacities, self.control.seed().load(Ordering::Acquire), found)?;
        for cell in clear {
            self.write(cell, 0, ABSENT);
            self.write(cell, 1, ABSENT);
        }
        Ok(state)
    }

    /// What was counted beside these rules, and beside those that are gone.
    pub(super) fn counts(&self, rules: impl Iterator<Item = (RuleKey, u32)>) -> Vec<(EdgeKey, u64)> {
        let mut all: Vec<_> = self.retired.sums().collect();
        for (rule, place) in rules {
            for (edge, count) in beside(self.rows(Table::Rules), &rule, place) {
                let n = count.load(Ordering::Acquire);
                if n > 0 {
                    all.push((edge, n));
                }
            }
        }
        all
    }

    /// What was counted beside rules that are gone and found no room, by direction.
    pub(super) fn without_room(&self) -> impl Iterator<Item = (Direction, u64)> {
        self.retired.without_room()
    }

    /// Sets the flags given by `mask` to `value`, leaving the others.
    pub(super) fn set_flags(&self, mask: u32, value: u32) {
        let flags = self.control.flags();
        flags.fetch_or(value & mask, Ordering::AcqRel);
        flags.fetch_and(value | !mask, Ordering::AcqRel);
    }
}

/// The key of a place, in a table that is searched.
fn key(rows: &Rows, table: Table, place: u32) -> Option<Key> {
    Some(match table {
        Table::Prefixes => return None,
        Table::Cgroups => Key::Cgroup(rows.word(place, KEY).load(Ordering::Acquire)),
        Table::Addresses => Key::Address(places::to_address(rows.take(place, KEY))),
        Table::AddressPorts => Key::AddressPort(places::to_address_port(rows.take(place, KEY))),
        Table::Rules => Key::Rule(places::to_rule(rows.take(place, KEY))),
    })
}

impl Kernel for Tables {
    type Error = io::Error;

    fn epoch(&self) -> u32 {
        self.control.epoch().load(Ordering::Acquire)
    }

    fn set_epoch(&mut self, epoch: u32) {
        self.control.epoch().store(epoch, Ordering::Release);
    }

    fn write(&mut self, cell: Cell, half: usize, payload: u64) {
        match cell {
            Cell::Slot(table, index) => self.rows(table).set_slot(index, half, payload),
            Cell::Baseline(id) => self.baselines.set_slot(id.0, half, payload),
            Cell::Mask(table) => {
                for (n, _) in SEARCHED.into_iter().enumerate().filter(|(_, (t, _))| *t == table) {
                    // A mask is never wider: sizes are those of arrays.
                    let mask = u32::try_from(payload).unwrap_or(u32::MAX);
                    self.control.mask(n, half).store(mask, Ordering::Release);
                }
            }
        }
    }

    fn name(&mut self, key: &Key, index: u32) {
        let rows = self.rows(key.table());
        let words = |words: &[u64]| {
            for (n, word) in words.iter().enumerate() {
                rows.word(index, KEY + n).store(*word, Ordering::Release);
            }
        };
        match key {
            Key::Cgroup(id) => words(&[*id]),
            Key::Address(a) => words(&places::address(a)),
            Key::AddressPort(k) => words(&places::address_port(k)),
            Key::Rule(k) => words(&places::rule(k)),
            Key::Prefix(_) => {}
        }
    }

    fn insert(&mut self, entries: &[(PrefixKey, u32)]) -> io::Result<()> {
        let (keys, indexes): (Vec<PrefixKey>, Vec<u32>) = entries.iter().copied().unzip();
        sys::map_update_all(self.prefixes.as_fd(), &keys, &indexes)
    }

    fn delete(&mut self, keys: &[PrefixKey]) -> io::Result<()> {
        sys::map_delete_all(self.prefixes.as_fd(), keys)
    }

    fn retire(&mut self, rules: &[(RuleKey, u32)]) -> io::Result<()> {
        let rows = &self.rows[&Table::Rules];
        for (rule, place) in rules {
            for (edge, count) in beside(rows, rule, *place) {
                self.retired.take(edge, *place, count)?;
            }
        }
        Ok(())
    }

    fn set_levels(&mut self, levels: u32) {
        self.control.levels().store(levels, Ordering::Release);
        self.control.level_list().store(maps::pack_levels(levels), Ordering::Release);
    }

    fn set_built_ins(&mut self, built_ins: u32) {
        self.set_flags(Control::PASS_ALL, built_ins);
    }

    fn wait_for_readers(&mut self) -> io::Result<()> {
        let Some(wait) = self.wait.take() else { return self.grace.wait() };
        wait.join().map_err(|_| io::Error::other("the thread that waits for program runs is lost"))?
    }
}
