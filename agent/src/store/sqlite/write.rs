//! Taking a batch: the differences to the stored readings, and the readings, in one transaction.

use super::{Open, StoreError, WHOLE_DAY, counts_at, day_and_hour, signed, unsigned};
use crate::flows::PeerName;
use crate::history::{Counts, Link};
use crate::store::{Batch, Bounds, Named, Reading, Sighting, grown, parts};
use bulkhead_common::Addr;
use bulkhead_common::maps::EdgeKey;
use bulkhead_common::outside::has_room;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::collections::HashMap;
use std::net::IpAddr;
use zerocopy::IntoBytes;

/// How many different edges there may be. Counts of further ones are kept without their ends.
const EDGES: u64 = 200_000;
/// How many executables are kept for an end of a link, and for all together.
const EXECUTABLES_OF_ONE: u64 = 16;
const EXECUTABLES: u64 = 50_000;
/// How many names are kept of a workload for one address, and for all together.
const NAMES_OF_ONE: u64 = 4;
const NAMES: u32 = 20_000;
/// The longest text that is kept of a process or a name server, bytes.
const LONGEST: usize = 512;
/// How far apart the clocks may run before the time that was watched is written as a new stretch, milliseconds.
const DRIFT: u64 = 60_000;

/// A counter's key in the store: the kernel's key, and the address and the era if it is about an address.
pub(super) type Key = Vec<u8>;

/// What is known of a counter.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// Its edge; `None`: there was no room for one.
    edge: Option<i64>,
    counts: Counts,
}

fn key_of(reading: &Reading) -> Key {
    let mut key = reading.key.as_bytes().to_vec();
    match reading.address {
        Some(IpAddr::V4(a)) => key.extend(a.to_ipv6_mapped().octets()),
        Some(IpAddr::V6(a)) => key.extend(a.octets()),
        None => return key,
    }
    key.extend(reading.era.to_be_bytes());
    key
}

/// The era of a counter by address.
fn era_of(key: &[u8]) -> Option<u32> {
    let behind = size_of::<EdgeKey>() + size_of::<Addr>();
    Some(u32::from_be_bytes(key.get(behind..)?.try_into().ok()?))
}

impl Open {
    /// Reads back what a former agent stored.
    pub(super) fn read_back(connection: Connection) -> Result<Self, StoreError> {
        let meta = |name: &str| meta(&connection, name);
        let generation = meta("generation")?.unwrap_or(0).cast_unsigned();
        let unattributed = unsigned(meta("unattributed")?.unwrap_or(0));
        let last = meta("last")?.map(unsigned);
        let mut readings = HashMap::new();
        {
            let mut all = connection.prepare(
                "SELECT key, edge, attempts, established, refused, timed_out, bytes_sent, bytes_received,
                        packets_sent, packets_received FROM readings",
            )?;
            let mut rows = all.query([])?;
            while let Some(row) = rows.next()? {
                readings.insert(row.get(0)?, Known { edge: row.get(1)?, counts: counts_at(row, 2)? });
            }
        }
        Ok(Self { connection, generation, readings, era: 0, unattributed, watching: None, last })
    }

