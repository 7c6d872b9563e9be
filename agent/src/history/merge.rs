//! Several nodes' histories as one, and Services as those who answer. Pure.
//!
//! A connection inside the cluster is seen twice, at its source's node and at its destination's, and the source's counts:
//! only there it is known under the Service's address that was asked for. The destination's is left where nobody told of
//! the source: peers without an identity, and nodes that couldn't be asked.

use super::{Backend, History, Link, Owned, Record, Service, Window};
use crate::flows::PeerName;
use crate::identity::{SCHEME, SERVICE};
use crate::store::sum;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

impl History {
    /// What all of them saw, each connection once.
    pub fn merged(all: impl IntoIterator<Item = Self>) -> Self {
        let mut windows: Vec<Window> = Vec::new();
        let mut records: Vec<Record> = Vec::new();
        let mut services: BTreeMap<(PeerName, u8, u16), BTreeSet<Backend>> = BTreeMap::new();
        let mut owners: BTreeMap<PeerName, BTreeSet<String>> = BTreeMap::new();
        for history in all {
            for o in history.owners {
                owners.entry(o.peer).or_default().extend(o.owners);
            }
            windows.push(history.window);
            records.extend(history.records);
            for s in history.services {
                services.entry((s.name, s.protocol, s.port)).or_default().extend(s.backends);
            }
        }
        let told: BTreeSet<PeerName> = records
            .iter()
            .filter(|r| !r.by_destination && r.link.source.id.starts_with(SCHEME))
            .map(|r| r.link.source.clone())
            .collect();
        records.retain(|r| !(r.by_destination && told.contains(&r.link.source)));
        let window = Window {
            from: windows.iter().map(|w| w.from).min().unwrap_or(0),
            to: windows.iter().map(|w| w.to).max().unwrap_or(0),
            // What somebody didn't watch, nobody knows.
            watched: windows.iter().map(|w| w.watched).min().unwrap_or(0),
            unattributed: windows.iter().map(|w| w.unattributed).fold(0, u64::saturating_add),
        };
        let services = services
            .into_iter()
            .map(|((name, protocol, port), backends)| Service { name, protocol, port, backends })
            .collect();
        let owners = owners.into_iter().map(|(peer, owners)| Owned { peer, owners }).collect();
        Self { window, records: settled(records), services, owners }
    }

    /// For people: a Service at which one alone answers is that one, at its own port. Others stay Services.
    #[must_use]
    pub fn with_lone_backends(self) -> Self {
        self.with_backends(1)
    }

    /// For rules, which can't name a Service: a connection to it is one to each that may answer, since all of them must be
    /// allowed.
    #[must_use]
    pub fn with_all_backends(self) -> Self {
        self.with_backends(usize::MAX)
    }

    fn with_backends(mut self, most: usize) -> Self {
        let services: BTreeMap<(&PeerName, u8, u16), &BTreeSet<Backend>> =
            self.services.iter().map(|s| ((&s.name, s.protocol, s.port), &s.backends)).collect();
        let mut records = Vec::new();
        for record in std::mem::take(&mut self.records) {
            let link = &record.link;
            let behind = services.get(&(&link.destination, link.protocol, link.port)).copied();
            let known = |all: &&BTreeSet<Backend>| {
                (1..=most).contains(&all.len()) && all.iter().all(|b| b.peer.id.starts_with(SCHEME))
            };
            match behind.filter(known).filter(|_| link.destination.id.starts_with(SERVICE)) {
                None => records.push(record),
                Some(all) => records.extend(all.iter().map(|b| Record {
                    link: Link { destination: b.peer.clone(), port: b.port, ..link.clone() },
                    ..record.clone()
                })),
            }
        }
        self.records = settled(records);
        self
    }
}

