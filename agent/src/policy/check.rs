//! What may not be meant: rules that are broader than anybody would want, that never decide anything, or that speak of
//! nobody. All are warnings; what can't be taken at all was an error before it came here.

mod cover;

use super::diagnostic::{At, Diagnostic, Severity};
use super::model::{Except, Peer, Policy, PortRange, PortSpec, Ports};
use super::pattern::IdPattern;
use super::reference::{End, selects};
use super::rules::Section;
use super::set::PolicySet;
use crate::image::masked;
use crate::inventory::{IdentityFacts, Inventory, Owner, Place};
use bulkhead_common::maps::PrefixKey;
use bulkhead_common::slots::Sides;
use bulkhead_common::{Addr, Class, proto};
use cover::{Ends, Index};
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};

/// A rule, edge or deny with its place.
struct Statement<'a> {
    policy: &'a Policy,
    section: Section,
    index: usize,
    at: At<()>,
    /// Which side's which verdict it decides: bits of [`Sides`].
    bits: u8,
    from: Ends<'a>,
    to: Ends<'a>,
    ports: &'a Ports,
    except: &'a [At<Except>],
}

impl Statement<'_> {
    fn name(&self) -> String {
        let Self { policy, section, index, at, .. } = self;
        format!("{} {}[{index}] ({}:{})", *policy.name, section.as_str(), policy.file, at.line)
    }

    fn denies(&self) -> bool {
        self.section == Section::Denies
    }
}

/// Looks at all policies together. With an inventory, also for names that nobody has.
pub fn check(set: &PolicySet, inventory: Option<&Inventory>) -> Vec<Diagnostic> {
    let mut findings = Findings { list: Vec::new(), inventory, known: HashMap::new() };
    let statements: Vec<Statement<'_>> = set.iter().flat_map(statements).collect();
    set.iter().for_each(|policy| findings.policy(policy));
    statements.iter().for_each(|s| findings.breadth(s));
    statements.iter().for_each(|s| findings.blind(s));
    findings.shadows(&statements);
    statements.iter().for_each(|s| findings.reach(s));
    findings.list.sort();
    findings.list.dedup();
    findings.list
}

fn statements(policy: &Policy) -> Vec<Statement<'_>> {
    let mut list = Vec::new();
    let selected = Ends::Selected(policy);
    let mut add = |section, index, at: At<()>, sides, from, to, ports, except| {
        let bits = policy.reach(sides);
        list.push(Statement { policy, section, index, at, bits, from, to, ports, except });
    };
    for (n, rule) in policy.ingress.iter().flatten().enumerate() {
        let from = Ends::Named(&rule.value.peers);
        add(Section::Ingress, n, rule.with(()), Sides::INGRESS, from, selected, &rule.value.ports, &[][..]);
    }
    for (n, rule) in policy.egress.iter().flatten().enumerate() {
        let to = Ends::Named(&rule.value.peers);
        add(Section::Egress, n, rule.with(()), Sides::EGRESS, selected, to, &rule.value.ports, &[]);
    }
    for (n, edge) in policy.edges.iter().enumerate() {
        let (from, to) = (Ends::Named(&edge.value.from), Ends::Named(&edge.value.to));
        add(Section::Edges, n, edge.with(()), Sides::ALL.0, from, to, &edge.value.ports, &[]);
    }
    for (n, deny) in policy.denies.iter().enumerate() {
        let (from, to) = (Ends::Named(&deny.value.from), Ends::Named(&deny.value.to));
        add(Section::Denies, n, deny.with(()), Sides::ALL.0, from, to, &deny.value.ports, &deny.value.except);
    }
    list
}

/// Gathers the findings.
struct Findings<'a> {
    list: Vec<Diagnostic>,
    inventory: Option<&'a Inventory>,
    /// How many of the inventory's identities each pattern matches.
    known: HashMap<&'a str, usize>,
}

impl<'a> Findings<'a> {
    fn warn<T>(&mut self, policy: &Policy, at: &At<T>, message: impl Into<String>, hint: impl Into<String>) {
        self.list.push(at.diagnose(&policy.file, Severity::Warning, message, hint));
    }

