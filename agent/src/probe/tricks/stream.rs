//! TCP in every dress.

use super::wire::{disconnect, set_option};
use super::{Family, PATIENCE, Stage, Trick, Wall};
use crate::probe::sandbox::{self, Turn};
use anyhow::Result;
use bulkhead_common::Hook;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "tcp-connect", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: connect },
    Trick { name: "tcp-connect", family: Family::Ipv6, wall: Wall::Hook(Hook::Connect), setup: connect },
    Trick { name: "tcp-v4-mapped", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: mapped },
    Trick { name: "tcp-nonblocking", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: nonblocking },
    Trick { name: "tcp-fast-open", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: fast_open },
    Trick { name: "tcp-fast-open", family: Family::Ipv6, wall: Wall::Hook(Hook::Connect), setup: fast_open },
    Trick {
        name: "tcp-fast-open-connect",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Connect),
        setup: fast_open_connect,
    },
    Trick { name: "tcp-from-port-53", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: from_port_53 },
    Trick { name: "tcp-reconnect", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: reconnect },
    Trick {
        name: "tcp-client-becomes-listener",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Ingress),
        setup: becomes_listener,
    },
    Trick { name: "mptcp-connect", family: Family::Ipv4, wall: Wall::Hook(Hook::SockCreate), setup: mptcp_connect },
    Trick { name: "mptcp-connect", family: Family::Ipv6, wall: Wall::Hook(Hook::SockCreate), setup: mptcp_connect },
    Trick {
        name: "mptcp-older-socket",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Connect),
        setup: mptcp_older_socket,
    },
    Trick { name: "mptcp-listener", family: Family::Ipv4, wall: Wall::Hook(Hook::Ingress), setup: mptcp_listener },
    Trick { name: "smc-connect", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: smc },
];

/// Makes the socket, connects and sends, once told.
fn plain(turn: &mut Turn, protocol: Option<Protocol>, to: SocketAddr) -> io::Result<()> {
    let nonce = turn.ready()?;
    turn.doing("socket");
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, protocol)?;
    dial(turn, &socket, to, &nonce)
}

/// Connects and sends.
pub(super) fn dial(turn: &mut Turn, socket: &Socket, to: SocketAddr, nonce: &[u8]) -> io::Result<()> {
    turn.doing("connect");
    socket.connect_timeout(&to.into(), PATIENCE)?;
    turn.doing("send");
    socket.send(nonce).map(drop)
}

fn connect(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| plain(turn, None, to))
}

/// An IPv6 socket connects to an IPv4 address.
fn mapped(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let to = SocketAddr::new(stage.ground().b.v4().to_ipv6_mapped().into(), to.port());
    stage.send(&stage.ground().a, |turn| plain(turn, None, to))
}

/// connect() returns before anything is known, and send() is tried again until it works.
fn nonblocking(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        turn.doing("connect");
        match socket.connect(&to.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        turn.doing("send");
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.send(&nonce).map(drop)
    })
}

/// sendto(MSG_FASTOPEN): no connect() at all, and the data travels in the SYN.
fn fast_open(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        turn.doing("sendto with MSG_FASTOPEN");
        socket.send_to_with_flags(&nonce, &to.into(), libc::MSG_FASTOPEN).map(drop)
    })
}

/// TCP_FASTOPEN_CONNECT: connect() succeeds at once and the first write sends the SYN.
fn fast_open_connect(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &1_i32.to_ne_bytes())?;
        dial(turn, &socket, to, &nonce)
    })
}

/// A well-known source port makes nobody a server.
fn from_port_53(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let from = SocketAddr::new(stage.address(&stage.ground().a), 53);
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // The other end of an earlier connection from this port may still remember it.
        turn.doing("bind");
        socket.bind(&from.into())?;
        dial(turn, &socket, to, &nonce)
    })
}

/// A socket that was connected before is disconnected by connect(AF_UNSPEC) and connected again.
fn reconnect(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        turn.doing("the first connect");
        socket.connect(&to.into())?;
        let nonce = turn.ready()?;
        turn.doing("connect to AF_UNSPEC");
        disconnect(&socket)?;
        dial(turn, &socket, to, &nonce)
    })
}

/// A socket that was a client becomes a listener, and takes data from a peer that may not send it: what was decided
/// for the client must not hold for the server.
fn becomes_listener(stage: &mut Stage<'_>) -> Result<()> {
    let ground = stage.ground();
    let elsewhere = stage.tcp_at_b()?;
    let at = SocketAddr::new(stage.address(&ground.a), stage.port()?);
    stage.receive(&ground.a, |_| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.connect(&elsewhere.into())?;
        // The address that it was bound to stays.
        disconnect(&socket)?;
        socket.listen(4)?;
        Ok(vec![socket])
    })?;
    let process = sandbox::Process::spawn(None, Some(ground.outside.netns()), |turn| plain(turn, None, at))?;
    stage.sender(process)
}

fn mptcp_connect(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| plain(turn, Some(Protocol::MPTCP), to))
}

/// The MPTCP socket exists before it could be refused.
fn mptcp_older_socket(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP))?;
        let nonce = turn.ready()?;
        dial(turn, &socket, to, &nonce)
    })
}

/// B listens by MPTCP, as programs written in Go do; the client comes from outside.
fn mptcp_listener(stage: &mut Stage<'_>) -> Result<()> {
    let ground = stage.ground();
    let at = SocketAddr::new(stage.address(&ground.b), stage.port()?);
    stage.receive(&ground.b, |_| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::MPTCP))?;
        socket.bind(&at.into())?;
        socket.listen(4)?;
        Ok(vec![socket])
    })?;
    let process =
        sandbox::Process::spawn(None, Some(ground.outside.netns()), |turn| plain(turn, Some(Protocol::MPTCP), at))?;
    stage.sender(process)
}

/// include/linux/socket.h.
const AF_SMC: i32 = 43;

/// AF_SMC falls back to TCP by a socket that the kernel makes.
fn smc(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        turn.doing("socket of AF_SMC");
        Socket::new(Domain::from(AF_SMC), Type::STREAM, None)?;
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::from(AF_SMC), Type::STREAM, None)?;
        dial(turn, &socket, to, &nonce)
    })
}
