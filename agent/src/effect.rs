//! What a policy set allows, compared with another by effect and not by text: pairs and ports gained or lost.
//!
//! Only what some rule or edge of either set speaks of can differ, so those pairs alone are looked at, each cut at the
//! ports that rules name, and each piece is judged by both sets. What is compared is the audited verdict, in which
//! policies of both modes count.
//!
//! Pure.

mod ends;

use crate::flows::PeerName;
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{Inventory, Posture};
use crate::judge::{Cast, Judge, Who};
use crate::policy::PolicySet;
use crate::policy::model::{Peer, PortRange, PortSpec, Ports};
use bulkhead_common::{PeerId, proto};
pub use ends::Ends;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Ports that one end may reach at the other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Permission {
    /// Who opens the connection.
    pub source: PeerName,
    /// Who is connected to.
    pub destination: PeerName,
    /// The IP protocol.
    pub protocol: u8,
    /// The first of the destination's ports; 0 for protocols without ports.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// What changes from one set to another.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Change {
    /// Allowed by the second alone.
    pub gained: Vec<Permission>,
    /// Allowed by the first alone.
    pub lost: Vec<Permission>,
}

impl Change {
    /// Whether the two allow the same.
    pub fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty()
    }
}

/// A piece of a [`Change`], by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Delta {
    /// Whether the second set allows it; else the first does.
    pub gained: bool,
    /// Who opens the connection.
    pub from: Who,
    /// Who is connected to.
    pub to: Who,
    /// The IP protocol.
    pub protocol: u8,
    /// The first of the destination's ports.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// Compares what rules allow where everybody is under enforce: all identities of the inventory, all that either set
/// names, the classes, and the parts of the world that either names.
pub fn compare(before: &PolicySet, after: &PolicySet, inventory: &Inventory) -> Change {
    let mut cast = Cast::of(inventory, []);
    for policy in before.iter().chain(after.iter()) {
        let here = policy.namespace().map(str::to_owned);
        for pattern in &policy.selector {
            stranger(&mut cast, pattern.as_str(), here.as_deref());
        }
        let rules = policy.ingress.iter().chain(&policy.egress).flatten().flat_map(|r| &r.peers);
        for peer in rules.chain(policy.edges.iter().flat_map(|e| e.from.iter().chain(&e.to))) {
            if let Peer::Id(pattern) = &peer.value {
                stranger(&mut cast, pattern.as_str(), None);
            }
        }
    }
    let inventory = cast.under(|_| Posture::Enforce);
    let ends = Ends::of(&inventory, [before, after]);
    let mut change = Change::default();
    let judges = [before, after].map(|set| Judge::of(set, &inventory));
    for d in deltas([before, after], judges.each_ref(), &inventory, &ends) {
        let name = |who| ends.name(who, |p| cast.name(p));
        let Delta { gained, from, to, protocol, first, last } = d;
        let permission = Permission { source: name(from), destination: name(to), protocol, first, last };
        if gained { &mut change.gained } else { &mut change.lost }.push(permission);
    }
    change.gained.sort();
    change.lost.sort();
    change
}

/// Somebody whom only a policy names: of its namespace, or of the one that the ID tells.
fn stranger(cast: &mut Cast, text: &str, namespace: Option<&str>) {
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    let known = cast.inventory().identities.values().any(|f| f.identity.ids.contains(&id));
    if known {
        return;
    }
    let told = match id.segments().collect::<Vec<_>>()[..] {
        ["ns", namespace, "sa", _] => namespace.to_owned(),
        _ => String::new(),
    };
    let namespace = namespace.map_or(told, str::to_owned);
    cast.add(Identity { namespace, ids: BTreeSet::from([id]) }, Posture::Enforce);
}

