//! What is newly denied and newly allowed, with counts.

use super::*;
use crate::history::{Counts, Link};
use crate::policy::parse;

fn name(id: &str) -> PeerName {
    PeerName { id: id.to_owned(), namespace: String::new() }
}

fn record(to: &str, port: u16, established: u64) -> Record {
    Record {
        link: Link { source: name("spiffe://t/a"), destination: name(to), protocol: 6, port },
        outcome: "allowed".to_owned(),
        reason: "posture".to_owned(),
        address: None,
        name: None,
        counts: Counts { attempts: 9, established, ..Counts::default() },
        first: 5,
        last: 7,
        hours: 1,
        days: 1,
        by_destination: false,
        source_executables: BTreeSet::new(),
        destination_executables: BTreeSet::new(),
    }
}

fn set(mode: &str, port: u16) -> PolicySet {
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: p}}\nspec:\n  mode: {mode}\n  \
         edges: [{{from: [{{id: \"spiffe://t/a\"}}], to: [{{id: \"spiffe://t/b\"}}], ports: [{{port: {port}}}]}}]\n"
    );
    parse("f.yaml", &text).expect("good").into_iter().collect()
}

#[test]
fn differences_are_told_with_counts_and_the_rule() {
    let records = vec![
        record("spiffe://t/b", 1, 4),
        record("spiffe://t/b", 1, 3),
        record("spiffe://t/b", 2, 0),
        record("spiffe://t/b", 3, 5),
        record("identity-9", 3, 5),
    ];
    let history = History { records, ..History::default() };
    let name = |id: &str| crate::identity::Identity {
        namespace: String::new(),
        ids: BTreeSet::from([id.parse().expect("an ID")]),
    };
    let mut cast = Cast::of(&Inventory::default(), []);
    for id in ["spiffe://t/a", "spiffe://t/b"] {
        cast.add(name(id), Posture::Enforce);
    }
    let s = simulate(&history, &set("enforce", 1), &set("audit", 2), cast.inventory(), &Under::Present);
    let told = |v: &[Verdict]| v.iter().map(|v| (v.port, v.attempts, v.established)).collect::<Vec<_>>();
    assert_eq!(told(&s.newly_denied), [(1, 18, 7)]);
    assert_eq!(s.newly_denied[0].reason, "no-egress-rule");
    assert_eq!(told(&s.newly_allowed), [(2, 9, 0)]);
    assert_eq!(
        s.newly_allowed[0].rule.as_ref().map(ToString::to_string).as_deref(),
        Some("ClusterSegmentationPolicy p edges[0]")
    );
    assert_eq!(told(&s.still_denied), [(3, 9, 5)]);
    assert_eq!((s.links, s.unjudged), (3, 1));
}

#[test]
fn enforcing_what_is_only_audited_so_far_shows_what_it_would_cut() {
    let history = History { records: vec![record("spiffe://t/b", 9, 1)], ..History::default() };
    let audit = set("audit", 1);
    let s = |under: &Under| simulate(&history, &audit, &audit, &Inventory::default(), under).newly_denied.len();
    assert_eq!((s(&Under::Present), s(&Under::Enforce)), (0, 1));
}

#[test]
fn nothing_is_denied_to_those_who_are_only_observed() {
    let history = History { records: vec![record("spiffe://t/b", 9, 1)], ..History::default() };
    let sets = (set("enforce", 1), set("enforce", 2));
    let under = |under: &Under| simulate(&history, &sets.0, &sets.1, &Inventory::default(), under).newly_denied.len();
    assert_eq!((under(&Under::Present), under(&Under::Enforce)), (0, 1));
    let only = |id: &str| Under::Only(BTreeSet::from([id.parse().expect("an ID")]));
    assert_eq!((under(&only("spiffe://t/a")), under(&only("spiffe://t/c"))), (1, 0));
}
