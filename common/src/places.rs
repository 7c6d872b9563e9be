//! Tables that are searched by key in memory which the agent has mapped: one load from afar for most searches, and a
//! write that is in force at once.
//!
//! A table of `size` places, a power of two, lies in its array at the places from `size` to `2 * size`, so tables of
//! different sizes never overlap: one that has become too small is written anew beside the old one, which readers of the
//! former epoch go on using ([`crate::maps::Control::masks`] has two slots too). A place is a row of `u64` words: first the payload's two
//! slots, one for even epochs and one for odd ones ([`crate::slots`]), then the key's words, then what else the table
//! keeps there. A key is searched for from its [`home`] onwards, place by place ([`next`]):
//!
//! * a slot that is [`ABSENT`](crate::slots::ABSENT) ends the search: nothing lies beyond;
//! * one that is [`GONE`] says nothing, and the search goes on;
//! * any other is a payload, and only then is the key compared.
//!
//! So the words of a key are only ever looked at by a run for whose epoch the place holds an entry. The agent writes
//! them while both slots say that it doesn't, and such a run begins after the epoch was raised: no run sees half a key.
//! A place may be given to another key once no run is left that may have found the former one there.

use crate::Addr;
use crate::maps::{AddrPort, RuleKey};

/// A slot of a place that holds nothing in this epoch, while a search goes on beyond it.
pub const GONE: u64 = 1;
/// How many places a search looks at. A key that finds none among them doesn't fit the table.
pub const PROBES: u32 = 24;
/// The first word of a place's key.
pub const KEY: usize = 2;
/// Words of a place of [`crate::maps::CGROUPS`].
pub const CGROUP_WORDS: usize = KEY + 1;
/// Words of a place of [`crate::maps::ADDRESSES`].
pub const ADDRESS_WORDS: usize = KEY + 2;
/// Words of a place of [`crate::maps::ADDRESS_PORTS`].
pub const ADDRESS_PORT_WORDS: usize = KEY + 3;
/// Words of a place of [`crate::maps::RULES`]: a cache line.
pub const RULE_WORDS: usize = 8;
/// In a place of [`crate::maps::RULES`]: how many flows this very rule allowed, one word a [`crate::Direction`]. They
/// only grow as long as the place holds the rule.
pub const RULE_COUNTS: usize = 4;

/// The smallest table has so many places.
pub const SMALLEST: u32 = 16;

/// How many places a table has that shall hold so many entries: at most every second one is taken.
pub const fn places(entries: u32) -> u32 {
    let most = 1 << 28;
    if entries >= most / 2 {
        return most;
    }
    let places = (entries * 2).next_power_of_two();
    if places < SMALLEST { SMALLEST } else { places }
}

/// How many places a table for so many entries may get where keys crowd: at most every fourth one is taken.
pub const fn most_places(entries: u32) -> u32 {
    places(entries) * 2
}

/// How many places the array of a table has that shall hold up to so many entries.
pub const fn array(entries: u32) -> u32 {
    most_places(entries) * 2
}

/// The place at which a search has arrived, in the table whose size is one more than `mask`.
#[inline(always)]
pub const fn place(at: u32, mask: u32) -> u32 {
    (at & mask).wrapping_add(mask).wrapping_add(1)
}

/// Where the search for a key begins, before it is cut to the table's size. The seed is the table's secret, so that
/// nobody can choose keys that all begin at one place.
#[inline(always)]
pub const fn home<const W: usize>(seed: u64, key: &[u64; W]) -> u32 {
    // 2^64 divided by the golden ratio, and a multiplier of murmur3's last step. A product's upper half depends on all of
    // the lower half of what is multiplied, and folding brings the upper half there.
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    const L: u64 = 0xff51_afd7_ed55_8ccd;
    let mut h = seed;
    let mut n = 0;
    while n < W {
        h = (h ^ key[n]).wrapping_mul(K);
        h ^= h >> 32;
        n += 1;
    }
    h = h.wrapping_mul(L);
    h ^= h >> 29;
    (h.wrapping_mul(K) >> 32) as u32
}

/// The place after this one, before it is cut to the table's size.
#[inline(always)]
pub const fn next(at: u32) -> u32 {
    at.wrapping_add(1)
}

/// The words of an address.
#[inline(always)]
pub const fn address(a: &Addr) -> [u64; 2] {
    let w = a.words();
    [w[0] as u64 | (w[1] as u64) << 32, w[2] as u64 | (w[3] as u64) << 32]
}

