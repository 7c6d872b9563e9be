//! Sets of ports as disjoint ranges, and their cover by blocks: a block is all ports that share their leading bits, so
//! a lookup finds it by masking.

use bulkhead_common::proto;

/// The protocols that the tables tell apart, in the order of their bits in a [`Spans::protocols`] mask.
pub(super) const PROTOCOLS: [u8; 5] = [proto::ICMP, proto::TCP, proto::UDP, proto::SCTP, proto::UDPLITE];

/// Ports from the first to the last, both included.
pub(super) type Span = (u16, u16);

/// Ports of each protocol: ranges that neither overlap nor touch, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Spans(Vec<(u8, Span)>);

impl Spans {
    /// Every port of every protocol.
    pub(super) fn all() -> Self {
        Self(PROTOCOLS.iter().map(|p| (*p, (0, u16::MAX))).collect())
    }

    /// These ranges, merged.
    pub(super) fn of(mut ranges: Vec<(u8, Span)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u8, Span)> = Vec::with_capacity(ranges.len());
        for (proto, (first, last)) in ranges {
            match merged.last_mut() {
                Some((p, (_, end))) if *p == proto && u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
                _ => merged.push((proto, (first, last))),
            }
        }
        Self(merged)
    }

    /// The ranges of one protocol.
    pub(super) fn of_protocol(&self, proto: u8) -> impl Iterator<Item = Span> {
        self.0.iter().filter(move |(p, _)| *p == proto).map(|(_, span)| *span)
    }

    /// The ranges with their protocols.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, Span)> {
        self.0.iter().copied()
    }

    /// Bit n: the n-th of [`PROTOCOLS`] is in it.
    pub(super) fn protocols(&self) -> u8 {
        let bit = |p: u8| PROTOCOLS.iter().position(|known| *known == p).map_or(0, |n| 1 << n);
        self.0.iter().fold(0, |mask, (p, _)| mask | bit(*p))
    }

    /// What of it isn't in `other`.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        for (proto, (first, last)) in self.iter() {
            let mut next = Some(first);
            for (a, b) in other.of_protocol(proto).filter(|(a, b)| *a <= last && *b >= first) {
                if let Some(from) = next.filter(|from| *from < a) {
                    rest.push((proto, (from, a - 1)));
                }
                next = b.checked_add(1);
            }
            if let Some(from) = next.filter(|from| *from <= last) {
                rest.push((proto, (from, last)));
            }
        }
        Self(rest)
    }
}

/// The blocks that cover exactly these ports, as (first port, leading bits).
pub(super) fn blocks((first, last): Span) -> impl Iterator<Item = (u16, u8)> {
    let end = u32::from(last) + 1;
    let mut next = u32::from(first);
    std::iter::from_fn(move || {
        let left = end.checked_sub(next).filter(|n| *n > 0)?;
        // The greatest block that begins here and doesn't reach past the end.
        let log = next.trailing_zeros().min(left.ilog2()).min(16);
        let block = (u16::try_from(next).ok()?, u8::try_from(16 - log).ok()?);
        next += 1 << log;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_common::verdict::block_mask;
    use proptest::prelude::*;

    fn spans() -> impl Strategy<Value = Spans> {
        let span = (0u16..40, 0u16..6).prop_map(|(a, n)| (a, a + n));
        let edge =
            prop_oneof![4 => span, 1 => Just((0, u16::MAX)), 1 => (65_530u16..=u16::MAX).prop_map(|a| (a, u16::MAX))];
        prop::collection::vec((prop::sample::select(vec![6u8, 17]), edge), 0..6).prop_map(Spans::of)
    }

    fn has(s: &Spans, proto: u8, port: u16) -> bool {
        s.of_protocol(proto).any(|(a, b)| (a..=b).contains(&port))
    }

    proptest! {
        #[test]
        fn subtraction_is_subtraction(a in spans(), b in spans()) {
            let c = a.without(&b);
            for proto in [6, 17] {
                for port in (0..50).chain(65_500..=u16::MAX) {
                    prop_assert_eq!(has(&c, proto, port), has(&a, proto, port) && !has(&b, proto, port), "{}/{}", proto, port);
                }
            }
        }

        #[test]
        fn blocks_cover_exactly_their_span(first: u16, length: u16) {
            let last = first.saturating_add(length);
            let mut next = u32::from(first);
            let mut count = 0;
            for (port, size) in blocks((first, last)) {
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(port & block_mask(size), port);
                next += 1 << (16 - size);
                count += 1;
            }
            prop_assert_eq!(next, u32::from(last) + 1);
            prop_assert!(count <= 30);
        }
    }

    #[test]
    fn the_whole_space_is_one_block() {
        assert_eq!(blocks((0, u16::MAX)).collect::<Vec<_>>(), [(0, 0)]);
        assert_eq!(blocks((443, 443)).collect::<Vec<_>>(), [(443, 16)]);
        assert_eq!(blocks((1, 6)).collect::<Vec<_>>(), [(1, 16), (2, 15), (4, 15), (6, 16)]);
    }
}
