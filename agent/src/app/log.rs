//! Writing the decision log, in a task of its own: what decides and what counts never wait for it.
//!
//! Denials come as events over a bounded way, allowed edges from the counters of the snapshots. Whatever doesn't find
//! room on its way, or on the disk, is counted; the log itself says how much, as soon as it can.

use super::events::decision;
use super::snapshot::Snapshot;
use crate::config::DecisionLog;
use crate::declog::chain::Chain;
use crate::declog::file::LogFile;
use crate::declog::{Allowed, Dropped, Entry, Health, Revision, Told, line, revision, rfc3339};
use crate::flows;
use crate::policy::reference::{self, Connection, End};
use bulkhead_common::event::Event;
use bulkhead_common::maps::EdgeKey;
use bulkhead_common::{Direction, Outcome, PeerId};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval_at};

/// How many decisions may wait for the log.
const QUEUE: usize = 16_384;
/// How many are taken at once.
const BATCH: usize = 1024;
/// How many bytes are written at once, at most.
const CHUNK: u64 = 256 << 10;
/// Of how many rulesets the revisions are remembered.
const REVISIONS: usize = 64;

/// A decision on its way to the log.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What the kernel said.
    pub event: Event,
    /// Of the process.
    pub executable: Option<Arc<str>>,
    /// When it was read, milliseconds since 1970.
    pub time: u64,
}

/// The way to the log, from any task.
#[derive(Clone, Debug)]
pub struct Way {
    sender: mpsc::Sender<Heard>,
    full: Arc<AtomicU64>,
}

/// Its other end.
#[derive(Debug)]
pub struct Ear {
    receiver: mpsc::Receiver<Heard>,
    full: Arc<AtomicU64>,
}

/// A way and its other end.
pub fn way() -> (Way, Ear) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let full = Arc::new(AtomicU64::new(0));
    (Way { sender, full: Arc::clone(&full) }, Ear { receiver, full })
}

impl Way {
    /// Sends a decision on its way, or counts it.
    pub fn tell(&self, heard: Heard) {
        if self.sender.try_send(heard).is_err() {
            self.leave_out();
        }
    }

