//! The table in which most sockets have their state: whoever takes a place gives it back, and who finds none misses nothing.

use aya::maps::{Array, Map, MapData};
use bulkhead::inventory::Posture;
use bulkhead_common::event::Event;
use bulkhead_common::maps::{self, SocketState};
use bulkhead_common::{ABI, Direction, Outcome};
use bulkhead_tests::enforced::{BPFFS, WEB_TO_DATABASE};
use bulkhead_tests::talk::{dissolve, done};
use bulkhead_tests::{Enforced, Estate, Process, Reply, SOON, Via, Workload, any, at, passes, wait_for};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// Whose the places are.
fn owners(enforced: &Enforced) -> Array<MapData, u64> {
    let folder = Path::new(BPFFS).join(format!("bulkhead/{}/v{ABI}/maps", enforced.instance()));
    let map = MapData::from_pin(folder.join(maps::TAKEN)).expect("the table is pinned");
    Array::try_from(Map::Array(map)).expect("an array of cookies")
}

/// How many places were ever taken, and how many are somebody's now.
fn taken(enforced: &Enforced) -> (usize, usize) {
    let owners = owners(enforced);
    let owners = owners.iter().map(|p| p.expect("a place")).filter(|owner| *owner != 0);
    owners.fold((0, 0), |(ever, now), owner| (ever + 1, now + usize::from(owner & SocketState::OVER == 0)))
}

/// Makes every place somebody's who never comes.
fn take_all(enforced: &Enforced) {
    let mut owners = owners(enforced);
    for n in 0..owners.len() {
        owners.set(n, SocketState::CLOSED - 1, 0).expect("a place");
    }
}

fn without_place(enforced: &mut Enforced) -> u64 {
    enforced.datapath().totals().expect("the totals").without_place()
}

/// Closes so that the peer is reset.
fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Takes connections as they come and lets each of them end in its own way.
fn server(on: &Workload) -> Process {
    let mut process = on
        .spawn(|turn| {
            let listener = TcpListener::bind(any(true, 5432))?;
            turn.ready()?;
            loop {
                let (mut stream, _) = listener.accept()?;
                let mut word = [0];
                stream.read_exact(&mut word)?;
                match &word {
                    // The client closes first.
                    b"c" => drop(stream.read(&mut word)?),
                    b"s" => drop(stream),
                    b"r" => reset(stream)?,
                    // Something lies unread when it is closed: the client is reset.
                    b"u" => {
                        stream.write_all(b"!")?;
                        while stream.peek(&mut word)? == 0 {}
                    }
                    _ => return Err(io::ErrorKind::InvalidData.into()),
                }
            }
        })
        .expect("a process");
    process.wait_ready(SOON).expect("it listens");
    process.go(&[]).expect("it goes on");
    process
}

