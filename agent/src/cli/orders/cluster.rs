//! The same order to every agent of a cluster. A node that didn't follow it is an error, whatever the others did, and
//! giving the order again does no harm where it was followed.

use super::{counted, render};
use crate::cli::exit::Answer;
use crate::cli::fleet::Fleet;
use crate::serve::orders::{CutLine, Cutting, Done};
use anyhow::Context;
use std::collections::BTreeMap;

/// How many nodes are named where several say the same.
const NAMED: usize = 5;

/// An order as a command of each agent's pod.
pub(super) struct Deed {
    /// The command, which answers with a [`Done`] as JSON.
    pub(super) command: Vec<String>,
    /// How it goes on where it wasn't followed: `the ID isn't revoked there`.
    pub(super) otherwise: String,
    /// What is asked for, should no node know of such a thing.
    pub(super) named: String,
    /// What to do for nodes that come later, which don't know the order.
    pub(super) later: Option<String>,
}

/// Gives it, and tells what came of it.
pub(super) fn tell(fleet: &Fleet, deed: &Deed, json: bool) -> crate::cli::Result {
    let (done, failed) = fleet.ask(&deed.command, None)?.json::<Done>();
    if json {
        let told = serde_json::json!({"nodes": done, "failed": failed});
        println!("{}", serde_json::to_string_pretty(&told).context("writing JSON")?);
    } else {
        print!("{}", page(&done));
    }
    for (node, why) in &failed {
        eprintln!("bulkhead: NOT DONE on {node}: {why}");
    }
    if !failed.is_empty() {
        return Err(anyhow::anyhow!(
            "{} of {} nodes didn't do it: {}; give the same command again, which does no harm to the others",
            failed.len(),
            failed.len() + done.len(),
            deed.otherwise
        )
        .into());
    }
    if let Some(later) = &deed.later {
        eprintln!("bulkhead: a node that joins later doesn't know this: {later}");
    }
    if done.values().all(|d| d.unseen) {
        eprintln!("bulkhead: no node knows {}: is it spelled right?", deed.named);
        return Ok(Answer::Findings);
    }
    let would_cut = done.values().filter_map(|d| d.cut.as_ref()).any(|c| c.dry_run && c.sockets > 0);
    Ok(if would_cut { Answer::Findings } else { Answer::Fine })
}

/// What the nodes say, alike ones together, and what was cut on all of them.
fn page(done: &BTreeMap<String, Done>) -> String {
    let mut said: BTreeMap<(&str, bool), Vec<&str>> = BTreeMap::new();
    for (node, d) in done {
        said.entry((&d.text, d.already)).or_default().push(node);
    }
    let mut out = String::new();
    for ((text, already), nodes) in said {
        let mut names = nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        if nodes.len() > NAMED {
            names.push_str(&format!(" and {} more", nodes.len() - NAMED));
        }
        let before = if already { ", as before" } else { "" };
        let number = counted(u64::try_from(nodes.len()).unwrap_or(u64::MAX), "node");
        out.push_str(&format!("{text}{before}\n  on {number}: {names}\n"));
    }
    out + &render(&Done { cut: merged(done), ..Done::default() })
}

/// What was cut on all nodes together.
fn merged(done: &BTreeMap<String, Done>) -> Option<Cutting> {
    let mut lines: BTreeMap<CutLine, u64> = BTreeMap::new();
    let mut all: Option<Cutting> = None;
    for (node, cut) in done.iter().filter_map(|(node, d)| Some((node, d.cut.as_ref()?))) {
        let sum = all.get_or_insert_with(Cutting::default);
        sum.dry_run |= cut.dry_run;
        sum.namespaces = sum.namespaces.saturating_add(cut.namespaces);
        sum.looked_at = sum.looked_at.saturating_add(cut.looked_at);
        sum.sockets = sum.sockets.saturating_add(cut.sockets);
        sum.took_us = sum.took_us.max(cut.took_us);
        sum.faults.extend(cut.faults.iter().map(|fault| format!("{node}: {fault}")));
        for line in &cut.connections {
            let n = lines.entry(CutLine { sockets: 0, ..line.clone() }).or_default();
            *n = n.saturating_add(line.sockets);
        }
    }
    all.map(|sum| Cutting {
        connections: lines.into_iter().map(|(line, sockets)| CutLine { sockets, ..line }).collect(),
        ..sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::PeerName;

    #[test]
    fn nodes_that_say_the_same_share_a_line_and_their_cuts_are_one_table() {
        let name = |id: &str| PeerName { id: format!("spiffe://t/{id}"), namespace: String::new() };
        let line = |sockets| CutLine {
            source: name("web"),
            destination: name("db"),
            protocol: 6,
            port: 5432,
            reason: "deny-rule".to_owned(),
            rule: None,
            sockets,
        };
        let cut = |sockets| Cutting {
            sockets,
            namespaces: 1,
            looked_at: 9,
            connections: vec![line(sockets)],
            faults: vec!["one couldn't be ended".to_owned()],
            ..Cutting::default()
        };
        let revoked = |sockets| Done { text: "it is revoked".to_owned(), cut: Some(cut(sockets)), ..Done::default() };
        let mut done: BTreeMap<String, Done> = (1..=7).map(|n| (format!("n{n}"), revoked(n))).collect();
        done.insert("n8".to_owned(), Done { already: true, cut: None, ..revoked(0) });
        let page = page(&done);
        for words in [
            "it is revoked\n  on 7 nodes: n1, n2, n3, n4, n5 and 2 more",
            "it is revoked, as before\n  on 1 node: n8",
            "28 live sockets cut, of 63 looked at in 7 network namespaces",
            "FAULT: n3: one couldn't be ended",
        ] {
            assert!(page.contains(words), "{words} isn't in\n{page}");
        }
        assert_eq!(page.matches("tcp/5432").count(), 1, "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    }
}
