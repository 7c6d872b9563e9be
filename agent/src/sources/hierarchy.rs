//! The cgroup2 hierarchy: where it is mounted, which of its directories are workloads.

use crate::config::{CgroupGlob, Config, Unlisted, Workload};
use anyhow::Context;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where cgroup2 is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The mount point of its root.
    pub mount: PathBuf,
    /// Whether cgroup v1 hierarchies are mounted beside it.
    pub hybrid: bool,
}

/// One directory of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup {
    /// Its path below the root, with a leading slash.
    pub path: String,
    /// Its id: the directory's inode number.
    pub id: u64,
    /// How many levels below the root it lies.
    pub level: u32,
}

/// What a look at the hierarchy found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Scan {
    /// Workload cgroups, with the index of the workload in the configuration.
    pub workloads: Vec<(Cgroup, usize)>,
    /// Cgroups that are and can hold no workload.
    pub unlisted: Vec<Cgroup>,
    /// The attach points that exist.
    pub attach: Vec<Cgroup>,
    /// Attach points that don't exist.
    pub missing: Vec<String>,
    /// Cgroups that another workload's pattern matches too: path, and that workload's index.
    pub contested: Vec<(String, usize)>,
}

impl Hierarchy {
    /// Finds the mount.
    ///
    /// # Errors
    /// When no cgroup2 hierarchy is mounted with its root.
    pub fn find() -> anyhow::Result<Self> {
        let mounts = procfs::process::Process::myself()
            .and_then(|p| p.mountinfo())
            .context("reading /proc/self/mountinfo (is /proc mounted?)")?;
        let mount = mounts
            .0
            .iter()
            .filter(|m| m.fs_type == "cgroup2")
            .map(|m| m.mount_point.clone())
            // Every cgroup but the root has this file. In a container's cgroup namespace a mount's own root says nothing.
            .find(|mount| mount.join("cgroup.controllers").exists() && !mount.join("cgroup.events").exists())
            .context("no cgroup2 hierarchy is mounted: boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup")?;
        Ok(Self { mount, hybrid: mounts.0.iter().any(|m| m.fs_type == "cgroup") })
    }

    /// The directory of a cgroup's path.
    pub fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// The cgroup at a path below the root.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn cgroup(&self, path: &str) -> io::Result<Cgroup> {
        let meta = std::fs::metadata(self.directory(path))?;
        if !meta.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Cgroup { path: path.to_owned(), id: meta.ino(), level: level(path) })
    }

    /// Looks at everything below the attach points. `before_reading` is called with each directory before it is read:
    /// the place to set a watch, so that nothing made afterwards is missed.
    ///
    /// A cgroup that goes away meanwhile is left out; the watch will tell of it.
    pub fn scan(&self, config: &Config, mut before_reading: impl FnMut(&Path)) -> Scan {
        let mut scan = Scan::default();
        let wanted = Wanted::of(&config.workloads);
        for attach in &config.attach {
            match self.cgroup(attach) {
                Ok(c) => {
                    self.walk(config, &wanted, &c.path, &mut scan, &mut before_reading);
                    scan.attach.push(c);
                }
                Err(_) => {
                    if let Some(parent) = self.directory(attach).ancestors().skip(1).find(|p| p.is_dir()) {
                        before_reading(parent);
                    }
                    scan.missing.push(attach.clone());
                }
            }
        }
        scan.workloads.sort();
        scan.unlisted.sort();
        scan
    }

    fn walk(
        &self,
        config: &Config,
        wanted: &Wanted<'_>,
        path: &str,
        scan: &mut Scan,
        before_reading: &mut impl FnMut(&Path),
    ) {
        let directory = self.directory(path);
        before_reading(&directory);
        let Ok(entries) = std::fs::read_dir(&directory) else { return };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            // A name that isn't UTF-8 can't match a pattern; it stays an unknown workload.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let child = format!("{}/{name}", path.trim_end_matches('/'));
            let mut takers = wanted.takers(&child).into_iter();
            if let Some(index) = takers.next() {
                scan.contested.extend(takers.map(|other| (child.clone(), other)));
                if let Ok(c) = self.cgroup(&child) {
                    scan.workloads.push((c, index));
                }
            } else if wanted.may_be_below(&child) {
                self.walk(config, wanted, &child, scan, before_reading);
            } else if config.unlisted == Unlisted::Host
                && let Ok(c) = self.cgroup(&child)
            {
                scan.unlisted.push(c);
            }
        }
    }
}

