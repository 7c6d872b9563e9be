//! The maps that the kernel programs and the agent share: names, key and value shapes, capacities.
//!
//! **How a commit stays whole.** Whatever a verdict depends on stands in memory that the agent has mapped, as two `u64`
//! slots, and a program run uses slot `epoch & 1` throughout, with the epoch that it read once, first. To commit, the
//! agent writes the other slot of each entry that changes, and then stores `epoch + 1`. Later it waits for a grace period
//! and makes both slots equal. So no run sees a mixture of two rulesets. The slots stand in tables that are searched by
//! key ([`crate::places`]), or at a number. Only [`PREFIXES`] is a map of the kernel's own: its value is an index into
//! [`SLOTS`] that never changes while the entry lives, and what is deleted there is followed by another grace period.
//!
//! All integers are in host byte order unless a field says otherwise.

mod socket;

pub use socket::{CachedVerdict, Carried, ListenerKey, Maker, SocketState, SocketVerdict, Stamp, role};

use crate::Addr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `ARRAY`, memory-mapped, one [`Control`].
pub const CONTROL: &str = "CONTROL";
/// `ARRAY`, memory-mapped: two slots of a [`crate::slots::Binding`] an element, for [`PREFIXES`]. Index 0 is never used.
pub const SLOTS: &str = "SLOTS";
/// `ARRAY`, memory-mapped: two slots of a [`crate::slots::Baseline`] an element, at the identity's number.
pub const BASELINES: &str = "BASELINES";
/// Places by cgroup id (`u64`): a [`crate::slots::Binding`].
pub const CGROUPS: &str = "CGROUPS";
/// Places by [`Addr`]: a [`crate::slots::Binding`].
pub const ADDRESSES: &str = "ADDRESSES";
/// Places by [`AddrPort`]: a [`crate::slots::Binding`].
pub const ADDRESS_PORTS: &str = "ADDRESS_PORTS";
/// `LPM_TRIE`: [`PrefixKey`] to the index of a [`crate::slots::Binding`], the effective one for that prefix.
pub const PREFIXES: &str = "PREFIXES";
/// Places by [`RuleKey`]: a [`crate::slots::Permit`] or [`crate::slots::PairHeader`], and what the rule allowed.
pub const RULES: &str = "RULES";
/// `HASH`: [`EdgeKey`] to a `u64` that only grows. What a rule for just that port allows is counted beside the rule.
pub const EDGES: &str = "EDGES";
/// `HASH`: [`EdgeKey`] to [`Retired`]: what was counted beside rules that are gone. The agent's alone; its entry under
/// [`Retired::nobody`] takes what finds no room.
pub const RETIRED: &str = "RETIRED";
/// `HASH`: [`EdgeKey`] to [`Traffic`]: what became of the TCP connections that were counted under that key.
pub const TRAFFIC: &str = "TRAFFIC";
/// `PERCPU_ARRAY` of `u64`: see [`totals`].
pub const TOTALS: &str = "TOTALS";
/// `LRU_HASH`: [`FlowKey`] to [`FlowValue`], for flows with peers inside the cluster.
pub const FLOWS: &str = "FLOWS";
/// The same for peers in the world, so that a flood from outside can't push out the cluster's own flows.
pub const WORLD_FLOWS: &str = "WORLD_FLOWS";
/// `RINGBUF` of [`crate::event::Event`].
pub const EVENTS: &str = "EVENTS";
/// `RINGBUF` of [`crate::event::Answer`]. One of its own, so that answers can't push out decisions.
pub const ANSWERS: &str = "ANSWERS";
/// `ARRAY` of [`SocketState`]: the sockets of workloads that have a network namespace of their own, by [`SocketState::place`].
pub const SOCKETS: &str = "SOCKETS";
/// `ARRAY` of `u64`: whose each of those places is, by the socket's cookie with [`SocketState::CLOSED`] and so on; 0: nobody's.
/// Apart from them, so that eight lie together: whether a place is free is known sooner.
pub const TAKEN: &str = "TAKEN";
/// `SK_STORAGE`, cloned to accepted sockets: [`SocketState`] of those that have no place there.
pub const OTHER_SOCKETS: &str = "OTHER_SOCKETS";
/// `LRU_HASH`: [`ListenerKey`] to [`Maker`].
pub const MAKERS: &str = "MAKERS";
/// `HASH`: socket cookie (`u64`) to role (`u32`), for sockets that are older than the programs.
pub const OLD_SOCKETS: &str = "OLD_SOCKETS";

