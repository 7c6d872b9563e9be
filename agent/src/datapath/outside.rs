//! Counts of peers outside, by address: reading them, and the turn of the two maps.

use super::{Datapath, sys};
use crate::flows::outside::Reading;
use crate::plan::protocol::Kernel;
use bulkhead_common::PeerId;
use bulkhead_common::maps::capacity;
use bulkhead_common::outside::{ALL, OUTSIDE, Outside, OutsideKey};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

impl Datapath {
    /// What is counted by address. A count of the present era may already be higher when this returns; what is of the
    /// one before doesn't change any more.
    pub fn outside(&self) -> io::Result<Reading> {
        let era = self.era();
        let mut counts = Vec::new();
        for of in era.checked_sub(1).into_iter().chain([era]) {
            let all = sys::map_read_all::<OutsideKey, Outside>(self.outside_map(of)?)?;
            counts.extend(all.into_iter().map(|(key, n)| (of, key, n)));
        }
        Ok(Reading { era, capacity: self.options.limits.outside, counts })
    }

    /// Begins another era, with a map that is empty, and waits until no program run counts in the former any more.
    pub fn begin_era(&mut self) -> io::Result<()> {
        let next = self.era().checked_add(1).ok_or_else(|| io::Error::other("there are no more eras"))?;
        if !sys::map_read_all::<OutsideKey, Outside>(self.outside_map(next)?)?.is_empty() {
            return Err(io::Error::other("the former era's counts are still there"));
        }
        // Nobody counts entries of this half now. An agent that was killed while it emptied the map left the numbers.
        for id in 0..capacity::IDENTITIES {
            self.tables.shares.entries(PeerId(id), half(next)).store(0, Ordering::Release);
        }
        self.tables.control.era().store(next, Ordering::Release);
        self.tables.wait_for_readers()
    }

    /// Removes the former era's counts: once they are kept somewhere else.
    pub fn empty_former_era(&mut self) -> io::Result<()> {
        let Some(former) = self.era().checked_sub(1) else { return Ok(()) };
        let map = self.outside_map(former)?;
        let keys: Vec<OutsideKey> =
            sys::map_read_all::<OutsideKey, Outside>(map)?.into_iter().map(|(key, _)| key).collect();
        sys::map_delete_all(map, &keys)
    }

    /// How many entries an identity has of the present era's. [`ALL`]: all of them together.
    pub fn outside_share(&self, of: PeerId) -> u32 {
        if of.0 < capacity::IDENTITIES {
            self.tables.shares.entries(of, half(self.era())).load(Ordering::Acquire)
        } else {
            0
        }
    }

    pub(super) fn outside_used(&self, map: usize) -> u32 {
        self.tables.shares.entries(ALL, map).load(Ordering::Acquire)
    }

    fn era(&self) -> u32 {
        self.tables.control.era().load(Ordering::Acquire)
    }

    fn outside_map(&self, era: u32) -> io::Result<BorrowedFd<'_>> {
        self.map(OUTSIDE[half(era)])
    }
}

const fn half(era: u32) -> usize {
    (era & 1) as usize
}
