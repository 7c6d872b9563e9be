//! The cluster's programs, built once from the Go modules that `tests/cluster/` pins.
//!
//! Each folder there is a module whose `tools.go` names programs and whose `go.sum` says what they are made of. What is
//! built is kept in the user's cache, in a folder named after those files and the way of building, so that all checkouts
//! share it and a new version never meets an old one.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::run::{self, find_program, note, root, step};

/// A Go module of `tests/cluster/`.
struct Module {
    folder: &'static str,
    /// Packages, and the names of their programs.
    packages: &'static [(&'static str, &'static str)],
    tags: &'static str,
    /// The variable that gets the version of the module `.0`.
    version: Option<(&'static str, &'static str)>,
    cgo: bool,
    /// How long it takes where nothing is cached, on two cores.
    minutes: &'static str,
}

const KUBERNETES: Module = Module {
    folder: "kubernetes",
    packages: &[
        ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
        ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
        ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
        ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
    ],
    tags: "",
    version: Some(("k8s.io/kubernetes", "k8s.io/component-base/version.gitVersion")),
    cgo: false,
    minutes: "6",
};

const ETCD: Module = Module {
    folder: "etcd",
    packages: &[("go.etcd.io/etcd/server/v3", "etcd")],
    tags: "",
    version: None,
    cgo: false,
    minutes: "1",
};

const CONTAINERD: Module = Module {
    folder: "containerd",
    packages: &[
        ("github.com/containerd/containerd/v2/cmd/containerd", "containerd"),
        ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2"),
        ("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
    ],
    tags: "no_btrfs no_devmapper no_zfs",
    version: None,
    cgo: false,
    minutes: "2",
};

const COREDNS: Module = Module {
    folder: "coredns",
    packages: &[("github.com/coredns/coredns", "coredns")],
    tags: "",
    version: None,
    cgo: false,
    minutes: "3",
};

const SPIRE: Module = Module {
    folder: "spire",
    packages: &[
        ("github.com/spiffe/spire/cmd/spire-server", "spire-server"),
        ("github.com/spiffe/spire/cmd/spire-agent", "spire-agent"),
    ],
    tags: "",
    version: None,
    // Its store is SQLite.
    cgo: true,
    minutes: "5",
};

/// What every cluster runs.
const MODULES: [&Module; 4] = [&ETCD, &CONTAINERD, &COREDNS, &KUBERNETES];

/// Builds what isn't there yet, and answers the folder of the programs.
pub(super) fn build(with_spire: bool) -> Result<PathBuf> {
    let mut modules = MODULES.to_vec();
    if with_spire {
        modules.push(&SPIRE);
    }
    let folder = folder()?;
    let missing = |modules: &[&'static Module]| -> Vec<&'static Module> {
        modules.iter().copied().filter(|module| !module.is_in(&folder)).collect()
    };
    if missing(&modules).is_empty() {
        return Ok(folder);
    }
    require_go()?;
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    // Another checkout may be at it: then its result is ours.
    let lock = File::create(folder.join("lock")).context("can't make the cache's lock")?;
    lock.lock().context("can't lock the cache")?;
    for module in missing(&modules) {
        module.build(&folder)?;
    }
    Ok(folder)
}

/// Whether nothing has to be built for a cluster.
pub(crate) fn are_built() -> Result<bool> {
    let folder = folder()?;
    Ok(MODULES.iter().all(|module| module.is_in(&folder)))
}

impl Module {
    fn is_in(&self, folder: &Path) -> bool {
        self.packages.iter().all(|(_, program)| folder.join(program).is_file())
    }

    fn build(&self, folder: &Path) -> Result<()> {
        let names: Vec<&str> = self.packages.iter().map(|(_, program)| *program).collect();
        step(format!("building {} (the first time about {} min)", names.join(", "), self.minutes));
        let started = Instant::now();
        for (package, program) in self.packages {
            note(*program);
            // Renamed when it is whole: a build that is interrupted leaves nothing that looks finished.
            let beside = folder.join(format!("{program}.partial"));
            run::run(self.go("build")?.arg("-o").arg(&beside).arg(package))?;
            fs::rename(&beside, folder.join(program)).with_context(|| format!("can't name {program}"))?;
        }
        note(format!("{:.0} s", started.elapsed().as_secs_f64()));
        Ok(())
    }

    /// `go build` in this module, as everything here is built.
    fn go(&self, subcommand: &str) -> Result<Command> {
        let mut go = Command::new("nice");
        go.args(["-n", "10", "go", subcommand]).current_dir(self.source());
        go.args(FLAGS).arg("-tags").arg(self.tags).arg("-ldflags").arg(self.linker_flags()?);
        go.env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
        Ok(go)
    }

    fn linker_flags(&self) -> Result<String> {
        let Some((module, variable)) = self.version else { return Ok("-s -w".to_owned()) };
        let text = fs::read_to_string(self.source().join("go.mod")).context("can't read go.mod")?;
        let version = version_in(&text, module).with_context(|| format!("go.mod doesn't require {module}"))?;
        Ok(format!("-s -w -X {variable}={version}"))
    }

    fn source(&self) -> PathBuf {
        root().join("tests/cluster").join(self.folder)
    }
}

/// Nothing of the machine in the programs, and nothing that go.sum doesn't name.
const FLAGS: [&str; 3] = ["-trimpath", "-mod=readonly", "-buildvcs=false"];

/// The version of `module` that a go.mod requires.
fn version_in<'a>(text: &'a str, module: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    })
}

/// Where the programs of these modules are, or will be.
fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("BULKHEAD_CLUSTER_BIN") {
        return std::path::absolute(folder).context("BULKHEAD_CLUSTER_BIN isn't a path");
    }
    let mut hash = Sha256::new();
    for module in MODULES.iter().copied().chain([&SPIRE]) {
        hash.update(format!("{} {} {} {FLAGS:?}", module.folder, module.tags, module.linker_flags()?));
        for file in ["go.mod", "go.sum", "tools.go"] {
            let file = module.source().join(file);
            hash.update(fs::read(&file).with_context(|| format!("can't read {}", file.display()))?);
        }
    }
    let name: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: where are the cluster's programs to be kept?")?;
    Ok(cache.join("bulkhead").join(format!("cluster-{name}")))
}

/// Go itself; a Go from 1.21 on fetches the version that a module wants.
fn require_go() -> Result<()> {
    if find_program("go").is_none() {
        bail!(
            "Go is missing, which builds the cluster's programs (some 15 min, once): take 1.26 or newer from \
             https://go.dev/dl/, or `apt-get install golang-go` where that is at least 1.21"
        );
    }
    for module in MODULES {
        run::output_of(Command::new("go").arg("version").current_dir(module.source()))
            .context("this Go is too old for the cluster's programs: take a newer one from https://go.dev/dl/")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_module_names_its_programs_in_tools_go() {
        for module in MODULES.iter().copied().chain([&SPIRE]) {
            let text = fs::read_to_string(module.source().join("tools.go")).expect("it is in the repository");
            for (package, _) in module.packages {
                assert!(text.contains(&format!("_ \"{package}\"")), "{package}");
            }
        }
    }

    #[test]
    fn reads_the_version_that_is_required() {
        let text = "module x\n\nrequire k8s.io/a v1.2.3\n\nrequire (\n\tk8s.io/b v4.5.6 // indirect\n)\n";
        assert_eq!(version_in(text, "k8s.io/a"), Some("v1.2.3"));
        assert_eq!(version_in(text, "k8s.io/b"), Some("v4.5.6"));
        assert_eq!(version_in(text, "k8s.io"), None);
    }
}
