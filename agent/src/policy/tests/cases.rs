//! The table of cases, and what else one estate and one set of policies can show about the compiler and `explain`.

use super::super::*;
use super::table::{CASES, POLICIES, WORKLOADS};
use crate::identity::Identity;
use crate::image::Image;
use crate::inventory::{AttachPoint, Endpoint, IdentityFacts, Inventory, Owner, Place, Posture, WorkloadCgroup};
use bulkhead_common::maps::{AddrPort, PrefixKey};
use bulkhead_common::slots::{Baseline, Binding, Sides};
use bulkhead_common::verdict::{self, Flow};
use bulkhead_common::{Addr, Class, PeerId};
use model::protocol_number;
use std::collections::{BTreeMap, BTreeSet};

/// The estate that the cases are about.
pub(super) fn estate() -> Inventory {
    let mut inventory = Inventory { built_ins: 0xf00, ..Inventory::default() };
    for (number, namespace, id, posture) in WORKLOADS {
        let posture = [Posture::Observe, Posture::Audit, Posture::Enforce].into_iter().find(|p| p.as_str() == posture);
        let posture = posture.expect("a posture");
        let identity = Identity { namespace: namespace.to_owned(), ids: BTreeSet::from([id.parse().expect(id)]) };
        let ports = match number {
            258 => BTreeMap::from([("postgres".to_owned(), (6, 5432))]),
            _ => BTreeMap::new(),
        };
        inventory.identities.insert(PeerId(number), IdentityFacts { identity, posture, ports });
        let host = u8::try_from(number - 255).expect("few");
        inventory.endpoints.push(Endpoint {
            place: Place::Addr(Addr::v4([10, 0, 0, host])),
            owner: Owner::Workload { peer: PeerId(number), instance: number },
        });
        inventory.cgroups.push(WorkloadCgroup {
            id: number.into(),
            level: 3,
            peer: PeerId(number),
            instance: number,
            flags: 0,
        });
    }
    inventory.attach_points.push(AttachPoint { id: 7, level: 2 });
    inventory.endpoints.push(Endpoint {
        place: Place::Prefix(PrefixKey { bits: 96 + 16, addr: Addr::v4([10, 0, 0, 0]) }),
        owner: Owner::Class(Class::Unknown),
    });
    let server = AddrPort { addr: Addr::v4([198, 51, 100, 1]), port: 6443, proto: 6, pad: 0 };
    inventory.endpoints.push(Endpoint { place: Place::Port(server), owner: Owner::Class(Class::KubeApiserver) });
    inventory
}

/// A party of the table: a workload's short name, or what [`Party`] reads.
fn party(name: &str) -> Party {
    let workload = WORKLOADS.iter().find(|(_, _, id, _)| id.rsplit('/').next() == Some(name));
    workload.map_or(name, |(_, _, id, _)| id).parse().expect(name)
}

fn in_image(party: &Party, inventory: &Inventory, image: &Image, proto: u8, port: u16) -> PeerId {
    match party {
        Party::Id(id) => {
            let has = |(_, facts): &(&PeerId, &IdentityFacts)| facts.identity.ids.contains(id);
            inventory.identities.iter().find(has).map(|(peer, _)| *peer).expect("a workload of the table")
        }
        Party::Class(class) => class.id(),
        Party::Address(a) => verdict::resolve(image, &super::addr(*a), proto, port).peer,
        Party::UnknownWorkload => PeerId::UNKNOWN_WORKLOAD,
    }
}

pub(super) fn policies() -> PolicySet {
    let (set, findings) = PolicySet::assemble(read("cases.yaml", POLICIES), &PolicySet::default());
    assert_eq!(findings, []);
    set
}

