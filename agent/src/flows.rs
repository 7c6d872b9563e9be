//! Counters turned into edges: who talked to whom, on which port, and what was decided.
//!
//! The kernel's counters only grow, so an edge's count is what was last read, and what happened since is the
//! difference to the reading before. A counter that shrank belongs to a new set of maps: then its whole value is new.
//!
//! Pure: time comes in with each reading.

pub mod outside;
pub mod series;

use crate::identity::Identity;
use bulkhead_common::maps::{EdgeKey, Traffic};
use bulkhead_common::outcome::REASONS;
use bulkhead_common::{Direction, Outcome, PeerId, Reason};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of a peer, as it stands in tables, metrics and logs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct PeerName {
    /// The SPIFFE IDs (with `+` between several), or the name of the class.
    pub id: String,
    /// The namespace, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

impl PeerName {
    /// The name of a number. `identity` knows the identities, `cidr` the parts of the world that rules name.
    pub fn of<'a>(
        peer: PeerId,
        identity: impl FnOnce(PeerId) -> Option<&'a Identity>,
        cidr: impl FnOnce(PeerId) -> Option<String>,
    ) -> Self {
        let plain = |id: String| Self { id, namespace: String::new() };
        if let Some(class) = peer.class() {
            return plain(class.as_str().to_owned());
        }
        match peer {
            PeerId::UNKNOWN_WORKLOAD => return plain("unknown-workload".to_owned()),
            // Of a raw socket, it isn't known to whom it will send.
            PeerId::ANY_WORKLOAD => return plain("any".to_owned()),
            _ => {}
        }
        if peer.is_cidr() {
            return plain(cidr(peer).unwrap_or_else(|| "world".to_owned()));
        }
        match identity(peer) {
            // A Service's namespace stands before its name.
            Some(i) if i.ids.is_empty() => {
                let namespace = i.namespace.split_once('/').map_or("", |(namespace, _)| namespace);
                Self { id: i.to_string(), namespace: namespace.to_owned() }
            }
            Some(i) => Self { id: i.to_string(), namespace: i.namespace.clone() },
            None => plain(format!("identity-{}", peer.0)),
        }
    }
}

/// One kind of event between two peers, by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Edge {
    /// Who opened it.
    pub source: PeerName,
    /// Who was connected to.
    pub destination: PeerName,
    /// The destination's port; 0 for protocols without ports.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// `egress` or `ingress`: which end's hook counted it.
    pub direction: String,
    /// `allowed`, `would-deny`, `would-allow` or `denied`.
    pub outcome: String,
    /// Why.
    pub reason: String,
}

/// How often, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    /// Since the counters began.
    pub total: u64,
    /// When it was first read, milliseconds since 1970.
    pub first: u64,
    /// When it last grew, milliseconds since 1970.
    pub last: u64,
}

/// The edges that were ever read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Edges {
    readings: BTreeMap<EdgeKey, Count>,
    traffic: BTreeMap<EdgeKey, Traffic>,
    overflow: BTreeMap<(u8, u8, u8), u64>,
    lost_events: u64,
    without_address: u64,
    lost_answers: u64,
    without_place: u64,
}

impl Edges {
    /// Takes a reading of the counters and gives what happened since the last one.
    pub fn fold(&mut self, readings: &[(EdgeKey, u64)], now: u64) -> Vec<(EdgeKey, u64)> {
        let mut grown = Vec::new();
        for (key, total) in readings {
            let count = self.readings.entry(*key).or_insert(Count { total: 0, first: now, last: now });
            let more = if *total < count.total { *total } else { *total - count.total };
            count.total = *total;
            if more > 0 {
                count.last = now;
                grown.push((*key, more));
            }
        }
        grown
    }

    /// Takes a reading of what became of TCP connections. Read it before the counters, so that no more of them are
    /// established than were tried.
    pub fn fold_traffic(&mut self, readings: Vec<(EdgeKey, Traffic)>) {
        self.traffic.extend(readings);
    }

