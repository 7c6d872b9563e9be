//! Taking a batch: the differences to the stored readings, and the readings, in one transaction.

use super::{Open, StoreError, WHOLE_DAY, counts_at, day_and_hour, signed, unsigned};
use crate::flows::PeerName;
use crate::history::{Counts, Link};
use crate::store::{Batch, Bounds, Reading, Sighting, grown, parts};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::collections::HashMap;
use std::net::IpAddr;
use zerocopy::IntoBytes;

/// How many different edges there may be. Counts of further ones are kept without their ends.
const EDGES: u64 = 200_000;
/// How many executables are kept for an end of a link, and for all together.
const EXECUTABLES_OF_ONE: u64 = 16;
const EXECUTABLES: u64 = 50_000;
/// How many names are kept for an address, and for all together.
const NAMES_OF_ONE: u64 = 4;
const NAMES: u64 = 20_000;
/// The longest text that is kept of a process or a name server, bytes.
const LONGEST: usize = 512;
/// How far apart the clocks may run before the time that was watched is written as a new stretch, milliseconds.
const DRIFT: u64 = 60_000;

/// A counter's key in the store: the kernel's key, and the address if it is about one.
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
        None => {}
    }
    key
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
        Ok(Self { connection, generation, readings, unattributed, watching: None, last })
    }

    /// Takes a batch, all of it or nothing, and gives how many sightings found no room.
    pub(super) fn record(&mut self, batch: &Batch, bounds: Bounds) -> Result<u64, StoreError> {
        let Batch { generation, at, watched, readings, unattributed, sightings, names } = batch;
        let anew = *generation != self.generation;
        let transaction = self.connection.transaction()?;
        if anew {
            transaction.execute("DELETE FROM readings", [])?;
            set_meta(&transaction, "generation", generation.cast_signed())?;
        }
        let mut room = Room::of(&transaction, bounds)?;
        let mut known: Vec<(Key, Known)> = Vec::new();
        let mut lost: HashMap<(u64, u64), u64> = HashMap::new();
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

        let mut overflow = 0_u64;
        for sighting in sightings {
            overflow += sight(&transaction, sighting, &mut room)?;
        }
        for (address, name) in names {
            overflow += name_address(&transaction, *address, name, *at)?;
        }
        let watching = watch(&transaction, self.watching, *watched, *at)?;
        set_meta(&transaction, "last", signed(*at))?;
        transaction.commit()?;

        // Only what is on disk counts as read.
        if anew {
            self.readings.clear();
            self.generation = *generation;
        }
        self.readings.extend(known);
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
    addresses: u64,
}

impl Room {
    fn of(t: &Transaction<'_>, bounds: Bounds) -> Result<Self, StoreError> {
        let sql = "SELECT count(*), count(*) FILTER (WHERE address <> '') FROM edges";
        let (edges, addresses) =
            t.prepare_cached(sql)?.query_row([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?)))?;
        Ok(Self {
            edges: EDGES.saturating_sub(unsigned(edges)),
            addresses: bounds.addresses.saturating_sub(unsigned(addresses)),
        })
    }
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
    if room.edges == 0 || (address.is_some() && room.addresses == 0) {
        return Ok(None);
    }
    room.edges -= 1;
    room.addresses -= u64::from(address.is_some());
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

/// Keeps what an event told; 1 if there was no room for some of it.
fn sight(t: &Transaction<'_>, sighting: &Sighting, room: &mut Room) -> Result<u64, StoreError> {
    let Sighting { link, direction, outcome, reason, executable, address, times, last } = sighting;
    let link = link_between(t, link)?;
    let mut overflow = 0;
    if let Some(path) = executable.as_ref().filter(|p| !p.is_empty()) {
        let path = cut(path);
        let update = "UPDATE executables SET last = max(last, ?4) WHERE link = ?1 AND direction = ?2 AND path = ?3";
        let row = params![link, *direction as u8, path, signed(*last)];
        if t.prepare_cached(update)?.execute(row)? == 0 {
            let sql = "SELECT count(*), (SELECT count(*) FROM executables) FROM executables
                       WHERE link = ? AND direction = ?";
            let (own, all): (i64, i64) =
                t.prepare_cached(sql)?.query_row(params![link, *direction as u8], |r| Ok((r.get(0)?, r.get(1)?)))?;
            if unsigned(own) < EXECUTABLES_OF_ONE && unsigned(all) < EXECUTABLES {
                t.prepare_cached("INSERT INTO executables VALUES (?1, ?2, ?3, ?4)")?.execute(row)?;
            } else {
                overflow = 1;
            }
        }
    }
    if let Some(address) = address {
        let kind = Kind {
            direction: *direction as u8,
            outcome: *outcome as u8,
            reason: *reason as u8,
            address: Some(*address),
        };
        match edge(t, link, kind, room)? {
            Some(edge) => add(t, edge, Counts { attempts: *times, ..Counts::default() }, *last, *last)?,
            None => overflow = 1,
        }
    }
    Ok(overflow)
}

fn name_address(t: &Transaction<'_>, address: IpAddr, name: &str, at: u64) -> Result<u64, StoreError> {
    let (address, name) = (address.to_string(), cut(name));
    let row = params![address, name, signed(at)];
    let update = "UPDATE names SET last = max(last, ?3) WHERE address = ?1 AND name = ?2";
    if t.prepare_cached(update)?.execute(row)? > 0 {
        return Ok(0);
    }
    let sql = "SELECT count(*), (SELECT count(*) FROM names) FROM names WHERE address = ?";
    let (own, all): (i64, i64) = t.prepare_cached(sql)?.query_row([&address], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let mut overflow = 0;
    if unsigned(own) >= NAMES_OF_ONE {
        // The latest say most.
        let oldest = "DELETE FROM names WHERE address = ?1 AND name =
                      (SELECT name FROM names WHERE address = ?1 ORDER BY last, name LIMIT 1)";
        t.prepare_cached(oldest)?.execute([&address])?;
        overflow = 1;
    } else if unsigned(all) >= NAMES {
        return Ok(1);
    }
    t.prepare_cached("INSERT INTO names VALUES (?1, ?2, ?3)")?.execute(row)?;
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
