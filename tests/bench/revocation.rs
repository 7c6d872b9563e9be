//! How soon it is over for an identity that is revoked: the real agent, the real command, live traffic.
//!
//! Fifty workloads, each in a network namespace of its own, have one identity. Each holds TCP and UDP connections to
//! one server, which answers what they keep sending. Then `bulkhead revoke` is started, and each socket notes when the
//! last bytes came, and when its application was told that it is over. What counts is the later of the two.

use crate::Figure;
use crate::agent::document;
use crate::numbers::percentile;
use anyhow::{Context, Result, ensure};
use bulkhead_tests::enforced::id;
use bulkhead_tests::sandbox::{Process, Turn, bind_udp, listen};
use bulkhead_tests::{Agent, Estate, any};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Socket, Type};
use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

const NAMESPACES: usize = 50;
/// Of either protocol, in each namespace.
const EACH: usize = 10;
const PORT: u16 = 5432;
const MESSAGE: &[u8] = b"still there?";
/// How often each socket sends.
const EVERY: Duration = Duration::from_millis(200);
/// How long a socket waits for the command and its end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long traffic flows before the command.
const BEFORE: Duration = Duration::from_millis(500);
/// How long anything else may take.
const SOON: Duration = Duration::from_secs(30);

/// The p99 over all sockets of all rounds, from the start of the command.
pub(crate) fn take(factor: f64) -> Result<Vec<Figure>> {
    let names: Vec<String> = (0..NAMESPACES).map(|n| format!("c{n}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).chain(["database"]).collect();
    let estate = Estate::new(&all);
    let identity = |name: &str| if name == "database" { id(name) } else { id("clients") };
    let mut agent = Agent::named(&estate, "posture: enforce", identity);
    fs::write(agent.policies().join("clients.yaml"), policy())?;
    agent.start(&[]);

    let mut server = estate.get("database").spawn(serve)?;
    server.wait_ready(SOON)?;
    server.go(&[])?;
    let to = SocketAddr::from((estate.get("database").v4(), PORT));
    let mut clients = Vec::new();
    for name in &names {
        clients.push(estate.get(name).spawn(|turn| hold(turn, to))?);
    }
    let (mut over, mut last_bytes, mut said) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = if factor < 1.0 { 2 } else { 5 };
    for _ in 0..rounds {
        each(&mut clients, |c| Ok(c.wait_ready(SOON)?)).context("getting ready to connect")?;
        each(&mut clients, |c| Ok(c.go(&[])?))?;
        each(&mut clients, |c| Ok(c.wait_ready(SOON)?)).context("connecting")?;
        each(&mut clients, |c| Ok(c.go(&[])?))?;
        std::thread::sleep(BEFORE);
        let issued = now();
        let done = document(&agent, "revoke", &[&id("clients"), "--json"])?;
        said.push(done["cut"]["took_us"].as_f64().unwrap_or(f64::NAN) / 1e3);
        let mut ends = Vec::new();
        for client in &mut clients {
            client.wait_ready(SOON)?;
            ends.extend(client.received().last().map(|b| Ends::decode(b)).unwrap_or_default());
        }
        ensure!(ends.len() == NAMESPACES * EACH * 2, "{} sockets tell of their end", ends.len());
        for Ends { last, told } in ends {
            ensure!(last > 0, "a socket never received anything");
            ensure!(told > 0, "a socket wasn't told that it is over");
            ensure!(told > issued, "a connection ended before the command");
            // Of a socket that was told, nothing can come any more.
            over.push(milliseconds(last.max(told).saturating_sub(issued)));
            last_bytes.push(milliseconds(last.saturating_sub(issued)));
        }
        let restored = agent.ask("restore", &[&id("clients")]);
        ensure!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    }
    let note = format!(
        "{} sockets in {rounds} rounds: half of them over after {:.1} ms, the last after {:.1} ms; the last bytes came \
         after {:.1} ms (p99); the agent itself takes {:.1} ms of it",
        over.len(),
        percentile(over.clone(), 50),
        percentile(over.clone(), 100),
        percentile(last_bytes, 99),
        percentile(said, 50),
    );
    Ok(vec![Figure::alone("revocation", "ms", percentile(over, 99), note)])
}

fn each(clients: &mut [Process], mut does: impl FnMut(&mut Process) -> Result<()>) -> Result<()> {
    clients.iter_mut().try_for_each(&mut does)
}

fn policy() -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: clients}}\nspec:\n  \
         mode: enforce\n  edges:\n    - {{from: [{{id: {}}}], to: [{{id: {}}}], ports: [{{port: {PORT}}}, \
         {{protocol: UDP, port: {PORT}}}]}}\n",
        id("clients"),
        id("database")
    )
}

/// The monotonic clock, which is the same in every process of this machine, in nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// When the last bytes came to a socket, and when it was told that it is over; 0: never.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Ends {
    last: u64,
    told: u64,
}

impl Ends {
    fn encode(all: &[Self]) -> Vec<u8> {
        all.iter().flat_map(|e| [e.last, e.told]).flat_map(u64::to_ne_bytes).collect()
    }

