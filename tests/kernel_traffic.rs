//! What becomes of TCP connections is counted as real sockets saw it.

use bulkhead::inventory::Posture;
use bulkhead_common::maps::{EdgeKey, Traffic};
use bulkhead_common::{Direction, Outcome, proto};
use bulkhead_tests::enforced::WEB_TO_DATABASE;
use bulkhead_tests::talk::done;
use bulkhead_tests::{Enforced, Estate, NEVER, Process, SOON, Workload, any, at, wait_for};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// What is counted from one workload to another at one end, for one port.
fn traffic(enforced: &mut Enforced, port: u16, direction: Direction) -> Traffic {
    let (web, database) = (enforced.peer("web"), enforced.peer("database"));
    let all = enforced.datapath().traffic().expect("the counters can be read");
    let ours = |k: &EdgeKey| {
        (k.src, k.dst, k.port, k.proto, k.direction) == (web.0, database.0, port, proto::TCP, direction as u8)
    };
    let mut found = all.into_iter().filter(|(k, _)| ours(k)).map(|(k, t)| {
        assert_eq!(k.outcome, Outcome::Allowed as u8);
        t
    });
    let traffic = found.next().unwrap_or_default();
    assert_eq!(found.next(), None, "one outcome, one reason");
    traffic
}

/// Waits until this many connections have ended with all their bytes, at both ends, and gives what was counted.
fn both(enforced: &mut Enforced, port: u16, established: u64, sent: u64, received: u64) -> [Traffic; 2] {
    let mut found = [Traffic::default(); 2];
    wait_for("both ends' counters", || {
        found = [Direction::Egress, Direction::Ingress].map(|d| traffic(enforced, port, d));
        found.iter().all(|t| t.established >= established && t.bytes_sent >= sent && t.bytes_received >= received)
    });
    for (end, t) in ["source", "destination"].iter().zip(&found) {
        eprintln!("{end}: {t:?}");
        let counted = (t.established, t.refused, t.timed_out, t.bytes_sent, t.bytes_received);
        assert_eq!(counted, (established, 0, 0, sent, received), "at the {end}");
    }
    found
}

/// How a connection is ended.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Ending {
    /// The client closes first.
    Client,
    /// The server closes first.
    Server,
    /// The client shuts down, and reads what the server still sends.
    Half,
    /// The client resets.
    Reset,
}

fn read_exactly(stream: &mut TcpStream, mut n: usize) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    while n > 0 {
        let most = n.min(buffer.len());
        match stream.read(&mut buffer[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            some => n -= some,
        }
    }
    Ok(())
}

fn read_to_end(stream: &mut TcpStream) -> io::Result<()> {
    let mut rest = [0; 16];
    match stream.read(&mut rest)? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Serves so many connections, one after the other: reads `up` bytes, writes `down`.
fn server(of: &Workload, v6: bool, port: u16, times: u32, (up, down): (usize, usize), ending: Ending) -> Process {
    let mut process = of
        .spawn(move |turn| {
            let listener = TcpListener::bind(any(v6, port))?;
            turn.ready()?;
            for _ in 0..times {
                let (mut stream, _) = listener.accept()?;
                read_exactly(&mut stream, up)?;
                match ending {
                    Ending::Half => {
                        read_to_end(&mut stream)?;
                        stream.write_all(&vec![1; down])?;
                    }
                    Ending::Server => {
                        stream.write_all(&vec![1; down])?;
                    }
                    Ending::Client => {
                        stream.write_all(&vec![1; down])?;
                        read_to_end(&mut stream)?;
                    }
                    Ending::Reset => {
                        stream.write_all(&vec![1; down])?;
                        let end = stream.read(&mut [0; 16]);
                        if !end.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset) {
                            return Err(io::ErrorKind::InvalidData.into());
                        }
                    }
                }
            }
            Ok(())
        })
        .expect("a process");
    process.wait_ready(SOON).expect("it listens");
    process.go(&[]).expect("it goes on");
    process
}