#[test]
fn every_place_is_given_back_however_a_socket_ends() {
    let estate = Estate::new(&["web", "database"]);
    let enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    let server = server(estate.get("database"));
    let (database, web) = (at(estate.get("database"), false, 5432), at(estate.get("web"), false, 1));
    let nobody = SocketAddr::new(database.ip(), 1);
    let client = estate
        .get("web")
        .spawn(move |turn| {
            for _ in 0..20 {
                turn.doing("closing first");
                let mut stream = TcpStream::connect(database)?;
                stream.write_all(b"c")?;
                drop(stream);
                turn.doing("closing last");
                let mut stream = TcpStream::connect(database)?;
                stream.write_all(b"s")?;
                stream.read_to_end(&mut Vec::new())?;
                drop(stream);
                turn.doing("being reset");
                let mut stream = TcpStream::connect(database)?;
                stream.write_all(b"r")?;
                if stream.read(&mut [0]).is_ok() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                turn.doing("being reset over what lies unread");
                let mut stream = TcpStream::connect(database)?;
                stream.write_all(b"u")?;
                stream.read_exact(&mut [0])?;
                stream.write_all(b"unread")?;
                if !stream.read(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset) {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                turn.doing("being refused, then denied");
                let refused = TcpStream::connect(nobody).map(drop).map_err(|e| e.kind());
                let denied = TcpStream::connect(web).map(drop);
                if refused != Err(io::ErrorKind::ConnectionRefused) || denied.is_ok() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                turn.doing("UDP");
                let socket = UdpSocket::bind(any(false, 0))?;
                socket.send_to(b"1", database)?;
                socket.connect(database)?;
                // Nobody listens there, which the second one is told.
                socket
                    .send(b"2")
                    .or_else(|e| if e.kind() == io::ErrorKind::ConnectionRefused { Ok(0) } else { Err(e) })?;
                turn.doing("making sockets that do nothing");
                drop((Socket::new(Domain::IPV4, Type::STREAM, None)?, Socket::new(Domain::IPV6, Type::DGRAM, None)?));
            }
            Ok(())
        })
        .expect("a process");
    done(client);
    let (_, now) = taken(&enforced);
    assert!(now > 0, "the listener has its own");
    drop(server);
    wait_for("all places are free", || taken(&enforced).1 == 0);
    let (ever, _) = taken(&enforced);
    // 4 connections with two ends each, 5 other sockets, 20 times, and the listener.
    assert_eq!(ever, 20 * (4 * 2 + 5) + 1);
}

#[test]
fn a_connection_that_nobody_accepted_gives_its_place_back() {
    let estate = Estate::new(&["web", "database"]);
    let enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    let mut listener = estate
        .get("database")
        .spawn(|turn| {
            let listener = TcpListener::bind(any(false, 5432))?;
            turn.ready()?;
            drop(listener);
            Ok(())
        })
        .expect("a process");
    listener.wait_ready(SOON).expect("it listens");
    let database = at(estate.get("database"), false, 5432);
    let mut client = estate
        .get("web")
        .spawn(move |turn| {
            let streams: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(database)).collect::<io::Result<_>>()?;
            turn.ready()?;
            for mut stream in streams {
                if stream.read(&mut [0]).is_ok_and(|n| n > 0) {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            Ok(())
        })
        .expect("a process");
    client.wait_ready(SOON).expect("connected");
    assert_eq!(taken(&enforced), (17, 17));
    listener.go(&[]).expect("it closes");
    done(listener);
    client.go(&[]).expect("it reads");
    done(client);
    wait_for("all places are free", || taken(&enforced).1 == 0);
}

#[test]
fn who_finds_no_place_misses_nothing() {
    let estate = Estate::new(&["web", "database", "stranger"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    take_all(&enforced);
    let mut server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    for v6 in [false, true] {
        for via in Via::ALL {
            for (from, expected) in [("web", true), ("stranger", false)] {
                let to = at(estate.get("database"), v6, 5432);
                let (got, told) = passes(estate.get(from), to, via, &mut server);
                assert_eq!(got, expected, "{from} to {to} by {via:?}: {told:?}");
                assert_eq!(told.is_ok(), expected, "{from} to {to} by {via:?}: {told:?}");
            }
        }
    }
    // Each try makes a socket, each TCP connection one more, and the server's own.
    assert!(without_place(&mut enforced) > 2 * 3 * 2, "{}", without_place(&mut enforced));
    let (web, database) = (enforced.peer("web"), enforced.peer("database"));
    assert_eq!(enforced.counted(web, database, Outcome::Denied), 0);
}

#[test]
fn an_accepted_socket_can_be_connected_anew() {
    let estate = Estate::new(&["web", "database"]);
    let both_ways = format!(
        "{WEB_TO_DATABASE}    - from: [{{id: spiffe://test/database}}]
      to: [{{id: spiffe://test/web}}]
"
    );
    let enforced = Enforced::over(&estate, Posture::Enforce, &both_ways);
    let mut reader = estate.get("database").serve(&[7777], Reply::Nothing).expect("a server");
    let again = at(estate.get("database"), false, 7777);
    let mut turncoat = estate
        .get("web")
        .spawn(move |turn| {
            let listener = TcpListener::bind(any(false, 80))?;
            turn.ready()?;
            let (mut stream, _) = listener.accept()?;
            turn.doing("waiting for the end");
            if stream.read(&mut [0]).is_ok() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            drop(listener);
            turn.doing("connecting anew");
            dissolve(&stream)?;
            SockRef::from(&stream).connect(&again.into())?;
            stream.write_all(b"anew")?;
            turn.ready().map(drop)
        })
        .expect("a process");
    turncoat.wait_ready(SOON).expect("it listens");
    turncoat.go(&[]).expect("it accepts");
    let to = at(estate.get("web"), false, 80);
    let client = estate.get("database").spawn(move |_| reset(TcpStream::connect(to)?)).expect("a process");
    done(client);
    assert!(reader.receives(b"anew", SOON));
    // What the reader has accepted, and the other end, which is the accepted socket of before; beside what it listens on.
    assert!(taken(&enforced).1 > 2, "{:?}", taken(&enforced));
    drop((turncoat, reader));
    wait_for("all places are free", || taken(&enforced).1 == 0);
}

#[test]
fn a_denial_of_what_was_accepted_names_who_listened() {
    let estate = Estate::new(&["web", "database"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut events = runtime.block_on(async { enforced.datapath().take_events() }).expect("events");
    let mut server = estate
        .get("database")
        .spawn(|turn| {
            let listener = TcpListener::bind(any(false, 5432))?;
            turn.received(&std::process::id().to_ne_bytes())?;
            turn.ready()?;
            let (mut stream, _) = listener.accept()?;
            stream.read_exact(&mut [0])?;
            turn.ready()?;
            stream.write_all(b"late")?;
            turn.ready().map(drop)
        })
        .expect("a process");
    server.wait_ready(SOON).expect("it listens");
    server.go(&[]).expect("it accepts");
    let to = at(estate.get("database"), false, 5432);
    let mut client = estate
        .get("web")
        .spawn(move |turn| {
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(b"1")?;
            turn.ready().map(drop)
        })
        .expect("a process");
    client.wait_ready(SOON).expect("connected");
    server.wait_ready(SOON).expect("it has read");
    enforced.apply(Posture::Enforce, "");
    server.go(&[]).expect("it writes");
    let pid = u32::from_ne_bytes(server.received()[0][..].try_into().expect("four bytes"));
    let (web, database) = (enforced.peer("web"), enforced.peer("database"));
    let event = loop {
        let batch: Vec<Event> = runtime
            .block_on(async { tokio::time::timeout(SOON, events.next()).await })
            .expect("an event comes")
            .expect("the events can be read");
        let ingress = Direction::Ingress as u8;
        let found = batch.into_iter().find(|e| (e.src, e.dst) == (web.0, database.0) && e.direction == ingress);
        if let Some(event) = found {
            break event;
        }
    };
    assert_eq!(event.pid, pid);
    assert_ne!(event.comm, [0; 16]);
}
