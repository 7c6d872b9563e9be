//! Live sockets against small images; and what a commit can have cut.

use super::*;
use crate::identity::Identity;
use crate::image::Image;
use crate::inventory::{self, IdentityFacts, Inventory, Posture, WorkloadCgroup};
use crate::policy::{self, PolicySet, RuleTable};
use bulkhead_common::maps::{PrefixKey, RuleKey};
use bulkhead_common::slots::{Baseline, PairHeader, Permit, Sides};
use bulkhead_common::{PeerId, Reason};
use std::collections::{BTreeMap, BTreeSet};

const WEB: PeerId = PeerId(256);
const DB: PeerId = PeerId(257);
const WEB_CGROUP: u64 = 11;
const DB_CGROUP: u64 = 12;

fn ip(last: u8) -> Addr {
    Addr::v4([10, 0, 0, last])
}

/// web is at .1 and db at .2; nothing is allowed but by a rule.
fn image(rules: &[(PeerId, PeerId, u16, Sides)]) -> Image {
    let mut image = Image::default();
    let deny = Baseline { sides: Sides::NONE, sockets_now: 0, sockets_audited: 0 };
    for (n, peer, cgroup) in [(1, WEB, WEB_CGROUP), (2, DB, DB_CGROUP)] {
        let binding = Binding { peer, instance: n, flags: 0 };
        image.baselines.insert(peer, deny);
        image.cgroups.insert(cgroup, binding);
        image.addresses.insert(ip(u8::try_from(n).expect("small")), binding);
    }
    image.prefixes.insert(PrefixKey::default(), Binding::of(Class::World.id()));
    for (src, dst, port, sides) in rules {
        let key = RuleKey { src: src.0, dst: dst.0, port: 0, proto: proto::TCP, size: RuleKey::HEADER };
        image.rules.insert(key, PairHeader { sides: Sides::NONE, sizes: 1 << 16 }.encode());
        let permit = Permit { sides: *sides, egress_rule: 1, ingress_rule: 1 };
        image.rules.insert(RuleKey { port: *port, size: 16, ..key }, permit.encode());
    }
    image
}

fn owners(image: &Image) -> Owners {
    image.cgroups.clone()
}

fn tcp(local: (Addr, u16), remote: (Addr, u16), cgroup: u64) -> Socket {
    Socket { proto: proto::TCP, phase: Phase::Connected, local, remote, cgroup: Some(cgroup), role: None }
}

fn listener(port: u16, cgroup: u64) -> Socket {
    let nowhere = (Addr::UNSPECIFIED, 0);
    Socket { phase: Phase::Open, ..tcp((Addr::UNSPECIFIED, port), nowhere, cgroup) }
}

fn run(image: &Image, sockets: &[Socket], host: bool) -> Vec<Failing> {
    failing(image, &owners(image), Namespace { sockets, host })
}

#[test]
fn both_ends_judge_the_same_connection_by_who_opened_it() {
    let client = [tcp((ip(1), 40000), (ip(2), 5432), WEB_CGROUP)];
    let server = [tcp((ip(2), 5432), (ip(1), 40000), DB_CGROUP), listener(5432, DB_CGROUP)];
    let open = image(&[(WEB, DB, 5432, Sides::ALL)]);
    assert!(run(&open, &client, false).is_empty() && run(&open, &server, false).is_empty());
    let shut = image(&[]);
    let flow = Flow { src: WEB, dst: DB, proto: proto::TCP, port: 5432 };
    for sockets in [&client[..], &server[..]] {
        let found = run(&shut, sockets, false);
        assert_eq!(found.iter().map(|f| (f.socket, f.flow)).collect::<Vec<_>>(), [(0, flow)], "the listener lives on");
        assert_eq!(found[0].judgement.reason, Reason::NoEgressRule);
    }
}

#[test]
fn what_is_only_audited_is_left_alone() {
    let client = [tcp((ip(1), 40000), (ip(2), 5432), WEB_CGROUP)];
    let audited = image(&[(WEB, DB, 5432, Sides(Sides::EGRESS_NOW | Sides::INGRESS_NOW))]);
    assert!(run(&audited, &client, false).is_empty());
}

#[test]
fn a_noted_role_counts_more_than_a_guess() {
    // web connected from a port on which it also listens.
    let mut sockets = [tcp((ip(1), 9000), (ip(2), 5432), WEB_CGROUP), listener(9000, WEB_CGROUP)];
    let open = image(&[(WEB, DB, 5432, Sides::ALL)]);
    assert_eq!(run(&open, &sockets, false)[0].flow.src, DB, "guessed");
    sockets[0].role = Some(Role::Client);
    assert!(run(&open, &sockets, false).is_empty());
}

#[test]
fn a_peer_in_the_same_namespace_is_whoever_holds_the_socket() {
    let here = Addr::v4([127, 0, 0, 1]);
    let pair = |other: u64| {
        [tcp((here, 40000), (here, 5432), WEB_CGROUP), tcp((here, 5432), (here, 40000), other), listener(5432, other)]
    };
    let shut = image(&[]);
    let ends = |sockets: &[Socket], host| -> Vec<(PeerId, PeerId)> {
        run(&shut, sockets, host).iter().map(|f| (f.flow.src, f.flow.dst)).collect()
    };
    assert_eq!(ends(&pair(DB_CGROUP), true), [(WEB, DB), (WEB, DB)]);
    assert_eq!(ends(&pair(WEB_CGROUP), false), [], "itself");
    // The other end lies below no attach point: the host's own, and only web's end is ours to cut.
    assert_eq!(ends(&pair(99), true), [(WEB, Class::Host.id())]);
    // Nobody is there any more.
    assert_eq!(ends(&pair(99)[..1], false), []);
    assert_eq!(ends(&pair(99)[..1], true), [(WEB, Class::Host.id())]);
}

