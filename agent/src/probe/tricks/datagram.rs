//! UDP and its kin.

use super::wire::{disconnect, set_option};
use super::{Family, Stage, Trick, Wall};
use crate::probe::sandbox::{self, Plug};
use anyhow::Result;
use bulkhead_common::Hook;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "udp-connect", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: connect },
    Trick { name: "udp-connect", family: Family::Ipv6, wall: Wall::Hook(Hook::Connect), setup: connect },
    Trick { name: "udp-sendto", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: sendto },
    Trick { name: "udp-sendto", family: Family::Ipv6, wall: Wall::Hook(Hook::Sendmsg), setup: sendto },
    Trick { name: "udp-v4-mapped", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: mapped },
    Trick { name: "udp-sendmmsg", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: many },
    Trick { name: "udp-connected-elsewhere", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: elsewhere },
    Trick { name: "udp-reconnect", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: reconnect },
    Trick { name: "udp-unasked-reply", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: unasked_reply },
    Trick { name: "udp-fragments", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: fragments },
    Trick { name: "udp-fragments", family: Family::Ipv6, wall: Wall::Hook(Hook::Sendmsg), setup: fragments },
    Trick { name: "udp-ip-options", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: options },
    Trick { name: "udp-destination-options", family: Family::Ipv6, wall: Wall::Hook(Hook::Sendmsg), setup: options },
    Trick { name: "udp-broadcast", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: broadcast },
    Trick { name: "udp-multicast", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: multicast },
    Trick { name: "udp-multicast", family: Family::Ipv6, wall: Wall::Hook(Hook::Sendmsg), setup: multicast },
    Trick { name: "udp-false-source", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: false_source },
    Trick { name: "udplite-sendto", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: lite },
    Trick { name: "udplite-connect", family: Family::Ipv6, wall: Wall::Hook(Hook::Egress), setup: lite_connect },
];

fn udp(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::DGRAM, None)
}

fn connect(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = udp(to)?;
        turn.doing("connect");
        socket.connect(&to.into())?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}

fn sendto(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    send_to(stage, to)
}

fn send_to(stage: &mut Stage<'_>, to: SocketAddr) -> Result<()> {
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = udp(to)?;
        socket.set_broadcast(true)?;
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

/// An IPv6 socket sends to an IPv4 address.
fn mapped(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.udp_at_b()?.port();
    send_to(stage, SocketAddr::new(stage.ground().b.v4().to_ipv6_mapped().into(), port))
}

/// Two messages in one call. The first goes to the sender itself; the second is the one that matters.
fn many(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let own = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let inbox = sandbox::bind_udp(own)?;
        let nonce = turn.ready()?;
        let socket = udp(to)?;
        let message = [IoSlice::new(&nonce)];
        let (own, to) = (SocketAddrAny::from(own), SocketAddrAny::from(to));
        let (mut first, mut second) = (SendAncillaryBuffer::default(), SendAncillaryBuffer::default());
        let mut messages =
            [MMsgHdr::new_with_addr(&own, &message, &mut first), MMsgHdr::new_with_addr(&to, &message, &mut second)];
        turn.doing("sendmmsg");
        let sent = sendmmsg(&socket, &mut messages, SendFlags::empty())?;
        drop(inbox);
        if sent == 2 { Ok(()) } else { Err(io::Error::other("only the first message was sent")) }
    })
}

