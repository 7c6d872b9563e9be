//! `cargo xtask ci`: every check there is, one after the other, with a table at the end.
//!
//! A stage that has passed isn't run again while no file of the checkout differs, so a run that was interrupted, or in
//! which one stage failed, goes on where it was. A stage that fails doesn't keep the others from being run.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::e2e::interrupt;
use crate::run::{self, note, root};
use crate::tally::Tally;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask ci                     what holds before a change is merged: as .ci/run, without setting up
  cargo xtask ci --full              everything: all kernels, all faults on the cluster, the bench; hours
  cargo xtask ci --full --only e2e   one stage of it
  cargo xtask ci --full --fresh      also what has passed on these very files

The results are in target/ci/results.json, each stage's output in target/ci/STAGE.log.

Exit codes: 0 every stage passed, 1 one didn't.")]
pub(crate) struct Args {
    /// Everything
    #[arg(long)]
    full: bool,
    /// Run stages again that have passed on these files
    #[arg(long)]
    fresh: bool,
    /// Only this stage (again for more)
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A task of xtask with its arguments; the stage is called after the task.
type Stage = &'static [&'static str];

/// What `.ci/run` runs.
const SHORT: [Stage; 5] = [
    &["test"],
    &["lint"],
    &["demo"],
    &["e2e", "--story", "--if-built"],
    &[
        "matrix",
        "kernel_smoke",
        "kernel_sandbox",
        "kernel_verdict",
        "kernel_counters",
        "kernel_commit",
        "kernel_sockets",
        "kernel_datagrams",
    ],
];

const FULL: [Stage; 7] = [
    &["test"],
    &["lint"],
    &["demo", "--json", "target/ci/demo.json"],
    &["corpus", "--json", "target/ci/corpus.json"],
    &["matrix"],
    &["e2e", "--release", "--json", "target/ci/e2e.json"],
    &["bench", "--quick", "--json", "target/ci/bench.json"],
];

