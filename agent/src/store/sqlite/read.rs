//! Reading a window: sums by link, outcome, reason and address, each counted once.
//!
//! Both ends' hooks count. Of one link and outcome, the source's hook is believed where it saw any, else the
//! destination's. A counter without an address also counts what those with one do, so their part is taken off it.

use super::write::meta;
use super::{HOURLY, Open, StoreError, counts_at, day_and_hour, signed, unsigned};
use crate::flows::{self, PeerName};
use crate::history::{Counts, History, Link, Record, Window};
use crate::store::{rest, sum};
use bulkhead_common::Direction;
use rusqlite::params;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// What was seen of one edge.
#[derive(Clone, Copy, Default)]
struct Seen {
    counts: Counts,
    first: u64,
    last: u64,
    hours: u32,
    days: u32,
}

/// An edge's row.
struct Edge {
    link: i64,
    direction: u8,
    outcome: u8,
    reason: u8,
    address: Option<IpAddr>,
}

/// Executables by link and direction.
type Executables = HashMap<(i64, u8), BTreeSet<String>>;

impl Open {
    pub(super) fn history(&mut self, since: u64, until: u64) -> Result<History, StoreError> {
        // One transaction: everything is of one moment.
        let t = self.connection.transaction()?;
        let seen = seen(&t, since, until)?;
        let edges = edges(&t)?;
        let links = links(&t)?;
        let executables = executables(&t)?;
        let names = names(&t)?;

        let mut from_source: BTreeSet<(i64, u8)> = BTreeSet::new();
        let mut by_address: HashMap<(i64, u8, u8, u8), Counts> = HashMap::new();
        for (id, s) in &seen {
            let Some(e) = edges.get(id) else { continue };
            if e.direction == Direction::Egress as u8 {
                from_source.insert((e.link, e.outcome));
            }
            if e.address.is_some() {
                let part = by_address.entry((e.link, e.direction, e.outcome, e.reason)).or_default();
                *part = sum(*part, s.counts);
            }
        }
        let mut records = Vec::new();
        for (id, s) in seen {
            let Some(e) = edges.get(&id) else { continue };
            let Some(link) = links.get(&e.link) else { continue };
            if e.direction != Direction::Egress as u8 && from_source.contains(&(e.link, e.outcome)) {
                continue;
            }
            let own = if e.direction == Direction::Egress as u8 { &link.source } else { &link.destination };
            let mut counts = s.counts;
            if e.address.is_none() {
                let part = by_address.get(&(e.link, e.direction, e.outcome, e.reason)).copied().unwrap_or_default();
                counts = rest(counts, part);
                if counts == Counts::default() {
                    continue;
                }
            }
            let at = |d: Direction| executables.get(&(e.link, d as u8)).cloned().unwrap_or_default();
            records.push(Record {
                link: link.clone(),
                outcome: flows::outcome(e.outcome),
                reason: flows::reason(e.reason),
                address: e.address,
                name: e.address.and_then(|a| names.get(own)?.get(&a).cloned()),
                by_destination: e.direction != Direction::Egress as u8,
                counts,
                first: s.first,
                last: s.last,
                hours: s.hours,
                days: s.days,
                source_executables: at(Direction::Egress),
                destination_executables: at(Direction::Ingress),
            });
        }
        records.sort_by(|a, b| key(a).cmp(&key(b)));
        let window = window(&t, since, until, &records)?;
        Ok(History { window, records, ..History::default() })
    }
}

/// The order of records.
fn key(r: &Record) -> (&Link, &str, &str, Option<IpAddr>) {
    (&r.link, &r.outcome, &r.reason, r.address)
}

/// By whole days where those lie in the window, else by the hour where there are hours.
fn seen(t: &rusqlite::Transaction<'_>, since: u64, until: u64) -> Result<BTreeMap<i64, Seen>, StoreError> {
    let mut all = t.prepare(
        "SELECT edge, hours, first, last, attempts, established, refused, timed_out, bytes_sent, bytes_received,
                packets_sent, packets_received, day
         FROM counts
         WHERE last >= ?1 AND first <= ?2 AND (hour = 24) = (day NOT IN (?3, ?4) OR day < ?5)
         ORDER BY edge, day, hour",
    )?;
    let ends = [since, until].map(|at| signed(day_and_hour(at).0));
    let hourly = meta(t, HOURLY)?.unwrap_or(0);
    let mut rows = all.query(params![signed(since), signed(until), ends[0], ends[1], hourly])?;
    let mut seen: BTreeMap<i64, Seen> = BTreeMap::new();
    let mut current = (i64::MIN, i64::MIN);
    while let Some(row) = rows.next()? {
        let (edge, hours, day): (i64, u32, i64) = (row.get(0)?, row.get(1)?, row.get(12)?);
        let (first, last) = (unsigned(row.get(2)?), unsigned(row.get(3)?));
        let s = seen.entry(edge).or_insert(Seen { first, last, ..Seen::default() });
        s.days += u32::from(current != (edge, day));
        current = (edge, day);
        s.hours += hours.count_ones();
        s.first = s.first.min(first);
        s.last = s.last.max(last);
        s.counts = sum(s.counts, counts_at(row, 4)?);
    }
    Ok(seen)
}

