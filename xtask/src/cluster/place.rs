//! A machine of the cluster that isn't one: namespaces for network, mounts and host name, and a cgroup for its daemons.
//!
//! The namespaces have no name anywhere: an idle process holds them, and they go with the last process in them, and with
//! them all links, routes, nft tables, mounts and pins. Nothing of the host's own is touched. The folders in which
//! daemons and agents expect their files (`/run`, `/var`, `/sys/fs/bpf`) are the place's own, so every path is what it
//! is on a real node.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};
use serde::{Deserialize, Serialize};

use super::groups::{Hierarchies, OURS};
use super::process::Process;
use crate::run;

/// The environment variable by which a process of a cluster names the cluster's folder.
pub(super) const MARK: &str = "BULKHEAD_CLUSTER";

/// Folders below a place's `/var` that must be there.
const VAR: [&str; 5] = ["lib/kubelet", "lib/containerd", "lib/cni", "log", "tmp"];

/// Settings of the whole machine, below `/proc/sys`, that a kubelet sets as it likes: it gets copies to write on.
pub(super) const SETTINGS: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) name: String,
    /// What of it lies in the cluster's folder.
    pub(super) folder: PathBuf,
    /// Holds the namespaces.
    pub(super) anchor: Process,
    /// Their names, as `/proc` writes them.
    pub(super) namespaces: Vec<String>,
    /// The cgroup of its daemons.
    group: PathBuf,
}

impl Place {
    /// Makes one, with a folder below `cluster`.
    pub(super) fn make(name: &str, cluster: &Path, hierarchies: &Hierarchies) -> Result<Self> {
        let folder = cluster.join(name);
        for below in VAR {
            let below = folder.join("var").join(below);
            fs::create_dir_all(&below).with_context(|| format!("can't make {}", below.display()))?;
        }
        let group = hierarchies.make(&format!("{OURS}/{name}/daemons"))?;
        let mut idle = Command::new("sleep");
        idle.arg("infinity").env(MARK, cluster).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        enter(&mut idle, &group, || {
            let all = UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWUTS;
            // SAFETY: the process has one thread, and shares neither memory nor file table with another.
            Ok(unsafe { rustix::thread::unshare_unsafe(all) }?)
        })?;
        let anchor = Process::of(idle.spawn().context("can't make namespaces: this takes root")?.id())?;
        let namespaces = super::residue::namespaces_of(anchor.pid);
        let place = Self { name: name.to_owned(), folder, anchor, namespaces, group };
        place.furnish()?;
        Ok(place)
    }

    /// Mounts and host name.
    fn furnish(&self) -> Result<()> {
        let var = self.folder.join("var");
        let var = var.to_str().context("the cluster's folder has a name that isn't text")?;
        // Nothing may travel to the host; within the place mounts are shared, as systemd has them on a node.
        self.run(&["mount", "--make-rprivate", "/"])?;
        for setting in SETTINGS {
            let real = format!("/proc/sys/{setting}");
            let value = fs::read_to_string(&real).with_context(|| format!("can't read {real}"))?;
            let copy = self.write(&format!("settings/{setting}"), &value)?;
            self.run(&["mount", "--bind", &copy.to_string_lossy(), &real])?;
        }
        self.run(&["mount", "--bind", var, "/var"])?;
        self.run(&["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
        self.run(&["ln", "-sfn", "/run", "/var/run"])?;
        self.run(&["mount", "-t", "bpf", "-o", "mode=700", "bpf", "/sys/fs/bpf"])?;
        self.run(&["mount", "--make-rshared", "/"])?;
        self.run(&["hostname", &self.name])?;
        self.run(&["ip", "link", "set", "lo", "up"])
    }

    /// A command that will run in this place.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let handle = self.anchor.handle().with_context(|| format!("{} isn't there any more", self.name))?;
        let mut command = Command::new(program);
        enter(&mut command, &self.group, move || {
            let all = ThreadNameSpaceType::NETWORK
                | ThreadNameSpaceType::MOUNT
                | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
            // SAFETY: as in `make`: one thread, nothing shared.
            Ok(rustix::thread::move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&handle), all)?)
        })?;
        Ok(command)
    }

    /// Runs a short command here, to its end.
    pub(super) fn run(&self, words: &[&str]) -> Result<()> {
        let Some((program, arguments)) = words.split_first() else { bail!("no command") };
        run::run_quietly(self.command(program)?.args(arguments)).with_context(|| format!("in {}", self.name))
    }

    /// Puts text into a file that belongs to this place, and answers its path (the same inside and outside).
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.folder.join(name);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
        }
        fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
        Ok(file)
    }
}

/// Lets `command` start in a session and a cgroup of its own, and do `then` before it becomes the program.
fn enter(
    command: &mut Command,
    group: &Path,
    mut then: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let group = group.join("cgroup.procs");
    let group =
        fs::OpenOptions::new().write(true).open(&group).with_context(|| format!("can't open {}", group.display()))?;
    // SAFETY: between fork and exec only system calls are made, nothing is allocated or locked.
    unsafe {
        command.pre_exec(move || {
            rustix::io::write(&group, b"0")?;
            rustix::process::setsid()?;
            then()
        });
    }
    Ok(())
}
