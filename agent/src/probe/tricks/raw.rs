//! Packets made by hand.

use super::wire::{address, echo_request, family, udp_packet};
use super::{Family, Stage, Trick, Wall};
use crate::probe::sandbox::{self, Plug, Turn};
use anyhow::Result;
use bulkhead_common::Hook;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "raw-udp-own-header", family: Family::Ipv4, wall: Wall::Hook(Hook::SockCreate), setup: own_header },
    Trick { name: "raw-udp-own-header", family: Family::Ipv6, wall: Wall::Hook(Hook::SockCreate), setup: own_header },
    Trick { name: "raw-udp-older-socket", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: older_socket },
    Trick { name: "raw-udp-older-socket", family: Family::Ipv6, wall: Wall::Hook(Hook::Egress), setup: older_socket },
    Trick { name: "raw-icmp-echo", family: Family::Ipv4, wall: Wall::Hook(Hook::SockCreate), setup: echo },
    Trick { name: "raw-icmp-echo", family: Family::Ipv6, wall: Wall::Hook(Hook::SockCreate), setup: echo },
    Trick { name: "ping-socket", family: Family::Ipv4, wall: Wall::Hook(Hook::Egress), setup: ping },
    Trick { name: "ping-socket", family: Family::Ipv6, wall: Wall::Hook(Hook::Egress), setup: ping },
    Trick {
        name: "raw-unassigned-protocol",
        family: Family::Ipv4,
        wall: Wall::Hook(Hook::SockCreate),
        setup: unassigned,
    },
    Trick { name: "packet-to-udp", family: Family::Packet, wall: Wall::Hook(Hook::Ingress), setup: frame_to_udp },
    Trick {
        name: "packet-to-packet",
        family: Family::Packet,
        wall: Wall::Lsm("socket_create"),
        setup: frame_to_packet,
    },
    Trick { name: "tun-device", family: Family::Ipv4, wall: Wall::Hook(Hook::Ingress), setup: tun },
];

fn raw_header_socket(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
}

pub(super) fn send_packet(
    turn: &mut Turn,
    socket: &Socket,
    from: SocketAddr,
    to: SocketAddr,
    nonce: &[u8],
) -> io::Result<()> {
    let packet = udp_packet(from, to, nonce)?;
    let mut at = to;
    // Linux refuses a port other than the protocol's for IPv6.
    at.set_port(0);
    turn.doing("sendto on a raw socket");
    socket.send_to(&packet, &at.into()).map(drop)
}

/// IPPROTO_RAW: a whole packet, with its headers.
fn own_header(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let from = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("raw socket");
        let socket = raw_header_socket(to)?;
        send_packet(turn, &socket, from, to, &nonce)
    })
}

/// The raw socket exists before it could be refused.
fn older_socket(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let from = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let socket = raw_header_socket(to)?;
        let nonce = turn.ready()?;
        send_packet(turn, &socket, from, to, &nonce)
    })
}

fn icmp(family: Family) -> (Domain, Protocol) {
    match family {
        Family::Ipv6 => (Domain::IPV6, Protocol::ICMPV6),
        _ => (Domain::IPV4, Protocol::ICMPV4),
    }
}

/// Somebody in B listens to ICMP.
fn icmp_at_b(stage: &mut Stage<'_>) -> Result<SocketAddr> {
    let (domain, protocol) = icmp(stage.family);
    stage.receive(&stage.ground().b, |_| Ok(vec![Socket::new(domain, Type::RAW, Some(protocol))?]))?;
    Ok(SocketAddr::new(stage.address(&stage.ground().b), 0))
}

fn send_echo(stage: &mut Stage<'_>, kind: Type) -> Result<()> {
    let (domain, protocol) = icmp(stage.family);
    let to = icmp_at_b(stage)?;
    let identifier = stage.port()?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("ICMP socket");
        let socket = Socket::new(domain, kind, Some(protocol))?;
        turn.doing("sendto");
        socket.send_to(&echo_request(to.is_ipv6(), identifier, &nonce), &to.into()).map(drop)
    })
}

