//! What the tricks need below the socket library: odd options, disconnecting, packets made by hand.

use socket2::{SockAddr, SockAddrStorage, Socket};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

/// Sets any socket option.
pub(super) fn set_option(socket: &Socket, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length are those of a slice that outlives the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// connect(AF_UNSPEC): dissolves the connection, and the socket can be used for another.
pub(super) fn disconnect(socket: &Socket) -> io::Result<()> {
    socket.connect(&address(&libc::sockaddr { sa_family: family(libc::AF_UNSPEC), sa_data: [0; 14] })?)
}

/// The number of a family as it stands in an address.
pub(super) fn family(number: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(number).unwrap_or_default()
}

/// An address of a kind that the socket library doesn't know. `T` is one of libc's sockaddr structs.
pub(super) fn address<T: Copy>(raw: &T) -> io::Result<SockAddr> {
    let length = size_of::<T>();
    if length > size_of::<SockAddrStorage>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `raw` is `length` readable bytes, which fit the storage, as just checked.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, out| {
            std::ptr::copy_nonoverlapping(std::ptr::from_ref(raw).cast::<u8>(), storage.cast::<u8>(), length);
            *out = libc::socklen_t::try_from(length).map_err(io::Error::other)?;
            Ok(())
        })
    }?;
    Ok(address)
}

/// A UDP datagram with its IP header.
pub(super) fn udp_packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(payload.len() + 8).map_err(io::Error::other)?;
    let mut udp = Vec::new();
    udp.extend(from.port().to_be_bytes());
    udp.extend(to.port().to_be_bytes());
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let pseudo = [octets(from.ip()), octets(to.ip()), vec![0, 17], length.to_be_bytes().to_vec(), udp.clone()].concat();
    udp[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let mut header = vec![0x45, 0];
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 1, 0, 0, 64, 17, 0, 0]);
            header.extend([octets(from.ip()), octets(to.ip())].concat());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        _ => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([17, 64]);
            header.extend([octets(from.ip()), octets(to.ip())].concat());
            header
        }
    };
    packet.extend(udp);
    Ok(packet)
}

/// An ICMP echo request with that identifier, which is what stands for its ports. The kernel fills in the checksum of ICMPv6.
pub(super) fn echo_request(v6: bool, identifier: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend(payload);
    if !v6 {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}
