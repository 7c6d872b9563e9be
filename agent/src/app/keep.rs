//! From the snapshots into the store, now and then, and from the store to who asks.
//!
//! Level-triggered like the rest: each write takes what the counters stand at, so one that fails or is left out does no
//! harm. It has a thread of its own: a slow disk holds up neither a commit nor an event.

use super::clock::now;
use super::sightings::Sightings;
use super::snapshot::Snapshot;
use crate::flows::{Count, PeerName};
use crate::history::{Counts, History};
use crate::store::{Batch, Clock, Health, Reading, Sighting, Store, StoreError};
use bulkhead_common::maps::{EdgeKey, Traffic};
use bulkhead_common::{Outcome, PeerId, proto};
use std::collections::HashMap;
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
}

impl Keep {
    /// Begins. `stored` is the time of what was stored last.
    pub fn new(
        store: Box<dyn Store>,
        stored: Option<u64>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        sightings: Sightings,
    ) -> Self {
        let inner = Inner {
            store,
            clock: Clock::starting(now(), 0, stored),
            began: Instant::now(),
            going: false,
            tidied: None,
            pending: Vec::new(),
            overflow: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), snapshots, sightings }
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
        inner.record(&self.now(), &self.sightings);
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
        inner.record(&self.now(), &self.sightings);
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
    fn record(&mut self, snapshot: &Snapshot, sightings: &Sightings) {
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
            unattributed: snapshot.edges.overflow().values().sum(),
            sightings: std::mem::take(&mut self.pending),
            names: Vec::new(),
        };
        match self.store.record(&batch) {
            Ok(()) => self.going = true,
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
    let all = snapshot.edges.readings();
    all.map(|(key, count)| Reading {
        key: *key,
        address: None,
        source: name(key.src),
        destination: name(key.dst),
        counts: counts(key, count, &snapshot.edges.traffic(key)),
        first: count.first,
        last: count.last,
    })
    .collect()
}

/// The kernel counts what was tried, and of TCP connections what became of them. Of a datagram flow that is let through,
/// what was tried is all there is to count.
fn counts(key: &EdgeKey, count: &Count, traffic: &Traffic) -> Counts {
    let passes = Outcome::from_u8(key.outcome).is_some_and(Outcome::passes);
    let datagrams = if passes && key.proto != proto::TCP { count.total } else { 0 };
    Counts {
        attempts: count.total,
        established: datagrams + traffic.established,
        refused: traffic.refused,
        timed_out: traffic.timed_out,
        bytes_sent: traffic.bytes_sent,
        bytes_received: traffic.bytes_received,
        packets_sent: traffic.packets_sent,
        packets_received: traffic.packets_received,
    }
}
