//! The asking side. No answer within [`PATIENCE`] is an error, whichever way it failed.

use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, TYPE};

const PATIENCE: Duration = Duration::from_secs(2);

/// What the TCP server at `address` says.
pub(crate) fn tcp(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("tcp {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("tcp {address}: connected, but no answer"))?;
    Ok(answer)
}

/// What the UDP server at `address` says.
pub(crate) fn udp(address: SocketAddr) -> Result<String> {
    let answer = exchange(address, b"who am I?")?;
    String::from_utf8(answer).context("the answer isn't text")
}

/// The addresses of `name`, asked of the DNS server at `server`; IPv4 first.
pub(crate) fn addresses(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for kind in [TYPE::A, TYPE::AAAA] {
        let mut question = Packet::new_query(1);
        let name = Name::new(name).with_context(|| format!("`{name}` isn't a DNS name"))?;
        question.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        let answer = exchange(server, &question.build_bytes_vec().context("can't write the question")?)?;
        let answer = Packet::parse(&answer).context("the server's answer isn't DNS")?;
        if answer.rcode() != RCODE::NoError {
            bail!("the server answers {:?}", answer.rcode());
        }
        found.extend(answer.answers.iter().filter_map(|record| match &record.rdata {
            RData::A(v4) => Some(IpAddr::from(std::net::Ipv4Addr::from(v4.address))),
            RData::AAAA(v6) => Some(IpAddr::from(Ipv6Addr::from(v6.address))),
            _ => None,
        }));
    }
    Ok(found)
}

/// Sends one datagram and waits for one.
fn exchange(address: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let any: SocketAddr = if address.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { ([0; 4], 0).into() };
    let socket = UdpSocket::bind(any).context("can't make a socket")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address).and_then(|()| socket.send(question)).with_context(|| format!("udp {address}"))?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).with_context(|| format!("udp {address}"))?;
    answer.truncate(length);
    Ok(answer)
}
