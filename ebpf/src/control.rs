//! Control traffic: what the kernel itself sends from inside a workload's network namespace.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use bulkhead_common::maps::Control as Flags;
use bulkhead_common::proto;
use core::ptr::{addr_of, read_volatile};

use crate::maps::OLD_SOCKETS;
use crate::packet::Packet;
use crate::storage::cookie;
use crate::tables::Snapshot;

/// Linux: include/linux/net.h.
const SOCK_RAW: u32 = 3;

/// What becomes of a packet that may be control traffic.
pub enum Control {
    /// The kernel's own, and a named built-in lets it pass.
    Pass,
    /// No workload may send it.
    Forged,
    /// Nothing of the kind.
    Judge,
}

/// Control traffic isn't a flow: what the kernel itself sends from inside a workload's network namespace passes by
/// named built-ins.
#[inline(always)]
pub fn control<const OUT: bool>(
    s: Snapshot,
    skb: *mut __sk_buff,
    sk: *mut bpf_sock,
    stamped: bool,
    p: &Packet,
) -> Control {
    if !OUT || p.proto != proto::ICMP && p.proto != proto::ICMPV6 {
        return Control::Judge;
    }
    if p.proto == proto::ICMPV6 && (p.kind == 134 || p.kind == 137) {
        return Control::Forged;
    }
    // The kernel's own control sockets carry no stamp, and no workload made them before the programs came either.
    // SAFETY: the verifier checks the field.
    let kind = unsafe { read_volatile(addr_of!((*sk).type_)) };
    if kind != SOCK_RAW || stamped {
        return Control::Judge;
    }
    if OLD_SOCKETS.get_ptr(&cookie(skb)).is_some() {
        return Control::Judge;
    }
    let built_in = if p.proto == proto::ICMPV6 {
        match p.kind {
            133 | 135 | 136 if p.hops == 255 => Flags::PASS_NEIGHBOUR_DISCOVERY,
            131 | 132 | 143 if p.daddr.0[0] == 0xff && p.daddr.0[1] == 0x02 => Flags::PASS_MULTICAST_LISTENER,
            1..=4 => Flags::PASS_ICMP_ERRORS,
            129 => Flags::PASS_ECHO_REPLY,
            _ => 0,
        }
    } else {
        match p.kind {
            3 | 11 | 12 => Flags::PASS_ICMP_ERRORS,
            0 => Flags::PASS_ECHO_REPLY,
            _ => 0,
        }
    };
    if s.flags() & built_in != 0 { Control::Pass } else { Control::Judge }
}
