//! How soon a cluster's change is in force on a node, and what a large cluster costs there.
//!
//! The agent is the real one, with cgroups, pins and a BPF file system of its own; the API server is in this process. A
//! change counts as in force when a process in a pod's cgroup sees it: it tries connect() again and again, and a
//! refusal is EPERM.

mod estate;

use crate::Figure;
use crate::agent::{Memory, fill, map_memory, mib, status_when};
use crate::numbers::{median, percentile};
use anyhow::{Context, Result, ensure};
use bulkhead_tests::sandbox::{Cgroup, Plug, Process, Sandbox, Turn};
use bulkhead_tests::{Agent, ApiServer};
use estate::{
    BENCH, CLUSTER_POLICIES, NODE, NODE_ENDPOINTS, PODS, Sizes, account, edges, endpoints, own_pod, told, uid,
};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take that isn't measured.
const SOON: Duration = Duration::from_secs(60);
/// Between two changes: so long at least, and up to as much again. None waits for what the one before left to do.
const REST: Duration = Duration::from_millis(70);
const PORT: u16 = 7000;
/// Outside of every range of pods, so that who isn't known there is the world, which nobody may connect to.
const TARGET: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const GATED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const ALWAYS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
/// Pods that run on the agent's node all the time.
const RESIDENTS: u32 = 100;
/// Pods that come within a second.
const SWARM: u16 = 1000;
const SWARM_WITHIN: Duration = Duration::from_secs(1);

const TEN_THOUSAND: Sizes = Sizes { nodes: 100, pods: 100, accounts: 1000, policies: 1000, services: 300, dual: true };
const FIFTY_THOUSAND: Sizes =
    Sizes { nodes: 5000, pods: 10, accounts: 1000, policies: 1000, services: 300, dual: false };

/// Nanoseconds of the clock that all processes share.
fn now() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}

/// Whether connect() is let through to there. That nothing is there doesn't matter.
fn passes(to: SocketAddrV4) -> io::Result<bool> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(!matches!(connect(&socket, &to), Err(rustix::io::Errno::PERM)))
}

/// Tries one of the addresses until it is as the parent's message says (its number, and 1 for open), and tells when that
/// was.
fn tries(turn: &mut Turn, targets: [Ipv4Addr; 3]) -> io::Result<()> {
    loop {
        let message = turn.ready()?;
        let [which, open] = message[..] else { return Ok(()) };
        let to = SocketAddrV4::new(targets[usize::from(which)], PORT);
        turn.doing("connect");
        while passes(to)? != (open == 1) {
            sleep(Duration::from_micros(50));
        }
        turn.received(&now().to_ne_bytes())?;
    }
}

fn of_swarm(n: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 0, 0)) + u32::from(n / 250) * 256 + u32::from(n % 250) + 1)
}

/// Tries all addresses of the swarm, and tells when each was first open.
fn tries_swarm(turn: &mut Turn) -> io::Result<()> {
    turn.ready()?;
    let mut open = vec![0u64; SWARM.into()];
    let until = Instant::now() + SOON;
    while open.contains(&0) && Instant::now() < until {
        for (n, at) in (0..).zip(&mut open).filter(|(_, at)| **at == 0) {
            if passes(SocketAddrV4::new(of_swarm(n), PORT))? {
                *at = now();
            }
        }
        sleep(Duration::from_millis(1));
    }
    turn.received(&open.iter().flat_map(|at| at.to_ne_bytes()).collect::<Vec<u8>>())?;
    turn.stay()
}

/// A node of a cluster: pods' cgroups, the API server and the agent. Dropped in this order.
struct Node {
    agent: Agent,
    server: ApiServer,
    cgroups: Vec<Cgroup>,
    plug: Plug,
    pods: Cgroup,
    _sandbox: Sandbox,
}

impl Node {
    /// An agent that isn't started yet.
    fn new(sizes: Sizes) -> Result<Self> {
        let sandbox = Sandbox::new("k8s")?;
        let pods = sandbox.cgroup().child("kubepods")?;
        let server = ApiServer::start();
        sizes.put(&server);
        let agent = Agent::of_node(NODE, pods.path(), &server, "posture: enforce");
        let mut this =
            Self { agent, server, cgroups: Vec::new(), plug: sandbox.switch().plug()?, pods, _sandbox: sandbox };
        for n in 0..RESIDENTS {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 1)) + n);
            // Of service accounts that others have, too, and policies speak of.
            let (namespace, account) = account(n / 2 * 16);
            this.pod(&format!("resident-{n}"), (&namespace, &account), &uid(100, n), address)?;
        }
        Ok(this)
    }

    /// A pod that comes: its cgroup, and then its object. Gives when that was told.
    fn pod(&mut self, name: &str, account: (&str, &str), uid: &str, address: Ipv4Addr) -> Result<u64> {
        self.cgroups.push(self.pods.child(&format!("pod{uid}"))?);
        let pod = own_pod(name, account, uid, address);
        let told = now();
        self.server.put(PODS, pod);
        Ok(told)
    }
}

