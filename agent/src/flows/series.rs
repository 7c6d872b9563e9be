//! Refused connections, as series of a bounded number.
//!
//! The first so many combinations of labels get a series of their own and keep it; what comes later is counted in a
//! series whose source and destination read `overflow`. So no series ever shrinks, and sums stay exact.

use super::{Edge, PeerName};
use std::collections::BTreeMap;

/// What tells one series from another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Labels {
    /// Who opened it.
    pub source: PeerName,
    /// Who was connected to.
    pub destination: PeerName,
    /// Which end's hook counted it.
    pub direction: String,
    /// What was decided.
    pub outcome: String,
    /// Why.
    pub reason: String,
}

/// The series.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Series {
    limit: usize,
    own: usize,
    counts: BTreeMap<Labels, u64>,
}

/// What the source and destination of the overflow series read.
pub const OVERFLOW: &str = "overflow";

impl Series {
    /// At most so many series of their own.
    pub const fn new(limit: usize) -> Self {
        Self { limit, own: 0, counts: BTreeMap::new() }
    }

    /// Counts.
    pub fn add(&mut self, edge: &Edge, more: u64) {
        let Edge { source, destination, port: _, protocol: _, direction, outcome, reason } = edge;
        let mut labels = Labels {
            source: source.clone(),
            destination: destination.clone(),
            direction: direction.clone(),
            outcome: outcome.clone(),
            reason: reason.clone(),
        };
        if !self.counts.contains_key(&labels) {
            if self.own < self.limit {
                self.own += 1;
            } else {
                labels.source = PeerName { id: OVERFLOW.to_owned(), namespace: String::new() };
                labels.destination = labels.source.clone();
            }
        }
        let count = self.counts.entry(labels).or_default();
        *count = count.saturating_add(more);
    }

    /// Every series.
    pub fn iter(&self) -> impl Iterator<Item = (&Labels, u64)> {
        self.counts.iter().map(|(l, n)| (l, *n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(n: u32) -> Edge {
        let name = |id: String| PeerName { id, namespace: String::new() };
        Edge {
            source: name(format!("s{n}")),
            destination: name("d".to_owned()),
            port: 1,
            protocol: 6,
            direction: "egress".to_owned(),
            outcome: "denied".to_owned(),
            reason: "deny-rule".to_owned(),
        }
    }

    #[test]
    fn late_comers_share_a_series_and_the_sum_is_exact() {
        let mut series = Series::new(2);
        for round in 0..3 {
            for n in 0..10 {
                series.add(&edge(n), n.into());
            }
            let sum: u64 = series.iter().map(|(_, n)| n).sum();
            assert_eq!(sum, 45 * (round + 1));
        }
        let names: Vec<_> = series.iter().map(|(l, n)| (l.source.id.as_str(), n)).collect();
        assert_eq!(names, [(OVERFLOW, 3 * 44), ("s0", 0), ("s1", 3)]);
    }
}
