//! Trying ways: every sender sends a nonce along each of its ways, all at once, and the receivers' logs decide.
//!
//! What a sender is told (an errno, or nothing) is noted beside it, but never taken for the truth.

use crate::bank::{PARTIES, Proto, Way};
use crate::estate::Estate;
use crate::interrupt;
use crate::server::{MESSAGE, NONCE};
use anyhow::{Context as _, Result, bail};
use bulkhead::probe::sandbox::{Process, Turn};
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long something may take that is expected to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited for what isn't expected and was not refused: all such ways wait at the same time.
const GRACE: Duration = Duration::from_millis(1500);

/// How one way went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tried {
    /// The way.
    pub(crate) way: Way,
    /// Whether the receiver has the nonce.
    pub(crate) received: bool,
    /// What the sender was told: 0 if nothing went wrong for it.
    pub(crate) errno: i32,
}

/// What one sender sends; it lives in the parent and is read by the forked child.
struct Try {
    way: Way,
    to: SocketAddr,
    nonce: [u8; MESSAGE],
    patience: Duration,
}

/// Tries all these ways. `expected` says of which it is known that they should get through; a process that sends is
/// called `name`, or like its party.
pub(crate) fn all(
    estate: &mut Estate,
    ways: &[Way],
    expected: impl Fn(Way) -> bool,
    name: Option<&'static str>,
) -> Result<Vec<Tried>> {
    let secret = fresh_secret()?;
    let tries: Vec<Try> = ways
        .iter()
        .zip(0_u32..)
        .map(|(&way, n)| Try {
            way,
            to: estate.address(way.to, way.v6),
            nonce: nonce(secret, n),
            patience: if expected(way) { PATIENCE } else { GRACE },
        })
        .collect();
    let by_sender = |party| tries.iter().filter(move |t| t.way.from == party);
    let senders: BTreeSet<usize> = ways.iter().map(|w| w.from).collect();
    let mut told: BTreeMap<[u8; MESSAGE], i32> = BTreeMap::new();
    let mut running: Vec<Process> = Vec::new();
    for party in senders {
        let mine: Vec<&Try> = by_sender(party).collect();
        let mine = mine.as_slice();
        running.push(estate.spawn(party, name.unwrap_or(PARTIES[party].name), |turn| send(turn, mine))?);
    }

    let awaited: Vec<&Try> = tries.iter().filter(|t| expected(t.way)).collect();
    let mut logs: BTreeSet<Vec<u8>> = BTreeSet::new();
    let (started, mut sent_at) = (Instant::now(), None);
    loop {
        interrupt::check()?;
        for party in 0..PARTIES.len() {
            logs.extend(estate.received(party).iter().cloned());
        }
        if sent_at.is_none() && finished(&mut running)? {
            sent_at = Some(Instant::now());
            for process in &mut running {
                told.extend(process.received().iter().filter_map(|m| outcome(m)));
            }
        }
        let got = |t: &Try| logs.contains(&t.nonce[..]);
        if let Some(sent_at) = sent_at {
            let open = |t: &&Try| !got(t) && told.get(&t.nonce) == Some(&0);
            let missing = awaited.iter().any(|t| !got(t));
            // Whatever was let go without a refusal and isn't expected has the grace time to show up after all.
            let settled = !tries.iter().any(|t| open(&t)) || sent_at.elapsed() > GRACE;
            if settled && (!missing || started.elapsed() > 2 * PATIENCE) {
                break;
            }
        }
        sleep(Duration::from_millis(5));
    }
    let result = |t: &Try| -> Result<Tried> {
        let errno = *told.get(&t.nonce).with_context(|| format!("nobody said what became of {}", t.way))?;
        Ok(Tried { way: t.way, received: logs.contains(&t.nonce[..]), errno })
    };
    tries.iter().map(result).collect()
}

fn finished(running: &mut [Process]) -> Result<bool> {
    for process in running.iter_mut() {
        match process.finish(Duration::ZERO) {
            Some(Ok(())) => {}
            Some(Err(failure)) => bail!("a sender failed: {failure}"),
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Bytes that nobody has sent before.
fn nonce(secret: [u8; 16], n: u32) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    bytes[0] = NONCE;
    bytes[1..17].copy_from_slice(&secret);
    bytes[17..21].copy_from_slice(&n.to_be_bytes());
    bytes
}

/// Random bytes.
pub(crate) fn fresh_secret() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("no random bytes")?;
    Ok(bytes)
}

/// A sender's word on one nonce.
fn outcome(message: &[u8]) -> Option<([u8; MESSAGE], i32)> {
    let (nonce, errno) = message.split_first_chunk::<MESSAGE>()?;
    Some((*nonce, i32::from_ne_bytes(errno.try_into().ok()?)))
}

/// The child: opens everything at once, then waits for what isn't decided.
fn send(turn: &mut Turn, tries: &[&Try]) -> io::Result<()> {
    turn.doing("sending nonces");
    let mut under_way: Vec<(&Try, Socket)> = Vec::new();
    for t in tries {
        match start(t) {
            Ok(Some(socket)) => under_way.push((t, socket)),
            Ok(None) => say(turn, t, 0)?,
            Err(e) => say(turn, t, errno(&e))?,
        }
    }
    let started = Instant::now();
    // Held until the end, so that nothing that was sent can be lost by closing.
    let mut done: Vec<Socket> = Vec::new();
    while !under_way.is_empty() {
        let mut fds: Vec<_> = under_way.iter().map(|(_, s)| PollFd::new(s, PollFlags::OUT)).collect();
        let tick = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        poll(&mut fds, Some(&tick))?;
        let due: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut waiting = Vec::with_capacity(under_way.len());
        for ((t, socket), due) in under_way.into_iter().zip(due) {
            if due {
                let result = match socket.take_error()? {
                    Some(e) => errno(&e),
                    None => socket.send(&t.nonce).map_or_else(|e| errno(&e), |_| 0),
                };
                say(turn, t, result)?;
                done.push(socket);
            } else if started.elapsed() > t.patience {
                say(turn, t, libc::ETIMEDOUT)?;
            } else {
                waiting.push((t, socket));
            }
        }
        under_way = waiting;
    }
    Ok(())
}

/// Sends a datagram, or begins to connect; then the socket is given back.
fn start(t: &Try) -> io::Result<Option<Socket>> {
    let domain = Domain::for_address(t.to);
    if t.way.proto == Proto::Udp {
        Socket::new(domain, Type::DGRAM, None)?.send_to(&t.nonce, &t.to.into())?;
        return Ok(None);
    }
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&t.to.into()) {
        Ok(()) => Ok(Some(socket)),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Some(socket)),
        Err(e) => Err(e),
    }
}

fn say(turn: &mut Turn, t: &Try, errno: i32) -> io::Result<()> {
    turn.received(&[&t.nonce[..], &errno.to_ne_bytes()].concat())
}

fn errno(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(libc::EIO)
}
