//! Peers outside, counted once more by their address.
//!
//! To rules and edges, all peers that have no identity and share a class are one. Which addresses they were is counted
//! here, exactly: what an edge to such a peer counts is counted under the address too, or, where that finds no room, in
//! [`crate::maps::totals::OUTSIDE`]. Nothing pushes anything else out.
//!
//! **Shares.** A workload may choose the addresses that it connects to, and a scan is many of them. So each identity may
//! hold as many entries as are still free ([`has_room`]): whoever takes all there is gets half, two of them at once a third each,
//! and there is always room for the next.
//!
//! **Eras.** A count is never deleted while a program may add to it. Two maps take turns, by the era's last bit: the agent
//! begins an era, waits until no program run is left that knew only the former, and then that one's map stands still. It is
//! emptied once all of it is in the history.

use crate::maps::{EdgeKey, Traffic};
use crate::{Addr, Direction, PeerId};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HASH`: [`OutsideKey`] to [`Outside`], for even eras and for odd ones.
pub const OUTSIDE: [&str; 2] = ["OUTSIDE_EVEN", "OUTSIDE_ODD"];
/// `ARRAY`, memory-mapped: a [`Share`] an element, at the identity's number. At [`ALL`] is what all have together.
pub const SHARES: &str = "SHARES";

/// Entries of each of [`OUTSIDE`].
pub const CAPACITY: u32 = 1 << 13;

/// Where [`SHARES`] has what all identities have together. The number is nobody's.
pub const ALL: PeerId = PeerId::ANY_WORKLOAD;

/// An edge and the address of its end that is outside.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct OutsideKey {
    /// The edge.
    pub edge: EdgeKey,
    /// The address of the peer.
    pub addr: Addr,
}

/// What was counted under one address. Each number only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Outside {
    /// What the edge counts.
    pub attempts: u64,
    /// What became of the TCP connections among them.
    pub traffic: Traffic,
}

/// What one identity has taken of what is bounded for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Share {
    /// Entries of [`OUTSIDE`], in even eras and in odd ones.
    pub entries: [u32; 2],
    /// The second (CLOCK_MONOTONIC) in which the last of `answers` was sent.
    pub second: u32,
    /// How many DNS answers were sent in that second.
    pub answers: u32,
}

/// Whether whoever holds `own` of `all` entries may have one more of `capacity`: as long as more are free than it holds.
#[inline(always)]
#[must_use]
pub const fn has_room(own: u32, all: u32, capacity: u32) -> bool {
    all < capacity && own < capacity - all
}

impl PeerId {
    /// Whether peers of this number are told apart by address: there may be many, and none of them has an identity.
    #[inline(always)]
    pub const fn is_outside(self) -> bool {
        use crate::Class;
        const WORLD: u32 = Class::World as u32;
        const UNKNOWN: u32 = Class::Unknown as u32;
        const REMOTE_NODE: u32 = Class::RemoteNode as u32;
        self.is_cidr() || matches!(self.0, WORLD | UNKNOWN | REMOTE_NODE)
    }
}

impl EdgeKey {
    /// Our workload and its peer, by which end's hook counted it.
    #[inline(always)]
    pub const fn own_and_peer(&self) -> (PeerId, PeerId) {
        if self.direction == Direction::Egress as u8 {
            (PeerId(self.src), PeerId(self.dst))
        } else {
            (PeerId(self.dst), PeerId(self.src))
        }
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<OutsideKey>() == 32 && offset_of!(OutsideKey, addr) == 16);
    assert!(size_of::<Outside>() == 64 && size_of::<Share>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn whoever_takes_all_there_is_leaves_room_for_the_next() {
        for hogs in 1..10_usize {
            let mut held = [0_u32; 10];
            let mut taken = 0;
            let next =
                |held: &[u32], taken| (0..hogs).filter(|n| has_room(held[*n], taken, 1000)).min_by_key(|n| held[*n]);
            while let Some(n) = next(&held, taken) {
                held[n] += 1;
                taken += 1;
            }
            let fair = u32::try_from(1000 / (hogs + 1)).expect("small");
            assert!(held[..hogs].iter().all(|n| n.abs_diff(fair) <= 1), "{held:?}");
            assert!(has_room(0, taken, 1000));
        }
        assert!(!has_room(0, 1000, 1000) && !has_room(0, 1001, 1000));
    }

    #[test]
    fn the_number_of_all_is_nobodys() {
        assert!(!ALL.is_identity() && ALL.class().is_none() && ALL != PeerId::UNKNOWN_WORKLOAD);
        for class in Class::ALL {
            let many = matches!(class, Class::World | Class::Unknown | Class::RemoteNode);
            assert_eq!(class.id().is_outside(), many, "{}", class.as_str());
        }
        assert!(PeerId::FIRST_CIDR.is_outside() && !PeerId::FIRST_IDENTITY.is_outside());
    }
}
