//! The graph for Mermaid, as Markdown pages show it.

use super::escape::mermaid as quoted;
use super::{Graph, short_count};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The whole diagram.
pub fn render(graph: &Graph) -> String {
    let mut out = String::from("flowchart LR\n");
    for (number, (namespace, nodes)) in graph.namespaces().into_iter().enumerate() {
        let boxed = !namespace.is_empty();
        if boxed {
            line(&mut out, format_args!("  subgraph s{number}[{}]", quoted(namespace)));
        }
        for i in nodes {
            let node = &graph.nodes[i];
            let (open, close) = if node.is_workload { ("[", "]") } else { ("([", "])") };
            line(&mut out, format_args!("    n{i}{open}{}{close}", quoted(&node.label)));
        }
        if boxed {
            out.push_str("  end\n");
        }
    }
    let mut looks: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (i, e) in graph.edges.iter().enumerate() {
        let (arrow, look) = match e.outcome.as_str() {
            "allowed" => ("-->", "stroke:#2e7d32"),
            "would-deny" => ("-.->", "stroke:#b26a00"),
            "would-allow" => ("-.->", "stroke:#1565c0"),
            _ => ("--x", "stroke:#c62828"),
        };
        let text = format!("{} ×{} {}", e.ports_in_short(3), short_count(e.counts.attempts), e.outcome);
        line(&mut out, format_args!("  n{} {arrow}|{}| n{}", e.source, quoted(&text), e.destination));
        looks.entry(look).or_default().push(i.to_string());
    }
    for (look, edges) in looks {
        line(&mut out, format_args!("  linkStyle {} {look}", edges.join(",")));
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a String doesn't fail.
    writeln!(out, "{text}").unwrap_or_default();
}
