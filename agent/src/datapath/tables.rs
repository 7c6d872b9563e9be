//! The kernel's tables as the commit protocol sees them: [`Kernel`] over system calls and mapped memory.

use super::memory::{ControlWords, Halves};
use super::sys;
use crate::plan::protocol::Kernel;
use crate::plan::{BadIndex, Cell, Entry, Key, State, Table};
use bulkhead_common::maps::{self, AddrPort, Control, PrefixKey, RuleKey};
use bulkhead_common::slots::ABSENT;
use bulkhead_common::{Addr, PeerId};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

/// Waits for program runs to end.
///
/// Replacing a map inside a map of maps waits, inside the system call, until every run that may have seen the former
/// one has ended (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`). membarrier(2) doesn't serve: with one CPU online
/// it returns at once, and with `nohz_full` it fails.
#[derive(Debug)]
pub(super) struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    pub(super) fn new() -> io::Result<Self> {
        let inner = sys::map_create(sys::MAP_TYPE_ARRAY, 4, 4, 1, None)?;
        let outer = sys::map_create(sys::MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1, Some(inner.as_fd()))?;
        Ok(Self { outer, inner })
    }

    pub(super) fn wait(&self) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        sys::map_update(self.outer.as_fd(), &0u32, &self.inner.as_raw_fd())
    }
}

/// The maps that a commit writes.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) control: ControlWords,
    slots: Halves,
    baselines: Halves,
    keyed: BTreeMap<Table, OwnedFd>,
    grace: Grace,
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
    pub(super) fn new<'fd>(map: impl Fn(&str) -> io::Result<BorrowedFd<'fd>>) -> io::Result<Self> {
        let halves = |name| {
            let fd = map(name)?;
            Halves::new(fd, sys::map_info(fd)?.max_entries)
        };
        let mut keyed = BTreeMap::new();
        for table in Table::ALL {
            keyed.insert(table, sys::duplicate(map(table.name())?)?);
        }
        Ok(Self {
            control: ControlWords::new(map(maps::CONTROL)?)?,
            slots: halves(maps::SLOTS)?,
            baselines: halves(maps::BASELINES)?,
            keyed,
            grace: Grace::new()?,
        })
    }

    fn fd(&self, table: Table) -> io::Result<BorrowedFd<'_>> {
        self.keyed.get(&table).map(|fd| fd.as_fd()).ok_or_else(|| io::Error::other("a table without a map"))
    }

    /// Reads back what is in force, and clears away what an interrupted commit left: afterwards both halves are equal
    /// and every entry belongs to the present epoch.
    pub(super) fn restore(&mut self) -> Result<State, RestoreError> {
        let epoch = self.epoch();
        let (present, other) = ((epoch & 1) as usize, 1 - (epoch & 1) as usize);
        let mut found = Vec::new();
        found.extend(self.read::<u64>(Table::Cgroups)?.into_iter().map(|(k, i)| (Key::Cgroup(k), i)));
        found.extend(self.read::<Addr>(Table::Addresses)?.into_iter().map(|(k, i)| (Key::Address(k), i)));
        found.extend(self.read::<AddrPort>(Table::AddressPorts)?.into_iter().map(|(k, i)| (Key::AddressPort(k), i)));
        found.extend(self.read::<PrefixKey>(Table::Prefixes)?.into_iter().map(|(k, i)| (Key::Prefix(k), i)));
        found.extend(self.read::<RuleKey>(Table::Rules)?.into_iter().map(|(k, i)| (Key::Rule(k), i)));

        if let Some((key, index)) = found.iter().find(|(_, i)| *i == 0 || *i >= self.slots.len()) {
            return Err(BadIndex { key: *key, index: *index }.into());
        }
        self.grace.wait()?;
        let (mut entries, mut gone) = (BTreeMap::new(), Vec::new());
        for (key, index) in found {
            let payload = self.slots.read(index, present);
            self.slots.write(index, other, payload);
            if payload == ABSENT {
                gone.push(key);
            } else {
                entries.insert(key, Entry { index, payload });
            }
        }
        let mut baselines = BTreeMap::new();
        for index in 0..self.baselines.len() {
            let payload = self.baselines.read(index, present);
            if self.baselines.read(index, other) != payload {
                self.baselines.write(index, other, payload);
            }
            if payload != ABSENT {
                baselines.insert(PeerId(index), payload);
            }
        }
        if !gone.is_empty() {
            self.delete(&gone)?;
            self.grace.wait()?;
        }
        let levels = self.control.levels().load(Ordering::Acquire);
        let built_ins = self.control.flags().load(Ordering::Acquire) & Control::PASS_ALL;
        Ok(State::restore(entries, baselines, levels, built_ins, self.slots.len())?)
    }

    fn read<K: zerocopy::FromBytes + Clone>(&self, table: Table) -> io::Result<Vec<(K, u32)>> {
        sys::map_read_all(self.fd(table)?)
    }

    fn insert_all<K>(&self, table: Table, keys: &[K], indexes: &[u32]) -> io::Result<()> {
        sys::map_update_all(self.fd(table)?, keys, indexes)
    }

    /// Sets the flags given by `mask` to `value`, leaving the others.
    pub(super) fn set_flags(&self, mask: u32, value: u32) {
        let flags = self.control.flags();
        flags.fetch_or(value & mask, Ordering::AcqRel);
        flags.fetch_and(value | !mask, Ordering::AcqRel);
    }
}

