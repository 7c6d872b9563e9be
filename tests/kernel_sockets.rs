//! Sockets that live through changes, and sockets that aren't plainly a workload's own.

use bulkhead::inventory::Posture;
use bulkhead_common::event::Event;
use bulkhead_common::{Class, Outcome, PeerId, Reason};
use bulkhead_tests::enforced::edge;
use bulkhead_tests::talk::{dissolve, ended};
use bulkhead_tests::{Enforced, Estate, NEVER, Process, Reply, SOON, Via, Workload, any, at, passes};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

/// Sends what it is told to over one connection, and tells what comes back within a while.
fn client(from: &Workload, to: SocketAddr) -> Process {
    let mut process = from
        .spawn(move |turn| {
            let mut stream = TcpStream::connect_timeout(&to, SOON)?;
            stream.set_read_timeout(Some(NEVER))?;
            loop {
                let say = turn.ready()?;
                stream.write_all(&say)?;
                let mut buffer = [0; 64];
                match stream.read(&mut buffer) {
                    Ok(n) => turn.received(&buffer[..n])?,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => turn.received(b"silence")?,
                    Err(e) => return Err(e),
                }
            }
        })
        .expect("a process");
    process.wait_ready(SOON).expect("connected");
    process
}

fn say(client: &mut Process, word: &[u8]) {
    client.wait_ready(SOON).expect("it waits for a word");
    client.go(word).expect("it listens");
}

#[test]
fn a_live_connection_follows_each_change_of_the_rules() {
    let estate = Estate::new(&["web", "database"]);
    let _server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    let allow = edge("web", "database", 5432);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &allow);
    let mut client = client(estate.get("web"), at(estate.get("database"), false, 5432));
    say(&mut client, b"one");
    assert!(client.receives(b"one", SOON));
    enforced.apply(Posture::Enforce, "");
    say(&mut client, b"two");
    assert!(client.receives(b"silence", SOON), "{:?}", client.received());
    let (web, database) = (enforced.peer("web"), enforced.peer("database"));
    assert!(enforced.counted(web, database, Outcome::Denied) > 0);
    // Given back, TCP sends again what was dropped.
    enforced.apply(Posture::Enforce, &allow);
    assert!(matches!(client.wait_ready(SOON), Ok(())));
    client.go(b"three").expect("it listens");
    assert!(client.receives(b"two", SOON) || client.receives(b"three", SOON), "{:?}", client.received());
}

#[test]
fn a_connection_older_than_the_programs_is_judged_by_who_opened_it() {
    let estate = Estate::new(&["web", "database"]);
    let _server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    let mut client = client(estate.get("web"), at(estate.get("database"), true, 5432));
    say(&mut client, b"before");
    assert!(client.receives(b"before", SOON));
    // The rule names the server's port. Taken for the opener, the server would be on an ephemeral port's side of it.
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &edge("web", "database", 5432));
    say(&mut client, b"allowed");
    assert!(client.receives(b"allowed", SOON), "{:?}", client.received());
    enforced.apply(Posture::Enforce, "");
    say(&mut client, b"denied");
    assert!(client.receives(b"silence", SOON), "{:?}", client.received());
}

/// Listens on loopback and on all addresses in the workload's namespace.
fn serve_loopback(on: &Workload, port: u16) -> Process {
    on.serve(&[port], Reply::Echo).expect("a server")
}

#[test]
fn neighbours_in_one_network_namespace_are_told_apart_by_their_sockets() {
    let mut estate = Estate::new(&["app"]);
    estate.add_beside("sidecar", "app");
    estate.add_beside("stranger", "app");
    let mut server = serve_loopback(estate.get("app"), 8080);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &edge("sidecar", "app", 8080));
    let addresses: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        estate.get("app").v4().into(),
        estate.get("app").v6().into(),
    ];
    for to in addresses.map(|a| SocketAddr::new(a, 8080)) {
        for via in Via::ALL {
            for (from, expected) in [("app", true), ("sidecar", true), ("stranger", false)] {
                // The own address isn't anybody's in particular here, so the call can't tell; loopback can.
                let (got, told) = passes(estate.get(from), to, via, &mut server);
                assert_eq!(got, expected, "{from} to {to} by {via:?}: {told:?}");
            }
        }
    }
    let (app, stranger) = (enforced.peer("app"), enforced.peer("stranger"));
    assert!(enforced.counted(stranger, app, Outcome::Denied) > 0);
    // What a workload says to itself is nobody's edge.
    assert_eq!(enforced.counted(app, app, Outcome::Allowed), 0);
}

