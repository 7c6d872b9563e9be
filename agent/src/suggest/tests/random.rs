//! Over any history: what isn't set apart passes, by the reference evaluator; and nothing is allowed that wasn't seen,
//! but for what the surplus counts.

use super::*;
use crate::effect;
use proptest::prelude::*;
use proptest::sample::select;

const NAMES: [&str; 9] = ["shop/a", "shop/b", "shop/c", "data/a", "data/d", "world", "host", "unknown", "node-dns"];
const PORTS: [u16; 8] = [53, 80, 443, 8080, 33_000, 40_000, 50_051, 60_000];
const ADDRESSES: [&str; 7] =
    ["203.0.113.1", "203.0.113.2", "198.51.100.1", "192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8:1::1"];

fn records() -> impl Strategy<Value = Vec<Record>> {
    let counts = (0u64..4, 0u64..40, 0u64..3, 0u64..3);
    let link = (select(&NAMES[..]), select(&NAMES[..]), select(vec![1u8, 6, 17]), select(&PORTS[..]));
    let extra = (
        select(vec!["allowed", "would-deny", "denied", "would-allow"]),
        prop::option::of(select(&ADDRESSES[..])),
        prop::option::of(select(vec!["a.example", "b.example"])),
        1u32..30,
        1u32..14,
    );
    let one = (link, counts, extra).prop_map(|((from, to, proto, port), (few, many, sent, back), extra)| {
        let (outcome, address, dns, hours, days) = extra;
        let mut r = record(from, to, proto, if proto == proto::ICMP { 0 } else { port });
        let established = if outcome == "allowed" || outcome == "would-deny" { few * many } else { 0 };
        r.counts = Counts { attempts: few * many + few, established, ..Counts::default() };
        (r.counts.packets_sent, r.counts.packets_received) = (sent, back);
        r.outcome = outcome.to_owned();
        if from == "world" || to == "world" {
            r.address = address.map(|a| a.parse().expect("an address"));
            r.name = dns.map(str::to_owned);
        }
        r.last = r.first + u64::from(hours) * HOUR - 1;
        (r.hours, r.days) = (hours, days.min(hours));
        r
    });
    prop::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_is_not_set_apart_passes_and_nothing_unseen_is_silent(records in records(), keep_once: bool) {
        let wish = Wish { keep_once, ..Wish::default() };
        let s = suggest(&history(records.clone()), &PolicySet::default(), &Inventory::default(), &wish)
            .expect("a suggestion");
        prop_assert_eq!(&s.proof.false_denies, &[]);
        let workload = |n: &PeerName| n.id.starts_with("spiffe:");
        for r in records.iter().filter(|r| workload(&r.link.source) || workload(&r.link.destination)) {
            let is = |a: &&SetApart| {
                let LinkName { source, destination, protocol, port, address, .. } = &a.link;
                (source, destination, *protocol, *port)
                    == (&r.link.source, &r.link.destination, r.link.protocol, r.link.port)
                    && address.is_none_or(|a| Some(a) == r.address)
            };
            if r.counts.established > 0 && !s.apart.iter().any(|a| is(&a)) {
                prop_assert!(reference_allows(&s, r), "{:?}\n{:#?}", r, s.files);
            }
        }

        let names = records.iter().flat_map(|r| [&r.link.source, &r.link.destination]);
        let cast = Cast::of(&Inventory::default(), names);
        let change = effect::compare(&PolicySet::default(), &s.policies, cast.inventory());
        prop_assert!(change.lost.is_empty());
        let mut unseen = 0;
        for p in &change.gained {
            let general = |n: &PeerName| if n.id.contains('.') && !workload(n) || n.id.contains(':') && !workload(n) {
                name("world")
            } else {
                n.clone()
            };
            for port in p.first..=p.last {
                let seen = records.iter().any(|r| {
                    r.counts.established > 0
                        && (&r.link.source, &r.link.destination) == (&general(&p.source), &general(&p.destination))
                        && (r.link.protocol, r.link.port) == (p.protocol, port)
                });
                unseen += u64::from(!seen);
            }
        }
        prop_assert!(unseen <= s.proof.surplus.never_seen, "{} unseen, {:?}", unseen, s.proof.surplus);
    }
}
