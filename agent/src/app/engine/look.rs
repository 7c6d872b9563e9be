//! Reading what may have changed: files, the cluster's objects, cgroups, addresses.

use super::{Engine, LAST_CONFIG};
use crate::app::kernel::Kernel;
use crate::cluster::cgroup::{self, Pods};
use crate::cluster::crd::NodeWorkload;
use crate::cluster::left::Left;
use crate::cluster::newcomers::Newcomers;
use crate::cluster::sandboxes::{self, Given, Sandboxes};
use crate::cluster::view::{self, Difference, Revision, View};
use crate::cluster::watch::Watch;
use crate::config::{self, Cluster as Settings, Config};
use crate::policy::{Diagnostic, Lowered, Severity};
use crate::serve::api::ObjectFault;
use crate::sources::watch::Dirty;
use crate::sources::{addresses, policies};
use anyhow::Context;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch as signal;

/// Under what name it is stored what the node knows of itself.
pub(crate) const LEFT: &str = "node.json";

/// What a view is made from beside the file.
struct Seen {
    objects: view::Objects,
    given: Given,
    /// The UIDs of the newcomers.
    young: BTreeSet<String>,
}

impl Seen {
    fn difference(&self, later: &Self) -> Difference {
        let Self { objects, given, young } = self;
        match *given == later.given && *young == later.young {
            true => objects.difference(&later.objects),
            false => Difference::Others,
        }
    }
}

/// A cluster's node: its objects, and what they came to at the last look.
pub(crate) struct Cluster {
    watch: Watch,
    /// What was known before the API server told anything, as long as it goes by that.
    left: Option<Left>,
    pods_at: Vec<Pods>,
    sandboxes: Sandboxes,
    newcomers: Newcomers,
    view: View,
    /// What that was made from.
    last: Option<Seen>,
    publish: signal::Sender<Arc<Vec<NodeWorkload>>>,
}

impl Cluster {
    /// The pods are below these cgroups; what other nodes are to know goes into `publish`.
    pub(crate) fn new(watch: Watch, attach: &[String], publish: signal::Sender<Arc<Vec<NodeWorkload>>>) -> Self {
        let pods_at = attach.iter().filter_map(|path| Pods::at(path)).collect();
        let (sandboxes, newcomers, view) = (Sandboxes::default(), Newcomers::default(), View::default());
        Self { watch, left: None, pods_at, sandboxes, newcomers, view, last: None, publish }
    }

    pub(crate) const fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Whether it goes by what was known before the API server told anything.
    pub(super) const fn is_remembering(&self) -> bool {
        self.left.is_some()
    }

    pub(super) fn changes(&self) -> signal::Receiver<u64> {
        self.watch.changes()
    }

    /// Brings the configuration up to what the objects say now. Gives what of them differs since the last look; `anew`: the
    /// file says something else than then.
    fn view(&mut self, settings: &Settings, base: &Config, anew: bool, config: &mut Config) -> Difference {
        let last = self.last.take();
        if let Some(left) = &self.left
            && let Ok(known) = left.over(base)
        {
            self.view.lowered.clone_from(&left.lowered);
            *config = known;
            return Difference::Others;
        }
        let objects = self.watch.objects();
        let given = self.sandboxes.read(Path::new(sandboxes::FOLDER));
        let young = self.newcomers.young(Instant::now());
        let seen = Seen { objects, given, young };
        let difference = last.filter(|_| !anew).map_or(Difference::Others, |last| last.difference(&seen));
        if difference != Difference::Others {
            if difference == Difference::Policies {
                self.view.read_policies_again(&seen.objects);
            }
            self.last = Some(seen);
            return difference;
        }
        // There may be a hundred thousand endpoints in it: they needn't be there twice.
        config.clone_from(base);
        let Seen { objects, given, .. } = seen;
        let here = view::Here { pods_at: &self.pods_at, given: &given, postures: &self.view.postures };
        let mut view = view::view(settings, &objects, base, here);
        let told = view.uids.iter().zip(&view.workloads).map(|(uid, w)| (uid.as_str(), !w.addresses.is_empty()));
        let young = self.newcomers.among(told, Instant::now());
        for (w, uid) in view.workloads.iter_mut().zip(&view.uids) {
            w.young = young.contains(uid);
        }
        view.over(config);
        for (namespace, to) in view.lowered.iter().filter(|(n, to)| self.view.lowered.get(*n) != Some(to)) {
            tracing::warn!(
                "namespace {namespace} is lowered to {} by its annotation: nothing is enforced there",
                to.as_str()
            );
        }
        for namespace in self.view.lowered.keys().filter(|n| !view.lowered.contains_key(*n)) {
            tracing::warn!("namespace {namespace} isn't lowered any more: enforcing again what is in force");
        }
        for new in view.warnings.iter().filter(|w| !self.view.warnings.contains(w)) {
            tracing::warn!(object = new.object, "{}", new.text);
        }
        self.view = view;
        self.publish.send_if_modified(|last| {
            let differs = **last != self.view.published;
            if differs {
                *last = Arc::new(self.view.published.clone());
            }
            differs
        });
        self.last = Some(Seen { objects, given, young });
        difference
    }

