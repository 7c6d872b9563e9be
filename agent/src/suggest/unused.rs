//! What existing policies allow and nobody used in the window: candidates for pruning, no more than that.

use super::evidence::{Known, Line};
use crate::inventory::Inventory;
use crate::policy::model::{Peer, PortRange, Ports};
use crate::policy::reference::{End, selects};
use crate::policy::{At, Policy, PolicySet, Section};
use bulkhead_common::{Class, PeerId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// A permission that nothing used.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Unused {
    /// The file.
    pub file: String,
    /// The line of it.
    pub line: u32,
    /// The rule: the policy, the list and the place in it.
    pub rule: String,
    /// What of it nobody used: all of it, one of its peers, or one of its ports.
    pub what: String,
}

/// An end of a link that was established.
#[derive(Clone, Copy)]
struct Seen {
    from: PeerId,
    to: PeerId,
    address: Option<IpAddr>,
    protocol: u8,
    port: u16,
}

/// Looks through every allow of these policies.
pub(super) fn unused(existing: &PolicySet, everybody: &Inventory, lines: &BTreeMap<Line, Known<'_>>) -> Vec<Unused> {
    let mut all = Vec::new();
    let (mut by_source, mut by_destination): (HashMap<PeerId, Vec<Seen>>, HashMap<PeerId, Vec<Seen>>) =
        Default::default();
    for (line, known) in lines {
        for sight in known.sights.iter().filter(|s| s.evidence.established > 0) {
            let Line { from, to, protocol, port } = *line;
            let seen = Seen { from, to, address: sight.address, protocol, port };
            by_source.entry(from).or_default().push(seen);
            by_destination.entry(to).or_default().push(seen);
        }
    }
    let pruner = Pruner { everybody };
    for policy in existing.iter() {
        let own: BTreeSet<PeerId> = everybody
            .identities
            .iter()
            .filter(|(_, facts)| selects(policy, &End::Workload(facts)))
            .map(|(peer, _)| *peer)
            .collect();
        let of = |map: &HashMap<PeerId, Vec<Seen>>| -> Vec<Seen> {
            own.iter().flat_map(|p| map.get(p).into_iter().flatten()).copied().collect()
        };
        let (out, into) = (of(&by_source), of(&by_destination));
        for (index, rule) in policy.ingress.iter().flatten().enumerate() {
            let name = Place { policy, section: Section::Ingress, index, line: rule.line };
            all.extend(pruner.rule(&name, &[("from", &rule.peers)], &rule.ports, &into));
        }
        for (index, rule) in policy.egress.iter().flatten().enumerate() {
            let name = Place { policy, section: Section::Egress, index, line: rule.line };
            all.extend(pruner.rule(&name, &[("to", &rule.peers)], &rule.ports, &out));
        }
        let everything: Vec<Seen> = match policy.edges.is_empty() {
            true => Vec::new(),
            false => by_source.values().flatten().copied().collect(),
        };
        for (index, edge) in policy.edges.iter().enumerate() {
            let name = Place { policy, section: Section::Edges, index, line: edge.line };
            all.extend(pruner.rule(&name, &[("from", &edge.from), ("to", &edge.to)], &edge.ports, &everything));
        }
    }
    all.sort();
    all
}

/// Which rule it is.
struct Place<'a> {
    policy: &'a Policy,
    section: Section,
    index: usize,
    line: u32,
}

impl Place<'_> {
    fn unused(&self, line: u32, what: String) -> Unused {
        let Self { policy, section, index, .. } = self;
        Unused {
            file: policy.file.to_string(),
            line,
            rule: format!("{} {}[{index}]", *policy.name, section.as_str()),
            what,
        }
    }
}

struct Pruner<'a> {
    everybody: &'a Inventory,
}

impl Pruner<'_> {
    /// All of the rule if nothing used it, else the peers and ports that nothing used.
    fn rule(&self, place: &Place<'_>, ends: &[(&str, &[At<Peer>])], ports: &Ports, seen: &[Seen]) -> Vec<Unused> {
        let peer_of = |word: &str, s: &Seen| if word == "from" { s.from } else { s.to };
        let fits = |s: &&Seen| {
            ends.iter().all(|(word, peers)| peers.iter().any(|p| self.is(&p.value, peer_of(word, s), s.address)))
                && self.on_ports(ports, s)
        };
        let used: Vec<&Seen> = seen.iter().filter(fits).collect();
        if used.is_empty() {
            return vec![place.unused(place.line, "all of it".to_owned())];
        }
        let mut all = Vec::new();
        for (word, peers) in ends {
            for peer in peers.iter() {
                if !used.iter().any(|s| self.is(&peer.value, peer_of(word, s), s.address)) {
                    all.push(place.unused(peer.line, format!("{word} {}", peer.value)));
                }
            }
        }
        for spec in ports.iter().flatten() {
            if !used.iter().any(|s| self.on_ports(&Some(vec![spec.clone()]), s)) {
                all.push(place.unused(spec.line, format!("on {}", spec.value)));
            }
        }
        all
    }

    fn is(&self, peer: &Peer, who: PeerId, address: Option<IpAddr>) -> bool {
        match peer {
            Peer::Id(pattern) => {
                let facts = self.everybody.identities.get(&who);
                facts.is_some_and(|f| f.identity.ids.iter().any(|id| pattern.matches(id)))
            }
            Peer::Class(Class::Unknown) if who == PeerId::UNKNOWN_WORKLOAD => true,
            Peer::Class(class) => who.class() == Some(*class),
            Peer::Cidr { net, except } => {
                who.class() == Some(Class::World)
                    && address.is_some_and(|a| net.contains(&a) && !except.iter().any(|e| e.contains(&a)))
            }
        }
    }

    fn on_ports(&self, ports: &Ports, s: &Seen) -> bool {
        let Some(list) = ports else { return true };
        list.iter().any(|spec| {
            spec.proto == s.protocol
                && match &spec.ports {
                    PortRange::All => true,
                    PortRange::Range(first, last) => (*first..=*last).contains(&s.port),
                    PortRange::Named(name) => {
                        let facts = self.everybody.identities.get(&s.to);
                        facts.and_then(|f| f.ports.get(&**name)) == Some(&(s.protocol, s.port))
                    }
                }
        })
    }
}