#[test]
fn every_case_comes_out_as_written_in_the_tables_and_in_the_explanation() {
    let (set, inventory, mut table) = (policies(), estate(), RuleTable::default());
    let Compiled { image, warnings } = compile(&set, &inventory, &mut table);
    assert_eq!(warnings, []);
    let short = |rule: Option<&RuleRef>| {
        rule.map(|r| format!("{} {}[{}]", r.policy.name, r.section.as_str(), r.index)).unwrap_or_default()
    };
    for case in CASES {
        let (from, to, on, outcome, reason, egress, ingress) = *case;
        let (proto, port) = on.split_once('/').expect(on);
        let (proto, port) = (protocol_number(proto).expect(on), port.parse::<u16>().expect(on));
        let (from, to) = (party(from), party(to));

        let src = in_image(&from, &inventory, &image, proto, 0);
        let dst = in_image(&to, &inventory, &image, proto, port);
        let j = verdict::judge(&image, &Flow { src, dst, proto, port });
        let rules = (short(table.rule(j.egress_rule)), short(table.rule(j.ingress_rule)));
        let said = (j.outcome().as_str(), j.reason.as_str(), rules.0.as_str(), rules.1.as_str());
        assert_eq!(said, (outcome, reason, egress, ingress), "{case:?}");

        let e = explain(&set, &inventory, &from, &to, proto, port);
        assert_eq!((e.outcome.as_str(), e.reason), (outcome, reason), "{case:?}");
        let text = e.to_string();
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }
}

#[test]
fn an_explanation_names_both_sides_and_what_decided() {
    let (set, inventory) = (policies(), estate());
    let e = explain(&set, &inventory, &party("cart"), &party("db"), 6, 5432);
    assert_eq!(
        e.to_string(),
        "\
from         spiffe://example.org/ns/shop/sa/cart (posture enforce)
to           spiffe://example.org/ns/data/sa/db (posture enforce)
on           TCP/5432
verdict      would-allow (no-egress-rule)

source       now denies: no rule allows it, and SegmentationPolicy shop/cart leaves only what rules
             allow
             audited allows: ClusterSegmentationPolicy next edges[0]
               cases.yaml:66: from spiffe://example.org/ns/shop/sa/cart to
               spiffe://example.org/ns/data/sa/db on TCP/5432
             selected by SegmentationPolicy shop/cart (enforce, isolates)

destination  now denies: no rule allows it, and the posture is enforce
             audited allows: ClusterSegmentationPolicy next edges[0]
               cases.yaml:66: from spiffe://example.org/ns/shop/sa/cart to
               spiffe://example.org/ns/data/sa/db on TCP/5432
"
    );
    let json = serde_json::to_value(&e).expect("plain data");
    assert_eq!(json["outcome"], "would-allow");
    assert_eq!(json["egress"]["audited"]["rule"]["line"], 66);
    assert_eq!(json["egress"]["selectedBy"][0]["policy"]["name"], "cart");
    let e =
        explain(&set, &inventory, &"spiffe://example.org/ns/shop/sa/typo".parse().expect("an ID"), &party("db"), 6, 1);
    assert_eq!((e.outcome.as_str(), e.notes.len()), ("denied", 1));
    let error = "moon".parse::<Party>().expect_err("no party").to_string();
    assert!(error.contains("kube-apiserver"), "{error}");
}

#[test]
fn the_tables_say_who_is_where() {
    let (set, inventory) = (policies(), estate());
    let image = compile(&set, &inventory, &mut RuleTable::default()).image;
    assert_eq!(image.levels, 1 << 2 | 1 << 3);
    assert_eq!(image.built_ins, 0xf00);
    assert_eq!(image.cgroups[&257], Binding { peer: PeerId(257), instance: 257, flags: 0 });
    let attach = Binding { flags: Binding::ATTACH_POINT, ..Binding::of(PeerId::UNKNOWN_WORKLOAD) };
    assert_eq!(image.cgroups[&7], attach);
    let at = |a: &str, port| verdict::resolve(&image, &super::addr(a.parse().expect(a)), 6, port).peer;
    assert_eq!(at("198.51.100.1", 6443), Class::KubeApiserver.id());
    assert_eq!(at("198.51.100.1", 443), Class::World.id());
    assert_eq!(at("10.0.0.1", 1), PeerId(256));
    assert_eq!(at("10.0.7.1", 1), Class::Unknown.id());
    assert_eq!(at("8.8.8.8", 1), Class::World.id());
    assert_eq!(at("2001:db8::1", 1), Class::World.id());
    assert_eq!(at("fd00:ec2::254", 1), Class::Metadata.id());
    assert_eq!(at("255.255.255.255", 1), Class::Multicast.id());
    assert_eq!(at("ff02::fb", 1), Class::Multicast.id());
    assert!(at("203.0.113.1", 1).is_cidr() && at("203.0.113.1", 1) != at("203.0.113.129", 1));
}

