//! The reference evaluator: what policies mean, said as plainly as possible.
//!
//! Slow on purpose. It takes one flow and asks every policy in turn; it knows nothing of ranges, blocks, pairs or "any
//! workload". The compiler must agree with it, which property tests check, and `explain` tells its story.
//!
//! The order, highest first: revoked, deny, allow, default; under break-glass denies don't count in the verdict in force,
//! nor in a lowered namespace. Each end that is a workload has its say, in each of two verdicts.

use super::diagnostic::At;
use super::model::{Deny, Mode, PROTOCOLS, Peer, Policy, PortRange, Ports};
use super::overrides::Overrides;
use super::rules::{RuleRef, Section};
use super::set::PolicySet;
use crate::image::masked;
use crate::inventory::{IdentityFacts, Inventory, Owner, Place, Posture};
use bulkhead_common::maps::{AddrPort, PrefixKey};
use bulkhead_common::slots::Sides;
use bulkhead_common::{Addr, Class, Outcome, PeerId, Reason};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr};

/// An end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// A workload with an identity.
    Workload(&'a IdentityFacts),
    /// A process under an attach point that belongs to no workload known.
    UnknownWorkload,
    /// A peer without an identity.
    Class(Class),
    /// The world, at this address.
    World(IpAddr),
}

/// A connection to judge.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Who opens it.
    pub from: End<'a>,
    /// Who is connected to.
    pub to: End<'a>,
    /// The IP protocol, as [`bulkhead_common::proto::judged`] gives it.
    pub proto: u8,
    /// The destination's port.
    pub port: u16,
}

/// What one end says in one verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether it allows.
    pub allows: bool,
    /// The rule that decided; `None`: none did, so the default holds.
    pub rule: Option<RuleRef>,
}

/// What one end says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SideSays {
    /// In the verdict in force.
    pub now: Decision,
    /// In the audited verdict.
    pub audited: Decision,
}

/// What both ends say, and what comes of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    /// The source.
    pub egress: SideSays,
    /// The destination.
    pub ingress: SideSays,
    /// Both verdicts in one word.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
}

/// Judges a connection.
pub fn judge(set: &PolicySet, inventory: &Inventory, c: &Connection<'_>) -> Judged {
    let side = |section| SideSays {
        now: decide(set, inventory, c, section, Mode::Enforce),
        audited: decide(set, inventory, c, section, Mode::Audit),
    };
    let (egress, ingress) = (side(Section::Egress), side(Section::Ingress));
    let now = egress.now.allows && ingress.now.allows;
    let audited = egress.audited.allows && ingress.audited.allows;
    let reason = reason(c, &egress, &ingress);
    Judged { egress, ingress, outcome: Outcome::of(now, audited), reason }
}

/// What one end says in the verdict that `verdict` names: in force, or audited.
fn decide(set: &PolicySet, inventory: &Inventory, c: &Connection<'_>, side: Section, verdict: Mode) -> Decision {
    let own = if side == Section::Egress { c.from } else { c.to };
    let counts = |policy: &&Policy| verdict == Mode::Audit || policy.mode == Mode::Enforce;
    match own {
        // Nobody's rules are asked for a peer without an identity.
        End::Class(_) | End::World(_) => return Decision { allows: true, rule: None },
        End::Workload(_) | End::UnknownWorkload => {}
    }
    if let End::Workload(facts) = own
        && let Some(id) = set.overrides().revokes(&facts.identity)
    {
        return Decision { allows: false, rule: Some(Overrides::rule(id)) };
    }
    let open = is_open(set, &own, c, verdict);
    if matches!(own, End::Workload(_)) {
        for policy in set.iter().filter(counts).filter(|_| !open) {
            if let Some((index, deny)) = denying(policy, c) {
                let rule = RuleRef::of(policy, Section::Denies, index, &deny.text, deny);
                return Decision { allows: false, rule: Some(rule) };
            }
        }
        for policy in set.iter().filter(counts) {
            let (own_rules, other) = match side {
                Section::Egress => (&policy.egress, &c.to),
                _ => (&policy.ingress, &c.from),
            };
            if selects(policy, &own) {
                for (index, rule) in own_rules.iter().flatten().enumerate() {
                    if is_any_of(other, &rule.peers) && on_ports(c, &rule.ports) {
                        return Decision {
                            allows: true,
                            rule: Some(RuleRef::of(policy, side, index, &rule.text, rule)),
                        };
                    }
                }
            }
            for (index, edge) in policy.edges.iter().enumerate() {
                if is_any_of(&c.from, &edge.from) && is_any_of(&c.to, &edge.to) && on_ports(c, &edge.ports) {
                    let rule = RuleRef::of(policy, Section::Edges, index, &edge.text, edge);
                    return Decision { allows: true, rule: Some(rule) };
                }
            }
        }
    }
    let posture = match own {
        End::Workload(facts) => facts.posture,
        _ => inventory.strictest(),
    };
    let default = match verdict {
        Mode::Enforce => posture != Posture::Enforce,
        Mode::Audit => posture == Posture::Observe,
    };
    let isolated = set.iter().filter(counts).any(|policy| isolates(policy, &own, side));
    Decision { allows: open || default && !isolated, rule: None }
}

