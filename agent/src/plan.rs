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
mod state;

use crate::image::Image;
use bulkhead_common::maps::{self, AddrPort, LEVELS, PrefixKey, RuleKey};
use bulkhead_common::places::{self, GONE, PROBES};
use bulkhead_common::slots::ABSENT;
use bulkhead_common::{Addr, PeerId};

pub use state::{BadIndex, Found, State};

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

/// Everything of an image that has a key, in the order of [`Key`].
pub fn payloads(image: &Image) -> impl Iterator<Item = (Key, u64)> {
    let cgroups = image.cgroups.iter().map(|(k, b)| (Key::Cgroup(*k), b.encode()));
    let addresses = image.addresses.iter().map(|(k, b)| (Key::Address(*k), b.encode()));
    let ports = image.address_ports.iter().map(|(k, b)| (Key::AddressPort(*k), b.encode()));
    let prefixes = image.prefixes.iter().map(|(k, b)| (Key::Prefix(*k), b.encode()));
    let rules = image.rules.iter().map(|(k, v)| (Key::Rule(*k), *v));
    cgroups.chain(addresses).chain(ports).chain(prefixes).chain(rules)
}

#[cfg(test)]
mod tests;