fn echo(stage: &mut Stage<'_>) -> Result<()> {
    send_echo(stage, Type::RAW)
}

/// A datagram socket of ICMP, which needs no privilege.
fn ping(stage: &mut Stage<'_>) -> Result<()> {
    send_echo(stage, Type::DGRAM)
}

/// A protocol that nobody uses (253: for experiments, RFC 3692).
fn unassigned(stage: &mut Stage<'_>) -> Result<()> {
    let protocol = Some(Protocol::from(253));
    let to = SocketAddr::new(stage.address(&stage.ground().b), 0);
    stage.receive(&stage.ground().b, |_| Ok(vec![Socket::new(Domain::IPV4, Type::RAW, protocol)?]))?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("raw socket");
        let socket = Socket::new(Domain::IPV4, Type::RAW, protocol)?;
        turn.doing("sendto");
        socket.send_to(&nonce, &to.into()).map(drop)
    })
}

/// Link-layer numbers of IPv4, and of local experiments.
pub(super) const ETH_P_IP: u16 = 0x0800;
const ETH_P_EXPERIMENT: u16 = 0x88b5;

fn packet_socket(ethertype: u16) -> io::Result<Socket> {
    Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ethertype.to_be()))))
}

/// Everybody on the switch.
fn link_broadcast(ethertype: u16) -> io::Result<SockAddr> {
    address(&libc::sockaddr_ll {
        sll_family: family(libc::AF_PACKET),
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(sandbox::link_index(Plug::LINK)?).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    })
}

pub(super) fn send_frame(turn: &mut Turn, ethertype: u16, bytes: &[u8]) -> io::Result<()> {
    turn.doing("packet socket");
    let socket = packet_socket(ethertype)?;
    turn.doing("sendto on a packet socket");
    socket.send_to(bytes, &link_broadcast(ethertype)?).map(drop)
}

/// A frame that holds a UDP datagram for an ordinary socket.
fn frame_to_udp(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let from = SocketAddr::new(stage.address(&stage.ground().a), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        send_frame(turn, ETH_P_IP, &udp_packet(from, to, &nonce)?)
    })
}

/// Both ends agree on frames that aren't IP.
fn frame_to_packet(stage: &mut Stage<'_>) -> Result<()> {
    stage.receive(&stage.ground().b, |_| Ok(vec![packet_socket(ETH_P_EXPERIMENT)?]))?;
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        send_frame(turn, ETH_P_EXPERIMENT, &nonce)
    })
}

/// A network device of the workload's own: what is written to it is forwarded, and no socket ever sent it.
fn tun(stage: &mut Stage<'_>) -> Result<()> {
    let to = stage.udp_at_b()?;
    let from = SocketAddr::new(std::net::Ipv4Addr::new(10, 78, 0, 2).into(), stage.port()?);
    stage.send(&stage.ground().a, |turn| {
        let nonce = turn.ready()?;
        turn.doing("opening /dev/net/tun");
        let mut device = File::options().read(true).write(true).open("/dev/net/tun")?;
        turn.doing("making a tun device");
        let mut request = IfRequest { name: [0; 16], flags: TUN_WITHOUT_HEADER, pad: [0; 22] };
        // SAFETY: the request is as long as the kernel's struct ifreq and outlives the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let name = request.name.iter().take_while(|c| **c != 0).map(|c| char::from(*c)).collect::<String>();
        turn.doing("setting the device up");
        sandbox::up_link(&name)?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        turn.doing("writing to the device");
        device.write_all(&udp_packet(from, to, &nonce)?)
    })
}

/// struct ifreq, as TUNSETIFF reads it.
#[repr(C)]
struct IfRequest {
    name: [u8; 16],
    flags: u16,
    pad: [u8; 22],
}

/// _IOW('T', 202, int).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// IFF_TUN | IFF_NO_PI.
const TUN_WITHOUT_HEADER: u16 = 0x1001;
