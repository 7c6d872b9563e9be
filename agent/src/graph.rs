//! A history as a graph: identities as nodes, namespaces as boxes, an edge for each pair and outcome, with its ports.
//!
//! Pure and deterministic: one history gives one text, byte by byte. Names were chosen by strangers (SPIFFE IDs by who
//! writes the configuration, executables by any process, DNS names by any server), so each form of output escapes
//! everything that it prints ([`escape`]).

pub mod dot;
pub mod escape;
pub mod html;
pub mod mermaid;
pub mod place;
pub mod svg;
pub mod text;

use crate::flows::{self, PeerName};
use crate::history::{Counts, History, Record, Window};
use crate::identity::{SCHEME, SERVICE};
use crate::store::sum;
use bulkhead_common::Outcome;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Who talked to whom.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Graph {
    /// The time that it is about.
    pub window: Window,
    /// By namespace and name.
    pub nodes: Vec<Node>,
    /// By source, destination and outcome.
    pub edges: Vec<Edge>,
}

/// An identity, or a class of peers without one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Node {
    /// Its namespace; empty if it has none.
    pub namespace: String,
    /// The SPIFFE IDs, or the name of the class.
    pub id: String,
    /// What tells it from the others of its namespace, in short.
    pub label: String,
    /// Whether it has an identity.
    pub is_workload: bool,
}

/// What went from one node to another with one outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Edge {
    /// Who opened it: an index into the nodes.
    pub source: usize,
    /// Who was connected to.
    pub destination: usize,
    /// `allowed`, `would-deny`, `would-allow` or `denied`.
    pub outcome: String,
    /// On which ports, by protocol and number.
    pub ports: Vec<Port>,
    /// All ports together.
    #[serde(flatten)]
    pub counts: Counts,
    /// When it was first seen, milliseconds since 1970.
    pub first: u64,
    /// When it was last seen.
    pub last: u64,
    /// Addresses of the end without an identity, after the DNS name where that is known.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub addresses: BTreeSet<String>,
    /// What opened it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub source_executables: BTreeSet<String>,
    /// What answered.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub destination_executables: BTreeSet<String>,
}

/// One port of an edge.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Port {
    /// Its protocol.
    pub protocol: u8,
    /// Its number; 0 for protocols without ports.
    pub port: u16,
    /// Why it was decided so.
    pub reasons: BTreeSet<String>,
    /// How often.
    #[serde(flatten)]
    pub counts: Counts,
}

/// What to show: all that is given must fit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// A part of the ID of either end.
    pub id: Option<String>,
    /// A namespace of either end.
    pub namespace: Option<String>,
    /// An outcome.
    pub verdict: Option<String>,
}

impl Filter {
    fn fits(&self, r: &Record) -> bool {
        let Self { id, namespace, verdict } = self;
        let ends = [&r.link.source, &r.link.destination];
        id.as_ref().is_none_or(|id| ends.iter().any(|e| e.id.contains(id.as_str())))
            && namespace.as_ref().is_none_or(|n| ends.iter().any(|e| e.namespace == *n))
            && verdict.as_ref().is_none_or(|v| r.outcome == *v)
    }
}

impl Graph {
    /// The graph of what fits.
    pub fn of(history: &History, filter: &Filter) -> Self {
        let records: Vec<&Record> = history.records.iter().filter(|r| filter.fits(r)).collect();
        let names: BTreeSet<(&str, &str)> = records
            .iter()
            .flat_map(|r| [&r.link.source, &r.link.destination])
            .map(|PeerName { id, namespace }| (namespace.as_str(), id.as_str()))
            .collect();
        let index: BTreeMap<(&str, &str), usize> = names.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        let mut edges: BTreeMap<(usize, usize, u8), Edge> = BTreeMap::new();
        for r in records {
            let at = |p: &PeerName| index.get(&(p.namespace.as_str(), p.id.as_str())).copied();
            let (Some(source), Some(destination)) = (at(&r.link.source), at(&r.link.destination)) else { continue };
            let edge = edges.entry((source, destination, rank(&r.outcome))).or_insert_with(|| Edge {
                source,
                destination,
                outcome: r.outcome.clone(),
                ports: Vec::new(),
                counts: Counts::default(),
                first: r.first,
                last: r.last,
                addresses: BTreeSet::new(),
                source_executables: BTreeSet::new(),
                destination_executables: BTreeSet::new(),
            });
            edge.add(r);
        }
        let nodes = nodes(&names);
        Self { window: history.window, nodes, edges: edges.into_values().collect() }
    }

