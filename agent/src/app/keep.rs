//! From the snapshots into the store, now and then, and from the store to who asks.
//!
//! Level-triggered like the rest: each write takes what the counters stand at, so one that fails or is left out does no
//! harm. It has a thread of its own: a slow disk holds up neither a commit nor an event.

use super::clock::now;
use super::naming::Naming;
use super::sightings::Sightings;
use super::snapshot::{Accounts, Snapshot};
use crate::config::narrow;
use crate::flows::PeerName;
use crate::history::{Counts, History};
use crate::store::{Batch, Clock, Health, Named, Reading, Sighting, Store, StoreError};
use bulkhead_common::maps::{EdgeKey, Traffic};
use bulkhead_common::{Outcome, PeerId, proto};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is written.
const WRITE: Duration = Duration::from_secs(10);
/// How often it is tidied.
const TIDY: Duration = Duration::from_secs(3600);

/// A store, and what goes into it.
#[derive(Clone)]
pub struct Keep {
    inner: Arc<Mutex<Inner>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    sightings: Sightings,
    naming: Naming,
    kept: Kept,
}

/// How far the history has got with the eras of what is counted by address: what was counted before the latest era that
/// it has seen is in it, whole.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<AtomicU64>);

impl Kept {
    /// The latest era that it has seen.
    pub fn era(&self) -> Option<u32> {
        self.0.load(Ordering::Acquire).checked_sub(1).and_then(|era| u32::try_from(era).ok())
    }

    fn note(&self, era: u32) {
        self.0.store(u64::from(era) + 1, Ordering::Release);
    }
}

struct Inner {
    store: Box<dyn Store>,
    clock: Clock,
    began: Instant,
    /// Whether this agent has written before.
    going: bool,
    tidied: Option<Instant>,
    /// Sightings of batches that couldn't be written.
    pending: Vec<Sighting>,
    overflow: u64,
    /// When it was last written.
    written: u64,
}

impl Keep {
    /// Begins. `stored` is the time of what was stored last.
    pub fn new(
        store: Box<dyn Store>,
        stored: Option<u64>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        accounts: &Accounts,
    ) -> Self {
        let inner = Inner {
            store,
            clock: Clock::starting(now(), 0, stored),
            began: Instant::now(),
            going: false,
            tidied: None,
            pending: Vec::new(),
            overflow: 0,
            written: 0,
        };
        let Accounts { sightings, naming, kept, .. } = accounts.clone();
        Self { inner: Arc::new(Mutex::new(inner)), snapshots, sightings, naming, kept }
    }

    /// Writes until told to stop, and then once more.
    ///
    /// # Errors
    /// When its thread is lost. What the store can't do is told by `health` and tried again.
    pub async fn run(self, health: watch::Sender<Health>, mut stopped: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut tick = interval(WRITE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = stopped.changed() => true,
                _ = tick.tick() => false,
            };
            let keep = self.clone();
            let after = tokio::task::spawn_blocking(move || keep.write()).await?;
            for new in after.faults.iter().filter(|f| !health.borrow().faults.contains(f)) {
                tracing::error!("{new}");
            }
            health.send_replace(after);
            if last {
                return Ok(());
            }
        }
    }

    /// Writes what the counters stand at now, and tidies where that is due. Blocks.
    fn write(&self) -> Health {
        let mut inner = self.lock();
        inner.record(&self.now(), self);
        let mut health = inner.store.health();
        health.faults.extend(inner.clock.fault());
        health.overflow = health.overflow.saturating_add(inner.overflow);
        health
    }

    /// What was seen from `since` to `until`, up to the last reading of the counters. Blocks.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn history(&self, since: u64, until: u64) -> Result<History, StoreError> {
        let mut inner = self.lock();
        inner.record(&self.now(), self);
        inner.store.history(since, until)
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // What a panic left half done is the store's transaction, and that is undone.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn record(&mut self, snapshot: &Snapshot, keep: &Keep) {
        let Keep { sightings, naming, kept, .. } = keep;
        let at = now();
        let steady = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let passed = self.clock.look(at, steady);
        let (new, overflow) = sightings.take(&snapshot.names);
        self.overflow = self.overflow.saturating_add(overflow);
        self.pending.extend(new);
        let batch = Batch {
            generation: snapshot.generation,
            at,
            watched: passed.filter(|_| self.going),
            readings: readings(snapshot),
            era: snapshot.outside.era(),
            unattributed: snapshot.edges.overflow().values().sum(),
            sightings: std::mem::take(&mut self.pending),
            names: named(snapshot, naming, self.written.saturating_sub(LATE)),
        };
        match self.store.record(&batch) {
            Ok(()) => {
                self.going = true;
                self.written = at;
                kept.note(batch.era);
            }
            Err(_) => {
                // Told by the store's health. Counters come again; of the sightings, as many as usual.
                self.pending = batch.sightings;
                self.pending.truncate(PENDING);
            }
        }
        let due = self.tidied.is_none_or(|t| t.elapsed() >= TIDY);
        if due && self.store.tidy(at, self.clock.is_trusted()).is_ok() {
            self.tidied = Some(Instant::now());
        }
    }
}

