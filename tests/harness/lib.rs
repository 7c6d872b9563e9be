//! What the tests on the real kernel stand on: throw-away workloads ([`sandbox`]), waiting with a deadline, asking
//! whether something got through, and an API server ([`api_server`]).
//!
//! Everything is removed when it is dropped, also after a panic. A missing privilege is a failure that says so.

pub mod agent;
pub mod api_server;
pub mod database;
pub mod enforced;
pub mod talk;
pub mod vandal;

pub use agent::Agent;
pub use api_server::ApiServer;
pub use bulkhead::probe::sandbox::{self, Process, Reply, Sandbox, Workload};
pub use enforced::Enforced;
pub use talk::{give_room, number, numbers};

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that is expected to happen.
pub const SOON: Duration = Duration::from_secs(60);
/// How long is waited for what is expected not to happen.
pub const NEVER: Duration = Duration::from_millis(300);

/// How many times as long things may take here, by `BULKHEAD_SLOWNESS`: an emulated machine isn't a slow Bulkhead.
pub fn slowness() -> u32 {
    std::env::var("BULKHEAD_SLOWNESS").map_or(1, |n| n.parse().expect("BULKHEAD_SLOWNESS is a number"))
}

/// Waits until the condition holds; panics with `what` when it doesn't within [`SOON`].
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_at_most(SOON, what, condition);
}

/// The same with another limit, which [`slowness`] stretches.
pub fn wait_at_most(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let limit = limit * slowness();
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A sandbox with named workloads in it, each on a network namespace of its own.
pub struct Estate {
    // Dropped in this order: the workloads' cgroups lie inside the sandbox's.
    workloads: Vec<Workload>,
    sandbox: Sandbox,
}

impl Estate {
    /// One workload per name.
    pub fn new(names: &[&str]) -> Self {
        let sandbox = Sandbox::new("test").expect("tests on the real kernel run as root");
        let workloads = names.iter().map(|n| sandbox.workload(n).expect("a workload")).collect();
        Self { workloads, sandbox }
    }

    /// Adds a workload that shares another's network namespace and addresses.
    pub fn add_beside(&mut self, name: &str, beside: &str) {
        let plug = self.get(beside).plug().clone();
        self.workloads.push(self.sandbox.workload_on(name, plug).expect("a workload"));
    }

    /// The sandbox, whose cgroup is above all workloads.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The workload of that name.
    pub fn get(&self, name: &str) -> &Workload {
        self.workloads.iter().find(|w| w.name() == name).expect("a workload of that name")
    }

    /// All workloads.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }
}

/// A way to send something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// TCP: connect, then send.
    Tcp,
    /// UDP: connect, then send.
    ConnectedUdp,
    /// UDP: sendto.
    Udp,
}

impl Via {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::ConnectedUdp, Self::Udp];
}

/// The workload's address of either family, with a port.
pub fn at(workload: &Workload, v6: bool, port: u16) -> SocketAddr {
    if v6 { (workload.v6(), port).into() } else { (workload.v4(), port).into() }
}

/// Sends bytes that were never sent before from the workload to `to`, and says whether `receiver` got them, together
/// with what the sender was told.
pub fn passes(
    from: &Workload,
    to: SocketAddr,
    via: Via,
    receiver: &mut Process,
) -> (bool, Result<(), sandbox::Failure>) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nonce = format!("<nonce {} {}>", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let bytes = nonce.as_bytes();
    let started = Instant::now();
    let mut sender = from
        .spawn(|turn| {
            let domain = socket2::Domain::for_address(to);
            let kind = if via == Via::Tcp { socket2::Type::STREAM } else { socket2::Type::DGRAM };
            let socket = socket2::Socket::new(domain, kind, None)?;
            if via == Via::Udp {
                turn.doing("sendto");
                socket.send_to(bytes, &to.into()).map(drop)
            } else {
                turn.doing("connect");
                socket.connect_timeout(&to.into(), NEVER)?;
                turn.doing("send");
                socket.send(bytes).map(drop)
            }
        })
        .expect("a process");
    let told = sender.finish(SOON).expect("the sender ends");
    // A machine on which sending took long receives no faster.
    let within = if told.is_ok() { NEVER.max(started.elapsed() * 4) } else { NEVER };
    (receiver.receives(bytes, within), told)
}

/// The unspecified address of a family, to bind to.
pub fn any(v6: bool, port: u16) -> SocketAddr {
    if v6 { (Ipv6Addr::UNSPECIFIED, port).into() } else { (Ipv4Addr::UNSPECIFIED, port).into() }
}
