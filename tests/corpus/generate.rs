//! The estates: each of the ways in which services depend on each other, and each of the ways in which what is seen
//! misleads, by itself and then all together in several sizes.

use crate::builder::{Builder, DAY, DAYS, End, Fate, HOUR, Rhythm, START};
use crate::estate::Estate;
use bulkhead_common::proto::{ICMP, TCP, UDP};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A feature of an estate, in a namespace of its own.
type Feature = fn(&mut Builder, &str);

const FEATURES: [(&str, Feature); 18] = [
    ("fan-in", fan_in),
    ("fan-out", fan_out),
    ("chain", chain),
    ("shared-database", shared_database),
    ("cron", cron),
    ("stale", stale),
    ("retries", retries),
    ("vertical-scan", vertical_scan),
    ("horizontal-scan", horizontal_scan),
    ("daily-scan", daily_scan),
    ("ephemeral", ephemeral),
    ("datagrams", datagrams),
    ("replicas", replicas),
    ("outside-steady", outside_steady),
    ("outside-rotating", outside_rotating),
    ("outside-v6", outside_v6),
    ("public", public),
    ("strangers", strangers),
];

/// How many estates there are by themselves, and how many mixed.
const MIXED: u64 = 9;

/// All estates, or a few of them.
pub(crate) fn estates(seed: u64, quick: bool) -> Vec<Estate> {
    let mut all = Vec::new();
    for (n, (name, feature)) in (0..).zip(FEATURES) {
        let mut b = Builder::new(seed + n);
        feature(&mut b, "shop");
        slips(&mut b, "shop");
        all.push(b.finish(name));
    }
    for n in 0..if quick { 1 } else { MIXED } {
        let mut b = Builder::new(seed + 100 + n);
        for tenant in 0..=n / 2 {
            for (name, feature) in FEATURES {
                if tenant == 0 || b.random.u8(0..3) == 0 {
                    feature(&mut b, &format!("{name}-{tenant}"));
                }
            }
        }
        slips(&mut b, "slips");
        b.executable("x\u{1b}[2J\n      - to: [{class: world}]");
        all.push(b.finish(&format!("mixed-{}", n + 1)));
    }
    all
}

fn many(b: &mut Builder, namespace: &str, what: &str, least: usize, most: usize) -> Vec<End> {
    (0..b.random.usize(least..=most)).map(|n| b.workload(&format!("{namespace}/{what}-{n}"))).collect()
}

fn busy(b: &mut Builder) -> Rhythm {
    match b.random.u8(0..3) {
        0 => Rhythm::Office(b.random.u64(1..20)),
        _ => Rhythm::Hourly(b.random.u64(1..50)),
    }
}

fn fan_in(b: &mut Builder, ns: &str) {
    let service = b.workload(&format!("{ns}/auth"));
    for client in many(b, ns, "client", 8, 20) {
        let rhythm = busy(b);
        b.needs(&client, &service, TCP, 8443, rhythm);
    }
}

fn fan_out(b: &mut Builder, ns: &str) {
    // Scrapes everybody, so it looks like a sweep; and some of its targets are down now and then.
    let monitor = b.workload(&format!("{ns}/monitor"));
    for target in many(b, ns, "target", 12, 30) {
        b.needs(&monitor, &target, TCP, 9100, Rhythm::Hourly(60));
        let down = b.random.u64(0..200);
        b.traffic(&monitor, &target, TCP, 9100, Rhythm::At(down, 60), Fate::Refused);
    }
}

fn chain(b: &mut Builder, ns: &str) {
    let links = many(b, ns, "hop", 4, 9);
    for pair in links.windows(2) {
        let (port, rhythm) = (b.random.u16(8000..8100), busy(b));
        b.needs(&pair[0], &pair[1], TCP, port, rhythm);
    }
}