/// One change and its way back, and who sees it.
struct Change<'a> {
    process: usize,
    target: u8,
    make: &'a dyn Fn(bool),
}

/// From a change at the API server to what a pod's process sees, and a swarm of pods.
pub(crate) fn react(factor: f64) -> Result<Vec<Figure>> {
    let mut node = Node::new(TEN_THOUSAND)?;
    let (late_uid, late_at) = (uid(101, 1), Ipv4Addr::new(10, 64, 0, 201));
    node.pod("prober", (BENCH, "prober"), &uid(101, 0), Ipv4Addr::new(10, 64, 0, 200))?;
    node.pod("late", (BENCH, "late"), &late_uid, late_at)?;
    let allowed = [("prober", "target", PORT), ("late", "target", PORT), ("prober", "swarm", PORT)];
    node.server.put(CLUSTER_POLICIES, edges("bench", 1, &allowed));
    let late = node.cgroups.len() - 1;
    let netns = Some(node.plug.netns());
    let targets = [TARGET, GATED, ALWAYS];
    let mut processes =
        [late - 1, late].map(|cgroup| Process::spawn(Some(&node.cgroups[cgroup]), netns, |turn| tries(turn, targets)));
    let mut swarm = Process::spawn(Some(&node.cgroups[late - 1]), netns, tries_swarm)?;

    let server = &node.server;
    let peer = |there: bool| {
        let mut pods = TEN_THOUSAND.pods_of(1);
        let at = |uid: &str, account: &str, address: Ipv4Addr| told(uid, BENCH, account, &[address.to_string()]);
        pods.push(at("a", "gated", GATED));
        pods.push(at("b", "target", ALWAYS));
        if there {
            pods.push(at("c", "target", TARGET));
        }
        server.put(NODE_ENDPOINTS, endpoints("n1", pods));
    };
    let own = |there: bool| {
        if there {
            server.put(PODS, own_pod("late", (BENCH, "late"), &late_uid, late_at));
        } else {
            server.remove(PODS, BENCH, "late");
        }
    };
    let policy = |open: bool| {
        let port = if open { PORT } else { PORT + 1 };
        server.put(CLUSTER_POLICIES, edges("gate", u32::from(port), &[("prober", "gated", port)]));
    };
    peer(false);
    policy(false);
    own(false);
    node.agent.start(&[]);
    let status = status_when(&node.agent, "the policies aren't in force", |s| {
        s["policies"].as_array().is_some_and(|p| p.len() > TEN_THOUSAND.policies as usize)
    })?;
    ensure!(status["faults"].as_array().is_some_and(Vec::is_empty), "{}", status["faults"]);

    let changes = [
        Change { process: 0, target: 0, make: &peer },
        Change { process: 1, target: 2, make: &own },
        Change { process: 0, target: 1, make: &policy },
    ];
    let mut took: [Vec<f64>; 3] = Default::default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundreds")]
    let rounds = (120.0 * factor).max(25.0) as u32;
    for round in 0..2 * rounds {
        let open = round % 2 == 0;
        for (change, took) in changes.iter().zip(&mut took) {
            sleep(REST + REST.mul_f64(fastrand::f64()));
            let process = processes[change.process].as_mut().map_err(|e| io::Error::other(e.to_string()))?;
            process.wait_ready(SOON)?;
            process.go(&[change.target, u8::from(open)])?;
            let told = now();
            (change.make)(open);
            process.wait_ready(SOON).context("a change never came into force")?;
            let seen = process.received().last().and_then(|b| b[..].try_into().ok()).map(u64::from_ne_bytes);
            took.push(seen.context("a time")?.saturating_sub(told) as f64 / 1e6);
        }
    }
    let [peers, owns, policies] = took;
    let p99 = |all: &Vec<f64>| percentile(all.clone(), 99);
    let pods: Vec<f64> = peers.iter().chain(&owns).copied().collect();
    let note = |all: &Vec<f64>| {
        format!(
            "median {:.1} ms, greatest {:.1} ms of {}",
            median(all.clone()),
            percentile(all.clone(), 100),
            all.len()
        )
    };
    let loaded = format!(
        "{} pods with {} addresses, {} policies",
        TEN_THOUSAND.nodes * TEN_THOUSAND.pods,
        fill(&status, "ADDRESSES"),
        status["policies"].as_array().map_or(0, Vec::len)
    );
    let split = format!("; p99 of other nodes' pods {:.1} ms, of this node's {:.1} ms", p99(&peers), p99(&owns));
    let swarm = swarmed(&mut node, &mut swarm)?;
    Ok(vec![
        Figure::alone("k8s-pod", "ms", p99(&pods), format!("{loaded}; {}{split}", note(&pods))),
        Figure::alone("k8s-policy", "ms", p99(&policies), note(&policies)),
        swarm,
    ])
}

