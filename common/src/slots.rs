//! What a slot holds.
//!
//! Every value that a verdict depends on is a pair of `u64` slots; a program run reads the epoch once, first, and then
//! uses the slot `epoch & 1` of each entry that it meets (see [`crate::maps`]). A slot is one aligned `u64`, so it is
//! read and written whole. `0` is [`ABSENT`]: the entry isn't there in that epoch. Every other payload has bit 63 set.

#![expect(clippy::cast_possible_truncation, reason = "bits are cut out of a word on purpose")]

use crate::peer::PeerId;

/// The entry doesn't exist in this slot's epoch.
pub const ABSENT: u64 = 0;
const PRESENT: u64 = 1 << 63;

/// Who is behind a cgroup or an address.
///
/// Bits: 0..32 peer, 32..56 instance, 56..63 flags, 63 present.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Binding {
    /// Who it is.
    pub peer: PeerId,
    /// Which instance of that identity (24 bits): two pods of one service differ here. 0: no workload's.
    pub instance: u32,
    /// [`Binding::ATTACH_POINT`] and so on.
    pub flags: u8,
}

impl Binding {
    /// The greatest instance number.
    pub const MAX_INSTANCE: u32 = (1 << 24) - 1;
    /// Of a cgroup: the programs are attached here, so what lies below and is nobody's is an unknown workload.
    pub const ATTACH_POINT: u8 = 1;
    /// Of an address: some of its ports have an entry of their own.
    pub const HAS_PORTS: u8 = 2;
    /// Of a workload's cgroup: its network namespace knows the node's by the number [`Binding::NODE_NETNS`], so that the
    /// node's own connections can be told from those that it masquerades.
    pub const KNOWS_NODE: u8 = 4;
    /// Of a workload's cgroup: others may not know its address yet, so what it sends first may be dropped.
    pub const YOUNG: u8 = 8;
    /// By which number a workload's network namespace knows the node's, mostly: that of its veth pair's other end.
    pub const NODE_NETNS: i32 = 0;

    /// A binding without an instance and without flags.
    pub const fn of(peer: PeerId) -> Self {
        Self { peer, instance: 0, flags: 0 }
    }

    /// The payload.
    pub const fn encode(self) -> u64 {
        PRESENT
            | self.peer.0 as u64
            | ((self.instance & Self::MAX_INSTANCE) as u64) << 32
            | ((self.flags & 0x7f) as u64) << 56
    }

    /// The binding of a payload; `None` for [`ABSENT`].
    #[inline(always)]
    pub const fn decode(slot: u64) -> Option<Self> {
        if slot & PRESENT == 0 {
            return None;
        }
        Some(Self {
            peer: PeerId(slot as u32),
            instance: (slot >> 32) as u32 & Self::MAX_INSTANCE,
            flags: (slot >> 56) as u8 & 0x7f,
        })
    }
}

/// Both sides' verdicts, four bits: a set bit allows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Sides(pub u8);

impl Sides {
    /// The source's rules, in force.
    pub const EGRESS_NOW: u8 = 1;
    /// The source's rules, audited.
    pub const EGRESS_AUDITED: u8 = 2;
    /// The destination's rules, in force.
    pub const INGRESS_NOW: u8 = 4;
    /// The destination's rules, audited.
    pub const INGRESS_AUDITED: u8 = 8;
    /// Both of the source's bits.
    pub const EGRESS: u8 = Self::EGRESS_NOW | Self::EGRESS_AUDITED;
    /// Both of the destination's bits.
    pub const INGRESS: u8 = Self::INGRESS_NOW | Self::INGRESS_AUDITED;
    /// Nothing is allowed.
    pub const NONE: Self = Self(0);
    /// Everything is allowed.
    pub const ALL: Self = Self(Self::EGRESS | Self::INGRESS);

    /// The verdict in force: both sides allow.
    #[inline(always)]
    #[must_use]
    pub const fn now(self) -> bool {
        let both = Self::EGRESS_NOW | Self::INGRESS_NOW;
        self.0 & both == both
    }

    /// The audited verdict: both sides allow.
    #[inline(always)]
    #[must_use]
    pub const fn audited(self) -> bool {
        let both = Self::EGRESS_AUDITED | Self::INGRESS_AUDITED;
        self.0 & both == both
    }
}

/// What the rules say of one pair of peers, for one block of ports or (in a header) for the ports without a block.
///
/// Bits: 0..4 sides, 8..35 the source's rule, 35..62 the destination's rule, 63 present. In a header, bits 8..25 are
/// the set of block sizes that the pair has (bit n: blocks with n leading bits of the port), and no rule is named.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Permit {
    /// What each side says.
    pub sides: Sides,
    /// The number of the source's rule that decided (27 bits); 0: none did, its default holds.
    pub egress_rule: u32,
    /// The number of the destination's rule that decided (27 bits); 0: none did, its default holds.
    pub ingress_rule: u32,
}