    /// Takes a batch, all of it or nothing, and gives how many sightings found no room.
    pub(super) fn record(&mut self, batch: &Batch, bounds: Bounds) -> Result<u64, StoreError> {
        let Batch { generation, at, watched, readings, unattributed, sightings, names, era } = batch;
        let anew = *generation != self.generation;
        let transaction = self.connection.transaction()?;
        if anew {
            transaction.execute("DELETE FROM readings", [])?;
            set_meta(&transaction, "generation", generation.cast_signed())?;
        }
        let mut room = Room::of(&transaction, bounds)?;
        let mut known: Vec<(Key, Known)> = Vec::new();
        let mut lost: HashMap<(u64, u64), u64> = HashMap::new();
        let mut overflow = 0_u64;
        for reading in readings {
            let key = key_of(reading);
            let before = if anew { None } else { self.readings.get(&key).copied() };
            let more = grown(reading.counts, before.map_or_else(Counts::default, |k| k.counts));
            if more == Counts::default() {
                continue;
            }
            let edge = match before.and_then(|k| k.edge) {
                Some(edge) => Some(edge),
                None => edge_of_reading(&transaction, reading, &mut room)?,
            };
            let since = if before.is_some() { reading.last } else { reading.first.min(reading.last) };
            match edge {
                Some(edge) => add(&transaction, edge, more, since, reading.last)?,
                // It isn't lost: the one without an address has it.
                None if reading.address.is_some() => overflow += more.attempts,
                None => *lost.entry(day_and_hour(reading.last)).or_default() += more.attempts,
            }
            let now = Known { edge, counts: reading.counts };
            store_reading(&transaction, &key, now)?;
            known.push((key, now));
        }

        let before = if anew { 0 } else { self.unattributed };
        let more = if *unattributed < before { *unattributed } else { *unattributed - before };
        *lost.entry(day_and_hour(*at)).or_default() += more;
        for ((day, hour), count) in lost.into_iter().filter(|(_, n)| *n > 0) {
            transaction
                .prepare_cached(
                    "INSERT INTO unattributed VALUES (?, ?, ?)
                     ON CONFLICT DO UPDATE SET count = count + excluded.count",
                )?
                .execute(params![signed(day), signed(hour), signed(count)])?;
        }
        set_meta(&transaction, "unattributed", signed(*unattributed))?;

        for sighting in sightings {
            overflow += sight(&transaction, sighting)?;
        }
        for named in names {
            overflow += name_address(&transaction, named, *at)?;
        }
        let over: Vec<Key> = self
            .readings
            .keys()
            .filter(|_| *era != self.era)
            .filter(|key| era_of(key).is_some_and(|of| of.saturating_add(1) < *era))
            .cloned()
            .collect();
        for key in &over {
            transaction.prepare_cached("DELETE FROM readings WHERE key = ?")?.execute([key])?;
        }
        let watching = watch(&transaction, self.watching, *watched, *at)?;
        set_meta(&transaction, "last", signed(*at))?;
        transaction.commit()?;

        // Only what is on disk counts as read.
        if anew {
            self.readings.clear();
            self.generation = *generation;
        }
        for key in over {
            self.readings.remove(&key);
        }
        self.readings.extend(known);
        self.era = *era;
        self.unattributed = *unattributed;
        self.watching = Some(watching);
        self.last = Some(*at);
        Ok(overflow)
    }

    /// Forgets in memory what edges there are: after some were removed.
    pub(super) fn forget_edges(&mut self, gone: impl Fn(i64) -> bool) {
        for known in self.readings.values_mut() {
            if known.edge.is_some_and(&gone) {
                known.edge = None;
            }
        }
    }
}

pub(super) fn meta(t: &Connection, name: &str) -> Result<Option<i64>, StoreError> {
    Ok(t.query_row("SELECT value FROM meta WHERE name = ?", [name], |r| r.get(0)).optional()?)
}

pub(super) fn set_meta(t: &Connection, name: &str, value: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value";
    t.prepare_cached(sql)?.execute(params![name, value])?;
    Ok(())
}

/// How much more there may be.
struct Room {
    edges: u64,
    addresses: u32,
    capacity: u32,
    /// How many addresses each workload has, once somebody needed to know.
    own: Option<HashMap<i64, u32>>,
}

impl Room {
    fn of(t: &Transaction<'_>, bounds: Bounds) -> Result<Self, StoreError> {
        let sql = "SELECT count(*), count(*) FILTER (WHERE address <> '') FROM edges";
        let (edges, addresses) =
            t.prepare_cached(sql)?.query_row([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?)))?;
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self {
            edges: EDGES.saturating_sub(unsigned(edges)),
            addresses: narrow(unsigned(addresses)),
            capacity: narrow(bounds.addresses),
            own: None,
        })
    }

    /// Whether there is one for an edge of this link, and then it is taken.
    fn take(&mut self, t: &Transaction<'_>, link: i64, kind: Kind) -> Result<bool, StoreError> {
        if self.edges == 0 {
            return Ok(false);
        }
        if kind.address.is_some() {
            let workload = workload_of(t, link, kind.direction)?;
            let own = match &mut self.own {
                Some(own) => own,
                None => self.own.insert(addresses_held(t)?),
            };
            let own = own.entry(workload).or_default();
            if !has_room(*own, self.addresses, self.capacity) {
                return Ok(false);
            }
            *own += 1;
            self.addresses += 1;
        }
        self.edges -= 1;
        Ok(true)
    }
}

/// The workload at whose end a link was counted.
fn workload_of(t: &Transaction<'_>, link: i64, direction: u8) -> Result<i64, StoreError> {
    let sql = "SELECT iif(?2 = 0, source, destination) FROM links WHERE id = ?1";
    Ok(t.prepare_cached(sql)?.query_row(params![link, direction], |r| r.get(0))?)
}