/// Each connection once: of a link with one outcome, what the source told, and else what the destination did. Records of
/// the same are added up; of several it isn't known which hours they share, so the greatest number counts.
fn settled(records: Vec<Record>) -> Vec<Record> {
    let told: BTreeSet<(Link, String)> =
        records.iter().filter(|r| !r.by_destination).map(|r| (r.link.clone(), r.outcome.clone())).collect();
    let mut all: BTreeMap<(Link, String, String, Option<IpAddr>), Record> = BTreeMap::new();
    for r in records {
        let key = (r.link.clone(), r.outcome.clone());
        if r.by_destination && told.contains(&key) {
            continue;
        }
        let key = (key.0, key.1, r.reason.clone(), r.address);
        match all.get_mut(&key) {
            None => {
                all.insert(key, r);
            }
            Some(sofar) => {
                sofar.counts = sum(sofar.counts, r.counts);
                sofar.first = sofar.first.min(r.first);
                sofar.last = sofar.last.max(r.last);
                sofar.hours = sofar.hours.max(r.hours);
                sofar.days = sofar.days.max(r.days);
                sofar.name = sofar.name.take().or(r.name);
                sofar.source_executables.extend(r.source_executables);
                sofar.destination_executables.extend(r.destination_executables);
            }
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::super::Counts;
    use super::*;
    use proptest::prelude::*;

    fn name(id: &str) -> PeerName {
        PeerName { id: id.to_owned(), namespace: "shop".to_owned() }
    }

    fn record(from: &str, to: &str, port: u16, attempts: u64, by_destination: bool) -> Record {
        Record {
            link: Link { source: name(from), destination: name(to), protocol: 6, port },
            outcome: "allowed".to_owned(),
            reason: "posture".to_owned(),
            address: None,
            name: None,
            by_destination,
            counts: Counts { attempts, ..Counts::default() },
            first: 10,
            last: 20,
            hours: 1,
            days: 1,
            source_executables: BTreeSet::new(),
            destination_executables: BTreeSet::new(),
        }
    }

    fn history(records: Vec<Record>) -> History {
        let window = Window { from: 1, to: 5, watched: 4, unattributed: 1 };
        History { window, records, ..History::default() }
    }

    fn service(backends: &[(&str, u16)]) -> Service {
        let backends = backends.iter().map(|(id, port)| Backend { peer: name(id), port: *port }).collect();
        Service { name: name("service shop/db:sql"), protocol: 6, port: 80, backends }
    }

    fn told(h: &History) -> Vec<(&str, &str, u16, u64)> {
        let one = |r: &'_ Record| (r.link.port, r.counts.attempts);
        h.records
            .iter()
            .map(|r| (r.link.source.id.as_str(), r.link.destination.id.as_str(), one(r).0, one(r).1))
            .collect()
    }

    const WEB: &str = "spiffe://t/web";
    const DB: &str = "spiffe://t/db";

    #[test]
    fn each_connection_is_counted_by_its_sources_node() {
        let first = history(vec![record(WEB, DB, 80, 3, false)]);
        let second = history(vec![
            record(WEB, DB, 80, 3, true),
            record(WEB, DB, 80, 4, false),
            record("spiffe://t/not-asked", DB, 80, 5, true),
            record("world", DB, 80, 6, true),
        ]);
        let all = History::merged([first, second]);
        let expected = [("spiffe://t/not-asked", DB, 80, 5), (WEB, DB, 80, 7), ("world", DB, 80, 6)];
        assert_eq!(told(&all), expected);
        assert_eq!((all.window.watched, all.window.unattributed), (4, 2));
    }

    #[test]
    fn a_service_with_one_backend_is_that_backend_and_isnt_counted_twice() {
        let sql = "service shop/db:sql";
        let mut h = history(vec![record(WEB, sql, 80, 3, false), record(WEB, DB, 8080, 3, true)]);
        h.services = vec![service(&[(DB, 8080)])];
        assert_eq!(told(&h.clone().with_lone_backends()), [(WEB, DB, 8080, 3)]);
        h.services = vec![service(&[(DB, 8080), ("spiffe://t/db2", 8080)])];
        assert_eq!(told(&h.clone().with_lone_backends()), [(WEB, sql, 80, 3), (WEB, DB, 8080, 3)]);
        assert_eq!(told(&h.clone().with_all_backends()), [(WEB, DB, 8080, 3), (WEB, "spiffe://t/db2", 8080, 3)]);
        // Nobody answers, or somebody without an identity: no rule may come of that.
        for backends in [&[][..], &[(DB, 8080), ("world", 8080)][..]] {
            h.services = vec![service(backends)];
            assert_eq!(told(&h.clone().with_all_backends()).len(), 2);
            assert_eq!(h.clone().with_all_backends().records[0].link.destination.id, sql);
        }
    }

    proptest! {
        /// However connections fall on nodes: what sources count adds up, and the order of nodes plays no part.
        #[test]
        fn nothing_is_lost_or_doubled(made in proptest::collection::vec((0usize..3, 0usize..3, 0usize..3, 1u64..9), 1..30)) {
            let id = |n: usize| ["spiffe://t/a", "spiffe://t/b", "spiffe://t/c"][n];
            let mut nodes = vec![Vec::new(), Vec::new(), Vec::new()];
            // Who lives where: each identity on its own node. Each side tells.
            for (from, to, port, n) in &made {
                let port = u16::try_from(*port).expect("small");
                nodes[*from].push(record(id(*from), id(*to), port, *n, false));
                if from != to {
                    nodes[*to].push(record(id(*from), id(*to), port, *n, true));
                }
            }
            let all: Vec<History> = nodes.into_iter().map(|records| History { records: settled(records), ..History::default() }).collect();
            let sum = |h: &History| h.records.iter().map(|r| r.counts.attempts).sum::<u64>();
            let merged = History::merged(all.clone());
            prop_assert_eq!(sum(&merged), made.iter().map(|m| m.3).sum::<u64>());
            prop_assert_eq!(History::merged(all.into_iter().rev()), merged.clone());
            prop_assert_eq!(History::merged([merged.clone()]), merged);
        }
    }
}
