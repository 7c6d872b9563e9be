//! Everything that the kernel's tables hold for one epoch, as plain collections.
//!
//! The compiler makes an [`Image`], the planner compares two of them, and the verdict can be asked of one directly: an
//! image answers exactly as the kernel does once it is applied.

use bulkhead_common::maps::{AddrPort, PrefixKey, RuleKey};
use bulkhead_common::slots::{ABSENT, Baseline, Binding};
use bulkhead_common::{Addr, PeerId, Tables};
use litemap::LiteMap;
use std::collections::BTreeMap;
use std::iter::Peekable;

/// The contents of the tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// By cgroup id.
    pub cgroups: BTreeMap<u64, Binding>,
    /// By address. There may be a hundred thousand, so they lie side by side.
    pub addresses: LiteMap<Addr, Binding>,
    /// By address and port. Each address here also stands in [`Image::addresses`], flagged `HAS_PORTS`.
    pub address_ports: BTreeMap<AddrPort, Binding>,
    /// By prefix; `::/0` is always there.
    pub prefixes: BTreeMap<PrefixKey, Binding>,
    /// By pair and block: encoded [`bulkhead_common::slots::Permit`]s and headers.
    /// There may be as many as addresses.
    pub rules: LiteMap<RuleKey, u64>,
    /// By identity; 0 is the unknown workload's.
    pub baselines: BTreeMap<PeerId, Baseline>,
    /// Bit n: some cgroup lies n levels deep.
    pub levels: u32,
    /// `PASS_…` bits of [`bulkhead_common::maps::Control`].
    pub built_ins: u32,
}

impl Image {
    /// The binding of the longest prefix among those of at most `bits` bits that holds the address.
    pub fn longest_prefix(&self, addr: &Addr, bits: u32) -> Option<Binding> {
        (0..=bits).rev().find_map(|n| self.prefixes.get(&PrefixKey { bits: n, addr: masked(addr, n) }).copied())
    }
}

/// The address with all but its leading `bits` bits cleared.
pub fn masked(addr: &Addr, bits: u32) -> Addr {
    let n = u128::from_be_bytes(addr.0);
    let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
    Addr((n & mask).to_be_bytes())
}

impl Tables for Image {
    fn rule(&self, key: &RuleKey) -> u64 {
        self.rules.get(key).copied().unwrap_or(ABSENT)
    }
    fn baseline(&self, id: PeerId) -> u64 {
        self.baselines.get(&id).map_or(ABSENT, |b| b.encode())
    }
    fn address(&self, addr: &Addr) -> u64 {
        self.addresses.get(addr).map_or(ABSENT, |b| b.encode())
    }
    fn address_port(&self, key: &AddrPort) -> u64 {
        self.address_ports.get(key).map_or(ABSENT, |b| b.encode())
    }
    fn prefix(&self, addr: &Addr) -> u64 {
        self.longest_prefix(addr, 128).map_or(ABSENT, |b| b.encode())
    }
}

/// Walks two sequences that are ordered by key and pairs what has the same key.
pub(crate) fn join<K: Ord + Copy, A, B>(
    left: impl Iterator<Item = (K, A)>,
    right: impl Iterator<Item = (K, B)>,
) -> impl Iterator<Item = (K, Option<A>, Option<B>)> {
    let (mut left, mut right): (Peekable<_>, Peekable<_>) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || {
        let key = match (left.peek(), right.peek()) {
            (Some((l, _)), Some((r, _))) => *l.min(r),
            (Some((k, _)), None) | (None, Some((k, _))) => *k,
            (None, None) => return None,
        };
        let a = left.next_if(|(k, _)| *k == key).map(|(_, v)| v);
        let b = right.next_if(|(k, _)| *k == key).map(|(_, v)| v);
        Some((key, a, b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_keep_the_leading_bits() {
        let a = Addr([0xff; 16]);
        assert_eq!(masked(&a, 0), Addr([0; 16]));
        assert_eq!(masked(&a, 128), a);
        assert_eq!(masked(&a, 9).0[..3], [0xff, 0x80, 0]);
    }
}