/// How many entries each map holds; a table has more [`crate::places`]. The loader may raise
/// those of the rules; a full map is a deny and an alarm.
pub mod capacity {
    /// Elements of [`super::SLOTS`]: one for each prefix, and the one that is never used.
    pub const SLOTS: u32 = PREFIXES + 1;
    /// Elements of [`super::BASELINES`], hence the number of identities.
    pub const IDENTITIES: u32 = 1 << 16;
    /// Entries of [`super::CGROUPS`].
    pub const CGROUPS: u32 = 1 << 13;
    /// Entries of [`super::ADDRESSES`].
    pub const ADDRESSES: u32 = 1 << 16;
    /// Entries of [`super::ADDRESS_PORTS`].
    pub const ADDRESS_PORTS: u32 = 1 << 13;
    /// Entries of [`super::PREFIXES`].
    pub const PREFIXES: u32 = 1 << 14;
    /// Entries of [`super::RULES`].
    pub const RULES: u32 = 1 << 16;
    /// Entries of [`super::EDGES`].
    pub const EDGES: u32 = 1 << 16;
    /// Entries of [`super::TRAFFIC`].
    pub const TRAFFIC: u32 = EDGES;
    /// Entries of [`super::FLOWS`] and of [`super::WORLD_FLOWS`].
    pub const FLOWS: u32 = 1 << 16;
    /// Bytes of [`super::EVENTS`].
    pub const EVENT_BYTES: u32 = 1 << 20;
    /// Bytes of [`super::ANSWERS`].
    pub const ANSWER_BYTES: u32 = 1 << 18;
    /// Elements of [`super::SOCKETS`], a power of two.
    pub const SOCKETS: u32 = 1 << 15;
    /// Entries of [`super::MAKERS`].
    pub const MAKERS: u32 = 1 << 12;
    /// Entries of [`super::OLD_SOCKETS`].
    pub const OLD_SOCKETS: u32 = 1 << 16;
}

/// One entry of memory shared with every program run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Control {
    /// Which ruleset is in force. 0: none yet, so there is nothing to judge by and everything is denied.
    pub epoch: u32,
    /// [`crate::ABI`] of the agent that made the maps.
    pub abi: u32,
    /// Bit n: some cgroup of [`CGROUPS`] lies n levels below the root of the hierarchy.
    pub levels: u32,
    /// [`Control::EMIT_ALLOWED`], [`Control::TELL_ANSWERS`] and the `PASS_…` bits.
    pub flags: u32,
    /// The cookie of the host's network namespace (SO_NETNS_COOKIE).
    pub host_netns: u64,
    /// A random number that names this set of maps; the agent's file of identities carries the same.
    pub generation: u64,
    /// The same as `levels`, as the programs read it: [`pack_levels`].
    pub level_list: u64,
    /// The seed of [`crate::places::home`].
    pub seed: u64,
    /// The size of each table less one, for even epochs and for odd ones: [`CGROUPS`], [`ADDRESSES`], [`ADDRESS_PORTS`],
    /// [`RULES`].
    pub masks: [[u32; 2]; 4],
    /// Which of the maps of [`crate::outside`] is counted in: only raised, and once the other one is empty.
    pub era: u32,
    /// How many entries each of them holds.
    pub outside: u32,
    /// Raised when connections shall count what they have carried until now.
    pub tick: u32,
    /// Zero.
    pub pad: u32,
}

impl Control {
    /// Also send an event for each new allowed flow.
    pub const EMIT_ALLOWED: u32 = 1;
    /// Send what workloads are answered by DNS servers.
    pub const TELL_ANSWERS: u32 = 1 << 1;
    /// Built-in `neighbour-discovery`: ICMPv6 133, 135, 136 with hop limit 255, sent by the kernel.
    pub const PASS_NEIGHBOUR_DISCOVERY: u32 = 1 << 8;
    /// Built-in `multicast-listener`: ICMPv6 131, 132, 143 to ff02::/16 and IGMP, sent by the kernel.
    pub const PASS_MULTICAST_LISTENER: u32 = 1 << 9;
    /// Built-in `icmp-errors`: ICMPv6 1 to 4 and ICMP 3, 11, 12, sent by the kernel.
    pub const PASS_ICMP_ERRORS: u32 = 1 << 10;
    /// Built-in `echo-reply`: ICMPv6 129 and ICMP 0, sent by the kernel.
    pub const PASS_ECHO_REPLY: u32 = 1 << 11;

