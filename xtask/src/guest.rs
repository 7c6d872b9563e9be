//! A machine with another kernel: built from files, booted in QEMU, asked to run some programs, and gone again.
//!
//! The guest is an initramfs of a static busybox, the modules that our tests need, and static programs of ours. It has
//! two serial ports: the kernel speaks on the first, the programs on the second, so that neither tears the other's
//! lines. It needs neither KVM nor root nor a network.

mod initramfs;
mod kernel;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::run::{self, note};
use initramfs::Initramfs;
pub(crate) use kernel::{SERIES, Series};

/// What a kernel says whose code was patched on one emulated processor while another ran it. Real ones don't trip.
const TRIPPED: &str = "Oops: int3";
/// How often a guest is booted whose kernel tripped so before any job began.
const BOOTS: u32 = 3;
/// Kernel modules that tests use, where the kernel has them: links between namespaces, protocols that try to get past
/// the hooks, and the questions that are asked about sockets.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "dummy",
    "macvlan",
    "tun",
    "af_packet",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "mptcp_diag",
    "unix_diag",
    "af_packet_diag",
    "sctp",
    "sctp_diag",
    "vsock",
    "vsock_loopback",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_masq",
];

/// Begins each line that isn't a program's output.
const MARK: &str = "@@guest ";

/// Where a kernel says how it preempts: all modes that it knows, the one in force in parentheses.
const PREEMPT: &str = "/sys/kernel/debug/sched/preempt";