#[test]
fn defaults_follow_posture_isolation_and_leaves() {
    let (set, inventory) = (policies(), estate());
    let image = compile(&set, &inventory, &mut RuleTable::default()).image;
    let now = Sides::EGRESS_NOW | Sides::INGRESS_NOW;
    let of = |n| image.baselines[&PeerId(n)];
    assert_eq!(of(256), Baseline { sides: Sides(0), sockets_now: 0, sockets_audited: 0 });
    let legacy = Baseline { sides: Sides(now | Sides::EGRESS_AUDITED), sockets_now: 0, sockets_audited: Baseline::RAW };
    assert_eq!(of(260), legacy);
    assert_eq!(of(261).sides, Sides(now));
    assert_eq!(of(0), Baseline { sides: Sides(0), sockets_now: 0, sockets_audited: 0 });
    // Where nothing enforces, a workload that isn't known is let through; a policy that waits for it changes that.
    let watching = Inventory::default();
    let empty = compile(&PolicySet::default(), &watching, &mut RuleTable::default()).image;
    assert_eq!(empty.baselines[&PeerId::UNKNOWN_WORKLOAD].sides, Sides::ALL);
    let waiting = compile(&set, &watching, &mut RuleTable::default()).image;
    assert_eq!(waiting.baselines[&PeerId::UNKNOWN_WORKLOAD].sides, Sides(0));
}

#[test]
fn contradictions_of_the_inventory_are_told_and_resolved() {
    let mut inventory = estate();
    let db = Place::Addr(Addr::v4([10, 0, 0, 3]));
    inventory.endpoints.push(Endpoint { place: db, owner: Owner::Workload { peer: PeerId(256), instance: 1 } });
    inventory.endpoints.push(Endpoint { place: db, owner: Owner::Class(Class::Host) });
    inventory.cgroups.push(WorkloadCgroup { id: 258, level: 3, peer: PeerId(256), instance: 1, flags: 0 });
    inventory.cgroups.push(WorkloadCgroup { id: 999, level: 32, peer: PeerId(256), instance: 1, flags: 0 });
    inventory.attach_points.push(AttachPoint { id: 257, level: 3 });
    let Compiled { image, warnings } = compile(&PolicySet::default(), &inventory, &mut RuleTable::default());
    assert_eq!(image.addresses[&Addr::v4([10, 0, 0, 3])].peer, PeerId(256));
    assert_eq!(image.cgroups[&258].peer, PeerId(256));
    assert_eq!(image.cgroups[&257], Binding { peer: PeerId(257), instance: 257, flags: Binding::ATTACH_POINT });
    let said = |w: &dyn Fn(&Warning) -> bool| warnings.iter().filter(|x| w(x)).count();
    assert_eq!(said(&|w| matches!(w, Warning::ClaimedTwice { .. })), 2);
    assert_eq!(said(&|w| matches!(w, Warning::SharedCgroup { kept: PeerId(256), other: PeerId(258), .. })), 1);
    assert_eq!(said(&|w| matches!(w, Warning::TooDeep { level: 32, .. })), 1);
    assert_eq!(said(&|w| matches!(w, Warning::AttachPointIsWorkload { peer: PeerId(257), .. })), 1);
}

#[test]
fn the_same_input_compiles_to_the_same_image_and_one_changed_rule_to_few_other_entries() {
    let (set, inventory, mut table) = (policies(), estate(), RuleTable::default());
    let first = compile(&set, &inventory, &mut table).image;
    assert_eq!(compile(&set, &inventory, &mut table).image, first);
    let moved = POLICIES.replace(
        "- from: [{class: host}]",
        "- from: [{class: metadata}]\n        ports: [{port: 1}]\n      - from: [{class: host}]",
    );
    let (set, _) = PolicySet::assemble(read("cases.yaml", &moved), &set);
    let second = compile(&set, &inventory, &mut table).image;
    let changed = second.rules.iter().filter(|(k, v)| first.rules.get(k) != Some(v)).count();
    assert_eq!(
        (changed, second.rules.len() - first.rules.len()),
        (2, 2),
        "the header and one block of metadata to orders"
    );
}
