//! The sockets of a network namespace, as the kernel lists them (sock_diag(7)): who owns them, where they lead.
//!
//! A network namespace belongs to a thread, so everything here that enters one does it on a thread of its own, which
//! ends with the call; a tokio worker must never change its namespace.

use super::folders::{Folder, folders_below};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Attributes of answers. Linux: include/uapi/linux/inet_diag.h.
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Linux: `NLA_F_NESTED` and `NLA_TYPE_MASK` in include/uapi/linux/netlink.h.
const NLA_NESTED: u16 = 1 << 15;
const NLA_KIND: u16 = 0x3fff;
/// What a request asks for. Linux: include/uapi/linux/inet_diag.h, sock_diag.h.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

/// States of a socket that matter here. Linux: include/net/tcp_states.h.
pub mod state {
    /// TCP: open in both directions. UDP: connected.
    pub const ESTABLISHED: u8 = 1;
    /// A SYN is out.
    pub const SYN_SENT: u8 = 2;
    /// TCP: nobody's any more.
    pub const TIME_WAIT: u8 = 6;
    /// TCP: not connected. UDP: not connected.
    pub const CLOSE: u8 = 7;
    /// TCP: accepts connections.
    pub const LISTEN: u8 = 10;
    /// Every state, also those that have no name here, as a mask.
    pub(super) const ANY: u32 = u32::MAX;
}

/// The protocol number under which raw sockets are listed.
pub const RAW: u8 = 255;

/// The protocols that are listed.
pub const PROTOCOLS: [u8; 4] =
    [bulkhead_common::proto::TCP, bulkhead_common::proto::UDP, bulkhead_common::proto::UDPLITE, RAW];

/// One socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// The IP protocol, or [`RAW`].
    pub protocol: u8,
    /// One of [`state`], or another of the kernel's.
    pub state: u8,
    /// Its own address and port. Of a raw socket the port is its protocol.
    pub local: SocketAddr,
    /// The peer's address and port; unspecified when it has none.
    pub remote: SocketAddr,
    /// What bpf_get_socket_cookie gives for it.
    pub cookie: u64,
    /// The inode that /proc/PID/fd names; 0: no process has it open.
    pub inode: u32,
    /// The cgroup that it was made in; `None` where the kernel doesn't tell.
    pub cgroup: Option<u64>,
    /// What the map that was asked for keeps of it; empty: nothing, or none was asked for.
    pub kept: Vec<u8>,
}

/// Runs something in a network namespace, on a thread of its own.
pub fn in_netns<T: Send>(netns: impl AsFd + Sync, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let enter = |netns: BorrowedFd<'_>| {
        rustix::thread::move_into_link_name_space(netns, Some(rustix::thread::LinkNameSpaceType::Network))
    };
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            enter(netns.as_fd())?;
            body()
        })?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}

/// The network namespaces of all processes in these cgroups and below, and this thread's own, by their inode numbers.
pub fn namespaces_below(cgroups: &[PathBuf]) -> io::Result<BTreeMap<u64, File>> {
    let folders = cgroups.iter().map(|c| folders_below(c)).collect::<io::Result<Vec<_>>>()?;
    let mut namespaces = namespaces_of(folders.iter().flatten(), |e| {
        if e.kind() != io::ErrorKind::PermissionDenied {
            return Err(e);
        }
        tracing::warn!("{e}");
        Ok(())
    })?;
    let own = File::open("/proc/thread-self/ns/net")?;
    namespaces.entry(own.metadata()?.ino()).or_insert(own);
    Ok(namespaces)
}

