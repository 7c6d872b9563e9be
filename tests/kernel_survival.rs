//! Enforcement outlives the agent: it is killed again and again at any point of its life, stopped and started, while
//! datagrams flow that one rule allows and none allows. None of the second kind ever arrives, and none of the first is
//! lost or refused.
//!
//! Each start swaps the programs through the pinned links, as an upgrade does. `BULKHEAD_KILLS` says how often it is
//! killed (default 200); on slow machines less is enough.

use bulkhead_tests::{Estate, Process, SOON, Workload, any, at, give_room, numbers};
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A restart after every so many kills.
const KILLS_PER_RESTART: usize = 10;
/// Between two datagrams: 5,000 a second.
const PACE: Duration = Duration::from_micros(200);
const PORT: u16 = 5000;

/// What a real user has: a configuration, policies, and the binary.
struct Installed {
    folder: tempfile::TempDir,
    instance: String,
}

fn binary() -> PathBuf {
    std::env::var_os("BULKHEAD").map(PathBuf::from).expect("BULKHEAD names the agent's binary: run cargo xtask test")
}

impl Installed {
    fn over(estate: &Estate) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let instance = format!("survival-{}", std::process::id());
        let top = estate.sandbox().cgroup().path().file_name().expect("it has a name").to_string_lossy().into_owned();
        let (at, mut workloads) = (folder.path().display(), String::new());
        for w in estate.workloads() {
            let (name, [v4, v6]) = (w.name(), w.addresses());
            writeln!(
                workloads,
                "  - {{id: 'spiffe://test/{name}', cgroup: '/{top}/{name}', addresses: ['{v4}', '{v6}']}}"
            )
            .expect("a string grows");
        }
        let config = format!(
            "instance: {instance}\nworkloads:\n{workloads}attach: ['/{top}']\nunlisted: unknown\nposture: enforce\n\
             policies: ['{at}/policies']\nsocket: '{at}/socket'\nstate: '{at}/state'\n"
        );
        std::fs::write(folder.path().join("config.yaml"), config).expect("a file");
        std::fs::create_dir(folder.path().join("policies")).expect("a folder");
        let policy = format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: one}}\nspec:\n  \
             mode: enforce\n  edges:\n    - from: [{{id: spiffe://test/web}}]\n      \
             to: [{{id: spiffe://test/database}}]\n      ports: [{{protocol: UDP, port: {PORT}}}]\n"
        );
        std::fs::write(folder.path().join("policies/one.yaml"), policy).expect("a file");
        Self { folder, instance }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Child {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(self.path("log")).expect("a log");
        let mut command = Command::new(binary());
        command.args(["agent", "--config"]).arg(self.path("config.yaml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("it starts")
    }

    /// Waits until the ruleset is in force and the programs are attached.
    fn wait_ready(&self, agent: &mut Child) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let asked = Command::new(binary())
                .args(["status", "--json", "--socket"])
                .arg(self.path("socket"))
                .stderr(Stdio::null())
                .output()
                .expect("it runs");
            if asked.status.code().is_some_and(|c| c < 2) {
                return;
            }
            let log = || std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(agent.try_wait().expect("a child").is_none(), "the agent ended: {}", log());
            assert!(Instant::now() < deadline, "the agent isn't ready: {}", log());
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let done = Command::new(binary()).args(["uninstall", "--config"]).arg(self.path("config.yaml")).output();
        match done {
            Ok(o) if o.status.success() => {}
            Ok(o) => eprintln!("{} stays: {}", self.instance, String::from_utf8_lossy(&o.stderr)),
            Err(e) => eprintln!("{} stays: {e}", self.instance),
        }
    }
}

/// Sends numbered datagrams at a steady pace until the file appears. `allowed`: the first refusal is a failure. Else
/// every datagram comes from a new socket, so that nothing remembered helps. Says how many were sent.
fn send(from: &Workload, to: SocketAddr, tag: u8, allowed: bool, until: &Path) -> Process {
    from.spawn(move |turn| {
        let mut socket = UdpSocket::bind(any(false, 0))?;
        let (begin, mut sent, mut tried) = (Instant::now(), 0u64, 0u32);
        while tried % 256 != 0 || !until.exists() {
            if !allowed && tried % 16 == 0 {
                socket = UdpSocket::bind(any(false, 0))?;
            }
            let mut payload = [tag; 9];
            payload[1..].copy_from_slice(&sent.to_be_bytes());
            match socket.send_to(&payload, to) {
                Ok(_) => sent += 1,
                Err(e) if allowed => {
                    turn.doing("an allowed datagram was refused");
                    return Err(e);
                }
                Err(_) => {}
            }
            tried += 1;
            if let Some(rest) = (PACE * tried).checked_sub(begin.elapsed()) {
                std::thread::sleep(rest);
            }
        }
        turn.received(sent.to_string().as_bytes())
    })
    .expect("a process")
}

/// Counts what arrives by its tag until the file is there and nothing more comes; says both counts.
fn count(on: &Workload, until: &Path) -> Process {
    let mut process = on
        .spawn(move |turn| {
            let socket = UdpSocket::bind(any(false, PORT))?;
            give_room(&socket)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            turn.ready()?;
            let (mut buffer, mut allowed, mut denied) = ([0u8; 64], 0u64, 0u64);
            loop {
                match socket.recv(&mut buffer) {
                    Ok(_) if buffer[0] == b'a' => allowed += 1,
                    Ok(_) => denied += 1,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock && until.exists() => break,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            turn.received(format!("{allowed} {denied}").as_bytes())
        })
        .expect("a process");
    process.wait_ready(SOON).expect("bound");
    process.go(&[]).expect("it goes on");
    process
}

#[test]
fn no_kill_and_no_upgrade_opens_a_path_or_closes_one() {
    let kills: usize = std::env::var("BULKHEAD_KILLS").map_or(200, |n| n.parse().expect("BULKHEAD_KILLS is a number"));
    let estate = Estate::new(&["web", "database", "intruder"]);
    let installed = Installed::over(&estate);
    let mut agent = installed.start();
    installed.wait_ready(&mut agent);

    let stop = installed.path("stop");
    let to = at(estate.get("database"), false, PORT);
    let mut receiver = count(estate.get("database"), &stop);
    let mut allowed = send(estate.get("web"), to, b'a', true, &stop);
    let mut denied = send(estate.get("intruder"), to, b'd', false, &stop);

    let mut restarts = 0;
    for n in 0..kills {
        // Anywhere in its life: spread over the start, and a little beyond it.
        std::thread::sleep(Duration::from_millis((n as u64 * 37) % 400));
        agent.kill().expect("it is killed");
        agent.wait().expect("it ended");
        agent = installed.start();
        if n % KILLS_PER_RESTART == KILLS_PER_RESTART - 1 {
            installed.wait_ready(&mut agent);
            let pid = rustix::process::Pid::from_child(&agent);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is told to end");
            assert!(agent.wait().expect("it ends").success());
            agent = installed.start();
            installed.wait_ready(&mut agent);
            restarts += 1;
        }
    }
    std::fs::write(&stop, "").expect("a file");
    let (sent, refused) = (numbers(&mut allowed, SOON)[0], numbers(&mut denied, SOON)[0]);
    let [got, leaked] = numbers(&mut receiver, SOON)[..] else { panic!("two numbers") };
    agent.kill().expect("it is killed");
    agent.wait().expect("it ended");
    eprintln!("{kills} kills, {restarts} restarts: {got} of {sent} allowed datagrams arrived, {leaked} denied ones");
    assert_eq!(refused, 0, "sends that no rule allows were let through");
    assert_eq!(leaked, 0, "datagrams arrived that no rule allows");
    assert_eq!(got, sent, "allowed datagrams were lost");
    assert!(sent > 0);
}