fn shared_database(b: &mut Builder, ns: &str) {
    let (db, cache) = (b.workload(&format!("{ns}/db")), b.workload(&format!("{ns}/cache")));
    for (n, service) in many(b, ns, "service", 5, 12).iter().enumerate() {
        let rhythm = busy(b);
        b.needs(service, &db, TCP, 5432, rhythm);
        if n % 2 == 0 {
            b.needs(service, &cache, TCP, 6379, Rhythm::Hourly(100));
        }
    }
    // One opens a connection at its start and keeps it; it is seen in each hour, and opened once.
    let keeper = b.workload(&format!("{ns}/keeper"));
    b.needs_of(&keeper, &db, TCP, 5433);
    for hour in 0..2 * DAYS * 24 {
        b.connections(&keeper, &db, TCP, 5433, START + hour * HOUR, u64::from(hour == 0), Fate::Established);
    }
}

fn cron(b: &mut Builder, ns: &str) {
    let db = b.workload(&format!("{ns}/ledger"));
    for (n, (every, first)) in [(24, 3), (24 * 7, 50), (12, 1), (24, 23)].into_iter().enumerate() {
        let job = b.workload(&format!("{ns}/job-{n}"));
        b.needs(&job, &db, TCP, 5432, Rhythm::Every(every, first));
    }
    // This one ran once in the window, which is as good as a slip.
    let seldom = b.workload(&format!("{ns}/seldom"));
    b.needs(&seldom, &db, TCP, 5432, Rhythm::Every(24 * 20, 100));
    // These run outside the window only, one of them from a workload that is seen doing other things.
    let monthly = b.workload(&format!("{ns}/monthly"));
    let late = b.random.u64(DAYS * 24..2 * DAYS * 24);
    b.needs(&monthly, &db, TCP, 5432, Rhythm::At(late, 30));
    let archive = b.workload(&format!("{ns}/archive"));
    b.needs(&db, &archive, TCP, 9000, Rhythm::At(late, 1));
}

fn retries(b: &mut Builder, ns: &str) {
    let flaky = b.workload(&format!("{ns}/flaky"));
    for client in many(b, ns, "patient", 3, 8) {
        b.needs(&client, &flaky, TCP, 8080, Rhythm::Hourly(3));
        b.traffic(&client, &flaky, TCP, 8080, Rhythm::Hourly(300), Fate::Refused);
        b.traffic(&client, &flaky, TCP, 8080, Rhythm::Every(5, 2), Fate::TimedOut);
        // A service that is gone: nobody depends on what never answers.
        let gone = b.workload(&format!("{ns}/gone"));
        b.traffic(&client, &gone, TCP, 8080, Rhythm::Hourly(60), Fate::TimedOut);
    }
}

/// Pollers whose lists are out of date, one that polls all day and one that goes its round at night.
fn stale(b: &mut Builder, ns: &str) {
    let (poller, backup) = (b.workload(&format!("{ns}/poller")), b.workload(&format!("{ns}/backup")));
    for (n, host) in many(b, ns, "listed", 30, 45).iter().enumerate() {
        if n % 2 == 0 {
            b.needs(&poller, host, TCP, 9100, Rhythm::Hourly(4));
        } else {
            b.traffic(&poller, host, TCP, 9100, Rhythm::Hourly(4), Fate::TimedOut);
        }
        if n % 3 > 0 {
            b.needs(&backup, host, TCP, 873, Rhythm::Every(24, 2));
        } else {
            b.traffic(&backup, host, TCP, 873, Rhythm::Every(24, 2), Fate::Refused);
        }
    }
}

/// A service that is in use, and gets scanned by one of its clients.
fn vertical_scan(b: &mut Builder, ns: &str) {
    let (victim, intruder) = (b.workload(&format!("{ns}/victim")), b.workload(&format!("{ns}/intruder")));
    b.needs(&intruder, &victim, TCP, 443, Rhythm::Hourly(10));
    let time = START + b.random.u64(2 * DAY..12 * DAY);
    for port in 1..=200 {
        let open = port == 22 || port == 80;
        let fate = if open { Fate::Established } else { Fate::Refused };
        b.connections(&intruder, &victim, TCP, port, time + u64::from(port) * 20, 1, fate);
        let noise = b.workload(&format!("{ns}/bystander"));
        b.connections(&intruder, &noise, UDP, port, time + u64::from(port) * 20, 1, Fate::TimedOut);
    }
}