    /// The policy as a whole, and whom it selects.
    fn policy(&mut self, policy: &'a Policy) {
        let Policy { name, selector, ingress, egress, edges, denies, sockets, .. } = policy;
        if ingress.is_none() && egress.is_none() && *sockets == 0 && edges.is_empty() && denies.is_empty() {
            let hint = "add `ingress:` or `egress:`; `ingress: {}` lets nobody in";
            self.warn(policy, name, format!("{} says nothing", **name), hint);
        }
        for pattern in selector {
            if pattern.is_any() {
                let whose = policy.namespace().map_or("every workload".to_owned(), |ns| match ns {
                    "" => "every workload that has no namespace".to_owned(),
                    ns => format!("every workload of namespace {ns}"),
                });
                self.warn(policy, pattern, format!("this selects {whose}"), "name the workloads that are meant");
            } else if self.nobody(policy, pattern) {
                continue;
            } else if self
                .inventory
                .is_some_and(|i| i.identities.len() > 1 && self.count(pattern) == i.identities.len())
            {
                let message = format!("`{}` selects every workload known here", pattern.value);
                self.warn(policy, pattern, message, "name the workloads that are meant");
            }
        }
        if let Some(inventory) = self.inventory
            && let Some(first) = selector.first()
            && selector.iter().any(|p| self.count(p) > 0)
            && !inventory.identities.values().any(|facts| selects(policy, &End::Workload(facts)))
        {
            let message = format!("{} selects nobody: its IDs are those of workloads of other namespaces", **name);
            self.warn(policy, first, message, "set `metadata.namespace` to theirs");
        }
    }

    fn count(&mut self, pattern: &'a IdPattern) -> usize {
        let Some(inventory) = self.inventory else { return 0 };
        *self.known.entry(pattern.as_str()).or_insert_with(|| {
            let has = |facts: &&IdentityFacts| facts.identity.ids.iter().any(|id| pattern.matches(id));
            inventory.identities.values().filter(has).count()
        })
    }

    fn nobody(&mut self, policy: &Policy, pattern: &'a At<IdPattern>) -> bool {
        let nobody = self.inventory.is_some() && !pattern.is_any() && self.count(pattern) == 0;
        if nobody {
            let message = format!("`{}` matches no workload known here", pattern.value);
            self.warn(policy, pattern, message, "check the spelling, and that the workload is in the config");
        }
        nobody
    }

    /// Allows for whoever is masqueraded: there is nothing left to tell them by.
    fn blind(&mut self, s: &Statement<'a>) {
        let masqueraded = |ends: Ends<'_>| ends.peers().any(|p| matches!(p, Peer::Class(Class::SnatIngress)));
        if masqueraded(s.to) {
            let message = "nobody is reached as `snat-ingress`: it is where connections come from";
            self.warn(s.policy, &s.at, message, "leave it out of `to`");
        }
        if masqueraded(s.from) && !s.denies() {
            let message = "`snat-ingress` is blind to identity: it is everybody whom the node masquerades";
            self.warn(
                s.policy,
                &s.at,
                message,
                "with externalTrafficPolicy: Local a node port keeps its clients' addresses",
            );
        }
    }

