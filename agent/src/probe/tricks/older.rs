//! Sockets that exist before the programs do, and processes that move.

use super::{Family, PATIENCE, Stage, Trick, Wall, receiving, stream};
use crate::probe::sandbox::{self, Process, Turn};
use anyhow::{Context as _, Result};
use bulkhead_common::Hook;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "older-tcp-connection", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: connection },
    Trick { name: "older-tcp-connection", family: Family::Ipv6, wall: Wall::Hook(Hook::Egress), setup: connection },
    Trick { name: "older-tcp-server-sends", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: server_sends },
    Trick {
        name: "older-tcp-from-outside",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Ingress),
        setup: from_outside,
    },
    Trick { name: "older-tcp-socket", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: unconnected },
    Trick { name: "older-udp-connected", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: udp_connected },
    Trick { name: "older-udp-connected", family: Family::Ipv6, wall: Wall::Hook(Hook::Egress), setup: udp_connected },
    Trick { name: "older-udp-bound", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: udp_bound },
    Trick { name: "older-udp-answers", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: udp_answers },
    Trick { name: "nested-cgroup", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: nested },
    Trick { name: "moved-in-client", family: Family::Ipv4, wall: Wall::Hook(Hook::Ingress), setup: moved_client },
    Trick {
        name: "moved-in-connection",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Ingress),
        setup: moved_connection,
    },
    Trick { name: "moved-in-listener", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: moved_listener },
    Trick { name: "moved-in-both", family: Family::Ipv4, wall: Wall::Lsm("socket_sendmsg"), setup: moved_both },
    Trick { name: "moved-between", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: moved_between },
];

fn stream_to(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, None)
}

/// Connects, waits, sends.
fn connected(turn: &mut Turn, to: SocketAddr) -> io::Result<()> {
    turn.doing("connect");
    let socket = stream_to(to)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let nonce = turn.ready()?;
    turn.doing("send");
    socket.send(&nonce).map(drop)
}

/// Makes a socket, waits, connects and sends.
fn made(turn: &mut Turn, to: SocketAddr) -> io::Result<()> {
    let socket = stream_to(to)?;
    let nonce = turn.ready()?;
    stream::dial(turn, &socket, to, &nonce)
}

fn connection(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| connected(turn, to))
}

/// The data goes from the side that accepted.
fn server_sends(stage: &mut Stage<'_>) -> Result<()> {
    let ground = stage.ground();
    let at = SocketAddr::new(stage.address(&ground.a), stage.port()?);
    let mut server = ground.a.spawn(|turn| {
        let listener = sandbox::listen(at)?;
        turn.ready()?;
        let (socket, _) = listener.accept()?;
        let nonce = turn.ready()?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })?;
    server.wait_ready(super::READY_WITHIN)?;
    server.go(&[])?;
    stage.receive(&ground.b, |_| {
        let socket = stream_to(at)?;
        socket.connect_timeout(&at.into(), PATIENCE)?;
        Ok(vec![socket])
    })?;
    stage.sender(server)
}

/// The client is no workload, so only the receiver's side can stop it.
fn from_outside(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let process = Process::spawn(None, Some(stage.ground().outside.netns()), |turn| connected(turn, to))?;
    stage.sender(process)
}

fn unconnected(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| made(turn, to))
}

fn udp_connected(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        socket.connect(&to.into())?;
        let nonce = turn.ready()?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}

/// Bound and used before.
fn udp_bound(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let from = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let socket = sandbox::bind_udp(from)?;
        socket.send_to(b"earlier", &to.into())?;
        let nonce = turn.ready()?;
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

/// B asked while it was allowed; the answer comes when it no longer is.
fn udp_answers(stage: &mut Stage<'_>) -> Result<()> {
    let ground = stage.ground();
    let server = SocketAddr::new(stage.address(&ground.a), stage.port()?);
    let client = SocketAddr::new(stage.address(&ground.b), stage.port()?);
    let mut sender = ground.a.spawn(|turn| {
        let socket = sandbox::bind_udp(server)?;
        turn.ready()?;
        let nonce = turn.ready()?;
        turn.doing("sendto");
        socket.send_to(&nonce, &client.into()).map(drop)
    })?;
    sender.wait_ready(super::READY_WITHIN)?;
    stage.receive(&ground.b, |_| {
        let socket = sandbox::bind_udp(client)?;
        socket.send_to(b"a question", &server.into())?;
        Ok(vec![socket])
    })?;
    sender.go(&[])?;
    stage.sender(sender)
}

/// A cgroup that the workload made inside its own.
fn nested(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let own = stage.ground().a.cgroup().path();
    stage.send(&stage.ground().a, |turn| {
        let nested = own.join(format!("nested-{}", std::process::id()));
        turn.doing("making a cgroup");
        std::fs::create_dir(&nested)?;
        std::fs::write(nested.join("cgroup.procs"), "0")?;
        let nonce = turn.ready()?;
        let socket = stream_to(to)?;
        stream::dial(turn, &socket, to, &nonce)
    })
}

/// A process of no workload, in A's network namespace, that is moved into A once it is ready.
fn move_in<F>(stage: &mut Stage<'_>, body: F) -> Result<()>
where
    F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
{
    let a = &stage.ground().a;
    let process = Process::spawn(None, Some(a.netns()), body)?;
    let pid = process.pid();
    stage.sender(process)?;
    a.cgroup().enter(pid).context("moving a process into the cgroup")
}

/// The socket was made outside of any workload; its process then moved in.
fn moved_client(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    move_in(stage, |turn| made(turn, to))
}

fn moved_connection(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    move_in(stage, |turn| connected(turn, to))
}

/// A listener made outside of any workload; its process then moved into B.
fn listener_moved_into_b(stage: &mut Stage<'_>) -> Result<SocketAddr> {
    let b = &stage.ground().b;
    let at = SocketAddr::new(stage.address(b), stage.port()?);
    let process = Process::spawn(None, Some(b.netns()), receiving(|_| Ok(vec![sandbox::listen(at)?])))?;
    let pid = process.pid();
    stage.receiver(process)?;
    b.cgroup().enter(pid).context("moving a process into the cgroup")?;
    Ok(at)
}

fn moved_listener(stage: &mut Stage<'_>) -> Result<()> {
    let to = listener_moved_into_b(stage)?;
    stage.send(&stage.ground().a, |turn| made(turn, to))
}

/// Neither end's socket belongs to a cgroup with programs.
fn moved_both(stage: &mut Stage<'_>) -> Result<()> {
    let to = listener_moved_into_b(stage)?;
    move_in(stage, |turn| made(turn, to))
}

/// The socket was made as C, its process then moved into A.
fn moved_between(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let ground = stage.ground();
    let process = ground.c.spawn(|turn| made(turn, to))?;
    let pid = process.pid();
    stage.sender(process)?;
    ground.a.cgroup().enter(pid).context("moving a process into the cgroup")
}
