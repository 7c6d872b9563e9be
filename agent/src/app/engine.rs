//! The one task that owns the state and the kernel side: looks where something changed, compiles, commits what differs.
//!
//! Level-triggered: each look reads everything there is to read in its place, so a wake-up that is lost, doubled or
//! late does no harm, and a look now and then without a wake-up heals what one missed. What fails leaves the last good
//! state in force and is told as a fault; the next look tries again.

mod cover;
mod cut;
mod draft;
mod health;
mod look;
mod obey;
mod selection;
mod status;

pub(crate) use cover::LIMIT;
pub(crate) use draft::HOST;
pub(crate) use look::{Cluster, LEFT};

use super::aside::Aside;
use super::clock::Clock;
use super::failure::Failure;
use super::kernel::Kernel;
use super::overrides::Overrides;
use super::snapshot::{Accounts, Names, Snapshot};
use super::{heap, text};
use crate::config::{self, Config};
use crate::flows::Edges;
use crate::flows::outside::Outsiders;
use crate::flows::series::Series;
use crate::image::Image;
use crate::inventory::Inventory;
use crate::policy::{self, Diagnostic, PolicySet, RuleTable, Warning};
use crate::revocation::Reach;
use crate::serve::api::{Commit, Decision, DriftStatus, NotContained};
use crate::serve::orders::{Cutting, Request};
use crate::sources::assemble::Instance;
use crate::sources::hierarchy::{Hierarchy, Scan};
use crate::sources::meshes::Meshes;
use crate::sources::node_netns::NodeNetns;
use crate::sources::policies::{self, Policies};
use crate::sources::roster::{Extent, Roster};
use crate::sources::state::State;
use crate::sources::strays::Strays;
use crate::sources::watch::{Dirty, Watcher};
use anyhow::Context;
use bulkhead_common::Addr;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// How long wake-ups are gathered before a look: a unit's start makes several at once.
const GATHER: Duration = Duration::from_millis(1);
/// The same for files: an editor writes more than once.
const GATHER_FILES: Duration = Duration::from_millis(50);
/// How long after a commit the former ruleset is cleared away. A commit that comes earlier does it first.
const SETTLE: Duration = Duration::from_millis(20);
/// How long after that it is asked again whether anybody still reads it.
const AGAIN: Duration = Duration::from_millis(5);
/// However much happens, so often the others are told what is in force.
const TELL: Duration = Duration::from_millis(200);
/// How often the kernel side is looked over and the counters are read.
const CHECK: Duration = Duration::from_secs(2);
/// Every so many checks, everything is looked at without a wake-up.
const FULL_LOOK: u32 = 5;
/// How many combinations of labels get a series of refused connections of their own.
const SERIES: usize = 2000;
/// The stored numbers of rules.
const RULES: &str = "rules.json";
/// The last good configuration, for a machine that starts with one that isn't.
pub const LAST_CONFIG: &str = "config.yaml";