/// The network namespaces of the processes in these cgroups, by their inode numbers. `refused` is told of each process
/// whose namespace can't be looked at, and says whether to go on.
pub fn namespaces_of<'f>(
    folders: impl Iterator<Item = &'f Folder>,
    mut refused: impl FnMut(io::Error) -> io::Result<()>,
) -> io::Result<BTreeMap<u64, File>> {
    let mut namespaces = BTreeMap::new();
    for pid in folders.flat_map(Folder::processes) {
        let path = format!("/proc/{pid}/ns/net");
        let found = fs::metadata(&path).and_then(|meta| {
            if !namespaces.contains_key(&meta.ino()) {
                let file = File::open(&path)?;
                namespaces.insert(file.metadata()?.ino(), file);
            }
            Ok(())
        });
        match found {
            // It has ended meanwhile.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(e) => {
                let said = format!("the network namespace of process {pid} can't be looked at: {e}");
                refused(io::Error::new(e.kind(), said))?;
            }
            Ok(()) => {}
        }
    }
    Ok(namespaces)
}

/// Every socket of this thread's network namespace, of [`PROTOCOLS`] and both families.
pub fn sockets() -> io::Result<Vec<Socket>> {
    sockets_of(&PROTOCOLS, None)
}

/// Those of some protocols, with what a map of socket storage keeps of each (since Linux 5.7).
pub fn sockets_of(protocols: &[u8], storage: Option<BorrowedFd<'_>>) -> io::Result<Vec<Socket>> {
    let mut all = Vec::new();
    each(protocols, state::ANY, storage, |socket| all.push(socket))?;
    Ok(all)
}

/// Gives each TCP listener of this thread's network namespace to `found`: much sooner had than connections, for which the
/// kernel goes through the whole machine's.
pub fn listeners(found: impl FnMut(Socket)) -> io::Result<()> {
    each(&[bulkhead_common::proto::TCP], 1 << state::LISTEN, None, found)
}

/// Gives each socket of some protocols to `found`, without holding them all at once: a workload may have very many.
pub fn each_of(protocols: &[u8], found: impl FnMut(Socket)) -> io::Result<()> {
    each(protocols, state::ANY, None, found)
}

fn each(
    protocols: &[u8],
    states: u32,
    storage: Option<BorrowedFd<'_>>,
    mut found: impl FnMut(Socket),
) -> io::Result<()> {
    for protocol in protocols {
        for family in [libc::AF_INET, libc::AF_INET6] {
            dump(family, *protocol, states, storage, &mut found)?;
        }
    }
    Ok(())
}

fn family_number(family: libc::c_int) -> u8 {
    u8::try_from(family).unwrap_or_default()
}

fn dump(
    family: libc::c_int,
    protocol: u8,
    states: u32,
    storage: Option<BorrowedFd<'_>>,
    found: &mut impl FnMut(Socket),
) -> io::Result<()> {
    let id = if family == libc::AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = SockDiagMessage::InetRequest(InetRequest {
        family: family_number(family),
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(states),
        socket_id: id,
    });
    let socket = open()?;
    let mut bytes = bytes(NetlinkMessage::from(request), NLM_F_REQUEST | NLM_F_DUMP);
    if let Some(map) = storage {
        ask_for_storage(&mut bytes, map);
    }
    socket.send(&bytes, 0)?;
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let size = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..size).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found(understand(protocol, &response));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                // The kernel has no lister for this protocol, hence no such socket that we could see.
                NetlinkPayload::Error(e) if e.raw_code() == -libc::ENOENT => return Ok(()),
                NetlinkPayload::Error(e) => return Err(io::Error::from_raw_os_error(-e.raw_code())),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

