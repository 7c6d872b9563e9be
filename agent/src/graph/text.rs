//! The graph for a terminal: a tree by namespace and source, plain text of at most 100 columns.

use super::escape::shortened;
use super::{Edge, Graph, short_count};
use std::collections::BTreeMap;

/// How many addresses of an edge are shown.
const ADDRESSES: usize = 4;
/// The greatest width.
const WIDTH: usize = 100;

/// The whole text. `paint` gives a word of an outcome its colour; what it adds mustn't take room.
pub fn render(graph: &Graph, paint: impl Fn(&str, &str) -> String) -> String {
    let mut out = String::new();
    let mut by_source: BTreeMap<usize, Vec<&Edge>> = BTreeMap::new();
    for e in &graph.edges {
        by_source.entry(e.source).or_default().push(e);
    }
    let mut line = |text: String| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    for (namespace, nodes) in graph.namespaces() {
        let speaking: Vec<usize> = nodes.iter().copied().filter(|n| by_source.contains_key(n)).collect();
        if speaking.is_empty() {
            continue;
        }
        line(if namespace.is_empty() { "(no namespace)".to_owned() } else { shortened(namespace, WIDTH) });
        for (i, source) in speaking.iter().enumerate() {
            let last_source = i + 1 == speaking.len();
            let (fork, rail) = if last_source { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            line(format!("{fork}{}", shortened(&graph.nodes[*source].label, WIDTH - 3)));
            let edges = &by_source[source];
            for (j, e) in edges.iter().enumerate() {
                let fork = if j + 1 == edges.len() { "└─▶ " } else { "├─▶ " };
                let node = &graph.nodes[e.destination];
                let to = if node.namespace.is_empty() || node.namespace == namespace {
                    node.label.clone()
                } else {
                    format!("{}/{}", node.namespace, node.label)
                };
                let (to, ports) = (shortened(&to, 40), shortened(&e.ports_in_short(2), 24));
                let count = format!("×{}", short_count(e.counts.attempts));
                // The greatest width: 7 + 40 + 1 + 24 + 1 + 7 + 1 + 11.
                let outcome = paint(&e.outcome, &shortened(&e.outcome, 12));
                line(format!("{rail}{fork}{to:<40} {ports:<24} {count:>7} {outcome}"));
                let below = if j + 1 == edges.len() { "    " } else { "│   " };
                for address in e.addresses_in_short(ADDRESSES) {
                    line(format!("{rail}{below}  {}", shortened(&address, WIDTH - 9)));
                }
            }
        }
    }
    if graph.edges.is_empty() {
        line("Nothing was seen in this time that fits.".to_owned());
    }
    line(String::new());
    line(graph.summary());
    out
}
