//! Peers outside are counted by address: exactly, within bounds, and from one era to the next without a loss.

use bulkhead::datapath::{Datapath, Limits};
use bulkhead::inventory::{Endpoint, Owner, Place, Posture};
use bulkhead::policy::{PolicySet, RuleTable, compile};
use bulkhead_common::maps::EdgeKey;
use bulkhead_common::outside::{Outside, OutsideKey};
use bulkhead_common::{Class, Direction, Outcome, PeerId};
use bulkhead_tests::enforced::{self, widened};
use bulkhead_tests::{Enforced, Estate, Process, SOON, Workload, any, at, number, wait_for};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const RUN: Duration = Duration::from_secs(1);
/// When those who run so long must have ended.
const WITHIN: Duration = RUN.saturating_add(Duration::from_secs(30));

/// Everything that is counted by address, whatever the era.
fn by_address(datapath: &Datapath) -> BTreeMap<OutsideKey, Outside> {
    let mut all: BTreeMap<OutsideKey, Outside> = BTreeMap::new();
    for (_, key, n) in datapath.outside().expect("the counters").counts {
        all.entry(key).or_default().attempts += n.attempts;
    }
    all
}

/// The edges to and from peers that are told apart by address.
fn edges(datapath: &Datapath) -> BTreeMap<EdgeKey, u64> {
    let all = datapath.edges().expect("the counters").into_iter();
    all.filter(|(k, _)| k.own_and_peer().1.is_outside()).collect()
}

/// Connects datagram sockets for a while, to so many addresses one after the other; says how many calls it made.
fn connect_much(from: &Workload, first: Ipv4Addr, addresses: u32) -> Process {
    from.spawn(move |turn| {
        let end = Instant::now() + RUN;
        let mut made = 0_u32;
        while Instant::now() < end || made < addresses {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            for _ in 0..64 {
                let to = Ipv4Addr::from(u32::from(first) + made % addresses);
                // Whether there is a way to it doesn't matter: the rules were asked before.
                drop(socket.connect(&SocketAddr::from((to, 4000)).into()));
                made += 1;
            }
        }
        turn.received(made.to_string().as_bytes())
    })
    .expect("a process")
}

/// An estate in which `stranger` is at addresses of the world.
fn with_a_stranger(estate: &Estate, posture: Posture) -> Enforced {
    let mut enforced = Enforced::over(estate, posture, "");
    let theirs = estate.get("stranger").addresses().map(|a| Place::Addr(widened(a)));
    for Endpoint { place, owner } in &mut enforced.inventory().endpoints {
        if theirs.contains(place) {
            *owner = Owner::Class(Class::World);
        }
    }
    enforced.apply(posture, "");
    enforced
}

#[test]
fn each_address_has_its_own_count() {
    let estate = Estate::new(&["web", "stranger"]);
    let mut enforced = with_a_stranger(&estate, Posture::Observe);
    let (web, stranger) = (estate.get("web"), estate.get("stranger"));
    let mut servers = Vec::new();
    for (on, v6, port) in [(stranger, false, 4430), (stranger, true, 4431), (web, false, 8080)] {
        let mut server = on
            .spawn(move |turn| {
                let listener = TcpListener::bind(any(v6, port))?;
                turn.ready()?;
                loop {
                    let (mut stream, _) = listener.accept()?;
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all)?;
                    stream.write_all(&all)?;
                }
            })
            .expect("a process");
        server.wait_ready(SOON).expect("it listens");
        server.go(&[]).expect("it goes on");
        servers.push(server);
    }
    for (from, to, times) in
        [(web, at(stranger, false, 4430), 7), (web, at(stranger, true, 4431), 3), (stranger, at(web, false, 8080), 5)]
    {
        let mut client = from
            .spawn(move |turn| {
                for _ in 0..times {
                    turn.doing("talk");
                    let mut stream = TcpStream::connect(to)?;
                    stream.write_all(&[7; 1000])?;
                    stream.shutdown(Shutdown::Write)?;
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back)?;
                }
                Ok(())
            })
            .expect("a process");
        client.finish(SOON).expect("it ends").unwrap_or_else(|e| panic!("{e:?}"));
    }
    let number = enforced.peer("web");
    let world = Class::World.id();
    // The stranger is a workload, too: what its own hooks count is another story.
    let expected = [
        (number, world, 4430, Direction::Egress, IpAddr::from(stranger.v4()), 7),
        (number, world, 4431, Direction::Egress, stranger.v6().into(), 3),
        (world, number, 8080, Direction::Ingress, stranger.v4().into(), 5),
    ];
    for (src, dst, port, direction, address, times) in expected {
        let fits = |k: &OutsideKey| {
            (k.edge.src, k.edge.dst, k.edge.port, k.edge.direction) == (src.0, dst.0, port, direction as u8)
        };
        wait_for("the connections have ended", || {
            let all = enforced.datapath().outside().expect("the counters").counts;
            let mut ours = all.into_iter().filter(|(_, k, _)| fits(k));
            let Some((_, key, n)) = ours.next() else { return false };
            assert_eq!((key.addr, n.attempts, ours.next()), (widened(address), times, None));
            let t = n.traffic;
            t.established == times && t.bytes_sent == 1000 * times && t.bytes_received == 1000 * times
        });
    }
    let (all, edges) = (by_address(enforced.datapath()), edges(enforced.datapath()));
    assert!(edges.len() >= 3);
    for (edge, n) in edges {
        let parts: u64 = all.iter().filter(|(k, _)| k.edge == edge).map(|(_, o)| o.attempts).sum();
        assert_eq!(parts, n, "{edge:?}");
    }
}

