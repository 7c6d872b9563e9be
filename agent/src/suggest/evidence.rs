//! From records to what is known of each link: all outcomes, reasons and addresses of it put together.

use crate::history::{Counts, Record};
use crate::judge::{Cast, Who};
use bulkhead_common::{Class, Outcome, PeerId, Reason, proto};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A link, with both ends numbered; all of the world is one end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Line {
    /// Who opens it.
    pub(super) from: PeerId,
    /// Who is connected to.
    pub(super) to: PeerId,
    /// The IP protocol, as it is judged.
    pub(super) protocol: u8,
    /// The destination's port.
    pub(super) port: u16,
}

impl Line {
    /// Where the links of a source begin, in order.
    pub(super) const fn first_of(from: PeerId) -> Self {
        Self { from, to: PeerId(0), protocol: 0, port: 0 }
    }
}

/// How often, when, and by whom something was seen.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Evidence {
    /// Connections that were established, or datagram flows that were let through.
    pub established: u64,
    /// Connections tried.
    pub attempts: u64,
    /// Of them, answered by a reset.
    pub refused: u64,
    /// Of them, never answered.
    pub timed_out: u64,
    /// When it was first seen, milliseconds since 1970.
    pub first: u64,
    /// When it was last seen.
    pub last: u64,
    /// In how many different hours it was seen, at least.
    pub hours: u32,
    /// On how many different days it was seen, at least.
    pub days: u32,
    /// Packets there and back, where they were counted.
    pub packets: (u64, u64),
    /// Executables that opened it. Any text that a process chose.
    pub source_executables: BTreeSet<String>,
    /// Executables that answered.
    pub destination_executables: BTreeSet<String>,
}

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

impl Evidence {
    /// Of several records it isn't known which hours they share, so the greatest number counts, or the different hours
    /// in which any of them began or ended if those are more.
    pub(super) fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut e = Self { first: u64::MAX, ..Self::default() };
        let (mut hours, mut days) = (BTreeSet::new(), BTreeSet::new());
        for record in records {
            let Counts { attempts, established, refused, timed_out, packets_sent, packets_received, .. } =
                record.counts;
            let add = |sum: &mut u64, n: u64| *sum = sum.saturating_add(n);
            if passes(record) {
                add(&mut e.established, established);
            }
            add(&mut e.attempts, attempts);
            add(&mut e.refused, refused);
            add(&mut e.timed_out, timed_out);
            add(&mut e.packets.0, packets_sent);
            add(&mut e.packets.1, packets_received);
            e.first = e.first.min(record.first);
            e.last = e.last.max(record.last);
            hours.extend([record.first / HOUR, record.last / HOUR]);
            days.extend([record.first / DAY, record.last / DAY]);
            e.hours = e.hours.max(record.hours);
            e.days = e.days.max(record.days);
            e.source_executables.extend(record.source_executables.iter().cloned());
            e.destination_executables.extend(record.destination_executables.iter().cloned());
        }
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        e.hours = e.hours.max(number(hours.len()));
        e.days = e.days.max(number(days.len()));
        e.first = e.first.min(e.last);
        e
    }
}

/// Whether this was let through.
pub(super) fn passes(record: &Record) -> bool {
    Outcome::from_name(&record.outcome).is_some_and(Outcome::passes)
}

/// What was seen of one address of the world, or of one end without an address.
#[derive(Clone, Debug)]
pub(super) struct Sight<'a> {
    pub(super) address: Option<IpAddr>,
    pub(super) records: Vec<&'a Record>,
    pub(super) evidence: Evidence,
}

/// Everything about one link.
#[derive(Clone, Debug)]
pub(super) struct Known<'a> {
    pub(super) evidence: Evidence,
    /// By address of the end in the world; a single one without address where neither end is.
    pub(super) sights: Vec<Sight<'a>>,
}

/// The links of a history, and the records that speak of an end that no rule can speak of.
pub(super) fn gather<'a>(records: &'a [Record], cast: &Cast) -> (BTreeMap<Line, Known<'a>>, Vec<&'a Record>) {
    let mut lines: BTreeMap<Line, BTreeMap<Option<IpAddr>, Vec<&Record>>> = BTreeMap::new();
    let mut nameless = Vec::new();
    for record in records {
        if needs_no_rule(record) {
            continue;
        }
        let (Some(from), Some(to)) = cast.ends(record) else {
            nameless.push(record);
            continue;
        };
        let address = match (from, to) {
            (Who::Address(a), _) | (_, Who::Address(a)) => Some(a),
            _ => None,
        };
        let peer = |who: Who| match who {
            Who::Peer(p) => p,
            Who::Address(_) => Class::World.id(),
        };
        let protocol = proto::judged(record.link.protocol);
        let line = Line { from: peer(from), to: peer(to), protocol, port: record.link.port };
        lines.entry(line).or_default().entry(address).or_default().push(record);
    }
    let known = |sights: BTreeMap<Option<IpAddr>, Vec<&'a Record>>| {
        let evidence = Evidence::of(sights.values().flatten().copied());
        let sight = |(address, records): (_, Vec<&'a Record>)| Sight {
            address,
            evidence: Evidence::of(records.iter().copied()),
            records,
        };
        Known { evidence, sights: sights.into_iter().map(sight).collect() }
    };
    (lines.into_iter().map(|(line, sights)| (line, known(sights))).collect(), nameless)
}

/// A workload's own business within its network namespace, and what built-ins pass.
pub(crate) fn needs_no_rule(record: &Record) -> bool {
    [Reason::SelfTraffic, Reason::BuiltIn].iter().any(|r| r.as_str() == record.reason)
}
