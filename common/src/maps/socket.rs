//! What is kept with a socket.

use super::EdgeKey;
use crate::Addr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Who made a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stamp {
    /// The id of the cgroup that its maker was in (the innermost one).
    pub cgroup: u64,
    /// The maker's workload instance; 0: wasn't known then.
    pub instance: u32,
    /// The maker's identity ([`crate::PeerId`]); 0: wasn't known then.
    pub peer: u32,
    /// The maker's process (tgid) in the initial pid namespace.
    pub pid: u32,
    /// The maker's command name, zero-padded.
    pub comm: [u8; 16],
    /// [`Stamp::HOST_NETNS`] and so on; from bit [`Stamp::BINDING`] on the flags of the maker's [`crate::slots::Binding`].
    pub flags: u32,
    /// Which end of a connection it is: [`role`].
    pub role: u32,
    /// The epoch in which `instance` and `peer` were looked up; 0: from the packets, not from the maker.
    pub epoch: u32,
}

impl Stamp {
    /// The socket lives in the host's network namespace.
    pub const HOST_NETNS: u32 = 1;
    /// Its present connect() was left to the packet hooks because the peer isn't known yet, or its maker may not be known to
    /// the peer yet: what is dropped is to be sent again soon.
    pub const HELD_BACK: u32 = 2;
    /// The kernel made it when a handshake was complete, and the programs have seen its beginning.
    pub const ACCEPTED: u32 = 4;
    /// UDP: the kernel chose its port when it was connected, and it has been connected ever since: it serves nobody.
    pub const AUTOBOUND: u32 = 8;
    /// Where the flags of the maker's binding begin.
    pub const BINDING: u32 = 8;
}

/// Which end of a connection a socket is.
pub mod role {
    /// Not known (yet).
    pub const NONE: u32 = 0;
    /// It opened the connection.
    pub const CLIENT: u32 = 1;
    /// The peer opened the connection.
    pub const SERVER: u32 = 2;
}

/// The verdict that a socket carries. Never on a listener, never on an unconnected datagram socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketVerdict {
    /// A [`CachedVerdict`].
    pub state: u64,
    /// The peer's port.
    pub peer_port: u16,
    /// TCP: 1 when the completed handshake has been counted.
    pub established: u16,
    /// TCP: the lower half of the bytes received when the peer acknowledged our end of the connection.
    pub half_closed: u32,
    /// TCP: under what the connection is counted, as it was judged when it was opened. Without a protocol: under
    /// nothing.
    pub edge: EdgeKey,
    /// The peer's address when connect() was called, or that of the packet by which an accepted socket was judged. With
    /// the edge before it, this is an [`crate::outside::OutsideKey`].
    pub peer: Addr,
    /// TCP: what of the connection has been counted already.
    pub counted: Carried,
    /// TCP: when that was looked at, by [`super::Control::tick`].
    pub tick: u32,
    /// Zero.
    pub pad: u32,
}

impl SocketVerdict {
    /// The mark `established` in the word that begins with the peer's port.
    pub const ESTABLISHED: u64 = u64::from_ne_bytes([0, 0, 1, 0, 0, 0, 0, 0]);
}

/// What a TCP connection has carried, seen from one end, without what the handshake and the ends count for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Carried {
    /// Payload that the peer acknowledged.
    pub acked: u64,
    /// Payload from the peer.
    pub received: u64,
    /// Segments to the peer; begins anew after 2^32.
    pub segs_out: u32,
    /// Segments from the peer; begins anew after 2^32.
    pub segs_in: u32,
}

/// What is kept of a socket: in its place in [`super::SOCKETS`], or in [`super::OTHER_SOCKETS`].
///
/// It counts only for the socket that it names. A place is another socket's as soon as the one before is over. And where an
/// accepted socket gets a copy of its listener's, which may once have been connected, the stamp is inherited, but a copy's
/// cookie is never its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketState {
    /// Who made it; inherited.
    pub stamp: Stamp,
    /// The cookie of the socket that the verdict is about; 0: there is none.
    pub owner: u64,
    /// The verdict.
    pub verdict: SocketVerdict,
}

