//! Connections that are opened to be cut: both ends take the time of their end, and what they were told.
//!
//! Times are of the monotonic clock, which is the same in every process of this machine.

use crate::bank::{PARTIES, Way};
use crate::estate::Estate;
use crate::server::{MESSAGE, WATCH};
use crate::tries::fresh_secret;
use anyhow::{Context as _, Result};
use bulkhead::probe::sandbox::{Process, Turn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long it may take until all are open.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// A token, the time in nanoseconds, an errno.
const NOTE: usize = MESSAGE + 8 + 4;

/// Connections from one party to others, as many along each way.
pub(crate) struct Held {
    client: Process,
    to: Vec<usize>,
    tokens: Vec<[u8; MESSAGE]>,
}

/// One end of a connection that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct End {
    /// When, as [`now`] tells it.
    pub(crate) at: Duration,
    /// What its application was told; 0: a farewell, as if the other end had closed it.
    pub(crate) errno: i32,
}

impl Held {
    /// Opens `each` connections along each way; all of them come from the same party.
    pub(crate) fn open(estate: &Estate, ways: &[Way], each: usize) -> Result<Self> {
        let from = ways.first().context("a way")?.from;
        let secret = fresh_secret()?;
        let (mut tokens, mut all) = (Vec::new(), Vec::new());
        for (way, n) in ways.iter().flat_map(|w| std::iter::repeat_n(w, each)).zip(0_u32..) {
            let mut token = [0; MESSAGE];
            token[0] = WATCH;
            token[1..17].copy_from_slice(&secret);
            token[17..21].copy_from_slice(&n.to_be_bytes());
            tokens.push(token);
            all.push((estate.address(way.to, way.v6), token));
        }
        let all = all.as_slice();
        let mut client = estate.spawn(from, PARTIES[from].name, |turn| hold(turn, all))?;
        client.wait_ready(OPEN_WITHIN).context("the connections can't be opened")?;
        client.go(&[])?;
        let mut to: Vec<usize> = ways.iter().map(|w| w.to).collect();
        to.dedup();
        Ok(Self { client, to, tokens })
    }

    /// How many ends they have.
    pub(crate) fn count(&self) -> usize {
        2 * self.tokens.len()
    }

    /// The ends that are over.
    pub(crate) fn ends(&mut self, estate: &mut Estate) -> Vec<End> {
        let mut ends = noted(&self.tokens, self.client.received());
        for &party in &self.to {
            ends.extend(noted(&self.tokens, estate.received(party)));
        }
        ends
    }
}

/// The ends of these connections among a process's notes, each once.
fn noted(tokens: &[[u8; MESSAGE]], log: &[Vec<u8>]) -> Vec<End> {
    let note = |message: &Vec<u8>| {
        let message: &[u8; NOTE] = message.as_slice().try_into().ok()?;
        let (token, rest) = message.split_first_chunk::<MESSAGE>()?;
        let (at, errno) = rest.split_first_chunk::<8>()?;
        let at = Duration::from_nanos(u64::from_ne_bytes(*at));
        let errno = i32::from_ne_bytes(errno.try_into().ok()?);
        tokens.contains(token).then_some((*token, End { at, errno }))
    };
    let all: BTreeMap<_, _> = log.iter().filter_map(note).collect();
    all.into_values().collect()
}

/// The time since some moment that all processes have in common.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Tells the parent that a watched connection is over, now.
pub(crate) fn ended(turn: &mut Turn, token: &[u8; MESSAGE], errno: i32) -> io::Result<()> {
    let at = u64::try_from(now().as_nanos()).unwrap_or(u64::MAX);
    turn.received(&[&token[..], &at.to_ne_bytes(), &errno.to_ne_bytes()].concat())
}

/// The child: opens all, has each watched at the other end, and waits until the last is over.
fn hold(turn: &mut Turn, all: &[(SocketAddr, [u8; MESSAGE])]) -> io::Result<()> {
    turn.doing("opening connections");
    let mut open = Vec::with_capacity(all.len());
    for (to, token) in all {
        let mut stream = TcpStream::connect_timeout(to, OPEN_WITHIN)?;
        stream.set_read_timeout(Some(OPEN_WITHIN))?;
        stream.write_all(token)?;
        stream.read_exact(&mut [0; MESSAGE])?;
        stream.set_nonblocking(true)?;
        open.push((stream, token));
    }
    turn.ready()?;
    turn.doing("holding connections");
    while !open.is_empty() {
        let mut fds: Vec<_> = open.iter().map(|(stream, _)| PollFd::new(stream, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut still = Vec::with_capacity(open.len());
        for (mut stream, token) in open {
            match stream.read(&mut [0; MESSAGE]) {
                Ok(0) => ended(turn, token, 0)?,
                Err(e) if e.kind() != ErrorKind::WouldBlock => {
                    ended(turn, token, e.raw_os_error().unwrap_or(libc::EIO))?;
                }
                _ => still.push((stream, token)),
            }
        }
        open = still;
    }
    Ok(())
}
