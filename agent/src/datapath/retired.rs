//! What was counted beside rules that are gone.
//!
//! A rule's counts stand at its place, and the place will be another rule's. So they are moved to [`bulkhead_common::maps::RETIRED`],
//! which only the agent writes, in steps after each of which the agent may be killed: the sum is written together with
//! what is moving and from where, then the place is zeroed, then nothing is moving any more. Whoever comes next finishes
//! what it finds.

use super::memory::Rows;
use super::sys;
use bulkhead_common::Direction;
use bulkhead_common::maps::{EdgeKey, Retired, RuleKey};
use bulkhead_common::places::{self, KEY, RULE_COUNTS};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The map [`bulkhead_common::maps::RETIRED`] and what stands in it.
#[derive(Debug)]
pub(super) struct Retirement {
    map: OwnedFd,
    sums: BTreeMap<EdgeKey, Retired>,
}

/// The counters beside a rule, if it is one for a single port: only those are counted there.
pub(super) fn beside<'r>(
    rows: &'r Rows,
    rule: &RuleKey,
    place: u32,
) -> impl Iterator<Item = (EdgeKey, &'r AtomicU64)> + use<'r> {
    let rule = *rule;
    let directions = if rule.size == 16 { Direction::ALL } else { &[] };
    directions.iter().map(move |d| (EdgeKey::of_rule(&rule, *d), rows.word(place, RULE_COUNTS + *d as usize)))
}

impl Retirement {
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let sums = sys::map_read_all::<EdgeKey, Retired>(map)?.into_iter().collect();
        Ok(Self { map: sys::duplicate(map)?, sums })
    }

    /// Makes the entries that take what finds no room.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        for direction in Direction::ALL {
            self.put(Retired::nobody(*direction), Retired::default())?;
        }
        Ok(())
    }

    fn put(&mut self, edge: EdgeKey, sum: Retired) -> io::Result<()> {
        sys::map_update(self.map.as_fd(), &edge, &sum)?;
        self.sums.insert(edge, sum);
        Ok(())
    }

    /// Moves a count here. No run adds to it any more.
    pub(super) fn take(&mut self, edge: EdgeKey, place: u32, count: &AtomicU64) -> io::Result<()> {
        let moving = count.load(Ordering::Acquire);
        if moving == 0 {
            return Ok(());
        }
        let from = u64::from(place) + 1;
        let sum = |old: Option<&Retired>| Retired { total: old.map_or(0, |r| r.total) + moving, moving, from };
        let nobody = Retired::nobody(Direction::from_u8(edge.direction).unwrap_or(Direction::Egress));
        let mut at = edge;
        match self.put(at, sum(self.sums.get(&at))) {
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) => {
                at = nobody;
                self.put(at, sum(self.sums.get(&at)))?;
            }
            result => result?,
        }
        count.store(0, Ordering::Release);
        let total = self.sums.get(&at).map_or(0, |r| r.total);
        self.put(at, Retired { total, moving: 0, from: 0 })
    }

    /// Finishes what an agent that was killed had begun.
    pub(super) fn resume(&mut self, rules: &Rows) -> io::Result<()> {
        let begun: Vec<(EdgeKey, Retired)> =
            self.sums.iter().filter(|(_, r)| r.from != 0).map(|(k, r)| (*k, *r)).collect();
        for (edge, retired) in begun {
            let place = u32::try_from(retired.from - 1).map_err(io::Error::other)?;
            if place < rules.len() {
                let rule = places::to_rule(rules.take(place, KEY));
                let nobody = edge.proto == 0;
                for (of, count) in beside(rules, &rule, place) {
                    let same = of == edge || nobody && of.direction == edge.direction;
                    // The place isn't given to another rule before the count has arrived.
                    if same && count.load(Ordering::Acquire) == retired.moving {
                        count.store(0, Ordering::Release);
                    }
                }
            }
            self.put(edge, Retired { moving: 0, from: 0, ..retired })?;
        }
        Ok(())
    }

    /// Every sum that belongs to an edge.
    pub(super) fn sums(&self) -> impl Iterator<Item = (EdgeKey, u64)> {
        self.sums.iter().filter(|(k, r)| r.total > 0 && k.proto != 0).map(|(k, r)| (*k, r.total))
    }

    /// What found no room, by direction.
    pub(super) fn without_room(&self) -> impl Iterator<Item = (Direction, u64)> {
        Direction::ALL.iter().map(|d| (*d, self.sums.get(&Retired::nobody(*d)).map_or(0, |r| r.total)))
    }
}
