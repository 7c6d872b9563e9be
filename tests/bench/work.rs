//! What the measured processes do, and how they are told.
//!
//! A word names a seed and a number of operations. The process does one with every key first, which isn't measured, so
//! that the lane before has left the caches, and answers how many nanoseconds the others took. Client and server draw
//! the same keys from the same seed, so each knows where the next message is without having to ask.

use crate::keys::{Draw, Keys, Protocol};
use bulkhead_tests::sandbox::Turn;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept, bind, connect, recv, recvfrom, send,
    sendto, socket, sockopt,
};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A message of this many bytes is small.
const SMALL: usize = 64;
/// Sockets that are made before a measured row of connects.
const BATCH: usize = 32;
/// Connections that are held at the same time.
const HELD: u32 = 64;
/// The seed by which the held connections are chosen.
const HELD_SEED: u32 = 1;

/// What a process is told to do.
#[derive(Clone, Copy)]
pub(crate) enum Word {
    /// So many operations with keys from this seed.
    Measure { seed: u32, operations: u32 },
    /// An operation with every key, so that all have been seen once.
    All,
    /// A connect that no rule allows; the answer is the error number.
    Denied,
}

impl Word {
    pub(crate) fn encode(self) -> [u8; 9] {
        let (tag, a, b) = match self {
            Self::Measure { seed, operations } => (0, seed, operations),
            Self::All => (1, 0, 0),
            Self::Denied => (2, 0, 0),
        };
        let mut bytes = [tag; 9];
        bytes[1..5].copy_from_slice(&a.to_ne_bytes());
        bytes[5..].copy_from_slice(&b.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let bytes: &[u8; 9] = bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        let [tag, a0, a1, a2, a3, b0, b1, b2, b3] = *bytes;
        let (seed, operations) = (u32::from_ne_bytes([a0, a1, a2, a3]), u32::from_ne_bytes([b0, b1, b2, b3]));
        match tag {
            0 => Ok(Self::Measure { seed, operations }),
            1 => Ok(Self::All),
            2 => Ok(Self::Denied),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Does as it is told until it is ended: `run` does as many operations and answers the nanoseconds that count.
fn obey(
    turn: &mut Turn,
    keys: Keys,
    run: impl FnMut(&mut dyn Iterator<Item = u32>) -> io::Result<u64>,
) -> io::Result<()> {
    obey_after(turn, keys, keys.rules(), run)
}

/// The same with so many operations before those that count.
pub(crate) fn obey_after(
    turn: &mut Turn,
    keys: Keys,
    before: u32,
    mut run: impl FnMut(&mut dyn Iterator<Item = u32>) -> io::Result<u64>,
) -> io::Result<()> {
    loop {
        let answer = match Word::decode(&turn.ready()?)? {
            Word::Measure { seed, operations } => {
                run(&mut (0..before))?;
                run(&mut Draw::new(seed, keys.rules()).take(operations as usize))?
            }
            Word::All => run(&mut (0..keys.rules()))?,
            Word::Denied => denied(keys)?,
        };
        turn.received(&answer.to_ne_bytes())?;
    }
}

/// Tries what no rule allows, and answers the error number: 0 if it went well.
fn denied(keys: Keys) -> io::Result<u64> {
    let fd = open(kind(keys.protocol))?;
    match connect(&fd, &keys.denied()) {
        Ok(()) => Ok(0),
        Err(e) => Ok(u64::from(e.raw_os_error().unsigned_abs())),
    }
}

const fn kind(protocol: Protocol) -> SocketType {
    match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    }
}

pub(crate) fn open(kind: SocketType) -> io::Result<OwnedFd> {
    Ok(net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?)
}

pub(crate) fn nanoseconds(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Connects UDP sockets that were just made; only connect() itself counts.
pub(crate) fn connects_udp(turn: &mut Turn, keys: Keys) -> io::Result<()> {
    turn.doing("connecting UDP sockets");
    let mut sockets = Vec::with_capacity(BATCH);
    let mut destinations = Vec::with_capacity(BATCH);
    obey(turn, keys, |rules| {
        let mut spent = Duration::ZERO;
        loop {
            destinations.clear();
            destinations.extend(rules.take(BATCH).map(|rule| keys.destination(rule)));
            if destinations.is_empty() {
                return Ok(nanoseconds(spent));
            }
            for _ in &destinations {
                sockets.push(socket(AddressFamily::INET, SocketType::DGRAM, None)?);
            }
            let started = Instant::now();
            for (fd, to) in sockets.iter().zip(&destinations) {
                connect(fd, to)?;
            }
            spent += started.elapsed();
            sockets.clear();
        }
    })
}

/// Listens on every port of the rules, and gives the listeners away.
pub(crate) fn listens(turn: &mut Turn, keys: Keys) -> io::Result<()> {
    turn.doing("listening");
    for port in keys.all_ports() {
        turn.give_socket(listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?)?;
    }
    turn.stay()
}

pub(crate) fn listen(at: SocketAddrV4) -> io::Result<OwnedFd> {
    let fd = open(SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    bind(&fd, &at)?;
    net::listen(&fd, 128)?;
    Ok(fd)
}

/// Makes TCP connections, accepts each from the listeners that it was handed, and closes both ends. One process does
/// it all, since the whole handshake is done when connect() returns: no switch between processes hides any cost.
pub(crate) fn connects_tcp(turn: &mut Turn, keys: Keys) -> io::Result<()> {
    turn.doing("taking the listeners");
    let listeners = (0..keys.ports).map(|_| turn.take_socket()).collect::<io::Result<Vec<_>>>()?;
    turn.doing("connecting");
    obey(turn, keys, |rules| {
        let started = Instant::now();
        for rule in rules {
            let fd = open(SocketType::STREAM)?;
            let to = keys.destination(rule);
            connect(&fd, &to)?;
            let accepted = accept(&listeners[usize::from(Keys::number(to.port()))])?;
            drop(fd);
            drop(accepted);
        }
        Ok(nanoseconds(started.elapsed()))
    })
}

/// The destinations of the connections that are held.
pub(crate) fn held(keys: Keys) -> Vec<SocketAddrV4> {
    let mut all: Vec<u32> = Draw::new(HELD_SEED, keys.rules()).take(HELD as usize).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(|rule| keys.destination(rule)).collect()
}

/// One of the connections that are held, for each number drawn.
fn among(held: &[OwnedFd], rule: u32) -> &OwnedFd {
    &held[rule as usize % held.len()]
}

/// The server of [`asks`]: answers on each connection what it got.
pub(crate) fn answers(turn: &mut Turn, keys: Keys) -> io::Result<()> {
    turn.doing("listening");
    let destinations = held(keys);
    let mut sockets = Vec::new();
    for at in &destinations {
        sockets.push(match keys.protocol {
            Protocol::Tcp => listen(*at)?,
            Protocol::Udp => {
                let fd = open(SocketType::DGRAM)?;
                bind(&fd, at)?;
                fd
            }
        });
    }
    turn.ready()?;
    if keys.protocol == Protocol::Tcp {
        turn.doing("accepting");
        sockets = sockets.iter().map(accept_plain).collect::<io::Result<_>>()?;
    }
    turn.doing("answering");
    let mut bytes = [0u8; SMALL];
    obey(turn, keys, |rules| {
        for rule in rules {
            let fd = among(&sockets, rule);
            if keys.protocol == Protocol::Tcp {
                let (n, _) = recv(fd, &mut bytes, RecvFlags::empty())?;
                send(fd, &bytes[..n], SendFlags::empty())?;
            } else {
                let (n, _, from) = recvfrom(fd, &mut bytes, RecvFlags::empty())?;
                let from = from.ok_or(io::ErrorKind::InvalidData)?;
                sendto(fd, &bytes[..n], SendFlags::empty(), &from)?;
            }
        }
        Ok(0)
    })
}

fn accept_plain(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let fd = accept(listener)?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    Ok(fd)
}

/// Holds connections, and asks and waits for the answer on one after the other.
pub(crate) fn asks(turn: &mut Turn, keys: Keys) -> io::Result<()> {
    turn.doing("connecting");
    let mut sockets = Vec::new();
    for to in held(keys) {
        let fd = open(kind(keys.protocol))?;
        connect(&fd, &to)?;
        if keys.protocol == Protocol::Tcp {
            sockopt::set_tcp_nodelay(&fd, true)?;
        }
        sockets.push(fd);
    }
    turn.doing("asking");
    let mut bytes = [0u8; SMALL];
    obey(turn, keys, |rules| {
        let started = Instant::now();
        for rule in rules {
            let fd = among(&sockets, rule);
            send(fd, &bytes, SendFlags::empty())?;
            recv(fd, &mut bytes, RecvFlags::empty())?;
        }
        Ok(nanoseconds(started.elapsed()))
    })
}