/// All that is known, for programs and for the next run.
#[derive(Default, Serialize, Deserialize)]
struct Results {
    commit: String,
    /// Whether files differ from that commit.
    changed: bool,
    ok: bool,
    stages: Vec<Done>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Done {
    stage: String,
    command: String,
    ok: bool,
    /// `None`: ended by a signal.
    code: Option<i32>,
    seconds: f64,
    /// The sum of the test runner's counts, where it ran.
    tests: Option<String>,
    /// Of all files of the checkout, when it ran.
    files: String,
    log: PathBuf,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let all: &[Stage] = if self.full { &FULL } else { &SHORT };
        if let Some(unknown) = self.only.iter().find(|name| all.iter().all(|stage| stage[0] != name.as_str())) {
            let names: Vec<&str> = all.iter().map(|stage| stage[0]).collect();
            bail!("there is no stage `{unknown}`: they are {}", names.join(", "));
        }
        interrupt::watch()?;
        let folder = run::target().join("ci");
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let file = folder.join("results.json");
        let before: Results = fs::read(&file).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        let wanted: Vec<Stage> =
            all.iter().copied().filter(|s| self.only.is_empty() || self.only.iter().any(|o| o == s[0])).collect();
        let mut results = Results {
            commit: git(&["rev-parse", "HEAD"])?.trim().to_owned(),
            changed: !git(&["status", "--porcelain"])?.trim().is_empty(),
            ok: false,
            // Those that aren't run now may be wanted by another run.
            stages: before.stages,
        };
        let mut shown = Vec::new();
        for (at, stage) in wanted.iter().enumerate() {
            let files = fingerprint()?;
            let command = format!("cargo xtask {}", stage.join(" "));
            let passed = results.stages.iter().find(|d| d.command == command && d.ok && d.files == files).cloned();
            let heading = format!("### {}/{} {command}", at + 1, wanted.len());
            if let Some(done) = passed.filter(|_| !self.fresh) {
                println!("{heading}: passed before, on these files");
                shown.push((done, true));
                continue;
            }
            println!("{heading}");
            let done = execute(stage, command, files, &folder)?;
            let word = if done.ok { "passed" } else { "FAILED" };
            println!("{heading}: {word} in {}", length(done.seconds));
            results.stages.retain(|d| d.command != done.command);
            results.stages.push(done.clone());
            write(&file, &results)?;
            shown.push((done, false));
        }
        results.ok = shown.iter().all(|(done, _)| done.ok);
        results.stages = shown.iter().map(|(done, _)| done.clone()).chain(results.stages).collect();
        let mut seen = std::collections::BTreeSet::new();
        results.stages.retain(|done| seen.insert(done.command.clone()));
        write(&file, &results)?;
        if let Some(other) = &self.json {
            write(other, &results)?;
        }
        println!("\n{}", table(&shown));
        note(format!("{} at {}", if results.changed { "changed files" } else { "the commit" }, results.commit));
        let failed: Vec<&str> = shown.iter().filter(|(d, _)| !d.ok).map(|(d, _)| d.stage.as_str()).collect();
        if !failed.is_empty() {
            bail!("not passed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// Runs a stage; its output goes to the terminal as it comes, and into its log.
fn execute(stage: Stage, command: String, files: String, folder: &Path) -> Result<Done> {
    let name = stage[0];
    let path = folder.join(format!("{name}.log"));
    let log = File::create(&path).with_context(|| format!("can't make {}", path.display()))?;
    let started = Instant::now();
    let mut xtask = Command::new(std::env::current_exe().context("where is xtask?")?);
    xtask.args(stage).current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = xtask.spawn().with_context(|| format!("can't start `{command}`"))?;
    let (out, err) = (child.stdout.take().context("no output")?, child.stderr.take().context("no output")?);
    let status = thread::scope(|scope| {
        let (mut one, mut other) = (log.try_clone()?, log.try_clone()?);
        scope.spawn(move || copy(out, &mut std::io::stdout(), &mut one));
        scope.spawn(move || copy(err, &mut std::io::stderr(), &mut other));
        wait(&mut child)
    });
    let status = status.with_context(|| format!("waiting for `{command}`"))?;
    interrupt::check()?;
    let said = fs::read(&path).unwrap_or_default();
    Ok(Done {
        stage: name.to_owned(),
        command,
        ok: status.success(),
        code: status.code(),
        seconds: started.elapsed().as_secs_f64(),
        tests: Tally::of_text(&String::from_utf8_lossy(&said)).map(|tally| tally.to_string()),
        files,
        log: path.strip_prefix(root()).unwrap_or(&path).to_owned(),
    })
}

/// Waits for a stage. When somebody wants the run to end, the stage is asked to, and may clear up.
fn wait(child: &mut Child) -> Result<ExitStatus> {
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !asked && interrupt::check().is_err() {
            asked = true;
            if let Some(pid) = Pid::from_raw(i32::try_from(child.id())?) {
                // It may have ended by itself just now.
                kill_process(pid, Signal::TERM).ok();
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// To the terminal and to the log. Neither holds up the stage: what can't be written is lost.
fn copy(mut from: impl Read, terminal: &mut impl Write, log: &mut File) {
    let mut piece = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        terminal.write_all(&piece[..n]).and_then(|()| terminal.flush()).ok();
        log.write_all(&piece[..n]).ok();
    }
}

/// What all files of the checkout are, those that aren't committed yet too.
fn fingerprint() -> Result<String> {
    let names = git(&["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    let mut digest = Sha256::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        digest.update(name);
        // One that was removed and not committed is named and isn't there.
        let content = fs::read(root().join(name)).unwrap_or_default();
        digest.update(content.len().to_le_bytes());
        digest.update(content);
    }
    Ok(digest.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect())
}

fn git(words: &[&str]) -> Result<String> {
    run::output_of(Command::new("git").current_dir(root()).args(words))
}

fn write(file: &Path, results: &Results) -> Result<()> {
    let text = serde_json::to_string_pretty(results).context("can't write JSON")? + "\n";
    fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

fn table(shown: &[(Done, bool)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["stage", "", "took", "tests", "output"]);
    for (done, before) in shown {
        let word = match (done.ok, before) {
            (true, false) => "passed",
            (true, true) => "passed before",
            (false, _) => "FAILED",
        };
        let log = done.log.display().to_string();
        table.add_row([done.stage.as_str(), word, &length(done.seconds), done.tests.as_deref().unwrap_or(""), &log]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn length(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.0} s") } else { format!("{:.1} min", seconds / 60.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_all_stages_fits_the_terminal_and_names_what_failed() {
        let done = |stage: &str, ok| Done {
            stage: stage.to_owned(),
            command: String::new(),
            ok,
            code: Some(1),
            seconds: 7199.0,
            tests: Some("1234 passed, 0 failed, 0 ignored".to_owned()),
            files: String::new(),
            log: "target/ci/matrix.log".into(),
        };
        let text = table(&[(done("matrix", true), false), (done("corpus", true), true), (done("e2e", false), false)])
            .to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("FAILED") && text.contains("passed before") && text.contains("120.0 min"), "{text}");
    }

    #[test]
    fn whats_short_is_what_the_script_runs() {
        let script = fs::read_to_string(root().join(".ci/run")).expect("the script");
        for stage in SHORT {
            assert!(script.contains(&format!("cargo xtask {}", stage.join(" "))), "{stage:?}");
        }
    }
}
