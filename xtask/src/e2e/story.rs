//! From a cluster without Bulkhead to one that enforces, and what a person does with it then.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::bed::Bed;
use super::estate::{NAMESPACES, Truth, WORKLOADS, policies, workload};
use super::interrupt::wait;
use super::jobs;
use super::suggest::{self, Suggested};
use crate::run::step;

/// The main story. `runs`: how many Jobs' first connections are timed in each state.
pub(super) fn tell(bed: &mut Bed, runs: usize) -> Result<()> {
    step("the story");
    bed.step("without an agent", Truth::All, |bed| jobs::time(bed, jobs::State::Without, runs))?;
    let mut suggested = Suggested::default();
    bed.step("observe, and what is suggested", Truth::All, |bed| {
        // What is learned is what is meant: nobody tries anything else meanwhile.
        bed.try_only(Some(Truth::intended()))?;
        bed.deploy()?;
        suggested = suggest::learn(bed)?;
        bed.try_only(None)
    })?;
    graph(bed)?;
    bed.step("Jobs under observe", Truth::All, |bed| jobs::time(bed, jobs::State::Observe, runs))?;
    bed.step("what was suggested, in audit mode", Truth::All, |bed| suggested.apply(bed, "audit"))?;
    bed.step("posture audit", Truth::All, |bed| posture(bed, "audit"))?;
    would_deny(bed)?;
    bed.step("what was suggested, in enforce mode", None::<Truth>, |bed| suggested.apply(bed, "enforce"))?;
    bed.step("posture enforce", Truth::intended(), |bed| posture(bed, "enforce"))?;
    bed.harm("Jobs at their first instruction", |bed| {
        jobs::run(bed)?;
        jobs::time(bed, jobs::State::Enforce, runs)?;
        jobs::nightly(bed)
    })?;
    bed.harm("policies by hand in their place", |bed| {
        let by_hand = policies("enforce");
        bed.apply("policies", &by_hand)?;
        suggest::delete_all_but(bed, &by_hand)
    })?;
    revoke(bed)?;
    delete_a_policy(bed)?;
    break_glass(bed)?;
    lower(bed)
}

/// Labels all namespaces.
fn posture(bed: &mut Bed, word: &str) -> Result<()> {
    let label = format!("bulkhead.dev/posture={word}");
    let mut words = vec!["label", "namespace", "--overwrite"];
    words.extend(NAMESPACES);
    words.push(&label);
    bed.kubectl(&words).map(drop)
}

/// What observation is for: each agent has seen its own pods talk. It adds to its history every ten seconds.
fn graph(bed: &mut Bed) -> Result<()> {
    for agent in bed.agents()? {
        let own: BTreeSet<&str> =
            bed.grid.members.iter().filter(|m| m.node == agent.node).map(|m| m.workload).collect();
        let mut missing = Vec::new();
        wait("the graph to show all members", Duration::from_secs(40), || {
            let (said, code) = bed.bulkhead(&agent, &["graph"])?;
            ensure!(code == 0, "on {} the graph can't be had: {said}", agent.node);
            missing = own.iter().filter(|name| !said.contains(**name)).copied().collect();
            Ok(missing.is_empty().then_some(()))
        })
        .with_context(|| format!("the graph of {} lacks {missing:?}", agent.node))?;
    }
    Ok(())
}

/// Under audit the agents must have counted what enforcement would deny: otherwise nothing was audited.
fn would_deny(bed: &mut Bed) -> Result<()> {
    let told = bed.whole_cluster(&["observe", "--verdict", "would-deny", "--json"])?;
    ensure!(told.contains("intruder"), "the intruder would be denied nothing:\n{told}");
    let report = bed.whole_cluster(&["report"])?;
    ensure!(report.contains("If what is audited were enforced: "), "the report tells no difference:\n{report}");
    Ok(())
}

/// An identity withdrawn on every node, and given back.
fn revoke(bed: &mut Bed) -> Result<()> {
    let id = workload("web").context("web is there")?.id();
    let gone = bed.truth().without(|from, to| from == "web" || to == "web");
    let back = bed.truth().clone();
    bed.step("an identity revoked", gone, |bed| {
        bed.whole_cluster(&["revoke", &id, "--reason", "a stolen key"])?;
        bed.above.revoked.push(id.clone());
        Ok(())
    })?;
    bed.step("and restored", back, |bed| {
        bed.whole_cluster(&["restore", &id])?;
        bed.above.revoked.clear();
        Ok(())
    })
}

/// What only a policy opened is closed with it.
fn delete_a_policy(bed: &mut Bed) -> Result<()> {
    let closed = bed.truth().without(|from, to| from == "cart" && to == "db");
    let back = bed.truth().clone();
    bed.step("a policy deleted", closed, |bed| {
        bed.kubectl(&["delete", "segmentationpolicy", "cart", "--namespace", "shop"]).map(drop)
    })?;
    bed.step("and applied again", back, |bed| bed.apply("policies", &policies("enforce")))
}

fn break_glass(bed: &mut Bed) -> Result<()> {
    let back = bed.truth().clone();
    bed.step("break-glass on both nodes", Truth::All, |bed| {
        let words = ["break-glass", "--scope", "node", "--for", "10m", "--reason", "checkout is down"];
        bed.whole_cluster(&words)?;
        bed.above.break_glass.push("node".to_owned());
        Ok(())
    })?;
    bed.step("and ended", back, |bed| {
        bed.whole_cluster(&["break-glass", "--end"])?;
        bed.above.break_glass.clear();
        Ok(())
    })
}

/// The namespace that is lowered: a policy isolates one of its workloads, and none is in its node's network.
const LOWERED: &str = "data";

/// The annotation that lowers a namespace at once, whatever its label and the policies say, and both ends with it.
fn lower(bed: &mut Bed) -> Result<()> {
    let back = bed.truth().clone();
    let all = WORKLOADS.iter().flat_map(|from| WORKLOADS.iter().map(move |to| (from, to)));
    let touching = all.filter(|(from, to)| from.namespace == LOWERED || to.namespace == LOWERED);
    let opened = back.with(touching.map(|(from, to)| (from.name, to.name)));
    let annotate =
        |bed: &mut Bed, word: &str| bed.kubectl(&["annotate", "namespace", LOWERED, "--overwrite", word]).map(drop);
    bed.step("a namespace lowered to observe", opened, |bed| annotate(bed, "bulkhead.dev/override=observe"))?;
    bed.step("and back", back, |bed| annotate(bed, "bulkhead.dev/override-"))
}
