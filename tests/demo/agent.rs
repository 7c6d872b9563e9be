//! The real agent: `bulkhead agent` with the shipped configuration, and the real commands to ask it.
//!
//! It has a folder of its own for everything that it needs, also its own BPF file system, so that all of it can be
//! taken away again. That happens on drop.

use crate::{estate, interrupt};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long it may take until the programs are attached.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a change of its files may take to be in force.
const APPLIED_WITHIN: Duration = Duration::from_secs(15);
/// How long it may take to end when it is asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(8);

/// Where the folders are, and how each is called before the name of its instance.
const RUN: &str = "/run";
const PREFIX: &str = "bulkhead-";

/// The names in the shipped files that the demo puts others in place of.
const SHIPPED_FOLDER: &str = "/run/bulkhead-demo/";
const SHIPPED_CGROUP: &str = "/bulkhead-demo";
const SHIPPED_INSTANCE: &str = "instance: bulkhead-demo";

/// The agent's files and, once it is started, its process.
pub(crate) struct Agent {
    program: PathBuf,
    folder: PathBuf,
    instance: String,
    config: String,
    process: Option<Child>,
}

impl Agent {
    /// Puts the shipped configuration into a new folder. `cgroup` is the one above the workloads.
    pub(crate) fn prepare(program: &Path, shipped: &Path, cgroup: &str) -> Result<Self> {
        let instance = format!("demo-{}", std::process::id());
        let folder = Path::new(RUN).join(format!("{PREFIX}{instance}"));
        fs::create_dir(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let mut agent = Self { program: program.to_owned(), folder, instance, config: String::new(), process: None };
        fs::create_dir(agent.policies()).context("can't make the folder of policies")?;
        let file = shipped.join("bulkhead.yaml");
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        agent.config = text
            .replace(SHIPPED_FOLDER, &format!("{}/", agent.folder.display()))
            .replace(SHIPPED_INSTANCE, &format!("instance: {}", agent.instance))
            .replace(&format!("{SHIPPED_CGROUP}/"), &format!("{cgroup}/"))
            .replace(&format!("[{SHIPPED_CGROUP}]"), &format!("[{cgroup}]"));
        agent.write_config()?;
        Ok(agent)
    }

    /// The binary.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The folder of policies that it reads.
    pub(crate) fn policies(&self) -> PathBuf {
        self.folder.join("policies")
    }

    /// Where the suggested policies are written.
    fn suggested(&self) -> PathBuf {
        self.folder.join("suggested")
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("bulkhead.yaml")
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("bulkhead.sock")
    }

    /// Starts it, and waits until its programs are attached. Says how long that took.
    pub(crate) fn start(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let log = File::create(self.folder.join("agent.log")).context("can't make the agent's log")?;
        let mut command = Command::new(&self.program);
        command.arg("agent").arg("--config").arg(self.config());
        // Its own process group: Ctrl-C is for the demo, which then ends the agent in its turn.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?)) };
        self.process = Some(command.spawn().context("can't start the agent")?);
        interrupt::wait("the agent isn't ready", READY_WITHIN, || {
            self.alive()?;
            Ok(self.status()?.filter(|s| s["ready"] == true))
        })
        .with_context(|| self.last_words())?;
        Ok(started.elapsed())
    }

    /// Lets the real command write what it would suggest into a folder, and puts those files where the agent looks for
    /// policies once [`Agent::adopt`] is called. Gives what it says for programs and for people.
    pub(crate) fn suggest(&self, enough: impl Fn(&Value) -> bool, within: Duration) -> Result<(Value, String)> {
        let config = self.config().display().to_string();
        let words = ["policy", "suggest", "--config", config.as_str()];
        let until = Instant::now() + within;
        let suggestion = interrupt::wait("bulkhead policy suggest has nothing to say", 2 * within, || {
            let said = self.ask(&[&words[..], &["--json"]].concat())?;
            let Ok(said) = serde_json::from_str::<Value>(&said) else { return Ok(None) };
            Ok((enough(&said) || Instant::now() > until).then_some(said))
        })?;
        let folder = self.suggested().display().to_string();
        let report = self.ask(&[&words[..], &["--output", folder.as_str()]].concat())?;
        Ok((suggestion, report.replace(&format!("{}/", self.folder.display()), "")))
    }

    /// Copies the suggested policies to where the agent looks for policies. Says which files there are.
    pub(crate) fn adopt(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.suggested()).context("can't read the suggested policies")? {
            let from = entry?.path();
            let name = from.file_name().context("a file has a name")?;
            fs::copy(&from, self.policies().join(name)).with_context(|| format!("can't copy {}", from.display()))?;
            names.push(name.to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Changes the one line `posture:` of its configuration.
    pub(crate) fn set_posture(&mut self, posture: &str) -> Result<()> {
        let lines = self.config.lines().map(|line| match line.starts_with("posture:") {
            true => format!("posture: {posture}\n"),
            false => format!("{line}\n"),
        });
        self.config = lines.collect();
        self.write_config()
    }

    /// Changes the lines `mode:` of the policies.
    pub(crate) fn set_mode(&self, from: &str, to: &str) -> Result<()> {
        for entry in fs::read_dir(self.policies()).context("can't read the policies")? {
            let file = entry?.path();
            let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
            let text = text.replace(&format!("mode: {from}\n"), &format!("mode: {to}\n"));
            fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
        }
        Ok(())
    }

    /// Waits until everybody has that posture, and all policies are in force in the mode of the same name.
    pub(crate) fn wait_for(&mut self, posture: &str) -> Result<()> {
        interrupt::wait(&format!("{posture} isn't in force"), APPLIED_WITHIN, || {
            self.alive()?;
            let Some(status) = self.status()? else { return Ok(None) };
            let all = |list: &str, key: &str| {
                let list = status[list].as_array().filter(|list| !list.is_empty());
                list.is_some_and(|list| list.iter().all(|one| one[key] == posture))
            };
            let there = all("workloads", "posture") && all("policies", "mode");
            Ok((there && faultless(&status)).then_some(()))
        })
        .with_context(|| self.last_words())
    }

    /// Asks it by the real command.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<String> {
        said(&mut self.command(words)).with_context(|| format!("bulkhead {}", words.join(" ")))
    }

    /// Asks it for one JSON document.
    pub(crate) fn document(&self, words: &[&str]) -> Result<Value> {
        let said = self.ask(words)?;
        serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))
    }

