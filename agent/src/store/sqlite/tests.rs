//! What is stored is what happened: whatever is killed, damaged, full or wrong about the time.

use super::*;
use crate::flows::PeerName;
use crate::history::Link;
use crate::store::{Named, Reading, Sighting};
use bulkhead_common::Direction;
use bulkhead_common::maps::EdgeKey;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// Some morning.
const NOW: u64 = 20_000 * DAY + 7 * HOUR;

fn name(id: &str) -> PeerName {
    PeerName { id: id.to_owned(), namespace: "shop".to_owned() }
}

fn key(source: u32, direction: Direction) -> EdgeKey {
    EdgeKey { src: source, dst: 300, port: 80, proto: 6, direction: direction as u8, ..EdgeKey::default() }
}

fn attempts(n: u64) -> Counts {
    Counts { attempts: n, bytes_sent: 10 * n, ..Counts::default() }
}

fn reading(key: EdgeKey, n: u64, last: u64) -> Reading {
    Reading {
        key,
        address: None,
        era: 0,
        source: Arc::new(name(&format!("spiffe://t/{}", key.src))),
        destination: Arc::new(name("spiffe://t/db")),
        counts: attempts(n),
        first: last,
        last,
    }
}

fn batch(at: u64, readings: Vec<Reading>) -> Batch {
    Batch { generation: 1, at, watched: Some(2000), readings, ..Batch::default() }
}

fn everything(store: &mut Sqlite) -> History {
    store.history(0, u64::MAX).expect("readable")
}

fn store_in(folder: &Path) -> Sqlite {
    Sqlite::new(&folder.join("history.db"), Bounds::default())
}

/// What a process that is killed leaves on disk: the pages that were written so far.
fn copy_as_killed(from: &Path, to: &Path) {
    for part in ["", "-wal"] {
        let (from, to) = (suffixed(&from.join("history.db"), part), suffixed(&to.join("history.db"), part));
        if from.exists() {
            fs::copy(from, to).expect("room in the temporary folder");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Count(u32, u64),
    Record,
    /// Records, and is killed after so many steps of SQLite's machine.
    KilledRecording(u64),
    /// Tidies, and is killed after so many steps.
    KilledTidying(u64),
    Restart,
    NewMaps,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u32..5, 1_u64..1000).prop_map(|(k, n)| Step::Count(k, n)),
        3 => Just(Step::Record),
        4 => (0_u64..600).prop_map(Step::KilledRecording),
        1 => (0_u64..3000).prop_map(Step::KilledTidying),
        1 => Just(Step::Restart),
        1 => Just(Step::NewMaps),
        2 => (0_u64..40 * HOUR).prop_map(Step::Pass),
    ]
}

/// A kernel, an agent and its disk.
struct Host {
    folder: tempfile::TempDir,
    store: Sqlite,
    generation: u64,
    kernel: BTreeMap<EdgeKey, u64>,
    truth: BTreeMap<String, u64>,
    now: u64,
    started: bool,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store_in(folder.path());
        Self { folder, store, generation: 1, kernel: BTreeMap::new(), truth: BTreeMap::new(), now: NOW, started: false }
    }

    fn record(&mut self) {
        let readings = self.kernel.iter().map(|(k, n)| reading(*k, *n, self.now)).collect();
        let watched = self.started.then_some(2000);
        self.started = true;
        let batch = Batch { generation: self.generation, watched, ..batch(self.now, readings) };
        self.store.record(&batch).expect("written");
    }

    /// Does something, is killed in it, and starts again with what was on disk at that moment.
    fn killed(&mut self, after: u64, work: impl FnOnce(&mut Self)) {
        let next = tempfile::tempdir().expect("a folder");
        let (from, to) = (self.folder.path().to_owned(), next.path().to_owned());
        let passed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&passed);
        let handler = move || {
            if counter.fetch_add(1, Ordering::Relaxed) == after {
                copy_as_killed(&from, &to);
            }
            false
        };
        let connection = &mut self.store.open.as_mut().expect("open").connection;
        connection.progress_handler(1, Some(handler)).expect("a handler");
        work(self);
        if passed.load(Ordering::Relaxed) <= after {
            copy_as_killed(self.folder.path(), next.path());
        }
        self.store = store_in(next.path());
        self.folder = next;
        self.started = false;
        assert_eq!(self.store.health().faults, Vec::<String>::new());
    }

    fn check(&mut self) {
        let mut sums = BTreeMap::new();
        for r in everything(&mut self.store).records {
            assert_eq!(r.counts.bytes_sent, 10 * r.counts.attempts);
            *sums.entry(r.link.source.id).or_insert(0) += r.counts.attempts;
        }
        assert_eq!(sums, self.truth);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However counting, recording, kills, restarts and new maps fall together: the sums are what was counted.
    #[test]
    fn nothing_is_lost_and_nothing_is_counted_twice(steps in proptest::collection::vec(step(), 1..40)) {
        let mut host = Host::new();
        for step in steps {
            match step {
                Step::Count(k, n) => {
                    let key = key(256 + k, Direction::Egress);
                    *host.kernel.entry(key).or_insert(0) += n;
                    *host.truth.entry(format!("spiffe://t/{}", key.src)).or_insert(0) += n;
                }
                Step::Record => host.record(),
                Step::KilledRecording(after) => host.killed(after, Host::record),
                Step::KilledTidying(after) => {
                    host.killed(after, |h| h.store.tidy(h.now, true).expect("tidied"));
                }
                Step::Restart => {
                    host.store = store_in(host.folder.path());
                    host.started = false;
                }
                // Whoever replaces maps reads the old ones to the end first.
                Step::NewMaps => {
                    host.record();
                    host.generation += 1;
                    host.kernel.clear();
                }
                Step::Pass(time) => host.now += time,
            }
        }
        host.record();
        host.check();
    }
}

