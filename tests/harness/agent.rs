//! The real binary: an agent in a folder of its own, with its own socket, state, pins and BPF file system.
//!
//! Whatever it left is taken off on drop, also after a panic.

use crate::enforced::id;
use crate::{ApiServer, Estate, wait_at_most};
use bulkhead::datapath;
use bulkhead::sources::hierarchy::Hierarchy;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long a start may take: an emulated machine needs many seconds to verify the programs.
const START: Duration = Duration::from_secs(60);

/// What a command printed.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The same of one that must exit with 0.
#[track_caller]
pub fn fine(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    text(output)
}

/// The path of the binary.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("BULKHEAD").expect("BULKHEAD names the binary: run the tests by `cargo xtask test`");
    path.into()
}

/// An agent, running or not.
pub struct Agent {
    folder: tempfile::TempDir,
    child: Option<Child>,
    starts: u32,
    /// Of an agent in a cluster: how it reaches the API server.
    kubeconfig: Option<PathBuf>,
}

impl Agent {
    /// Writes a configuration for the estate: each workload is `spiffe://test/NAME`. Nothing is started.
    pub fn over(estate: &Estate, more: &str) -> Self {
        Self::named(estate, more, id)
    }

    /// The same with other SPIFFE IDs: that of a workload by its name.
    pub fn named(estate: &Estate, more: &str, id: impl Fn(&str) -> String) -> Self {
        let mount = Hierarchy::find().expect("cgroup2").mount;
        let below = |path: &Path| format!("/{}", path.strip_prefix(&mount).expect("below the mount").display());
        let mut text = format!("{more}\nworkloads:\n");
        for w in estate.workloads() {
            let (name, cgroup) = (w.name(), below(w.cgroup().path()));
            let addresses: Vec<String> = w.addresses().iter().map(|a| format!("\"{a}\"")).collect();
            text.push_str(&format!(
                "- {{name: {name}, id: {}, cgroup: {cgroup}, addresses: [{}]}}\n",
                id(name),
                addresses.join(", ")
            ));
        }
        Self::at(estate.sandbox().cgroup().path(), &text)
    }

    /// Writes a configuration for a node of the cluster that this API server is of, with the pods below this cgroup.
    pub fn of_node(node: &str, pods: &Path, server: &ApiServer, more: &str) -> Self {
        let mut this = Self::at(pods, &format!("cluster: {{node: {node}, trustDomain: test}}\n{more}\n"));
        this.kubeconfig = Some(server.kubeconfig(this.folder()));
        this
    }

    /// The parts of a configuration that every agent has, and these lines.
    fn at(attach: &Path, lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let this = Self { folder, child: None, starts: 0, kubeconfig: None };
        fs::create_dir(this.policies()).expect("a folder");
        let mount = Hierarchy::find().expect("cgroup2").mount;
        let attach = attach.strip_prefix(&mount).expect("below the mount").display();
        let at = this.folder.path().display();
        let text = format!(
            "instance: test\nattach: [/{attach}]\nsocket: {at}/sock\nstate: {at}/state\nbpffs: {at}/bpf\n\
             policies: [{at}/policies]\n{lines}"
        );
        fs::write(this.config(), text).expect("a file");
        this
    }

    /// The folder that everything is in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration's file.
    pub fn config(&self) -> PathBuf {
        self.folder().join("bulkhead.yaml")
    }

    /// The folder of policies.
    pub fn policies(&self) -> PathBuf {
        self.folder().join("policies")
    }

    /// Where its BPF file system is mounted.
    pub fn bpffs(&self) -> PathBuf {
        self.folder().join("bpf")
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self, arguments: &[&str]) {
        self.starts += 1;
        let log = File::create(self.log_file()).expect("a file");
        self.child = Some(self.spawn(arguments, log.into()));
        wait_at_most(START, "an agent that is ready", || {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            assert!(ended.is_none(), "the agent ended: {ended:?}\n{}", self.log());
            self.log().contains(" ready epoch=")
        });
    }

    /// Starts one more, that nobody listens to and whoever called looks after.
    pub fn spawn_quietly(&self) -> Child {
        self.spawn(&[], Stdio::null())
    }

    fn spawn(&self, arguments: &[&str], errors: Stdio) -> Child {
        let mut command = Command::new(binary());
        command.arg("agent").arg("--config").arg(self.config()).args(arguments);
        command.envs(self.kubeconfig.iter().map(|path| ("KUBECONFIG", path)));
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        command.stderr(errors).spawn().expect("BULKHEAD names an executable")
    }

    /// The process id of the running agent.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    fn log_file(&self) -> PathBuf {
        self.folder().join(format!("log-{}", self.starts))
    }

    /// What it has logged since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Ends it as the kernel's out-of-memory killer would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("it was ours");
        }
    }

    /// Runs a command that asks it, or works on its files. It may be of several words.
    pub fn ask(&self, command: &str, arguments: &[&str]) -> Output {
        let (flag, path) = match command {
            "uninstall" | "preflight" | "early" => ("--config", self.config()),
            _ => ("--socket", self.folder().join("sock")),
        };
        let mut asked = Command::new(binary());
        asked
            .args(command.split(' '))
            .arg(flag)
            .arg(path)
            .args(arguments)
            .output()
            .expect("BULKHEAD names an executable")
    }

    /// The status as JSON, and the exit code.
    pub fn status(&self) -> (serde_json::Value, Option<i32>) {
        let out = self.ask("status", &["--json"]);
        (serde_json::from_slice(&out.stdout).unwrap_or_default(), out.status.code())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
        if let Some(mut child) = self.child.take()
            && let Err(e) = child.kill().and_then(|()| child.wait())
        {
            eprintln!("the agent stays: {e}");
        }
        if let Err(e) = datapath::uninstall("test", &self.bpffs()) {
            eprintln!("its pins stay: {e}");
        }
        // Not mounted if it never came that far.
        if let Err(e) = rustix::mount::unmount(self.bpffs(), rustix::mount::UnmountFlags::DETACH)
            && ![rustix::io::Errno::NOENT, rustix::io::Errno::INVAL].contains(&e)
        {
            eprintln!("its BPF file system stays: {e}");
        }
    }
}
