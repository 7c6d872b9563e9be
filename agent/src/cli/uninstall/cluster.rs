//! `bulkhead uninstall --cluster`: each agent takes itself off, each node is looked at once more, and then the DaemonSet
//! goes, so that nobody starts them again, and what they told of their nodes. A node that still has pins, or couldn't be asked, leaves the DaemonSet where it
//! is: the command can be given again.

use crate::cli::exit::Answer;
use crate::cli::fleet::{Fleet, words};
use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where the agents' configuration is, in their pods.
const CONFIG: &str = "/etc/bulkhead/bulkhead.yaml";

/// What came of one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Outcome {
    /// How many pins were removed.
    removed: usize,
    /// What is still pinned.
    left: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Told<'a> {
    nodes: &'a BTreeMap<String, Outcome>,
    failed: &'a BTreeMap<String, String>,
    daemon_sets_deleted: &'a [String],
    /// Of which kinds all objects were deleted.
    told_deleted: &'a [&'static str],
}

pub(super) fn run(fleet: &Fleet, json: bool) -> crate::cli::Result {
    let off = words(&["uninstall", "--config", CONFIG, "--through-agent", "--json"]);
    let check = words(&["uninstall", "--config", CONFIG, "--check", "--json"]);
    let (removed, mut failed) = fleet.ask(&off, None)?.json::<Vec<PathBuf>>();
    let (left, unchecked) = fleet.ask(&check, None)?.json::<Vec<PathBuf>>();
    let nodes = outcomes(&removed, left, unchecked, &mut failed);
    let clean = failed.is_empty() && nodes.values().all(|o| o.left.is_empty());
    let gone = if clean { fleet.delete_agents() } else { Ok(Vec::new()) };
    // Last: while an agent could still be started, it would tell anew.
    let told = if clean && gone.is_ok() { fleet.delete_told() } else { Ok(Vec::new()) };
    if json {
        let daemon_sets_deleted = gone.as_deref().unwrap_or_default();
        let told_deleted = told.as_deref().unwrap_or_default();
        let told = Told { nodes: &nodes, failed: &failed, daemon_sets_deleted, told_deleted };
        println!("{}", serde_json::to_string_pretty(&told).context("writing JSON")?);
    } else {
        nodes.iter().for_each(|(node, outcome)| println!("{node}: {}", outcome.text()));
    }
    for (node, why) in &failed {
        eprintln!("bulkhead: NOT DONE on {node}: {why}");
    }
    if !clean {
        let bad = nodes.values().filter(|o| !o.left.is_empty()).count() + failed.len();
        return Err(anyhow::anyhow!(
            "{bad} of {} nodes may still enforce; the DaemonSet stays, so that this can be done again. On a node itself: \
             bulkhead uninstall --instance NODE",
            nodes.len() + failed.len()
        )
        .into());
    }
    let gone = gone.context(
        "nothing is pinned on any node, but the DaemonSet is still there and its agents enforce again when they are \
         started again: kubectl delete -k deploy/",
    )?;
    let told = told.with_context(|| {
        format!(
            "nothing is pinned on any node and {} is deleted, but what the agents told of their nodes is still there, and \
             would be believed where only some nodes get an agent again: kubectl delete nodeendpoints,segmentationnodes --all",
            gone.join(", ")
        )
    })?;
    if !json {
        println!("Nothing is pinned on any node. Deleted: {}, all {}.", gone.join(", "), told.join(" and "));
        println!("The rest goes by: kubectl delete -k deploy/");
    }
    Ok(Answer::Fine)
}

impl Outcome {
    fn text(&self) -> String {
        match self.left.first() {
            None => format!("off, {} pins removed, none left", self.removed),
            Some(first) => format!("STILL PINNED: {} and {} more", first.display(), self.left.len() - 1),
        }
    }
}

/// A node counts as done only if it was looked at afterwards.
fn outcomes(
    removed: &BTreeMap<String, Vec<PathBuf>>,
    left: BTreeMap<String, Vec<PathBuf>>,
    unchecked: BTreeMap<String, String>,
    failed: &mut BTreeMap<String, String>,
) -> BTreeMap<String, Outcome> {
    for (node, why) in unchecked {
        failed.entry(node).or_insert_with(|| format!("it couldn't be looked at afterwards: {why}"));
    }
    for node in removed.keys().filter(|node| !left.contains_key(*node)) {
        failed.entry(node.clone()).or_insert_with(|| "it wasn't there any more to be looked at".to_owned());
    }
    let outcome = |(node, left): (String, Vec<PathBuf>)| {
        let n = removed.get(&node)?.len();
        Some((node, Outcome { removed: n, left }))
    };
    left.into_iter().filter_map(outcome).filter(|(node, _)| !failed.contains_key(node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_off_only_if_it_was_looked_at_afterwards() {
        let pins = |n: usize| vec![PathBuf::from("/sys/fs/bpf/bulkhead/n/1/links/x"); n];
        let map = |all: &[(&str, usize)]| all.iter().map(|(node, n)| ((*node).to_owned(), pins(*n))).collect();
        let removed: BTreeMap<String, Vec<PathBuf>> = map(&[("a", 9), ("b", 9), ("c", 9), ("d", 9)]);
        let mut failed = BTreeMap::from([("e".to_owned(), "no route".to_owned())]);
        let unchecked = BTreeMap::from([("c".to_owned(), "gone".to_owned())]);
        let all = outcomes(&removed, map(&[("a", 0), ("b", 2)]), unchecked, &mut failed);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(all["a"].text(), "off, 9 pins removed, none left");
        assert!(all["b"].text().starts_with("STILL PINNED"), "{}", all["b"].text());
        assert_eq!(failed.keys().collect::<Vec<_>>(), ["c", "d", "e"]);
    }
}
