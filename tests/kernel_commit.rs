//! A commit is whole: while a writer commits as fast as it can between two rulesets, no flow is denied that both allow,
//! and none is allowed that neither allows.
//!
//! The two rulesets say the same of one flow and of another by quite different entries: an exact port against a range,
//! an address against a prefix that shadows another, a pair's own entry against one for any workload. So a reader that
//! saw a mixture would find a wrong answer somewhere.

use bulkhead::image::Image;
use bulkhead::inventory::{Endpoint, Owner, Place, Posture};
use bulkhead_common::maps::PrefixKey;
use bulkhead_common::{Class, Outcome, PeerId};
use bulkhead_tests::enforced::widened;
use bulkhead_tests::{Enforced, Estate, Process, Reply, Workload, any, at, give_room, numbers};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How long the readers and the writer go on.
const RUN: Duration = Duration::from_secs(4);
/// When those who run so long must have ended.
const WITHIN: Duration = RUN.saturating_add(Duration::from_secs(30));
/// Both rulesets allow it.
const BOTH: u16 = 5000;
/// Neither allows it.
const NEITHER: u16 = 9000;
/// Only the first allows it.
const FIRST: u16 = 5500;
/// Only the second allows it.
const SECOND: u16 = 4100;

/// By single ports, pair by pair.
const FIRST_RULES: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: one}
spec:
  mode: enforce
  edges:
    - from: [{id: spiffe://test/web}]
      to: [{id: spiffe://test/database}]
      ports: [{protocol: UDP, port: 5000}, {protocol: UDP, port: 5500}]
";

/// By a range, from any workload.
const SECOND_RULES: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: two}
spec:
  mode: enforce
  edges:
    - from: [{id: 'spiffe://**'}]
      to: [{id: 'spiffe://**'}]
      ports: [{protocol: UDP, port: 4000, endPort: 5001}]
";

/// The second image finds the database by a prefix within a prefix that is the world's, not by its address.
fn images(enforced: &mut Enforced, database: &Workload) -> [Image; 2] {
    let first = enforced.compile(FIRST_RULES);
    let (v4, peer) = (IpAddr::from(database.v4()), enforced.peer("database"));
    let inventory = enforced.inventory();
    let mine = |e: &Endpoint| matches!(e.owner, Owner::Workload { peer: p, .. } if p == peer);
    let owner = inventory.endpoints.iter().find(|e| mine(e)).expect("the database has an address").owner;
    inventory.endpoints.retain(|e| !mine(e));
    let prefix = |bits: u32, owner| Endpoint {
        place: Place::Prefix(PrefixKey { bits, addr: bulkhead::image::masked(&widened(v4), bits) }),
        owner,
    };
    inventory.endpoints.push(prefix(96 + 28, Owner::Class(Class::RemoteNode)));
    inventory.endpoints.push(prefix(96 + 32, owner));
    let second = enforced.compile(SECOND_RULES);
    [first, second]
}

/// Connects again and again, each time from a new socket, and fails at the first wrong answer. Says at the end how
/// often the flows that only one ruleset allows were let through.
///
/// Each socket is bound to its address first. One that gets it by connecting is moved to another chain of the kernel's
/// table of UDP sockets, and who looks for the receiver's just then may be led away with it: then the kernel finds no
/// socket, and drops a datagram that no program has seen.
fn check_connects(from: &Workload, to: SocketAddr) -> Process {
    let own = SocketAddr::from((from.v4(), 0));
    from.spawn(move |turn| {
        let dial = |port: u16| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.bind(&own.into())?;
            match socket.connect(&SocketAddr::new(to.ip(), port).into()) {
                Ok(()) => Ok(true),
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(false),
                Err(e) => Err(e),
            }
        };
        let end = Instant::now() + RUN;
        let (mut tries, mut first, mut second) = (0u64, 0u64, 0u64);
        while Instant::now() < end {
            tries += 1;
            if !dial(BOTH)? {
                turn.doing("it was denied what both rulesets allow");
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            if dial(NEITHER)? {
                turn.doing("it was allowed what neither ruleset allows");
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            first += u64::from(dial(FIRST)?);
            second += u64::from(dial(SECOND)?);
        }
        turn.received(format!("{tries} {first} {second}").as_bytes())
    })
    .expect("a process")
}

/// Sends numbered datagrams by one unconnected socket at about 5,000 a second and says how many it sent.
fn send_datagrams(from: &Workload, to: SocketAddr) -> Process {
    from.spawn(move |turn| {
        let socket = UdpSocket::bind(any(false, 0))?;
        let begin = Instant::now();
        let mut sent = 0u64;
        while begin.elapsed() < RUN {
            socket.send_to(&sent.to_be_bytes(), to)?;
            sent += 1;
            while begin.elapsed() < Duration::from_micros(200) * u32::try_from(sent).unwrap_or(u32::MAX) {
                std::thread::yield_now();
            }
        }
        turn.received(sent.to_string().as_bytes())
    })
    .expect("a process")
}

/// Counts datagrams until none has come for a while.
fn count_datagrams(on: &Workload, port: u16) -> Process {
    on.spawn(move |turn| {
        let socket = UdpSocket::bind(any(false, port))?;
        give_room(&socket)?;
        turn.ready()?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let (mut buffer, mut got) = ([0u8; 64], 0u64);
        let (sending, end) = (Instant::now() + RUN, Instant::now() + RUN + Duration::from_secs(3));
        while Instant::now() < end {
            match socket.recv(&mut buffer) {
                Ok(_) => got += 1,
                // On a machine that stands still for a second the sender may only be late.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) && got > 0 && Instant::now() > sending => break,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
        turn.received(got.to_string().as_bytes())
    })
    .expect("a process")
}

#[test]
fn no_reader_ever_sees_a_mixture_of_two_rulesets() {
    let estate = Estate::new(&["web", "database"]);
    let (web, database) = (estate.get("web"), estate.get("database"));
    let _server = database.serve(&[80], Reply::Nothing).expect("a server");
    let mut enforced = Enforced::over(&estate, Posture::Enforce, FIRST_RULES);
    let images = images(&mut enforced, database);
    assert_ne!(images[0].prefixes, images[1].prefixes);
    assert_ne!(images[0].addresses, images[1].addresses);
    assert!(images[1].rules.keys().any(|k| k.src == PeerId::ANY_WORKLOAD.0));

    let mut receiver = count_datagrams(database, BOTH);
    receiver.wait_ready(Duration::from_secs(5)).expect("the receiver is bound");
    receiver.go(&[]).expect("it goes on");
    let mut checker = check_connects(web, at(database, false, BOTH));
    let mut sender = send_datagrams(web, at(database, false, BOTH));
    let (begin, mut commits) = (Instant::now(), 0usize);
    while begin.elapsed() < RUN {
        enforced.datapath().commit(&images[commits % 2]).expect("a commit");
        commits += 1;
    }
    let [tries, first, second] = numbers(&mut checker, WITHIN)[..] else { panic!("three numbers") };
    let (sent, got) = (numbers(&mut sender, WITHIN)[0], numbers(&mut receiver, WITHIN)[0]);
    eprintln!(
        "{commits} commits, {tries} rounds of connects ({first} and {second} let through), {got} of {sent} datagrams"
    );
    let refused: Vec<_> =
        enforced.edges().into_iter().filter(|(k, _)| k.port == BOTH && k.outcome != Outcome::Allowed as u8).collect();
    assert!(refused.is_empty(), "what both rulesets allow was refused: {refused:?}");
    assert!(commits >= 20, "only {commits} commits");
    // Both rulesets were really in force in turn.
    assert!(first > 0 && first < tries && second > 0 && second < tries, "{first} and {second} of {tries}");
    assert_eq!(got, sent, "datagrams that both rulesets allow were lost");
}
