//! `cargo xtask demo`: builds everything, then tells the story on this machine's kernel.
//!
//! The story itself is a program of its own (`tests/demo/`), since it stands on the same sandbox as the kernel tests,
//! while xtask must be built before anything else can be. It takes this process's place, so that Ctrl-C and exit codes
//! are its own.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::run::{self, step};
use crate::setup::{self, Purpose};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask demo                     from a flat network to enforced rules: under two minutes once all is built
  cargo xtask demo --json demo.json    what it measured, for programs
  cargo xtask demo --keep              leave it running for a look around

Exit codes: 0 the story held, 1 it didn't or something failed, 130 interrupted.")]
pub(crate) struct Args {
    /// Write what was measured
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw what was printed
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Leave it running until Enter or Ctrl-C
    #[arg(long)]
    keep: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        require_root()?;
        setup::ensure(Purpose::Build)?;
        build::kernel()?;
        step("building the agent and the demo");
        let mut cargo = run::cargo();
        cargo.args(["build", "--package", "bulkhead", "--package", "bulkhead-tests", "--bins"]);
        run::run(&mut cargo)?;

        let folder = run::target().join("debug");
        let mut demo = Command::new(folder.join("demo"));
        demo.arg("--bulkhead").arg(folder.join("bulkhead"));
        demo.arg("--shipped").arg(run::root().join("deploy/demo"));
        demo.arg("--pictures").arg(run::target().join("demo"));
        for (option, file) in [("--json", self.json), ("--svg", self.svg)] {
            if let Some(file) = file {
                demo.arg(option).arg(env::current_dir().context("where is this?")?.join(file));
            }
        }
        if self.keep {
            demo.arg("--keep");
        }
        println!();
        Err(demo.exec()).with_context(|| format!("can't start `{}`", run::line_of(&demo)))
    }
}

/// Better said before anything is built.
fn require_root() -> Result<()> {
    let uid = fs::metadata("/proc/self").context("can't read /proc")?.uid();
    if uid != 0 {
        bail!("the demo loads programs into the kernel and makes cgroups and network namespaces: run it as root");
    }
    Ok(())
}
