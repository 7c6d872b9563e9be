//! By which number a network namespace knows another one: what a program names it by when it looks for sockets there.
//!
//! Numbers are given when somebody asks for them, mostly for the other end of a veth pair, and hold until one of the two
//! namespaces is gone (Linux: net/core/net_namespace.c).

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// By which number this thread's network namespace knows the other one; one that it doesn't know yet gets this number,
/// unless that is another's.
///
/// # Errors
/// When the kernel doesn't answer as it should.
pub fn known_as(other: BorrowedFd<'_>, preferred: i32) -> io::Result<Option<i32>> {
    if let Some(id) = ask(other)? {
        return Ok(Some(id));
    }
    let fd = descriptor(other)?;
    let named = vec![NsidAttribute::Fd(fd), NsidAttribute::Id(preferred)];
    match exchange(RouteNetlinkMessage::NewNsId(message(named)), NLM_F_REQUEST | NLM_F_ACK) {
        // It is another's, or somebody was faster.
        Err(e) if !matches!(e.raw_os_error(), Some(libc::EEXIST | libc::ENOSPC)) => return Err(e),
        _ => {}
    }
    ask(other)
}

fn ask(other: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let named = vec![NsidAttribute::Fd(descriptor(other)?)];
    let answer = exchange(RouteNetlinkMessage::GetNsId(message(named)), NLM_F_REQUEST)?;
    let Some(RouteNetlinkMessage::NewNsId(answer)) = answer else {
        return Err(io::Error::other("the kernel doesn't say by which number a namespace is known"));
    };
    let id = answer.attributes.iter().find_map(|a| if let NsidAttribute::Id(id) = a { Some(*id) } else { None });
    Ok(id.filter(|id| *id >= 0))
}

fn descriptor(netns: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(netns.as_raw_fd()).map_err(io::Error::other)
}

fn message(attributes: Vec<NsidAttribute>) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes = attributes;
    message
}

/// Sends a request and gives what is answered; `None`: that it is done.
fn exchange(request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut packet = NetlinkMessage::from(request);
    packet.header.flags = flags;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
        NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
        NetlinkPayload::Error(_) => Ok(None),
        other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
    }
}