    /// The namespaces, each with its nodes; what has none comes first.
    pub fn namespaces(&self) -> BTreeMap<&str, Vec<usize>> {
        let mut all: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, n) in self.nodes.iter().enumerate() {
            all.entry(&n.namespace).or_default().push(i);
        }
        all
    }

    /// For programs.
    ///
    /// # Errors
    /// Never in practice: it is plain data.
    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(escape::json(&serde_json::to_string_pretty(self)?) + "\n")
    }

    /// One line that says what this is.
    pub fn summary(&self) -> String {
        let mut by_outcome: BTreeMap<u8, usize> = BTreeMap::new();
        for e in &self.edges {
            *by_outcome.entry(rank(&e.outcome)).or_default() += 1;
        }
        let word = |rank: u8| Outcome::from_u8(rank).map_or("other", Outcome::as_str);
        let parts: Vec<String> = by_outcome.into_iter().map(|(rank, n)| format!("{n} {}", word(rank))).collect();
        let edges = if parts.is_empty() { "no edges".to_owned() } else { parts.join(", ") };
        format!("{} identities and classes; edges: {edges}", self.nodes.len())
    }
}

impl Edge {
    fn add(&mut self, r: &Record) {
        self.counts = sum(self.counts, r.counts);
        self.first = self.first.min(r.first);
        self.last = self.last.max(r.last);
        let key = (r.link.protocol, r.link.port);
        let at = match self.ports.binary_search_by_key(&key, |p| (p.protocol, p.port)) {
            Ok(at) => at,
            Err(at) => {
                let (protocol, port) = key;
                self.ports.insert(at, Port { protocol, port, reasons: BTreeSet::new(), counts: Counts::default() });
                at
            }
        };
        let port = &mut self.ports[at];
        port.counts = sum(port.counts, r.counts);
        port.reasons.insert(r.reason.clone());
        if let Some(address) = r.address {
            self.addresses.insert(escape::named(address, r.name.as_deref()));
        }
        self.source_executables.extend(r.source_executables.iter().cloned());
        self.destination_executables.extend(r.destination_executables.iter().cloned());
    }

    /// Addresses of its end outside, the first `most` of them, and how many more there are.
    pub fn addresses_in_short(&self, most: usize) -> Vec<String> {
        let mut shown: Vec<String> = self.addresses.iter().take(most).cloned().collect();
        let more = self.addresses.len().saturating_sub(most);
        if more > 0 {
            shown.push(format!("and {more} more"));
        }
        shown
    }

    /// Its ports in one line, the first `most` of them.
    pub fn ports_in_short(&self, most: usize) -> String {
        let shown: Vec<String> = self.ports.iter().take(most).map(|p| port(p.protocol, p.port)).collect();
        let more = self.ports.len().saturating_sub(most);
        let text = shown.join(", ");
        if more > 0 { format!("{text} +{more}") } else { text }
    }
}

/// `tcp/443`, or the protocol alone where it has no ports.
pub fn port(protocol: u8, port: u16) -> String {
    let name = flows::protocol(protocol);
    if port == 0 { name } else { format!("{name}/{port}") }
}

/// A count in at most five characters: 950, 12.3k, 4.5M.
pub fn short_count(n: u64) -> String {
    let unit = |size: u64, letter| {
        let tenths = n / (size / 10);
        if tenths < 1000 {
            format!("{}.{}{letter}", tenths / 10, tenths % 10)
        } else {
            format!("{}{letter}", tenths / 10)
        }
    };
    match n {
        0..1000 => n.to_string(),
        1000..1_000_000 => unit(1000, 'k'),
        1_000_000..1_000_000_000 => unit(1_000_000, 'M'),
        1_000_000_000.. => unit(1_000_000_000, 'G'),
    }
}

/// The order of outcomes; one that isn't known comes last.
fn rank(outcome: &str) -> u8 {
    Outcome::from_name(outcome).map_or(u8::MAX, |o| o as u8)
}

/// Names in short: the last segment of the ID's path, or as many as tell it from others of its namespace.
fn nodes(names: &BTreeSet<(&str, &str)>) -> Vec<Node> {
    let short = |id: &str, segments: usize| -> String {
        let one = |id: &str| match id.strip_prefix(SCHEME) {
            Some(rest) => {
                let from = rest.rmatch_indices('/').nth(segments - 1).map_or(0, |(i, _)| i + 1);
                rest[from..].to_owned()
            }
            None => id.to_owned(),
        };
        id.split('+').map(one).collect::<Vec<_>>().join("+")
    };
    let mut labels: Vec<String> = names.iter().map(|(_, id)| short(id, 1)).collect();
    for segments in 2..6 {
        let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for ((namespace, _), label) in names.iter().zip(&labels) {
            *seen.entry((namespace, label)).or_default() += 1;
        }
        let twice: Vec<bool> = names.iter().zip(&labels).map(|((n, _), l)| seen[&(*n, l.as_str())] > 1).collect();
        for (((_, id), label), twice) in names.iter().zip(&mut labels).zip(twice) {
            if twice {
                *label = short(id, segments);
            }
        }
    }
    names
        .iter()
        .zip(labels)
        .map(|((namespace, id), label)| Node {
            namespace: (*namespace).to_owned(),
            id: (*id).to_owned(),
            label: match id.strip_prefix(SERVICE).and_then(|title| title.strip_prefix(namespace)) {
                Some(name) if !namespace.is_empty() => format!("{} (Service)", name.trim_start_matches('/')),
                _ => label,
            },
            is_workload: id.starts_with(SCHEME),
        })
        .collect()
}

#[cfg(test)]
mod tests;
