//! Why the agent doesn't start: each reason that can be brought about has an exit code of its own and one clear sentence.

use bulkhead_tests::{Agent, Estate, agent::binary};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Starts an agent in a process that was changed before, and gives its exit code and what it said.
fn refused(config: &Path, change: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.arg("agent").arg("--config").arg(config);
    // SAFETY: `change` makes a few system calls and takes no lock.
    unsafe { command.pre_exec(change) };
    let out = command.output().expect("BULKHEAD names an executable");
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    (out.status.code(), said.lines().filter(|l| l.starts_with("bulkhead: ")).collect::<Vec<_>>().join("\n"))
}

fn check(found: (Option<i32>, String), code: i32, words: &str) {
    assert_eq!(found.0, Some(code), "{}", found.1);
    assert!(found.1.contains(words), "{}", found.1);
    assert_eq!(found.1.lines().count(), 1, "one sentence: {}", found.1);
}

/// A mount namespace of its own, in which mounts can be taken away.
fn own_mounts() -> io::Result<()> {
    // SAFETY: only the file system context changes hands, and the process has one thread yet.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)? };
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

fn nothing() -> io::Result<()> {
    Ok(())
}

#[test]
fn what_the_host_lacks_is_told_apart() {
    let estate = Estate::new(&["web"]);
    let agent = Agent::over(&estate, "");
    let config = agent.config();
    // SAFETY of all below: plain system calls.
    check(
        refused(Path::new("/dev/null"), || {
            // SAFETY: the binary is open to everybody; a failure is an error.
            if unsafe { libc::setresuid(65534, 65534, 65534) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        }),
        10,
        "must run as root",
    );
    let mount = bulkhead::sources::hierarchy::Hierarchy::find().expect("cgroup2").mount;
    let without_cgroup2 = move || {
        own_mounts()?;
        Ok(rustix::mount::unmount(&mount, UnmountFlags::DETACH)?)
    };
    check(refused(&config, without_cgroup2), 11, "no cgroup2 hierarchy is mounted");
    let without_btf = || {
        own_mounts()?;
        let none = rustix::mount::MountFlags::empty();
        Ok(rustix::mount::mount("none", "/sys/kernel/btf", "tmpfs", none, None)?)
    };
    check(refused(&config, without_btf), 12, "has no BTF");
    let without_capability = || {
        // SAFETY: root gets at exec what the bounding set has; CAP_BPF is 39.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 39, 0, 0, 0) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    check(refused(&config, without_capability), 13, "CAP_BPF is missing");
}

#[test]
fn what_is_wrong_with_the_files_or_the_place_is_told_apart() {
    let estate = Estate::new(&["web"]);
    let mut agent = Agent::over(&estate, "");
    let good = std::fs::read_to_string(agent.config()).expect("the file");
    let other = agent.folder().join("other.yaml");
    let with = |old: &str, new: &str| {
        assert!(good.contains(old), "{good}");
        std::fs::write(&other, good.replace(old, new)).expect("a file");
        refused(&other, nothing)
    };
    let bpffs = format!("bpffs: {}", agent.bpffs().display());
    check(with(&bpffs, "bpffs: /proc/nowhere"), 14, "mount it: mount -t bpf bpf /proc/nowhere");
    check(with("instance:", "instanze:"), 16, "other.yaml:1:1: error: unknown field `instanze`");
    check(refused(&agent.folder().join("absent.yaml"), nothing), 16, "absent.yaml: error: can't be read");
    let attach = good.lines().find(|l| l.starts_with("attach:")).expect("a line");
    check(with(attach, "attach: [/cgroup.procs/x, /]"), 16, "in one another");
    let workloads = good.find("workloads:").expect("a line");
    std::fs::write(&other, good[..workloads].replace(attach, "attach: [/cgroup.procs/x]")).expect("a file");
    check(refused(&other, nothing), 19, "the attach point");

    agent.start(&[]);
    check(refused(&agent.config(), nothing), 15, "another agent");
    let state = format!("state: {}/state", agent.folder().display());
    let elsewhere = format!("state: {}/state2", agent.folder().display());
    let socket = format!("socket: {}/sock", agent.folder().display());
    std::fs::write(&other, good.replace(&state, &elsewhere).replace(&socket, &format!("{socket}2"))).expect("a file");
    check(refused(&other, nothing), 15, "another agent");
}