impl SocketState {
    /// In [`super::TAKEN`]: no process has the socket any more, but its connection goes on.
    pub const CLOSED: u64 = 1 << 62;
    /// In [`super::TAKEN`]: the socket is over, and the place is for whoever comes next. Until then what it holds stays as it is,
    /// since a reset may follow.
    pub const OVER: u64 = 1 << 63;

    /// The element of [`super::SOCKETS`] that is the socket's place.
    #[expect(clippy::cast_possible_truncation, reason = "there are far fewer places")]
    #[inline(always)]
    #[must_use]
    pub const fn place(cookie: u64) -> u32 {
        cookie as u32 & (super::capacity::SOCKETS - 1)
    }
}

/// Under what the maker of a listener is noted for the sockets that are accepted from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ListenerKey {
    /// The listener's workload instance.
    pub instance: u32,
    /// Its port, in the lower half.
    pub port: u32,
}

/// The process that made a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Maker {
    /// As in the [`Stamp`].
    pub pid: u32,
    /// As in the [`Stamp`].
    pub comm: [u32; 4],
}

/// A verdict with the epoch that it holds for, in one `u64`.
///
/// Bits: 0..32 epoch, 32..34 outcome, 40..42 role, 48 whether it was ever let through, 49 whether the peer is the
/// one that connect() was called with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CachedVerdict(pub u64);

impl CachedVerdict {
    const ONCE_ALLOWED: u64 = 1 << 48;
    const CONNECTED: u64 = 1 << 49;

    /// A verdict of this epoch.
    #[inline(always)]
    pub const fn new(epoch: u32, outcome: crate::Outcome, role: u32, once_allowed: bool, connected: bool) -> Self {
        let mut v = epoch as u64 | (outcome as u64) << 32 | (role as u64 & 3) << 40;
        if once_allowed || outcome.passes() {
            v |= Self::ONCE_ALLOWED;
        }
        if connected {
            v |= Self::CONNECTED;
        }
        Self(v)
    }

    /// The epoch that it holds for; 0: nothing has been decided.
    #[expect(clippy::cast_possible_truncation, reason = "the epoch is the lower half of the word")]
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        self.0 as u32
    }

    /// Whether it lets through.
    #[inline(always)]
    #[must_use]
    pub const fn passes(self) -> bool {
        // Outcome::Allowed is 0 and Outcome::WouldDeny is 1: bit 33 is set for the two that deny.
        self.0 & (1 << 33) == 0
    }

    /// Which end of the connection this is.
    #[inline(always)]
    pub const fn role(self) -> u32 {
        (self.0 >> 40) as u32 & 3
    }

    /// Whether an earlier verdict, or this one, let it through.
    #[inline(always)]
    pub const fn once_allowed(self) -> bool {
        self.0 & Self::ONCE_ALLOWED != 0
    }

    /// Whether the peer beside it is what connect() was called with.
    #[inline(always)]
    pub const fn connected(self) -> bool {
        self.0 & Self::CONNECTED != 0
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Stamp>() == 48 && offset_of!(Stamp, flags) == 36);
    assert!(offset_of!(SocketVerdict, peer_port) == 8 && offset_of!(SocketVerdict, established) == 10);
    assert!(size_of::<SocketVerdict>() == 80 && offset_of!(SocketVerdict, counted) == 48);
    assert!(offset_of!(SocketVerdict, edge) == 16 && offset_of!(SocketVerdict, peer) == 32);
    assert!(size_of::<SocketState>() == 136 && offset_of!(SocketState, owner) == 48);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome;

    #[test]
    fn a_cached_verdict_gives_back_what_was_put_in() {
        for outcome in Outcome::ALL.iter().copied() {
            for role in [role::NONE, role::CLIENT, role::SERVER] {
                for once in [false, true] {
                    for connected in [false, true] {
                        let v = CachedVerdict::new(u32::MAX, outcome, role, once, connected);
                        assert_eq!(v.epoch(), u32::MAX);
                        assert_eq!(v.passes(), outcome.passes());
                        assert_eq!(v.role(), role);
                        assert_eq!(v.once_allowed(), once || outcome.passes());
                        assert_eq!(v.connected(), connected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_fresh_value_holds_for_no_epoch() {
        assert_eq!(CachedVerdict::default().epoch(), 0);
        assert!(!CachedVerdict::default().once_allowed());
    }
}
