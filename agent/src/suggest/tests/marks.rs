//! What is set apart, what is kept and marked, and what stands for the world.

use super::*;

fn packets(mut r: Record, there: u64, back: u64) -> Record {
    (r.counts.packets_sent, r.counts.packets_received) = (there, back);
    r
}

fn outside(address: [u8; 4], dns: Option<&str>) -> Record {
    let mut r = record("shop/cart", "world", 6, 443);
    r.address = Some(IpAddr::from(address));
    r.name = dns.map(str::to_owned);
    r
}

#[test]
fn a_scan_is_set_apart_whole_and_the_scanners_own_services_stay() {
    let mut records: Vec<Record> = (1..=40)
        .map(|port| once(record("shop/web", "data/db", 6, port), u64::from(port == 22 || port == 25)))
        .collect();
    // It uses one of the ports in earnest, and scanned it too.
    records.push(record("shop/web", "data/db", 6, 5432));
    // Once a day, before the scan and after it.
    let daily = Counts { attempts: 14, established: 14, ..Counts::default() };
    records.push(Record { counts: daily, hours: 14, ..record("shop/web", "shop/mail", 6, 25) });
    let s = suggestion(records);
    assert_eq!(s.apart.len(), 40);
    assert!(s.apart.iter().all(|a| a.why == Apart::Scan && !a.allowed));
    assert_eq!(
        rules(&s),
        [
            "data/db ingress shop/web TCP/5432",
            "shop/mail ingress shop/web TCP/25",
            "shop/web egress data/db TCP/5432",
            "shop/web egress shop/mail TCP/25",
        ]
    );
}

#[test]
fn whoever_polls_may_have_dead_targets() {
    let target = |n: u16, times: u64, alive: bool| {
        let mut r = record("shop/monitor", &format!("shop/t{n}"), 6, 9100);
        let established = if alive { times } else { 0 };
        r.counts = Counts { attempts: times, established, ..Counts::default() };
        r
    };
    // Every minute, with more dead than living; and once a night, with fewer dead than living.
    let polled = (0..40).map(|n| target(n, 20_160, n < 12)).collect();
    let nightly = (0..40).map(|n| Record { hours: 14, ..target(n, 14, n < 28) }).collect();
    for (records, living) in [(polled, 12), (nightly, 28)] {
        let s = suggestion(records);
        assert_eq!((rules(&s).len(), s.apart.len()), (2 * living, 40 - living), "{:?}", apart(&s));
    }
}

#[test]
fn a_scan_for_datagrams_is_one_too() {
    let scan = (1..=40).map(|port| packets(once(record("shop/web", "data/db", 17, port), 1), 1, 0));
    let s = suggestion(scan.collect());
    assert!(s.apart.len() == 40 && s.apart.iter().all(|a| a.why == Apart::Scan), "{:?}", apart(&s));
}

#[test]
fn what_never_answered_is_no_rule_and_retries_that_came_through_are() {
    let mut retried = record("shop/cart", "shop/orders", 6, 8080);
    retried.counts = Counts { attempts: 5000, established: 100, refused: 4900, ..Counts::default() };
    let mut down = record("shop/cart", "shop/gone", 6, 8080);
    down.counts = Counts { attempts: 5000, timed_out: 5000, ..Counts::default() };
    let mut denied = record("shop/cart", "data/db", 6, 5432);
    denied.outcome = "denied".to_owned();
    let s = suggestion(vec![retried, down, denied]);
    assert_eq!(rules(&s), ["shop/cart egress shop/orders TCP/8080", "shop/orders ingress shop/cart TCP/8080"]);
    assert_eq!(apart(&s), [(Apart::NeverEstablished, 5432), (Apart::NeverEstablished, 8080)]);
}

#[test]
fn a_slip_is_set_apart_and_a_rare_job_is_kept_and_marked() {
    let mut weekly = record("shop/batch", "data/db", 6, 5432);
    weekly.counts = Counts { attempts: 2, established: 2, ..Counts::default() };
    (weekly.hours, weekly.days) = (2, 2);
    let burst = once(record("shop/batch", "data/lake", 6, 9000), 50);
    let slip = once(record("shop/cart", "data/db", 6, 5432), 2);
    let s = suggestion(vec![weekly, burst, slip.clone()]);
    assert_eq!(apart(&s), [(Apart::Once, 5432)]);
    let marks: Vec<_> = s.rules.iter().filter(|r| r.half == Half::Egress).map(|r| &r.marks).collect();
    assert_eq!(marks, [&BTreeSet::from([Mark::Few, Mark::Rare]), &BTreeSet::from([Mark::OneHour])]);
    assert!(s.files[1].text.contains("marked: few, rare"), "{}", s.files[1].text);

    let kept = suggested(vec![slip.clone()], &PolicySet::default(), &Wish { keep_once: true, ..Wish::default() });
    assert_eq!((rules(&kept).len(), kept.proof.few), (2, 2));
    // In a short window nobody can tell what is regular.
    let short = Window { from: START, to: START + HOUR, watched: HOUR, unattributed: 0 };
    let history = History { window: short, records: vec![slip], ..History::default() };
    let s = suggest(&history, &PolicySet::default(), &Inventory::default(), &Wish::default()).expect("rules");
    assert_eq!((rules(&s).len(), s.proof.few), (2, 2));
}