/// The state, the sources and the kernel side.
pub struct Engine<K: Kernel> {
    kernel: K,
    file: PathBuf,
    /// The hash of that file as it was last read.
    text: Option<look::Hash>,
    /// The file's, with what the cluster adds.
    config: Config,
    /// The file's alone.
    base: Config,
    cluster: Option<Cluster>,
    /// What is wrong with the configuration's file as it is now.
    config_faults: Vec<Diagnostic>,
    hierarchy: Hierarchy,
    state: State,
    watcher: Watcher,
    roster: Roster,
    /// How far it had got when it was stored.
    saved: Option<Extent>,
    saving: Aside,
    /// Shared with the names of what was compiled last.
    rules: Arc<RuleTable>,
    /// How many numbers of rules had been given out when they were stored.
    rules_stored: Option<u64>,
    policies: Policies,
    /// The last good texts as they were stored, or are being.
    policies_stored: Option<policies::Texts>,
    storing: Aside,
    /// What was last written down of what this node knows of itself.
    written_down: Option<look::Hash>,
    writing_down: Aside,
    reading: policies::Reading,
    scan: Scan,
    /// Whether that was by the configuration as it is now: it counts in its workloads.
    scanned: bool,
    /// Whether the configuration is what comes of the file's as it is now.
    viewed: bool,
    host: BTreeSet<Addr>,
    /// What the image was compiled from, shared with the snapshots.
    inventory: Arc<Inventory>,
    /// Under what commands the inventory was drafted; `None`: something that it is made from has changed since.
    drafted: Option<Overrides>,
    instances: Vec<Instance>,
    assembly_warnings: Vec<Diagnostic>,
    names: Arc<Names>,
    image: Option<Image>,
    /// Whether the image is what comes of them.
    compiled: bool,
    compile_warnings: Vec<Warning>,
    edges: Edges,
    outside: Arc<Outsiders>,
    /// Since when this era of theirs is counted in, and how often there was no room then.
    era: (Instant, u64),
    series: Series,
    commits: u64,
    last_commit: Option<Commit>,
    ready: bool,
    /// Whom a first start waits for.
    cover: cover::Cover,
    /// Out of order at the last look at the sources.
    source_faults: Vec<String>,
    /// Out of order at the last look at the kernel.
    kernel_faults: Vec<String>,
    not_contained: Vec<NotContained>,
    strays: Strays,
    /// Where the programs can tell the node from whom it masquerades.
    node_netns: NodeNetns,
    /// Where meshes are.
    meshes: Meshes,
    /// What was commanded.
    overrides: Overrides,
    /// The policies as they are in force: those of the files, under what was commanded.
    in_force: Arc<PolicySet>,
    cuts: cut::Cuts,
    selection: selection::Selection,
    drift: DriftStatus,
    /// For how long nothing was attached since the machine was started, milliseconds; `None`: not known.
    open_since_boot: Option<u64>,
    /// When the next of the policies or rules expires, milliseconds since 1970.
    expires: Option<u64>,
    /// How those are who write down what happens.
    accounts: Accounts,
    /// How often it was looked after what was commanded.
    looks: u32,
}

impl<K: Kernel> Engine<K> {
    /// Everything read that outlived the last agent, nothing in force yet.
    ///
    /// # Errors
    /// When the state folder is damaged, or nothing can be watched.
    pub fn new(file: PathBuf, config: Config, hierarchy: Hierarchy, state: State, kernel: K) -> anyhow::Result<Self> {
        // First of all: nothing may be in force again that was withdrawn, nor stay longer than was asked.
        let overrides = Overrides::stored(&state)?;
        let generation = kernel.generation();
        let roster = state.roster(generation)?;
        let rules = match state.text(RULES)? {
            Some(text) => match serde_json::from_str::<(u64, RuleTable)>(&text) {
                Ok((of, rules)) if of == generation => rules,
                _ => RuleTable::default(),
            },
            None => RuleTable::default(),
        };
        let policies = Policies::stored(&state)?;
        let mut this = Self {
            kernel,
            text: None,
            file,
            base: config.clone(),
            config,
            cluster: None,
            config_faults: Vec::new(),
            hierarchy,
            state,
            watcher: Watcher::new()?,
            saved: None,
            saving: Aside::default(),
            roster,
            rules: Arc::new(rules),
            rules_stored: None,
            policies,
            policies_stored: None,
            storing: Aside::default(),
            written_down: None,
            writing_down: Aside::default(),
            reading: policies::Reading::default(),
            scan: Scan::default(),
            scanned: false,
            viewed: false,
            host: BTreeSet::new(),
            inventory: Arc::default(),
            drafted: None,
            instances: Vec::new(),
            assembly_warnings: Vec::new(),
            names: Arc::default(),
            image: None,
            compiled: false,
            compile_warnings: Vec::new(),
            edges: Edges::default(),
            outside: Arc::default(),
            era: (Instant::now(), 0),
            series: Series::new(SERIES),
            commits: 0,
            last_commit: None,
            ready: false,
            cover: cover::Cover::default(),
            source_faults: Vec::new(),
            kernel_faults: Vec::new(),
            not_contained: Vec::new(),
            strays: Strays::default(),
            node_netns: NodeNetns::default(),
            meshes: Meshes::default(),
            overrides,
            in_force: Arc::default(),
            cuts: cut::Cuts::default(),
            selection: selection::Selection::default(),
            drift: DriftStatus::default(),
            open_since_boot: None,
            expires: None,
            accounts: Accounts::default(),
            looks: 0,
        };
        this.tend(&Clock::now())?;
        if let Ok(text) = std::fs::read_to_string(&this.file) {
            this.text = Some(look::hash(&text));
            if config::parse("", &text).is_ok() {
                this.state.put(LAST_CONFIG, text.as_bytes())?;
            }
        }
        Ok(this)
    }