/// The keys of each table.
#[derive(Default)]
struct Split {
    cgroups: Vec<u64>,
    addresses: Vec<Addr>,
    address_ports: Vec<AddrPort>,
    prefixes: Vec<PrefixKey>,
    rules: Vec<RuleKey>,
}

impl Split {
    fn of<'k>(keys: impl Iterator<Item = &'k Key>) -> Self {
        let mut split = Self::default();
        for key in keys {
            match *key {
                Key::Cgroup(k) => split.cgroups.push(k),
                Key::Address(k) => split.addresses.push(k),
                Key::AddressPort(k) => split.address_ports.push(k),
                Key::Prefix(k) => split.prefixes.push(k),
                Key::Rule(k) => split.rules.push(k),
            }
        }
        split
    }
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
            Cell::Slot(index) => self.slots.write(index, half, payload),
            Cell::Baseline(id) => self.baselines.write(id.0, half, payload),
        }
    }

    fn insert(&mut self, entries: &[(Key, u32)]) -> io::Result<()> {
        let indexes = |table| -> Vec<u32> {
            entries.iter().filter(|(k, _)| k.table() == table).map(|(_, index)| *index).collect()
        };
        let keys = Split::of(entries.iter().map(|(k, _)| k));
        self.insert_all(Table::Cgroups, &keys.cgroups, &indexes(Table::Cgroups))?;
        self.insert_all(Table::Addresses, &keys.addresses, &indexes(Table::Addresses))?;
        self.insert_all(Table::AddressPorts, &keys.address_ports, &indexes(Table::AddressPorts))?;
        self.insert_all(Table::Prefixes, &keys.prefixes, &indexes(Table::Prefixes))?;
        self.insert_all(Table::Rules, &keys.rules, &indexes(Table::Rules))
    }

    fn delete(&mut self, keys: &[Key]) -> io::Result<()> {
        let keys = Split::of(keys.iter());
        sys::map_delete_all(self.fd(Table::Cgroups)?, &keys.cgroups)?;
        sys::map_delete_all(self.fd(Table::Addresses)?, &keys.addresses)?;
        sys::map_delete_all(self.fd(Table::AddressPorts)?, &keys.address_ports)?;
        sys::map_delete_all(self.fd(Table::Prefixes)?, &keys.prefixes)?;
        sys::map_delete_all(self.fd(Table::Rules)?, &keys.rules)
    }

    fn set_levels(&mut self, levels: u32) {
        self.control.levels().store(levels, Ordering::Release);
        self.control.level_list().store(maps::pack_levels(levels), Ordering::Release);
    }

    fn set_built_ins(&mut self, built_ins: u32) {
        self.set_flags(Control::PASS_ALL, built_ins);
    }

    fn wait_for_readers(&mut self) -> io::Result<()> {
        self.grace.wait()
    }
}