/// A socket connected to one peer (itself) sends to another.
fn elsewhere(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let own = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let socket = sandbox::bind_udp(own)?;
        socket.connect(&own.into())?;
        let nonce = turn.ready()?;
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

/// Connected before, dissolved by connect(AF_UNSPEC), connected again.
fn reconnect(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let socket = udp(to)?;
        socket.connect(&to.into())?;
        let nonce = turn.ready()?;
        turn.doing("connect to AF_UNSPEC");
        disconnect(&socket)?;
        turn.doing("connect");
        socket.connect(&to.into())?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}

/// What looks like a name server's answer, but nobody asked: from port 53 to a client's socket.
fn unasked_reply(stage: &mut Stage<'_>) -> Result<()> {
    let ground = stage.ground();
    let client = SocketAddr::new(stage.address(&ground.b), stage.port()?);
    let server = SocketAddr::new(stage.address(&ground.c), 53);
    let from = SocketAddr::new(stage.address(&ground.a), 53);
    stage.receive(&ground.b, |_| {
        let socket = sandbox::bind_udp(client)?;
        // The client does ask, but somebody else. Nobody answers there.
        socket.send_to(b"a question", &server.into())?;
        Ok(vec![socket])
    })?;
    stage.send(&ground.a, |turn| {
        let nonce = turn.ready()?;
        let socket = sandbox::bind_udp(from)?;
        turn.doing("sendto");
        socket.send_to(&nonce, &client.into()).map(drop)
    })
}

/// More than fits one packet, with the nonce in the last: that one has no ports.
fn fragments(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let mut bytes = vec![b'.'; 4000];
        bytes.extend(nonce);
        turn.doing("sendto");
        udp(to)?.send_to(&bytes, &to.into()).map(drop)
    })
}

/// The transport header isn't where it usually is.
fn options(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = udp(to)?;
        turn.doing("setting the options");
        if to.is_ipv4() {
            // Three no-operations and the end of the list.
            set_option(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1, 1, 1, 0])?;
        } else {
            // One header of eight bytes: next header and length, which the kernel fills in, and four bytes of padding.
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0])?;
        }
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

fn broadcast(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let at = SocketAddr::new(stage.any(), port);
    stage.receive(&stage.ground().b, |_| Ok(vec![sandbox::bind_udp(at)?]))?;
    send_to(stage, (Ipv4Addr::BROADCAST, port).into())
}

fn multicast(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let at = SocketAddr::new(stage.any(), port);
    let group: IpAddr = match stage.family {
        Family::Ipv6 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x77, 1).into(),
        _ => Ipv4Addr::new(239, 77, 0, 1).into(),
    };
    stage.receive(&stage.ground().b, |_| {
        let socket = sandbox::bind_udp(at)?;
        match group {
            IpAddr::V4(v4) => socket.join_multicast_v4_n(&v4, &socket2::InterfaceIndexOrAddress::Index(link()?))?,
            IpAddr::V6(v6) => socket.join_multicast_v6(&v6, link()?)?,
        }
        Ok(vec![socket])
    })?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let to = match group {
            IpAddr::V4(v4) => SocketAddr::new(v4.into(), port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, link()?).into(),
        };
        turn.doing("sendto");
        udp(to)?.send_to(&nonce, &to.into()).map(drop)
    })
}

/// The number of the link to the switch.
fn link() -> io::Result<u32> {
    sandbox::link_index(Plug::LINK)
}

/// With another workload's address as its source.
fn false_source(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let from = SocketAddr::new(stage.address(&stage.ground().c), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        let socket = udp(to)?;
        turn.doing("setting IP_TRANSPARENT");
        socket.set_ip_transparent_v4(true)?;
        turn.doing("bind");
        socket.bind(&from.into())?;
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

const UDPLITE: i32 = 136;

fn lite_at_b(stage: &mut Stage<'_>) -> Result<SocketAddr> {
    let at = SocketAddr::new(stage.address(&stage.ground().b), stage.port()?);
    stage.receive(&stage.ground().b, |_| {
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::from(UDPLITE)))?;
        socket.bind(&at.into())?;
        Ok(vec![socket])
    })?;
    Ok(at)
}

fn lite(stage: &mut Stage<'_>) -> Result<()> {
    let to = lite_at_b(stage)?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("socket");
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::from(UDPLITE)))?;
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

fn lite_connect(stage: &mut Stage<'_>) -> Result<()> {
    let to = lite_at_b(stage)?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("socket");
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::from(UDPLITE)))?;
        turn.doing("connect");
        socket.connect(&to.into())?;
        turn.doing("send");
        socket.send(&nonce).map(drop)
    })
}