    /// What became of an edge's TCP connections, since the counters began.
    pub fn traffic(&self, key: &EdgeKey) -> Traffic {
        self.traffic.get(key).copied().unwrap_or_default()
    }

    /// Takes a reading of the totals: lost events, and what found no room among the edges.
    pub fn fold_totals(&mut self, totals: &[u64]) {
        use bulkhead_common::maps::totals;
        let at = |i: u32| usize::try_from(i).ok().and_then(|i| totals.get(i)).copied().unwrap_or(0);
        self.lost_events = at(totals::LOST_EVENTS);
        self.without_address = at(totals::OUTSIDE);
        self.lost_answers = at(totals::LOST_ANSWERS);
        self.without_place = at(totals::WITHOUT_PLACE);
        for d in Direction::ALL {
            for o in Outcome::ALL {
                for r in (0..REASONS).filter_map(|r| u8::try_from(r).ok().and_then(Reason::from_u8)) {
                    let n = at(totals::overflow(*d, *o, r));
                    if n > 0 {
                        self.overflow.insert((*d as u8, *o as u8, r as u8), n);
                    }
                }
            }
        }
    }

    /// Every edge, by name. Different numbers of one name (of a replaced set of maps) are added up.
    pub fn named(&self, mut name: impl FnMut(PeerId) -> PeerName) -> BTreeMap<Edge, Count> {
        let mut all: BTreeMap<Edge, Count> = BTreeMap::new();
        for (key, count) in &self.readings {
            let edge = edge(key, &mut name);
            all.entry(edge)
                .and_modify(|c| {
                    c.total = c.total.saturating_add(count.total);
                    c.first = c.first.min(count.first);
                    c.last = c.last.max(count.last);
                })
                .or_insert(*count);
        }
        all
    }

    /// What one counter stood at when it was last read.
    pub fn count(&self, key: &EdgeKey) -> Option<&Count> {
        self.readings.get(key)
    }

    /// What each counter stood at when it was last read.
    pub fn readings(&self) -> impl Iterator<Item = (&EdgeKey, &Count)> {
        self.readings.iter()
    }

    /// Counts that found no room: exact in sum, without the peers. By (direction, outcome, reason).
    pub const fn overflow(&self) -> &BTreeMap<(u8, u8, u8), u64> {
        &self.overflow
    }

    /// How many events the kernel had no room to send.
    pub const fn lost_events(&self) -> u64 {
        self.lost_events
    }

    /// How many DNS answers the kernel didn't tell: too many in a second, or no room.
    pub const fn lost_answers(&self) -> u64 {
        self.lost_answers
    }

    /// How many sockets found their place in the table taken, so that their state was allocated.
    pub const fn without_place(&self) -> u64 {
        self.without_place
    }

    /// How often a peer outside was counted without its address, for want of room.
    pub const fn without_address(&self) -> u64 {
        self.without_address
    }

    /// Every count, by (direction, outcome).
    pub fn totals(&self) -> impl Iterator<Item = ((u8, u8), u64)> {
        let attributed = self.readings.iter().map(|(k, c)| ((k.direction, k.outcome), c.total));
        attributed.chain(self.overflow.iter().map(|((d, o, _), n)| ((*d, *o), *n)))
    }

    /// How many edges there are.
    pub fn len(&self) -> usize {
        self.readings.len()
    }

    /// Whether nothing was ever read.
    pub fn is_empty(&self) -> bool {
        self.readings.is_empty()
    }
}

/// A key with names.
pub fn edge(key: &EdgeKey, mut name: impl FnMut(PeerId) -> PeerName) -> Edge {
    Edge {
        source: name(PeerId(key.src)),
        destination: name(PeerId(key.dst)),
        port: key.port,
        protocol: key.proto,
        direction: direction(key.direction),
        outcome: outcome(key.outcome),
        reason: reason(key.reason),
    }
}

