//! Sockets that are older than the programs: which end of their connection they are.
//!
//! A program learns that from the first packet that it sees of a connection; of one that is older it is told here, by
//! the socket's cookie. What is learned: a TCP socket whose local port has a listener in its network namespace was
//! accepted, any other has connected; a connected datagram socket has connected; an unconnected one has if the system chose
//! its port, as far as can be told, since the first packet of it that a program sees may well be a reply; a raw socket is
//! listed so that what it sends isn't taken for the kernel's own.

use super::folders::folders_below;
use super::sock_diag::{self, Socket, state};
use super::sys;
use bulkhead_common::maps::role;
use bulkhead_common::proto;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// What the programs must be told about the sockets of one network namespace.
///
/// `ephemeral`: the ports that the system chooses from.
fn roles(sockets: &[Socket], ephemeral: RangeInclusive<u16>) -> impl Iterator<Item = (&Socket, u32)> {
    let listening: BTreeSet<u16> = sockets
        .iter()
        .filter(|s| s.protocol == proto::TCP && s.state == state::LISTEN)
        .map(|s| s.local.port())
        .collect();
    sockets.iter().filter_map(move |socket| {
        let role = match (socket.protocol, socket.state) {
            (sock_diag::RAW, _) => role::NONE,
            (proto::TCP, state::LISTEN | state::CLOSE | state::TIME_WAIT) => return None,
            (proto::TCP, state::SYN_SENT) => role::CLIENT,
            (proto::TCP, _) if listening.contains(&socket.local.port()) => role::SERVER,
            (proto::TCP, _) => role::CLIENT,
            (_, state::ESTABLISHED) => role::CLIENT,
            _ if socket.local.port() == 0 => return None,
            _ if ephemeral.contains(&socket.local.port()) => role::CLIENT,
            _ => role::SERVER,
        };
        Some((socket, role))
    })
}

/// The ports that the system chooses from in this thread's network namespace; Linux' default where it doesn't say.
fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32768..=60999,
    }
}

/// The ids of cgroups, to tell which sockets the programs will meet.
struct Scope {
    inside: BTreeSet<u64>,
    outside: BTreeSet<u64>,
}

impl Scope {
    fn of(attach: &[PathBuf]) -> io::Result<Self> {
        let below = |cgroup: &Path| folders_below(cgroup).map(|all| all.into_iter().map(|folder| folder.id));
        let mut inside = BTreeSet::new();
        let mut roots = BTreeSet::new();
        for point in attach {
            inside.extend(below(point)?);
            roots.insert(root_of(point));
        }
        let mut outside = BTreeSet::new();
        for root in roots {
            outside.extend(below(&root)?);
        }
        outside.retain(|id| !inside.contains(id));
        Ok(Self { inside, outside })
    }

    /// A socket's cgroup may have been removed; what isn't surely elsewhere is taken in.
    fn holds(&self, socket: &Socket) -> bool {
        socket.cgroup.is_none_or(|id| self.inside.contains(&id) || !self.outside.contains(&id))
    }
}

/// The root of the hierarchy that a cgroup lies in.
fn root_of(cgroup: &Path) -> PathBuf {
    let is_cgroup = |p: &&Path| p.join("cgroup.procs").exists();
    cgroup.ancestors().take_while(is_cgroup).last().unwrap_or(cgroup).to_owned()
}

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Noted {
    pub(super) sockets: usize,
    /// Those for which the map has no room: where a posture enforces, they are cut off.
    pub(super) without_room: usize,
}

/// Tells the programs of the sockets that exist in the network namespaces of the processes below the attach points.
pub(super) fn note(attach: &[PathBuf], map: BorrowedFd<'_>) -> io::Result<Noted> {
    let scope = Scope::of(attach)?;
    let mut found = BTreeMap::new();
    for netns in sock_diag::namespaces_below(attach)?.values() {
        let (sockets, ports) = sock_diag::in_netns(netns, || Ok((sock_diag::sockets()?, ephemeral_ports())))?;
        for (socket, role) in roles(&sockets, ports) {
            if scope.holds(socket) {
                found.insert(socket.cookie, role);
            }
        }
    }
    let mut noted = Noted { sockets: found.len(), without_room: 0 };
    for (cookie, role) in found {
        match sys::map_update(map, &cookie, &role) {
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) => noted.without_room += 1,
            other => other?,
        }
    }
    Ok(noted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    fn cookie(socket: &impl AsRawFd) -> u64 {
        let mut cookie = 0u64;
        let mut length = 8;
        // SAFETY: `cookie` has room for `length` bytes.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                std::ptr::from_mut(&mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn tells_who_has_connected_from_who_was_accepted() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let listener = TcpListener::bind(any).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("its other end");
        let unconnected = UdpSocket::bind(any).expect("a socket");
        let connected = UdpSocket::bind(any).expect("a socket");
        connected.connect(unconnected.local_addr().expect("its address")).expect("connect never fails here");

        let sockets = sock_diag::sockets().expect("root may list sockets");
        let own = unconnected.local_addr().expect("its address").port();
        let roles_with = |ephemeral| -> BTreeMap<u64, u32> {
            roles(&sockets, ephemeral).map(|(s, role)| (s.cookie, role)).collect()
        };
        let roles = roles_with(own..=own);
        assert_eq!(roles_with(1..=1).get(&cookie(&unconnected)), Some(&role::SERVER));
        assert_eq!(roles.get(&cookie(&client)), Some(&role::CLIENT));
        assert_eq!(roles.get(&cookie(&server)), Some(&role::SERVER));
        assert_eq!(roles.get(&cookie(&connected)), Some(&role::CLIENT));
        assert_eq!(roles.get(&cookie(&listener)), None);
        assert_eq!(roles.get(&cookie(&unconnected)), Some(&role::CLIENT));

        let found = sockets.iter().find(|s| s.cookie == cookie(&client)).expect("the client is listed");
        assert_eq!(found.remote, address);
        assert!(found.cgroup.is_some() && found.inode != 0);
    }

    #[test]
    fn a_socket_is_destroyed_and_its_peer_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        let (mut server, _) = listener.accept().expect("its other end");
        let sockets = sock_diag::sockets().expect("root may list sockets");
        let found = sockets.iter().find(|s| s.cookie == cookie(&client)).expect("the client is listed");
        sock_diag::destroy(found).expect("this kernel can");
        let told = server.read(&mut [0]).expect_err("the connection is gone");
        assert_eq!(told.raw_os_error(), Some(libc::ECONNRESET));
    }
}
