//! The graph as a page: one file that asks nothing of any network, to be opened in a browser or sent to somebody.
//!
//! The picture, a search, and a table. Pointing at an identity shows its own edges. A content security policy lets no
//! script run but ours, by its hash, so even a name that got past the escapes could do nothing.

use super::escape::{markup, plain, script_json};
use super::{Graph, port, svg};
use crate::time::rfc3339;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The whole page.
pub fn render(graph: &Graph) -> String {
    let hash = BASE64_STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    let nodes: Vec<_> = graph.nodes.iter().map(|n| plain(&format!("{} {}", n.id, n.namespace))).collect();
    let edges: Vec<_> = graph.edges.iter().map(|e| (e.source, e.destination, &e.outcome)).collect();
    let data = serde_json::to_string(&BTreeMap::from([
        ("nodes", serde_json::to_value(&nodes).unwrap_or_default()),
        ("edges", serde_json::to_value(&edges).unwrap_or_default()),
    ]));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Bulkhead: who talks to whom</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>Who talks to whom</h1><p>{}</p><p>{}</p>\
         <input id=\"search\" type=\"search\" placeholder=\"ID, namespace, port, executable or verdict\" \
         aria-label=\"Search\" autofocus> <span id=\"found\"></span></header>\n\
         <main id=\"picture\">\n{}</main>\n{}\n\
         <script type=\"application/json\" id=\"data\">{}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        markup(&graph.summary()),
        markup(&span(graph)),
        svg::picture(graph),
        table(graph),
        script_json(&data.unwrap_or_default()),
    )
}

/// The time that it is about.
fn span(graph: &Graph) -> String {
    let w = graph.window;
    let watched = w.watched.checked_mul(100).and_then(|n| n.checked_div(w.to.saturating_sub(w.from))).unwrap_or(0);
    format!("From {} to {}, watched for {} % of that time.", rfc3339(w.from), rfc3339(w.to), watched.min(100))
}

fn table(graph: &Graph) -> String {
    let mut out = String::from(
        "<table>\n<thead><tr><th>Source</th><th>Destination</th><th>Ports</th><th>Verdict</th><th>Attempts</th>\
         <th>Established</th><th>First</th><th>Last</th><th>Seen there</th></tr></thead>\n<tbody>\n",
    );
    for (i, e) in graph.edges.iter().enumerate() {
        let name = |n: usize| {
            let n = &graph.nodes[n];
            let namespace = if n.namespace.is_empty() {
                String::new()
            } else {
                format!(" <small>{}</small>", markup(&n.namespace))
            };
            format!("{}{namespace}", markup(&n.id))
        };
        let ports: Vec<String> = e.ports.iter().take(20).map(|p| port(p.protocol, p.port)).collect();
        let more = e.ports.len().saturating_sub(20);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let seen: Vec<String> = [&e.source_executables, &e.destination_executables, &e.addresses]
            .into_iter()
            .flatten()
            .take(12)
            .map(|t| markup(t))
            .collect();
        // The outcome is one of four words; anything else is only text here.
        let class = bulkhead_common::Outcome::from_name(&e.outcome).map_or("", bulkhead_common::Outcome::as_str);
        out.push_str(&format!(
            "<tr data-edge=\"{i}\"><td>{}</td><td>{}</td><td>{}{more}</td><td class=\"{class}\">{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            name(e.source),
            name(e.destination),
            markup(&ports.join(", ")),
            markup(&e.outcome),
            e.counts.attempts,
            e.counts.established,
            markup(&rfc3339(e.first)),
            markup(&rfc3339(e.last)),
            seen.join("<br>"),
        ));
    }
    out.push_str("</tbody>\n</table>");
    out
}