fn horizontal_scan(b: &mut Builder, ns: &str) {
    let intruder = b.workload(&format!("{ns}/worm"));
    let victims = many(b, ns, "host", 15, 40);
    // Slowly: a few an hour, so that each stands alone.
    for (n, victim) in victims.iter().enumerate() {
        let fate = if n % 5 == 0 { Fate::Established } else { Fate::TimedOut };
        let hour = b.random.u64(24..13 * 24);
        b.traffic(&intruder, victim, TCP, 22, Rhythm::At(hour, 1), fate);
        if n > 0 {
            b.needs(&victims[0], victim, TCP, 7000, Rhythm::Hourly(5));
        }
    }
}

/// The same scan every night, from somebody who also has a nightly job of its own.
fn daily_scan(b: &mut Builder, ns: &str) {
    let (scanner, target) = (b.workload(&format!("{ns}/auditor")), b.workload(&format!("{ns}/audited")));
    b.needs(&scanner, &target, TCP, 8443, Rhythm::Every(24, 5));
    for day in 0..DAYS {
        let time = START + day * DAY + 2 * HOUR;
        for port in 1..=60 {
            let fate = if port % 20 == 0 { Fate::Established } else { Fate::Refused };
            b.connections(&scanner, &target, TCP, port, time + u64::from(port), 1, fate);
        }
    }
}

/// High ports: of clients, which answers are sent to; of servers, which come and go; and one that is a service's own.
fn ephemeral(b: &mut Builder, ns: &str) {
    let (files, grpc) = (b.workload(&format!("{ns}/files")), b.workload(&format!("{ns}/grpc")));
    for client in many(b, ns, "reader", 3, 6) {
        b.needs(&client, &files, TCP, 21, Rhythm::Hourly(2));
        b.needs(&client, &grpc, TCP, 50_051, Rhythm::Hourly(9));
        for hour in 0..40 {
            let port = b.random.u16(49_152..=65_535);
            b.traffic(&client, &files, TCP, port, Rhythm::At(hour * 5, 1), Fate::Established);
        }
        b.needs(&client, &files, UDP, 2049, Rhythm::Hourly(20));
        for hour in 0..30 {
            let port = b.random.u16(32_768..61_000);
            b.traffic(&files, &client, UDP, port, Rhythm::At(hour * 7, 1), Fate::Established);
        }
    }
}

fn datagrams(b: &mut Builder, ns: &str) {
    let (log, time) = (b.workload(&format!("{ns}/log")), b.workload(&format!("{ns}/clock")));
    for service in many(b, ns, "speaker", 4, 9) {
        b.needs_of(&service, &log, UDP, 514);
        b.datagrams(&service, &log, 514, Rhythm::Hourly(80));
        b.needs(&service, &End::Class("node-dns"), UDP, 53, Rhythm::Hourly(30));
        b.needs(&service, &time, UDP, 123, Rhythm::Every(4, 1));
        b.needs(&service, &log, ICMP, 0, Rhythm::Hourly(1));
    }
}

fn replicas(b: &mut Builder, ns: &str) {
    let cluster = b.workload(&format!("{ns}/cluster"));
    b.needs(&cluster, &cluster, TCP, 7946, Rhythm::Hourly(60));
    b.needs(&cluster, &cluster, UDP, 7946, Rhythm::Hourly(600));
    let both = b.with_ids(ns, &[&format!("spiffe://example.org/{ns}/old"), &format!("spiffe://example.org/{ns}/new")]);
    b.needs(&both, &cluster, TCP, 8300, Rhythm::Hourly(4));
    let plain = b.workload(&format!("{ns}-plain"));
    b.needs(&plain, &both, TCP, 8301, Rhythm::Hourly(4));
}

fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