/// How many sightings wait for a store that can't be written.
const PENDING: usize = 8192;

fn readings(snapshot: &Snapshot) -> Vec<Reading> {
    let mut names: HashMap<u32, Arc<PeerName>> = HashMap::new();
    let mut name = |n: u32| Arc::clone(names.entry(n).or_insert_with(|| Arc::new(snapshot.names.peer(PeerId(n)))));
    let mut all: Vec<Reading> = Vec::new();
    for (key, count) in snapshot.edges.readings() {
        all.push(Reading {
            key: *key,
            address: None,
            era: 0,
            source: name(key.src),
            destination: name(key.dst),
            counts: counts(key, count.total, &snapshot.edges.traffic(key)),
            first: count.first,
            last: count.last,
        });
    }
    for (era, key, seen) in snapshot.outside.readings() {
        all.push(Reading {
            key: key.edge,
            address: Some(narrow(&key.addr)),
            era,
            source: name(key.edge.src),
            destination: name(key.edge.dst),
            counts: counts(&key.edge, seen.counts.attempts, &seen.counts.traffic),
            first: seen.first,
            last: seen.last,
        });
    }
    all
}

/// How late an answer may be known, compared with the connection that it was asked for.
const LATE: u64 = 30_000;

/// The names of the addresses that were connected to since then.
fn named(snapshot: &Snapshot, naming: &Naming, since: u64) -> Vec<Named> {
    let now = Instant::now();
    let mut names: HashMap<PeerId, Arc<PeerName>> = HashMap::new();
    let mut all = BTreeSet::new();
    for (_, key, _) in snapshot.outside.readings().filter(|(_, _, seen)| seen.last >= since) {
        let (own, address) = (key.edge.own_and_peer().0, narrow(&key.addr));
        if let Some(name) = naming.name(own, address, now) {
            let workload = names.entry(own).or_insert_with(|| Arc::new(snapshot.names.peer(own)));
            all.insert(Named { workload: Arc::clone(workload), address, name });
        }
    }
    all.into_iter().collect()
}

/// The kernel counts what was tried, and of TCP connections what became of them. Of a datagram flow that is let through,
/// what was tried is all there is to count.
fn counts(key: &EdgeKey, attempts: u64, traffic: &Traffic) -> Counts {
    let passes = Outcome::from_u8(key.outcome).is_some_and(Outcome::passes);
    let datagrams = if passes && key.proto != proto::TCP { attempts } else { 0 };
    Counts {
        attempts,
        established: datagrams + traffic.established,
        refused: traffic.refused,
        timed_out: traffic.timed_out,
        bytes_sent: traffic.bytes_sent,
        bytes_received: traffic.bytes_received,
        packets_sent: traffic.packets_sent,
        packets_received: traffic.packets_received,
    }
}