/// A thousand pods of this node within a second, each with a cgroup of its own.
fn swarmed(node: &mut Node, watcher: &mut Process) -> Result<Figure> {
    watcher.wait_ready(SOON)?;
    watcher.go(&[])?;
    let (begun, mut told) = (Instant::now(), Vec::new());
    for n in 0..SWARM {
        sleep((begun + SWARM_WITHIN * u32::from(n) / u32::from(SWARM)).saturating_duration_since(Instant::now()));
        told.push(node.pod(&format!("swarm-{n}"), (BENCH, "swarm"), &uid(102, n.into()), of_swarm(n))?);
    }
    let made = begun.elapsed();
    watcher.wait_ready(2 * SOON)?;
    let bytes = watcher.received().last().cloned().context("times")?;
    let open = bytes.chunks_exact(8).map(|b| b.try_into().map_or(0, u64::from_ne_bytes));
    let took: Vec<f64> = told
        .iter()
        .zip(open)
        .map(|(told, open)| if open == 0 { f64::INFINITY } else { open.saturating_sub(*told) as f64 / 1e6 })
        .collect();
    ensure!(took.len() == usize::from(SWARM), "{} times", took.len());
    status_when(&node.agent, "not every pod is a workload", |s| {
        let all = s["workloads"].as_array().into_iter().flatten();
        all.filter(|w| w["cgroups"].as_array().is_some_and(|c| !c.is_empty())).count() >= SWARM.into()
    })?;
    let note = format!(
        "the greatest of {SWARM} that came in {:.2} s; median {:.0} ms, p99 {:.0} ms",
        made.as_secs_f64(),
        median(took.clone()),
        percentile(took.clone(), 99)
    );
    Ok(Figure::alone("k8s-swarm", "ms", percentile(took, 100), note))
}

/// Until it is watched for what it takes up.
const SETTLE: Duration = Duration::from_secs(6);
/// How often a pod changes then, somewhere, and how many do.
const EVERY: Duration = Duration::from_millis(650);
const CHANGES: u32 = 20;

/// A first sync, and what the agent takes up while pods change.
pub(crate) fn scale(_: f64) -> Result<Vec<Figure>> {
    let sizes = FIFTY_THOUSAND;
    let pods = u64::from(sizes.nodes * sizes.pods);
    let mut node = Node::new(sizes)?;
    let begun = Instant::now();
    node.agent.start(&[]);
    let ready = begun.elapsed();
    let status = status_when(&node.agent, "not every pod is known", |s| fill(s, "ADDRESSES") >= pods)?;
    ensure!(status["faults"].as_array().is_some_and(Vec::is_empty), "{}", status["faults"]);
    let pid = node.agent.pid();
    let started = Memory::of(pid)?;
    sleep(SETTLE);

    let (mut most, mut bytes) = (Memory::default(), 0);
    for n in 0..CHANGES {
        let which = 1 + n * 211 % sizes.nodes;
        let mut pods = sizes.pods_of(which);
        pods[0] =
            told(&uid(103, n), BENCH, "target", &[Ipv4Addr::from((198 << 24) + (18 << 16) + 256 + n).to_string()]);
        let before = node.server.bytes_watched();
        node.server.put(NODE_ENDPOINTS, endpoints(&format!("n{which}"), pods));
        bytes += node.server.bytes_watched() - before;
        let until = Instant::now() + EVERY;
        while Instant::now() < until {
            let now = Memory::of(pid)?;
            if now.resident > most.resident {
                most = now;
            }
            sleep(Duration::from_millis(20));
        }
    }
    let note = format!(
        "{} addresses, {} policies: {:.1} MiB of it anonymous; {:.1} MiB when it had started, {:.1} MiB at most; \
         maps {:.1} MiB beside it; {:.0} bytes watched per pod change, of {} pods on the node",
        fill(&status, "ADDRESSES"),
        status["policies"].as_array().map_or(0, Vec::len),
        mib(most.anonymous),
        mib(started.resident),
        mib(most.peak),
        mib(map_memory(pid)?),
        bytes as f64 / f64::from(CHANGES),
        sizes.pods
    );
    Ok(vec![
        Figure::alone("k8s-memory", "MiB", mib(most.resident), note),
        Figure::alone(
            "k8s-sync",
            "ms",
            ready.as_secs_f64() * 1e3,
            "from the start of the process to readiness, programs loaded and attached".to_owned(),
        ),
    ])
}
