//! How fast much data goes over one TCP connection: what a packet costs when there are many of them in a row.

use crate::keys::{Keys, Protocol};
use crate::numbers::mib_per_second;
use crate::rounds::{self, Pair};
use crate::work::{held, listen, nanoseconds, obey_after, open};
use crate::{Figure, compared_kinds, effort};
use anyhow::Result;
use bulkhead_tests::sandbox::Turn;
use rustix::net::{RecvFlags, SendFlags, SocketType, accept, connect, recv, send};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Bytes of a piece: one call of the sender.
const PIECE: usize = 64 << 10;
/// Pieces before those that count.
const BEFORE: u32 = 500;

/// Client and server on one CPU, over one connection that is held.
pub(crate) fn take(factor: f64) -> Result<Vec<Figure>> {
    let keys = Keys::usual(Protocol::Tcp);
    let samples = rounds::run(&compared_kinds(Protocol::Tcp), effort(factor, 80, 2000), false, |lane| {
        Pair::talking(lane, |turn| takes(turn, keys), |turn| pours(turn, keys))
    })?;
    let compared = Figure::compared("tcp-bulk", &samples);
    let speed = |ns: f64| mib_per_second(PIECE, ns);
    Ok(vec![Figure {
        unit: "MiB/s",
        none: compared.none.map(speed),
        empty: compared.empty.map(speed),
        bulkhead: speed(compared.bulkhead),
        // Of the times: none's throughput to Bulkhead's.
        ratio: compared.ratio,
        added: None,
        ..compared
    }])
}

fn destination(keys: Keys) -> io::Result<SocketAddrV4> {
    held(keys).first().copied().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Takes everything, and answers a byte when all of a turn has come.
fn takes(turn: &mut Turn, keys: Keys) -> io::Result<()> {
    turn.doing("listening");
    let listener = listen(destination(keys)?)?;
    turn.ready()?;
    turn.doing("accepting");
    let socket = accept(&listener)?;
    turn.doing("taking");
    let mut bytes = vec![0; 4 * PIECE];
    obey_after(turn, keys, BEFORE, |pieces| {
        let mut left = pieces.count() * PIECE;
        while left > 0 {
            let most = left.min(bytes.len());
            let (n, _) = recv(&socket, &mut bytes[..most], RecvFlags::empty())?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= n;
        }
        send(&socket, b".", SendFlags::empty())?;
        Ok(0)
    })
}

/// Sends pieces, and waits at the end until all have come.
fn pours(turn: &mut Turn, keys: Keys) -> io::Result<()> {
    turn.doing("connecting");
    let socket = open(SocketType::STREAM)?;
    connect(&socket, &destination(keys)?)?;
    turn.doing("pouring");
    let bytes = vec![0; PIECE];
    obey_after(turn, keys, BEFORE, |pieces| {
        let started = Instant::now();
        for _ in pieces {
            send_all(&socket, &bytes)?;
        }
        recv(&socket, &mut [0; 1], RecvFlags::empty())?;
        Ok(nanoseconds(started.elapsed()))
    })
}

fn send_all(socket: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = send(socket, bytes, SendFlags::empty())?;
        bytes = &bytes[n..];
    }
    Ok(())
}
