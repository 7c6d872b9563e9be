//! A commit that takes the ground from live connections ends them, and nothing else, at once and audibly.

use bulkhead::inventory::Posture;
use bulkhead::revocation::Reach;
use bulkhead_common::Reason;
use bulkhead_tests::talk::{client, tcp_server, told, udp_server};
use bulkhead_tests::{Enforced, Estate, NEVER, SOON, at, wait_for};
use socket2::Type;

const PORT: u16 = 5432;

/// Lets each of these reach the database.
fn policy(from: &[&str]) -> String {
    let ids: Vec<String> = from.iter().map(|f| format!("{{id: spiffe://test/{f}}}")).collect();
    let port = format!("[{{port: {PORT}}}, {{protocol: UDP, port: {PORT}}}]");
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: database}}\nspec:\n  \
         mode: enforce\n  edges:\n    - {{from: [{}], to: [{{id: spiffe://test/database}}], ports: {port}}}\n",
        ids.join(", ")
    )
}

#[test]
fn both_ends_are_told_and_listeners_and_others_live_on() {
    let estate = Estate::new(&["web", "reports", "database"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &policy(&["web", "reports"]));
    let database = estate.get("database");
    for v6 in [false, true] {
        let (to, mut tcp, mut udp) = (at(database, v6, PORT), tcp_server(database, PORT), udp_server(database, PORT));
        let mut web = client(estate.get("web"), Type::STREAM, to);
        assert!(tcp.receives(b"hello", SOON), "a connection");
        let mut web_udp = client(estate.get("web"), Type::DGRAM, to);
        assert!(udp.receives(b"hello", SOON), "a datagram");
        // It waits in the server's backlog: nobody has accepted it yet.
        let mut reports = client(estate.get("reports"), Type::STREAM, to);

        let before = enforced.compile(&policy(&["web", "reports"]));
        let after = enforced.compile(&policy(&["reports"]));
        let reach = Reach::between(Some(&before), &after);
        let dry = enforced.datapath().walk(&after, &reach, false).expect("a walk");
        let sockets: Vec<u8> = dry.cuts.iter().map(|c| c.flow.proto).collect();
        assert_eq!(sockets.iter().filter(|p| **p == 6).count(), 2, "{dry:?}");
        assert_eq!(sockets.iter().filter(|p| **p == 17).count(), 1, "{dry:?}");
        assert!(dry.cuts.iter().all(|c| !c.destroyed && c.flow.src == enforced.peer("web")), "{dry:?}");
        assert!(!web.receives(b"errno", NEVER) && !tcp.receives(b"errno", NEVER), "a dry run cut");

        enforced.datapath().commit(&after).expect("a commit");
        let done = enforced.datapath().walk(&after, &reach, true).expect("a walk");
        assert!(!done.cuts.is_empty() && done.cuts.iter().all(|c| c.destroyed) && done.faults.is_empty(), "{done:?}");
        assert!(done.cuts.iter().all(|c| c.judgement.reason == Reason::NoEgressRule), "{done:?}");
        // One end is aborted and the other reset; which is which is a matter of who was found first.
        for (name, end) in [("the client", &mut web), ("the server", &mut tcp)] {
            assert!(end.receives(b"errno", SOON), "{name} isn't told");
            let either = [told(libc::ECONNABORTED), told(libc::ECONNRESET)];
            let said = end.received();
            assert!(said.iter().any(|b| either.iter().any(|e| e.as_bytes() == b)), "{name}: {said:?}");
        }
        assert!(web_udp.receives(told(libc::ECONNABORTED).as_bytes(), SOON), "{:?}", web_udp.received());

        // The listener took the next one, which nothing was said about, and the datagram server still hears it.
        wait_for("the other connection", || tcp.received().iter().filter(|b| **b == b"hello").count() == 2);
        let _other = client(estate.get("reports"), Type::DGRAM, to);
        wait_for("the other's datagram", || udp.received().len() == 2);
        assert!(!reports.receives(b"errno", NEVER), "{:?}", reports.received());
        assert!(!udp.receives(b"errno", NEVER), "{:?}", udp.received());
        enforced.apply(Posture::Enforce, &policy(&["web", "reports"]));
    }
}

#[test]
fn who_opened_it_is_known_where_the_port_would_mislead() {
    let estate = Estate::new(&["web", "database"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &policy(&["web"]));
    let database = estate.get("database");
    let mut server = tcp_server(database, PORT);
    let to = at(database, false, PORT);
    let from = at(estate.get("web"), false, 9000);
    // A client whose own port is one that it also listens on.
    let mut client = estate
        .get("web")
        .spawn(|turn| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect(&to.into())?;
            socket.send(b"hello")?;
            let _listener = bulkhead_tests::sandbox::listen(from)?;
            turn.ready()?;
            turn.stay()
        })
        .expect("a process");
    client.wait_ready(SOON).expect("connected from the listener's port");
    assert!(server.receives(b"hello", SOON));
    let shut = enforced.compile(&policy(&[]).replace("from: []", "from: [{id: spiffe://test/nobody}]"));
    let found = enforced.datapath().walk(&shut, &Reach::Everything, false).expect("a walk").cuts;
    let (web, database) = (enforced.peer("web"), enforced.peer("database"));
    assert_eq!(found.len(), 2, "{found:?}");
    for cut in found {
        assert_eq!((cut.flow.src, cut.flow.dst, cut.flow.port), (web, database, PORT), "{cut:?}");
    }
}

/// What the speed is measured by is the bench; here it is that nobody is left out when there are many.
#[test]
fn a_thousand_sockets_of_fifty_namespaces_are_all_cut() {
    const EACH: usize = 10;
    let names: Vec<String> = (0..50).map(|n| format!("c{n}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).chain(["database"]).collect();
    let estate = Estate::new(&all);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &policy(&["**"]).replace("test/**", "test/*"));
    let to = at(estate.get("database"), false, PORT);
    let mut server = estate
        .get("database")
        .spawn(|turn| {
            let tcp = bulkhead_tests::sandbox::listen(bulkhead_tests::any(true, PORT))?;
            let udp = bulkhead_tests::sandbox::bind_udp(bulkhead_tests::any(true, PORT))?;
            turn.ready()?;
            let mut held = vec![udp];
            loop {
                held.push(tcp.accept()?.0);
            }
        })
        .expect("a process");
    server.wait_ready(SOON).expect("it listens");
    server.go(&[]).expect("it waits");
    let mut clients: Vec<_> = names
        .iter()
        .map(|name| {
            let process = estate.get(name).spawn(|turn| {
                let mut held = Vec::new();
                for kind in [Type::STREAM, Type::DGRAM] {
                    for _ in 0..EACH {
                        let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None)?;
                        socket.connect(&to.into())?;
                        socket.send(b"hello")?;
                        held.push(socket);
                    }
                }
                turn.ready()?;
                let mut errors = 0;
                for socket in &held {
                    socket.set_read_timeout(Some(SOON))?;
                    let error = std::io::Read::read(&mut &*socket, &mut [0; 8]).err();
                    errors += usize::from(error.is_some_and(|e| e.kind() != std::io::ErrorKind::WouldBlock));
                }
                turn.received(format!("{errors} told").as_bytes())
            });
            process.expect("a process")
        })
        .collect();
    for client in &mut clients {
        client.wait_ready(SOON).expect("connected");
        client.go(&[]).expect("it waits");
    }
    let shut = enforced.compile(&policy(&["nobody"]));
    let begun = std::time::Instant::now();
    enforced.datapath().commit(&shut).expect("a commit");
    let walk = enforced.datapath().walk(&shut, &Reach::Everything, true).expect("a walk");
    let took = begun.elapsed();
    println!("{} sockets of {} namespaces in {took:?}", walk.cuts.len(), walk.namespaces);
    assert_eq!((walk.namespaces, walk.faults.len()), (51, 0), "{:?}", walk.faults);
    assert!(walk.cuts.len() >= 1000, "{}", walk.cuts.len());
    for client in &mut clients {
        assert!(client.receives(format!("{} told", 2 * EACH).as_bytes(), SOON), "{:?}", client.received());
    }
    let rest = enforced.datapath().walk(&shut, &Reach::Everything, false).expect("a walk");
    assert_eq!(rest.cuts, [], "nothing is left");
}