/// The cgroups that are looked for. A pod's are paths, of which there may be thousands, so those are looked up.
struct Wanted<'a> {
    /// Path and workload, in order.
    paths: HashMap<&'a str, Vec<usize>>,
    /// Whatever lies above one of those.
    above: HashSet<&'a str>,
    patterns: Vec<(usize, &'a CgroupGlob)>,
}

impl<'a> Wanted<'a> {
    fn of(workloads: &'a [Workload]) -> Self {
        let mut this = Self { paths: HashMap::new(), above: HashSet::new(), patterns: Vec::new() };
        for (index, glob) in workloads.iter().enumerate().flat_map(|(n, w)| w.cgroups.iter().map(move |g| (n, g))) {
            let Some(path) = glob.as_path() else {
                this.patterns.push((index, glob));
                continue;
            };
            this.paths.entry(path).or_default().push(index);
            let mut rest = path;
            while let Some((above, _)) = rest.rsplit_once('/').filter(|(above, _)| this.above.insert(above)) {
                rest = above;
            }
        }
        this
    }

    /// The workloads whose cgroup this is, in order.
    fn takers(&self, path: &str) -> BTreeSet<usize> {
        let by_pattern = self.patterns.iter().filter(|(_, g)| g.matches(path)).map(|(index, _)| *index);
        self.paths.get(path).into_iter().flatten().copied().chain(by_pattern).collect()
    }

    fn may_be_below(&self, path: &str) -> bool {
        self.above.contains(path) || self.patterns.iter().any(|(_, g)| g.may_match_below(path))
    }
}

/// How many levels below the root a path lies.
pub fn level(path: &str) -> u32 {
    u32::try_from(path.split('/').filter(|s| !s.is_empty()).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy of plain directories: the walk needs nothing else.
    fn tree(paths: &[&str]) -> (tempfile::TempDir, Hierarchy) {
        let dir = tempfile::tempdir().expect("a folder");
        for p in paths {
            std::fs::create_dir_all(dir.path().join(p)).expect("a folder");
        }
        let mount = dir.path().to_owned();
        (dir, Hierarchy { mount, hybrid: false })
    }

    fn config(text: &str) -> Config {
        crate::config::parse("f", text).unwrap_or_else(|e| panic!("{}", e[0]))
    }

    #[test]
    fn finds_workloads_and_leaves_the_rest_to_the_host() {
        let (_dir, h) = tree(&["s/web-1/inner", "s/web-2", "s/sub/job", "s/other/deep", "elsewhere"]);
        let c = config(
            "attach: [/s, /absent]\nworkloads:\n- {name: web, id: spiffe://t/w, cgroup: /s/web-*}\n\
             - {name: job, id: spiffe://t/j, cgroup: [/s/sub/job, \"/s/web-[2]\"]}\n",
        );
        let mut read = Vec::new();
        let scan = h.scan(&c, |p| read.push(p.strip_prefix(&h.mount).expect("below").to_owned()));
        let got: Vec<_> = scan.workloads.iter().map(|(c, i)| (c.path.as_str(), c.level, *i)).collect();
        assert_eq!(got, [("/s/sub/job", 3, 1), ("/s/web-1", 2, 0), ("/s/web-2", 2, 0)]);
        assert_eq!(scan.unlisted.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), ["/s/other"]);
        assert_eq!(scan.contested, [("/s/web-2".to_owned(), 1)]);
        assert_eq!(scan.missing, ["/absent"]);
        read.sort();
        assert_eq!(read, [Path::new(""), Path::new("s"), Path::new("s/sub")]);
    }

    #[test]
    fn unknown_stays_unknown_where_the_file_says_so() {
        let (_dir, h) = tree(&["s/other"]);
        let c = config("unlisted: unknown\nworkloads:\n- {name: web, id: spiffe://t/w, cgroup: /s/web-*}\n");
        assert!(h.scan(&c, |_| {}).unlisted.is_empty());
    }

    #[test]
    fn this_host_has_a_hierarchy() {
        let h = Hierarchy::find().expect("cgroup2");
        assert_eq!(h.cgroup("/").expect("the root").level, 0);
        assert!(h.mount.join("cgroup.controllers").exists());
    }
}
