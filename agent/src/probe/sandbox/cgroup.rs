//! A cgroup that goes away with its guard, together with everything that runs in it.
//!
//! Only cgroups that this process made are ever removed, and only processes inside them are ended.

use crate::sources::hierarchy::Hierarchy;
use anyhow::Context as _;
use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a removed cgroup may take until its last process has left it.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// A cgroup made by this process.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    id: u64,
    level: u32,
    maker: u32,
}

impl Cgroup {
    /// Makes a cgroup below `parent`, which lies in the unified hierarchy.
    pub fn create(parent: &Path, name: &str) -> anyhow::Result<Self> {
        let path = parent.join(name);
        let mount = Hierarchy::find()?.mount;
        let below =
            path.strip_prefix(&mount).with_context(|| format!("{} isn't below {}", path.display(), mount.display()))?;
        let level = u32::try_from(below.components().count()).context("too many levels")?;
        std::fs::create_dir(&path).with_context(|| format!("can't make {}", path.display()))?;
        // From here on the guard removes it.
        let mut cgroup = Self { path, id: 0, level, maker: std::process::id() };
        cgroup.id = std::fs::metadata(&cgroup.path)?.st_ino();
        Ok(cgroup)
    }

    /// Makes a cgroup inside this one.
    pub fn child(&self, name: &str) -> anyhow::Result<Self> {
        Self::create(&self.path, name)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id, as the kernel's helpers give it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many levels below the root of the hierarchy it lies.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Moves a process into it.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// The processes in it, not counting cgroups below.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        processes(&self.path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A forked child holds a copy of the guard, but not the duty.
        if self.maker != std::process::id() {
            return;
        }
        // One further up may have been removed first, and this one with it.
        if let Err(e) = remove(&self.path, Instant::now() + GONE_WITHIN)
            && self.path.exists()
        {
            tracing::warn!("can't remove the cgroup {}: {e}", self.path.display());
        }
    }
}

fn processes(path: &Path) -> io::Result<Vec<u32>> {
    let text = std::fs::read_to_string(path.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|l| l.parse().ok()).collect())
}

/// Removes a cgroup with all cgroups below it, ending their processes.
fn remove(path: &Path, deadline: Instant) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path(), deadline)?;
        }
    }
    loop {
        for pid in processes(path)? {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
                && pid != rustix::process::getpid()
            {
                // It may have ended by itself just now.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
        match std::fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                // Nothing tells when a killed process has left; it takes well under a millisecond.
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e),
        }
    }
}
