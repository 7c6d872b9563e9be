//! Connections that stay open, and what their applications are told when they end.
//!
//! Each end is a process of its workload: it says what it reads, and at last how its connection ended.

use crate::sandbox::{Failure, Process, Turn, Workload, bind_udp, listen};
use crate::{SOON, any, slowness};
use socket2::{Domain, Socket, Type};
use std::io::{self, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// How long an end waits for its connection to end before it says that it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client that has sent `hello` and waits for what comes.
pub fn client(from: &Workload, kind: Type, to: SocketAddr) -> Process {
    let mut process = from
        .spawn(|turn| {
            let socket = Socket::new(Domain::for_address(to), kind, None)?;
            turn.doing("connecting");
            socket.connect(&to.into())?;
            socket.send(b"hello")?;
            turn.ready()?;
            listen_to(turn, &socket)
        })
        .expect("a process");
    process.wait_ready(SOON).expect("a connection");
    process.go(&[]).expect("it waits");
    process
}

/// A TCP server that says what each of its connections brings and how it ends, one after the other.
pub fn tcp_server(on: &Workload, port: u16) -> Process {
    serving(on, move |turn| {
        let listener = listen(any(true, port))?;
        turn.ready()?;
        loop {
            turn.doing("accepting");
            let (socket, _) = listener.accept()?;
            listen_to(turn, &socket)?;
        }
    })
}

/// A UDP server on a socket that is connected to nobody.
pub fn udp_server(on: &Workload, port: u16) -> Process {
    serving(on, move |turn| {
        let socket = bind_udp(any(true, port))?;
        turn.ready()?;
        listen_to(turn, &socket)
    })
}

fn serving<F: FnOnce(&mut Turn) -> io::Result<()> + Copy>(on: &Workload, body: F) -> Process {
    let mut process = on.spawn(body).expect("a process");
    process.wait_ready(SOON).expect("it listens");
    process.go(&[]).expect("it waits");
    process
}

/// Says what comes, until the connection ends: `end` in order, `errno N` with an error, `hangs` when nothing tells.
fn listen_to(turn: &mut Turn, socket: &Socket) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    turn.doing("listening");
    let mut bytes = [0; 1024];
    loop {
        match (&mut &*socket).read(&mut bytes) {
            Ok(0) => return turn.received(b"end"),
            Ok(n) => turn.received(&bytes[..n])?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return turn.received(b"hangs"),
            Err(e) => return turn.received(format!("errno {}", e.raw_os_error().unwrap_or(0)).as_bytes()),
        }
    }
}

/// Lets a socket hold what comes while its process waits for its turn: more than the system's limit, at which the kernel
/// drops datagrams that the programs let through.
pub fn give_room(socket: &UdpSocket) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, 1 << 26)?)
}

/// Dissolves what a socket is connected to, by connecting it to nothing.
pub fn dissolve(socket: &impl AsRawFd) -> io::Result<()> {
    let unspecified = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).map_err(io::Error::other)?;
    // SAFETY: the address lives through the call and is as long as said.
    if unsafe { libc::connect(socket.as_raw_fd(), &unspecified, size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Waits for a process's end, and says how it ended.
pub fn ended(process: &mut Process) -> Result<(), Failure> {
    process.finish(SOON).expect("it ends in time")
}

/// Waits until a process has done what it had to.
pub fn done(mut process: Process) {
    ended(&mut process).unwrap_or_else(|e| panic!("{e:?}"));
}

/// What an end was told when its connection was cut.
pub fn told(errno: i32) -> String {
    format!("errno {errno}")
}

/// The numbers, with spaces between them, that a process says last, once it has ended.
pub fn numbers(process: &mut Process, within: Duration) -> Vec<u64> {
    process.finish(within * slowness()).expect("it ends in time").unwrap_or_else(|e| panic!("{e:?}"));
    let said = process.received().last().expect("it says what it counted").clone();
    String::from_utf8_lossy(&said).split(' ').map(|n| n.parse().expect("a number")).collect()
}

/// The same for one that says a single number.
pub fn number(mut process: Process, within: Duration) -> u64 {
    let [n] = numbers(&mut process, within)[..] else { panic!("one number") };
    n
}
