//! The order of lookups, over plain collections.

extern crate std;
use super::*;
use std::collections::HashMap;

#[derive(Default)]
struct Plain {
    rules: HashMap<RuleKey, u64>,
    baselines: HashMap<u32, u64>,
    addresses: HashMap<Addr, u64>,
    ports: HashMap<AddrPort, u64>,
    prefix: Option<Binding>,
}

impl Tables for Plain {
    fn rule(&self, key: &RuleKey) -> u64 {
        self.rules.get(key).copied().unwrap_or(ABSENT)
    }
    fn baseline(&self, id: PeerId) -> u64 {
        self.baselines.get(&id.0).copied().unwrap_or(ABSENT)
    }
    fn address(&self, addr: &Addr) -> u64 {
        self.addresses.get(addr).copied().unwrap_or(ABSENT)
    }
    fn address_port(&self, key: &AddrPort) -> u64 {
        self.ports.get(key).copied().unwrap_or(ABSENT)
    }
    fn prefix(&self, _: &Addr) -> u64 {
        self.prefix.map_or(ABSENT, Binding::encode)
    }
}

const A: PeerId = PeerId(300);
const B: PeerId = PeerId(301);
const ALLOW: Sides = Sides::ALL;
const DENY: Sides = Sides::NONE;

impl Plain {
    fn baseline_of(mut self, id: PeerId, sides: Sides) -> Self {
        self.baselines.insert(id.0, Baseline { sides, sockets_now: 0, sockets_audited: 0 }.encode());
        self
    }
    fn header(mut self, src: PeerId, dst: PeerId, sides: Sides, sizes: u32) -> Self {
        let key = RuleKey { src: src.0, dst: dst.0, port: 0, proto: 6, size: RuleKey::HEADER };
        self.rules.insert(key, PairHeader { sides, sizes }.encode());
        self
    }
    fn block(mut self, src: PeerId, dst: PeerId, port: u16, size: u8, sides: Sides, rule: u32) -> Self {
        let key = RuleKey { src: src.0, dst: dst.0, port, proto: 6, size };
        self.rules.insert(key, Permit { sides, egress_rule: rule, ingress_rule: rule }.encode());
        self
    }
}

fn tcp(src: PeerId, dst: PeerId, port: u16) -> Flow {
    Flow { src, dst, proto: 6, port }
}

#[test]
fn denies_where_no_baseline_is_found() {
    let j = judge(&Plain::default(), &tcp(A, B, 80));
    assert_eq!((j.outcome(), j.reason), (Outcome::Denied, Reason::Incomplete));
}

#[test]
fn a_pair_without_an_entry_falls_to_both_baselines() {
    let t = Plain::default().baseline_of(A, ALLOW).baseline_of(B, DENY);
    let j = judge(&t, &tcp(A, B, 80));
    assert_eq!((j.outcome(), j.reason), (Outcome::Denied, Reason::NoIngressRule));
    let j = judge(&t, &tcp(B, A, 80));
    assert_eq!((j.outcome(), j.reason), (Outcome::Denied, Reason::NoEgressRule));
    let j = judge(&t, &tcp(A, A, 80));
    assert_eq!((j.outcome(), j.reason), (Outcome::Allowed, Reason::Posture));
}

#[test]
fn an_audited_denial_lets_through_and_says_so() {
    let t = Plain::default().baseline_of(A, ALLOW).baseline_of(B, Sides(Sides::INGRESS_NOW));
    let j = judge(&t, &tcp(A, B, 80));
    assert_eq!((j.outcome(), j.reason), (Outcome::WouldDeny, Reason::NoIngressRule));
}

#[test]
fn blocks_cover_their_ports_and_no_others() {
    let t = Plain::default()
        .baseline_of(A, DENY)
        .baseline_of(B, DENY)
        .header(A, B, DENY, 1 << 13 | 1 << 16)
        .block(A, B, 443, 16, ALLOW, 7)
        .block(A, B, 8000, 13, ALLOW, 8);
    for (port, allowed) in
        [(443, true), (442, false), (7999, false), (8000, true), (8007, true), (8008, false), (0, false)]
    {
        let j = judge(&t, &tcp(A, B, port));
        assert_eq!(j.outcome().passes(), allowed, "{port}");
        assert_eq!(j.reason == Reason::Rule, allowed, "{port}");
    }
}