    fn decode(bytes: &[u8]) -> Vec<Self> {
        let (numbers, _) = bytes.as_chunks::<8>();
        let (ends, _) = numbers.as_chunks::<2>();
        ends.iter().map(|[l, t]| Self { last: u64::from_ne_bytes(*l), told: u64::from_ne_bytes(*t) }).collect()
    }
}

/// Answers whatever comes, until the process is ended.
fn serve(turn: &mut Turn) -> io::Result<()> {
    let (listener, datagrams) = (listen(any(false, PORT))?, bind_udp(any(false, PORT))?);
    listener.listen(1024)?;
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for socket in [&listener, &datagrams] {
        socket.set_nonblocking(true)?;
        epoll::add(&events, socket, epoll::EventData::new_u64(token(socket)), epoll::EventFlags::IN)?;
    }
    turn.ready()?;
    turn.doing("answering");
    let mut open: Vec<Option<Socket>> = Vec::new();
    let mut due: Vec<epoll::Event> = Vec::with_capacity(256);
    let mut bytes = [0; 256];
    loop {
        due.clear();
        match epoll::wait(&events, rustix::buffer::spare_capacity(&mut due), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for event in &due {
            let n = event.data.u64();
            if n == token(&listener) {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true)?;
                    let (data, index) = (epoll::EventData::new_u64(token(&socket)), socket.as_raw_fd());
                    epoll::add(&events, &socket, data, epoll::EventFlags::IN)?;
                    let index = usize::try_from(index).map_err(io::Error::other)?;
                    open.resize_with(open.len().max(index + 1), || None);
                    open[index] = Some(socket);
                }
            } else if n == token(&datagrams) {
                while let Ok((n, from)) = rustix::net::recvfrom(&datagrams, &mut bytes, rustix::net::RecvFlags::empty())
                    .map(|(n, _, from)| (n, from))
                    && let Some(from) = from
                {
                    // Nobody is left to be told that it can't be answered.
                    rustix::net::sendto(&datagrams, &bytes[..n], rustix::net::SendFlags::empty(), &from).ok();
                }
            } else if let Some(slot) = usize::try_from(n).ok().and_then(|n| open.get_mut(n))
                && let Some(socket) = slot
                && match (&*socket).read(&mut bytes) {
                    Ok(0) => true,
                    Ok(n) => socket.send(&bytes[..n]).is_err(),
                    Err(e) => e.kind() != ErrorKind::WouldBlock,
                }
            {
                *slot = None;
            }
        }
    }
}

fn token(socket: &Socket) -> u64 {
    u64::from(socket.as_raw_fd().unsigned_abs())
}

/// Again and again: connects, waits, keeps sending until every socket is over, and tells when each was.
fn hold(turn: &mut Turn, to: SocketAddr) -> io::Result<()> {
    loop {
        turn.ready()?;
        turn.doing("connecting");
        let mut sockets = Vec::new();
        for n in 0..2 * EACH {
            let kind = if n % 2 == 0 { Type::STREAM } else { Type::DGRAM };
            let socket = Socket::new(Domain::IPV4, kind, None)?;
            socket.connect(&to.into())?;
            socket.set_nonblocking(true)?;
            sockets.push(socket);
        }
        turn.ready()?;
        turn.doing("keeping connections busy");
        let ends = until_over(&sockets)?;
        turn.received(&Ends::encode(&ends))?;
    }
}

fn until_over(sockets: &[Socket]) -> io::Result<Vec<Ends>> {
    let begun = now();
    let mut ends = vec![Ends::default(); sockets.len()];
    let mut bytes = [0; 256];
    let step = u64::try_from(EVERY.as_nanos()).unwrap_or(u64::MAX) / u64::try_from(sockets.len()).unwrap_or(1);
    let mut sent = 0;
    while ends.iter().any(|e| e.told == 0) {
        let at = now();
        if Duration::from_nanos(at - begun) > PATIENCE {
            break;
        }
        // One after the other, evenly over the time.
        while begun + sent * step <= at {
            let n = usize::try_from(sent).unwrap_or(0) % sockets.len();
            sent += 1;
            if ends[n].told == 0
                && let Err(e) = sockets[n].send(MESSAGE)
                && e.kind() != ErrorKind::WouldBlock
            {
                ends[n].told = now();
            }
        }
        let open: Vec<usize> = (0..sockets.len()).filter(|n| ends[*n].told == 0).collect();
        let mut fds: Vec<_> = open.iter().map(|n| PollFd::new(&sockets[*n], PollFlags::IN)).collect();
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::try_from(step).unwrap_or(0) };
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let due: Vec<usize> =
            open.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(n, _)| *n).collect();
        for n in due {
            match (&sockets[n]).read(&mut bytes) {
                Ok(0) => ends[n].told = now(),
                Ok(_) => ends[n].last = now(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => ends[n].told = now(),
            }
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_they_are() {
        let all = [Ends { last: 1, told: u64::MAX }, Ends { last: 1 << 50, told: 0 }];
        assert_eq!(Ends::decode(&Ends::encode(&all)), all);
        assert_eq!(Ends::decode(&[]), []);
    }
}
