//! Building an estate: traffic goes in connection by connection and comes out as the history that a store would keep.
//!
//! Everything that is random comes from the seed, so an estate is the same each time.

use crate::estate::{Dependency, Estate, Workload};
use bulkhead::flows::PeerName;
use bulkhead::history::{Counts, History, Link, Record, Window};
use bulkhead::policy::model::protocol_name;
use bulkhead_common::proto;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(crate) const HOUR: u64 = 3_600_000;
pub(crate) const DAY: u64 = 24 * HOUR;
/// When learning begins: a Thursday, midnight.
pub(crate) const START: u64 = 1_767_225_600_000;
/// How many days are learned from; as many follow.
pub(crate) const DAYS: u64 = 14;
const END: u64 = START + DAYS * DAY;

/// When something happens.
#[derive(Clone, Copy)]
pub(crate) enum Rhythm {
    /// So many times each hour.
    Hourly(u64),
    /// So many times each hour from 8 to 18, Monday to Friday.
    Office(u64),
    /// Once every so many hours, at this hour of the first day.
    Every(u64, u64),
    /// So often at one time, in hours from the start.
    At(u64, u64),
}

impl Rhythm {
    /// The hours from the start in which it happens, and how often.
    fn hours(self) -> Vec<(u64, u64)> {
        let all = 0..2 * DAYS * 24;
        match self {
            Self::Hourly(n) => all.map(|h| (h, n)).collect(),
            Self::Office(n) => {
                // The first day is a Thursday: the third and fourth are the weekend.
                let works = |h: &u64| (8..18).contains(&(h % 24)) && ![2, 3].contains(&(h / 24 % 7));
                all.filter(works).map(|h| (h, n)).collect()
            }
            Self::Every(hours, first) => {
                all.filter(|h| *h >= first && (h - first) % hours == 0).map(|h| (h, 1)).collect()
            }
            Self::At(hour, n) => vec![(hour, n)],
        }
    }
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Established,
    Refused,
    TimedOut,
}