fn client(of: &Workload, to: SocketAddr, times: u32, (up, down): (usize, usize), ending: Ending) -> Process {
    of.spawn(move |turn| {
        for _ in 0..times {
            turn.doing("connect");
            let mut stream = TcpStream::connect(to)?;
            turn.doing("talk");
            stream.write_all(&vec![2; up])?;
            if ending == Ending::Half {
                stream.shutdown(Shutdown::Write)?;
            }
            read_exactly(&mut stream, down)?;
            match ending {
                Ending::Half | Ending::Server => read_to_end(&mut stream)?,
                Ending::Reset => {
                    // All of ours has arrived once the server answers.
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                }
                Ending::Client => {}
            }
        }
        Ok(())
    })
    .expect("a process")
}

#[test]
fn bytes_are_what_was_sent_however_a_connection_ends() {
    let estate = Estate::new(&["web", "database"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    let mut port = 5000;
    for v6 in [false, true] {
        for ending in [Ending::Client, Ending::Server, Ending::Half, Ending::Reset] {
            for (times, up, down) in [(1u32, 1usize, 1usize), (5, 1000, 3), (1, 3_000_000, 70_000)] {
                port += 1;
                eprintln!("{ending:?}, IPv6 {v6}, {times} x {up} there and {down} back");
                let (web, database) = (estate.get("web"), estate.get("database"));
                let serving = server(database, v6, port, times, (up, down), ending);
                let mut asking = client(web, at(database, v6, port), times, (up, down), ending);
                // What was counted before doesn't count again at the end.
                let ended = loop {
                    enforced.datapath().tick();
                    if let Some(ended) = asking.finish(Duration::from_millis(1)) {
                        break ended;
                    }
                };
                ended.unwrap_or_else(|e| panic!("{e:?}"));
                done(serving);
                let n = u64::from(times);
                let [source, destination] = both(&mut enforced, port, n, n * up as u64, n * down as u64);
                // A handshake and an end each way, at least.
                for t in [source, destination] {
                    assert!(t.packets_sent >= 2 * n && t.packets_received >= 2 * n, "{t:?}");
                }
            }
        }
    }
    assert_eq!(enforced.datapath().totals().expect("the totals").unattributed(), Traffic::default());
}

/// A connection that was made before the programs came, or after.
fn live(older: bool) {
    let estate = Estate::new(&["web", "database"]);
    let over = |estate| Enforced::over(estate, Posture::Enforce, WEB_TO_DATABASE);
    let before = (!older).then(|| over(&estate));
    let (web, database) = (estate.get("web"), estate.get("database"));
    let mut serving = database
        .spawn(move |turn| {
            let listener = TcpListener::bind(any(false, 6000))?;
            turn.ready()?;
            let (mut stream, _) = listener.accept()?;
            read_exactly(&mut stream, 4)?;
            stream.write_all(b"pong")?;
            read_to_end(&mut stream)
        })
        .expect("a process");
    serving.wait_ready(SOON).expect("it listens");
    serving.go(&[]).expect("it goes on");
    let to = at(database, false, 6000);
    let mut asking = web
        .spawn(move |turn| {
            let mut stream = TcpStream::connect(to)?;
            turn.ready()?;
            stream.write_all(b"ping")?;
            read_exactly(&mut stream, 4)?;
            turn.ready().map(drop)
        })
        .expect("a process");
    asking.wait_ready(SOON).expect("connected");
    let mut enforced = before.unwrap_or_else(|| over(&estate));
    asking.go(&[]).expect("it goes on");
    asking.wait_ready(SOON).expect("answered");
    both(&mut enforced, 6000, 1, 0, 0);
    asking.go(&[]).expect("it goes on");
    done(asking);
    done(serving);
    // Nothing tells when an older one ends.
    let bytes = if older { 0 } else { 4 };
    both(&mut enforced, 6000, 1, bytes, bytes);
}

#[test]
fn a_live_connection_is_established_at_both_ends() {
    live(false);
}

#[test]
fn so_is_one_that_is_older_than_the_programs() {
    live(true);
}

#[test]
fn a_long_connection_is_counted_while_it_lasts() {
    const ROUND: usize = 1000;
    let estate = Estate::new(&["web", "database"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    let (web, database) = (estate.get("web"), estate.get("database"));
    let serving = server(database, false, 6500, 1, (5 * ROUND, 1), Ending::Client);
    let to = at(database, false, 6500);
    let mut asking = web
        .spawn(move |turn| {
            let mut stream = TcpStream::connect(to)?;
            for _ in 0..5 {
                stream.write_all(&[2; ROUND])?;
                turn.ready()?;
            }
            read_exactly(&mut stream, 1)
        })
        .expect("a process");
    for round in 1..=5 {
        asking.wait_ready(SOON).expect("it has sent");
        enforced.datapath().tick();
        // What comes next has everything counted that came before.
        if round > 1 {
            let before = (round - 1) * ROUND as u64;
            for direction in [Direction::Egress, Direction::Ingress] {
                let t = traffic(&mut enforced, 6500, direction);
                assert!(t.bytes_sent >= before - ROUND as u64 && t.bytes_sent <= before + ROUND as u64, "{t:?}");
                assert!(round < 3 || t.packets_sent > 0 && t.packets_received > 0, "{t:?}");
            }
        }
        asking.go(&[]).expect("it goes on");
    }
    done(asking);
    done(serving);
    both(&mut enforced, 6500, 1, 5 * ROUND as u64, 1);
}

/// Tries to connect so often, and says how often each kind of end came.
fn try_connecting(of: &Workload, to: SocketAddr, times: u32, expected: io::ErrorKind) {
    let process = of
        .spawn(move |turn| {
            turn.doing("connect");
            for _ in 0..times {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                match socket.connect_timeout(&to.into(), NEVER) {
                    Ok(()) => return Err(io::ErrorKind::AlreadyExists.into()),
                    Err(e) if e.kind() == expected => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        })
        .expect("a process");
    done(process);
}

#[test]
fn refused_and_never_answered_are_told_apart() {
    let estate = Estate::new(&["web", "database"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    let (web, database) = (estate.get("web"), estate.get("database"));
    for (v6, port) in [(false, 7001), (true, 7002)] {
        // Nobody listens there.
        try_connecting(web, at(database, v6, port), 7, io::ErrorKind::ConnectionRefused);
        let t = traffic(&mut enforced, port, Direction::Egress);
        assert_eq!(t, Traffic { refused: 7, ..Traffic::default() });
        assert_eq!(traffic(&mut enforced, port, Direction::Ingress), Traffic::default());
    }
    // An accept queue that is full answers nobody.
    let mut full = database
        .spawn(move |turn| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&any(false, 7003).into())?;
            socket.listen(0)?;
            turn.ready().map(drop)
        })
        .expect("a process");
    full.wait_ready(SOON).expect("it listens");
    let to = at(database, false, 7003);
    let mut first = web
        .spawn(move |turn| {
            let _stream = TcpStream::connect(to)?;
            turn.ready().map(drop)
        })
        .expect("a process");
    first.wait_ready(SOON).expect("connected");
    try_connecting(web, to, 3, io::ErrorKind::TimedOut);
    let t = traffic(&mut enforced, 7003, Direction::Egress);
    assert_eq!(t, Traffic { established: 1, timed_out: 3, ..Traffic::default() });
}

#[test]
fn a_denied_connection_becomes_nothing() {
    let estate = Estate::new(&["web", "database", "intruder"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    let to = at(estate.get("database"), false, 8000);
    let serving = server(estate.get("database"), false, 8000, 1, (1, 1), Ending::Client);
    try_connecting(estate.get("intruder"), to, 5, io::ErrorKind::PermissionDenied);
    let (intruder, database) = (enforced.peer("intruder"), enforced.peer("database"));
    assert_eq!(enforced.counted(intruder, database, Outcome::Denied), 5);
    assert_eq!(enforced.datapath().traffic().expect("the counters"), []);
    drop(serving);
}
