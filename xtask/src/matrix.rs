//! `cargo xtask matrix`: what must hold on every kernel, run on several.
//!
//! What runs is the same everywhere, this machine included: the test executables that are named `kernel_…`, and the
//! agent's own probe. They are linked statically, so that they bring all they need into a guest that has nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::guest::{self, Done, Job, Report, SERIES};
use crate::programs::{self, Program};
use crate::run::{self, note, step};
use crate::setup::{self, Purpose};
use crate::tally::Tally;
use crate::{build, test};

/// Test executables that run on every kernel are called so.
const TESTS: &str = "kernel_*";

/// The agent's binary.
const AGENT: &str = "bulkhead";

/// Commands of the agent that run on every kernel. Each prints JSON.
const COMMANDS: &[(&str, &[&str])] = &[("probe", &["probe", "--json"])];

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask matrix                             the guests' kernels, one after the other
  cargo xtask matrix --kernel 6.12               one of them
  cargo xtask matrix --kernel host               the same programs on this machine's kernel
  cargo xtask matrix --kernel 6.1 kernel_smoke   only the programs whose names contain this

Logs and outputs are left under target/matrix/KERNEL/.")]
pub(crate) struct Args {
    /// Where to run (again for more); both guests by default
    #[arg(long)]
    kernel: Vec<Place>,
    /// End a guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,
    /// Run only programs whose names contain one of these
    filter: Vec<String>,
}

/// A kernel to run on.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    /// Debian 12's kernel, in QEMU
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12's backported kernel, fully preemptible, in QEMU
    #[value(name = "6.12")]
    V6_12,
    /// This machine's
    Host,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Host => "host",
        }
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let places = if self.kernel.is_empty() { vec![Place::V6_1, Place::V6_12] } else { self.kernel };
        if places.contains(&Place::Host) {
            test::require_root()?;
        }
        setup::ensure(Purpose::Matrix)?;
        build::kernel()?;
        let programs = Programs::build()?;
        let jobs = programs.jobs(&self.filter)?;
        let limit = Duration::from_secs(self.limit);

        let (mut sum, mut failed) = (Tally::default(), Vec::new());
        for place in places {
            step(format!("kernel {}", place.name()));
            let folder = run::target().join("matrix").join(place.name());
            let report = match SERIES.iter().find(|series| series.name == place.name()) {
                Some(series) => guest::boot(series, &jobs, &programs.agent, &folder, limit, tell_job)?,
                None => {
                    let agent = programs.agent.to_string_lossy();
                    guest::run_here(&jobs, &[("BULKHEAD", &agent)], limit, tell_job)?
                }
            };
            sum = sum + tell(&report);
            save(&report, &folder)?;
            if report.trouble.is_some() || report.done.iter().any(|done| fault(done).is_some()) {
                failed.push(place.name());
            }
        }
        println!("\n{sum}");
        if !failed.is_empty() {
            bail!("the matrix failed on {}: the outputs are under target/matrix/", failed.join(" and "));
        }
        Ok(())
    }
}

/// Executables that run anywhere.
struct Programs {
    agent: PathBuf,
    tests: Vec<(String, PathBuf)>,
}

impl Programs {
    fn build() -> Result<Self> {
        step("building static programs for the guests");
        let mut cargo = run::cargo();
        cargo.args(["build", "--package", "bulkhead", "--bin", "bulkhead", "--package", "bulkhead-tests"]);
        cargo.args(["--test", TESTS]);
        let (mut agent, mut tests) = (None, Vec::new());
        for Program { name, kind, file } in programs::all(cargo, false)? {
            match kind.as_str() {
                // The tests' package has programs of its own, which are built beside its tests.
                "bin" if name == AGENT => agent = Some(file),
                "test" => tests.push((name, file)),
                _ => {}
            }
        }
        tests.sort();
        Ok(Self { agent: agent.context("cargo built no agent")?, tests })
    }

    fn jobs(&self, filter: &[String]) -> Result<Vec<Job>> {
        let tests = self.tests.iter().map(|(name, program)| Job {
            name: name.clone(),
            program: program.clone(),
            arguments: Vec::new(),
        });
        let commands = COMMANDS.iter().map(|(name, arguments)| Job {
            name: (*name).to_owned(),
            program: self.agent.clone(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        });
        let wanted = |job: &Job| filter.is_empty() || filter.iter().any(|part| job.name.contains(part));
        let jobs: Vec<Job> = tests.chain(commands).filter(wanted).collect();
        if jobs.is_empty() {
            bail!("no program's name contains {}", filter.join(" or "));
        }
        Ok(jobs)
    }
}

/// Why a job counts as failed, if it does.
fn fault(done: &Done) -> Option<String> {
    let is_command = COMMANDS.iter().any(|(name, _)| *name == done.name);
    match done.code {
        None => Some("didn't end".to_owned()),
        Some(code) if code != 0 => Some(format!("exit code {code}")),
        Some(_) if is_command => {
            let json = serde_json::from_str::<serde_json::Value>(&done.output);
            json.is_err().then(|| "printed no JSON".to_owned())
        }
        Some(_) => match Tally::of_text(&done.output) {
            Some(tally) if tally.failed == 0 => None,
            Some(tally) => Some(tally.to_string()),
            None => Some("printed no counts".to_owned()),
        },
    }
}

/// Prints how one job did.
fn tell_job(done: &Done) {
    let tally = Tally::of_text(&done.output);
    let result = match (fault(done), tally) {
        (Some(fault), _) => format!("FAILED: {fault}"),
        (None, Some(tally)) => tally.to_string(),
        (None, None) => "ok".to_owned(),
    };
    note(format!("{:<28} {:<42} {:>7.1} s", done.name, result, done.took.as_secs_f64()));
    if fault(done).is_some() {
        for line in guest::last_lines(&done.output, 60).lines() {
            note(format!("  | {line}"));
        }
    }
}

/// How a kernel did, and the sum over its jobs.
fn tell(report: &Report) -> Tally {
    if let Some(trouble) = &report.trouble {
        note(format!("FAILED: {trouble}"));
    }
    if !report.absent.is_empty() {
        note(format!("this kernel has no {}", report.absent.join(", ")));
    }
    let preempt = if report.preempt.is_empty() { String::new() } else { format!(", preempt={}", report.preempt) };
    note(format!("Linux {}{preempt}: {:.1} s", report.release, report.took.as_secs_f64()));
    report.done.iter().filter_map(|done| Tally::of_text(&done.output)).sum()
}

/// Leaves each job's output in a file of its own.
fn save(report: &Report, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    for done in &report.done {
        let file = folder.join(format!("{}.txt", done.name));
        fs::write(&file, &done.output).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(())
}