#[test]
fn a_link_is_counted_once_and_by_its_source_if_that_saw_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let denied = EdgeKey { outcome: 3, reason: 17, ..key(256, Direction::Ingress) };
    let readings = vec![
        reading(key(256, Direction::Egress), 7, NOW),
        reading(key(256, Direction::Ingress), 6, NOW),
        reading(key(257, Direction::Ingress), 5, NOW),
        reading(denied, 1, NOW),
    ];
    store.record(&batch(NOW, readings)).expect("written");
    let all = everything(&mut store).records;
    let told: Vec<_> = all.iter().map(|r| (r.link.source.id.as_str(), r.outcome.as_str(), r.counts.attempts)).collect();
    assert_eq!(
        told,
        [("spiffe://t/256", "allowed", 7), ("spiffe://t/256", "denied", 1), ("spiffe://t/257", "allowed", 5)]
    );
}

#[test]
fn hours_become_days_and_days_become_too_old() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let k = key(256, Direction::Egress);
    // Twice an hour for ten hours a day, on five days.
    let mut total = 0;
    for day in 0..5 {
        for half in 0..20 {
            total += 1;
            let at = NOW + day * DAY + half * HOUR / 2;
            store.record(&batch(at, vec![reading(k, total, at)])).expect("written");
        }
    }
    let end = NOW + 4 * DAY + 10 * HOUR;
    let whole = everything(&mut store);
    let r = &whole.records[0];
    assert_eq!((r.counts.attempts, r.hours, r.days), (100, 50, 5));
    assert_eq!((r.first, r.last), (NOW, end - HOUR / 2));
    store.tidy(end, true).expect("tidied");
    assert_eq!(everything(&mut store), whole, "only detail went");
    assert_eq!(store.health().rows, 5 + 20);
    // A day that was seen again after it was put into one row.
    store.record(&batch(NOW + HOUR, vec![reading(k, total + 1, NOW + HOUR)])).expect("written");
    store.tidy(end, true).expect("tidied");
    assert_eq!(everything(&mut store).records[0].hours, 50);
    // A part of it, by the hour where there are hours.
    let part = store.history(end - 2 * HOUR, u64::MAX).expect("readable");
    assert_eq!((part.records[0].counts.attempts, part.records[0].hours), (4, 2));

    let bounds = Bounds { days: 2, ..Bounds::default() };
    let mut store = Sqlite::new(&folder.path().join("history.db"), bounds);
    store.tidy(end, false).expect("tidied");
    assert_eq!(everything(&mut store).records[0].days, 5, "a clock that can't be trusted removes nothing");
    store.tidy(end, true).expect("tidied");
    assert_eq!(everything(&mut store).records[0].days, 2);
    // Everything gone, and the counter goes on from where it stood.
    let later = end + 50 * DAY;
    store.tidy(later, true).expect("tidied");
    assert!(everything(&mut store).records.is_empty());
    store.record(&batch(later, vec![reading(k, total + 4, later)])).expect("written");
    assert_eq!(everything(&mut store).records[0].counts.attempts, 3);
}