fn open() -> io::Result<netlink_sys::Socket> {
    let socket = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn bytes<M: netlink_packet_core::NetlinkSerializable>(mut message: NetlinkMessage<M>, flags: u16) -> Vec<u8> {
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Adds the attribute that asks for what a map keeps of each socket, which the netlink crate doesn't know.
fn ask_for_storage(message: &mut Vec<u8>, map: BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;
    for (length, kind) in [(12u16, INET_DIAG_REQ_SK_BPF_STORAGES | NLA_NESTED), (8, SK_DIAG_BPF_STORAGE_REQ_MAP_FD)] {
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
    }
    message.extend_from_slice(&map.as_raw_fd().to_ne_bytes());
    // The header begins with the length of the whole.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
}

/// The value of the first attribute of that kind; its bytes as they lie in the message.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *attributes {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & NLA_KIND);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn understand(protocol: u8, response: &InetResponse) -> Socket {
    let header = &response.header;
    let id = &header.socket_id;
    // Two u32, the low one first (Linux: sock_diag_save_cookie).
    let half = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&id.cookie[at..at + 4]);
        u64::from(u32::from_ne_bytes(bytes))
    };
    let other = |kind: u16| {
        response.nlas.iter().find_map(|nla| match nla {
            Nla::Other(other) if other.kind() & NLA_KIND == kind => {
                let mut bytes = vec![0; other.value_len()];
                other.emit_value(&mut bytes);
                Some(bytes)
            }
            _ => None,
        })
    };
    let cgroup = other(INET_DIAG_CGROUP_ID).and_then(|b| Some(u64::from_ne_bytes(b.try_into().ok()?)));
    let kept = other(INET_DIAG_SK_BPF_STORAGES).and_then(|all| {
        let one = attribute(&all, SK_DIAG_BPF_STORAGE)?;
        attribute(one, SK_DIAG_BPF_STORAGE_MAP_VALUE).map(<[u8]>::to_vec)
    });
    Socket {
        protocol,
        state: header.state,
        local: SocketAddr::new(id.source_address, id.source_port),
        remote: SocketAddr::new(id.destination_address, id.destination_port),
        cookie: half(0) | half(4) << 32,
        inode: header.inode,
        cgroup,
        kept: kept.unwrap_or_default(),
    }
}

/// Ends a TCP or UDP socket of this thread's network namespace; a connected peer is told by a reset.
pub fn destroy(socket: &Socket) -> io::Result<()> {
    destroy_all([socket])?.pop().unwrap_or(Ok(()))
}

/// Ends many, and says of each whether that worked.
pub fn destroy_all<'s>(sockets: impl IntoIterator<Item = &'s Socket>) -> io::Result<Vec<io::Result<()>>> {
    let netlink = open()?;
    let mut buffer = vec![0u8; 4096];
    let mut one = |socket: &Socket| -> io::Result<()> {
        netlink.send(&bytes(destruction(socket), NLM_F_REQUEST | netlink_packet_core::NLM_F_ACK), 0)?;
        let size = netlink.recv(&mut &mut buffer[..], 0)?;
        let answer = NetlinkMessage::<SockDiagMessage>::deserialize(buffer.get(..size).unwrap_or_default())
            .map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(e) if e.raw_code() != 0 => Err(io::Error::from_raw_os_error(-e.raw_code())),
            _ => Ok(()),
        }
    };
    Ok(sockets.into_iter().map(&mut one).collect())
}

fn destruction(socket: &Socket) -> NetlinkMessage<SockDiagDestroy> {
    let v4 = socket.local.is_ipv4();
    let mut id = if v4 { SocketId::new_v4() } else { SocketId::new_v6() };
    (id.source_address, id.source_port) = (socket.local.ip(), socket.local.port());
    (id.destination_address, id.destination_port) = (socket.remote.ip(), socket.remote.port());
    let cookie = socket.cookie.to_le_bytes();
    for half in [0, 4] {
        let mut word = [0; 4];
        word.copy_from_slice(&cookie[half..half + 4]);
        id.cookie[half..half + 4].copy_from_slice(&u32::from_le_bytes(word).to_ne_bytes());
    }
    NetlinkMessage::from(SockDiagDestroy::new(SockDiagMessage::InetRequest(InetRequest {
        family: family_number(if v4 { libc::AF_INET } else { libc::AF_INET6 }),
        protocol: socket.protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(u32::MAX),
        socket_id: id,
    })))
}

/// The cookie of this thread's network namespace, as programs see it (SO_NETNS_COOKIE).
pub fn netns_cookie() -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `cookie` has room for `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of the network namespace of process 1: the host's. Where process 1 can't be looked at, as in some virtual
/// machines, this thread's own is taken for it: an agent runs in the host's network namespace.
pub fn host_netns_cookie() -> io::Result<u64> {
    match File::open("/proc/1/ns/net") {
        Ok(netns) => in_netns(netns, netns_cookie),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => netns_cookie(),
        Err(e) => Err(e),
    }
}
