//! What a socket carries from one packet to the next, and what it must not.

use bulkhead::inventory::Posture;
use bulkhead_tests::enforced::edge;
use bulkhead_tests::{Enforced, Estate, NEVER, Reply, SOON, at};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, accept, bind, connect, recv, send, socket};
use std::net::{Ipv4Addr, SocketAddrV4};

/// A listener that was connected before holds a verdict about that connection. A copy of it on an accepted socket would
/// let the peer's packets pass as long as the old connection would be allowed.
#[test]
fn an_accepted_socket_inherits_no_verdict_of_a_listener_that_was_connected_once() {
    let estate = Estate::new(&["web", "database", "client"]);
    let onward = edge("web", "database", 5432);
    let both = onward.clone() + &edge("client", "web", 9000);
    let _database = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    let database = at(estate.get("database"), false, 5432);
    let web = at(estate.get("web"), false, 9000);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &both);

    let mut server = estate.get("web").spawn(|turn| {
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        bind(&fd, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9000))?;
        turn.doing("connecting what will be the listener");
        connect(&fd, &database)?;
        rustix::net::connect_unspec(&fd)?;
        turn.doing("listening");
        rustix::net::listen(&fd, 8)?;
        turn.ready()?;
        let accepted = accept(&fd)?;
        let mut bytes = [0; 64];
        loop {
            let (n, _) = recv(&accepted, &mut bytes, RecvFlags::empty())?;
            turn.received(&bytes[..n])?;
        }
    });
    let server = server.as_mut().expect("a process");
    server.wait_ready(SOON).expect("it listens");
    server.go(&[]).expect("it goes on");
    let mut client = estate.get("client").spawn(|turn| {
        turn.doing("connecting");
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        connect(&fd, &web)?;
        for message in [b"<one>", b"<two>"] {
            turn.ready()?;
            send(&fd, message, SendFlags::empty())?;
        }
        turn.stay()
    });
    let client = client.as_mut().expect("a process");
    client.wait_ready(SOON).expect("the rule lets it connect");
    client.go(&[]).expect("it sends");
    assert!(server.receives(b"<one>", SOON));

    enforced.apply(Posture::Enforce, &onward);
    client.wait_ready(SOON).expect("it has sent");
    client.go(&[]).expect("it sends");
    assert!(!server.receives(b"<two>", NEVER), "the rule is gone, and the packet arrived");
    enforced.apply(Posture::Enforce, &both);
    assert!(server.receives(b"<two>", SOON), "the rule is back: it is sent again and must arrive");
}