#[test]
fn what_is_too_much_goes_from_its_old_end_and_that_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history.db");
    let bounds = Bounds { bytes: 400 << 10, ..Bounds::default() };
    let mut store = Sqlite::new(&path, bounds);
    let mut refused = 0;
    for day in 0..60_u64 {
        let at = NOW + day * DAY;
        let readings = (0..200).map(|k| reading(key(256 + k, Direction::Egress), day + 1, at)).collect();
        if store.record(&batch(at, readings)).is_err() {
            refused += 1;
            store.tidy(at, true).expect("tidied");
        }
        if day % 10 == 0 {
            store.tidy(at, true).expect("tidied");
        }
    }
    store.tidy(NOW + 60 * DAY, true).expect("tidied");
    let size = fs::metadata(&path).expect("there").len();
    assert!(size <= 400 << 10, "{size} bytes, {refused} batches refused");
    let h = everything(&mut store);
    assert_eq!(h.records.len(), 200);
    assert!(h.records[0].days < 60 && h.records[0].last == NOW + 59 * DAY, "{:?}", h.records[0]);
}

/// A reading of one address, of the counter with this key.
fn outside(key: EdgeKey, last_byte: u8, era: u32, n: u64) -> Reading {
    Reading { address: Some(IpAddr::from([192, 0, 2, last_byte])), era, ..reading(key, n, NOW) }
}

fn told(store: &mut Sqlite, source: &str) -> Vec<(Option<String>, u64)> {
    let records = everything(store).records.into_iter().filter(|r| r.link.source.id == source);
    records.map(|r| (r.address.map(|a| a.to_string()), r.counts.attempts)).collect()
}

#[test]
fn addresses_beyond_the_bounds_are_counted_without_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let bounds = Bounds { addresses: 9, ..Bounds::default() };
    let mut store = Sqlite::new(&folder.path().join("history.db"), bounds);
    let (scan, web) = (key(256, Direction::Egress), key(257, Direction::Egress));
    let mut readings = vec![reading(scan, 200, NOW), reading(web, 6, NOW)];
    readings.extend((0..100).map(|n| outside(scan, n, 0, 2)));
    readings.extend((0..3).map(|n| outside(web, n, 0, 2)));
    store.record(&Batch { unattributed: 4, ..batch(NOW, readings) }).expect("written");
    let hostile = told(&mut store, "spiffe://t/256");
    assert_eq!((hostile.len(), &hostile[0]), (6, &(None, 190)), "as many as are still free, and the rest as a whole");
    let at = |n: u8| (Some(format!("192.0.2.{n}")), 2);
    assert_eq!(told(&mut store, "spiffe://t/257")[..], [(None, 2), at(0), at(1)], "there was room for others");
    assert_eq!(everything(&mut store).window.unattributed, 4, "nothing is lost that a rule could need");
    assert_eq!(store.health().overflow, 192);
}

#[test]
fn a_name_is_the_workloads_that_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let (web, other) = (key(256, Direction::Egress), key(257, Direction::Egress));
    let named = |of: &str, name: &str| Named {
        workload: Arc::new(PeerName { id: of.to_owned(), namespace: "shop".to_owned() }),
        address: IpAddr::from([192, 0, 2, 1]),
        name: name.into(),
    };
    let readings = vec![reading(web, 2, NOW), outside(web, 1, 0, 2), reading(other, 2, NOW), outside(other, 1, 0, 2)];
    let first = Batch { names: vec![named("spiffe://t/256", "old.example")], ..batch(NOW, readings) };
    store.record(&first).expect("written");
    let names = (0..6).map(|n| named("spiffe://t/256", &format!("{n}.example")));
    store.record(&Batch { names: names.collect(), ..batch(NOW + 1, Vec::new()) }).expect("written");
    let h = everything(&mut store);
    let said: Vec<_> = h.records.iter().map(|r| (r.link.source.id.as_str(), r.name.as_deref())).collect();
    assert_eq!(said, [("spiffe://t/256", Some("5.example")), ("spiffe://t/257", None)]);
}

