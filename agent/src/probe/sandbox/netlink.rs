//! The few requests to the kernel's routing socket that a sandbox needs, each made and answered at once.
//!
//! A [`Route`] belongs to the network namespace of the thread that opened it.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd as _};

/// A routing socket.
pub(super) struct Route {
    socket: Socket,
}

impl Route {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Sets a link up.
    pub(super) fn up(&self, index: u32) -> io::Result<()> {
        self.set(link(index, true))
    }

    /// Makes a bridge, up, that floods multicast to every port instead of waiting for reports.
    pub(super) fn add_bridge(&self, name: &str) -> io::Result<()> {
        let mut bridge = link(0, true);
        bridge.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
            ]),
        ];
        self.create(RouteNetlinkMessage::NewLink(bridge))
    }

    /// Makes a veth pair: `name` here, a port of the bridge and up; `peer` in the other namespace.
    pub(super) fn add_veth(&self, name: &str, bridge: u32, peer: &str, netns: impl AsFd) -> io::Result<()> {
        let mut far = LinkMessage::default();
        far.attributes = vec![LinkAttribute::IfName(peer.into()), LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())];
        let mut near = link(0, true);
        near.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]),
        ];
        self.create(RouteNetlinkMessage::NewLink(near))
    }

    /// Gives a link an address that is usable at once: no duplicate address detection.
    pub(super) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = prefix;
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        if let IpAddr::V4(v4) = address {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            message.attributes.push(AddressAttribute::Broadcast((u32::from(v4) | host).into()));
        }
        self.create(RouteNetlinkMessage::NewAddress(message))
    }

    /// Sends everything of that family that no other route covers straight to the link: whoever has the address answers.
    pub(super) fn add_default(&self, index: u32, family: AddressFamily) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Oif(index)];
        self.create(RouteNetlinkMessage::NewRoute(message))
    }

    /// Sends everything to these addresses to that neighbour.
    pub(super) fn add_via(&self, (prefix, bits): (Ipv4Addr, u8), gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = route_to(prefix, bits);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        self.create(RouteNetlinkMessage::NewRoute(message))
    }

    /// Takes what is sent to these addresses as sent to this namespace; `index` is the loopback device's.
    pub(super) fn add_local(&self, (prefix, bits): (Ipv4Addr, u8), index: u32) -> io::Result<()> {
        let mut message = route_to(prefix, bits);
        message.header.table = RT_TABLE_LOCAL;
        message.header.scope = RouteScope::Host;
        message.header.kind = RouteType::Local;
        message.attributes.push(RouteAttribute::Oif(index));
        self.create(RouteNetlinkMessage::NewRoute(message))
    }

    fn create(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.ask(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn set(&self, message: LinkMessage) -> io::Result<()> {
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (reply, _) = self.socket.recv_from_full()?;
        let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        match reply.payload {
            NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
            NetlinkPayload::Error(_) => Ok(()),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {other:?}"))),
        }
    }
}

/// The number of a link in the calling thread's namespace.
pub fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: the pointer is to a string that ends in zero and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        n => Ok(n),
    }
}

/// Linux: include/uapi/linux/rtnetlink.h.
const RT_TABLE_LOCAL: u8 = 255;

fn route_to(prefix: Ipv4Addr, bits: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = bits;
    message.header.protocol = RouteProtocol::Static;
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(prefix))];
    message
}

fn link(index: u32, up: bool) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message
}
