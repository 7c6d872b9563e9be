//! `cargo xtask setup`: brings what a task needs onto the machine, and says so.
//!
//! Where nothing is missing it changes nothing, asks nobody, and takes some milliseconds: every other task calls it
//! first. Packages come from apt, programs from crates.io; nothing is fetched by hand.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::run::{self, find_program, note, step};
use crate::toolchain::{self, Toolchain};

/// What Debian's way of compiling for the kernel takes. The LLVM packages are for building bpf-linker.
const DEBIAN_COMPILER: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_LLVM: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev", "libxml2-dev"];
const DEBIAN_LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const BPF_LINKER: &str = "0.13.0";

/// Lints the kernel crate; must come from where the compiler comes from.
const DEBIAN_CLIPPY: &[&str] = &["rust-web-clippy"];
const CARGO_DENY: &str = "0.20.2";
/// Has promtool, which checks the alerts.
const PROMETHEUS: &[&str] = &["prometheus"];

/// What the agent's dependencies that are written in C are built with, beside the compiler that Rust links with.
const C_PACKAGES: &[&str] = &["make"];
/// Programs of the tests: namespaces, veth pairs.
const TEST_PACKAGES: &[&str] = &["iproute2"];
/// Programs that boot other kernels.
const MATRIX_PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "xz-utils", "kmod"];
/// What the test cluster takes from Debian: everything else of it is built from Go modules.
const CLUSTER_PACKAGES: &[&str] =
    &["runc", "containernetworking-plugins", "nftables", "iptables", "conntrack", "iproute2", "mount", "hostname"];

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask setup                 everything, for all tasks
  cargo xtask setup --for build     only what compiles the kernel programs
  cargo xtask setup --for matrix    QEMU and what its guests are made of
  cargo xtask setup --for cluster   runc, CNI plugins and what else a node takes from Debian")]
pub(crate) struct Args {
    /// Install only what this task needs
    #[arg(long = "for", value_enum)]
    purpose: Option<Purpose>,
}

/// A task that needs something installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// Compile the kernel programs
    Build,
    /// Run the tests on this kernel
    Test,
    /// Clippy for the kernel programs, cargo-deny, promtool
    Lint,
    /// Boot other kernels
    Matrix,
    /// Bring a test cluster up
    Cluster,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let purposes = self.purpose.map_or_else(|| Purpose::value_variants().to_vec(), |one| vec![one]);
        for purpose in purposes {
            ensure(purpose)?;
        }
        if let (Some(way), Some(linker)) = (Toolchain::find(), toolchain::linker()) {
            step("ready");
            note(format!("kernel programs are compiled by {}", way.name()));
            note(format!("and linked by {}", linker.display()));
        }
        Ok(())
    }
}

/// Makes sure that `purpose` has what it needs.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    match purpose {
        Purpose::Build => ensure_compilers(),
        Purpose::Test => {
            ensure_compilers()?;
            ensure_packages(TEST_PACKAGES)
        }
        Purpose::Lint => {
            ensure_compilers()?;
            if Toolchain::find() == Some(Toolchain::Debian) {
                ensure_packages(DEBIAN_CLIPPY)?;
            }
            if find_program("promtool").is_none() {
                ensure_packages(PROMETHEUS)?;
            }
            ensure_crate("cargo-deny", CARGO_DENY, |_| {})
        }
        Purpose::Matrix => {
            ensure_compilers()?;
            ensure_packages(MATRIX_PACKAGES)
        }
        Purpose::Cluster => ensure_packages(CLUSTER_PACKAGES),
    }
}

/// What compiles the agent and the programs that it embeds.
fn ensure_compilers() -> Result<()> {
    if find_program("make").is_none() {
        ensure_packages(C_PACKAGES)?;
    }
    ensure_bpf()
}

