//! The receiving end: takes whatever arrives on its sockets and tells the parent, which alone decides by it whether
//! something got through.

use super::process::Turn;
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read as _};
use std::net::SocketAddr;

/// Whether what arrives is also sent back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Only received.
    Nothing,
    /// Sent back as it is.
    Echo,
}

/// A TCP listener.
pub fn listen(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(16)?;
    Ok(socket)
}

/// A bound UDP socket.
pub fn bind_udp(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// Accepts and receives on all of these until the process is ended.
pub fn collect(turn: &mut Turn, mut sockets: Vec<Socket>, reply: Reply) -> io::Result<()> {
    turn.doing("receiving");
    let mut bytes = vec![0; 60 * 1024];
    loop {
        let mut fds: Vec<_> = sockets.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let due: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut kept = Vec::with_capacity(sockets.len() + 1);
        for (socket, due) in sockets.into_iter().zip(due) {
            let keep = !due || take(turn, &socket, &mut bytes, reply, &mut kept);
            if keep {
                kept.push(socket);
            }
        }
        if kept.is_empty() {
            return turn.stay();
        }
        sockets = kept;
    }
}

/// Takes what one socket has; false when nothing more can come from it.
fn take(turn: &mut Turn, socket: &Socket, bytes: &mut [u8], reply: Reply, accepted: &mut Vec<Socket>) -> bool {
    if socket.is_listener().unwrap_or(false) {
        // A client that has gone already is no reason to stop listening.
        accepted.extend(socket.accept().map(|(s, _)| s));
        return true;
    }
    if socket.r#type().is_ok_and(|t| t == Type::STREAM) {
        return match (&mut &*socket).read(bytes) {
            Ok(0) => false,
            Ok(n) => told(turn, &bytes[..n]) && (reply == Reply::Nothing || socket.send(&bytes[..n]).is_ok()),
            Err(e) => e.kind() == io::ErrorKind::Interrupted,
        };
    }
    match receive_from(socket, bytes) {
        // An answer that is refused says nothing about the next datagram.
        Ok((n, from)) => {
            if reply == Reply::Echo {
                socket.send_to(&bytes[..n], &from).ok();
            }
            told(turn, &bytes[..n])
        }
        Err(e) => e.raw_os_error() != Some(libc::ENOTCONN),
    }
}

fn told(turn: &mut Turn, bytes: &[u8]) -> bool {
    turn.received(bytes).is_ok()
}

fn receive_from(socket: &Socket, bytes: &mut [u8]) -> io::Result<(usize, SockAddr)> {
    // SAFETY: u8 and MaybeUninit<u8> have the same layout, and receiving only ever writes initialised bytes there.
    let space = unsafe { &mut *(std::ptr::from_mut(bytes) as *mut [std::mem::MaybeUninit<u8>]) };
    socket.recv_from(space)
}