    /// Counts a decision that isn't sent.
    pub fn leave_out(&self) {
        self.full.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes until told to stop.
///
/// # Errors
/// Never: what can't be written is counted and told.
pub async fn run(
    config: DecisionLog,
    mut ear: Ear,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    health: watch::Sender<Option<Health>>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let every = config.interval;
    let mut tick = interval_at(tokio::time::Instant::now() + every, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let first = Arc::clone(&snapshots.borrow());
    let mut writer = tokio::task::block_in_place(|| Writer::new(config, &first, super::clock::now()));
    health.send_replace(Some(writer.health()));
    let mut heard = Vec::new();
    loop {
        let (due, last) = tokio::select! {
            _ = stopped.changed() => (true, true),
            _ = tick.tick() => (true, false),
            n = ear.receiver.recv_many(&mut heard, BATCH) => (false, n == 0),
        };
        if last {
            while heard.len() < QUEUE
                && let Ok(h) = ear.receiver.try_recv()
            {
                heard.push(h);
            }
        }
        let snapshot = Arc::clone(&snapshots.borrow());
        let full = ear.full.swap(0, Ordering::Relaxed);
        tokio::task::block_in_place(|| {
            let now = super::clock::now();
            writer.take(&snapshot, std::mem::take(&mut heard), full);
            if due {
                writer.sum_up(&snapshot, now);
            }
        });
        health.send_replace(Some(writer.health()));
        if last {
            return Ok(());
        }
    }
}

/// Which rules allow something, by its ends, protocol and port.
type Rules = HashMap<(u32, u32, u8, u16), (Option<String>, Option<String>)>;

struct Writer {
    config: DecisionLog,
    file: Option<LogFile>,
    begun: bool,
    /// What is missing and not told in the log yet.
    untold: Dropped,
    health: Health,
    /// The snapshot that was last looked at, and what follows from it.
    snapshot: Arc<Snapshot>,
    revisions: BTreeMap<u32, Revision>,
    rules: Rules,
    lost: u64,
    counted: HashMap<EdgeKey, u64>,
    since: u64,
}

impl Writer {
    fn new(config: DecisionLog, snapshot: &Arc<Snapshot>, now: u64) -> Self {
        let health = Health { path: config.path.display().to_string(), ..Health::default() };
        let mut writer = Self {
            config,
            file: None,
            begun: false,
            untold: Dropped::default(),
            health,
            snapshot: Arc::clone(snapshot),
            revisions: BTreeMap::new(),
            rules: Rules::new(),
            lost: snapshot.edges.lost_events(),
            // What was counted before this agent is told by the former one's log.
            counted: allowed(snapshot).collect(),
            since: now,
        };
        writer.learn();
        writer.write(&[]);
        writer
    }

    fn health(&self) -> Health {
        self.health.clone()
    }

    /// Takes up what follows from the snapshot: which policies it is about.
    fn look(&mut self, snapshot: &Arc<Snapshot>) {
        if Arc::ptr_eq(&self.snapshot, snapshot) {
            return;
        }
        let changed = self.snapshot.status.epoch != snapshot.status.epoch
            || self.snapshot.policies != snapshot.policies
            || self.snapshot.inventory != snapshot.inventory;
        self.snapshot = Arc::clone(snapshot);
        if changed {
            self.learn();
        }
    }

    fn learn(&mut self) {
        self.rules.clear();
        let commit = self.config.revision_file.as_deref().and_then(first_line);
        let revision = Revision { hash: revision::of(&self.snapshot.policies), commit };
        self.health.policy = revision.clone();
        self.revisions.insert(self.snapshot.status.epoch, revision);
        while self.revisions.len() > REVISIONS {
            self.revisions.pop_first();
        }
    }

    /// The policies of an epoch: a commit's first events may come before its snapshot.
    fn revision(&self, epoch: u32) -> Revision {
        let known = self.revisions.range(..=epoch).next_back().or_else(|| self.revisions.first_key_value());
        known.map_or_else(Revision::default, |(_, r)| r.clone())
    }

    /// Writes decisions. `full`: so many had no room on their way.
    fn take(&mut self, snapshot: &Arc<Snapshot>, heard: Vec<Heard>, full: u64) {
        self.look(snapshot);
        let lost = snapshot.edges.lost_events();
        let kernel = if lost < self.lost { lost } else { lost - self.lost };
        self.lost = lost;
        self.drop(Dropped { kernel, queue: full, disk: 0 });
        if heard.is_empty() && self.untold.is_none() {
            return;
        }
        let entries: Vec<(u64, Entry)> = heard
            .into_iter()
            .map(|Heard { event, executable, time }| {
                let policy = self.revision(event.epoch);
                let told =
                    Told::Decision(decision(&event, &snapshot.names, snapshot.policies.overrides(), executable, time));
                (time, Entry { at: rfc3339(time), told, policy })
            })
            .collect();
        self.write(&entries);
    }

    /// Writes what was allowed since the last time.
    fn sum_up(&mut self, snapshot: &Arc<Snapshot>, now: u64) {
        self.look(snapshot);
        let epoch = snapshot.status.epoch;
        let policy = self.revision(epoch);
        let counted: HashMap<EdgeKey, u64> = allowed(snapshot).collect();
        let mut grown: Vec<(EdgeKey, u64)> = Vec::new();
        for (key, total) in &counted {
            let before = self.counted.get(key).copied().unwrap_or(0);
            let more = if *total < before { *total } else { total - before };
            if more > 0 {
                grown.push((*key, more));
            }
        }
        grown.sort_unstable();
        let mut entries = Vec::new();
        for (key, count) in grown {
            let (egress_rule, ingress_rule) = self.rules_of(&key);
            let edge = flows::edge(&key, |p| snapshot.names.peer(p));
            let told = Told::Allowed(Allowed { edge, count, egress_rule, ingress_rule, since: self.since, epoch });
            entries.push((now, Entry { at: rfc3339(now), told, policy: policy.clone() }));
        }
        self.counted = counted;
        self.since = now;
        self.write(&entries);
        if let Some(Err(e)) = self.file.as_ref().map(LogFile::sync) {
            self.fail(&e);
        }
    }

    /// Which rules allow that, by the policies in force.
    fn rules_of(&mut self, key: &EdgeKey) -> (Option<String>, Option<String>) {
        let snapshot = &self.snapshot;
        let rules = self.rules.entry((key.src, key.dst, key.proto, key.port));
        rules
            .or_insert_with(|| {
                let end = |n: u32| match snapshot.names.rules.part(PeerId(n)) {
                    Some(net) => Some(End::World(net.addr())),
                    None => reference::end(&snapshot.inventory, PeerId(n)),
                };
                let Some((from, to)) = end(key.src).zip(end(key.dst)) else { return (None, None) };
                let connection = Connection { from, to, proto: key.proto, port: key.port };
                let judged = reference::judge(&snapshot.policies, &snapshot.inventory, &connection);
                let name = |side: &reference::SideSays| side.named_rule().map(ToString::to_string);
                (name(&judged.egress), name(&judged.ingress))
            })
            .clone()
    }

    fn drop(&mut self, what: Dropped) {
        self.untold = self.untold.and(what);
        self.health.dropped = self.health.dropped.and(what);
    }

    /// Writes entries after what has to be told first. What the disk doesn't take is counted.
    fn write(&mut self, entries: &[(u64, Entry)]) {
        if self.file.is_none() {
            match LogFile::open(&self.config) {
                Ok((file, torn)) => {
                    let begin = Told::Begin { version: env!("CARGO_PKG_VERSION").to_owned(), torn };
                    self.file = Some(file);
                    if !self.begun {
                        self.begun = self.append(&[self.now(begin)]);
                    }
                }
                Err(e) => self.fail(&e),
            }
        }
        if self.file.is_none() {
            self.drop(Dropped { disk: count(entries.len()), ..Dropped::default() });
            return;
        }
        if !self.untold.is_none() {
            let untold = self.untold;
            if self.append(&[self.now(Told::Dropped(untold))]) {
                self.untold = Dropped::default();
            }
        }
        if !self.append(entries) {
            // Opened anew: whoever moved or removed the file meant it.
            self.file = None;
        }
    }

    fn now(&self, told: Told) -> (u64, Entry) {
        let now = super::clock::now();
        (now, Entry { at: rfc3339(now), told, policy: self.health.policy.clone() })
    }

    /// Appends in pieces, and gives whether all went well. Entries of a piece that didn't are counted, unless they are
    /// about what is missing themselves.
    fn append(&mut self, entries: &[(u64, Entry)]) -> bool {
        let mut well = true;
        let mut rest = entries;
        while !rest.is_empty() {
            let Some(file) = self.file.as_mut() else { return false };
            let mut chain = file.chain().clone();
            let room = file.room().min(CHUNK);
            let (mut text, mut taken) = (String::new(), 0);
            for (at, entry) in rest {
                let Ok((line, next)) = line(entry, *at, self.config.format, &chain) else { break };
                if taken > 0 && count(text.len() + line.len()) > room {
                    break;
                }
                text.push_str(&line);
                chain = next;
                taken += 1;
            }
            // Not even one could be written as JSON: it is passed over and counted.
            let written = if taken == 0 { Err(io::ErrorKind::InvalidData.into()) } else { file.append(&text, chain) };
            let piece;
            (piece, rest) = rest.split_at(taken.max(1));
            match written {
                Ok(()) => {
                    self.health.written += count(piece.len());
                    self.health.fault = None;
                    self.note_chain();
                }
                Err(e) => {
                    well = false;
                    self.fail(&e);
                    let lines = piece.iter().filter(|(_, e)| !matches!(e.told, Told::Dropped(_) | Told::Begin { .. }));
                    self.drop(Dropped { disk: count(lines.count()), ..Dropped::default() });
                }
            }
        }
        well
    }

    fn note_chain(&mut self) {
        if let Some(Chain { sequence, hash }) = self.file.as_ref().map(LogFile::chain) {
            self.health.sequence = *sequence;
            self.health.hash = hash.as_str().to_owned();
        }
    }

    fn fail(&mut self, e: &io::Error) {
        let fault = format!(
            "the decision log {} can't be written: {e} (is the disk full?); what is missing is counted",
            self.config.path.display()
        );
        if self.health.fault.as_ref() != Some(&fault) {
            tracing::error!("{fault}");
        }
        self.health.fault = Some(fault);
    }
}

/// The counters of what is allowed; what both ends count stands once, as the source has it.
fn allowed(snapshot: &Snapshot) -> impl Iterator<Item = (EdgeKey, u64)> {
    let is_allowed = |k: &EdgeKey| Outcome::from_u8(k.outcome) == Some(Outcome::Allowed);
    snapshot.edges.readings().filter_map(move |(key, count)| {
        let by_source = EdgeKey { direction: Direction::Egress as u8, ..*key };
        let twice = key.direction != Direction::Egress as u8 && snapshot.edges.count(&by_source).is_some();
        (is_allowed(key) && !twice).then_some((*key, count.total))
    })
}

/// What a revision file says.
fn first_line(path: &Path) -> Option<String> {
    let text = std::fs::read(path).map_err(|e| tracing::warn!("{} can't be read: {e}", path.display())).ok()?;
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = crate::serve::api::printable(&line[..line.len().min(100)]);
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
