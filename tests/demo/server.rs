//! A party's service: answers requests, and keeps a log of nonces, and of the ends of connections that are watched.
//!
//! Runs in a forked child: system calls and memory only.

use crate::held;
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
/// The first byte of a token, which is sent back too: the end of its connection is taken note of.
pub(crate) const WATCH: u8 = b'=';
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
    let mut connections: Vec<Connection> = Vec::new();
    turn.ready()?;
    turn.doing("serving");
    loop {
        wait(&listeners, &datagrams, &connections)?;
        for socket in &datagrams {
            answer_datagrams(turn, socket)?;
        }
        let mut open = Vec::with_capacity(connections.len());
        for mut connection in connections {
            match (answer(turn, &mut connection)?, &connection.token) {
                (None, _) => open.push(connection),
                (Some(errno), Some(token)) => held::ended(turn, token, errno)?,
                (Some(_), None) => {}
            }
        }
        connections = open;
        for listener in &listeners {
            // A client that has gone already is no reason to stop listening.
            while let Ok((socket, _)) = listener.accept() {
                socket.set_nonblocking(true)?;
                connections.push(Connection { socket, token: None });
            }
        }
    }
}

/// A connection, with its token if it is watched.
struct Connection {
    socket: Socket,
    token: Option<[u8; MESSAGE]>,
}

fn wait(listeners: &[Socket], datagrams: &[UdpSocket], connections: &[Connection]) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = datagrams.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
    let connections = connections.iter().map(|c| &c.socket);
    fds.extend(listeners.iter().chain(connections).map(|s| PollFd::new(s, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Everything that one connection has now; by which errno it ended when nothing more can come from it, 0 for a farewell.
fn answer(turn: &mut Turn, connection: &mut Connection) -> io::Result<Option<i32>> {
    let mut bytes = [0; MESSAGE];
    let errno = |e: &io::Error| Some(e.raw_os_error().unwrap_or(libc::EIO));
    loop {
        match io::Read::read(&mut &connection.socket, &mut bytes) {
            Ok(0) => return Ok(Some(0)),
            Ok(n) if [REQUEST, WATCH].contains(&bytes[0]) => {
                if bytes[0] == WATCH {
                    connection.token = Some(bytes);
                }
                if let Err(e) = connection.socket.send(&bytes[..n]) {
                    return Ok(errno(&e));
                }
            }
            Ok(n) => turn.received(&bytes[..n])?,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Ok(errno(&e)),
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
