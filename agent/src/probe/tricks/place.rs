//! Network namespaces, shared or entered, and what comes from outside of any workload.

use super::{Family, Stage, Trick, Wall, stream};
use crate::probe::sandbox::{self, Process, Workload};
use anyhow::{Context as _, Result};
use bulkhead_common::Hook;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;

pub(super) const TRICKS: &[Trick] = &[
    Trick {
        name: "shared-netns-tcp-loopback",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Egress),
        setup: tcp_loopback,
    },
    Trick {
        name: "shared-netns-tcp-loopback",
        family: Family::Ipv6,
        wall: Wall::Hook(Hook::Egress),
        setup: tcp_loopback,
    },
    Trick {
        name: "shared-netns-udp-loopback",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Egress),
        setup: udp_loopback,
    },
    Trick {
        name: "shared-netns-udp-loopback",
        family: Family::Ipv6,
        wall: Wall::Hook(Hook::Egress),
        setup: udp_loopback,
    },
    Trick {
        name: "shared-netns-tcp-own-address",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Ingress),
        setup: tcp_own,
    },
    Trick {
        name: "shared-netns-udp-own-address",
        family: Family::Ipv6,
        wall: Wall::Hook(Hook::Egress),
        setup: udp_own,
    },
    Trick { name: "setns-loopback", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: setns_loopback },
    Trick { name: "setns-udp", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: setns_udp },
    Trick { name: "own-netns-loopback", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: own_netns },
    Trick { name: "outside-tcp", family: Family::Ipv4, wall: Wall::Hook(Hook::Ingress), setup: outside_tcp },
    Trick { name: "outside-tcp", family: Family::Ipv6, wall: Wall::Hook(Hook::Ingress), setup: outside_tcp },
    Trick { name: "outside-udp", family: Family::Ipv4, wall: Wall::Hook(Hook::Ingress), setup: outside_udp },
    Trick { name: "outside-udp", family: Family::Ipv6, wall: Wall::Hook(Hook::Ingress), setup: outside_udp },
    Trick {
        name: "outside-in-own-netns",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::Ingress),
        setup: outside_inside,
    },
];

fn by_tcp(stage: &mut Stage<'_>, from: &Workload, to: SocketAddr) -> Result<()> {
    stage.send(from, |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        stream::dial(turn, &socket, to, &nonce)
    })
}

fn by_udp(stage: &mut Stage<'_>, from: &Workload, to: SocketAddr) -> Result<()> {
    stage.send(from, |turn| {
        let nonce = turn.ready()?;
        turn.doing("sendto");
        Socket::new(Domain::for_address(to), Type::DGRAM, None)?.send_to(&nonce, &to.into()).map(drop)
    })
}

/// A sends to the workload that shares its network namespace.
fn shared(stage: &mut Stage<'_>, address: IpAddr, stream: bool) -> Result<()> {
    let ground = stage.ground();
    let at = SocketAddr::new(address, stage.port()?);
    stage
        .receive(&ground.beside_a, |_| Ok(vec![if stream { sandbox::listen(at)? } else { sandbox::bind_udp(at)? }]))?;
    if stream { by_tcp(stage, &ground.a, at) } else { by_udp(stage, &ground.a, at) }
}

fn tcp_loopback(stage: &mut Stage<'_>) -> Result<()> {
    shared(stage, stage.loopback(), true)
}

fn udp_loopback(stage: &mut Stage<'_>) -> Result<()> {
    shared(stage, stage.loopback(), false)
}

fn tcp_own(stage: &mut Stage<'_>) -> Result<()> {
    shared(stage, stage.address(&stage.ground().a), true)
}

fn udp_own(stage: &mut Stage<'_>) -> Result<()> {
    shared(stage, stage.address(&stage.ground().a), false)
}

/// Takes the calling process into the network namespace of another one.
fn enter(pid: u32) -> io::Result<()> {
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// A enters B's network namespace and sends to B over its loopback.
fn into_b(stage: &mut Stage<'_>, stream: bool) -> Result<()> {
    let ground = stage.ground();
    let at = SocketAddr::new(stage.loopback(), stage.port()?);
    stage.receive(&ground.b, |_| Ok(vec![if stream { sandbox::listen(at)? } else { sandbox::bind_udp(at)? }]))?;
    let pid = stage.receivers.last().context("no receiver")?.pid();
    stage.send(&ground.a, |turn| {
        turn.doing("setns");
        enter(pid)?;
        let nonce = turn.ready()?;
        if stream {
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
            stream::dial(turn, &socket, at, &nonce)
        } else {
            turn.doing("sendto");
            Socket::new(Domain::for_address(at), Type::DGRAM, None)?.send_to(&nonce, &at.into()).map(drop)
        }
    })
}

fn setns_loopback(stage: &mut Stage<'_>) -> Result<()> {
    into_b(stage, true)
}

fn setns_udp(stage: &mut Stage<'_>) -> Result<()> {
    into_b(stage, false)
}

/// B makes a network namespace that nobody knows of, and A joins it there.
fn own_netns(stage: &mut Stage<'_>) -> Result<()> {
    let at = SocketAddr::new(stage.loopback(), stage.port()?);
    stage.receive(&stage.ground().b, |turn| {
        turn.doing("unshare");
        sandbox::enter_new()?;
        sandbox::up_loopback()?;
        Ok(vec![sandbox::listen(at)?])
    })?;
    let pid = stage.receivers.last().context("no receiver")?.pid();
    stage.send(&stage.ground().a, |turn| {
        turn.doing("setns");
        enter(pid)?;
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        stream::dial(turn, &socket, at, &nonce)
    })
}

/// A process that is no workload's sends to B, from a namespace that is none either.
fn outside_tcp(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let process = Process::spawn(None, Some(stage.ground().outside.netns()), |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        stream::dial(turn, &socket, to, &nonce)
    })?;
    stage.sender(process)
}

fn outside_udp(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let process = Process::spawn(None, Some(stage.ground().outside.netns()), |turn| {
        let nonce = turn.ready()?;
        turn.doing("sendto");
        Socket::new(Domain::for_address(to), Type::DGRAM, None)?.send_to(&nonce, &to.into()).map(drop)
    })?;
    stage.sender(process)
}

/// A process that is no workload's, but in B's own network namespace.
fn outside_inside(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let process = Process::spawn(None, Some(stage.ground().b.netns()), |turn| {
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        stream::dial(turn, &socket, to, &nonce)
    })?;
    stage.sender(process)
}
