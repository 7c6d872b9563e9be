//! The detail that the kernel sends of single decisions. Counters are the truth; events may be lost, and that is
//! counted ([`crate::maps::totals::LOST_EVENTS`]).

use crate::Addr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One decision. Host byte order throughout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub time: u64,
    /// The epoch that it was decided by.
    pub epoch: u32,
    /// Who opened it ([`crate::PeerId`]).
    pub src: u32,
    /// Who was connected to ([`crate::PeerId`]).
    pub dst: u32,
    /// The number of the source's rule that decided; 0: none.
    pub egress_rule: u32,
    /// The number of the destination's rule that decided; 0: none.
    pub ingress_rule: u32,
    /// The process (tgid, initial pid namespace): the caller in connect, sendmsg and sock_create, the socket's maker
    /// in the packet hooks; 0: not known.
    pub pid: u32,
    /// The source's address; unspecified where the hook can't see it.
    pub saddr: Addr,
    /// The destination's address.
    pub daddr: Addr,
    /// The source's port; 0 where it isn't chosen yet.
    pub sport: u16,
    /// The destination's port.
    pub dport: u16,
    /// The IP protocol.
    pub proto: u8,
    /// [`crate::Direction`].
    pub direction: u8,
    /// [`crate::Outcome`].
    pub outcome: u8,
    /// [`crate::Reason`].
    pub reason: u8,
    /// [`crate::Hook`].
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 7],
    /// The command name of that process, zero-padded; zero where not known.
    pub comm: [u8; 16],
}

/// What a workload was answered by a DNS server: the datagram as it came, or its beginning. Nothing in it is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Answer {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub time: u64,
    /// Who got it ([`crate::PeerId`]).
    pub peer: u32,
    /// How many bytes of `payload` count.
    pub length: u16,
    /// 1 if it was longer than that.
    pub cut: u16,
    /// What followed the UDP header.
    pub payload: [u8; Self::MOST],
}

impl Answer {
    /// The most of an answer that is told, bytes.
    pub const MOST: usize = 512;
    /// How many answers of one identity are told in a second.
    pub const PER_SECOND: u32 = 64;
    /// A DNS server's port.
    pub const PORT: u16 = 53;
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Answer>() == 528 && offset_of!(Answer, payload) == 16);
    assert!(size_of::<Event>() == 96 && offset_of!(Event, saddr) == 32 && offset_of!(Event, comm) == 80);
};
