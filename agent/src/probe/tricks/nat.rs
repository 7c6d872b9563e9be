//! Destinations that are translated after connect() or sendto() were judged, by rules of the workload's own network
//! namespace, as a sidecar mesh has them.
//!
//! The rules are written in nf_tables' netlink messages (include/uapi/linux/netfilter/nf_tables.h), since nothing can
//! be expected to be installed.

use super::{Family, Stage, Trick, Wall, stream};
use crate::probe::sandbox;
use anyhow::Result;
use bulkhead_common::Hook;
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "nat-of-own-address-tcp", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: own_by_tcp },
    Trick { name: "nat-of-own-address-udp", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: own_by_udp },
];

/// A may talk to itself; what it sends to its own address goes to B.
fn own_by_tcp(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.tcp_at_b()?;
    let own = SocketAddr::new(stage.address(&stage.ground().a), to.port());
    stage.send(&stage.ground().a, |turn| {
        turn.doing("making an nf_tables rule");
        translate(to)?;
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        stream::dial(turn, &socket, own, &nonce)
    })
}

fn own_by_udp(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let ip = stage.address(&stage.ground().a);
    let (own, from) = (SocketAddr::new(ip, to.port()), SocketAddr::new(ip, stage.port()?));
    stage.send(&stage.ground().a, |turn| {
        turn.doing("making an nf_tables rule");
        translate(to)?;
        let nonce = turn.ready()?;
        turn.doing("sendto");
        sandbox::bind_udp(from)?.send_to(&nonce, &own.into()).map(drop)
    })
}

/// Whatever the calling process's network namespace sends to the port goes to this address.
pub(super) fn translate(to: SocketAddr) -> io::Result<()> {
    let IpAddr::V4(address) = to.ip() else { return Err(io::ErrorKind::Unsupported.into()) };
    // A name of its own for each trick: the namespace is shared by all.
    let table = format!("probe{}", to.port());
    let hook = [number(1, LOCAL_OUT), number(2, DESTINATION_NAT_PRIORITY)].concat();
    let chain = [text(1, &table), text(3, "output"), nested(4, &hook), text(7, "nat")].concat();
    let rule = [text(1, &table), text(2, "output"), nested(4, &expressions(address, to.port()))].concat();
    let batch = [
        message(BATCH_BEGIN, 0, libc::AF_UNSPEC, &[]),
        message(SUBSYSTEM | NEW_TABLE, ACKED, libc::AF_INET, &text(1, &table)),
        message(SUBSYSTEM | NEW_CHAIN, ACKED, libc::AF_INET, &chain),
        message(SUBSYSTEM | NEW_RULE, ACKED | APPENDED, libc::AF_INET, &rule),
        message(BATCH_END, 0, libc::AF_UNSPEC, &[]),
    ];
    let socket = Netlink::new(NETLINK_NETFILTER)?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&batch.concat(), 0)?;
    for _ in 0..3 {
        let (answer, _) = socket.recv_from_full()?;
        // struct nlmsgerr begins after the header.
        let error = answer.get(16..20).and_then(|e| e.first_chunk()).map_or(-libc::EIO, |e| i32::from_ne_bytes(*e));
        if error != 0 {
            return Err(io::Error::from_raw_os_error(-error));
        }
    }
    Ok(())
}

/// If the destination's port is this one, put that address in its place.
fn expressions(address: Ipv4Addr, port: u16) -> Vec<u8> {
    let port = nested(3, &attribute(1, &port.to_be_bytes()));
    let address = nested(2, &attribute(1, &address.octets()));
    [
        // Two bytes at offset 2 of the transport header (2), into register 1.
        expression("payload", &[number(1, 1), number(2, 2), number(3, 2), number(4, 2)].concat()),
        expression("cmp", &[number(1, 1), number(2, 0), port].concat()),
        expression("immediate", &[number(1, 1), address].concat()),
        // Destination NAT (1) of IPv4 (2) to the address in register 1.
        expression("nat", &[number(1, 1), number(2, 2), number(3, 1)].concat()),
    ]
    .concat()
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFNL_SUBSYS_NFTABLES, in the upper byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
/// NLM_F_ACK | NLM_F_CREATE.
const ACKED: u16 = 0x404;
/// NLM_F_APPEND.
const APPENDED: u16 = 0x800;
/// NF_INET_LOCAL_OUT.
const LOCAL_OUT: u32 = 3;
/// NF_IP_PRI_NAT_DST, -100.
const DESTINATION_NAT_PRIORITY: u32 = (-100_i32).cast_unsigned();
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

fn message(kind: u16, flags: u16, family: i32, attributes: &[u8]) -> Vec<u8> {
    // struct nfgenmsg: family, version, and in a batch's frame the subsystem.
    let framed = if kind < SUBSYSTEM { SUBSYSTEM >> 8 } else { 0 };
    let body = [&[family.to_ne_bytes()[0], 0], &framed.to_be_bytes()[..], attributes].concat();
    let length = u32::try_from(body.len() + 16).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    // NLM_F_REQUEST.
    bytes.extend((flags | 1).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or_default();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

/// One element of a rule's list.
fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)].concat())
}