#[test]
fn whoever_is_no_workload_is_the_host_or_unknown() {
    let estate = Estate::new(&["app", "other"]);
    let app = estate.get("app");
    let mut server = serve_loopback(app, 8080);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, "");
    let peer = enforced.peer("app");
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let dial = move |turn: &mut bulkhead_tests::sandbox::Turn| {
        turn.doing("connect");
        TcpStream::connect_timeout(&to, NEVER).map(drop)
    };
    // Inside the workload's namespace, over loopback: a process of the node …
    let mut host = Process::spawn(None, Some(app.netns()), dial).expect("a process");
    assert!(ended(&mut host).is_err());
    assert!(enforced.counted(Class::Host.id(), peer, Outcome::Denied) > 0, "{:?}", enforced.edges());
    // … and one below the attach point that nobody has named.
    let mut unnamed = estate.sandbox().outsider(app.netns(), dial).expect("a process");
    assert!(ended(&mut unnamed).is_err());
    assert!(enforced.counted(PeerId::UNKNOWN_WORKLOAD, peer, Outcome::Denied) > 0, "{:?}", enforced.edges());
    // An address in the workloads' range that nobody owns yet.
    let nobody = Ipv4Addr::from(u32::from(app.v4()) | 0xf0);
    let (got, told) = passes(app, (nobody, 80).into(), Via::Tcp, &mut server);
    assert!(!got && told.is_err());
    assert!(enforced.counted(peer, Class::Unknown.id(), Outcome::Denied) > 0);
    let reasons: Vec<_> = enforced.edges().iter().map(|(k, _)| k.reason).collect();
    assert!(reasons.contains(&(Reason::UnknownPeer as u8)), "{reasons:?}");
}

#[test]
fn a_client_socket_that_turns_listener_hands_down_no_verdict() {
    let estate = Estate::new(&["app", "friend", "stranger"]);
    let _friend = estate.get("friend").serve(&[80], Reply::Echo).expect("a server");
    let _enforced = Enforced::over(&estate, Posture::Enforce, &edge("app", "friend", 80));
    let friend = at(estate.get("friend"), false, 80);
    let mut turncoat = estate
        .get("app")
        .spawn(move |turn| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&any(false, 7777).into())?;
            socket.connect(&friend.into())?;
            // connect(AF_UNSPEC) dissolves the connection; the socket then listens.
            dissolve(&socket)?;
            socket.listen(8)?;
            turn.ready()?;
            let listener = TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            match listener.accept() {
                Ok(_) => turn.received(b"accepted"),
                Err(_) => turn.received(b"nobody"),
            }
        })
        .expect("a process");
    turncoat.wait_ready(SOON).expect("listening");
    let mut stranger = estate
        .get("stranger")
        .spawn(|turn| {
            turn.doing("connect");
            let to = turn.ready()?;
            let to: SocketAddr = String::from_utf8_lossy(&to).parse().map_err(io::Error::other)?;
            TcpStream::connect_timeout(&to, NEVER).map(drop)
        })
        .expect("a process");
    stranger.wait_ready(SOON).expect("ready");
    stranger.go(at(estate.get("app"), false, 7777).to_string().as_bytes()).expect("it tries");
    assert_eq!(ended(&mut stranger).map_err(|f| f.errno), Err(libc::EPERM));
    turncoat.go(&[]).expect("it looks");
    assert!(turncoat.receives(b"nobody", SOON), "{:?}", turncoat.received());
}