/// A program to run.
pub(crate) struct Job {
    /// Unique among the jobs of a run, one word.
    pub(crate) name: String,
    /// A statically linked executable of this machine.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// What became of a [`Job`].
pub(crate) struct Done {
    pub(crate) name: String,
    /// What it exited with; `None` if it never came to that.
    pub(crate) code: Option<i32>,
    /// What it printed, on either output.
    pub(crate) output: String,
    pub(crate) took: Duration,
}

/// What a guest left behind.
pub(crate) struct Report {
    /// As in `uname -r`.
    pub(crate) release: String,
    /// How it preempts, as far as it says so: `none`, `voluntary`, `full`, `lazy`, or nothing.
    pub(crate) preempt: String,
    /// One for each job, in their order.
    pub(crate) done: Vec<Done>,
    /// From power-on to power-off.
    pub(crate) took: Duration,
    /// Modules that this kernel doesn't have.
    pub(crate) absent: Vec<&'static str>,
    /// Why the guest ended before the last job, if it did.
    pub(crate) trouble: Option<String>,
}

/// Boots `series`, runs `jobs` one after the other, and collects what they printed. They find the
/// agent by the variable BULKHEAD; `folder` gets the logs. A guest that runs past `limit` is switched off. Each job's result is
/// `told` once, most of them as soon as they are there.
pub(crate) fn boot(
    series: &Series,
    jobs: &[Job],
    agent: &Path,
    folder: &Path,
    limit: Duration,
    mut told: impl FnMut(&Done),
) -> Result<Report> {
    let kernel = series.fetch()?;
    let (modules, absent) = kernel.modules(MODULES)?;
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;

    let archive = folder.join("initramfs");
    let mut files = Initramfs::create(&archive)?;
    for name in ["dev", "proc", "sys", "run", "tmp", "etc"] {
        files.folder(name)?;
    }
    files.copy("bin/busybox", Path::new("/bin/busybox"))?;
    files.link("bin/sh", "busybox")?;
    for (number, module) in modules.iter().enumerate() {
        files.program(&format!("modules/{number:02}-{}", module.name), &module.content)?;
    }
    let programs: BTreeSet<&Path> = jobs.iter().map(|job| job.program.as_path()).chain([agent]).collect();
    for program in programs {
        files.copy(&inside(program), program)?;
    }
    let agent = format!("/{}", inside(agent));
    // Where a start takes seconds, it isn't worth killing the agent as often as on the host.
    files.program(
        "init",
        init(jobs, &[("BULKHEAD", &agent), ("BULKHEAD_KILLS", "10"), ("BULKHEAD_SLOWNESS", "8")]).as_bytes(),
    )?;
    files.finish()?;

    let console = folder.join("console.txt");
    let mut qemu = Command::new("qemu-system-x86_64");
    let memory = memory(fs::metadata(&archive)?.len());
    qemu.args(["-machine", "accel=tcg", "-cpu", "max", "-m", &memory.to_string(), "-smp", "2"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(&archive);
    let preempt = series.preempt.map(|mode| format!(" preempt={mode}")).unwrap_or_default();
    qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1{preempt}"));

    // SAFETY: one system call, between fork and exec.
    unsafe {
        qemu.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }

    let started = Instant::now();
    let mut boots = 1;
    let conversation = loop {
        let heard = Listening::listen(&mut qemu, limit, &mut told)?;
        let tripped = heard.died_at_boot() && fs::read_to_string(&console).is_ok_and(|text| text.contains(TRIPPED));
        if !tripped || boots == BOOTS {
            break heard.conclude(jobs, &mut told);
        }
        boots += 1;
        note(format!("the emulator tripped over code that the kernel was patching (`{TRIPPED}`): booting once more"));
    };
    let took = started.elapsed();
    fs::remove_file(&archive).with_context(|| format!("can't remove {}", archive.display()))?;
    fs::write(folder.join("output.txt"), &conversation.raw).context("can't write the guest's output")?;
    let trouble = conversation.trouble.map(|trouble| {
        let console = fs::read_to_string(&console).unwrap_or_default();
        format!("{trouble}; the kernel's last words:\n{}", last_lines(&console, 25))
    });
    let preempt = conversation.preempt;
    let trouble = trouble.or_else(|| match series.preempt {
        Some(asked) if preempt != asked => Some(format!("asked for preempt={asked}, and it runs with `{preempt}`")),
        _ => None,
    });
    Ok(Report { release: kernel.release, preempt, done: conversation.done, took, absent, trouble })
}

/// How many MiB a guest needs whose file system is that large. While it is unpacked it is there twice, and it may take half of
/// what there is (Linux: Documentation/filesystems/ramfs-rootfs-initramfs.rst).
fn memory(archive: u64) -> u64 {
    const LEAST: u64 = 1536;
    const WORK: u64 = 1024;
    LEAST.max(WORK + 2 * archive.div_ceil(1 << 20))
}

/// Where `program` lies inside.
fn inside(program: &Path) -> String {
    format!("bin/{}", program.file_name().unwrap_or_default().to_string_lossy())
}

/// The guest's first process: it makes the machine, runs the jobs, and switches off.
///
/// The kernel patches its own code when it looks for a TCP connection of a family for the first time, and emulated
/// processors may trip over that while another one runs there (`Oops: int3` in `inet6_ehashfn`). So that is had before
/// anything else runs, on one processor.
fn init(jobs: &[Job], environment: &[(&str, &str)]) -> String {
    let mut script = format!(
        "#!/bin/sh\n\
        export PATH=/bin HOME=/\n\
        /bin/busybox --install -s /bin\n\
        mount -t devtmpfs none /dev\n\
        mount -t proc none /proc\n\
        mount -t sysfs none /sys\n\
        mount -t tmpfs none /run\n\
        mount -t tmpfs none /tmp\n\
        mount -t cgroup2 none /sys/fs/cgroup\n\
        mount -t bpf none /sys/fs/bpf\n\
        mount -t tracefs none /sys/kernel/tracing\n\
        mount -t debugfs none /sys/kernel/debug\n\
        mkdir /dev/pts /dev/shm\n\
        mount -t devpts none /dev/pts\n\
        mount -t tmpfs none /dev/shm\n\
        stty -F /dev/ttyS1 raw\n\
        exec </dev/null >/dev/ttyS1 2>&1\n\
        echo \"{MARK}preempt $(cat {PREEMPT})\"\n\
        ulimit -n 65536\n\
        ip link set lo up\n\
        for module in /modules/*; do insmod $module || echo \"{MARK}trouble can't load $module\"; done\n\
        echo 0 >/sys/devices/system/cpu/cpu1/online\n\
        for at in 127.0.0.1 ::1; do nc -w 1 $at 9; done\n\
        sleep 0.5\n\
        echo 1 >/sys/devices/system/cpu/cpu1/online\n\
        job() {{\n\
            name=$1; shift\n\
            echo \"{MARK}begin $name\"; \"$@\"; code=$?; echo; echo \"{MARK}end $name $code\"\n\
        }}\n"
    );
    for (name, value) in environment {
        script.push_str(&format!("export {name}={}\n", quote(value)));
    }
    for job in jobs {
        let words = [job.name.clone(), format!("/{}", inside(&job.program))];
        let words: Vec<String> = words.iter().chain(&job.arguments).map(|word| quote(word)).collect();
        script.push_str(&format!("job {}\n", words.join(" ")));
    }
    script.push_str(&format!("echo \"{MARK}off\"\nsync\npoweroff -f\n"));
    script
}

/// The mode in parentheses, or nothing.
fn preempt_mode(text: &str) -> String {
    text.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(mode, _)| mode).to_owned()
}

/// A word that the shell takes as it is.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// What came over the second serial port.
struct Conversation {
    raw: String,
    preempt: String,
    done: Vec<Done>,
    trouble: Option<String>,
}

/// A running QEMU: gone at the end of the scope, and with this process, whatever happens.
struct Power(Child);

impl Drop for Power {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The state of listening: which job speaks.
struct Listening {
    raw: String,
    preempt: String,
    /// The job that runs now, since when, and what it has said.
    current: Option<(String, Instant, String)>,
    done: Vec<Done>,
    trouble: Option<String>,
    off: bool,
}

impl Listening {
    fn new() -> Self {
        Self { raw: String::new(), preempt: String::new(), current: None, done: Vec::new(), trouble: None, off: false }
    }

    /// Starts `qemu` and listens until it ends.
    fn listen(qemu: &mut Command, limit: Duration, mut told: impl FnMut(&Done)) -> Result<Self> {
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("can't start QEMU")?;
        let mut guest = Power(child);
        let output = guest.0.stdout.take().context("QEMU's output isn't a pipe")?;
        let (lines, heard) = mpsc::channel();
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });

        let end = Instant::now() + limit;
        let mut listening = Self::new();
        loop {
            match heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let before = listening.done.len();
                    listening.hear(&line, Instant::now());
                    listening.done[before..].iter().for_each(&mut told);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    listening.trouble = Some(format!("switched off after {} s", limit.as_secs()));
                    break;
                }
            }
        }
        drop(guest);
        drop(heard);
        listener.join().ok().context("the thread that listened to the guest panicked")?;
        Ok(listening)
    }

    fn hear(&mut self, line: &str, now: Instant) {
        self.raw.push_str(line);
        self.raw.push('\n');
        let Some(mark) = line.strip_prefix(MARK) else {
            if let Some((_, _, output)) = &mut self.current {
                output.push_str(line);
                output.push('\n');
            }
            return;
        };
        match mark.split(' ').collect::<Vec<_>>()[..] {
            ["begin", name] => self.current = Some((name.to_owned(), now, String::new())),
            ["end", name, code] => {
                if let Some((current, since, output)) = self.current.take_if(|(current, ..)| current == name) {
                    self.done.push(Done { name: current, code: code.parse().ok(), output, took: now - since });
                }
            }
            ["off"] => self.off = true,
            ["preempt", ..] => self.preempt = preempt_mode(mark),
            _ => note(mark),
        }
    }

    /// Whether it ended by itself before any job began.
    fn died_at_boot(&self) -> bool {
        !self.off && self.trouble.is_none() && self.current.is_none() && self.done.is_empty()
    }

    /// One result for each job: those that never ended have no exit code.
    fn conclude(mut self, jobs: &[Job], told: impl FnMut(&Done)) -> Conversation {
        let before = self.done.len();
        if !self.off && self.trouble.is_none() {
            self.trouble = Some("the guest ended before its last job".to_owned());
        }
        if let Some((name, since, output)) = self.current.take() {
            self.done.push(Done { name, code: None, output, took: since.elapsed() });
        }
        for job in jobs {
            if !self.done.iter().any(|done| done.name == job.name) {
                let name = job.name.clone();
                self.done.push(Done { name, code: None, output: "never started\n".to_owned(), took: Duration::ZERO });
            }
        }
        self.done[before..].iter().for_each(told);
        Conversation { raw: self.raw, preempt: self.preempt, done: self.done, trouble: self.trouble }
    }
}