#[test]
fn an_era_of_addresses_follows_the_other_without_a_loss() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let k = key(256, Direction::Egress);
    let era = |at: u64, era: u32, readings| Batch { era, ..batch(NOW + at, readings) };
    let at = |n: u8, count| (Some(format!("192.0.2.{n}")), count);
    store.record(&era(0, 0, vec![reading(k, 5, NOW), outside(k, 1, 0, 5)])).expect("written");
    // The next era has begun; of the former there is still a reading, and a new agent takes it.
    let mut store = store_in(folder.path());
    let both = vec![reading(k, 17, NOW), outside(k, 1, 0, 6), outside(k, 1, 1, 9), outside(k, 2, 1, 2)];
    store.record(&era(1, 1, both.clone())).expect("written");
    store.record(&era(2, 1, both)).expect("written");
    assert_eq!(told(&mut store, "spiffe://t/256"), [at(1, 15), at(2, 2)]);
    let later = vec![reading(k, 20, NOW), outside(k, 1, 2, 3)];
    store.record(&era(3, 2, later.clone())).expect("written");
    store.record(&era(4, 3, later)).expect("written");
    assert_eq!(told(&mut store, "spiffe://t/256"), [at(1, 18), at(2, 2)]);
    let open = store.open.as_ref().expect("open");
    let stored: i64 = open.connection.query_row("SELECT count(*) FROM readings", [], |r| r.get(0)).expect("a number");
    assert_eq!((open.readings.len(), stored), (2, 2), "former eras' readings are gone");
}

#[test]
fn a_history_of_the_first_version_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history.db");
    let k = key(256, Direction::Egress);
    store_in(folder.path()).record(&batch(NOW, vec![reading(k, 5, NOW)])).expect("written");
    let old = Connection::open(&path).expect("a database");
    old.execute_batch(
        "DROP TABLE names;
         CREATE TABLE names (address TEXT NOT NULL, name TEXT NOT NULL, last INTEGER NOT NULL,
           PRIMARY KEY (address, name)) WITHOUT ROWID;
         PRAGMA user_version = 1;",
    )
    .expect("as it was");
    drop(old);
    let mut store = store_in(folder.path());
    store.record(&batch(NOW, vec![reading(k, 6, NOW), outside(k, 1, 0, 1)])).expect("written");
    assert_eq!(told(&mut store, "spiffe://t/256").len(), 2);
    assert!(store.health().faults.is_empty());
}

#[test]
fn counters_of_single_addresses_are_taken_off_the_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let k = key(256, Direction::Egress);
    let part = Reading { address: Some(IpAddr::from([192, 0, 2, 1])), ..reading(k, 8, NOW) };
    store.record(&batch(NOW, vec![reading(k, 20, NOW), part])).expect("written");
    let all: Vec<_> = everything(&mut store).records.iter().map(|r| r.counts.attempts).collect();
    assert_eq!(all, [12, 8]);
}

#[test]
fn gaps_show_in_what_was_watched() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let at = |store: &mut Sqlite, seconds: u64, watched: Option<u64>| {
        let b = Batch { watched, ..batch(NOW + seconds * 1000, Vec::new()) };
        store.record(&b).expect("written");
    };
    at(&mut store, 0, None);
    at(&mut store, 10, Some(10_000));
    at(&mut store, 20, Some(10_000));
    let mut store = store_in(folder.path());
    at(&mut store, 100, None);
    at(&mut store, 130, Some(30_000));
    let w = everything(&mut store).window;
    assert_eq!((w.from, w.to, w.watched), (NOW, NOW + 130_000, 50_000));
    let part = store.history(NOW + 15_000, NOW + 110_000).expect("readable").window;
    assert_eq!((part.from, part.to, part.watched), (NOW + 15_000, NOW + 110_000, 15_000));
    // A clock that goes back makes stretches lie over each other.
    at(&mut store, 5, Some(1000));
    assert_eq!(everything(&mut store).window.watched, 50_000);
}

