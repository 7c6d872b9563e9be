//! `cargo xtask test`: every test of the workspace, on this machine's kernel.
//!
//! The runner's own output passes through untouched; at the end stand its counts, added up. They also go to
//! `target/test-summary.txt`, for scripts that run more afterwards.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::run::{self, step};
use crate::setup::{self, Purpose};
use crate::tally::Tally;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask test               everything
  cargo xtask test connect udp   the tests whose names contain `connect` or `udp`")]
pub(crate) struct Args {
    /// Run only tests whose names contain one of these
    filter: Vec<String>,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        require_root()?;
        setup::ensure(Purpose::Test)?;
        build::kernel()?;
        let agent = build::agent(false)?;

        step("running the tests");
        let mut cargo = run::cargo();
        cargo.args(["test", "--workspace", "--no-fail-fast", "--"]).args(&self.filter);
        cargo.env("BULKHEAD", agent);
        let (tally, passed) = run_tests(&mut cargo)?;
        fs::write(run::target().join("test-summary.txt"), format!("{tally}\n"))
            .context("can't write target/test-summary.txt")?;
        println!("\n{tally}");
        if !passed || tally.failed > 0 {
            bail!("the tests failed: look for `FAILED` and `panicked` above");
        }
        if tally == Tally::default() {
            bail!("no test ran");
        }
        Ok(())
    }
}

/// Kernel tests make cgroups and network namespaces and load programs. One that can't is a failure, not a skip, so
/// better to say it before anything is built.
pub(crate) fn require_root() -> Result<()> {
    let uid = fs::metadata("/proc/self").context("can't read /proc")?.uid();
    if uid != 0 {
        bail!("the tests load programs into the kernel and need root: run this as root (it runs as uid {uid} now)");
    }
    Ok(())
}

/// Passes the runner's output on, line by line, and adds up its counts. The flag is whether it exited with 0.
fn run_tests(command: &mut Command) -> Result<(Tally, bool)> {
    let mut runner = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start `{}`", run::line_of(command)))?;
    let output = runner.stdout.take().context("the runner's output isn't a pipe")?;
    let mut tally = Tally::default();
    let mut terminal = std::io::stdout().lock();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("can't read the runner's output")?;
        terminal.write_all(&line).and_then(|()| terminal.write_all(b"\n")).context("can't write to the terminal")?;
        tally = tally + Tally::of_line(&String::from_utf8_lossy(&line)).unwrap_or_default();
    }
    let status = runner.wait().context("can't wait for the runner")?;
    Ok((tally, status.success()))
}
