//! Pods whose first instruction is a connection, and that then end: Jobs.
//!
//! Nobody has time to tell the agent of them beforehand. One identity is meant to get through, at once; the other isn't,
//! from its first instruction on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bed::Bed;
use super::estate::{PORT, workload};
use super::grid::{get, items, text};
use super::interrupt::wait;
use crate::cluster::POD_IMAGE;

/// How many pods each Job has.
const RUNS: usize = 5;
/// Beyond any key that the grid gives.
const KEYS: u64 = 1_000_000_000;

/// Runs them, each once the other is over: what they try is the database's Service and its first member.
pub(super) fn run(bed: &mut Bed) -> Result<()> {
    let service = get(&bed.state, &["service", "db", "--namespace", "data"])?;
    let member = get(&bed.state, &["pod", "db-0", "--namespace", "data"])?;
    let places = [text(&service["spec"]["clusterIP"]), text(&member["status"]["podIP"])];
    let mut took = Vec::new();
    for (at, (account, meant)) in [("report", true), ("intruder", false)].into_iter().enumerate() {
        for (to, address) in places.iter().enumerate() {
            let key = KEYS + u64::try_from(at * places.len() + to)?;
            let namespace = workload(account).context("there is such a workload")?.namespace;
            let name = format!("first-{account}-{to}");
            bed.apply(&name, &job(namespace, &name, account, key, &format!("{address}:{PORT}")))?;
            let said = outcomes(bed, namespace, &name)?;
            bed.grid.read()?;
            let heard = bed.grid.attempts.range(..).filter(|((_, k), a)| *k == key && !a.heard.is_empty()).count();
            let expected = if meant { RUNS } else { 0 };
            let outcomes: BTreeSet<&str> = said.iter().map(|(outcome, _)| outcome.as_str()).collect();
            bed.expect(
                heard == expected,
                format!("{heard} of {RUNS} pods of {account} reached {address}, not {expected}: {outcomes:?}"),
            );
            if meant {
                took.extend(said.iter().map(|(_, took)| *took));
            }
            bed.kubectl(&["delete", "job", &name, "--namespace", namespace])?;
        }
    }
    took.sort_unstable();
    bed.evidence.first_connections(&took);
    Ok(())
}

fn job(namespace: &str, name: &str, account: &str, key: u64, place: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "completions": RUNS, "parallelism": RUNS, "backoffLimit": 0,
            "template": {"spec": {
                "serviceAccountName": account, "restartPolicy": "Never",
                "containers": [{
                    "name": "first", "image": POD_IMAGE, "imagePullPolicy": "Never",
                    "args": ["once", key.to_string(), "tcp", place],
                }],
            }},
        },
    })
}

/// What the pods of a Job said, when all of them are over: an outcome, and how many microseconds it took.
fn outcomes(bed: &Bed, namespace: &str, job: &str) -> Result<Vec<(String, u64)>> {
    wait(&format!("Job {job} to be over"), Duration::from_secs(180), || {
        let said = get(&bed.state, &["job", job, "--namespace", namespace])?;
        Ok((said["status"]["succeeded"] == RUNS).then_some(()))
    })?;
    let selector = format!("batch.kubernetes.io/job-name={job}");
    let pods = get(&bed.state, &["pods", "--namespace", namespace, "--selector", &selector])?;
    let mut outcomes = Vec::new();
    for pod in items(&pods) {
        let said = bed.kubectl(&["logs", "--namespace", namespace, &text(&pod["metadata"]["name"])])?;
        let (outcome, took) = said.trim().split_once(' ').with_context(|| format!("a pod said `{said}`"))?;
        outcomes.push((outcome.to_owned(), took.parse().with_context(|| format!("a pod said `{said}`"))?));
    }
    ensure!(outcomes.len() == RUNS, "{job} had {} pods, not {RUNS}", outcomes.len());
    Ok(outcomes)
}
