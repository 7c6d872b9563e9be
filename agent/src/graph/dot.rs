//! The graph for Graphviz: `bulkhead graph --as dot | dot -Tsvg`.

use super::escape::dot as quoted;
use super::{Graph, short_count};
use std::fmt::Write;

/// The whole file.
pub fn render(graph: &Graph) -> String {
    let mut out = String::from(
        "digraph bulkhead {\n  rankdir=LR; newrank=true;\n  node [shape=box, style=\"rounded,filled\", fillcolor=white, \
         fontname=\"sans-serif\", fontsize=11];\n  edge [fontname=\"sans-serif\", fontsize=9];\n",
    );
    for (number, (namespace, nodes)) in graph.namespaces().into_iter().enumerate() {
        let boxed = !namespace.is_empty();
        if boxed {
            line(&mut out, format_args!("  subgraph cluster_{number} {{"));
            line(&mut out, format_args!("    label={}; style=rounded; color=gray60;", quoted(namespace)));
        }
        for i in nodes {
            let node = &graph.nodes[i];
            let class = if node.is_workload { "" } else { ", shape=ellipse, fillcolor=gray95" };
            let indent = if boxed { "    " } else { "  " };
            let (label, tooltip) = (quoted(&node.label), quoted(&node.id));
            line(&mut out, format_args!("{indent}n{i} [label={label}, tooltip={tooltip}{class}];"));
        }
        if boxed {
            out.push_str("  }\n");
        }
    }
    for e in &graph.edges {
        let look = match e.outcome.as_str() {
            "allowed" => "color=\"#2e7d32\"",
            "would-deny" => "color=\"#b26a00\", style=dashed",
            "would-allow" => "color=\"#1565c0\", style=dashed",
            _ => "color=\"#c62828\", style=bold, arrowhead=tee",
        };
        let label = quoted(&format!("{} ×{}", e.ports_in_short(3), short_count(e.counts.attempts)));
        let mut tooltip = vec![e.outcome.clone()];
        tooltip.extend(e.addresses_in_short(4));
        let tooltip = quoted(&tooltip.join(", "));
        line(
            &mut out,
            format_args!("  n{} -> n{} [label={label}, tooltip={tooltip}, {look}];", e.source, e.destination),
        );
    }
    out.push_str("}\n");
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a String doesn't fail.
    writeln!(out, "{text}").unwrap_or_default();
}
