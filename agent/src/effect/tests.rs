//! What is gained and lost, against judging every pair and port by the reference.

use super::*;
use crate::policy::parse;
use crate::policy::reference::{self, Connection};
use bulkhead_common::Outcome;
use proptest::prelude::*;
use proptest::sample::select;

fn set(text: &str) -> PolicySet {
    parse("f.yaml", text).unwrap_or_else(|e| panic!("{text}\n{e:?}")).into_iter().collect()
}

fn cluster(spec: &str) -> PolicySet {
    let head = "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {name: p}\n";
    set(&format!("{head}spec:\n  mode: audit\n{spec}"))
}

fn words(list: &[Permission]) -> Vec<String> {
    let word = |p: &Permission| {
        let Permission { source, destination, protocol, first, last } = p;
        format!("{} {} {protocol}/{first}-{last}", source.id, destination.id)
    };
    list.iter().map(word).collect()
}

#[test]
fn the_same_said_otherwise_is_no_change() {
    let one = cluster(
        "  edges: [{from: [{id: \"spiffe://t/a\"}], to: [{id: \"spiffe://t/b\"}], ports: [{port: 1, endPort: 4}]}]",
    );
    let other = cluster(
        "  edges:\n    - {from: [{id: \"spiffe://t/a\"}], to: [{id: \"spiffe://t/b\"}], ports: [{port: 3, endPort: 4}]}\n    \
         - {from: [{id: \"spiffe://t/a\"}], to: [{id: \"spiffe://t/b\"}], ports: [{port: 1}, {port: 2}]}",
    );
    assert!(compare(&one, &other, &Inventory::default()).is_empty());
    let nothing = compare(&one, &PolicySet::default(), &Inventory::default());
    assert_eq!((words(&nothing.lost), nothing.gained.len()), (vec!["spiffe://t/a spiffe://t/b 6/1-4".to_owned()], 0));
}

#[test]
fn ranges_are_merged_and_denies_cut_them() {
    let open = "  edges: [{from: [{id: \"spiffe://t/a\"}], to: [{id: \"spiffe://t/b\"}, {cidr: 10.0.0.0/8}], ports: [{protocol: TCP}]}]";
    let shut = format!(
        "{open}\n  denies: [{{from: [{{id: \"spiffe://**\"}}], to: [{{id: \"spiffe://t/b\"}}], ports: [{{port: 20, endPort: 29}}]}}]"
    );
    let change = compare(&cluster(open), &cluster(&shut), &Inventory::default());
    assert_eq!(words(&change.lost), ["spiffe://t/a spiffe://t/b 6/20-29"]);
    let change = compare(&PolicySet::default(), &cluster(&shut), &Inventory::default());
    assert_eq!(
        words(&change.gained),
        [
            "spiffe://t/a 10.0.0.0/8 6/0-65535",
            "spiffe://t/a spiffe://t/b 6/0-19",
            "spiffe://t/a spiffe://t/b 6/30-65535"
        ]
    );
}

const PEERS: [&str; 7] = [
    "id: \"spiffe://t/a\"",
    "id: \"spiffe://t/b\"",
    "id: \"spiffe://t/c\"",
    "id: \"spiffe://**\"",
    "class: world",
    "cidr: 10.0.0.0/8",
    "cidr: 10.1.0.0/16",
];

fn spec() -> impl Strategy<Value = String> {
    let ports = select(vec![
        "",
        ", ports: [{port: 3}]",
        ", ports: [{port: 2, endPort: 6}, {protocol: UDP, port: 4}]",
        ", ports: [{protocol: ICMP}]",
    ]);
    let item = (select(&PEERS[..]), select(&PEERS[..]), ports, any::<bool>());
    prop::collection::vec(item, 1..5).prop_map(|items| {
        let of = |deny: bool| {
            let chosen = items.iter().filter(|i| i.3 == deny);
            let texts: Vec<String> =
                chosen.map(|(from, to, ports, _)| format!("{{from: [{{{from}}}], to: [{{{to}}}]{ports}}}")).collect();
            let name = if deny { "denies" } else { "edges" };
            if texts.is_empty() { String::new() } else { format!("  {name}: [{}]\n", texts.join(", ")) }
        };
        format!("{}{}", of(false), of(true))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn it_says_what_the_reference_says_of_each_port(before in spec(), after in spec()) {
        let sets = [cluster(&before), cluster(&after)];
        let mut cast = Cast::of(&Inventory::default(), []);
        for id in ["spiffe://t/a", "spiffe://t/b", "spiffe://t/c"] {
            stranger(&mut cast, id, None);
        }
        let everybody = cast.under(|_| Posture::Enforce);
        let change = compare(&sets[0], &sets[1], &everybody);
        let ends: Vec<(String, reference::End<'_>)> = everybody
            .identities
            .values()
            .map(|f| (f.identity.to_string(), reference::End::Workload(f)))
            .chain([("10.0.0.0/8", "10.9.0.1"), ("10.1.0.0/16", "10.1.0.1"), ("world", "192.0.2.1")].map(|(name, a)| {
                (name.to_owned(), reference::End::World(a.parse().expect("an address")))
            }))
            .collect();
        let text = format!("{before}{after}");
        for (from, a) in &ends {
            for (to, b) in ends.iter().filter(|(to, _)| from.starts_with("spiffe") || to.starts_with("spiffe")) {
                // A part that neither set names is no end of its own.
                if [from, to].iter().any(|n| n.contains('/') && n.starts_with("10.") && !text.contains(n.as_str())) {
                    continue;
                }
                for (protocol, port) in [(1, 0), (6, 1), (6, 2), (6, 3), (6, 6), (6, 7), (17, 4), (17, 5), (6, 65_535)] {
                    let allows = |set: &PolicySet| {
                        let c = Connection { from: *a, to: *b, proto: protocol, port };
                        let outcome = reference::judge(set, &everybody, &c).outcome;
                        matches!(outcome, Outcome::Allowed | Outcome::WouldAllow)
                    };
                    let told = |list: &[Permission]| list.iter().any(|p| {
                        (&p.source.id, &p.destination.id, p.protocol) == (from, to, protocol)
                            && (p.first..=p.last).contains(&port)
                    });
                    let (was, is) = (allows(&sets[0]), allows(&sets[1]));
                    prop_assert_eq!((told(&change.gained), told(&change.lost)), (is && !was, was && !is),
                        "{} {} {}/{}\n{}\n{}\n{:?}", from, to, protocol, port, before, after, change);
                }
            }
        }
    }
}
