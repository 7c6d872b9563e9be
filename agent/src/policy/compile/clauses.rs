//! Rules, edges and denies in one shape: from whom, to whom, on which ports, and which verdicts they decide.
//!
//! The list is in the order of precedence: a clause decides where none before it does. What was revoked comes first.

use super::super::diagnostic::At;
use super::super::model::{Peer, PortRange, PortSpec, Ports};
use super::super::overrides::Overrides;
use super::super::rules::{RuleRef, RuleTable, Section};
use super::super::set::PolicySet;
use super::pairs::Elsewhere;
use super::peers::{PeerSet, Peers};
use super::ports::Spans;
use crate::inventory::{IdentityFacts, Inventory};
use bulkhead_common::Class;
use bulkhead_common::slots::Sides;

/// A rule, edge or deny.
pub(super) struct Clause<'a> {
    /// Its number in the table.
    pub(super) number: u32,
    /// Whether it denies.
    pub(super) deny: bool,
    /// Which side's which verdict it decides: bits of [`Sides`].
    pub(super) bits: u8,
    /// Who opens the connection.
    pub(super) from: PeerSet,
    /// Who is connected to.
    pub(super) to: PeerSet,
    /// On which ports.
    pub(super) ports: PortSet<'a>,
    /// What a deny leaves to the others.
    pub(super) except: Vec<Exception<'a>>,
    /// Whether it holds under break-glass too.
    pub(super) revokes: bool,
}

impl Clause<'_> {
    /// Whether it names ports that this destination has, itself or in an exception.
    pub(super) fn names_port_of(&self, destination: &IdentityFacts) -> bool {
        self.ports.named_at(destination) || self.except.iter().any(|e| e.ports.named_at(destination))
    }

    /// Whether it names any ports by name.
    pub(super) fn names_ports(&self) -> bool {
        !self.ports.named.is_empty() || self.except.iter().any(|e| !e.ports.named.is_empty())
    }
}

/// What a deny leaves to the others: what fits all three.
pub(super) struct Exception<'a> {
    pub(super) from: Option<PeerSet>,
    pub(super) to: Option<PeerSet>,
    pub(super) ports: PortSet<'a>,
}

/// Ports by number, and by names that each destination reads in its own way.
pub(super) struct PortSet<'a> {
    pub(super) spans: Spans,
    pub(super) named: Vec<(u8, &'a str)>,
}

impl<'a> PortSet<'a> {
    fn of(ports: &'a Ports) -> Self {
        let Some(list) = ports else { return Self { spans: Spans::all(), named: Vec::new() } };
        let (mut ranges, mut named) = (Vec::new(), Vec::new());
        for PortSpec { proto, ports } in list.iter().map(|p| &p.value) {
            match ports {
                PortRange::All => ranges.push((*proto, (0, u16::MAX))),
                PortRange::Range(first, last) => ranges.push((*proto, (*first, *last))),
                PortRange::Named(name) => named.push((*proto, &**name)),
            }
        }
        Self { spans: Spans::of(ranges), named }
    }

    /// The ports by number at this destination; nobody but a workload names ports.
    pub(super) fn at(&self, destination: Option<&IdentityFacts>) -> Spans {
        let resolved: Vec<_> =
            self.named.iter().filter_map(|(proto, name)| named_port(destination?, *proto, name)).collect();
        if resolved.is_empty() {
            return self.spans.clone();
        }
        Spans::of(self.spans.iter().chain(resolved).collect())
    }

    /// Whether this destination has one of the named ports.
    pub(super) fn named_at(&self, destination: &IdentityFacts) -> bool {
        self.named.iter().any(|(proto, name)| named_port(destination, *proto, name).is_some())
    }
}

fn named_port(facts: &IdentityFacts, proto: u8, name: &str) -> Option<(u8, (u16, u16))> {
    facts.ports.get(name).filter(|(p, _)| *p == proto).map(|(p, port)| (*p, (*port, *port)))
}

