//! Counters are exact: what is counted is what was made, however many connect at once, however the kernel preempts
//! them, and also when the map of edges is full.

use bulkhead::datapath::{Datapath, Limits};
use bulkhead::inventory::Posture;
use bulkhead::policy::{PolicySet, RuleTable, compile};
use bulkhead_common::{Direction, Outcome, Reason};
use bulkhead_tests::{Enforced, Estate, Process, Workload, enforced, number};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

const RUN: Duration = Duration::from_secs(2);
/// When those who run so long must have ended.
const WITHIN: Duration = RUN.saturating_add(Duration::from_secs(30));

/// Connects from two threads as fast as they can, to one port after another; says how many calls they made.
fn connect_much(from: &Workload, to: SocketAddr, ports: u16, passes: bool) -> Process {
    from.spawn(move |turn| {
        turn.doing("connecting from two threads");
        let made = thread::scope(|scope| {
            let one = || thread::Builder::new().spawn_scoped(scope, move || connects(to, ports, passes));
            [one()?, one()?].into_iter().try_fold(0, |sum, thread| {
                let made = thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
                Ok::<_, io::Error>(sum + made)
            })
        })?;
        turn.received(made.to_string().as_bytes())
    })
    .expect("a process")
}

/// Connects datagram sockets until the time is over; gives how many calls it made.
fn connects(to: SocketAddr, ports: u16, passes: bool) -> io::Result<u64> {
    let end = Instant::now() + RUN;
    let mut made = 0u64;
    while Instant::now() < end {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        for _ in 0..64 {
            let port = to.port() + u16::try_from(made % u64::from(ports)).unwrap_or_default();
            let done = socket.connect(&SocketAddr::new(to.ip(), port).into());
            if done.is_ok() != passes {
                return Err(done.err().unwrap_or_else(|| io::ErrorKind::AlreadyExists.into()));
            }
            made += 1;
        }
    }
    Ok(made)
}

#[test]
fn as_many_are_counted_as_were_made() {
    let estate = Estate::new(&["web", "database", "intruder"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, enforced::WEB_TO_DATABASE);
    let to = SocketAddr::from((estate.get("database").v4(), 4000));
    let of = |name: &str, passes| connect_much(estate.get(name), to, 3, passes);
    // Two threads of each, at the same time.
    let (web, intruder) = (of("web", true), of("intruder", false));
    let (allowed, denied) = (number(web, WITHIN), number(intruder, WITHIN));
    let (web, database, intruder) = (enforced.peer("web"), enforced.peer("database"), enforced.peer("intruder"));
    eprintln!("{allowed} allowed and {denied} denied connects");
    assert_eq!(enforced.counted(web, database, Outcome::Allowed), allowed);
    assert_eq!(enforced.counted(intruder, database, Outcome::Denied), denied);
}

#[test]
fn what_finds_no_room_among_the_edges_is_in_the_totals() {
    let estate = Estate::new(&["web", "database"]);
    let instance = format!("test-edges-{}", std::process::id());
    let limits = Limits { edges: 16, ..Limits::default() };
    let attach = vec![estate.sandbox().cgroup().path().to_owned()];
    let inventory = enforced::inventory(&estate, Posture::Enforce);
    let image = compile(&PolicySet::default(), &inventory, &mut RuleTable::default()).image;
    let off = enforced::Off(&instance);
    let mut datapath = Datapath::open(bulkhead::datapath::Options { limits, ..enforced::options(&instance, attach) })
        .expect("the programs load");
    datapath.commit(&image).expect("a commit");
    datapath.attach().expect("the programs attach");

    let to = SocketAddr::from((estate.get("database").v4(), 4000));
    let made = number(connect_much(estate.get("web"), to, 1000, false), WITHIN);
    let edges = datapath.edges().expect("the counters");
    let counted: u64 = edges.iter().map(|(_, n)| n).sum();
    let totals = datapath.totals().expect("the totals");
    let overflow = totals.overflow(Direction::Egress, Outcome::Denied, Reason::NoEgressRule);
    eprintln!("{made} made, {counted} in {} edges, {overflow} beside them", edges.len());
    assert!(overflow > 0 && edges.len() <= 16);
    assert_eq!(counted + overflow, made);
    drop(datapath);
    drop(off);
}
