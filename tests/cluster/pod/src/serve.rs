//! The answering side: one port, TCP and UDP, IPv4 and IPv6.
//!
//! The answer, and the line that is logged, is `NAME saw PEER`: the name is the pod's host name.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// Opens both sockets and answers on them until the process ends.
pub(crate) fn start(port: u16) -> Result<()> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let tcp = open(Type::STREAM, Protocol::TCP, port)?;
    tcp.listen(1024).context("can't listen")?;
    let (tcp, udp) = (TcpListener::from(tcp), UdpSocket::from(open(Type::DGRAM, Protocol::UDP, port)?));
    println!("{name} serves port {port}");
    thread::spawn({
        let name = name.clone();
        move || {
            for stream in tcp.incoming().flatten() {
                // One that has hung up already is nobody's loss.
                answer(stream, &name).ok();
            }
        }
    });
    thread::spawn(move || {
        let mut question = [0; 1500];
        while let Ok((_, peer)) = udp.recv_from(&mut question) {
            let line = seen(&name, "udp", peer);
            udp.send_to(line.as_bytes(), peer).ok();
        }
    });
    Ok(())
}

/// A socket for both families.
pub(crate) fn open(kind: Type, protocol: Protocol, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol)).context("can't make a socket")?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket
        .bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())
        .with_context(|| format!("can't bind port {port}"))?;
    Ok(socket)
}

fn answer(mut stream: TcpStream, name: &str) -> Result<()> {
    let line = seen(name, "tcp", stream.peer_addr()?);
    Ok(stream.write_all(line.as_bytes())?)
}

/// Logs who asked, and answers what was logged.
fn seen(name: &str, protocol: &str, peer: SocketAddr) -> String {
    let line = format!("{name} saw {protocol} {}", SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    println!("{line}");
    line
}
