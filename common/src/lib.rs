//! The contract between Bulkhead's kernel programs and its agent.
//!
//! Both sides compile this crate, so it holds what must never differ between them: the keys and values of
//! the maps ([`maps`], [`outside`]), how a table is searched ([`places`]), what their slots mean ([`slots`]), who a peer can
//! be ([`peer`]), the words of an outcome ([`outcome`]), and the one function that decides ([`verdict`]).
//!
//! It must not depend on std, alloc, aya or the kernel, and everything in it is total: there is no input for which
//! it panics, and whatever it can't read ends in deny with a named reason.
#![no_std]

pub mod addr;
pub mod event;
pub mod maps;
pub mod outcome;
pub mod outside;
pub mod peer;
pub mod places;
pub mod slots;
pub mod verdict;

pub use addr::Addr;
pub use outcome::{Direction, Hook, Outcome, Reason};
pub use peer::{Class, PeerId};
pub use verdict::{Flow, Judgement, Side, Tables};

/// The version of the layouts in this crate. It names the folder of pinned maps, so raise it with every change to a
/// struct, a slot's bits or the meaning of a map: an agent never adopts maps of another version.
pub const ABI: u32 = 6;

/// IP protocol numbers that Bulkhead tells apart (IANA "Assigned Internet Protocol Numbers").
pub mod proto {
    /// ICMP. ICMPv6 (58) is judged as this too, so that one rule covers both families.
    pub const ICMP: u8 = 1;
    /// TCP, and MPTCP, whose subflows are TCP on the wire.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6 as it stands in a packet; see [`ICMP`] for how it is judged.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite. It is judged under its own number: a rule for UDP doesn't open it.
    pub const UDPLITE: u8 = 136;

    /// The protocol under which a packet of `number` is judged: ICMPv6 counts as ICMP, anything else as itself.
    #[inline(always)]
    pub const fn judged(number: u8) -> u8 {
        if number == ICMPV6 { ICMP } else { number }
    }
}
