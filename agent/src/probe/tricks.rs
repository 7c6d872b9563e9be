//! The tricks: each tries to get a nonce from one workload to another, in a way of its own.
//!
//! A [`Trick`] is set up while nothing is enforced (so that what is "older" really is), and played later, perhaps under
//! enforcement. Whether it got through is decided by the receiver's log alone, never by what the sender was told.
//!
//! | file | tricks with |
//! |---|---|
//! | [`stream`] | TCP and what becomes TCP |
//! | [`datagram`] | UDP and its kin |
//! | [`uring`] | system calls made by the kernel for the workload |
//! | [`raw`] | hand-made packets |
//! | [`nat`] | destinations that are translated later |
//! | [`older`] | sockets that exist before the programs, and processes that move |
//! | [`borrowed`] | sockets that another workload made |
//! | [`place`] | network namespaces, shared or entered |
//! | [`outward`] | from a workload to the outside, where nobody else checks |
//! | [`other`] | families beside IP |

mod borrowed;
mod datagram;
mod nat;
mod older;
mod other;
mod outward;
mod place;
mod raw;
mod stream;
mod uring;
mod wire;

use super::sandbox::{self, Failure, Plug, Process, Reply, Sandbox, Turn, Workload};
use anyhow::{Context as _, Result};
use bulkhead_common::Hook;
use socket2::Socket;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// How long a sender waits for an answer that a wall may keep away.
pub(crate) const PATIENCE: Duration = Duration::from_millis(400);
/// How long a sender may take as a whole.
const PLAY_WITHIN: Duration = Duration::from_secs(2);
/// How long setting up one process may take; guests without hardware virtualisation are slow.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A way to get data through.
#[derive(Clone, Copy)]
pub struct Trick {
    /// Its name in the table and in expectation files.
    pub name: &'static str,
    /// What it sends by.
    pub family: Family,
    /// What should contain it.
    pub wall: Wall,
    setup: fn(&mut Stage<'_>) -> Result<()>,
}

/// The address family of what is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// AF_UNIX.
    Unix,
    /// AF_PACKET.
    Packet,
    /// AF_VSOCK.
    Vsock,
}

impl Family {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Unix => "unix",
            Self::Packet => "packet",
            Self::Vsock => "vsock",
        }
    }
}

/// What should contain a trick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wall {
    /// One of the cgroup hooks: the one that sees it first when all are there.
    Hook(Hook),
    /// No cgroup hook sees it; this LSM hook would.
    Lsm(&'static str),
}

/// Every trick.
pub fn all() -> Vec<Trick> {
    [
        stream::TRICKS,
        datagram::TRICKS,
        uring::TRICKS,
        raw::TRICKS,
        nat::TRICKS,
        older::TRICKS,
        borrowed::TRICKS,
        place::TRICKS,
        outward::TRICKS,
        other::TRICKS,
    ]
    .concat()
}

/// The workloads that the tricks are played between. None of them is allowed anything under deny-all.
pub struct Ground {
    /// Who sends.
    pub a: Workload,
    /// Who receives.
    pub b: Workload,
    /// A third one, whose sockets are borrowed.
    pub c: Workload,
    /// One that shares A's network namespace, as two services of a host do.
    pub beside_a: Workload,
    /// A place outside of any workload, with addresses of the outside world.
    pub outside: Plug,
    /// The switch, and the cgroup above all of them.
    pub sandbox: Sandbox,
}

impl Ground {
    /// Makes the workloads.
    pub fn new() -> Result<Self> {
        let sandbox = Sandbox::new("probe")?;
        let a = sandbox.workload("a")?;
        let b = sandbox.workload("b")?;
        let c = sandbox.workload("c")?;
        let beside_a = sandbox.workload_on("beside-a", Arc::clone(a.plug()))?;
        // TEST-NET-1 and the documentation prefix: RFC 5737, RFC 3849.
        let outside =
            sandbox.switch().plug_at(Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))?;
        for workload in [&a, &b, &c] {
            // Fast Open without a cookie on both sides, so that data is in the very first packet. Ping sockets for all.
            // Where the kernel lacks one of them, the trick that needs it finds out.
            workload.netns().sysctl("ipv4/tcp_fastopen", "1543").ok();
            workload.netns().sysctl("ipv4/ping_group_range", "0 2147483647").ok();
        }
        Ok(Self { a, b, c, beside_a, outside, sandbox })
    }

    /// All workloads.
    pub fn workloads(&self) -> [&Workload; 4] {
        [&self.a, &self.b, &self.c, &self.beside_a]
    }
}

/// A trick that is set up and waits to be played.
pub struct Stage<'g> {
    ground: &'g Ground,
    family: Family,
    ports: std::ops::Range<u16>,
    senders: Vec<Process>,
    receivers: Vec<Process>,
}

/// How many ports each stage has for itself.
const PORTS: u16 = 4;
/// The first port of the first stage; below the ephemeral ones.
const FIRST_PORT: u16 = 10_000;
/// How many stages there can be before port numbers repeat.
const STAGES: u16 = 5_000;

