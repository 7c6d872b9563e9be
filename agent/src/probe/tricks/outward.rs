//! From a workload to somebody outside, whom no hook protects: what A's own side lets out is out.

use super::nat::translate;
use super::raw::{ETH_P_IP, send_frame, send_packet};
use super::wire::udp_packet;
use super::{Family, PATIENCE, Stage, Trick, Wall, receiving, stream};
use crate::probe::sandbox::{self, Process, Turn};
use anyhow::{Context as _, Result};
use bulkhead_common::Hook;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "outward-tcp", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: tcp },
    Trick { name: "outward-tcp", family: Family::Ipv6, wall: Wall::Hook(Hook::Connect), setup: tcp },
    Trick { name: "outward-udp", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: udp },
    Trick { name: "outward-udp", family: Family::Ipv6, wall: Wall::Hook(Hook::Sendmsg), setup: udp },
    Trick { name: "outward-older-tcp", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: older },
    Trick { name: "outward-raw-older-socket", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: raw },
    Trick {
        name: "outward-nat-of-own-address-tcp",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Egress),
        setup: nat_tcp,
    },
    Trick {
        name: "outward-nat-of-own-address-udp",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Egress),
        setup: nat_udp,
    },
    Trick { name: "outward-packet", family: Family::Packet, wall: Wall::Lsm("socket_create"), setup: packet },
    Trick { name: "outward-moved-in", family: Family::Ipv4, wall: Wall::Lsm("socket_connect"), setup: moved_in },
    Trick { name: "outward-passed-in", family: Family::Ipv4, wall: Wall::Lsm("file_receive"), setup: passed_in },
];

/// Somebody outside listens.
fn outside(stage: &mut Stage<'_>, kind: Type) -> Result<SocketAddr> {
    let plug = &stage.ground().outside;
    let ip = if stage.family == Family::Ipv6 { plug.v6().into() } else { plug.v4().into() };
    let at = SocketAddr::new(ip, stage.port()?);
    let make =
        move |_: &mut Turn| Ok(vec![if kind == Type::STREAM { sandbox::listen(at)? } else { sandbox::bind_udp(at)? }]);
    let process = Process::spawn(None, Some(plug.netns()), receiving(make))?;
    stage.receiver(process)?;
    Ok(at)
}

fn stream_to(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, None)
}

fn tcp(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::STREAM)?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        stream::dial(turn, &stream_to(to)?, to, &nonce)
    })
}

fn udp(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::DGRAM)?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("sendto");
        Socket::new(Domain::for_address(to), Type::DGRAM, None)?.send_to(&nonce, &to.into()).map(drop)
    })
}

fn older(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::STREAM)?;
    stage.send(&stage.ground().a, |turn| {
        let socket = stream_to(to)?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let nonce = turn.ready()?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}

fn raw(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::DGRAM)?;
    let from = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        let nonce = turn.ready()?;
        send_packet(turn, &socket, from, to, &nonce)
    })
}

/// A may talk to itself; what it sends to its own address leaves the host.
fn nat_tcp(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::STREAM)?;
    let own = SocketAddr::new(stage.address(&stage.ground().a), to.port());
    stage.send(&stage.ground().a, |turn| {
        turn.doing("making an nf_tables rule");
        translate(to)?;
        let nonce = turn.ready()?;
        stream::dial(turn, &stream_to(own)?, own, &nonce)
    })
}

fn nat_udp(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::DGRAM)?;
    let own = SocketAddr::new(stage.address(&stage.ground().a), to.port());
    stage.send(&stage.ground().a, |turn| {
        turn.doing("making an nf_tables rule");
        translate(to)?;
        let nonce = turn.ready()?;
        turn.doing("sendto");
        Socket::new(Domain::IPV4, Type::DGRAM, None)?.send_to(&nonce, &own.into()).map(drop)
    })
}

fn packet(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::DGRAM)?;
    let from = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        send_frame(turn, ETH_P_IP, &udp_packet(from, to, &nonce)?)
    })
}

/// The socket was made outside of any workload; its process then moved into A.
fn moved_in(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::STREAM)?;
    let a = &stage.ground().a;
    let process = Process::spawn(None, Some(a.netns()), |turn| {
        let socket = stream_to(to)?;
        let nonce = turn.ready()?;
        stream::dial(turn, &socket, to, &nonce)
    })?;
    let pid = process.pid();
    stage.sender(process)?;
    a.cgroup().enter(pid).context("moving a process into the cgroup")
}

/// The socket was made outside of any workload and passed to A.
fn passed_in(stage: &mut Stage<'_>) -> Result<()> {
    let to = outside(stage, Type::STREAM)?;
    let maker = Process::spawn(None, Some(stage.ground().outside.netns()), |turn| {
        turn.give_socket(stream_to(to)?)?;
        turn.stay()
    })?;
    super::borrowed::pass(stage, maker, |turn, socket| {
        let nonce = turn.ready()?;
        stream::dial(turn, &socket, to, &nonce)
    })
}