fn addresses_held(t: &Transaction<'_>) -> Result<HashMap<i64, u32>, StoreError> {
    let sql = "SELECT iif(e.direction = 0, l.source, l.destination) AS workload, count(*)
               FROM edges e JOIN links l ON l.id = e.link WHERE e.address <> '' GROUP BY workload";
    let mut all = t.prepare_cached(sql)?;
    let rows = all.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn peer(t: &Transaction<'_>, name: &PeerName) -> Result<i64, StoreError> {
    let PeerName { id, namespace } = name;
    let find = "SELECT id FROM peers WHERE name = ? AND namespace = ?";
    if let Some(id) = t.prepare_cached(find)?.query_row(params![id, namespace], |r| r.get(0)).optional()? {
        return Ok(id);
    }
    t.prepare_cached("INSERT INTO peers (name, namespace) VALUES (?, ?)")?.execute(params![id, namespace])?;
    Ok(t.last_insert_rowid())
}

fn link_between(t: &Transaction<'_>, link: &Link) -> Result<i64, StoreError> {
    let Link { source, destination, protocol, port } = link;
    let ends = (peer(t, source)?, peer(t, destination)?, *protocol, *port);
    let find = "SELECT id FROM links WHERE source = ? AND destination = ? AND protocol = ? AND port = ?";
    if let Some(id) = t.prepare_cached(find)?.query_row(ends, |r| r.get(0)).optional()? {
        return Ok(id);
    }
    t.prepare_cached("INSERT INTO links (source, destination, protocol, port) VALUES (?, ?, ?, ?)")?.execute(ends)?;
    Ok(t.last_insert_rowid())
}

/// An edge as the kernel's bytes name it.
#[derive(Clone, Copy)]
struct Kind {
    direction: u8,
    outcome: u8,
    reason: u8,
    address: Option<IpAddr>,
}

/// The edge; `None`: there is no room for another.
fn edge(t: &Transaction<'_>, link: i64, kind: Kind, room: &mut Room) -> Result<Option<i64>, StoreError> {
    let Kind { direction, outcome, reason, address } = kind;
    let text = address.map(|a| a.to_string()).unwrap_or_default();
    let key = params![link, direction, outcome, reason, text];
    let find = "SELECT id FROM edges WHERE link = ? AND direction = ? AND outcome = ? AND reason = ? AND address = ?";
    if let Some(id) = t.prepare_cached(find)?.query_row(key, |r| r.get(0)).optional()? {
        return Ok(Some(id));
    }
    if !room.take(t, link, kind)? {
        return Ok(None);
    }
    let insert = "INSERT INTO edges (link, direction, outcome, reason, address) VALUES (?, ?, ?, ?, ?)";
    t.prepare_cached(insert)?.execute(key)?;
    Ok(Some(t.last_insert_rowid()))
}

fn edge_of_reading(t: &Transaction<'_>, r: &Reading, room: &mut Room) -> Result<Option<i64>, StoreError> {
    let link = Link {
        source: PeerName::clone(&r.source),
        destination: PeerName::clone(&r.destination),
        protocol: r.key.proto,
        port: r.key.port,
    };
    let link = link_between(t, &link)?;
    let kind = Kind { direction: r.key.direction, outcome: r.key.outcome, reason: r.key.reason, address: r.address };
    edge(t, link, kind, room)
}

/// Adds to the hour of `last`, and to its day.
fn add(t: &Transaction<'_>, edge: i64, more: Counts, first: u64, last: u64) -> Result<(), StoreError> {
    let (day, hour) = day_and_hour(last);
    let [a, b, c, d, e, f, g, h] = parts(more).map(signed);
    let (bit, first, last) = (1_i64 << hour, signed(first), signed(last));
    let mut row = t.prepare_cached(
        "INSERT INTO counts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT DO UPDATE SET hours = hours | excluded.hours,
           first = min(first, excluded.first), last = max(last, excluded.last),
           attempts = attempts + excluded.attempts, established = established + excluded.established,
           refused = refused + excluded.refused, timed_out = timed_out + excluded.timed_out,
           bytes_sent = bytes_sent + excluded.bytes_sent, bytes_received = bytes_received + excluded.bytes_received,
           packets_sent = packets_sent + excluded.packets_sent,
           packets_received = packets_received + excluded.packets_received",
    )?;
    for hour in [hour, WHOLE_DAY] {
        row.execute(params![edge, signed(day), signed(hour), bit, first, last, a, b, c, d, e, f, g, h])?;
    }
    Ok(())
}

fn store_reading(t: &Transaction<'_>, key: &Key, known: Known) -> Result<(), StoreError> {
    let [a, b, c, d, e, f, g, h] = parts(known.counts).map(signed);
    t.prepare_cached("INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?
        .execute(params![key, known.edge, a, b, c, d, e, f, g, h])?;
    Ok(())
}

/// Keeps what an event told; 1 if there was no room for it.
fn sight(t: &Transaction<'_>, sighting: &Sighting) -> Result<u64, StoreError> {
    let Sighting { link, direction, executable, last } = sighting;
    let link = link_between(t, link)?;
    let path = cut(executable);
    if path.is_empty() {
        return Ok(0);
    }
    let update = "UPDATE executables SET last = max(last, ?4) WHERE link = ?1 AND direction = ?2 AND path = ?3";
    let row = params![link, *direction as u8, path, signed(*last)];
    if t.prepare_cached(update)?.execute(row)? > 0 {
        return Ok(0);
    }
    let sql = "SELECT count(*), (SELECT count(*) FROM executables) FROM executables WHERE link = ? AND direction = ?";
    let (own, all): (i64, i64) =
        t.prepare_cached(sql)?.query_row(params![link, *direction as u8], |r| Ok((r.get(0)?, r.get(1)?)))?;
    if unsigned(own) >= EXECUTABLES_OF_ONE || unsigned(all) >= EXECUTABLES {
        return Ok(1);
    }
    t.prepare_cached("INSERT INTO executables VALUES (?1, ?2, ?3, ?4)")?.execute(row)?;
    Ok(0)
}

/// Keeps a name; 1 if there was no room for it, or another one had to make room.
fn name_address(t: &Transaction<'_>, named: &Named, at: u64) -> Result<u64, StoreError> {
    let workload = peer(t, &named.workload)?;
    let (address, name) = (named.address.to_string(), cut(&named.name));
    let row = params![workload, address, name, signed(at)];
    let update = "UPDATE names SET last = max(last, ?4) WHERE peer = ?1 AND address = ?2 AND name = ?3";
    if t.prepare_cached(update)?.execute(row)? > 0 {
        return Ok(0);
    }
    let sql = "SELECT count(*) FILTER (WHERE address = ?2), count(*), (SELECT count(*) FROM names)
               FROM names WHERE peer = ?1";
    let (same, own, all): (i64, u32, u32) =
        t.prepare_cached(sql)?.query_row(params![workload, address], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
    let mut overflow = 0;
    if unsigned(same) >= NAMES_OF_ONE {
        // The latest say most.
        let oldest = "DELETE FROM names WHERE peer = ?1 AND address = ?2 AND name =
                      (SELECT name FROM names WHERE peer = ?1 AND address = ?2 ORDER BY last, name LIMIT 1)";
        t.prepare_cached(oldest)?.execute(params![workload, address])?;
        overflow = 1;
    } else if !has_room(own, all, NAMES) {
        return Ok(1);
    }
    t.prepare_cached("INSERT INTO names VALUES (?1, ?2, ?3, ?4)")?.execute(row)?;
    Ok(overflow)
}

/// Writes down until when an agent has been counting, and gives the row of that stretch.
fn watch(t: &Transaction<'_>, row: Option<i64>, watched: Option<u64>, at: u64) -> Result<i64, StoreError> {
    let passed = watched.unwrap_or(0);
    if let Some((row, passed)) = row.zip(watched) {
        let last: Option<i64> =
            t.prepare_cached("SELECT last FROM watched WHERE id = ?")?.query_row([row], |r| r.get(0)).optional()?;
        // Goes on, unless the wall clock jumped.
        if last.is_some_and(|last| unsigned(last).saturating_add(passed).abs_diff(at) <= DRIFT) {
            t.prepare_cached("UPDATE watched SET last = max(last, ?) WHERE id = ?")?
                .execute(params![signed(at), row])?;
            return Ok(row);
        }
    }
    t.prepare_cached("INSERT INTO watched (first, last) VALUES (?, ?)")?
        .execute(params![signed(at.saturating_sub(passed)), signed(at)])?;
    Ok(t.last_insert_rowid())
}

/// The beginning of a text that a stranger chose.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "é".repeat(LONGEST);
        assert_eq!(cut(&long).len(), LONGEST);
    }
}
