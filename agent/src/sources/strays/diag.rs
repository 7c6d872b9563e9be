//! A dump of all TCP and UDP sockets of a network namespace, with the cgroup of each.

use crate::config::widen;
use anyhow::{Context, bail};
use bulkhead_common::{Addr, proto};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

/// `INET_DIAG_CGROUP_ID` of linux/inet_diag.h.
const CGROUP_ID: u16 = 21;

/// What is known of a socket.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    /// The cgroup that it was made in.
    pub(super) cgroup: u64,
    /// TCP or UDP.
    pub(super) protocol: u8,
    /// Its own address.
    pub(super) local: Addr,
    /// Its own port.
    pub(super) local_port: u16,
    /// The peer's address.
    pub(super) peer: Addr,
    /// The peer's port; 0: not connected.
    pub(super) peer_port: u16,
}

/// Every TCP and UDP socket of a network namespace, by inode. A thread of its own goes there, so the caller stays.
pub(super) fn dump(namespace: &File) -> anyhow::Result<HashMap<u64, Socket>> {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| -> anyhow::Result<_> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("entering the network namespace (needs CAP_SYS_ADMIN)")?;
            let mut all = HashMap::new();
            for protocol in [proto::TCP, proto::UDP] {
                for family in [libc::AF_INET, libc::AF_INET6] {
                    ask(u8::try_from(family)?, protocol, &mut all)?;
                }
            }
            Ok(all)
        });
        there.join().unwrap_or_else(|_| bail!("the thread in the network namespace was lost"))
    })
}

fn ask(family: u8, protocol: u8, all: &mut HashMap<u64, Socket>) -> anyhow::Result<()> {
    let mut netlink = Netlink::new(NETLINK_SOCK_DIAG).context("a sock_diag socket")?;
    netlink.bind_auto()?;
    netlink.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: if i32::from(family) == libc::AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    netlink.send(&bytes, 0).context("asking sock_diag")?;
    loop {
        let (received, _) = netlink.recv_from_full().context("reading sock_diag")?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).context("a sock_diag answer")?;
            let length = usize::try_from(message.header.length)?.next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(r)) => {
                    if let Some(socket) = socket(&r, protocol) {
                        all.insert(u64::from(r.header.inode), socket);
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                // A kernel without the module for this protocol has no such sockets.
                NetlinkPayload::Error(e) if e.raw_code() == -libc::ENOENT => return Ok(()),
                NetlinkPayload::Error(e) => bail!("sock_diag refused: {e}"),
                _ => {}
            }
        }
    }
}

fn socket(r: &InetResponse, protocol: u8) -> Option<Socket> {
    let cgroup = r.nlas.iter().find_map(|nla| match nla {
        Nla::Other(other) if other.kind() == CGROUP_ID => {
            let mut value = [0; 8];
            (other.value_len() == 8).then(|| {
                other.emit_value(&mut value);
                u64::from_ne_bytes(value)
            })
        }
        _ => None,
    })?;
    let id = &r.header.socket_id;
    Some(Socket {
        cgroup,
        protocol,
        local: widen(id.source_address),
        local_port: id.source_port,
        peer: widen(id.destination_address),
        peer_port: id.destination_port,
    })
}
