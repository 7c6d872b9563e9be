//! What is up, written down so that a later xtask finds it: `target/cluster/state.json`.
//!
//! It is written before a process is started that it must know of, and after each one; so whatever happens to `up`,
//! `down` knows as much as is needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::place::{MARK, Place};
use super::process::Process;
use crate::run;

const FILE: &str = "state.json";

#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    /// Holds everything: configuration, keys, logs, the nodes' `/var`.
    pub(super) folder: PathBuf,
    /// The cluster's programs.
    pub(super) programs: PathBuf,
    /// The control plane first, then the nodes.
    pub(super) places: Vec<Place>,
    /// In the order in which they were started.
    pub(super) daemons: Vec<Daemon>,
    /// Hands on connections from the host to the API server.
    pub(super) door: Option<Process>,
    /// What the host had before, by kind.
    pub(super) before: super::residue::Inventory,
}

/// A program that runs until `down`, or until it is stopped.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Daemon {
    /// `etcd`, or `kubelet@node1` where each node has one.
    pub(super) name: String,
    place: String,
    program: PathBuf,
    arguments: Vec<String>,
    pub(super) process: Option<Process>,
}

impl Daemon {
    pub(super) fn is_alive(&self) -> bool {
        self.process.is_some_and(Process::is_alive)
    }
}

impl State {
    /// Where a cluster of this checkout lives.
    pub(super) fn home() -> PathBuf {
        run::target().join("cluster")
    }

    /// The cluster of this checkout, if it is up (or half up).
    pub(super) fn load() -> Result<Option<Self>> {
        let file = Self::home().join(FILE);
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| {
                format!("{} isn't what this version writes; `cargo xtask cluster down` clears up", file.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't read {}", file.display())),
        }
    }

    /// The cluster of this checkout.
    pub(crate) fn require() -> Result<Self> {
        Self::load()?.context("no cluster of this checkout is up: `cargo xtask cluster up` brings one up")
    }

    pub(super) fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("can't write the state")?;
        run::write_if_changed(&self.folder.join(FILE), &text)?;
        Ok(())
    }

    pub(super) fn place(&self, name: &str) -> Result<&Place> {
        self.places.iter().find(|place| place.name == name).with_context(|| format!("no `{name}` in this cluster"))
    }

    /// The names of the nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| place.name.as_str()).filter(|name| name.starts_with("node"))
    }

    /// What a node sees as `/var`.
    pub(crate) fn var(&self, node: &str) -> Result<PathBuf> {
        Ok(self.place(node)?.folder.join("var"))
    }

    /// Where a program that was given with the cluster runs as on that node, in its namespaces.
    pub(crate) fn on(&self, node: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.place(node)?.command(program)
    }

    /// containerd's client, talking to a node's containerd about the kubelet's containers.
    pub(crate) fn ctr(&self, node: &str) -> Result<Command> {
        let mut ctr = self.on(node, self.programs.join("ctr"))?;
        ctr.args(["-a", super::node::CONTAINERD, "-n", "k8s.io"]);
        Ok(ctr)
    }

    /// Gives an image archive to every node.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        self.nodes().try_for_each(|name| super::node::import(self, self.place(name)?, archive))
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// kubectl as the administrator. It keeps its own files with the cluster's.
    pub(crate) fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(self.programs.join("kubectl"));
        kubectl.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.folder.join("kubectl"));
        kubectl
    }

    /// Fails with a daemon's last words if one of `names` has ended.
    pub(super) fn require_alive(&self, names: &[&str]) -> Result<()> {
        for daemon in self.daemons.iter().filter(|daemon| names.contains(&daemon.name.as_str())) {
            if !daemon.is_alive() {
                let log = self.log(&daemon.name);
                bail!("{} has ended; the end of {}:\n{}", daemon.name, log.display(), last_words(&log));
            }
        }
        Ok(())
    }

    pub(crate) fn log(&self, daemon: &str) -> PathBuf {
        self.folder.join("log").join(format!("{daemon}.log"))
    }

    /// Adds a daemon, and starts it.
    pub(super) fn run(&mut self, name: &str, place: &str, program: &str, arguments: Vec<String>) -> Result<()> {
        let program = self.programs.join(program);
        self.daemons.push(Daemon { name: name.to_owned(), place: place.to_owned(), program, arguments, process: None });
        self.start(name)
    }

    /// Starts a daemon that doesn't run.
    pub(crate) fn start(&mut self, name: &str) -> Result<()> {
        let position = self.find(name)?;
        let daemon = &self.daemons[position];
        if daemon.is_alive() {
            bail!("{name} runs already");
        }
        let log = self.log(name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("can't open {}", log.display()))?;
        let mut command = self.place(&daemon.place)?.command(&daemon.program)?;
        command.args(&daemon.arguments).env(MARK, &self.folder).env("PATH", self.path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("can't start {}", daemon.program.display()))?;
        self.daemons[position].process = Some(Process::of(child.id())?);
        self.save()
    }

    /// Ends a daemon: what it started (pods, for containerd) stays.
    pub(crate) fn stop(&mut self, name: &str, patience: Duration) -> Result<()> {
        let position = self.find(name)?;
        let Some(process) = self.daemons[position].process.take() else { bail!("{name} doesn't run") };
        process.end(patience)?;
        self.save()
    }

    fn find(&self, name: &str) -> Result<usize> {
        self.daemons.iter().position(|daemon| daemon.name == name).with_context(|| {
            let names: Vec<&str> = self.daemons.iter().map(|daemon| daemon.name.as_str()).collect();
            format!("no daemon is called `{name}`; there are {}", names.join(", "))
        })
    }

    /// Ours first: containerd finds its shim on the path.
    pub(super) fn path(&self) -> String {
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.display())
    }
}

/// The last words in a daemon's log.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    crate::guest::last_lines(&text, 12)
}