impl Trick {
    /// Sets it up. `number` is a running number, so that no two stages share a port.
    pub fn set_up<'g>(&self, ground: &'g Ground, number: u16) -> Result<Stage<'g>> {
        let first = FIRST_PORT + (number % STAGES) * PORTS;
        let ports = first..first + PORTS;
        let mut stage = Stage { ground, family: self.family, ports, senders: Vec::new(), receivers: Vec::new() };
        (self.setup)(&mut stage)?;
        Ok(stage)
    }
}

impl<'g> Stage<'g> {
    /// Sends the nonce. Gives what the sender was told, which decides nothing.
    pub fn play(&mut self, nonce: &[u8]) -> Result<(), Failure> {
        let mut told = Ok(());
        for sender in &mut self.senders {
            if sender.go(nonce).is_ok() {
                let waiting = Failure { doing: "still waiting for an answer".into(), errno: 0 };
                told = told.and(sender.finish(PLAY_WITHIN).unwrap_or(Err(waiting)));
            }
        }
        told
    }

    /// Whether a receiver's log holds the nonce, waiting for it.
    pub fn got_through(&mut self, nonce: &[u8], within: Duration) -> bool {
        // The last receiver is the one that is meant; whatever the others get, they have by then.
        let Some((last, others)) = self.receivers.split_last_mut() else { return false };
        last.receives(nonce, within) || others.iter_mut().any(|r| r.receives(nonce, Duration::ZERO))
    }

    /// Whether a denial of this process, or on these ports, can be this stage's doing. One that names neither (an ICMP
    /// message of a socket whose maker isn't known) is taken for it, as there is one stage at a time.
    pub fn concerns(&self, pid: u32, sport: u16, dport: u16) -> bool {
        let own = |port| (self.ports.start - self.ports.start % PORTS..self.ports.end).contains(&port);
        let nameless = pid == 0 && sport == 0 && dport == 0;
        nameless || own(sport) || own(dport) || self.senders.iter().chain(&self.receivers).any(|p| p.pid() == pid)
    }

    fn ground(&self) -> &'g Ground {
        self.ground
    }

    /// The next unused port.
    fn port(&mut self) -> Result<u16> {
        self.ports.next().context("the trick uses more ports than it has")
    }

    /// A workload's address of the trick's family.
    fn address(&self, of: &Workload) -> IpAddr {
        if self.family == Family::Ipv6 { of.v6().into() } else { of.v4().into() }
    }

    /// The unspecified address of the trick's family.
    fn any(&self) -> IpAddr {
        if self.family == Family::Ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
    }

    /// The loopback address of the trick's family.
    fn loopback(&self) -> IpAddr {
        if self.family == Family::Ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
    }

    /// A TCP listener of B.
    fn tcp_at_b(&mut self) -> Result<SocketAddr> {
        let at = SocketAddr::new(self.address(&self.ground.b), self.port()?);
        self.receive(&self.ground().b, |_| Ok(vec![sandbox::listen(at)?]))?;
        Ok(at)
    }

    /// A UDP socket of B.
    fn udp_at_b(&mut self) -> Result<SocketAddr> {
        let at = SocketAddr::new(self.address(&self.ground.b), self.port()?);
        self.receive(&self.ground().b, |_| Ok(vec![sandbox::bind_udp(at)?]))?;
        Ok(at)
    }

    /// A process of that workload that makes sockets and logs what arrives on them.
    fn receive<F>(&mut self, workload: &Workload, make: F) -> Result<()>
    where
        F: FnOnce(&mut Turn) -> io::Result<Vec<Socket>> + Copy,
    {
        let process = workload.spawn(receiving(make))?;
        self.receiver(process)
    }

    /// A process of that workload that prepares, waits for the nonce in [`Turn::ready`], and sends it.
    fn send<F>(&mut self, workload: &Workload, body: F) -> Result<()>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        let process = workload.spawn(body)?;
        self.sender(process)
    }

    /// Takes a process as a receiver, once it is ready, and lets it receive.
    fn receiver(&mut self, mut process: Process) -> Result<()> {
        process.wait_ready(READY_WITHIN).context("the receiver")?;
        process.go(&[])?;
        self.receivers.push(process);
        Ok(())
    }

    /// Takes a process as a sender, once it is ready.
    fn sender(&mut self, mut process: Process) -> Result<()> {
        process.wait_ready(READY_WITHIN).context("the sender")?;
        self.senders.push(process);
        Ok(())
    }
}

/// The life of a receiver: makes its sockets, says so, and receives.
fn receiving<F>(make: F) -> impl FnOnce(&mut Turn) -> io::Result<()> + Copy
where
    F: FnOnce(&mut Turn) -> io::Result<Vec<Socket>> + Copy,
{
    move |turn| {
        turn.doing("making the receiver's socket");
        let sockets = make(turn)?;
        turn.ready()?;
        sandbox::collect(turn, sockets, Reply::Nothing)
    }
}

#[cfg(test)]
mod tests;
