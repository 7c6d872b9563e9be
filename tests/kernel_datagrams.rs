//! Who opened a datagram flow: replies need no rule, and a socket that is connected anew is judged anew.

use bulkhead::inventory::Posture;
use bulkhead_common::Outcome;
use bulkhead_tests::enforced::edge;
use bulkhead_tests::talk::{dissolve, done, ended};
use bulkhead_tests::{Enforced, Estate, Reply, SOON, any, at};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

#[test]
fn a_reply_needs_no_rule_and_opens_nothing_else() {
    let estate = Estate::new(&["web", "dns"]);
    let server = estate.get("dns");
    let client = at(estate.get("web"), false, 4444);
    let _enforced = Enforced::over(&estate, Posture::Enforce, &edge("web", "dns", 53));
    let mut answering = server
        .spawn(move |turn| {
            let socket = UdpSocket::bind(any(false, 53))?;
            turn.ready()?;
            // Unasked, from port 53: refused.
            turn.doing("sending unasked");
            if socket.send_to(b"unasked", client).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            turn.ready()?;
            let mut buffer = [0; 64];
            turn.doing("answering");
            let (n, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..n], from)?;
            // Having been asked from one port doesn't open another.
            turn.doing("sending to another port");
            match socket.send_to(b"elsewhere", SocketAddr::new(from.ip(), 4445)) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => Ok(()),
            }
        })
        .expect("a server");
    let mut asking = estate
        .get("web")
        .spawn(move |turn| {
            let socket = UdpSocket::bind(any(false, 4444))?;
            let other = UdpSocket::bind(any(false, 4445))?;
            other.set_nonblocking(true)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            let to = turn.ready()?;
            let to: SocketAddr = String::from_utf8_lossy(&to).parse().map_err(io::Error::other)?;
            socket.send_to(b"question", to)?;
            let mut buffer = [0; 64];
            let n = socket.recv(&mut buffer)?;
            turn.received(&buffer[..n])?;
            turn.ready()?;
            if other.recv(&mut buffer).is_ok() {
                turn.received(b"elsewhere")?;
            }
            Ok(())
        })
        .expect("a client");
    asking.wait_ready(SOON).expect("bound");
    answering.wait_ready(SOON).expect("bound");
    answering.go(&[]).expect("it goes on");
    answering.wait_ready(SOON).expect("was refused");
    answering.go(&[]).expect("it goes on");
    asking.go(at(server, false, 53).to_string().as_bytes()).expect("it asks");
    assert!(asking.receives(b"question", SOON), "{:?}", ended(&mut asking));
    assert_eq!(ended(&mut answering), Ok(()));
    asking.wait_ready(SOON).expect("answered");
    asking.go(&[]).expect("it goes on");
    assert_eq!(ended(&mut asking), Ok(()));
    assert_eq!(asking.received(), [b"question".to_vec()]);
}

/// Asked on a port, a server may connect its socket back to whoever asked: that is the client's flow. What the socket was before
/// it had that port doesn't matter, and it opens no other way.
#[test]
fn a_server_connects_its_socket_back_to_a_client() {
    let estate = Estate::new(&["web", "dns"]);
    let (server, asker) = (estate.get("dns"), estate.get("web"));
    let rules = edge("web", "dns", 53) + &edge("dns", "web", 7000);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &rules);
    for (n, connected_before) in [false, true].into_iter().enumerate() {
        let allowed = at(asker, false, 7000);
        let elsewhere = at(asker, false, 4445);
        let mut answering = server
            .spawn(move |turn| {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                if connected_before {
                    turn.doing("being a client");
                    socket.connect(&allowed.into())?;
                    dissolve(&socket)?;
                }
                socket.bind(&any(false, 53).into())?;
                let socket = UdpSocket::from(socket);
                turn.ready()?;
                turn.doing("answering");
                let mut buffer = [0; 64];
                let (n, from) = socket.recv_from(&mut buffer)?;
                socket.connect(allowed)?;
                turn.doing("connecting back");
                socket.connect(from)?;
                socket.send(&buffer[..n])?;
                turn.doing("connecting elsewhere");
                match socket.connect(elsewhere) {
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                    other => return Err(io::Error::other(format!("{other:?}"))),
                }
                turn.doing("answering once more");
                socket.send(&buffer[..n]).map(drop)
            })
            .expect("a server");
        answering.wait_ready(SOON).expect("bound");
        answering.go(&[]).expect("it goes on");
        let to = at(server, false, 53);
        let mut asking = asker
            .spawn(move |turn| {
                let socket = UdpSocket::bind(any(false, 4444))?;
                socket.set_read_timeout(Some(SOON))?;
                socket.send_to(b"question", to)?;
                let mut buffer = [0; 64];
                for _ in 0..2 {
                    let n = socket.recv(&mut buffer)?;
                    turn.received(&buffer[..n])?;
                }
                Ok(())
            })
            .expect("a client");
        assert_eq!(ended(&mut answering), Ok(()), "connected before: {connected_before}");
        assert_eq!(ended(&mut asking), Ok(()));
        assert_eq!(asking.received(), [b"question".to_vec(), b"question".to_vec()]);
        let (web, dns) = (enforced.peer("web"), enforced.peer("dns"));
        assert_eq!(enforced.counted(dns, web, Outcome::Denied), n as u64 + 1, "what was tried elsewhere, and no more");
    }
}