impl Permit {
    /// The greatest rule number.
    pub const MAX_RULE: u32 = (1 << 27) - 1;

    /// The payload.
    pub const fn encode(self) -> u64 {
        PRESENT
            | (self.sides.0 & 0xf) as u64
            | ((self.egress_rule & Self::MAX_RULE) as u64) << 8
            | ((self.ingress_rule & Self::MAX_RULE) as u64) << 35
    }

    /// The permit of a block's payload; `None` for [`ABSENT`].
    #[inline(always)]
    pub const fn decode(slot: u64) -> Option<Self> {
        if slot & PRESENT == 0 {
            return None;
        }
        Some(Self {
            sides: Sides(slot as u8 & 0xf),
            egress_rule: (slot >> 8) as u32 & Self::MAX_RULE,
            ingress_rule: (slot >> 35) as u32 & Self::MAX_RULE,
        })
    }
}

/// The header of a pair: which block sizes it has, and what holds for the ports that no block covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PairHeader {
    /// What holds outside the blocks.
    pub sides: Sides,
    /// Bit n: the pair has blocks with n leading bits of the port (0 to 16).
    pub sizes: u32,
}

impl PairHeader {
    /// The payload.
    pub const fn encode(self) -> u64 {
        PRESENT | (self.sides.0 & 0xf) as u64 | ((self.sizes & 0x1_ffff) as u64) << 8
    }

    /// The header of a payload; `None` for [`ABSENT`].
    #[inline(always)]
    pub const fn decode(slot: u64) -> Option<Self> {
        if slot & PRESENT == 0 {
            return None;
        }
        Some(Self { sides: Sides(slot as u8 & 0xf), sizes: (slot >> 8) as u32 & 0x1_ffff })
    }
}

/// The default of one identity, and what kinds of socket it may make.
///
/// Bits: 0..4 sides (only the bits of the side concerned are used), 8..16 leaves in force, 16..24 leaves audited,
/// 63 present. It stands in an array at the identity's number; number 0 is the unknown workload's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Baseline {
    /// What holds where no rule speaks: the egress bits when the identity is the source, else the ingress bits.
    pub sides: Sides,
    /// Kinds of socket that it may make: [`Baseline::RAW`] and so on, in force.
    pub sockets_now: u8,
    /// The same for the audited verdict.
    pub sockets_audited: u8,
}

impl Baseline {
    /// Leave to make raw sockets.
    pub const RAW: u8 = 1;
    /// Leave to make SCTP sockets.
    pub const SCTP: u8 = 2;
    /// Leave to make MPTCP sockets.
    pub const MPTCP: u8 = 4;

    /// The payload.
    pub const fn encode(self) -> u64 {
        PRESENT | (self.sides.0 & 0xf) as u64 | (self.sockets_now as u64) << 8 | (self.sockets_audited as u64) << 16
    }

    /// The default of a payload; `None` for [`ABSENT`].
    #[inline(always)]
    pub const fn decode(slot: u64) -> Option<Self> {
        if slot & PRESENT == 0 {
            return None;
        }
        Some(Self {
            sides: Sides(slot as u8 & 0xf),
            sockets_now: (slot >> 8) as u8,
            sockets_audited: (slot >> 16) as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bindings_survive_the_slot(peer: u32, instance in 0..=Binding::MAX_INSTANCE, flags in 0u8..0x80) {
            let b = Binding { peer: PeerId(peer), instance, flags };
            prop_assert_ne!(b.encode(), ABSENT);
            prop_assert_eq!(Binding::decode(b.encode()), Some(b));
        }

        #[test]
        fn permits_survive_the_slot(sides in 0u8..16, e in 0..=Permit::MAX_RULE, i in 0..=Permit::MAX_RULE) {
            let p = Permit { sides: Sides(sides), egress_rule: e, ingress_rule: i };
            prop_assert_eq!(Permit::decode(p.encode()), Some(p));
        }

        #[test]
        fn headers_and_defaults_survive_the_slot(sides in 0u8..16, sizes in 0u32..0x2_0000, now: u8, audited: u8) {
            let h = PairHeader { sides: Sides(sides), sizes };
            prop_assert_eq!(PairHeader::decode(h.encode()), Some(h));
            let d = Baseline { sides: Sides(sides), sockets_now: now, sockets_audited: audited };
            prop_assert_eq!(Baseline::decode(d.encode()), Some(d));
        }
    }

    #[test]
    fn absent_decodes_to_nothing() {
        assert_eq!(Binding::decode(ABSENT), None);
        assert_eq!(Permit::decode(ABSENT), None);
        assert_eq!(PairHeader::decode(ABSENT), None);
        assert_eq!(Baseline::decode(ABSENT), None);
    }
}