    /// Tells of those who write down what happens, too.
    #[must_use]
    pub fn with(mut self, accounts: Accounts) -> Self {
        self.accounts = accounts;
        self
    }

    /// Reads the cluster's objects, too.
    #[must_use]
    pub(crate) fn in_cluster(mut self, cluster: Cluster) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// The first full look, the first ruleset, and then the programs are attached. Once they are, only the former.
    ///
    /// # Errors
    /// When any of it fails: a start must be whole.
    pub async fn first(&mut self) -> Result<(), Failure> {
        self.look(Dirty::ALL).map_err(Failure::Other)?;
        self.put_in_force().map_err(Failure::Load)?;
        if !self.ready {
            self.kernel.attach().map_err(Failure::Attach)?;
            self.ready = true;
            self.note_boot(&Clock::now()).map_err(Failure::Other)?;
        }
        self.store_policies();
        // While nobody looked, something may have gone on that the ruleset doesn't let pass. Whose peers aren't known yet is
        // stopped, but not ended.
        if !self.is_remembering() {
            self.cut(Reach::Everything, Instant::now());
            self.write_down();
        }
        self.check();
        Ok(())
    }

    /// Looks and commits until told to stop.
    ///
    /// # Errors
    /// When the watches break. Faults of the kernel side don't end it: what is in force stays in force.
    pub async fn run(
        mut self,
        publish: watch::Sender<Arc<Snapshot>>,
        decisions: broadcast::Sender<Arc<Decision>>,
        mut orders: mpsc::Receiver<Request>,
        mut stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut pending = Dirty::default();
        let mut cluster = self.cluster.as_ref().map(Cluster::changes);
        let mut due = Instant::now();
        let mut settle = Some(Instant::now());
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut follow = interval(Duration::from_millis(100));
        follow.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Instant::now();
        let (mut rounds, mut emitting, mut checked, mut commits) = (0_u32, false, false, self.commits);
        loop {
            tokio::select! {
                _ = stopped.changed() => {
                    self.write_down();
                    self.store_policies();
                    return Ok(());
                }
                dirty = async {
                    tokio::select! {
                        dirty = self.watcher.changed() => dirty,
                        () = look::changed(&mut cluster) => Ok(Dirty { cluster: true, ..Dirty::default() }),
                    }
                } => {
                    let dirty = dirty?;
                    if !pending.any() {
                        due = Instant::now() + if dirty.files { GATHER_FILES } else { GATHER };
                    }
                    pending.add(dirty);
                    continue;
                }
                () = sleep_until(due), if pending.any() => {
                    let dirty = std::mem::take(&mut pending);
                    tokio::task::block_in_place(|| self.step(dirty));
                }
                () = sleep_until(settle.unwrap_or(due)), if settle.is_some() => {
                    if !self.kernel.is_alone() {
                        settle = Some(Instant::now() + AGAIN);
                        continue;
                    }
                    let cut = self.cuts.sockets;
                    let settled = tokio::task::block_in_place(|| {
                        let settled = self.kernel.settle();
                        self.cut_again();
                        self.cut_moved();
                        self.store_policies_aside();
                        heap::give_back();
                        settled
                    });
                    settle = self.cuts.due();
                    if let Err(e) = settled {
                        tracing::warn!("the former ruleset isn't cleared away yet, the next commit tries again: {e:#}");
                    }
                    if self.cuts.sockets == cut && self.cuts.faults.is_empty() {
                        continue;
                    }
                }
                Some(request) = orders.recv() => self.carry_out(request, &publish),
                _ = check.tick() => {
                    rounds = rounds.wrapping_add(1);
                    let again = rounds.is_multiple_of(FULL_LOOK) || !self.source_faults.is_empty();
                    tokio::task::block_in_place(|| {
                        let again = self.tend_or_tell() || self.look_for_node() || self.look_for_meshes() || again;
                        if again {
                            self.step(Dirty::ALL);
                            self.write_down_aside();
                        }
                        self.check();
                        self.verify();
                        // Where commits never cease, none of them settles.
                        self.cut_moved();
                        self.store_policies_aside();
                    });
                    checked = true;
                }
                _ = follow.tick() => {
                    let curious = self.accounts.sightings.wants_allowed(std::time::Instant::now());
                    let wanted = decisions.receiver_count() > 0 || curious;
                    if wanted == emitting {
                        continue;
                    }
                    match self.kernel.set_emit_allowed(wanted) {
                        Ok(()) => emitting = wanted,
                        Err(e) => tracing::warn!("events of allowed flows can't be switched: {e:#}"),
                    }
                    continue;
                }
            }
            if self.commits != commits {
                commits = self.commits;
                settle = Some(Instant::now() + SETTLE);
            }
            let busy = pending.any() || cluster.as_ref().is_some_and(look::has_changed);
            if busy && told.elapsed() < TELL {
                // What happened meanwhile comes first.
                continue;
            }
            publish.send_replace(Arc::new(self.snapshot()));
            told = Instant::now();
            if std::mem::take(&mut checked) {
                // Not before what was seen is told: what runs next has to be mapped again.
                text::give_up();
                heap::give_back();
            }
        }
    }