fn edges(t: &rusqlite::Transaction<'_>) -> Result<HashMap<i64, Edge>, StoreError> {
    let mut all = t.prepare("SELECT id, link, direction, outcome, reason, address FROM edges")?;
    let rows = all.query_map([], |r| {
        let address: String = r.get(5)?;
        let edge = Edge {
            link: r.get(1)?,
            direction: r.get(2)?,
            outcome: r.get(3)?,
            reason: r.get(4)?,
            address: address.parse().ok(),
        };
        Ok((r.get(0)?, edge))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn links(t: &rusqlite::Transaction<'_>) -> Result<HashMap<i64, Link>, StoreError> {
    let mut all = t.prepare(
        "SELECT l.id, s.name, s.namespace, d.name, d.namespace, l.protocol, l.port
         FROM links l JOIN peers s ON s.id = l.source JOIN peers d ON d.id = l.destination",
    )?;
    let rows = all.query_map([], |r| {
        let link = Link {
            source: PeerName { id: r.get(1)?, namespace: r.get(2)? },
            destination: PeerName { id: r.get(3)?, namespace: r.get(4)? },
            protocol: r.get(5)?,
            port: r.get(6)?,
        };
        Ok((r.get(0)?, link))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn executables(t: &rusqlite::Transaction<'_>) -> Result<Executables, StoreError> {
    let mut all = t.prepare("SELECT link, direction, path FROM executables")?;
    let mut rows = all.query([])?;
    let mut executables = Executables::new();
    while let Some(row) = rows.next()? {
        executables.entry((row.get(0)?, row.get(1)?)).or_default().insert(row.get(2)?);
    }
    Ok(executables)
}

/// By workload, the latest name by which it asked for each address.
fn names(t: &rusqlite::Transaction<'_>) -> Result<HashMap<PeerName, HashMap<IpAddr, String>>, StoreError> {
    let mut all = t.prepare(
        "SELECT p.name, p.namespace, n.address, n.name FROM names n JOIN peers p ON p.id = n.peer
         ORDER BY n.last, n.name",
    )?;
    let mut rows = all.query([])?;
    let mut names: HashMap<PeerName, HashMap<IpAddr, String>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let workload = PeerName { id: row.get(0)?, namespace: row.get(1)? };
        let address: String = row.get(2)?;
        if let Ok(address) = address.parse() {
            names.entry(workload).or_default().insert(address, row.get(3)?);
        }
    }
    Ok(names)
}

/// The part of the asked time that this store knows of.
fn window(t: &rusqlite::Transaction<'_>, since: u64, until: u64, records: &[Record]) -> Result<Window, StoreError> {
    let mut stretches = t.prepare("SELECT first, last FROM watched ORDER BY first, last")?;
    let mut rows = stretches.query([])?;
    let (mut watched, mut covered, mut begin, mut end) = (0_u64, since, None, 0_u64);
    while let Some(row) = rows.next()? {
        let (first, last) = (unsigned(row.get(0)?), unsigned(row.get(1)?));
        begin.get_or_insert(first);
        end = end.max(last);
        // After a clock that went back two stretches may lie over each other: each moment counts once.
        let (from, to) = (first.max(covered), last.min(until));
        if from < to {
            watched += to - from;
            covered = to;
        }
    }
    let begin = records.iter().map(|r| r.first).chain(begin).min().unwrap_or(since);
    let end = records.iter().map(|r| r.last).max().unwrap_or(0).max(end);
    let from = since.max(begin);
    let unattributed: i64 = t.query_row(
        "SELECT coalesce(sum(count), 0) FROM unattributed
         WHERE (day * 24 + min(hour, 23) + 1) * 3600000 > ?1 AND (day * 24 + hour % 24) * 3600000 <= ?2",
        params![signed(since), signed(until)],
        |r| r.get(0),
    )?;
    Ok(Window { from, to: until.min(end).max(from), watched, unattributed: unsigned(unattributed) })
}