    /// Every built-in, with its name.
    pub const BUILT_INS: [(u32, &'static str); 4] = [
        (Self::PASS_NEIGHBOUR_DISCOVERY, "neighbour-discovery"),
        (Self::PASS_MULTICAST_LISTENER, "multicast-listener"),
        (Self::PASS_ICMP_ERRORS, "icmp-errors"),
        (Self::PASS_ECHO_REPLY, "echo-reply"),
    ];

    /// All built-ins on.
    pub const PASS_ALL: u32 =
        Self::PASS_NEIGHBOUR_DISCOVERY | Self::PASS_MULTICAST_LISTENER | Self::PASS_ICMP_ERRORS | Self::PASS_ECHO_REPLY;
}

/// The deepest cgroup level that is looked at, counted from the root of the hierarchy (level 0).
pub const MAX_LEVEL: u32 = 31;

/// How many different levels cgroups of workloads and attach points may lie at.
pub const LEVELS: u32 = 6;

/// The levels of a set (bit n: level n; level 0 is never one) in ascending order, one a byte from the lowest byte on, 0
/// after the last. Only the first [`LEVELS`] are taken.
pub const fn pack_levels(set: u32) -> u64 {
    let (mut list, mut taken, mut level) = (0, 0, 1);
    while level <= MAX_LEVEL && taken < LEVELS {
        if set & (1 << level) != 0 {
            list |= (level as u64) << (8 * taken);
            taken += 1;
        }
        level += 1;
    }
    list
}

/// An address with a port that has an owner of its own, such as the API server's.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AddrPort {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: u16,
    /// The IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// A prefix in the shape that `BPF_MAP_TYPE_LPM_TRIE` wants.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PrefixKey {
    /// How many leading bits count, 0 to 128; an IPv4 prefix has 96 more than it is written with.
    pub bits: u32,
    /// The address; the bits that don't count are zero.
    pub addr: Addr,
}

/// One block of ports of one pair of peers, or the pair's header.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RuleKey {
    /// Who opens the connection ([`crate::PeerId`]).
    pub src: u32,
    /// Who is connected to ([`crate::PeerId`]).
    pub dst: u32,
    /// The first port of the block; 0 in a header.
    pub port: u16,
    /// The IP protocol.
    pub proto: u8,
    /// How many leading bits of the port the block shares (0 to 16), or [`RuleKey::HEADER`].
    pub size: u8,
}

impl RuleKey {
    /// In [`RuleKey::size`]: this is the pair's header.
    pub const HEADER: u8 = 0xff;
}

/// What is counted: one kind of event between two peers.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EdgeKey {
    /// Who opened it ([`crate::PeerId`]).
    pub src: u32,
    /// Who was connected to ([`crate::PeerId`]).
    pub dst: u32,
    /// The destination's port.
    pub port: u16,
    /// The IP protocol.
    pub proto: u8,
    /// [`crate::Direction`]: which end's hook counted it.
    pub direction: u8,
    /// [`crate::Outcome`].
    pub outcome: u8,
    /// [`crate::Reason`].
    pub reason: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Counts of a rule that is gone, and one that is on its way here: it isn't lost and not added twice, wherever the agent
/// is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Retired {
    /// The sum, with the one that is on its way.
    pub total: u64,
    /// The count that is on its way: until it is zero where it was, it stands in both.
    pub moving: u64,
    /// One more than the place in [`RULES`] from where; 0: nothing is on its way.
    pub from: u64,
}

impl Retired {
    /// The key under which what finds no room is added up, for one direction.
    pub const fn nobody(direction: crate::Direction) -> EdgeKey {
        let rule = RuleKey { src: 0, dst: 0, port: 0, proto: 0, size: 0 };
        EdgeKey::of_rule(&rule, direction)
    }
}

impl EdgeKey {
    /// What is counted beside a rule for a single port.
    pub const fn of_rule(rule: &RuleKey, direction: crate::Direction) -> Self {
        Self {
            src: rule.src,
            dst: rule.dst,
            port: rule.port,
            proto: rule.proto,
            direction: direction as u8,
            outcome: crate::Outcome::Allowed as u8,
            reason: crate::Reason::Rule as u8,
            pad: [0; 2],
        }
    }
}

