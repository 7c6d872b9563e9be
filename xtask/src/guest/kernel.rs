//! Kernels of other machines: Debian's packages, unpacked under `target/kernels/` and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{self, note, step};
use crate::setup;

/// A kernel that guests can boot.
pub(crate) struct Series {
    /// How it is called on the command line.
    pub(crate) name: &'static str,
    /// The meta-package that depends on the newest kernel of the series.
    package: &'static str,
    /// The preemption that it is booted with, where that isn't its own choice.
    pub(super) preempt: Option<&'static str>,
}

/// The kernels of the matrix. One is booted fully preemptible: counters that aren't atomic lose there, and nowhere else.
pub(crate) const SERIES: &[Series] = &[
    Series { name: "6.1", package: "linux-image-cloud-amd64", preempt: None },
    Series { name: "6.12", package: "linux-image-6.12-cloud-amd64", preempt: Some("full") },
];

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As in `uname -r`.
    pub(super) release: String,
    folder: PathBuf,
}

impl Series {
    /// Fetches the kernel unless it is there already.
    pub(super) fn fetch(&self) -> Result<Kernel> {
        let folder = run::target().join("kernels").join(self.name);
        if !folder.is_dir() {
            step(format!("fetching Debian's kernel {}", self.name));
            let beside = folder.with_extension("new");
            if beside.exists() {
                fs::remove_dir_all(&beside).with_context(|| format!("can't remove {}", beside.display()))?;
            }
            self.unpack(&beside)?;
            fs::rename(&beside, &folder).with_context(|| format!("can't rename to {}", folder.display()))?;
        }
        let releases = folder.join("lib/modules");
        let entry = fs::read_dir(&releases).with_context(|| format!("can't read {}", releases.display()))?.next();
        let Some(entry) = entry.transpose()? else { bail!("no modules below {}: remove it", releases.display()) };
        Ok(Kernel { release: entry.file_name().to_string_lossy().into_owned(), folder })
    }

    fn unpack(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        setup::update_lists()?;
        let depends = run::output_of(Command::new("apt-cache").args(["depends", self.package]))?;
        let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let Some(name) = names.rfind(|name| name.starts_with("linux-image-")) else {
            bail!("apt knows no kernel behind {}: the guests take Debian bookworm's kernels", self.package);
        };
        note(name);
        // apt's own user may not write below a private folder.
        run::run_quietly(Command::new("apt-get").current_dir(folder).args([
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            name,
        ]))?;
        let packages: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        for package in packages {
            run::run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
            fs::remove_file(&package).with_context(|| format!("can't remove {}", package.display()))?;
        }
        let modules = fs::read_dir(folder.join("lib/modules"))?.next().context("the package holds no modules")??;
        // The package leaves that to the machine that installs it.
        run::run_quietly(Command::new("depmod").arg("--basedir").arg(folder).arg(modules.file_name()))
    }
}

impl Kernel {
    /// The file to boot.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The modules among `names` and what they need, each after its own needs, with their contents; and the names
    /// that this kernel has neither as a module nor built in.
    pub(super) fn modules(&self, names: &[&'static str]) -> Result<(Vec<Module>, Vec<&'static str>)> {
        let folder = self.folder.join("lib/modules").join(&self.release);
        let read = |name: &str| {
            let file = folder.join(name);
            fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))
        };
        let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
        let mut files: Vec<&str> = Vec::new();
        let mut absent = Vec::new();
        for name in names {
            let found =
                dependencies.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| stem(file) == *name);
            match found {
                // A line names the needs from the nearest to the farthest.
                Some((file, needs)) => {
                    for file in needs.split_whitespace().rev().chain([file]) {
                        if !files.contains(&file) {
                            files.push(file);
                        }
                    }
                }
                None if builtin.lines().any(|file| stem(file) == *name) => {}
                None => absent.push(*name),
            }
        }
        let modules = files.into_iter().map(|file| Module::read(&folder.join(file))).collect::<Result<_>>()?;
        Ok((modules, absent))
    }
}

/// A module as `insmod` takes it.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

impl Module {
    fn read(file: &Path) -> Result<Self> {
        let content = if file.extension().is_some_and(|extension| extension == "xz") {
            let mut xz = Command::new("xz");
            let output = run::collect(xz.args(["--decompress", "--stdout"]).arg(file))?;
            if !output.status.success() {
                bail!("`{}` failed: {}", run::line_of(&xz), output.status);
            }
            output.stdout
        } else {
            fs::read(file).with_context(|| format!("can't read {}", file.display()))?
        };
        Ok(Self { name: stem(&file.to_string_lossy()).into_owned(), content })
    }
}

/// A module's name: its file's without the endings, in the kernel's spelling.
fn stem(file: &str) -> std::borrow::Cow<'_, str> {
    let name = file.rsplit('/').next().unwrap_or(file);
    let name = name.split('.').next().unwrap_or(name);
    if name.contains('-') { name.replace('-', "_").into() } else { name.into() }
}
