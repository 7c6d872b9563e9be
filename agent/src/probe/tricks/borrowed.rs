//! Sockets that another workload made.

use super::{Family, READY_WITHIN, Stage, Trick, Wall, stream};
use crate::probe::sandbox::{Process, Turn};
use anyhow::{Context as _, Result};
use bulkhead_common::Hook;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

pub(super) const TRICKS: &[Trick] = &[
    Trick {
        name: "passed-unconnected",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Connect),
        setup: passed_unconnected,
    },
    Trick {
        name: "passed-unconnected",
        family: Family::Ipv6,
        wall: Wall::Hook(Hook::Connect),
        setup: passed_unconnected,
    },
    Trick { name: "passed-udp", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: passed_udp },
    Trick { name: "passed-connected", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: passed_connected },
    Trick {
        name: "passed-from-outside",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Ingress),
        setup: passed_from_outside,
    },
    Trick { name: "stolen-by-pidfd", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: stolen },
    Trick { name: "stolen-connected", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: stolen_connected },
];

/// Lets A use a socket that `maker` gives away.
pub(super) fn pass<F>(stage: &mut Stage<'_>, mut maker: Process, user: F) -> Result<()>
where
    F: FnOnce(&mut Turn, Socket) -> io::Result<()> + Copy,
{
    maker.wait_ready(READY_WITHIN)?;
    let socket = maker.take_socket(READY_WITHIN).context("nothing was passed")?;
    let mut process = stage.ground().a.spawn(|turn| {
        turn.doing("taking the socket");
        let socket = Socket::from(turn.take_socket()?);
        user(turn, socket)
    })?;
    process.hand_over(socket.as_fd())?;
    stage.sender(process)
}

/// Gives the socket away and ends only with the stage.
fn give(turn: &mut Turn, socket: &Socket) -> io::Result<()> {
    turn.give_socket(socket)?;
    turn.stay()
}

fn stream_to(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, None)
}

fn connected_to(to: SocketAddr) -> io::Result<Socket> {
    let socket = stream_to(to)?;
    socket.connect_timeout(&to.into(), super::PATIENCE)?;
    Ok(socket)
}

/// Connects when told.
fn connect_later(turn: &mut Turn, socket: &Socket, to: SocketAddr) -> io::Result<()> {
    let nonce = turn.ready()?;
    stream::dial(turn, socket, to, &nonce)
}

/// Sends when told.
fn send_later(turn: &mut Turn, socket: &Socket) -> io::Result<()> {
    let nonce = turn.ready()?;
    turn.doing("send");
    socket.send(&nonce).map(drop)
}

/// C makes the socket and passes it over; A connects it.
fn passed_unconnected(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let maker = stage.ground().c.spawn(|turn| give(turn, &stream_to(to)?))?;
    pass(stage, maker, |turn, socket| connect_later(turn, &socket, to))
}

fn passed_udp(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let maker = stage.ground().c.spawn(|turn| give(turn, &Socket::new(Domain::for_address(to), Type::DGRAM, None)?))?;
    pass(stage, maker, |turn, socket| {
        let nonce = turn.ready()?;
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

/// C has connected it already.
fn passed_connected(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let maker = stage.ground().c.spawn(|turn| give(turn, &connected_to(to)?))?;
    pass(stage, maker, |turn, socket| send_later(turn, &socket))
}

/// Somebody outside of any workload has made it: no hook of A's cgroup ever sees its packets.
fn passed_from_outside(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let maker = Process::spawn(None, Some(stage.ground().outside.netns()), |turn| give(turn, &stream_to(to)?))?;
    pass(stage, maker, |turn, socket| connect_later(turn, &socket, to))
}

/// A takes the socket out of C's process by pidfd_getfd.
fn steal<F>(stage: &mut Stage<'_>, make: impl FnOnce() -> io::Result<Socket> + Copy, user: F) -> Result<()>
where
    F: FnOnce(&mut Turn, Socket) -> io::Result<()> + Copy,
{
    let mut victim = stage.ground().c.spawn(|turn| {
        let socket = make()?;
        turn.received(&socket.as_raw_fd().to_ne_bytes())?;
        turn.stay()
    })?;
    victim.wait_ready(READY_WITHIN)?;
    let number = victim.received().first().and_then(|bytes| bytes.first_chunk()).context("no socket")?;
    let (number, pid) = (i32::from_ne_bytes(*number), victim.pid());
    // It has to live on, but has nothing to receive.
    stage.receivers.insert(0, victim);
    stage.send(&stage.ground().a, |turn| {
        turn.doing("pidfd_getfd");
        let victim = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = rustix::process::pidfd_open(victim, rustix::process::PidfdFlags::empty())?;
        let fd = rustix::process::pidfd_getfd(&pidfd, number, rustix::process::PidfdGetfdFlags::empty())?;
        user(turn, Socket::from(fd))
    })
}

fn stolen(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    steal(stage, || stream_to(to), |turn, socket| connect_later(turn, &socket, to))
}

fn stolen_connected(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    steal(stage, || connected_to(to), |turn, socket| send_later(turn, &socket))
}