    /// Allows that are broader than they need to be, and statements about nobody whom rules can hold.
    fn breadth(&mut self, s: &Statement<'a>) {
        let workloads = |ends: Ends<'_>| ends.peers().any(|p| matches!(p, Peer::Id(_)));
        if !workloads(s.from) && !workloads(s.to) {
            let message = "neither end is a workload, so nobody has this rule";
            self.warn(s.policy, &s.at, message, "name a workload by `id` on one side");
        }
        let only_icmp = s.ports.iter().flatten().all(|spec| spec.proto == proto::ICMP);
        if s.denies() || s.ports.is_some() && only_icmp {
            return;
        }
        let anybody = |ends: Ends<'_>| match ends {
            Ends::Named(_) => ends.peers().find_map(|p| match &p {
                Peer::Id(pattern) if pattern.is_any() => Some("any workload"),
                Peer::Class(Class::World) => Some("the whole world"),
                Peer::Cidr { net, except } if net.prefix_len() == 0 && except.is_empty() => Some("the whole world"),
                Peer::Class(Class::Unknown) => Some("whoever isn't known yet"),
                _ => None,
            }),
            Ends::Selected(_) => None,
        };
        let message = match (anybody(s.from), anybody(s.to), s.ports) {
            (Some("any workload"), Some("any workload"), _) => {
                "this lets every workload connect to every other".to_owned()
            }
            (Some(who), _, None) => format!("this lets {who} connect on every port of every protocol"),
            (_, Some(who), None) => format!("this lets connections to {who} through on every port of every protocol"),
            (None, None, None) => "without `ports`, this is every port of every protocol".to_owned(),
            _ => return,
        };
        self.warn(s.policy, &s.at, message, "name the `ports`, and the peers as closely as they are known");
    }

    /// Statements that never decide anything, because others decide first or say the same.
    fn shadows(&mut self, statements: &[Statement<'a>]) {
        let index = Index::of(statements);
        for (n, s) in statements.iter().enumerate() {
            let covering = index.near(s).into_iter().filter(|m| *m != n).map(|m| (m, &statements[m]));
            let mut covering = covering.filter(|(_, other)| (other.denies() || !s.denies()) && other.covers(s));
            // A deny is the graver news; else any will do. Of two that say the same, the later one is the surplus.
            let found = covering.clone().find(|(_, other)| other.denies() != s.denies());
            let found = found.or_else(|| covering.find(|(m, other)| *m < n || !s.covers(other)));
            let Some((_, other)) = found else { continue };
            let (message, hint) = if other.denies() != s.denies() {
                (
                    format!("this never allows anything: {} denies all of it", other.name()),
                    "remove it, or give the deny an `except`",
                )
            } else if s.covers(other) {
                (format!("this says the same as {}", other.name()), "remove one of the two")
            } else {
                (format!("this adds nothing to {}", other.name()), "remove it, or make the other one narrower")
            };
            self.warn(s.policy, &s.at, message, hint);
        }
    }

    /// Names that nobody has, as far as the inventory knows.
    fn reach(&mut self, s: &Statement<'a>) {
        let Some(inventory) = self.inventory else { return };
        let excepted = s.except.iter().flat_map(|e| e.value.from.iter().chain(&e.value.to)).map(|l| Ends::Named(l));
        for ends in [s.from, s.to].into_iter().chain(excepted) {
            let Ends::Named(peers) = ends else { continue };
            for peer in peers {
                match &peer.value {
                    Peer::Id(pattern) => {
                        if !pattern.is_any() && self.count(pattern) == 0 {
                            let message = format!("`{pattern}` matches no workload known here");
                            self.warn(
                                s.policy,
                                peer,
                                message,
                                "check the spelling, and that the workload is in the config",
                            );
                        }
                    }
                    Peer::Cidr { net, .. } => {
                        if let Some(owner) = owner_of(inventory, net) {
                            let message =
                                format!("{net} lies inside the range of {owner}, and a `cidr` is only ever the world");
                            self.warn(s.policy, peer, message, "name that peer by `id` or `class`");
                        }
                    }
                    Peer::Class(_) => {}
                }
            }
        }
        for spec in s.ports.iter().flatten() {
            if let PortSpec { proto, ports: PortRange::Named(name) } = &spec.value {
                let has = |facts: &&IdentityFacts| facts.ports.get(&**name).is_some_and(|(p, _)| p == proto);
                if !inventory.identities.values().filter(has).any(|facts| holds(s.to, facts)) {
                    let message = format!("no destination of this rule has a port named `{name}`");
                    self.warn(s.policy, spec, message, "check the spelling and the protocol, or give the number");
                }
            }
        }
    }
}

fn holds(ends: Ends<'_>, facts: &IdentityFacts) -> bool {
    match ends {
        Ends::Selected(policy) => selects(policy, &End::Workload(facts)),
        Ends::Named(_) => ends.peers().any(|p| match p {
            Peer::Id(pattern) => facts.identity.ids.iter().any(|id| pattern.matches(id)),
            _ => false,
        }),
    }
}

/// Whose range holds all of this prefix, if it isn't the world's.
fn owner_of(inventory: &Inventory, net: &IpNet) -> Option<String> {
    let (bits, addr) = match net {
        IpNet::V4(n) => (u32::from(n.prefix_len()) + 96, Addr::v4(n.network().octets())),
        IpNet::V6(n) => (n.prefix_len().into(), Addr(n.network().octets())),
    };
    let floor = if addr.is_v4() { 96 } else { 0 };
    let holding = |k: &PrefixKey| (floor..=bits).contains(&k.bits) && masked(&addr, k.bits) == masked(&k.addr, k.bits);
    let ranges: BTreeMap<u32, Owner> = inventory
        .endpoints
        .iter()
        .filter_map(|e| match e.place {
            Place::Prefix(key) if holding(&key) => Some((key.bits, e.owner)),
            _ => None,
        })
        .collect();
    match ranges.last_key_value()?.1 {
        Owner::Class(Class::World) => None,
        Owner::Class(class) => Some(class.as_str().to_owned()),
        Owner::Workload { peer, .. } => inventory.identities.get(peer).map(|facts| facts.identity.to_string()),
    }
}