/// A socket that the kernel gave its port may be connected to one peer after another: each time it is judged.
#[test]
fn a_socket_that_is_connected_anew_is_judged_anew() {
    let estate = Estate::new(&["web", "dns", "other"]);
    let (allowed, denied) = (at(estate.get("dns"), false, 53), at(estate.get("other"), false, 53));
    let _serving = estate.get("dns").serve(&[53], Reply::Echo).expect("a server");
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &edge("web", "dns", 53));
    let asking = estate
        .get("web")
        .spawn(move |turn| {
            let socket = UdpSocket::from(Socket::new(Domain::IPV4, Type::DGRAM, None)?);
            socket.set_read_timeout(Some(SOON))?;
            for _ in 0..3 {
                turn.doing("connecting where a rule allows it");
                socket.connect(allowed)?;
                turn.doing("connecting where none does");
                match socket.connect(denied) {
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                    other => return Err(io::Error::other(format!("{other:?}"))),
                }
                // It stays what it was.
                socket.send(b"question")?;
                socket.recv(&mut [0; 64])?;
            }
            Ok(())
        })
        .expect("a client");
    done(asking);
    let (web, dns, other) = (enforced.peer("web"), enforced.peer("dns"), enforced.peer("other"));
    assert_eq!(enforced.counted(web, other, Outcome::Denied), 3);
    assert_eq!(enforced.counted(web, dns, Outcome::Allowed), 3 + 1, "three at the source, one flow at the destination");
}

#[test]
fn a_reply_under_way_when_the_programs_come_arrives() {
    let estate = Estate::new(&["web", "dns"]);
    let to = at(estate.get("dns"), true, 53);
    let mut answering = estate
        .get("dns")
        .spawn(move |turn| {
            let socket = UdpSocket::bind(any(true, 53))?;
            turn.ready()?;
            let mut buffer = [0; 64];
            let (n, from) = socket.recv_from(&mut buffer)?;
            turn.ready()?;
            turn.doing("answering");
            socket.send_to(&buffer[..n], from).map(drop)
        })
        .expect("a server");
    answering.wait_ready(SOON).expect("bound");
    answering.go(&[]).expect("it goes on");
    let mut asking = estate
        .get("web")
        .spawn(move |turn| {
            let socket = UdpSocket::bind(any(true, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut buffer = [0; 64];
            for word in [b"first".as_slice(), b"again"] {
                socket.send_to(word, to)?;
                turn.ready()?;
                turn.doing("waiting for the answer");
                let n = socket.recv(&mut buffer)?;
                turn.received(&buffer[..n])?;
            }
            Ok(())
        })
        .expect("a client");
    // The request has arrived and the answer hasn't left when the programs come.
    asking.wait_ready(SOON).expect("asked");
    answering.wait_ready(SOON).expect("was asked");
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &edge("web", "dns", 53));
    answering.go(&[]).expect("it answers");
    assert_eq!(ended(&mut answering), Ok(()));
    asking.go(&[]).expect("it waits");
    assert!(asking.receives(b"first", SOON), "{:?}", ended(&mut asking));
    // It was taken for what it is: nothing goes from the server to the client of its own accord.
    let (web, dns) = (enforced.peer("web"), enforced.peer("dns"));
    assert_eq!(enforced.edges().iter().filter(|(k, _)| k.src == dns.0 && k.dst == web.0).count(), 0);
    drop(asking);
}