/// Whether break-glass, or a namespace that is lowered, lets this end of the connection deny nothing in this verdict. An
/// unknown workload may be anybody, in the scope or not.
pub fn is_open(set: &PolicySet, own: &End<'_>, c: &Connection<'_>, verdict: Mode) -> bool {
    let overrides = set.overrides();
    let in_scope = |end: &End<'_>| matches!(end, End::Workload(facts) if overrides.opens(&facts.identity, verdict));
    let everywhere = verdict == Mode::Enforce && overrides.open_everywhere();
    everywhere || matches!(own, End::Workload(_)) && (in_scope(&c.from) || in_scope(&c.to))
}

/// Whether the policy lets this end have only what rules allow, on this side. An unknown workload may be anybody.
pub fn isolates(policy: &Policy, own: &End<'_>, side: Section) -> bool {
    let there = match side {
        Section::Egress => policy.egress.is_some(),
        _ => policy.ingress.is_some(),
    };
    there && (matches!(own, End::UnknownWorkload) || selects(policy, own))
}

/// Whether the policy selects this end.
pub fn selects(policy: &Policy, end: &End<'_>) -> bool {
    let End::Workload(facts) = end else { return false };
    let here = policy.namespace().is_none_or(|ns| ns == facts.identity.namespace);
    here && policy.selector.iter().any(|pattern| facts.identity.ids.iter().any(|id| pattern.matches(id)))
}

/// Whether the policy says anything of this end: selects it, or names it in an edge or a deny.
pub fn concerns(policy: &Policy, end: &End<'_>) -> bool {
    selects(policy, end)
        || policy.edges.iter().any(|e| is_any_of(end, &e.from) || is_any_of(end, &e.to))
        || policy.denies.iter().any(|d| is_any_of(end, &d.from) || is_any_of(end, &d.to))
}

/// Whether one of its denies is about this connection.
pub fn denies(policy: &Policy, c: &Connection<'_>) -> bool {
    denying(policy, c).is_some()
}

/// The first of its denies that is about this connection.
fn denying<'p>(policy: &'p Policy, c: &Connection<'_>) -> Option<(usize, &'p At<Deny>)> {
    policy.denies.iter().enumerate().find(|(_, deny)| {
        let excepted = deny.except.iter().any(|e| {
            e.from.as_ref().is_none_or(|list| is_any_of(&c.from, list))
                && e.to.as_ref().is_none_or(|list| is_any_of(&c.to, list))
                && on_ports(c, &e.ports)
        });
        is_any_of(&c.from, &deny.from) && is_any_of(&c.to, &deny.to) && on_ports(c, &deny.ports) && !excepted
    })
}

fn is_any_of(end: &End<'_>, peers: &[At<Peer>]) -> bool {
    peers.iter().any(|peer| match (&peer.value, end) {
        (Peer::Id(pattern), End::Workload(facts)) => facts.identity.ids.iter().any(|id| pattern.matches(id)),
        (Peer::Class(class), End::Class(c)) => class == c,
        (Peer::Class(class), End::UnknownWorkload) => *class == Class::Unknown,
        (Peer::Class(class), End::World(_)) => *class == Class::World,
        (Peer::Cidr { net, except }, End::World(addr)) => {
            net.contains(addr) && !except.iter().any(|e: &IpNet| e.contains(addr))
        }
        _ => false,
    })
}

fn on_ports(c: &Connection<'_>, ports: &Ports) -> bool {
    let Some(list) = ports else { return rules_can_judge(c.proto) };
    list.iter().any(|spec| {
        spec.proto == c.proto
            && match &spec.ports {
                PortRange::All => true,
                PortRange::Range(first, last) => (*first..=*last).contains(&c.port),
                PortRange::Named(name) => match c.to {
                    End::Workload(facts) => facts.ports.get(&**name) == Some(&(c.proto, c.port)),
                    _ => false,
                },
            }
    })
}

/// Whether rules can name this protocol at all.
fn rules_can_judge(proto: u8) -> bool {
    PROTOCOLS.iter().any(|(known, _)| *known == proto)
}

/// Why: about the first denial, the source's before the destination's, what is in force before the audit.
fn reason(c: &Connection<'_>, egress: &SideSays, ingress: &SideSays) -> Reason {
    if !rules_can_judge(c.proto) {
        return Reason::Protocol;
    }
    let no_rule_at_source = match (c.from, c.to) {
        (End::UnknownWorkload, _) => Reason::UnknownWorkload,
        (_, End::Class(Class::Unknown)) => Reason::UnknownPeer,
        _ => Reason::NoEgressRule,
    };
    let no_rule_at_destination = match (c.from, c.to) {
        (_, End::UnknownWorkload) => Reason::UnknownWorkload,
        (End::Class(Class::Unknown), _) => Reason::UnknownPeer,
        _ => Reason::NoIngressRule,
    };
    for (decision, without_rule) in [
        (&egress.now, no_rule_at_source),
        (&ingress.now, no_rule_at_destination),
        (&egress.audited, no_rule_at_source),
        (&ingress.audited, no_rule_at_destination),
    ] {
        if !decision.allows {
            return if decision.rule.is_some() { Reason::DenyRule } else { without_rule };
        }
    }
    let by_rule = [egress, ingress].iter().any(|s| s.now.rule.is_some() || s.audited.rule.is_some());
    if by_rule { Reason::Rule } else { Reason::Posture }
}

