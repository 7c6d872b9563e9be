//! The cluster's cgroups: where they are, how they come and go.
//!
//! Everything that `up` starts lies below one of [`ROOTS`] in the unified hierarchy, the pods too. That makes `down`
//! sure: the kernel ends a whole tree at once, however many children it has made meanwhile. `up` refuses to start while
//! one of the roots exists, so whatever is below them is ours.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::Process;

/// The daemons, and the pods of all nodes but the first.
pub(super) const OURS: &str = "bulkhead-cluster";
/// The first node's pods, where a kubelet puts them by default.
const PODS: &str = "kubepods";
/// What lies directly below a hierarchy's mount.
const ROOTS: [&str; 2] = [OURS, PODS];

/// The machine's hierarchies: one on most machines, a dozen where version 1 is still mounted beside version 2.
#[derive(Debug)]
pub(super) struct Hierarchies {
    unified: PathBuf,
    old: Vec<PathBuf>,
}

impl Hierarchies {
    pub(super) fn find() -> Result<Self> {
        Self::of_mounts(&fs::read_to_string("/proc/self/mountinfo").context("can't read the mounts")?)
    }

    /// From the text of proc_pid_mountinfo(5).
    fn of_mounts(text: &str) -> Result<Self> {
        let (mut unified, mut old) = (None, Vec::new());
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(place) = left.split(' ').nth(4) else { continue };
            match right.split(' ').next() {
                Some("cgroup2") if unified.is_none() => unified = Some(PathBuf::from(place)),
                Some("cgroup") => old.push(PathBuf::from(place)),
                _ => {}
            }
        }
        let unified = unified.context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")?;
        Ok(Self { unified, old })
    }

    /// The directory of `group` in the unified hierarchy.
    pub(super) fn unified(&self, group: &str) -> PathBuf {
        self.unified.join(group)
    }

    /// Fails if a cluster is up on this machine.
    pub(super) fn require_free(&self) -> Result<()> {
        let Some(root) = self.remaining().into_iter().next() else { return Ok(()) };
        match self.starter() {
            Some(folder) => bail!(
                "a cluster is up on this machine, in {}: `cargo xtask cluster down` there ends it",
                folder.display()
            ),
            None => bail!("{} exists: something else runs pods on this machine", root.display()),
        }
    }

    /// The folder of the cluster that is up, if there is one.
    pub(super) fn starter(&self) -> Option<PathBuf> {
        starter(&self.unified(OURS))
    }

    /// Makes a group for daemons.
    pub(super) fn make(&self, group: &str) -> Result<PathBuf> {
        let folder = self.unified(group);
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        Ok(folder)
    }

    /// Makes a group below which a kubelet puts pods: in every hierarchy, with every controller.
    pub(super) fn make_for_pods(&self, group: &str) -> Result<()> {
        let folder = self.make(group)?;
        for parent in folder.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.unified)) {
            let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
            for controller in controllers.split_whitespace() {
                // One that refuses is refused to the kubelet as well, which says so.
                fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")).ok();
            }
        }
        for hierarchy in &self.old {
            let mut folder = hierarchy.clone();
            for part in group.split('/') {
                let parent = folder.clone();
                folder.push(part);
                fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
                // A group of cpuset takes no process before it has these.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if let Ok(value) = fs::read(parent.join(file)) {
                        fs::write(folder.join(file), value)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends every process below our roots, removes the groups, and answers which processes those were.
    pub(super) fn clear(&self) -> Result<Vec<Process>> {
        let roots = self.remaining();
        let pids = ROOTS.iter().flat_map(|root| pids(&self.unified(root)));
        // One that has ended meanwhile doesn't have to be ended.
        let processes = pids.filter_map(|pid| Process::of(pid).ok()).collect();
        for root in &roots {
            let kill = root.join("cgroup.kill");
            if kill.exists() {
                fs::write(&kill, "1").with_context(|| format!("can't write {}", kill.display()))?;
            }
        }
        let until = Instant::now() + Duration::from_secs(20);
        for root in &roots {
            while let Err(error) = remove_tree(root) {
                if Instant::now() > until {
                    return Err(error).with_context(|| format!("can't remove {}", root.display()));
                }
                sleep(Duration::from_millis(20));
            }
        }
        Ok(processes)
    }

    /// Groups of ours that exist.
    pub(super) fn remaining(&self) -> Vec<PathBuf> {
        ROOTS.iter().flat_map(|root| self.all().map(move |top| top.join(root))).filter(|root| root.exists()).collect()
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.unified).chain(&self.old)
    }
}

/// The folder of the cluster whose processes are below `root`.
fn starter(root: &Path) -> Option<PathBuf> {
    pids(root).into_iter().find_map(|pid| {
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split('\0').filter_map(|variable| variable.split_once('='));
        variables.find(|(name, _)| *name == super::place::MARK).map(|(_, value)| value.into())
    })
}

/// The processes in a group and those below it.
fn pids(folder: &Path) -> Vec<u32> {
    let here = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let below = children(folder).into_iter().flat_map(|child| pids(&child));
    here.lines().filter_map(|pid| pid.parse().ok()).chain(below).collect()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Removes a group and those below it. The files in it can't be removed, and go with it.
fn remove_tree(folder: &Path) -> Result<(), std::io::Error> {
    for child in children(folder) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchies_of_both_versions() {
        let text = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::of_mounts(text).expect("there is one of version 2");
        assert_eq!(found.unified, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(found.old, [Path::new("/sys/fs/cgroup/cpu")]);
        assert!(Hierarchies::of_mounts("31 30 0:27 / /x rw - cgroup cgroup rw,cpu\n").is_err());
    }
}