    /// A look and, if something differs, a commit; whatever fails becomes a fault.
    fn step(&mut self, dirty: Dirty) {
        self.source_faults.clear();
        let result = self.look(dirty).and_then(|()| self.put_in_force().map(drop));
        if let Err(e) = result {
            tracing::error!("the last good ruleset stays in force: {e:#}");
            self.source_faults.push(format!("{e:#}"));
        }
    }

    /// Compiles if there is anything new, commits if that differs from what is in force, and ends the live connections
    /// that don't pass any more. Numbers are on disk before they are used.
    fn put_in_force(&mut self) -> anyhow::Result<Option<Cutting>> {
        let started = Instant::now();
        self.expires = policy::expiry::next(&self.policies.set, super::clock::now());
        let overrides = self.overrides.clone();
        let inventory = self.inventory_now(&overrides)?;
        let set = self.set(self.policies.set.clone(), &overrides);
        if self.compiled && Arc::ptr_eq(&self.inventory, &inventory) && *self.in_force == set {
            self.drafted = Some(overrides);
            return Ok(None);
        }
        let compiled = self.compile(&set, &inventory);
        self.compiled = false;
        (self.inventory, self.drafted) = (inventory, Some(overrides));
        self.in_force = draft::shared(&self.in_force, set);
        // Numbers of identities are only ever added.
        let known = self.names.identities.len() == self.roster.identities().count();
        if !known || !Arc::ptr_eq(&self.names.rules, &self.rules) {
            self.names = Arc::new(self.names_now());
        }
        self.compile_warnings = compiled.warnings;
        if self.image.as_ref() == Some(&compiled.image) {
            self.compiled = true;
            return Ok(None);
        }
        if self.rules_stored != Some(self.rules.given()) {
            let rules = serde_json::to_vec(&(self.kernel.generation(), &*self.rules))?;
            self.state.put(RULES, &rules)?;
            self.rules_stored = Some(self.rules.given());
        }
        self.numbers_are_saved()?;
        let done = self.kernel.commit(&compiled.image).context("committing the ruleset")?;
        tracing::info!(
            epoch = done.epoch,
            inserts = done.inserts,
            writes = done.writes,
            removals = done.removals,
            in_force_after_us = done.in_force_after_us,
            "a ruleset is in force"
        );
        self.commits += 1;
        self.last_commit = Some(done);
        let reach = self.reach(&compiled.image);
        (self.image, self.compiled) = (Some(compiled.image), true);
        // Before the programs are attached there is nobody whom a reset could pass.
        Ok(if self.ready { self.cut(reach, started) } else { None })
    }

    /// What numbers mean after the last compilation, be it in force or not.
    fn names_now(&self) -> Names {
        let identities = self.roster.identities().map(|(n, i)| (n, i.clone())).collect();
        Names { identities, rules: Arc::clone(&self.rules) }
    }
}