#[test]
fn a_scan_takes_no_place_from_others() {
    let estate = Estate::new(&["web", "hostile"]);
    let instance = format!("test-outside-{}", std::process::id());
    let limits = Limits { outside: 64, ..Limits::default() };
    let attach = vec![estate.sandbox().cgroup().path().to_owned()];
    let inventory = enforced::inventory(&estate, Posture::Enforce);
    let image = compile(&PolicySet::default(), &inventory, &mut RuleTable::default()).image;
    let off = enforced::Off(&instance);
    let mut datapath = Datapath::open(bulkhead::datapath::Options { limits, ..enforced::options(&instance, attach) })
        .expect("the programs load");
    datapath.commit(&image).expect("a commit");
    datapath.attach().expect("the programs attach");

    let elsewhere = Ipv4Addr::new(198, 51, 0, 1);
    let (a, b) = (estate.get("hostile"), estate.get("hostile"));
    let (a, b) = (connect_much(a, elsewhere, 20_000), connect_much(b, elsewhere, 20_000));
    let scanned = number(a, WITHIN) + number(b, WITHIN);
    let connected = number(connect_much(estate.get("web"), Ipv4Addr::new(203, 0, 113, 1), 10), WITHIN);
    let (all, edges) = (by_address(&datapath), edges(&datapath));
    let [web, hostile] = ["web", "hostile"].map(|name| {
        let id = enforced::id(name);
        let mut of = inventory.identities.iter().filter(|(_, f)| f.identity.to_string() == id);
        of.next().expect("a workload").0.0
    });
    let of = |who: u32| all.iter().filter(move |(k, _)| k.edge.src == who);
    let held = u32::try_from(of(hostile).count()).expect("few");
    assert_eq!((of(web).count(), of(web).map(|(_, o)| o.attempts).sum::<u64>()), (10, connected));
    // Two CPUs may each have taken the last one.
    assert!((32..=34).contains(&held), "{held} of 64");
    assert_eq!(datapath.outside_share(PeerId(hostile)), held);
    let without = datapath.totals().expect("the totals").without_address();
    eprintln!("{scanned} connects of a scan, {held} addresses of it, {without} without their address");
    assert_eq!(of(hostile).map(|(_, o)| o.attempts).sum::<u64>() + without, scanned);
    assert_eq!(edges.values().sum::<u64>(), scanned + connected);
    drop(datapath);
    drop(off);
}

#[test]
fn eras_follow_each_other_without_a_loss() {
    let estate = Estate::new(&["web"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, "");
    let mut kept: BTreeMap<OutsideKey, u64> = BTreeMap::new();
    let mut made = 0;
    for round in 0..3 {
        let of = || connect_much(estate.get("web"), Ipv4Addr::new(203, 0, 113, 1), 40);
        let (one, other) = (of(), of());
        let end = Instant::now() + RUN;
        let mut eras = 0;
        while Instant::now() < end {
            enforced.datapath().begin_era().expect("another era");
            // What a killed agent leaves is what the next one finds.
            if eras == 1 {
                enforced.abandon();
                enforced.reopen(&estate).attach().expect("attached again");
            }
            let datapath = enforced.datapath();
            let reading = datapath.outside().expect("the counters");
            let former: Vec<_> = reading.counts.iter().filter(|(era, _, _)| *era != reading.era).collect();
            assert!(former.is_empty() || datapath.begin_era().is_err(), "the former era's counts are still there");
            for (_, key, n) in former {
                *kept.entry(*key).or_default() += n.attempts;
            }
            datapath.empty_former_era().expect("emptied");
            eras += 1;
        }
        made += number(one, WITHIN) + number(other, WITHIN);
        eprintln!("round {round}: {eras} eras");
        assert!(eras > 1);
    }
    let present = by_address(enforced.datapath());
    for (key, n) in present {
        *kept.entry(key).or_default() += n.attempts;
    }
    assert_eq!(kept.len(), 40);
    assert_eq!(kept.values().sum::<u64>(), made);
    assert_eq!(edges(enforced.datapath()).into_values().sum::<u64>(), made);
    let denied = |k: &OutsideKey| k.edge.outcome == Outcome::Denied as u8;
    assert!(kept.keys().all(denied));
    assert_eq!(enforced.datapath().totals().expect("the totals").without_address(), 0);
}
