//! The report against the verdict on every port, and the numbers of small estates.

use super::*;
use crate::identity::Identity;
use crate::inventory::{IdentityFacts, Posture};
use crate::policy::{self, PolicySet, RuleTable};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn inventory(posture: Posture, names: &[&str]) -> Inventory {
    let facts = |name: &str| IdentityFacts {
        identity: Identity {
            namespace: String::new(),
            ids: BTreeSet::from([format!("spiffe://t/{name}").parse().expect("an ID")]),
        },
        posture,
        ports: BTreeMap::new(),
    };
    let numbered = names.iter().zip(256..).map(|(name, n)| (PeerId(n), facts(name)));
    Inventory { identities: numbered.collect(), ..Inventory::default() }
}

fn compiled(policies: &str, inventory: &Inventory) -> Image {
    let documents = policy::read("p.yaml", policies);
    let (set, findings) = PolicySet::assemble(documents, &PolicySet::default());
    assert!(findings.is_empty(), "{findings:?}");
    policy::compile(&set, inventory, &mut RuleTable::default()).image
}

fn edges(mode: &str, edges: &[(&str, &str, &str)]) -> String {
    let edge = |(from, to, ports): &(&str, &str, &str)| {
        format!("  - {{from: [{{id: \"spiffe://t/{from}\"}}], to: [{{id: \"spiffe://t/{to}\"}}], ports: [{ports}]}}\n")
    };
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: p}}\nspec:\n  \
         mode: {mode}\n  edges:\n{}",
        edges.iter().map(edge).collect::<String>()
    )
}

const TCP: &str = "{protocol: TCP, port: 80}";

#[test]
fn a_chain_is_reached_to_its_end_and_a_flat_network_whole() {
    let names = ["a", "b", "c", "d"];
    let flat = inventory(Posture::Observe, &names);
    let s = report(&compiled("", &flat), &flat).surface;
    assert_eq!((s.pairs, s.direct, s.reachable), (12, 12, 12));
    assert!((s.now() - 1.0).abs() < 1e-9);

    let strict = inventory(Posture::Enforce, &names);
    assert_eq!(report(&compiled("", &strict), &strict).surface.reachable, 0);
    let chain = edges("enforce", &[("a", "b", TCP), ("b", "c", TCP)]);
    let r = report(&compiled(&chain, &strict), &strict);
    assert_eq!((r.surface.direct, r.surface.reachable), (2, 3));
    let told: Vec<_> =
        r.identities.iter().map(|r| (r.identity.id.as_str(), r.direct.len(), r.reachable, r.exposed_to)).collect();
    assert_eq!(
        told,
        [("spiffe://t/a", 1, 2, 0), ("spiffe://t/b", 1, 1, 1), ("spiffe://t/c", 0, 0, 1), ("spiffe://t/d", 0, 0, 0)]
    );
    // A circle reaches everything in it, and nobody reaches itself.
    let circle = edges("enforce", &[("a", "b", TCP), ("b", "c", TCP), ("c", "a", TCP)]);
    assert_eq!(report(&compiled(&circle, &strict), &strict).surface.reachable, 6);
}

#[test]
fn what_is_audited_is_told_beside() {
    let audit = inventory(Posture::Audit, &["a", "b", "c"]);
    let r = report(&compiled(&edges("audit", &[("a", "b", TCP)]), &audit), &audit);
    assert_eq!((r.surface.reachable, r.surface.audited_reachable), (6, 1));
    assert!((r.surface.now() - 1.0).abs() < 1e-9 && (r.surface.audited() - 1.0 / 6.0).abs() < 1e-9);
    assert!(r.identities[0].outside.contains(&"world".to_owned()));
}

#[test]
fn nobody_and_one_alone_have_no_surface() {
    for names in [&[][..], &["a"][..]] {
        let inventory = inventory(Posture::Observe, names);
        let s = report(&compiled("", &inventory), &inventory).surface;
        assert_eq!((s.pairs, s.reachable), (0, 0));
        assert!(s.now().abs() < 1e-9);
    }
}

#[test]
fn every_port_is_thought_of() {
    let names = ["a", "b", "c"];
    for ports in [
        TCP,
        "{protocol: UDP, port: 65535}",
        "{protocol: SCTP, port: 1}",
        "{protocol: TCP, port: 1000, endPort: 1999}",
        "{protocol: UDP, port: 1, endPort: 65535}",
    ] {
        for posture in [Posture::Observe, Posture::Audit, Posture::Enforce] {
            let inventory = inventory(posture, &names);
            let text = edges("enforce", &[("a", "b", ports), ("*", "c", ports)]).replace("t/*", "**");
            let image = compiled(&text, &inventory);
            for (from, to) in [(256, 257), (257, 256), (257, 258), (258, 257)] {
                let (src, dst) = (PeerId(from), PeerId(to));
                let got = open(&image, src, dst);
                let on = |proto: u8, port: u16| judge(&image, &Flow { src, dst, proto, port });
                let all = PROTOCOLS.iter().flat_map(|proto| (1..=u16::MAX).map(|port| on(*proto, port)));
                let truth = all.fold((false, false), |t, j| (t.0 | j.sides.now(), t.1 | j.sides.audited()));
                assert_eq!((got.now, got.audited), truth, "{ports} from {from} to {to} in {posture:?}");
            }
        }
    }
}

proptest! {
    /// Steps through the matrix reach what a search from each row reaches.
    #[test]
    fn the_closure_is_what_a_search_finds(size in 1_usize..80, edges in proptest::collection::vec((0_usize..80, 0_usize..80), 0..160)) {
        let mut m = Matrix::new(size);
        for (a, b) in edges.iter().filter(|(a, b)| a != b && *a < size && *b < size) {
            m.set(*a, *b);
        }
        let closure = m.closure();
        for start in 0..size {
            let mut seen = BTreeSet::new();
            let mut next = vec![start];
            while let Some(at) = next.pop() {
                next.extend(m.row(at).filter(|to| seen.insert(*to)));
            }
            seen.remove(&start);
            prop_assert_eq!(closure.row(start).collect::<BTreeSet<_>>(), seen);
        }
    }
}

/// Each node tells of those that run there; together they say what one that has them all says.
#[test]
fn what_nodes_report_is_put_together() {
    let names = ["a", "b", "c", "d"];
    let all = inventory(Posture::Enforce, &names);
    let policies = edges("enforce", &[("a", "b", TCP), ("b", "c", TCP)])
        + "---\n"
        + &edges("audit", &[("c", "d", TCP)]).replace("name: p", "name: q");
    let whole = report(&compiled(&policies, &all), &all);
    let node = |here: &[&str]| {
        let is_here = |f: &IdentityFacts| here.iter().any(|n| f.identity.to_string().ends_with(n));
        let elsewhere = all.identities.iter().filter(|(_, f)| !is_here(f)).map(|(peer, _)| *peer).collect();
        let inventory = Inventory { elsewhere, ..all.clone() };
        report(&compiled(&policies, &inventory), &inventory)
    };
    let (one, two) = (node(&["a", "c"]), node(&["b", "d"]));
    assert_eq!((one.surface.identities, one.surface.reachable), (2, 1), "b's ways on aren't known there");
    assert_eq!(merged([one, two]), whole);
}