impl SideSays {
    /// The rule that the kernel names for this side: that of the verdict which denies, the one in force first; if
    /// neither does, that which allows now, else that which allows in the audit.
    pub fn named_rule(&self) -> Option<&RuleRef> {
        if !self.now.allows {
            self.now.rule.as_ref()
        } else if !self.audited.allows {
            self.audited.rule.as_ref()
        } else {
            self.now.rule.as_ref().or(self.audited.rule.as_ref())
        }
    }

    /// Both bits of this side, as [`Sides`] has them for the source.
    pub fn bits(&self) -> u8 {
        let bit = |allows: bool, bit: u8| if allows { bit } else { 0 };
        bit(self.now.allows, Sides::EGRESS_NOW) | bit(self.audited.allows, Sides::EGRESS_AUDITED)
    }
}

/// The end with this number; an identity that isn't in the inventory is nobody.
pub fn end(inventory: &Inventory, peer: PeerId) -> Option<End<'_>> {
    if peer == PeerId::UNKNOWN_WORKLOAD {
        return Some(End::UnknownWorkload);
    }
    match peer.class() {
        Some(class) => Some(End::Class(class)),
        None => inventory.identities.get(&peer).map(End::Workload),
    }
}

/// Who is at an address, for a connection to this port.
///
/// The address and port first, then the address, then the longest prefix among the endpoints and the ranges that are
/// known without being told: multicast, link-local addresses, the metadata service, and the world.
pub fn at_address<'a>(inventory: &'a Inventory, addr: &Addr, proto: u8, port: u16) -> Option<End<'a>> {
    let place = Place::Port(AddrPort { addr: *addr, port, proto, pad: 0 });
    let owner = owner_of(inventory, |p| *p == place)
        .or_else(|| owner_of(inventory, |p| *p == Place::Addr(*addr)))
        .or_else(|| {
            let floor = if addr.is_v4() { 96 } else { 0 };
            (floor..=128).rev().find_map(|bits| {
                let key = PrefixKey { bits, addr: masked(addr, bits) };
                let holds = |k: &PrefixKey| k.bits == bits && masked(&k.addr, bits) == key.addr;
                owner_of(inventory, |p| matches!(p, Place::Prefix(k) if holds(k)))
                    .or_else(|| told_by_nobody(addr, bits).map(Owner::Class))
            })
        });
    match owner.unwrap_or(Owner::Class(Class::World)) {
        Owner::Workload { peer, instance: _ } => end(inventory, peer),
        Owner::Class(Class::World) => {
            let v6 = Ipv6Addr::from(addr.0);
            Some(End::World(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)))
        }
        Owner::Class(class) => Some(End::Class(class)),
    }
}

/// The best owner of a place: the API server, then the workload of the lowest number, then the first class.
fn owner_of(inventory: &Inventory, at: impl Fn(&Place) -> bool) -> Option<Owner> {
    let here: Vec<Owner> = inventory.endpoints.iter().filter(|e| at(&e.place)).map(|e| e.owner).collect();
    let server = Owner::Class(Class::KubeApiserver);
    if here.contains(&server) {
        return Some(server);
    }
    let workloads = here.iter().filter(|o| matches!(o, Owner::Workload { .. })).copied();
    let workload = workloads.min_by_key(|o| match o {
        Owner::Workload { peer, instance } => (*peer, *instance),
        Owner::Class(_) => (PeerId(u32::MAX), 0),
    });
    workload.or_else(|| Class::ALL.into_iter().map(Owner::Class).find(|o| here.contains(o)))
}

/// The class of a range of exactly this length around the address, where no endpoint says so.
fn told_by_nobody(addr: &Addr, bits: u32) -> Option<Class> {
    let v6 = Ipv6Addr::from(addr.0);
    match (v6.to_ipv4_mapped(), bits) {
        (Some(v4), 100) if v4.is_multicast() => Some(Class::Multicast),
        (Some(v4), 128) if v4.is_broadcast() => Some(Class::Multicast),
        (Some(v4), 128) if v4.octets() == [169, 254, 169, 254] => Some(Class::Metadata),
        (Some(v4), 112) if v4.is_link_local() => Some(Class::Unknown),
        (None, 10) if v6.is_unicast_link_local() => Some(Class::Unknown),
        (None, 8) if v6.is_multicast() => Some(Class::Multicast),
        (None, 128) if v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Some(Class::Metadata),
        _ => None,
    }
}