/// The name of a direction's byte.
pub fn direction(n: u8) -> String {
    Direction::from_u8(n).map_or_else(|| format!("direction-{n}"), |d| d.as_str().to_owned())
}

/// The name of an outcome's byte.
pub fn outcome(n: u8) -> String {
    Outcome::from_u8(n).map_or_else(|| format!("outcome-{n}"), |o| o.as_str().to_owned())
}

/// The name of a reason's byte.
pub fn reason(n: u8) -> String {
    Reason::from_u8(n).map_or_else(|| format!("reason-{n}"), |r| r.as_str().to_owned())
}

/// The name of an IP protocol, or its number.
pub fn protocol(n: u8) -> String {
    use bulkhead_common::proto;
    match n {
        proto::ICMP => "icmp".to_owned(),
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::UDPLITE => "udplite".to_owned(),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(src: u32, reason: Reason) -> EdgeKey {
        EdgeKey { src, dst: 7, port: 80, proto: 6, outcome: 3, reason: reason as u8, ..EdgeKey::default() }
    }

    proptest! {
        /// However readings fall between the increments, the differences add up to the counters.
        #[test]
        fn differences_add_up(steps in proptest::collection::vec((0u32..4, 0u64..1000, any::<bool>()), 1..60)) {
            let (mut edges, mut kernel, mut sum) = (Edges::default(), BTreeMap::new(), BTreeMap::new());
            let mut read = |edges: &mut Edges, kernel: &BTreeMap<EdgeKey, u64>| {
                let all: Vec<_> = kernel.iter().map(|(k, n)| (*k, *n)).collect();
                for (k, n) in edges.fold(&all, 1) {
                    *sum.entry(k).or_insert(0) += n;
                }
            };
            for (src, more, reading) in steps {
                *kernel.entry(key(src, Reason::DenyRule)).or_insert(0) += more;
                if reading {
                    read(&mut edges, &kernel);
                }
            }
            read(&mut edges, &kernel);
            kernel.retain(|_, n| *n > 0);
            prop_assert_eq!(kernel, sum);
        }
    }

    #[test]
    fn times_are_of_the_first_sight_and_the_last_growth() {
        let k = key(256, Reason::DenyRule);
        let mut edges = Edges::default();
        edges.fold(&[(k, 2)], 10);
        edges.fold(&[(k, 2)], 20);
        edges.fold(&[(k, 5)], 30);
        edges.fold(&[(k, 5)], 40);
        let named = edges.named(|p| PeerName::of(p, |_| None, |_| None));
        let (edge, count) = named.first_key_value().expect("one");
        assert_eq!(*count, Count { total: 5, first: 10, last: 30 });
        assert_eq!((edge.source.id.as_str(), edge.destination.id.as_str()), ("identity-256", "world"));
        assert_eq!((edge.outcome.as_str(), edge.reason.as_str()), ("denied", "deny-rule"));
    }

    #[test]
    fn a_new_set_of_maps_begins_at_nothing() {
        let k = key(256, Reason::DenyRule);
        let mut edges = Edges::default();
        edges.fold(&[(k, 9)], 1);
        assert_eq!(edges.fold(&[(k, 4)], 2), [(k, 4)]);
    }

    #[test]
    fn what_found_no_room_is_kept_by_outcome() {
        use bulkhead_common::maps::totals;
        let mut all = vec![0; usize::try_from(totals::LEN).expect("small")];
        let i = totals::overflow(Direction::Ingress, Outcome::Denied, Reason::NoIngressRule);
        all[usize::try_from(i).expect("small")] = 3;
        all[0] = 8;
        let mut edges = Edges::default();
        edges.fold_totals(&all);
        assert_eq!(edges.lost_events(), 8);
        assert_eq!(edges.overflow().iter().collect::<Vec<_>>(), [(&(1, 3, 17), &3)]);
    }
}