/// The pieces in which two sets differ, each given with the judge that has compiled it for this inventory. In order.
pub fn deltas(sets: [&PolicySet; 2], judges: [&Judge; 2], inventory: &Inventory, ends: &Ends<'_>) -> Vec<Delta> {
    let mut pairs: BTreeMap<(Who, Who), Spans> = BTreeMap::new();
    let mut cuts: BTreeSet<(u8, u32)> = BTreeSet::new();
    for policy in sets.into_iter().flat_map(PolicySet::iter) {
        let mut meet = |from: &[Who], to: &[Who], ports: &Ports| {
            for to in to {
                let spans = spans(ports, inventory, *to);
                for from in from.iter().filter(|f| f.workload().is_some() || to.workload().is_some()) {
                    pairs.entry((*from, *to)).or_default().extend(&spans);
                }
            }
        };
        let own: Vec<Who> = ends.selected(policy);
        for rule in policy.ingress.iter().flatten() {
            meet(&ends.named(&rule.peers), &own, &rule.ports);
        }
        for rule in policy.egress.iter().flatten() {
            meet(&own, &ends.named(&rule.peers), &rule.ports);
        }
        for edge in &policy.edges {
            meet(&ends.named(&edge.from), &ends.named(&edge.to), &edge.ports);
        }
        for deny in &policy.denies {
            let excepted = deny.except.iter().flat_map(|e| e.ports.iter().flatten());
            for spec in deny.ports.iter().flatten().chain(excepted) {
                if let PortRange::Range(first, last) = spec.ports {
                    cuts.extend([(spec.proto, u32::from(first)), (spec.proto, u32::from(last) + 1)]);
                }
            }
        }
    }
    let mut deltas: Vec<Delta> = Vec::new();
    for ((from, to), spans) in &pairs {
        let named = inventory_ports(inventory, *to);
        for (protocol, first, last) in pieces(spans, &cuts, &named) {
            let [was, is] = judges.map(|j| j.judge(*from, *to, protocol, first).sides.audited());
            if was == is {
                continue;
            }
            let next = Delta { gained: is, from: *from, to: *to, protocol, first, last };
            let goes_on = |d: &&mut Delta| d.last.checked_add(1) == Some(first) && Delta { first, last, ..**d } == next;
            match deltas.last_mut().filter(goes_on) {
                Some(d) => d.last = last,
                None => deltas.push(next),
            }
        }
    }
    deltas
}

/// Protocols with the first and the last of some ports.
type Spans = BTreeSet<(u8, u16, u16)>;

/// The protocols that rules can judge, with their last port.
const LAST_PORTS: [(u8, u16); 5] = [
    (proto::ICMP, 0),
    (proto::TCP, u16::MAX),
    (proto::UDP, u16::MAX),
    (proto::SCTP, u16::MAX),
    (proto::UDPLITE, u16::MAX),
];

/// The ports of a rule, at this destination.
fn spans(ports: &Ports, inventory: &Inventory, to: Who) -> Vec<(u8, u16, u16)> {
    let all = |proto: u8| LAST_PORTS.iter().filter(move |(p, _)| *p == proto).map(|(p, last)| (*p, 0, *last));
    let Some(list) = ports else { return LAST_PORTS.iter().map(|(p, last)| (*p, 0, *last)).collect() };
    let mut spans = Vec::new();
    for PortSpec { proto, ports } in list.iter().map(|spec| &spec.value) {
        match ports {
            PortRange::All => spans.extend(all(*proto)),
            PortRange::Range(first, last) => spans.push((*proto, *first, *last)),
            PortRange::Named(name) => {
                let facts = to.workload().and_then(|p| inventory.identities.get(&p));
                let port = facts.and_then(|f| f.ports.get(&**name)).filter(|(p, _)| p == proto);
                spans.extend(port.map(|(_, port)| (*proto, *port, *port)));
            }
        }
    }
    spans
}

/// Where names of ports may cut.
fn inventory_ports(inventory: &Inventory, to: Who) -> BTreeSet<(u8, u32)> {
    let facts = to.workload().and_then(|p: PeerId| inventory.identities.get(&p));
    let cut = |(proto, port): &(u8, u16)| [(*proto, u32::from(*port)), (*proto, u32::from(*port) + 1)];
    facts.into_iter().flat_map(|f| f.ports.values().flat_map(cut)).collect()
}

/// The spans cut into pieces, each of which lies within or without each span and each cut.
fn pieces(spans: &Spans, cuts: &BTreeSet<(u8, u32)>, more: &BTreeSet<(u8, u32)>) -> Vec<(u8, u16, u16)> {
    let mut pieces = Vec::new();
    for (proto, last_port) in LAST_PORTS {
        let own: Vec<(u32, u32)> =
            spans.iter().filter(|s| s.0 == proto).map(|(_, a, b)| (u32::from(*a), u32::from(*b) + 1)).collect();
        if let [(first, end)] = own[..]
            && end == first + 1
        {
            // Nearly all are a single port.
            pieces.extend(u16::try_from(first).map(|port| (proto, port, port)));
            continue;
        }
        let mut edges: BTreeSet<u32> = own.iter().flat_map(|(a, b)| [*a, *b]).collect();
        if own.is_empty() {
            continue;
        }
        let range = (proto, 0)..=(proto, u32::from(last_port) + 1);
        edges.extend(cuts.range(range.clone()).chain(more.range(range)).map(|(_, port)| *port));
        // A sweep: how many spans are open after each edge.
        let mut opened: BTreeMap<u32, i64> = edges.iter().map(|e| (*e, 0)).collect();
        for (a, b) in &own {
            *opened.entry(*a).or_default() += 1;
            *opened.entry(*b).or_default() -= 1;
        }
        let mut depth = 0;
        let mut start = 0;
        for (edge, step) in opened {
            if depth > 0
                && let (Ok(first), Ok(last)) = (u16::try_from(start), u16::try_from(edge - 1))
            {
                pieces.push((proto, first, last));
            }
            depth += step;
            start = edge;
        }
    }
    pieces
}

#[cfg(test)]
mod tests;
