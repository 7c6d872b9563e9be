//! Taken off every node by `bulkhead uninstall --cluster`, and rolled out again node by node, with a start-up taint.
//!
//! While one node has no agent nothing is kept from anybody there, and yet the other node's pods must know its pods for who
//! they are: what is allowed works in both directions, and what is denied doesn't arrive where there is an agent.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{pinned, unpinned};
use crate::e2e::bed::{Bed, SYSTEM, folder};
use crate::e2e::estate::Truth;
use crate::e2e::grid::{get, items, now, text};
use crate::e2e::interrupt::wait;
use crate::e2e::judge::GRACE;
use crate::run;

/// The node that gets its agent first, and the one that gets it later.
const FIRST: &str = "node1";
const LATER: &str = "node2";
const TAINT: &str = "bulkhead.dev/agent-not-ready";
const DAEMON_SET: &str = "bulkhead-agent";

pub(super) fn run(bed: &mut Bed) -> Result<()> {
    let meant = bed.truth().clone();
    let rights = run::root().join("deploy/kubernetes/startup-taint.yaml");
    bed.step("bulkhead uninstall --cluster", Truth::All, |bed| {
        pinned(bed)?;
        bed.refusals()?;
        let told: Value = serde_json::from_str(&bed.whole_cluster(&["uninstall", "--json"])?)
            .context("it printed something that isn't JSON")?;
        bed.deployed = false;
        bed.excuse()?;
        unpinned(bed)?;
        for node in bed.nodes() {
            bed.expect(told["nodes"][&node]["left"] == json!([]), format!("it tells otherwise of {node}: {told}"));
        }
        let left = get(&bed.state, &["daemonsets", "--namespace", SYSTEM])?;
        bed.expect(items(&left).count() == 0, "the DaemonSet is still there");
        let told = get(&bed.state, &["nodeendpoints,segmentationnodes"])?;
        bed.expect(items(&told).count() == 0, "what the agents told of their nodes is still there");
        Ok(())
    })?;
    // The namespaces enforce all the time, so this node's agent does from its first ruleset on.
    bed.step("enforced on one node beside one without an agent", meant.clone(), |bed| {
        bed.unguarded = Some((LATER, 0, u64::MAX / 2));
        bed.kubectl(&["apply", "--server-side", "-f", &rights.to_string_lossy()])?;
        bed.kubectl(&["taint", "node", FIRST, &format!("{TAINT}=:NoSchedule")])?;
        ensure!(tainted(bed)?, "{FIRST} has no taint, so none can be taken off");
        let overlay = overlay(bed)?;
        bed.deploy_from(&overlay)?;
        let there: Vec<String> = bed.agents()?.into_iter().map(|a| a.node).collect();
        ensure!(there == [FIRST], "agents are on {there:?}, not on {FIRST} alone");
        wait("the taint to be taken off", Duration::from_secs(20), || Ok((!tainted(bed)?).then_some(())))?;
        told_by(bed, LATER, FIRST)
    })?;
    bed.step("and to the other", meant, |bed| {
        bed.deploy()?;
        told_by(bed, LATER, LATER)?;
        // What was opened there before is cut as soon as it is enforced.
        bed.unguarded = Some((LATER, 0, now() + GRACE));
        bed.kubectl(&["delete", "-f", &rights.to_string_lossy()])?;
        bed.examine()
    })
}

fn tainted(bed: &Bed) -> Result<bool> {
    let node = get(&bed.state, &["node", FIRST])?;
    Ok(node["spec"]["taints"].as_array().is_some_and(|taints| taints.iter().any(|t| t["key"] == TAINT)))
}

/// Waits until it is `by` who tells of the node's pods.
fn told_by(bed: &Bed, node: &str, by: &str) -> Result<()> {
    wait("the node's pods to be told of", Duration::from_secs(60), || {
        let all = get(&bed.state, &["nodeendpoints"])?;
        let told = items(&all).find(|told| told["metadata"]["name"] == node);
        Ok(told.filter(|told| text(&told["spec"]["publishedBy"]) == by).map(drop))
    })
    .with_context(|| format!("{by} doesn't tell of {node}"))
}

/// What a person would write to begin with one node: deploy/ with a selector, and the taint's key in the configuration.
fn overlay(bed: &Bed) -> Result<PathBuf> {
    let shipped = run::root().join("deploy");
    let rendered = bed.kubectl(&["kustomize", &shipped.to_string_lossy()])?;
    let line = "  cluster:\n";
    let (before, after) = rendered.split_once(line).context("the shipped configuration has no `cluster:`")?;
    let resources = format!("{before}{line}      startupTaint: {TAINT}\n{after}");
    let selector = json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": DAEMON_SET, "namespace": SYSTEM},
        "spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": FIRST}}}}});
    let kustomization: Value = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["shipped.yaml"], "patches": [{"path": "first.json"}]});
    let overlay = folder().join("first-node");
    for (name, content) in [
        ("shipped.yaml", resources),
        ("first.json", selector.to_string()),
        ("kustomization.yaml", kustomization.to_string()),
    ] {
        run::write_if_changed(&overlay.join(name), content.as_bytes())?;
    }
    Ok(overlay)
}