fn outside_steady(b: &mut Builder, ns: &str) {
    let client = b.workload(&format!("{ns}/payer"));
    let last = b.random.u8(1..250);
    b.needs(&client, &End::World(v4(198, 51, 100, last), Some("bank.example")), TCP, 443, Rhythm::Hourly(7));
    b.needs(&client, &End::World(v4(203, 0, 113, last), None), TCP, 22, Rhythm::Every(24, 4));
    b.needs(&client, &End::Class("kube-apiserver"), TCP, 6443, Rhythm::Hourly(7));
}

/// One name whose addresses change from day to day, near each other or all over the world.
fn outside_rotating(b: &mut Builder, ns: &str) {
    let (near, far) = (b.workload(&format!("{ns}/near")), b.workload(&format!("{ns}/far")));
    for day in 0..2 * DAYS {
        let n = u8::try_from(day).expect("few days");
        for hour in 0..24 {
            let rhythm = Rhythm::At(day * 24 + hour, 5);
            b.needs(&near, &End::World(v4(203, 0, 113, 10 + n), Some("near.example")), TCP, 443, rhythm);
            b.needs(&far, &End::World(v4(100 + n, 7, n, 9), Some("far.example")), TCP, 443, rhythm);
        }
    }
}

fn outside_v6(b: &mut Builder, ns: &str) {
    let client = b.workload(&format!("{ns}/six"));
    let steady: Ipv6Addr = "2001:db8:1::53".parse().expect("an address");
    b.needs(&client, &End::World(steady.into(), None), UDP, 853, Rhythm::Hourly(3));
    for day in 0..2 * DAYS {
        let n = u16::try_from(day).expect("few days");
        let address = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 1, n + 1);
        b.needs(&client, &End::World(address.into(), Some("six.example")), TCP, 443, Rhythm::At(day * 24 + 3, 40));
    }
}

fn public(b: &mut Builder, ns: &str) {
    let web = b.workload(&format!("{ns}/web"));
    for _ in 0..60 {
        let address = v4(b.random.u8(20..90), b.random.u8(..), b.random.u8(..), 1);
        let hour = b.random.u64(0..2 * DAYS * 24);
        b.needs(&End::World(address, None), &web, TCP, 443, Rhythm::At(hour, 3));
    }
    b.needs(&End::Class("host"), &web, TCP, 8081, Rhythm::Hourly(360));
}

/// Ends that weren't known when they were seen: at the start, before the agent knew who was where.
fn strangers(b: &mut Builder, ns: &str) {
    let (one, two) = (b.workload(&format!("{ns}/early")), b.workload(&format!("{ns}/bird")));
    b.needs(&one, &two, TCP, 8080, Rhythm::Hourly(5));
    b.traffic(&one, &End::Class("unknown"), TCP, 8080, Rhythm::At(0, 3), Fate::Established);
    b.traffic(&End::Class("unknown-workload"), &two, TCP, 8080, Rhythm::At(0, 3), Fate::Established);
}

/// What every estate has: somebody's slips, on which nothing depends, and a job that runs after the window only.
fn slips(b: &mut Builder, ns: &str) {
    let (admin, target) = (b.workload(&format!("{ns}/admin")), b.workload(&format!("{ns}/target-of-slips")));
    b.needs(&admin, &target, TCP, 22, Rhythm::Office(1));
    let quarterly = b.workload(&format!("{ns}/quarterly"));
    let late = b.random.u64(DAYS * 24..2 * DAYS * 24);
    b.needs(&quarterly, &target, TCP, 5432, Rhythm::At(late, 12));
    for n in 0..3 {
        let hour = b.random.u64(0..DAYS * 24);
        b.traffic(&admin, &target, TCP, 3000 + n, Rhythm::At(hour, 1), Fate::Established);
    }
    let hour = b.random.u64(0..DAYS * 24);
    b.traffic(
        &admin,
        &End::World(v4(192, 0, 2, 200), Some("evil.example")),
        TCP,
        443,
        Rhythm::At(hour, 1),
        Fate::Established,
    );
}