#[test]
fn replies_and_ephemeral_ports_never_become_rules() {
    let mut replies: Vec<Record> = (0..5).map(|n| once(record("data/dns", "shop/cart", 17, 40_000 + n), 3)).collect();
    let mut long_lived = record("data/dns", "shop/web", 17, 45_000);
    long_lived.counts.established = 20;
    replies.extend([
        record("shop/cart", "data/dns", 17, 53),
        record("shop/web", "data/dns", 17, 53),
        long_lived,
        // A tunnel with the same port at both ends, and a service on a high port of its own.
        record("shop/a", "shop/b", 17, 51_820),
        record("shop/b", "shop/a", 17, 51_820),
        record("shop/cart", "shop/grpc", 6, 50_051),
    ]);
    replies.extend((0..9).map(|n| once(record("shop/cart", "data/ftp", 6, 49_152 + n), 3)));
    replies.push(record("shop/cart", "data/ftp", 6, 21));
    let s = suggestion(replies);
    let of = |why| s.apart.iter().filter(|a| a.why == why).count();
    assert_eq!((of(Apart::UdpReply), of(Apart::Ephemeral), s.apart.len()), (6, 9, 15));
    let high: Vec<_> = rules(&s).into_iter().filter(|r| r.contains(" egress ") && r.ends_with(['0', '1'])).collect();
    assert_eq!(
        high,
        [
            "shop/a egress shop/b UDP/51820",
            "shop/b egress shop/a UDP/51820",
            "shop/cart egress data/ftp TCP/21",
            "shop/cart egress shop/grpc TCP/50051",
        ]
    );
}

#[test]
fn ends_that_nobody_knew_are_set_apart() {
    let s = suggestion(vec![
        record("shop/cart", "unknown", 6, 1),
        record("unknown-workload", "shop/cart", 6, 2),
        record("shop/cart", "identity-300", 6, 3),
        record("shop/cart", "any", 6, 4),
        record("shop/cart", "shop/orders", 47, 0),
    ]);
    assert_eq!(rules(&s), [""; 0]);
    let ports: BTreeSet<_> = apart(&s).into_iter().collect();
    let unknown = [1, 2, 3, 4].map(|port| (Apart::UnknownPeer, port));
    assert_eq!(ports, unknown.into_iter().chain([(Apart::Unruled, 0)]).collect());
}

#[test]
fn addresses_that_stay_are_listed_and_those_that_come_and_go_are_the_world() {
    let s = suggestion(vec![outside([203, 0, 113, 7], None), outside([198, 51, 100, 9], Some("api.example.com"))]);
    assert_eq!(rules(&s), ["shop/cart egress 198.51.100.9/32 TCP/443", "shop/cart egress 203.0.113.7/32 TCP/443"]);

    let rotating = |n: u8, address| Record {
        hours: 24,
        days: 1,
        first: START + DAY * u64::from(n),
        last: START + DAY * u64::from(n) + 23 * HOUR,
        ..outside(address, Some("cdn.example.com"))
    };
    let near = (0..12).map(|n| rotating(n, [203, 0, 113, n])).collect();
    assert_eq!(rules(&suggestion(near)), ["shop/cart egress 203.0.113.0/24 TCP/443"]);
    let far = (0..12).map(|n| rotating(n, [203, 0, n, 1]));
    let s = suggestion(far.chain([outside([198, 51, 100, 9], None)]).collect());
    assert_eq!(rules(&s), ["shop/cart egress world TCP/443"]);
    assert!(s.rules[0].marks.contains(&Mark::World));
    assert_eq!(s.rules[0].why, "12 addresses of cdn.example.com, in 12 networks; a rule can't name a DNS name");
    assert_eq!(s.proof.surplus.never_seen, 0);
    // One that was asked for once is no part of it.
    let s = suggestion(vec![outside([203, 0, 113, 7], None), once(outside([192, 0, 2, 66], Some("evil.example")), 1)]);
    assert_eq!((rules(&s).len(), apart(&s)), (1, vec![(Apart::Once, 443)]));
    assert_eq!(s.apart[0].link.address, Some(IpAddr::from([192, 0, 2, 66])));
}

#[test]
fn a_public_service_is_open_to_the_world() {
    let from = |n: u8| {
        let mut r = record("world", "shop/web", 6, 443);
        r.address = Some(IpAddr::from([n, 1, 2, 3]));
        Record { hours: 1, days: 1, last: START + HOUR, ..r }
    };
    assert_eq!(rules(&suggestion((1..30).map(from).collect())), ["shop/web ingress world TCP/443"]);
}
