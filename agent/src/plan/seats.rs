//! Which places of a searched table are taken ([`bulkhead_common::places`]).
//!
//! A place is free (both slots absent, so that a search ends there), taken by a key, or gone: nobody's, but a search goes
//! on beyond it, since the key that it sought may lie there. What is gone becomes free as soon as the place after it is.

use bulkhead_common::places::{PROBES, next, place as at_place};
use std::collections::HashSet;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seat {
    Free,
    Taken,
    Gone,
}

/// The places of one table: those of its array from its size on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Seats {
    seats: Vec<Seat>,
    mask: u32,
}

impl Seats {
    /// So many places, a power of two, all of them free.
    pub(super) fn new(places: u32) -> Self {
        assert!(places.is_power_of_two(), "a table has a power of two of places");
        Self { seats: vec![Seat::Free; places as usize], mask: places - 1 }
    }

    /// How many places there are.
    pub(super) fn size(&self) -> u32 {
        self.mask + 1
    }

    /// Whether this place of the array belongs to the table.
    pub(super) fn has(&self, place: u32) -> bool {
        place & !self.mask == self.size()
    }

    fn at(&self, place: u32) -> Seat {
        self.seats.get((place & self.mask) as usize).copied().unwrap_or(Seat::Taken)
    }

    fn set(&mut self, place: u32, seat: Seat) {
        if let Some(s) = self.seats.get_mut((place & self.mask) as usize) {
            *s = seat;
        }
    }

    /// The first place for a key that begins its search at `home`, and isn't promised to another.
    pub(super) fn first(&self, home: u32, promised: &HashSet<u32>) -> Option<u32> {
        let mut at = home;
        // A table may have fewer places than a search looks at.
        for _ in 0..PROBES.min(self.mask.saturating_add(1)) {
            let place = at_place(at, self.mask);
            if self.at(place) != Seat::Taken && !promised.contains(&place) {
                return Some(place);
            }
            at = next(at);
        }
        None
    }

    /// Whether a search goes on beyond this place although it is nobody's.
    pub(super) fn is_gone(&self, place: u32) -> bool {
        self.at(place) == Seat::Gone
    }

    /// All such places.
    pub(super) fn all_gone(&self) -> impl Iterator<Item = u32> {
        (self.size()..).zip(&self.seats).filter(|(_, seat)| **seat == Seat::Gone).map(|(place, _)| place)
    }

    /// Whether a key is there.
    pub(super) fn is_taken(&self, place: u32) -> bool {
        self.at(place) == Seat::Taken
    }

    /// A key is there now.
    pub(super) fn take(&mut self, place: u32) {
        self.set(place, Seat::Taken);
    }

    /// No key is there, and a search goes on beyond it.
    pub(super) fn mark_gone(&mut self, place: u32) {
        self.set(place, Seat::Gone);
    }

    /// No key is there any more. Gives the places that are free from now on.
    pub(super) fn leave(&mut self, place: u32) -> Vec<u32> {
        self.set(place, Seat::Gone);
        let mut freed = Vec::new();
        let mut at = place;
        while self.at(at) == Seat::Gone && self.at(next(at)) == Seat::Free {
            self.set(at, Seat::Free);
            freed.push(at_place(at, self.mask));
            at = at.wrapping_sub(1);
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_free_only_where_no_search_goes_on() {
        let mut seats = Seats::new(8);
        let nobody = HashSet::new();
        for place in [15, 8, 9] {
            assert_eq!(seats.first(7, &nobody), Some(place));
            seats.take(place);
        }
        assert_eq!(seats.leave(8), [] as [u32; 0], "9 may have been sought from 15");
        assert!(seats.is_gone(8));
        assert_eq!(seats.first(7, &nobody), Some(8));
        assert_eq!(seats.leave(9), [9, 8]);
        assert_eq!(seats.leave(15), [15]);
        assert_eq!(seats, Seats::new(8));
        assert!(seats.has(8) && seats.has(15) && !seats.has(7) && !seats.has(16));
    }

    #[test]
    fn a_full_table_has_no_place() {
        let mut seats = Seats::new(2);
        let mut promised = HashSet::new();
        promised.extend(seats.first(1, &promised));
        seats.take(2);
        assert_eq!(seats.first(1, &promised), None);
    }
}
