//! The headers of a packet, from the network header on, where cgroup_skb programs see it begin.
//!
//! Nothing is trusted: a packet that ends early, isn't IP, hides its transport header behind a fragment or behind
//! more extension headers than [`MAX_EXTENSIONS`] is malformed, and what is malformed isn't judged but refused.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use bulkhead_common::{Addr, proto};
use core::mem::MaybeUninit;
use core::ptr::{addr_of, read_volatile};

use crate::words::{fill, widen};

/// How many IPv6 extension headers are walked over.
const MAX_EXTENSIONS: u32 = 6;

/// What the hooks need to know of a packet.
#[repr(C)]
pub struct Packet {
    pub saddr: Addr,
    pub daddr: Addr,
    /// The source port; the identifier of an ICMP echo; 0 without either.
    pub sport: u16,
    /// The destination port; the identifier of an ICMP echo; 0 without either.
    pub dport: u16,
    /// As it stands in the packet.
    pub proto: u8,
    /// TCP: the flags. ICMP: the type.
    pub kind: u8,
    /// Time to live or hop limit.
    pub hops: u8,
    /// TCP: whether there is no payload.
    pub bare: bool,
}

/// Lengths of the headers of IP without anything more, and of the ports behind them.
const V4: usize = 20;
const V6: usize = 40;
const PORTS: usize = 4;
/// Where the flags of a TCP header are.
const TCP_FLAGS: usize = 13;

/// TCP flags (RFC 9293, 3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

impl Packet {
    /// The first packet of a TCP connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.kind & (SYN | ACK | RST) == SYN
    }

    /// A TCP acknowledgement and nothing else.
    #[inline(always)]
    pub const fn acknowledges(&self) -> bool {
        self.kind & (SYN | ACK | RST | FIN) == ACK && self.bare
    }

    /// A TCP reset that carries no data.
    #[inline(always)]
    pub const fn resets(&self) -> bool {
        self.kind & RST != 0 && self.bare
    }
}

/// Bytes of the packet; `None` if it ends before.
#[inline(always)]
pub fn load<T>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut v = MaybeUninit::<T>::uninit();
    // SAFETY: the destination is as large as said; the helper fills it or fails.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), offset, v.as_mut_ptr().cast(), size_of::<T>() as u32) == 0 {
            Some(v.assume_init())
        } else {
            None
        }
    }
}

/// Reads the headers into `p`; 0 if the packet is malformed. A global function: the verifier looks at it once, and
/// knows nothing of `p` but its type.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_parse(skb: *mut __sk_buff, p: *mut Packet) -> u32 {
    if p.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that this points to a packet.
    let p = unsafe { &mut *p };
    (plain(skb, p).is_some() || headers(skb, p).is_some()) as u32
}

/// Reads the headers into `p`; false if the packet is malformed.
#[inline(always)]
pub fn parse(skb: *mut __sk_buff, p: &mut Packet) -> bool {
    bulkhead_parse(skb, p) != 0
}

/// Reads `T` where it lies.
///
/// # Safety
/// It lies within the packet, as the verifier must have seen.
#[inline(always)]
unsafe fn lying<T>(at: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { at.cast::<T>().read_unaligned() }
}

/// Reads the headers of what most packets are: TCP or UDP, neither in pieces nor with options or extensions of IP, and with
/// all headers in one piece of memory. `None` for any other, of which something may have been read by then.
#[inline(always)]
fn plain(skb: *mut __sk_buff, p: &mut Packet) -> Option<()> {
    // SAFETY: the verifier checks the context's fields, and each read against the packet's end.
    unsafe {
        let data = read_volatile(addr_of!((*skb).data)) as usize as *const u8;
        let end = read_volatile(addr_of!((*skb).data_end)) as usize as *const u8;
        if data.add(V4 + PORTS) > end {
            return None;
        }
        let (header, length) = match lying::<u8>(data) {
            0x45 if lying::<u16>(data.add(6)) & 0x3fff_u16.to_be() == 0 => {
                p.hops = lying(data.add(8));
                p.proto = lying(data.add(9));
                widen(&mut p.saddr, lying(data.add(12)));
                widen(&mut p.daddr, lying(data.add(16)));
                (V4, u32::from(u16::from_be(lying(data.add(2)))))
            }
            first if first >> 4 == 6 && data.add(V6 + PORTS) <= end => {
                p.hops = lying(data.add(7));
                p.proto = lying(data.add(6));
                fill(&mut p.saddr, lying(data.add(8)));
                fill(&mut p.daddr, lying(data.add(24)));
                (V6, V6 as u32 + u32::from(u16::from_be(lying(data.add(4)))))
            }
            _ => return None,
        };
        let l4 = data.add(header);
        p.sport = u16::from_be(lying(l4));
        p.dport = u16::from_be(lying(l4.add(2)));
        match p.proto {
            proto::UDP => Some(()),
            proto::TCP if l4.add(TCP_FLAGS + 1) <= end => {
                p.kind = lying(l4.add(TCP_FLAGS));
                p.bare = length == header as u32 + u32::from(lying::<u8>(l4.add(12)) >> 4) * 4;
                Some(())
            }
            _ => None,
        }
    }
}