#[test]
fn the_pair_wins_over_any_workload_and_any_workload_over_the_baseline() {
    let t = Plain::default()
        .baseline_of(A, DENY)
        .baseline_of(B, DENY)
        .header(A, PeerId::ANY_WORKLOAD, DENY, 1)
        .block(A, PeerId::ANY_WORKLOAD, 0, 0, ALLOW, 1)
        .header(PeerId::ANY_WORKLOAD, B, DENY, 1)
        .block(PeerId::ANY_WORKLOAD, B, 0, 0, ALLOW, 2);
    let j = judge(&t, &tcp(A, B, 80));
    assert_eq!((j.outcome(), j.egress_rule, j.ingress_rule), (Outcome::Allowed, 1, 2));
    let t = t.header(A, B, DENY, 0);
    assert_eq!(judge(&t, &tcp(A, B, 80)).outcome(), Outcome::Denied);
}

#[test]
fn any_workload_is_not_the_unknown_workload() {
    let t = Plain::default().baseline_of(PeerId::UNKNOWN_WORKLOAD, ALLOW).baseline_of(B, DENY).header(
        PeerId::ANY_WORKLOAD,
        B,
        ALLOW,
        0,
    );
    let j = judge(&t, &tcp(PeerId::UNKNOWN_WORKLOAD, B, 80));
    assert_eq!((j.outcome(), j.reason), (Outcome::Denied, Reason::NoIngressRule));
    let t = t.header(Class::Unknown.id(), B, ALLOW, 0);
    assert_eq!(judge(&t, &tcp(PeerId::UNKNOWN_WORKLOAD, B, 80)).outcome(), Outcome::Allowed);
}

#[test]
fn a_class_has_no_rules_of_its_own() {
    let world = Class::World.id();
    let t = Plain::default().baseline_of(A, DENY);
    let j = judge(&t, &tcp(A, world, 443));
    assert_eq!((j.outcome(), j.reason), (Outcome::Denied, Reason::NoEgressRule));
    let t = t.header(A, world, ALLOW, 0);
    assert_eq!(judge(&t, &tcp(A, world, 443)).outcome(), Outcome::Allowed);
}

#[test]
fn a_part_of_the_world_falls_back_to_the_world() {
    let (part, world) = (PeerId::FIRST_CIDR, Class::World.id());
    let t = Plain::default().baseline_of(A, DENY).header(A, world, ALLOW, 0).header(world, A, ALLOW, 0);
    assert_eq!(judge(&t, &tcp(A, part, 443)).outcome(), Outcome::Allowed);
    assert_eq!(judge(&t, &tcp(part, A, 443)).outcome(), Outcome::Allowed);
    let t = t.header(A, part, DENY, 0);
    assert_eq!(judge(&t, &tcp(A, part, 443)).outcome(), Outcome::Denied);
}

#[test]
fn an_address_with_ports_of_its_own_is_resolved_by_port_first() {
    let addr = Addr::v4([10, 0, 0, 1]);
    let api = Binding::of(Class::KubeApiserver.id());
    let mut t = Plain { prefix: Some(Binding::of(Class::World.id())), ..Plain::default() };
    assert_eq!(resolve(&t, &addr, 6, 6443).peer, Class::World.id());
    t.addresses.insert(addr, Binding { flags: Binding::HAS_PORTS, ..Binding::of(Class::Host.id()) }.encode());
    t.ports.insert(AddrPort { addr, port: 6443, proto: 6, pad: 0 }, api.encode());
    assert_eq!(resolve(&t, &addr, 6, 6443), api);
    assert_eq!(resolve(&t, &addr, 6, 22).peer, Class::Host.id());
}

#[test]
fn an_address_found_nowhere_is_unknown() {
    assert_eq!(resolve(&Plain::default(), &Addr::v4([10, 0, 0, 1]), 6, 1).peer, Class::Unknown.id());
}

#[test]
fn what_no_rule_can_judge_follows_the_own_baseline_alone() {
    let t = Plain::default().baseline_of(A, Sides(Sides::EGRESS_NOW | Sides::INGRESS)).baseline_of(B, DENY);
    let j = Judgement::unruled(&t, A, Direction::Egress, Reason::RawSocket);
    assert_eq!((j.outcome(), j.reason), (Outcome::WouldDeny, Reason::RawSocket));
    let j = Judgement::unruled(&t, B, Direction::Egress, Reason::RawSocket);
    assert_eq!(j.outcome(), Outcome::Denied);
    let j = Judgement::unruled(&t, PeerId(999), Direction::Egress, Reason::RawSocket);
    assert_eq!((j.outcome(), j.reason), (Outcome::Denied, Reason::Incomplete));
}