#[test]
fn a_damaged_store_is_kept_aside_and_service_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history.db");
    let k = key(256, Direction::Egress);
    type Spoil = (&'static str, fn(&Path));
    let spoil: [Spoil; 4] = [
        ("nonsense", |p| fs::write(p, "this is no database, and longer than a header, ".repeat(99)).expect("written")),
        ("torn", |p| {
            let bytes = fs::read(p).expect("there");
            fs::write(p, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("another version", |p| {
            let c = Connection::open(p).expect("opened");
            c.pragma_update(None, "user_version", 99).expect("written");
        }),
        ("another's tables", |p| {
            let c = Connection::open(p).expect("opened");
            c.execute_batch("DROP TABLE readings; CREATE TABLE readings (x)").expect("written");
        }),
    ];
    for (n, (what, spoil)) in spoil.iter().enumerate() {
        let mut store = Sqlite::new(&path, Bounds::default());
        let readings = (0..500).map(|n| reading(EdgeKey { dst: n, ..k }, 3, NOW)).collect();
        store.record(&batch(NOW, readings)).expect("written");
        store.tidy(NOW, true).expect("tidied");
        drop(store);
        spoil(&path);
        let mut store = Sqlite::new(&path, Bounds::default());
        store.record(&batch(NOW, vec![reading(k, 5, NOW)])).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(everything(&mut store).records[0].counts.attempts, 5, "{what}");
        let health = store.health();
        assert_eq!(health.aside, u64::try_from((n + 1).min(ASIDE)).expect("small"), "{what}");
        assert!(health.faults.iter().any(|f| f.contains("damaged-") && f.contains("remove it")), "{what}: {health:?}");
        drop(store);
        fs::remove_file(&path).expect("there");
    }
}

#[test]
fn damage_that_shows_while_it_runs_does_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history.db");
    let mut store = Sqlite::new(&path, Bounds::default());
    let k = key(256, Direction::Egress);
    let readings = |n| (0..2000).map(|i| reading(EdgeKey { src: 256 + i, ..k }, n, NOW)).collect();
    store.record(&batch(NOW, readings(1))).expect("written");
    store.tidy(NOW, true).expect("tidied");
    let size = usize::try_from(fs::metadata(&path).expect("there").len()).expect("small");
    let mut bytes = fs::read(&path).expect("there");
    bytes[4096..size].fill(0xa5);
    fs::write(&path, bytes).expect("written");
    // Else it would go on with what it has in memory.
    let connection = &store.open.as_ref().expect("open").connection;
    connection.execute_batch("PRAGMA shrink_memory").expect("shrunk");
    store.record(&batch(NOW, readings(2))).expect("a new one was begun");
    let h = everything(&mut store);
    assert_eq!(h.records.iter().map(|r| r.counts.attempts).sum::<u64>(), 4000);
    assert_eq!(store.health().aside, 1);
}

#[test]
fn a_full_store_loses_nothing_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let readings = |n| (0..3000).map(|i| reading(key(256 + i, Direction::Egress), n, NOW)).collect();
    store.record(&batch(NOW, readings(1))).expect("written");
    let stored = everything(&mut store);
    // As a full disk: SQLite gets no more pages.
    let limit = |store: &Sqlite, pages: i64| {
        let c = &store.open.as_ref().expect("open").connection;
        c.pragma_update(None, "max_page_count", pages).expect("set");
    };
    limit(&store, 1);
    let more: Vec<Reading> = (0..6000).map(|i| reading(key(256 + i, Direction::Egress), 2, NOW)).collect();
    let e = store.record(&batch(NOW + 1, more.clone())).expect_err("no room");
    assert!(matches!(e, StoreError::Full(_)) && e.to_string().contains("disk full"), "{e}");
    assert_eq!(store.health().failures, 1);
    assert!(store.health().faults[0].contains("no room"), "{:?}", store.health());
    assert_eq!(everything(&mut store), stored);
    limit(&store, 100_000);
    store.record(&batch(NOW + 2, more)).expect("written");
    let sum: u64 = everything(&mut store).records.iter().map(|r| r.counts.attempts).sum();
    assert_eq!(sum, 12_000);
    assert!(store.health().faults.is_empty());
}

#[test]
fn hostile_names_are_only_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = store_in(folder.path());
    let nasty = "'); DROP TABLE counts; --\" \u{0}\u{202e}<script>";
    let k = key(256, Direction::Egress);
    let r = Reading { source: Arc::new(name(nasty)), ..reading(k, 1, NOW) };
    let link = Link { source: name(nasty), destination: name("spiffe://t/db"), protocol: 6, port: 80 };
    let sighting = Sighting { link, direction: Direction::Egress, executable: nasty.to_owned(), last: NOW };
    let named = Named { workload: Arc::new(name(nasty)), address: IpAddr::from([192, 0, 2, 1]), name: nasty.into() };
    let part = Reading { source: Arc::clone(&r.source), ..outside(k, 1, 0, 1) };
    let b = Batch { sightings: vec![sighting], names: vec![named], ..batch(NOW, vec![r, part]) };
    store.record(&b).expect("written");
    let h = everything(&mut store);
    assert_eq!(h.records[0].link.source.id, nasty);
    assert!(h.records[0].source_executables.contains(nasty));
    assert_eq!(h.records[0].name.as_deref(), Some(nasty));
}
