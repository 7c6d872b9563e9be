//! What becomes a rule and what doesn't, and that the rules let through what they rest on, by the reference evaluator.

mod marks;
mod random;

use super::*;
use crate::history::{Counts, Link, Record};
use crate::inventory::IdentityFacts;
use crate::policy::reference::{self, Connection};
use crate::policy::{PolicySet, parse};
use bulkhead_common::{Addr, Outcome, proto};
use std::net::IpAddr;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// The window's begin: midnight, 2026-01-01.
const START: u64 = 1_767_225_600_000;

fn name(text: &str) -> PeerName {
    match text.split_once('/') {
        Some((namespace, service)) => PeerName {
            id: format!("spiffe://example.org/ns/{namespace}/sa/{service}"),
            namespace: namespace.to_owned(),
        },
        None => PeerName { id: text.to_owned(), namespace: String::new() },
    }
}

/// Seen each hour of the window, unless a test says otherwise.
fn record(from: &str, to: &str, protocol: u8, port: u16) -> Record {
    Record {
        link: Link { source: name(from), destination: name(to), protocol, port },
        outcome: "allowed".to_owned(),
        reason: "posture".to_owned(),
        address: None,
        name: None,
        counts: Counts { attempts: 1000, established: 1000, ..Counts::default() },
        first: START,
        last: START + 14 * DAY - 1,
        hours: 336,
        days: 14,
        by_destination: false,
        source_executables: BTreeSet::new(),
        destination_executables: BTreeSet::new(),
    }
}

/// The same, seen so often in one hour.
fn once(record: Record, established: u64) -> Record {
    let counts = Counts { attempts: established.max(1), established, ..Counts::default() };
    let first = START + 5 * DAY;
    Record { counts, first, last: first + 1000, hours: 1, days: 1, ..record }
}

fn history(records: Vec<Record>) -> History {
    let window = Window { from: START, to: START + 14 * DAY, watched: 14 * DAY, unattributed: 0 };
    History { window, records, ..History::default() }
}

fn suggestion(records: Vec<Record>) -> Suggestion {
    suggested(records, &PolicySet::default(), &Wish::default())
}

fn suggested(records: Vec<Record>, existing: &PolicySet, wish: &Wish) -> Suggestion {
    let s = suggest(&history(records), existing, &Inventory::default(), wish).expect("a suggestion");
    assert_eq!(s.proof.false_denies, [], "{:#?}", s.files);
    s
}

fn policies(text: &str) -> PolicySet {
    parse("existing.yaml", text).expect("good policies").into_iter().collect()
}

/// Each rule in short: `shop/cart egress orders TCP/8080`.
fn rules(s: &Suggestion) -> Vec<String> {
    let short = |text: &str| text.replace("spiffe://example.org/ns/", "").replace("/sa/", "/");
    let half = |r: &SuggestedRule| if r.half == Half::Egress { "egress" } else { "ingress" };
    s.rules.iter().map(|r| format!("{} {} {} {}", short(&r.workload.id), half(r), short(&r.peer), r.port)).collect()
}

fn apart(s: &Suggestion) -> Vec<(Apart, u16)> {
    s.apart.iter().map(|a| (a.why, a.link.port)).collect()
}

#[test]
fn each_link_needs_both_halves_and_replicas_need_them_too() {
    let s = suggestion(vec![
        record("shop/cart", "shop/orders", 6, 8080),
        record("shop/orders", "shop/orders", 17, 7946),
        record("shop/orders", "data/db", 6, 5432),
        record("shop/orders", "node-dns", 17, 53),
        record("host", "data/db", 6, 9000),
    ]);
    assert_eq!(
        rules(&s),
        [
            "data/db ingress shop/orders TCP/5432",
            "data/db ingress host TCP/9000",
            "shop/cart egress shop/orders TCP/8080",
            "shop/orders ingress shop/cart TCP/8080",
            "shop/orders ingress shop/orders UDP/7946",
            "shop/orders egress data/db TCP/5432",
            "shop/orders egress shop/orders UDP/7946",
            "shop/orders egress node-dns UDP/53",
        ]
    );
    assert_eq!(s.files.iter().map(|f| f.file.as_str()).collect::<Vec<_>>(), ["data.yaml", "shop.yaml"]);
    assert_eq!((s.proof.links, s.proof.surplus.never_seen, s.proof.surplus.share), (5, 0, 0.0));
    assert!(s.apart.is_empty() && s.unseen.is_empty() && s.unused.is_empty());
}