    /// Asks it for JSON lines.
    pub(crate) fn lines(&self, words: &[&str]) -> Result<Vec<Value>> {
        let said = self.ask(words)?;
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"));
        said.lines().map(parse).collect()
    }

    /// Lets a command run that follows, its output going to a file. It ends with the agent.
    pub(crate) fn follow(&self, words: &[&str], file: &str) -> Result<Following> {
        let path = self.folder.join(file);
        let output = File::create(&path).context("can't make a file for what is followed")?;
        let mut command = self.command(words);
        let child = command.stdout(output).process_group(0).spawn().context("can't follow")?;
        Ok(Following { child, path })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).arg("--socket").arg(self.socket()).stdin(Stdio::null());
        command
    }

    /// The status, once the socket answers.
    fn status(&self) -> Result<Option<Value>> {
        let output = self.command(&["status", "--json"]).output().context("can't run bulkhead status")?;
        Ok(serde_json::from_slice(&output.stdout).ok())
    }

    fn alive(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.try_wait()?
        {
            self.process = None;
            bail!("the agent ended by itself: {status}");
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the agent's last words:\n{}", lines[lines.len().saturating_sub(12)..].join("\n"))
    }

    fn write_config(&self) -> Result<()> {
        fs::write(self.config(), &self.config).with_context(|| format!("can't write {}", self.config().display()))
    }

    /// Ends it and takes everything off.
    fn remove(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            end(&mut process)?;
        }
        clear(&self.program, &self.instance, &self.folder)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(e) = self.remove() {
            eprintln!("demo: something stays behind in {}: {e:#}", self.folder.display());
        }
    }
}

/// What a command prints that answers by 0 or 1.
fn said(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().context("can't run it")?;
    match output.status.code() {
        Some(0 | 1) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        _ => bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()),
    }
}

/// Takes off the programs of an agent that has ended, with the real command, and removes its folder.
fn clear(program: &Path, instance: &str, folder: &Path) -> Result<()> {
    let bpffs = folder.join("bpf");
    if bpffs.exists() {
        let mut uninstall = Command::new(program);
        uninstall.args(["uninstall", "--instance", instance, "--bpffs"]).arg(&bpffs);
        let output = uninstall.stdin(Stdio::null()).output().context("can't run bulkhead uninstall")?;
        if !output.status.success() {
            bail!("bulkhead uninstall: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        // It isn't mounted if the agent never came that far.
        rustix::mount::unmount(&bpffs, rustix::mount::UnmountFlags::DETACH).ok();
    }
    fs::remove_dir_all(folder).with_context(|| format!("can't remove {}", folder.display()))
}

/// Clears away what a demo left that was killed and couldn't: each names its folder by its process.
pub(crate) fn clear_leftovers(program: &Path) -> Result<()> {
    for entry in fs::read_dir(RUN).context("can't read /run")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(instance) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else { continue };
        let Some(pid) = instance.strip_prefix("demo-").and_then(|p| p.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            clear(program, instance, &entry.path())?;
            estate::clear_leftovers(&format!("{PREFIX}{instance}-"))?;
        }
    }
    Ok(())
}

/// Whether nothing in a status says that something is wrong.
fn faultless(status: &Value) -> bool {
    let errors = status["findings"].as_array().is_some_and(|all| all.iter().any(|f| f["error"] == true));
    status["faults"].as_array().is_some_and(Vec::is_empty) && !errors
}

/// A command that runs beside the story. Dropping it ends it.
pub(crate) struct Following {
    child: Child,
    path: PathBuf,
}

impl Following {
    /// What it printed until now.
    pub(crate) fn lines(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.path).context("can't read what was followed")?;
        // The last line may be half written.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Err(e) = end(&mut self.child) {
            eprintln!("demo: {e:#}");
        }
    }
}

/// Ends a child politely, and otherwise if it doesn't.
fn end(child: &mut Child) -> Result<()> {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        bail!("a process has a number");
    };
    if child.try_wait()?.is_none() {
        kill_process(pid, Signal::TERM)?;
    }
    let deadline = Instant::now() + ENDS_WITHIN;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break;
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}