#[test]
fn a_connection_that_is_redirected_to_a_sidecar_stays_within_the_workload() {
    let image = image(&[(WEB, DB, 5432, Sides::ALL)]);
    let loopback = Addr::v4([127, 0, 0, 1]);
    // The application believes to be connected to the database; the sidecar has accepted it, and has made another.
    let application = tcp((ip(1), 40000), (ip(2), 5432), WEB_CGROUP);
    let sidecar = tcp((loopback, 15001), (ip(1), 40000), WEB_CGROUP);
    let onwards = tcp((ip(1), 40001), (ip(2), 5432), WEB_CGROUP);
    let sockets = [application.clone(), sidecar.clone(), onwards, listener(15001, WEB_CGROUP)];
    assert_eq!(run(&image, &sockets, false), []);
    // Whoever has closed its end, or isn't listed yet, still has the workload's own address.
    assert_eq!(run(&image, &sockets[1..], false), []);
    // In a namespace that several share it is whoever has it: web to the database's sidecar.
    let shared = [application, Socket { cgroup: Some(DB_CGROUP), ..sidecar }, listener(15001, DB_CGROUP)];
    let found: Vec<Flow> = run(&image, &shared, true).iter().map(|f| f.flow).collect();
    assert_eq!(found, [Flow { src: WEB, dst: DB, proto: proto::TCP, port: 15001 }]);
}

#[test]
fn an_end_whose_owner_cannot_be_told_is_left_to_the_packets() {
    let shut = image(&[]);
    // web to itself, by its address: of a socket that is closed, and of one in a cgroup that has just been made.
    let application = tcp((ip(1), 40000), (ip(1), 8080), WEB_CGROUP);
    let accepted = tcp((ip(1), 8080), (ip(1), 40000), WEB_CGROUP);
    for cgroup in [None, Some(99)] {
        let other = Socket { cgroup, ..accepted.clone() };
        assert_eq!(run(&shut, &[application.clone(), other], false), [], "{cgroup:?}");
    }
}

#[test]
fn only_what_a_commit_can_have_cut_is_looked_at() {
    let (shut, open) = (image(&[]), image(&[(WEB, DB, 5432, Sides::ALL)]));
    let both = Reach::Of(BTreeSet::from([WEB, DB]));
    assert_eq!(Reach::between(None, &open), Reach::Everything);
    assert!(Reach::between(Some(&open), &open).is_empty());
    assert_eq!(Reach::between(Some(&open), &shut), both);
    let audited = image(&[(WEB, DB, 5432, Sides(Sides::EGRESS_NOW | Sides::INGRESS_NOW))]);
    let mut looser = audited.clone();
    looser.rules = open.rules.clone();
    assert!(Reach::between(Some(&audited), &looser).is_empty());

    let mut relaxed = shut.clone();
    relaxed.baselines.insert(WEB, Baseline { sides: Sides::ALL, sockets_now: 0, sockets_audited: 0 });
    assert!(Reach::between(Some(&shut), &relaxed).is_empty());
    assert_eq!(Reach::between(Some(&relaxed), &shut), Reach::Everything);

    let mut started = shut.clone();
    started.cgroups.insert(13, Binding { peer: WEB, instance: 3, flags: 0 });
    assert_eq!(Reach::between(Some(&shut), &started), Reach::Of(BTreeSet::from([WEB])));
    assert!(Reach::between(Some(&started), &shut).is_empty());

    let mut other = shut.clone();
    other.addresses.insert(ip(9), Binding::of(DB));
    assert!(moved(Some(&shut), &other) && Reach::between(Some(&shut), &other).is_empty());
    assert!(!moved(Some(&shut), &started) && !moved(None, &shut));

    let mut revoked = shut.clone();
    let key = RuleKey { src: WEB.0, dst: 16, port: 0, proto: proto::TCP, size: RuleKey::HEADER };
    revoked.rules.insert(key, PairHeader { sides: Sides::NONE, sizes: 0 }.encode());
    assert_eq!(Reach::between(Some(&shut), &revoked), Reach::Everything);
}

/// A Service is nobody who could be refused anything.
#[test]
fn where_all_is_observed_nobody_is_looked_at() {
    let compiled = |posture| {
        let facts = |name: &str| IdentityFacts {
            identity: Identity {
                namespace: "n".to_owned(),
                ids: [format!("spiffe://t/{name}").parse().expect("an ID")].into(),
            },
            posture,
            ports: BTreeMap::new(),
        };
        let service = PeerId(258);
        let inventory = Inventory {
            identities: [(WEB, facts("web")), (DB, facts("db"))].into(),
            cgroups: vec![WorkloadCgroup { id: WEB_CGROUP, level: 1, peer: WEB, instance: 1, flags: 0 }],
            services: vec![inventory::Service {
                peer: service,
                ports: [(proto::TCP, 80)].into(),
                backends: [(WEB, 8080), (DB, 8080)].into(),
            }],
            ..Inventory::default()
        };
        policy::compile(&PolicySet::default(), &inventory, &mut RuleTable::default()).image
    };
    assert_eq!(Reach::between(None, &compiled(Posture::Observe)), Reach::Of(BTreeSet::new()));
    let mut other = compiled(Posture::Observe);
    other.addresses.insert(ip(9), Binding::of(DB));
    assert!(!moved(Some(&compiled(Posture::Observe)), &other));
    assert_eq!(Reach::between(None, &compiled(Posture::Audit)), Reach::Of(BTreeSet::new()));
    assert_eq!(Reach::between(None, &compiled(Posture::Enforce)), Reach::Everything);
}