#[test]
fn what_policies_allow_already_gets_no_rule_and_what_nobody_used_is_listed() {
    let existing = policies(
        r#"
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentationPolicy
metadata: {name: learned-cart, namespace: shop}
spec:
  mode: enforce
  selector: {ids: ["spiffe://example.org/ns/shop/sa/cart"]}
  egress:
    rules:
      - to: [{id: "spiffe://example.org/ns/shop/**"}, {class: world}]
        ports: [{port: 8080}, {port: 9090}]
      - to: [{class: metadata}]
        ports: [{port: 80}]
"#,
    );
    let s = suggested(vec![record("shop/cart", "shop/orders", 6, 8080)], &existing, &Wish::default());
    assert_eq!(rules(&s), ["shop/orders ingress shop/cart TCP/8080"]);
    let text = &s.files[0].text;
    assert!(text.contains("name: learned-cart-2\n") && text.contains("name: learned-orders\n"), "{text}");
    assert!(text.contains("  ingress: {}\n"), "what isn't isolated yet is closed: {text}");
    let unused: Vec<_> = s.unused.iter().map(|u| (u.line, u.rule.as_str(), u.what.as_str())).collect();
    let rule = |n: u8| format!("SegmentationPolicy shop/learned-cart egress[{n}]");
    assert_eq!(
        unused,
        [
            (10, rule(0).as_str(), "to world"),
            (11, rule(0).as_str(), "on TCP/9090"),
            (12, rule(1).as_str(), "all of it"),
        ]
    );
}

#[test]
fn a_deny_that_exists_wins_and_its_link_is_set_apart() {
    let existing = policies(
        r#"
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: guard}
spec:
  mode: audit
  denies: [{from: [{id: "spiffe://example.org/ns/shop/**"}], to: [{id: "spiffe://example.org/ns/data/**"}]}]
"#,
    );
    let s = suggested(vec![record("shop/cart", "data/db", 6, 5432)], &existing, &Wish::default());
    assert_eq!((rules(&s), apart(&s)), (vec![], vec![(Apart::DenyRule, 5432)]));
}

#[test]
fn a_boundary_for_one_identity_names_nobody_elses_halves() {
    let only = BTreeSet::from(["spiffe://example.org/ns/shop/sa/orders".parse().expect("an ID")]);
    let wish = Wish { only, ..Wish::default() };
    let records = vec![
        record("shop/cart", "shop/orders", 6, 8080),
        record("shop/orders", "data/db", 6, 5432),
        record("shop/cart", "data/db", 6, 5432),
    ];
    let s = suggested(records.clone(), &PolicySet::default(), &wish);
    assert_eq!(rules(&s), ["shop/orders ingress shop/cart TCP/8080", "shop/orders egress data/db TCP/5432"]);
    assert_eq!(s.proof.links, 2);
    let nobody = Wish { only: BTreeSet::from(["spiffe://example.org/x".parse().expect("an ID")]), ..Wish::default() };
    let refused = suggest(&history(records), &PolicySet::default(), &Inventory::default(), &nobody);
    assert!(refused.expect_err("nobody").to_string().contains("spiffe://example.org/x"));
}

#[test]
fn an_empty_window_and_lost_counts_are_refused_in_a_sentence() {
    let ask = |h: &History, wish: &Wish| suggest(h, &PolicySet::default(), &Inventory::default(), wish);
    let empty = ask(&history(vec![]), &Wish::default()).expect_err("nothing").to_string();
    assert!(empty.contains("nothing was seen from 2026-01-01 00:00Z to 2026-01-15 00:00Z"), "{empty}");
    let mut lossy = history(vec![record("shop/cart", "shop/orders", 6, 80)]);
    lossy.window.unattributed = 7;
    let refused = ask(&lossy, &Wish::default()).expect_err("losses").to_string();
    assert!(refused.starts_with("7 connections") && refused.contains("--despite-losses"), "{refused}");
    let wish = Wish { despite_losses: true, ..Wish::default() };
    assert!(ask(&lossy, &wish).expect("warned").notes[0].starts_with("7 connections"));
}