/// Runs `jobs` on this machine's own kernel instead, each ended at `limit`, and its result `told`.
pub(crate) fn run_here(
    jobs: &[Job],
    environment: &[(&str, &str)],
    limit: Duration,
    told: impl Fn(&Done),
) -> Result<Report> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("can't read /proc")?.trim().to_owned();
    let (started, mut done) = (Instant::now(), Vec::new());
    for job in jobs {
        let since = Instant::now();
        // Our own timer would leave the children of a job that hangs; this one ends its whole group.
        let mut command = Command::new("timeout");
        command.arg(limit.as_secs().to_string()).arg(&job.program).args(&job.arguments);
        command.envs(environment.iter().copied());
        let output = run::collect(&mut command)?;
        let said = [output.stdout, output.stderr].concat();
        done.push(Done {
            name: job.name.clone(),
            code: output.status.code(),
            output: String::from_utf8_lossy(&said).into_owned(),
            took: since.elapsed(),
        });
        done.last().into_iter().for_each(&told);
    }
    if done.is_empty() {
        bail!("nothing to run");
    }
    // Debugfs may not be mounted here.
    let preempt = preempt_mode(&fs::read_to_string(PREEMPT).unwrap_or_default());
    Ok(Report { release, preempt, done, took: started.elapsed(), absent: Vec::new(), trouble: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str) -> Job {
        Job { name: name.to_owned(), program: "/x/it's".into(), arguments: vec!["--json".to_owned()] }
    }

    fn heard(lines: &[&str]) -> Listening {
        let mut listening = Listening::new();
        lines.iter().for_each(|line| listening.hear(line, Instant::now()));
        listening
    }

    fn listen(lines: &[&str]) -> Conversation {
        heard(lines).conclude(&[job("a"), job("b")], |_| ())
    }

    #[test]
    fn a_guest_died_at_boot_only_before_any_job() {
        assert!(heard(&["boot", "@@guest preempt none"]).died_at_boot());
        assert!(!heard(&["@@guest begin a"]).died_at_boot());
        assert!(!heard(&["@@guest begin a", "@@guest end a 0"]).died_at_boot());
        assert!(!heard(&["@@guest off"]).died_at_boot());
    }

    #[test]
    fn collects_each_jobs_output_and_exit_code() {
        let heard = listen(&[
            "boot",
            "@@guest preempt none voluntary (full)",
            "@@guest begin a",
            "one",
            "@@guest end a 0",
            "@@guest begin b",
            "@@guest end b 101",
            "@@guest off",
        ]);
        let seen: Vec<_> = heard.done.iter().map(|done| (&*done.name, done.code, &*done.output)).collect();
        assert_eq!(seen, [("a", Some(0), "one\n"), ("b", Some(101), "")]);
        assert_eq!(heard.trouble, None);
        assert_eq!(heard.preempt, "full");
    }

    #[test]
    fn a_job_that_never_ends_has_no_exit_code_and_the_rest_never_started() {
        let heard = listen(&["@@guest begin a", "one"]);
        let seen: Vec<_> = heard.done.iter().map(|done| (&*done.name, done.code)).collect();
        assert_eq!(seen, [("a", None), ("b", None)]);
        assert!(heard.trouble.is_some());
    }

    #[test]
    fn quotes_what_the_shell_would_read() {
        assert!(init(&[job("a")], &[("X", "y z")]).contains("export X='y z'\njob 'a' '/bin/it'\\''s' '--json'\n"));
    }
}
