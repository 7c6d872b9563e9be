//! `cargo xtask lint`: everything that can be checked without running the code.
//!
//! All checks run, also after one has failed, and the last lines name those that did.

mod sources;

use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{self, find_program, note, root, step};
use crate::setup::{self, Purpose};
use crate::toolchain::Toolchain;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask lint           everything
  cargo xtask lint --fast    only what needs no compiler: format, purity, lengths, headers, paths")]
pub(crate) struct Args {
    /// Skip clippy and cargo-deny
    #[arg(long)]
    fast: bool,
}

/// A check, and the name under which it fails.
type Check = (&'static str, fn() -> Result<()>);

/// What needs no compiler.
const FAST: &[Check] = &[("format", format), ("sources", sources::check), ("machine paths", sources::check_paths)];
/// What does.
const SLOW: &[Check] =
    &[("clippy", clippy), ("clippy for the kernel programs", clippy_kernel), ("cargo-deny", deny), ("alerts", alerts)];

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        if !self.fast {
            setup::ensure(Purpose::Lint)?;
        }
        let slow = if self.fast { &[] } else { SLOW };
        let mut failed = Vec::new();
        for (name, check) in FAST.iter().chain(slow) {
            step(name);
            if let Err(error) = check() {
                note(format!("{error:#}"));
                failed.push(*name);
            }
        }
        if !failed.is_empty() {
            bail!("lint failed: {}", failed.join(", "));
        }
        step("lint: all clean");
        Ok(())
    }
}

fn format() -> Result<()> {
    run::run(run::cargo().args(["fmt", "--all", "--", "--check"]))?;
    run::run(run::cargo().args(["fmt", "--", "--check"]).current_dir(root().join("ebpf")))
}

fn clippy() -> Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-Dwarnings"];
    run::run(run::cargo().args(arguments))
}

/// Clippy with the compiler that builds the kernel programs, for the kernel's target.
fn clippy_kernel() -> Result<()> {
    let Some(toolchain) = Toolchain::find() else {
        bail!("no compiler for BPF on this machine: run `cargo xtask setup --for lint`");
    };
    run::run(toolchain.cargo("clippy", &[])?.args(["--quiet", "--", "-Dwarnings"]))
}

/// Licences, sources and duplicates of the dependencies. The advisories need a database that is fetched by git; where
/// that can be reached, `cargo deny check advisories` does it.
fn deny() -> Result<()> {
    let Some(program) = find_program("cargo-deny") else {
        bail!("cargo-deny is missing: run `cargo xtask setup --for lint`");
    };
    for manifest in ["Cargo.toml", "ebpf/Cargo.toml"] {
        let mut command = Command::new(&program);
        command.current_dir(root()).args(["--log-level", "error", "--manifest-path", manifest, "--all-features"]);
        command.args(["--config", "deny.toml", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
        run::run(&mut command)?;
    }
    Ok(())
}

/// The shipped alerts, and what they are meant to fire at.
fn alerts() -> Result<()> {
    let Some(program) = find_program("promtool") else {
        bail!("promtool is missing: run `cargo xtask setup --for lint`");
    };
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        run::run(Command::new(&program).args(arguments).current_dir(root().join("deploy")))?;
    }
    Ok(())
}