/// One end: an identity by its number, a class, or an address of the world with the name it was asked for by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Workload(usize),
    Class(&'static str),
    World(IpAddr, Option<&'static str>),
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: End,
    to: End,
    protocol: u8,
    port: u16,
}

#[derive(Default)]
struct Cell {
    counts: Counts,
    first: u64,
    last: u64,
    hours: BTreeSet<u64>,
    executables: BTreeSet<String>,
}

/// An estate in the making.
pub(crate) struct Builder {
    pub(crate) random: fastrand::Rng,
    workloads: Vec<Workload>,
    truth: BTreeSet<Dependency>,
    seen: BTreeMap<Key, Cell>,
    outside: BTreeMap<Key, Cell>,
}

impl Builder {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            workloads: Vec::new(),
            truth: BTreeSet::new(),
            seen: BTreeMap::new(),
            outside: BTreeMap::new(),
        }
    }

    /// A workload: `namespace/service`.
    pub(crate) fn workload(&mut self, name: &str) -> End {
        let (namespace, service) = name.split_once('/').unwrap_or(("", name));
        let id = match namespace {
            "" => format!("spiffe://example.org/{service}"),
            _ => format!("spiffe://example.org/ns/{namespace}/sa/{service}"),
        };
        self.with_ids(namespace, &[&id])
    }

    /// A workload with these IDs.
    pub(crate) fn with_ids(&mut self, namespace: &str, ids: &[&str]) -> End {
        let ids = ids.iter().map(|id| id.parse().expect("the generator writes good IDs")).collect();
        let workload = Workload { ids, namespace: namespace.to_owned() };
        let known = self.workloads.iter().position(|w| *w == workload);
        End::Workload(known.unwrap_or_else(|| {
            self.workloads.push(workload);
            self.workloads.len() - 1
        }))
    }

    /// Something that must work, and does, in this rhythm.
    pub(crate) fn needs(&mut self, from: &End, to: &End, protocol: u8, port: u16, rhythm: Rhythm) {
        self.needs_of(from, to, protocol, port);
        self.traffic(from, to, protocol, port, rhythm, Fate::Established);
    }

    /// Something that must work, whatever was seen of it.
    pub(crate) fn needs_of(&mut self, from: &End, to: &End, protocol: u8, port: u16) {
        let dependency = Dependency { from: self.id(from), to: self.id(to), protocol: protocol_name(protocol), port };
        self.truth.insert(dependency);
    }

    /// Traffic, needed or not.
    pub(crate) fn traffic(&mut self, from: &End, to: &End, protocol: u8, port: u16, rhythm: Rhythm, fate: Fate) {
        for (hour, times) in rhythm.hours() {
            let time = START + hour * HOUR + self.random.u64(0..HOUR);
            self.connections(from, to, protocol, port, time, times, fate);
        }
    }

    /// So many connections at this time.
    #[expect(clippy::too_many_arguments, reason = "a connection is that much, and only the generator makes them")]
    pub(crate) fn connections(
        &mut self,
        from: &End,
        to: &End,
        protocol: u8,
        port: u16,
        time: u64,
        times: u64,
        fate: Fate,
    ) {
        let executable = format!("/usr/bin/{}", self.id(from).rsplit('/').next().unwrap_or_default());
        let key = Key { from: from.clone(), to: to.clone(), protocol, port };
        let side = if time < END { &mut self.seen } else { &mut self.outside };
        let cell = side.entry(key).or_insert_with(|| Cell { first: time, last: time, ..Cell::default() });
        cell.first = cell.first.min(time);
        cell.last = cell.last.max(time);
        cell.hours.insert(time / HOUR);
        cell.executables.insert(executable);
        let c = &mut cell.counts;
        c.attempts += times;
        c.packets_sent += 4 * times;
        match fate {
            Fate::Established => {
                c.established += times;
                c.packets_received += 4 * times;
                c.bytes_sent += 200 * times;
                c.bytes_received += 800 * times;
            }
            Fate::Refused => c.refused += times,
            Fate::TimedOut => c.timed_out += times,
        }
    }

    /// Datagrams that nobody answers: let through all the same.
    pub(crate) fn datagrams(&mut self, from: &End, to: &End, port: u16, rhythm: Rhythm) {
        for (hour, times) in rhythm.hours() {
            let time = START + hour * HOUR + self.random.u64(0..HOUR);
            self.connections(from, to, proto::UDP, port, time, times, Fate::TimedOut);
            let side = if time < END { &mut self.seen } else { &mut self.outside };
            let key = Key { from: from.clone(), to: to.clone(), protocol: proto::UDP, port };
            if let Some(cell) = side.get_mut(&key) {
                cell.counts.timed_out = 0;
                cell.counts.established = cell.counts.attempts;
            }
        }
    }

    /// An executable that chose its own name, at an existing link's source.
    pub(crate) fn executable(&mut self, name: &str) {
        for cell in self.seen.values_mut() {
            cell.executables.insert(name.to_owned());
        }
    }

    fn id(&self, end: &End) -> String {
        match end {
            End::Workload(n) => self.workloads[*n].ids.first().map(ToString::to_string).unwrap_or_default(),
            End::Class(class) => (*class).to_owned(),
            End::World(..) => "world".to_owned(),
        }
    }

    /// The estate.
    pub(crate) fn finish(self, name: &str) -> Estate {
        let seen = history(&self.workloads, self.seen, START);
        let outside = history(&self.workloads, self.outside, END);
        Estate { name: name.to_owned(), workloads: self.workloads, dependencies: self.truth, seen, outside }
    }
}

fn history(workloads: &[Workload], cells: BTreeMap<Key, Cell>, from: u64) -> History {
    let name = |end: &End| match end {
        End::Workload(n) => bulkhead::judge::name_of(&workloads[*n].identity()),
        End::Class(class) => PeerName { id: (*class).to_owned(), namespace: String::new() },
        End::World(..) => PeerName { id: "world".to_owned(), namespace: String::new() },
    };
    let record = |(key, cell): (Key, Cell)| {
        let world = match (&key.from, &key.to) {
            (End::World(address, dns), _) | (_, End::World(address, dns)) => Some((*address, *dns)),
            _ => None,
        };
        let days: BTreeSet<u64> = cell.hours.iter().map(|h| h / 24).collect();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Record {
            link: Link { source: name(&key.from), destination: name(&key.to), protocol: key.protocol, port: key.port },
            outcome: "allowed".to_owned(),
            reason: "posture".to_owned(),
            address: world.map(|(address, _)| address),
            name: world.and_then(|(_, dns)| dns).map(str::to_owned),
            counts: cell.counts,
            first: cell.first,
            last: cell.last,
            hours: number(cell.hours.len()),
            days: number(days.len()),
            by_destination: false,
            source_executables: cell.executables,
            destination_executables: BTreeSet::new(),
        }
    };
    let mut records: Vec<Record> = cells.into_iter().map(record).collect();
    records.sort_by(|a, b| (&a.link, a.address).cmp(&(&b.link, b.address)));
    let window = Window { from, to: from + DAYS * DAY, watched: DAYS * DAY, unattributed: 0 };
    History { window, records, ..History::default() }
}