/// What became of the TCP connections of one edge. Each number only grows.
///
/// *Sent* is from whoever opened the connection, *received* is what came back, whichever end counted it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Traffic {
    /// Handshakes that were completed.
    pub established: u64,
    /// Attempts that were answered, but not by a handshake: by a reset.
    pub refused: u64,
    /// Attempts that were given up without an answer, by the kernel or by the application.
    pub timed_out: u64,
    /// Payload that the destination acknowledged, as far as it was counted: at each tick, and at the end.
    pub bytes_sent: u64,
    /// Payload that the source got.
    pub bytes_received: u64,
    /// Segments from the source. With those that were sent again, at the source.
    pub packets_sent: u64,
    /// Segments to the source.
    pub packets_received: u64,
}

impl Traffic {
    /// How many numbers it has, each a `u64`.
    pub const PARTS: u32 = 7;
}

/// Indexes into [`TOTALS`].
pub mod totals {
    use crate::outcome::{Direction, Outcome, REASONS, Reason};

    /// Events that the ring buffer had no room for.
    pub const LOST_EVENTS: u32 = 0;
    /// First of the numbers of [`super::Traffic`] that found no room in [`super::TRAFFIC`], in its order.
    pub const TRAFFIC: u32 = 1;
    /// Counts of peers outside whose address found no room.
    pub const OUTSIDE: u32 = 8;
    /// DNS answers that weren't told: too many in a second, or no room.
    pub const LOST_ANSWERS: u32 = 9;
    /// Sockets whose place in [`super::SOCKETS`] was another's.
    pub const WITHOUT_PLACE: u32 = 10;
    /// First of the counts that found no room in [`super::EDGES`], by direction, outcome and reason.
    pub const OVERFLOW: u32 = 16;
    /// Number of elements.
    pub const LEN: u32 = OVERFLOW + 2 * 4 * REASONS;

    /// Where a count goes that finds no room: exact in sum, without the peers.
    #[inline(always)]
    pub const fn overflow(direction: Direction, outcome: Outcome, reason: Reason) -> u32 {
        OVERFLOW + ((direction as u32 & 1) * 4 + (outcome as u32 & 3)) * REASONS + (reason as u32 % REASONS)
    }
}

/// A datagram flow: one peer's port with one local port of one workload instance.
///
/// The local address isn't part of it: it may still be unspecified when the first datagram is judged.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowKey {
    /// The workload instance ([`crate::slots::Binding::instance`]).
    pub instance: u32,
    /// The peer's address.
    pub peer: Addr,
    /// The peer's port.
    pub peer_port: u16,
    /// The workload's port.
    pub local_port: u16,
    /// The IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// What was decided for a datagram flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowValue {
    /// A [`CachedVerdict`]; its role says who sent the first allowed datagram.
    pub state: u64,
    /// When it was last used, CLOCK_MONOTONIC (coarse) in nanoseconds.
    pub used: u64,
}

/// How long a datagram flow is remembered without traffic, nanoseconds.
pub const FLOW_IDLE_NS: u64 = 180_000_000_000;

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Control>() == 96 && offset_of!(Control, host_netns) == 16);
    assert!(size_of::<AddrPort>() == 20 && offset_of!(AddrPort, port) == 16);
    assert!(size_of::<PrefixKey>() == 20 && offset_of!(PrefixKey, addr) == 4);
    assert!(size_of::<RuleKey>() == 12 && offset_of!(RuleKey, size) == 11);
    assert!(size_of::<EdgeKey>() == 16 && offset_of!(EdgeKey, outcome) == 12);
    assert!(size_of::<Retired>() == 24);
    assert!(size_of::<FlowKey>() == 28 && offset_of!(FlowKey, proto) == 24);
    assert!(size_of::<FlowValue>() == 16);
    assert!(size_of::<Traffic>() == 8 * Traffic::PARTS as usize);
    assert!(totals::TRAFFIC + Traffic::PARTS <= totals::OUTSIDE && totals::WITHOUT_PLACE < totals::OVERFLOW);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Direction, Outcome, Reason};

    #[test]
    fn levels_are_listed_from_the_root_downwards() {
        assert_eq!(pack_levels(0), 0);
        assert_eq!(pack_levels(1 << 2 | 1 << 3 | 1 << 31), 0x1f_03_02);
        assert_eq!(pack_levels(u32::MAX), 0x06_05_04_03_02_01);
    }

    #[test]
    fn every_overflow_index_is_its_own_and_in_range() {
        extern crate std;
        let mut seen = std::collections::HashSet::new();
        for d in Direction::ALL.iter().copied() {
            for o in Outcome::ALL.iter().copied() {
                for r in Reason::ALL.iter().copied() {
                    let i = totals::overflow(d, o, r);
                    assert!((totals::OVERFLOW..totals::LEN).contains(&i) && seen.insert(i));
                }
            }
        }
    }
}