    /// Namespaces in which nothing is enforced.
    pub(super) fn lowered(&self) -> &BTreeMap<String, Lowered> {
        &self.view.lowered
    }

    /// Whether a namespace is enforced by its posture.
    pub(super) fn enforces(&self) -> bool {
        self.view.enforces()
    }

    fn texts(&self) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
        self.view.texts.iter().map(|(name, text)| (Arc::clone(name), Arc::clone(text)))
    }

    /// The policies among the objects, by the names of [`Self::texts`].
    pub(super) fn revisions(&self) -> impl Iterator<Item = (&Arc<str>, &Revision)> {
        self.view.revisions.iter()
    }

    /// What is wrong with the objects, and with the watches.
    pub(super) fn faults(&self) -> impl Iterator<Item = ObjectFault> {
        self.view.warnings.iter().cloned().chain(self.watch.faults())
    }
}

/// Waits until the objects changed; for ever where there is no cluster.
pub(super) async fn changed(cluster: &mut Option<signal::Receiver<u64>>) {
    if let Some(changes) = cluster
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Whether they changed since.
pub(super) fn has_changed(changes: &signal::Receiver<u64>) -> bool {
    changes.has_changed().unwrap_or(false)
}

impl<K: Kernel> Engine<K> {
    /// Reads what may have changed.
    pub(super) fn look(&mut self, dirty: Dirty) -> anyhow::Result<()> {
        let mut policies = dirty.files;
        if dirty.files {
            self.viewed &= !self.read_config()?;
            self.kernel.set_tell_answers(self.base.dns)?;
        }
        if dirty.cluster || !self.viewed {
            let difference = match (&mut self.cluster, &self.base.cluster) {
                (Some(cluster), Some(settings)) => {
                    self.watcher.cluster(Path::new(sandboxes::FOLDER))?;
                    cluster.view(settings, &self.base, !self.viewed, &mut self.config)
                }
                _ => {
                    self.config.clone_from(&self.base);
                    Difference::Others
                }
            };
            self.viewed = true;
            policies |= difference != Difference::None;
            if difference == Difference::Others {
                (self.scanned, self.drafted) = (false, None);
            }
        }
        if dirty.cgroups || !self.scanned {
            self.scanned = false;
            for path in &self.config.attach {
                let directory = self.hierarchy.directory(path);
                if !directory.is_dir() {
                    std::fs::create_dir_all(&directory)
                        .with_context(|| format!("making the attach point {} again", directory.display()))?;
                }
            }
            let watcher = &mut self.watcher;
            let mut unwatched = Ok(());
            let mut scan = self.hierarchy.scan(&self.config, |directory| {
                if let Err(e) = watcher.cgroups(directory) {
                    unwatched = Err(e);
                }
            });
            unwatched?;
            // A pod that came since isn't among what was known; the agent's own has to reach the API server.
            if self.is_remembering()
                && let Some(own) = cgroup::own(&self.hierarchy, &self.config.attach)
                && !scan.workloads.iter().any(|(c, _)| c.id == own.id)
            {
                scan.unlisted.push(own);
            }
            if scan != self.scan {
                (self.scan, self.drafted) = (scan, None);
            }
            self.scanned = true;
            self.look_for_node();
        }
        if policies {
            self.read_policies()?;
        }
        if dirty.addresses {
            let host = addresses::host().context("reading the host's addresses")?;
            if host != self.host {
                (self.host, self.drafted) = (host, None);
            }
        }
        Ok(())
    }

    /// Goes by what the node knew of itself when an agent last ran, if that was written down; gives whether it does.
    pub(super) fn remember(&mut self) -> anyhow::Result<bool> {
        let Some(cluster) = &mut self.cluster else { return Ok(false) };
        let Some(text) = self.state.text(LEFT)? else { return Ok(false) };
        let left = serde_json::from_str::<Left>(&text).map_err(|e| e.to_string());
        match left.and_then(|left| left.over(&self.base).map(|_| left)) {
            Ok(left) => cluster.left = Some(left),
            Err(e) => tracing::error!(
                "{LEFT} in the state folder is damaged, so nothing is known until the lists are there: {e}"
            ),
        }
        Ok(cluster.left.is_some())
    }

    pub(super) fn is_remembering(&self) -> bool {
        self.cluster.as_ref().is_some_and(Cluster::is_remembering)
    }

    /// From now on it goes by the objects.
    pub(super) fn learn(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.left = None;
        }
    }

    /// Writes down what the node knows of itself, if that isn't what was written last.
    pub(super) fn write_down(&mut self) {
        self.write_down_aside();
        if let Err(e) = self.writing_down.finish() {
            self.not_written_down(&e);
        }
    }

    /// The same without waiting for the disk.
    pub(super) fn write_down_aside(&mut self) {
        let Some(cluster) = self.cluster.as_ref().filter(|c| !c.is_remembering()) else { return };
        let left = Left::of(&self.config, &self.base, cluster.lowered());
        let stored = serde_json::to_string(&left).map_err(anyhow::Error::from).and_then(|text| {
            // That the one before failed is known before this one is compared with it.
            self.writing_down.finish()?;
            let written = Some(hash(&text));
            if self.written_down != written {
                let state = self.state.clone();
                self.writing_down.begin(move || state.put(LEFT, text.as_bytes()))?;
                self.written_down = written;
            }
            Ok(())
        });
        if let Err(e) = stored {
            self.not_written_down(&e);
        }
    }

    fn not_written_down(&mut self, e: &anyhow::Error) {
        self.written_down = None;
        tracing::error!("what this node knows of itself can't be written down for its next start: {e:#}");
    }

    /// Looks for meshes in a cluster's pods. Gives whether anything has changed.
    pub(super) fn look_for_meshes(&mut self) -> bool {
        self.cluster.is_some() && self.meshes.look(&self.hierarchy, &self.scan)
    }

    /// Looks which of a cluster's pods know the node's network namespace. Gives whether anything has changed.
    pub(super) fn look_for_node(&mut self) -> bool {
        let changed = self.cluster.is_some() && self.node_netns.look(&self.hierarchy, &self.scan);
        if changed {
            self.drafted = None;
        }
        changed
    }

    /// Reads the configuration; what isn't good leaves the last good one. Gives whether there is a new one.
    fn read_config(&mut self) -> anyhow::Result<bool> {
        let mut new_one = false;
        let name = self.file.display().to_string();
        if let Some(folder) = self.file.parent() {
            self.watcher.files(if folder == Path::new("") { Path::new(".") } else { folder })?;
        }
        match std::fs::read_to_string(&self.file) {
            Ok(text) if self.text == Some(hash(&text)) => {}
            Ok(text) => {
                match config::parse(&name, &text).and_then(|new| self.adoptable(&name, new)) {
                    Ok(new) => {
                        tracing::info!("the configuration changed");
                        self.state.put(LAST_CONFIG, text.as_bytes())?;
                        (self.base, new_one) = (new, true);
                        self.config_faults.clear();
                    }
                    Err(faults) => {
                        for f in &faults {
                            tracing::error!("{f}");
                        }
                        self.config_faults = faults;
                    }
                }
                self.text = Some(hash(&text));
            }
            Err(e) => {
                self.config_faults =
                    vec![fault(&name, format!("can't be read: {e}"), "put it back; the last good one is in force")];
                self.text = None;
            }
        }
        Ok(new_one)
    }

    /// Reads the policies of the files and of the cluster.
    fn read_policies(&mut self) -> anyhow::Result<()> {
        let watcher = &mut self.watcher;
        let mut unwatched = Ok(());
        let mut reading = policies::read(&self.config.policies, |folder| {
            if let Err(e) = watcher.files(folder) {
                unwatched = Err(e);
            }
        });
        unwatched?;
        if let Some(cluster) = &self.cluster {
            match cluster.left {
                Some(_) => reading.texts.extend(self.policies.good.clone()),
                None => reading.texts.extend(cluster.texts()),
            }
        }
        if reading != self.reading || self.image.is_none() {
            let known = std::mem::take(&mut self.policies.findings);
            self.policies = std::mem::take(&mut self.policies).after(&reading);
            for f in self.policies.findings.iter().filter(|f| !known.contains(f)) {
                tracing::error!("{f}");
            }
            self.reading = reading;
        }
        Ok(())
    }

    /// Stores the last good texts, once what they say is in force: that needn't wait for the disk.
    pub(super) fn store_policies(&mut self) {
        for _ in 0..2 {
            // What failed aside is tried once more.
            self.store_policies_aside();
            match self.storing.finish() {
                Ok(()) if self.policies_are_stored() => return,
                Ok(()) => {}
                Err(e) => self.not_stored(&e),
            }
        }
    }

    /// The same without waiting for the disk; while it still writes the texts before, the next call stores these.
    pub(super) fn store_policies_aside(&mut self) {
        if self.storing.is_busy() {
            return;
        }
        if let Err(e) = self.storing.finish() {
            self.not_stored(&e);
        }
        if self.policies_are_stored() {
            return;
        }
        let (good, state) = (self.policies.good.clone(), self.state.clone());
        let stored = self.policies_stored.replace(good.clone());
        if let Err(e) = self.storing.begin(move || policies::store(&good, stored.as_ref(), &state)) {
            self.not_stored(&e);
        }
    }

    /// Whether the last good texts are, or are being.
    fn policies_are_stored(&self) -> bool {
        self.policies_stored.as_ref() == Some(&self.policies.good)
    }

    fn not_stored(&mut self, e: &anyhow::Error) {
        self.policies_stored = None;
        tracing::error!("the last good policies can't be stored: {e:#}");
    }

    /// Some fields hold for an agent's whole life; a file that changes one of them isn't taken.
    fn adoptable(&self, name: &str, mut new: Config) -> Result<Config, Vec<Diagnostic>> {
        let old = &self.base;
        if new.cluster.is_some() && new.attach.is_empty() {
            new.attach.clone_from(&old.attach);
        }
        let fixed = [
            ("instance", new.instance != old.instance),
            ("attach", new.attach != old.attach),
            ("metrics", new.metrics != old.metrics),
            ("socket", new.socket != old.socket),
            ("state", new.state != old.state),
            ("bpffs", new.bpffs != old.bpffs),
            ("log", new.log != old.log),
            ("limits", new.limits != old.limits),
            ("history", new.history != old.history),
            ("decisionLog", new.decision_log != old.decision_log),
            ("cluster", new.cluster != old.cluster),
        ];
        let faults: Vec<_> = fixed
            .iter()
            .filter(|(_, differs)| *differs)
            .map(|(field, _)| {
                let message = format!("`{field}` differs from what the agent was started with");
                fault(name, message, "restart the agent; until then the last good configuration is in force")
            })
            .collect();
        if faults.is_empty() { Ok(new) } else { Err(faults) }
    }
}

/// What is remembered of a file's text.
pub(super) type Hash = [u8; 32];

pub(super) fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

fn fault(file: &str, message: String, hint: &str) -> Diagnostic {
    let hint = Some(hint.to_owned());
    Diagnostic { file: file.into(), line: 0, column: 0, severity: Severity::Error, message, hint }
}