/// The words of an address and port.
#[inline(always)]
pub const fn address_port(k: &AddrPort) -> [u64; 3] {
    let [a, b] = address(&k.addr);
    [a, b, k.port as u64 | (k.proto as u64) << 16]
}

/// The words of a rule's key.
#[inline(always)]
pub const fn rule(k: &RuleKey) -> [u64; 2] {
    [k.src as u64 | (k.dst as u64) << 32, k.port as u64 | (k.proto as u64) << 16 | (k.size as u64) << 24]
}

/// The address of such words.
#[expect(clippy::cast_possible_truncation, reason = "words are cut into halves")]
pub const fn to_address(w: [u64; 2]) -> Addr {
    Addr::from_words([w[0] as u32, (w[0] >> 32) as u32, w[1] as u32, (w[1] >> 32) as u32])
}

/// The address and port of such words.
#[expect(clippy::cast_possible_truncation, reason = "words are cut into their parts")]
pub const fn to_address_port(w: [u64; 3]) -> AddrPort {
    AddrPort { addr: to_address([w[0], w[1]]), port: w[2] as u16, proto: (w[2] >> 16) as u8, pad: 0 }
}

/// The rule's key of such words.
#[expect(clippy::cast_possible_truncation, reason = "words are cut into their parts")]
pub const fn to_rule(w: [u64; 2]) -> RuleKey {
    RuleKey {
        src: w[0] as u32,
        dst: (w[0] >> 32) as u32,
        port: w[1] as u16,
        proto: (w[1] >> 16) as u8,
        size: (w[1] >> 24) as u8,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_lead_back_from_their_words() {
        let addr = Addr([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(to_address(address(&addr)), addr);
        let port = AddrPort { addr, port: 0xfedc, proto: 17, pad: 0 };
        assert_eq!(to_address_port(address_port(&port)), port);
        let key = RuleKey { src: 0x1234_5678, dst: 0x9abc_def0, port: 0xfedc, proto: 6, size: 0xff };
        assert_eq!(to_rule(rule(&key)), key);
    }

    /// Of 10,000 balls in 262,144 bins some 190 fall into one that is taken.
    fn assert_spread<const W: usize>(keys: impl Fn(u32) -> [u64; W]) {
        for seed in [0, 0x1234_5678_9abc_def1, u64::MAX] {
            let homes: HashSet<u32> = (0..10_000).map(|n| home(seed, &keys(n)) & 0x3ffff).collect();
            assert!(homes.len() > 9700, "{} of 10,000", homes.len());
        }
    }

    #[test]
    fn keys_that_differ_little_begin_far_apart() {
        assert_spread(|n| {
            rule(&RuleKey { src: 300, dst: 256 + n / 10, port: 8000 + (n % 10) as u16, proto: 6, size: 16 })
        });
        assert_spread(|n| rule(&RuleKey { src: 256 + n, dst: 300, port: 443, proto: 6, size: 16 }));
        let v4 = |n: u32| Addr::v4((0x0a00_0000 + n).to_be_bytes());
        assert_spread(|n| address(&v4(n)));
        assert_spread(|n| address(&v4(n << 8)));
        assert_spread(|n| address_port(&AddrPort { addr: v4(n >> 4), port: (n & 15) as u16, proto: 17, pad: 0 }));
        let v6 = |n: u32, at: usize| {
            let mut a = Addr([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            a.0[at..at + 4].copy_from_slice(&n.to_be_bytes());
            a
        };
        for at in [2, 4, 8, 11] {
            assert_spread(|n| address(&v6(n, at)));
        }
        assert_spread(|n| [u64::from(n)]);
        assert_spread(|n| [u64::from(n) * 2 + 4_000_000]);
    }

    #[test]
    fn a_table_has_twice_the_places() {
        assert_eq!(places(3), SMALLEST);
        assert_eq!(places(1 << 17), 1 << 18);
        assert_eq!(array(u32::MAX), 1 << 30);
    }

    #[test]
    fn tables_of_different_sizes_do_not_overlap() {
        let mut all = HashSet::new();
        for mask in [15, 31, 63] {
            for at in u32::MAX - 10..=u32::MAX {
                assert!((mask + 1..2 * (mask + 1)).contains(&place(at, mask)));
            }
            all.extend((0..=mask).map(|at| place(at, mask)));
        }
        assert_eq!(all.len(), 16 + 32 + 64);
    }
}
