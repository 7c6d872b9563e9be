//! One address type for both families.
//!
//! IPv4 is widened to its v4-mapped form `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), so each table and each rule has one
//! key shape, and a v4-mapped destination on an AF_INET6 socket is the same key as the IPv4 address that it means.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Sixteen bytes in network order; IPv4 as `::ffff:a.b.c.d`. Aligned to four, so that the kernel side reads words.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(4))]
pub struct Addr(pub [u8; 16]);

/// How many leading bits of a widened IPv4 address are the mapping itself.
pub const V4_PREFIX_BITS: u32 = 96;

impl Addr {
    /// The unspecified address of IPv6, `::`.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// Widens an IPv4 address given as four bytes in network order.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])
    }

    /// The address as four words whose bytes are in network order, as the kernel's structs hold it.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let b = &self.0;
        [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ]
    }

    /// The address of four such words.
    #[inline(always)]
    pub const fn from_words(w: [u32; 4]) -> Self {
        let (a, b, c, d) = (w[0].to_ne_bytes(), w[1].to_ne_bytes(), w[2].to_ne_bytes(), w[3].to_ne_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]])
    }

    /// Whether this is an IPv4 address (v4-mapped).
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let w = self.words();
        w[0] | w[1] == 0 && w[2] == 0xffff_u32.to_be()
    }

    /// Whether packets to this address never leave the network namespace: 127.0.0.0/8, `::1`, and the unspecified
    /// addresses, which connect() takes as loopback (Linux: `tcp_v6_connect`, `ip_route_output_key_hash_rcu`).
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let w = self.words();
        let last = u32::from_be(w[3]);
        if self.is_v4() {
            return last >> 24 == 127 || last == 0;
        }
        w[0] | w[1] | w[2] == 0 && last <= 1
    }

    /// Whether a packet to this address may reach more than one host: 224.0.0.0/4, 255.255.255.255 and `ff00::/8`.
    /// A subnet's own broadcast address can't be told from the address alone.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        let b = &self.0;
        if self.is_v4() {
            return b[12] & 0xf0 == 0xe0 || (b[12] & b[13] & b[14] & b[15]) == 0xff;
        }
        b[0] == 0xff
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn widening_agrees_with_std() {
        let v4 = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(Addr::v4(v4.octets()).0, v4.to_ipv6_mapped().octets());
        assert!(Addr::v4(v4.octets()).is_v4());
        assert!(!Addr(Ipv6Addr::LOCALHOST.octets()).is_v4());
    }

    #[test]
    fn words_lead_back_to_the_address() {
        let a = Addr([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(Addr::from_words(a.words()), a);
        assert_eq!(a.words()[0].to_ne_bytes(), [0, 1, 2, 3]);
    }

    #[test]
    fn loopback_covers_what_connect_takes_as_loopback() {
        for a in ["::1", "::", "::ffff:127.0.0.1", "::ffff:127.9.9.9", "::ffff:0.0.0.0"] {
            assert!(Addr(a.parse::<Ipv6Addr>().expect(a).octets()).is_loopback(), "{a}");
        }
        for a in ["::2", "::ffff:128.0.0.1", "::ffff:0.0.0.1", "fe80::1", "::1:0"] {
            assert!(!Addr(a.parse::<Ipv6Addr>().expect(a).octets()).is_loopback(), "{a}");
        }
    }

    #[test]
    fn multicast_covers_both_families_and_limited_broadcast() {
        for a in ["ff02::1", "::ffff:224.0.0.251", "::ffff:239.255.255.250", "::ffff:255.255.255.255"] {
            assert!(Addr(a.parse::<Ipv6Addr>().expect(a).octets()).is_multicast(), "{a}");
        }
        for a in ["fe80::1", "::ffff:223.255.255.255", "::ffff:240.0.0.1", "::ffff:10.0.0.255"] {
            assert!(!Addr(a.parse::<Ipv6Addr>().expect(a).octets()).is_multicast(), "{a}");
        }
    }
}