/// Whether this is a UDP datagram to that address and port, as [`plain`] as most are. Any other may go there, too.
#[inline(always)]
pub fn is_plainly_to(skb: *mut __sk_buff, to: *const Addr, port: u16) -> bool {
    // Word by word: an array would stand on the stack.
    let word = |n: usize| {
        // SAFETY: an address is four words, aligned to four.
        unsafe { read_volatile(to.cast::<u32>().add(n)) }
    };
    // SAFETY: as in `plain`.
    unsafe {
        let data = read_volatile(addr_of!((*skb).data)) as usize as *const u8;
        let end = read_volatile(addr_of!((*skb).data_end)) as usize as *const u8;
        if data.add(V4 + PORTS) > end {
            return false;
        }
        match lying::<u8>(data) {
            0x45 => {
                word(0) | word(1) == 0
                    && word(2) == 0xffff_u32.to_be()
                    && lying::<u8>(data.add(9)) == proto::UDP
                    && lying::<u16>(data.add(6)) & 0x3fff_u16.to_be() == 0
                    && lying::<u32>(data.add(16)) == word(3)
                    && lying::<u16>(data.add(V4 + 2)) == port.to_be()
            }
            first if first >> 4 == 6 && data.add(V6 + PORTS) <= end => {
                lying::<u8>(data.add(6)) == proto::UDP
                    && lying::<u32>(data.add(24)) == word(0)
                    && lying::<u32>(data.add(28)) == word(1)
                    && lying::<u32>(data.add(32)) == word(2)
                    && lying::<u32>(data.add(36)) == word(3)
                    && lying::<u16>(data.add(V6 + 2)) == port.to_be()
            }
            _ => false,
        }
    }
}

#[inline(always)]
fn headers(skb: *mut __sk_buff, p: &mut Packet) -> Option<()> {
    let first: [u8; 20] = load(skb, 0)?;
    let (l4, end) = match first[0] >> 4 {
        4 => {
            if u16::from_be_bytes([first[6], first[7]]) & 0x1fff != 0 {
                return None;
            }
            p.hops = first[8];
            p.proto = first[9];
            widen(&mut p.saddr, u32::from_ne_bytes([first[12], first[13], first[14], first[15]]));
            widen(&mut p.daddr, u32::from_ne_bytes([first[16], first[17], first[18], first[19]]));
            let l4 = u32::from(first[0] & 0x0f) * 4;
            if l4 < 20 {
                return None;
            }
            (l4, u32::from(u16::from_be_bytes([first[2], first[3]])))
        }
        6 => {
            p.hops = first[7];
            p.saddr = load(skb, 8)?;
            p.daddr = load(skb, 24)?;
            let (next, l4) = transport(skb, first[6])?;
            p.proto = next;
            (l4, 40 + u32::from(u16::from_be_bytes([first[4], first[5]])))
        }
        _ => return None,
    };
    match p.proto {
        proto::TCP => {
            let h: [u8; 14] = load(skb, l4)?;
            p.sport = u16::from_be_bytes([h[0], h[1]]);
            p.dport = u16::from_be_bytes([h[2], h[3]]);
            p.kind = h[13];
            p.bare = end == l4 + u32::from(h[12] >> 4) * 4;
        }
        proto::UDP | proto::UDPLITE | proto::SCTP => {
            let h: [u8; 4] = load(skb, l4)?;
            p.sport = u16::from_be_bytes([h[0], h[1]]);
            p.dport = u16::from_be_bytes([h[2], h[3]]);
        }
        proto::ICMP | proto::ICMPV6 => {
            let h: [u8; 6] = load(skb, l4)?;
            p.kind = h[0];
            let echo = if p.proto == proto::ICMP { h[0] == 8 || h[0] == 0 } else { h[0] == 128 || h[0] == 129 };
            if echo {
                p.sport = u16::from_be_bytes([h[4], h[5]]);
                p.dport = p.sport;
            }
        }
        _ => {}
    }
    Some(())
}

/// Walks over IPv6 extension headers (RFC 8200, 4) to the transport header: its protocol and offset.
#[inline(always)]
fn transport(skb: *mut __sk_buff, first: u8) -> Option<(u8, u32)> {
    let mut next = first;
    let mut offset = 40;
    let mut n = 0;
    while n < MAX_EXTENSIONS {
        match next {
            // hop-by-hop options, routing, destination options
            0 | 43 | 60 => {
                let h: [u8; 2] = load(skb, offset)?;
                next = h[0];
                offset += (u32::from(h[1]) + 1) * 8;
            }
            // authentication header
            51 => {
                let h: [u8; 2] = load(skb, offset)?;
                next = h[0];
                offset += (u32::from(h[1]) + 2) * 4;
            }
            // fragment: only a first one has the transport header
            44 => {
                let h: [u8; 4] = load(skb, offset)?;
                if u16::from_be_bytes([h[2], h[3]]) & 0xfff8 != 0 {
                    return None;
                }
                next = h[0];
                offset += 8;
            }
            _ => return Some((next, offset)),
        }
        n += 1;
    }
    None
}
