//! A party's service: answers requests, and keeps a log of nonces.
//!
//! Runs in a forked child: system calls and memory only.

use bulkhead::probe::sandbox::{Turn, bind_udp};
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

/// The length of every message.
pub(crate) const MESSAGE: usize = 32;
/// The first byte of a request, which is sent back as it is.
pub(crate) const REQUEST: u8 = b'?';
/// The first byte of a nonce, which is only taken note of.
pub(crate) const NONCE: u8 = b'!';

/// More connections than any step of the demo opens at once.
const BACKLOG: i32 = 1024;

/// Listens on TCP and UDP until it is ended.
pub(crate) fn run(turn: &mut Turn, at: &[SocketAddr]) -> io::Result<()> {
    turn.doing("listening");
    let mut listeners = Vec::new();
    let mut datagrams = Vec::new();
    for &at in at {
        let listener = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.bind(&at.into())?;
        listener.listen(BACKLOG)?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
        let socket = UdpSocket::from(OwnedFd::from(bind_udp(at)?));
        socket.set_nonblocking(true)?;
        datagrams.push(socket);
    }
    let mut connections: Vec<Socket> = Vec::new();
    turn.ready()?;
    turn.doing("serving");
    loop {
        wait(&listeners, &datagrams, &connections)?;
        for socket in &datagrams {
            answer_datagrams(turn, socket)?;
        }
        let mut open = Vec::with_capacity(connections.len());
        for socket in connections {
            if answer(turn, &socket)? {
                open.push(socket);
            }
        }
        connections = open;
        for listener in &listeners {
            // A client that has gone already is no reason to stop listening.
            while let Ok((socket, _)) = listener.accept() {
                socket.set_nonblocking(true)?;
                connections.push(socket);
            }
        }
    }
}

fn wait(listeners: &[Socket], datagrams: &[UdpSocket], connections: &[Socket]) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = datagrams.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
    fds.extend(listeners.iter().chain(connections).map(|s| PollFd::new(s, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Everything that one connection has now; false when nothing more can come from it.
fn answer(turn: &mut Turn, socket: &Socket) -> io::Result<bool> {
    let mut bytes = [0; MESSAGE];
    loop {
        match io::Read::read(&mut &*socket, &mut bytes) {
            Ok(0) => return Ok(false),
            Ok(n) if bytes[0] == REQUEST => {
                if socket.send(&bytes[..n]).is_err() {
                    return Ok(false);
                }
            }
            Ok(n) => turn.received(&bytes[..n])?,
            Err(e) => return Ok(e.kind() == ErrorKind::WouldBlock),
        }
    }
}

fn answer_datagrams(turn: &mut Turn, socket: &UdpSocket) -> io::Result<()> {
    let mut bytes = [0; MESSAGE];
    while let Ok((n, from)) = socket.recv_from(&mut bytes) {
        if bytes[0] == REQUEST {
            // The asker counts what comes back; an answer that is refused is its loss.
            socket.send_to(&bytes[..n], from).ok();
        } else {
            turn.received(&bytes[..n])?;
        }
    }
    Ok(())
}
