//! Reading what the programs count. Counters only grow; nothing here ever deletes one.

use super::object::PINNED_MAPS;
use super::{Datapath, sys};
use crate::plan::{Key, Table};
use bulkhead_common::maps::{self, EdgeKey, FlowKey, FlowValue, Retired, Traffic, totals};
use bulkhead_common::outside::OUTSIDE;
use bulkhead_common::{Direction, Outcome, Reason};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct MapFill {
    /// The map's name.
    pub name: &'static str,
    /// Entries that are there.
    pub used: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// What [`maps::TOTALS`] counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Totals(Vec<u64>);

impl Totals {
    /// All of them, at the indexes of [`totals`].
    pub fn by_index(&self) -> &[u64] {
        &self.0
    }

    /// Events that found no room in the ring.
    pub fn lost_events(&self) -> u64 {
        self.at(totals::LOST_EVENTS)
    }

    /// Counts that found no room among the edges.
    pub fn overflow(&self, direction: Direction, outcome: Outcome, reason: Reason) -> u64 {
        self.at(totals::overflow(direction, outcome, reason))
    }

    /// DNS answers that weren't told.
    pub fn lost_answers(&self) -> u64 {
        self.at(totals::LOST_ANSWERS)
    }

    /// Sockets whose place was another's.
    pub fn without_place(&self) -> u64 {
        self.at(totals::WITHOUT_PLACE)
    }

    /// Counts of peers outside whose address found no room.
    pub fn without_address(&self) -> u64 {
        self.at(totals::OUTSIDE)
    }

    /// What became of connections whose edge found no room.
    pub fn unattributed(&self) -> Traffic {
        let mut index = totals::TRAFFIC..;
        let n: [u64; Traffic::PARTS as usize] = std::array::from_fn(|_| index.next().map_or(0, |i| self.at(i)));
        zerocopy::transmute!(n)
    }

    fn at(&self, index: u32) -> u64 {
        self.0.get(index as usize).copied().unwrap_or(0)
    }
}

impl Datapath {
    /// Every counted edge, once. A count may already be higher when this returns.
    pub fn edges(&self) -> io::Result<Vec<(EdgeKey, u64)>> {
        let mut sums: BTreeMap<EdgeKey, u64> = sys::map_read_all(self.map(maps::EDGES)?)?.into_iter().collect();
        let there = self.state.entries().iter().map(|(key, entry)| (*key, entry.index));
        let leaving = self.pending.iter().flat_map(|p| p.gone.iter().copied());
        let rules =
            there.chain(leaving).filter_map(|(k, i)| if let Key::Rule(rule) = k { Some((rule, i)) } else { None });
        for (edge, count) in self.tables.counts(rules) {
            *sums.entry(edge).or_default() += count;
        }
        Ok(sums.into_iter().collect())
    }

    /// What became of the TCP connections of each edge, once. A number may already be higher when this returns.
    pub fn traffic(&self) -> io::Result<Vec<(EdgeKey, Traffic)>> {
        sys::map_read_all(self.map(maps::TRAFFIC)?)
    }

    /// Has each live TCP connection count, with the next packet that it sends, what it has carried until then.
    pub fn tick(&self) {
        self.tables.control.tick().fetch_add(1, Ordering::AcqRel);
    }

    /// The totals, summed over all CPUs.
    pub fn totals(&self) -> io::Result<Totals> {
        let mut all = sys::per_cpu_read_all(self.map(maps::TOTALS)?, totals::LEN)?;
        for (direction, n) in self.tables.without_room() {
            if let Some(total) = all.get_mut(totals::overflow(direction, Outcome::Allowed, Reason::Rule) as usize) {
                *total += n;
            }
        }
        Ok(Totals(all))
    }

    /// How full each map is that can be full.
    pub fn fill(&self) -> io::Result<Vec<MapFill>> {
        let mut all = Vec::new();
        for name in PINNED_MAPS {
            let table = Table::ALL.into_iter().find(|t| t.name() == name);
            let used = match name {
                maps::EDGES => sys::map_read_all::<EdgeKey, u64>(self.map(name)?)?.len(),
                maps::TRAFFIC => sys::map_read_all::<EdgeKey, Traffic>(self.map(name)?)?.len(),
                maps::RETIRED => sys::map_read_all::<EdgeKey, Retired>(self.map(name)?)?.len(),
                maps::FLOWS | maps::WORLD_FLOWS => sys::map_read_all::<FlowKey, FlowValue>(self.map(name)?)?.len(),
                maps::OLD_SOCKETS => sys::map_read_all::<u64, u32>(self.map(name)?)?.len(),
                _ if name == OUTSIDE[0] => self.outside_used(0) as usize,
                _ if name == OUTSIDE[1] => self.outside_used(1) as usize,
                maps::SLOTS => self.state.len(Table::Prefixes) + 1,
                maps::BASELINES => self.state.baselines().len(),
                _ => match table {
                    Some(table) => self.state.len(table),
                    None => continue,
                },
            };
            // A table that is searched has more places than it may hold entries.
            let capacity = match table {
                Some(table) => self.state.capacities().of(table),
                None => sys::map_info(self.map(name)?)?.max_entries,
            };
            let capacity = u64::from(capacity);
            all.push(MapFill { name, used: used as u64, capacity });
        }
        Ok(all)
    }
}
