//! From a cluster without Bulkhead to one that enforces, and what a person does with it then.

use anyhow::{Context, Result, ensure};

use super::bed::Bed;
use super::estate::{NAMESPACES, Truth, WORKLOADS, policies, workload};
use crate::run::step;

/// The main story.
pub(super) fn tell(bed: &mut Bed) -> Result<()> {
    step("the story");
    bed.step("without an agent", Truth::All, |_| Ok(()))?;
    bed.step("observe", Truth::All, |bed| bed.deploy())?;
    graph(bed)?;
    bed.step("policies, in audit mode", Truth::All, |bed| bed.apply("policies", &policies("audit")))?;
    bed.step("posture audit", Truth::All, |bed| posture(bed, "audit"))?;
    would_deny(bed)?;
    bed.step("policies, in enforce mode", only_isolated(), |bed| bed.apply("policies", &policies("enforce")))?;
    bed.step("posture enforce", Truth::intended(), |bed| posture(bed, "enforce"))?;
    bed.harm("Jobs at their first instruction", super::jobs::run)?;
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

/// While namespaces only audit, policies in force isolate whom they select: cart's egress, and the database both ways.
fn only_isolated() -> Truth {
    let all = WORKLOADS.iter().flat_map(|f| WORKLOADS.iter().map(|t| (f.name, t.name)));
    let intended = Truth::intended();
    let isolated = |from: &str, to: &str| from == "cart" || from == "db" || to == "db";
    Truth::Only(all.filter(|(from, to)| !isolated(from, to) || intended.allows(from, to)).collect())
}

/// What observation is for: each agent has seen its own pods talk.
fn graph(bed: &mut Bed) -> Result<()> {
    for agent in bed.agents()? {
        let (said, code) = bed.bulkhead(&agent, &["graph"])?;
        ensure!(code == 0, "on {} the graph can't be had: {said}", agent.node);
        for member in bed.grid.members.iter().filter(|m| m.node == agent.node) {
            ensure!(said.contains(member.workload), "the graph of {} has no {}:\n{said}", agent.node, member.workload);
        }
    }
    Ok(())
}

/// Under audit the agents must have counted what enforcement would deny: otherwise nothing was audited.
fn would_deny(bed: &mut Bed) -> Result<()> {
    let told = bed.everywhere(&["observe", "--verdict", "would-deny", "--json"])?;
    for (at, said) in told.iter().enumerate() {
        ensure!(said.contains("intruder"), "agent {} would deny the intruder nothing:\n{said}", at + 1);
    }
    Ok(())
}

/// An identity withdrawn on every node, and given back.
fn revoke(bed: &mut Bed) -> Result<()> {
    let id = workload("web").context("web is there")?.id();
    let gone = bed.truth().without(|from, to| from == "web" || to == "web");
    let back = bed.truth().clone();
    bed.step("an identity revoked", gone, |bed| {
        bed.everywhere(&["revoke", &id, "--reason", "a stolen key"]).map(drop)
    })?;
    bed.step("and restored", back, |bed| bed.everywhere(&["restore", &id]).map(drop))
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
        bed.everywhere(&words).map(drop)
    })?;
    bed.step("and ended", back, |bed| bed.everywhere(&["break-glass", "--end"]).map(drop))
}

/// The namespace that is lowered: a policy isolates one of its workloads, and none is in its node's network.
const LOWERED: &str = "data";

/// The annotation that lowers a namespace at once, whatever its label and the policies say, and both ends with it.
fn lower(bed: &mut Bed) -> Result<()> {
    let back = bed.truth().clone();
    let opened = match &back {
        Truth::All => Truth::All,
        Truth::Only(pairs) => {
            let all = WORKLOADS.iter().flat_map(|from| WORKLOADS.iter().map(move |to| (from, to)));
            let lowered = all.filter(|(from, to)| from.namespace == LOWERED || to.namespace == LOWERED);
            let lowered = lowered.map(|(from, to)| (from.name, to.name));
            Truth::Only(pairs.iter().copied().chain(lowered).collect())
        }
    };
    let annotate =
        |bed: &mut Bed, word: &str| bed.kubectl(&["annotate", "namespace", LOWERED, "--overwrite", word]).map(drop);
    bed.step("a namespace lowered to observe", opened, |bed| annotate(bed, "bulkhead.dev/override=observe"))?;
    bed.step("and back", back, |bed| annotate(bed, "bulkhead.dev/override-"))
}