/// All clauses of a set: first denies, then what allows, each in the order of policies, lists and items.
/// Without those that are about nobody of this node. Whom each policy selects is given.
pub(super) fn clauses<'a>(
    set: &'a PolicySet,
    selected: &[PeerSet],
    inventory: &Inventory,
    peers: &mut Peers<'a>,
    table: &mut RuleTable,
) -> Vec<Clause<'a>> {
    let (mut denies, mut allows) = (Vec::new(), Vec::new());
    let elsewhere = Elsewhere::of(inventory);
    let is_here = |set: &PeerSet| set.any || set.ids.iter().any(|peer| elsewhere.is_here(*peer));
    for (policy, selected) in set.iter().zip(selected) {
        let lists = [
            (Section::Ingress, &policy.ingress, policy.reach(Sides::INGRESS)),
            (Section::Egress, &policy.egress, policy.reach(Sides::EGRESS)),
        ];
        for (section, rules, bits) in lists {
            for (index, rule) in rules.iter().flatten().enumerate() {
                let others = peers.resolve(&rule.peers);
                let (from, to) = match section {
                    Section::Ingress => (others, selected.clone()),
                    _ => (selected.clone(), others),
                };
                if !is_here(&from) && !is_here(&to) {
                    continue;
                }
                let number = table.number(RuleRef::of(policy, section, index, &rule.text, rule));
                let ports = PortSet::of(&rule.ports);
                allows.push(Clause { number, deny: false, bits, from, to, ports, except: Vec::new(), revokes: false });
            }
        }
        let bits = policy.reach(Sides::ALL.0);
        for (index, edge) in policy.edges.iter().enumerate() {
            let (from, to) = (peers.resolve(&edge.from), peers.resolve(&edge.to));
            if !is_here(&from) && !is_here(&to) {
                continue;
            }
            allows.push(Clause {
                number: table.number(RuleRef::of(policy, Section::Edges, index, &edge.text, edge)),
                deny: false,
                bits,
                from,
                to,
                ports: PortSet::of(&edge.ports),
                except: Vec::new(),
                revokes: false,
            });
        }
        for (index, deny) in policy.denies.iter().enumerate() {
            let (from, to) = (peers.resolve(&deny.from), peers.resolve(&deny.to));
            if !is_here(&from) && !is_here(&to) {
                continue;
            }
            let mut named = |list: &'a Option<Vec<At<Peer>>>| list.as_ref().map(|l| peers.resolve(l));
            let except = deny.except.iter().map(|e| Exception {
                from: named(&e.from),
                to: named(&e.to),
                ports: PortSet::of(&e.ports),
            });
            let except = except.collect();
            denies.push(Clause {
                number: table.number(RuleRef::of(policy, Section::Denies, index, &deny.text, deny)),
                deny: true,
                bits,
                from,
                to,
                ports: PortSet::of(&deny.ports),
                except,
                revokes: false,
            });
        }
    }
    let mut all = revocations(set, peers, table);
    all.append(&mut denies);
    all.append(&mut allows);
    all
}

/// A revoked ID refuses by its own side alone, the source's or the destination's: that is enough, and it takes a few
/// entries only, however many workloads there are.
fn revocations<'a>(set: &'a PolicySet, peers: &Peers<'_>, table: &mut RuleTable) -> Vec<Clause<'a>> {
    let everybody = PeerSet { any: true, ids: Class::ALL.map(Class::id).into() };
    let mut clauses = Vec::new();
    for id in &set.overrides().revoked {
        let number = table.number(Overrides::rule(id));
        let it = peers.having(id);
        let ends = [(Sides::EGRESS, it.clone(), everybody.clone()), (Sides::INGRESS, everybody.clone(), it)];
        clauses.extend(ends.map(|(bits, from, to)| Clause {
            number,
            deny: true,
            bits,
            from,
            to,
            ports: PortSet { spans: Spans::all(), named: Vec::new() },
            except: Vec::new(),
            revokes: true,
        }));
    }
    clauses
}