#[test]
fn the_same_history_in_any_order_gives_the_same_files() {
    let mut records = vec![
        record("shop/cart", "shop/orders", 6, 8080),
        record("shop/orders", "data/db", 6, 5432),
        record("cart", "shop/orders", 6, 80),
        record("shop/cart", "data/db", 6, 5432),
    ];
    let files = suggestion(records.clone()).files;
    records.reverse();
    assert_eq!(suggestion(records).files, files);
}

#[test]
fn what_strangers_chose_stays_in_comments() {
    let evil = "x\n      - to: [{class: world}]\n---\u{1b}[2J\u{202e}";
    let mut inside = record("shop/cart", "shop/orders", 6, 8080);
    inside.source_executables.insert(evil.to_owned());
    let mut outside = record("shop/cart", "world", 6, 443);
    outside.address = Some(IpAddr::from([203, 0, 113, 7]));
    outside.name = Some(evil.to_owned());
    let s = suggestion(vec![inside, outside]);
    let text = &s.files[0].text;
    assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 100 || !l.trim_start().starts_with('#')), "{text}");
    let ours = parse("f", text).expect("good");
    assert_eq!(ours.len(), 2);
    assert!(!rules(&s).iter().any(|r| r.contains("world")), "{:?}", rules(&s));
}

#[test]
fn nobody_gets_a_policy_in_a_namespace_that_cant_be_written() {
    let mut bad = record("shop/cart", "shop/orders", 6, 8080);
    bad.link.source.namespace = "a\"\nb".to_owned();
    let refused = suggest(&history(vec![bad]), &PolicySet::default(), &Inventory::default(), &Wish::default());
    let s = refused.expect("a suggestion");
    assert_eq!(rules(&s), ["shop/orders ingress shop/cart TCP/8080"]);
    assert!(s.notes[0].contains("can't be a policy's namespace") && !s.notes[0].contains('\n'), "{:?}", s.notes);
    assert_eq!(s.proof.false_denies.len(), 1, "and what that means is said");
}

#[test]
fn identities_of_which_nothing_was_seen_are_named() {
    let identity = Identity {
        namespace: "shop".to_owned(),
        ids: BTreeSet::from(["spiffe://example.org/ns/shop/sa/batch".parse().expect("an ID")]),
    };
    let facts = IdentityFacts { identity, posture: Posture::Observe, ports: BTreeMap::new() };
    let inventory = Inventory { identities: BTreeMap::from([(PeerId::FIRST_IDENTITY, facts)]), ..Inventory::default() };
    let records = vec![record("shop/cart", "shop/orders", 6, 8080)];
    let s = suggest(&history(records), &PolicySet::default(), &inventory, &Wish::default()).expect("a suggestion");
    assert_eq!(s.unseen, [name("shop/batch")]);
}

/// Judged by the reference evaluator and nothing of ours: everybody under enforce.
fn reference_allows(s: &Suggestion, r: &Record) -> bool {
    let cast = Cast::of(&Inventory::default(), [&r.link.source, &r.link.destination]);
    let everybody = cast.under(|_| Posture::Enforce);
    let widened = |a: IpAddr| match a {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr(v6.octets()),
    };
    let end = |n: &PeerName| match (n.id.as_str(), r.address) {
        ("world", Some(a)) => reference::at_address(&everybody, &widened(a), r.link.protocol, r.link.port),
        _ => reference::end(&everybody, cast.peer(n).expect("somebody")),
    };
    let (from, to) = (end(&r.link.source).expect("an end"), end(&r.link.destination).expect("an end"));
    let c = Connection { from, to, proto: proto::judged(r.link.protocol), port: r.link.port };
    let outcome = reference::judge(&s.policies, &everybody, &c).outcome;
    matches!(outcome, Outcome::Allowed | Outcome::WouldAllow)
}