/// A compiler for BPF and its linker.
fn ensure_bpf() -> Result<()> {
    if Toolchain::find().is_none() {
        step("this machine has no compiler for BPF yet");
        if apt_offers(DEBIAN_COMPILER)? {
            note("Debian has one ready: taking that");
            ensure_packages(DEBIAN_COMPILER)?;
        } else if find_program("rustup").is_some() {
            note("apt has none: asking rustup for a nightly with rust-src");
            run::run(
                Command::new("rustup")
                    .args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"])
                    .env_remove("RUSTUP_TOOLCHAIN"),
            )?;
        } else {
            bail!("neither apt nor rustup can give one: install rustup's nightly with the component rust-src");
        }
    }
    if toolchain::linker().is_some() {
        return Ok(());
    }
    if apt_offers(DEBIAN_LLVM)? {
        ensure_packages(DEBIAN_LLVM)?;
        return ensure_crate("bpf-linker", BPF_LINKER, |cargo| {
            // Without LLVM_PREFIX it would take the first llvm-config on the PATH, whichever version that is.
            cargo.env("LLVM_PREFIX", DEBIAN_LLVM_PREFIX).env("LLVM_SYS_221_PREFIX", DEBIAN_LLVM_PREFIX);
            cargo.args(["--no-default-features", "--features", "llvm-22"]);
        });
    }
    bail!(
        "bpf-linker is missing and apt has no LLVM 22 to build it with: put the binary of \
         https://github.com/aya-rs/bpf-linker/releases on the PATH"
    )
}

/// Installs a program from crates.io, by default with its own lock file.
fn ensure_crate(name: &str, version: &str, adjust: impl FnOnce(&mut Command)) -> Result<()> {
    if find_program(name).is_some() {
        return Ok(());
    }
    step(format!("installing {name} {version} from crates.io (takes some minutes)"));
    let mut cargo = run::cargo();
    cargo.args(["install", name, "--version", version, "--locked", "--quiet"]);
    adjust(&mut cargo);
    run::run(&mut cargo)
}

/// Installs the Debian packages among `names` that aren't there.
fn ensure_packages(names: &[&str]) -> Result<()> {
    let missing = missing_packages(names)?;
    if missing.is_empty() {
        return Ok(());
    }
    step(format!("installing Debian packages: {}", missing.join(" ")));
    update_lists()?;
    apt(&["install", "--yes", "--no-install-recommends"], &missing)
}

/// Those of `names` that dpkg doesn't have. Where there is no dpkg, the programs are the reader's business.
fn missing_packages<'a>(names: &[&'a str]) -> Result<Vec<&'a str>> {
    if find_program("dpkg-query").is_none() {
        return Ok(Vec::new());
    }
    let format = "${db:Status-Status} ${Package}\n";
    // It exits with 1 when it doesn't know one of them, which is an answer too.
    let output = run::collect(Command::new("dpkg-query").arg("--show").arg(format!("-f={format}")).args(names))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let installed = |name: &str| said.lines().any(|line| line.strip_prefix("installed ") == Some(name));
    Ok(names.iter().copied().filter(|name| !installed(name)).collect())
}

/// Whether apt could install all of `names`.
fn apt_offers(names: &[&str]) -> Result<bool> {
    if find_program("apt-get").is_none() {
        return Ok(false);
    }
    let known =
        || -> Result<bool> { Ok(run::collect(Command::new("apt-cache").arg("show").args(names))?.status.success()) };
    if known()? {
        return Ok(true);
    }
    update_lists()?;
    known()
}

/// `apt-get update`, once per run: packages that the lists still name may be gone from the mirror.
pub(crate) fn update_lists() -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    note("apt-get update");
    apt(&["update"], &[])
}

/// Runs apt-get, and waits while another one holds its locks.
fn apt(arguments: &[&str], names: &[&str]) -> Result<()> {
    const TRIES: u32 = 40;
    for attempt in 1..=TRIES {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).args(arguments).args(names);
        // No service is started by being installed (invoke-rc.d(8)): only the programs are wanted.
        command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        let output = run::collect(&mut command).context("apt-get is needed here")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.contains("Could not get lock") && !said.contains("Unable to lock") || attempt == TRIES {
            let hint = if said.contains("Permission denied") { "\nRun it as root." } else { "" };
            bail!("`{}` failed: {}\n{}{hint}", run::line_of(&command), output.status, said.trim_end());
        }
        if attempt == 1 {
            note("another apt is at work, waiting for it");
        }
        sleep(Duration::from_secs(3));
    }
    Ok(())
}