#[test]
fn kinds_of_socket_that_no_rule_can_judge_need_leave() {
    let estate = Estate::new(&["app"]);
    let make = |kind: Type, protocol: i32| {
        let mut p = estate
            .get("app")
            .spawn(move |turn| {
                turn.doing("socket");
                Socket::new(Domain::IPV4, kind, Some(Protocol::from(protocol))).map(drop)
            })
            .expect("a process");
        ended(&mut p).map_err(|f| f.errno)
    };
    let mut enforced = Enforced::over(&estate, Posture::Audit, "");
    assert_eq!(make(Type::RAW, libc::IPPROTO_ICMP), Ok(()));
    assert_eq!(make(Type::STREAM, libc::IPPROTO_TCP), Ok(()));
    let app = enforced.peer("app");
    assert_eq!(enforced.counted(app, PeerId::ANY_WORKLOAD, Outcome::WouldDeny), 1);
    enforced.apply(Posture::Enforce, "");
    assert_eq!(make(Type::RAW, libc::IPPROTO_ICMP), Err(libc::EPERM));
    // Clients fall back to TCP on this one.
    assert_eq!(make(Type::STREAM, libc::IPPROTO_MPTCP), Err(libc::EPROTONOSUPPORT));
    assert_eq!(make(Type::STREAM, libc::IPPROTO_TCP), Ok(()));
    enforced.apply(
        Posture::Enforce,
        "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: raw}
spec:
  mode: enforce
  selector: {ids: [spiffe://test/app]}
  sockets: [RAW]
",
    );
    assert_eq!(make(Type::RAW, libc::IPPROTO_ICMP), Ok(()));
    assert_eq!(make(Type::STREAM, libc::IPPROTO_MPTCP), Err(libc::EPROTONOSUPPORT));
}

#[test]
fn a_socket_passed_to_another_workload_does_not_carry_its_leave() {
    let estate = Estate::new(&["web", "intruder", "database"]);
    let mut server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    let _enforced = Enforced::over(&estate, Posture::Enforce, &edge("web", "database", 5432));
    let mut maker = estate
        .get("web")
        .spawn(|turn| {
            turn.give_socket(Socket::new(Domain::IPV4, Type::DGRAM, None)?)?;
            turn.stay()
        })
        .expect("a process");
    let socket = maker.take_socket(SOON).expect("a socket");
    let to = at(estate.get("database"), false, 5432);
    let mut user = estate
        .get("intruder")
        .spawn(move |turn| {
            let socket = Socket::from(turn.take_socket()?);
            turn.doing("sendto");
            socket.send_to(b"stolen", &to.into()).map(drop)
        })
        .expect("a process");
    user.hand_over(std::os::fd::AsFd::as_fd(&socket)).expect("it takes it");
    assert_eq!(ended(&mut user).map_err(|f| f.errno), Err(libc::EPERM));
    assert!(!server.receives(b"stolen", NEVER));
}

#[test]
fn a_denial_names_the_process_and_the_rule() {
    let estate = Estate::new(&["web", "database"]);
    let mut server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    let deny = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: no}
spec:
  mode: enforce
  denies:
    - from: [{id: spiffe://test/web}]
      to: [{id: spiffe://test/database}]
";
    let mut enforced = Enforced::over(&estate, Posture::Observe, deny);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut events = runtime.block_on(async { enforced.datapath().take_events() }).expect("events");
    let (got, told) = passes(estate.get("web"), at(estate.get("database"), false, 5432), Via::Tcp, &mut server);
    assert!(!got);
    assert_eq!(told.map_err(|f| f.errno), Err(libc::EPERM));
    let batch: Vec<Event> = runtime
        .block_on(async { tokio::time::timeout(SOON, events.next()).await })
        .expect("an event comes")
        .expect("the events can be read");
    let event = batch.iter().find(|e| e.src == enforced.peer("web").0).expect("the denial's event");
    assert_eq!(Reason::from_u8(event.reason), Some(Reason::DenyRule));
    assert_eq!(Outcome::from_u8(event.outcome), Some(Outcome::Denied));
    assert_eq!(event.dport, 5432);
    assert_ne!(event.egress_rule, 0);
    assert_ne!(event.pid, 0);
    let own = std::fs::read("/proc/thread-self/comm").expect("a name");
    let name: Vec<u8> = event.comm.iter().copied().take_while(|b| *b != 0).collect();
    assert_eq!(name, own.trim_ascii_end(), "a child has the name of the thread that forked it");
}

#[test]
fn socket_options_do_not_change_who_it_is() {
    let estate = Estate::new(&["web", "database"]);
    let mut server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    let _enforced = Enforced::over(&estate, Posture::Enforce, "");
    let to = at(estate.get("database"), false, 5432);
    let mut marked = estate
        .get("web")
        .spawn(move |turn| {
            let socket = UdpSocket::bind(any(false, 0))?;
            SockRef::from(&socket).set_mark(0xb0)?;
            SockRef::from(&socket).bind_device(Some(b"eth0"))?;
            turn.doing("sendto");
            socket.send_to(b"marked", to).map(drop)
        })
        .expect("a process");
    assert_eq!(ended(&mut marked).map_err(|f| f.errno), Err(libc::EPERM));
    assert!(!server.receives(b"marked", NEVER));
}
