//! Families beside IP, and transports that few programs use.

use super::wire::{address, family};
use super::{Family, PATIENCE, Stage, Trick, Wall};
use anyhow::Result;
use bulkhead_common::Hook;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "sctp-connect", family: Family::Ipv4, wall: Wall::Hook(Hook::SockCreate), setup: sctp },
    Trick { name: "sctp-connect", family: Family::Ipv6, wall: Wall::Hook(Hook::SockCreate), setup: sctp },
    Trick { name: "dccp-connect", family: Family::Ipv4, wall: Wall::Hook(Hook::SockCreate), setup: dccp },
    Trick { name: "vsock-loopback", family: Family::Vsock, wall: Wall::Lsm("socket_connect"), setup: vsock },
    Trick {
        name: "unix-abstract-stream",
        family: Family::Unix,
        wall: Wall::Lsm("unix_stream_connect"),
        setup: unix_stream,
    },
    Trick {
        name: "unix-abstract-datagram",
        family: Family::Unix,
        wall: Wall::Lsm("unix_may_send"),
        setup: unix_datagram,
    },
];

/// Between A and B, over a transport that is connected like TCP.
fn transport(
    stage: &mut Stage<'_>,
    kind: Type,
    protocol: Protocol,
    prepare: fn(&Socket) -> io::Result<()>,
) -> Result<()> {
    let ground = stage.ground();
    let at = SocketAddr::new(stage.address(&ground.b), stage.port()?);
    stage.receive(&ground.b, |_| {
        let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
        prepare(&socket)?;
        socket.bind(&at.into())?;
        socket.listen(4)?;
        Ok(vec![socket])
    })?;
    stage.send(&ground.a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("socket");
        let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
        prepare(&socket)?;
        turn.doing("connect");
        socket.connect_timeout(&at.into(), PATIENCE)?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}

fn sctp(stage: &mut Stage<'_>) -> Result<()> {
    transport(stage, Type::STREAM, Protocol::from(libc::IPPROTO_SCTP), |_| Ok(()))
}

fn dccp(stage: &mut Stage<'_>) -> Result<()> {
    transport(stage, Type::DCCP, Protocol::from(libc::IPPROTO_DCCP), |socket| socket.set_dccp_service(77))
}

/// VMADDR_CID_LOCAL.
const LOCAL: u32 = 1;

fn vsock(stage: &mut Stage<'_>) -> Result<()> {
    let ground = stage.ground();
    let port = u32::from(stage.port()?);
    stage.receive(&ground.b, |_| {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
        socket.bind(&SockAddr::vsock(LOCAL, port))?;
        socket.listen(4)?;
        Ok(vec![socket])
    })?;
    stage.send(&ground.a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("vsock");
        let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
        turn.doing("connect");
        socket.connect_timeout(&SockAddr::vsock(LOCAL, port), PATIENCE)?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}

/// A name that exists only within one network namespace, and no file.
fn abstract_name(port: u16) -> io::Result<SockAddr> {
    let mut path = [0; 108];
    for (to, from) in path[1..].iter_mut().zip(format!("bulkhead-probe-{port}").bytes()) {
        *to = from.cast_signed();
    }
    address(&libc::sockaddr_un { sun_family: family(libc::AF_UNIX), sun_path: path })
}

/// From A to the workload that shares its network namespace.
fn unix(stage: &mut Stage<'_>, kind: Type) -> Result<()> {
    let ground = stage.ground();
    let port = stage.port()?;
    stage.receive(&ground.beside_a, |_| {
        let socket = Socket::new(Domain::UNIX, kind, None)?;
        socket.bind(&abstract_name(port)?)?;
        if kind == Type::STREAM {
            socket.listen(4)?;
        }
        Ok(vec![socket])
    })?;
    stage.send(&ground.a, |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::UNIX, kind, None)?;
        turn.doing("connect");
        socket.connect(&abstract_name(port)?)?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}

fn unix_stream(stage: &mut Stage<'_>) -> Result<()> {
    unix(stage, Type::STREAM)
}

fn unix_datagram(stage: &mut Stage<'_>) -> Result<()> {
    unix(stage, Type::DGRAM)
}
