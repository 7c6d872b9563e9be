//! Peers outside, by address: readings of one era after the other folded into what was seen.
//!
//! A former era's counts stay as they are until the kernel's map is emptied, and that is done once the history has them
//! ([`bulkhead_common::outside`]).
//!
//! Pure: time comes in with each reading.

use bulkhead_common::maps::Traffic;
use bulkhead_common::outside::{Outside, OutsideKey};
use std::collections::{BTreeMap, BTreeSet};

/// What stands in the kernel's maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// The era that is counted in.
    pub era: u32,
    /// How many entries an era may have.
    pub capacity: u32,
    /// What was counted, by era: the present one and, until its map is emptied, the one before.
    pub counts: Vec<(u32, OutsideKey, Outside)>,
}

/// What was counted under one address in one era.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// What it stands at.
    pub counts: Outside,
    /// When it was first read, milliseconds since 1970.
    pub first: u64,
    /// When it last grew.
    pub last: u64,
}

/// What is counted by address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outsiders {
    era: u32,
    capacity: u32,
    seen: BTreeMap<(OutsideKey, u32), Seen>,
}

impl Outsiders {
    /// Takes a reading. Read it after the edges, so that under the addresses is all that they have.
    pub fn fold(&mut self, reading: Reading, now: u64) {
        let Reading { era, capacity, counts } = reading;
        (self.era, self.capacity) = (era, capacity);
        let eras: BTreeSet<u32> = counts.iter().map(|(era, _, _)| *era).collect();
        self.seen.retain(|(_, era), _| eras.contains(era));
        for (era, key, counts) in counts {
            let seen = self.seen.entry((key, era)).or_insert(Seen { counts, first: now, last: now });
            if seen.counts != counts {
                *seen = Seen { counts, last: now, ..*seen };
            }
        }
    }

    /// The era that is counted in.
    pub const fn era(&self) -> u32 {
        self.era
    }

    /// Whether the map of the era before still has counts.
    pub fn has_former(&self) -> bool {
        self.seen.keys().any(|(_, era)| *era != self.era)
    }

    /// Whether the present era's map is nearly full.
    pub fn is_crowded(&self) -> bool {
        let used = self.seen.keys().filter(|(_, era)| *era == self.era).count();
        used.saturating_mul(4) >= usize::try_from(self.capacity).unwrap_or(usize::MAX).saturating_mul(3)
    }

    /// What was counted, by era.
    pub fn readings(&self) -> impl Iterator<Item = (u32, &OutsideKey, &Seen)> {
        self.seen.iter().map(|((key, era), seen)| (*era, key, seen))
    }

    /// What was counted, whatever the era.
    pub fn by_address(&self) -> BTreeMap<OutsideKey, Seen> {
        let mut all: BTreeMap<OutsideKey, Seen> = BTreeMap::new();
        for (_, key, seen) in self.readings() {
            all.entry(*key)
                .and_modify(|s| {
                    s.counts = sum(s.counts, seen.counts);
                    s.first = s.first.min(seen.first);
                    s.last = s.last.max(seen.last);
                })
                .or_insert(*seen);
        }
        all
    }
}

fn sum(a: Outside, b: Outside) -> Outside {
    let add = u64::saturating_add;
    let (t, u) = (a.traffic, b.traffic);
    Outside {
        attempts: add(a.attempts, b.attempts),
        traffic: Traffic {
            established: add(t.established, u.established),
            refused: add(t.refused, u.refused),
            timed_out: add(t.timed_out, u.timed_out),
            bytes_sent: add(t.bytes_sent, u.bytes_sent),
            bytes_received: add(t.bytes_received, u.bytes_received),
            packets_sent: add(t.packets_sent, u.packets_sent),
            packets_received: add(t.packets_received, u.packets_received),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_common::Addr;

    fn reading(era: u32, counts: &[(u32, u8, u64)]) -> Reading {
        let key = |last| OutsideKey { addr: Addr::v4([192, 0, 2, last]), ..OutsideKey::default() };
        let counts =
            counts.iter().map(|(era, last, n)| (*era, key(*last), Outside { attempts: *n, ..Outside::default() }));
        Reading { era, capacity: 4, counts: counts.collect() }
    }

    #[test]
    fn an_era_goes_on_where_the_former_ended() {
        let mut all = Outsiders::default();
        all.fold(reading(0, &[(0, 1, 5), (0, 2, 1), (0, 3, 1)]), 10);
        assert!(all.is_crowded() && !all.has_former());
        all.fold(reading(1, &[(0, 1, 6), (0, 2, 1), (0, 3, 1), (1, 1, 2)]), 20);
        assert!(!all.is_crowded() && all.has_former());
        let by_address = all.by_address();
        let first = by_address.values().next().expect("one");
        assert_eq!((by_address.len(), first.counts.attempts, first.first, first.last), (3, 8, 10, 20));
        assert_eq!(
            all.readings().map(|(era, _, s)| (era, s.counts.attempts)).collect::<Vec<_>>(),
            [(0, 6), (1, 2), (0, 1), (0, 1)]
        );
        all.fold(reading(1, &[(1, 1, 2)]), 30);
        assert!(!all.has_former());
        assert_eq!(all.by_address().values().map(|s| s.last).collect::<Vec<_>>(), [20]);
    }
}
