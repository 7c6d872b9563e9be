//! `cargo xtask build`: the kernel programs first, then the agent that embeds them.
//!
//! The object goes to `target/bulkhead-ebpf.o`, where the agent's build script takes it from. It holds no path of this
//! machine and is only touched when its bytes change, so the agent isn't compiled again for nothing.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::object;
use crate::run::{self, note, step};
use crate::setup::{self, Purpose};
use crate::toolchain::{TARGET, Toolchain};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask build              the kernel programs, and target/debug/bulkhead with them
  cargo xtask build --release    the same into target/release/bulkhead")]
pub(crate) struct Args {
    /// Optimise the agent (the kernel programs always are)
    #[arg(long)]
    release: bool,
    /// Stop after the kernel programs
    #[arg(long)]
    kernel_only: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        kernel()?;
        if !self.kernel_only {
            let agent = agent(self.release)?;
            note(agent.strip_prefix(run::root()).unwrap_or(&agent).display().to_string());
        }
        Ok(())
    }
}

/// Compiles the kernel programs and answers where the object is.
pub(crate) fn kernel() -> Result<PathBuf> {
    setup::ensure(Purpose::Build)?;
    let Some(toolchain) = Toolchain::find() else {
        bail!("no compiler for BPF on this machine: run `cargo xtask setup --for build`");
    };
    step(format!("building the kernel programs with {}", toolchain.name()));
    let started = Instant::now();
    run::run(toolchain.cargo("build", &[])?.arg("--quiet"))?;
    let built = run::target().join("ebpf").join(TARGET).join("release/bulkhead");
    let bytes = fs::read(&built).with_context(|| format!("cargo left no object at {}", built.display()))?;
    let bytes = object::slim(&bytes)?;
    let object = run::target().join("bulkhead-ebpf.o");
    let changed = run::write_if_changed(&object, &bytes)?;
    let what = if changed { "new" } else { "unchanged" };
    let (kib, took) = (bytes.len().div_ceil(1024), started.elapsed());
    note(format!("target/bulkhead-ebpf.o, {what}, {kib} KiB, {:.1} s", took.as_secs_f64()));
    Ok(object)
}

/// Compiles the agent with the kernel programs that are in `target/` now, and answers where the binary is.
pub(crate) fn agent(release: bool) -> Result<PathBuf> {
    step("building the agent");
    let mut cargo = run::cargo();
    // The whole workspace's choice of features, as the tests have it: the dependencies aren't compiled a second time.
    cargo.args(["build", "--workspace", "--bin", "bulkhead"]);
    if release {
        cargo.arg("--release");
    }
    run::run(&mut cargo)?;
    Ok(run::target().join(if release { "release" } else { "debug" }).join("bulkhead"))
}
