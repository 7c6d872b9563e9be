//! Pods whose first instruction is a connection, and that then end: Jobs.
//!
//! Nobody has time to tell the agent of them beforehand. One identity is meant to get through, at once; the other isn't,
//! from its first instruction on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bed::Bed;
use super::estate::{DATABASE, NIGHTLY_KEY, PORT, workload};
use super::grid::{get, now, text};
use super::interrupt::wait;
use crate::cluster::POD_IMAGE;

/// How many pods of each Job try what is denied.
const FEW: usize = 5;
/// How many of those whose connections are timed run at a time. The fewer, the less they are kept waiting by each other's
/// start.
const TIMED_AT_ONCE: usize = 2;
/// Beyond any key that the grid gives.
const KEYS: u64 = 1_000_000_000;

/// What holds while first connections are timed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum State {
    Without,
    Observe,
    Enforce,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Without => "without an agent",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// One of them after the other: what they try is the database's Service and its first member.
pub(super) fn run(bed: &mut Bed) -> Result<()> {
    let member = get(&bed.state, &["pod", "db-0", "--namespace", "data"])?;
    let places = [DATABASE.to_owned(), text(&member["status"]["podIP"])];
    for (at, (account, meant)) in [("report", true), ("intruder", false)].into_iter().enumerate() {
        for (to, address) in places.iter().enumerate() {
            let key = KEYS + u64::try_from(at * places.len() + to)?;
            let name = format!("first-{account}-{to}");
            let (said, heard) = made(bed, &name, account, key, address, (FEW, FEW))?;
            let expected = if meant { FEW } else { 0 };
            let outcomes = distinct(&said);
            bed.expect(
                heard == expected,
                format!("{heard} of {FEW} pods of {account} reached {address}, not {expected}: {outcomes:?}"),
            );
        }
    }
    Ok(())
}

/// How long the first connection takes that is allowed, over so many pods.
pub(super) fn time(bed: &mut Bed, state: State, runs: usize) -> Result<()> {
    let key = KEYS + 100 + state as u64;
    let name = format!("timed-{}", state.as_str().split(' ').next().unwrap_or_default());
    let (said, heard) = made(bed, &name, "report", key, DATABASE, (runs, TIMED_AT_ONCE))?;
    bed.expect(heard == runs, format!("{heard} of {runs} first connections arrived: {:?}", distinct(&said)));
    let mut took: Vec<u64> = said.iter().map(|(_, took)| *took).collect();
    took.sort_unstable();
    bed.evidence.first_connections(state, &took);
    Ok(())
}

/// One run of the CronJob, which is meant to reach the database.
pub(super) fn nightly(bed: &mut Bed) -> Result<()> {
    let (start, job) = (now(), format!("nightly-{:010}", now() / 1_000_000));
    bed.kubectl(&["create", "job", &job, "--from=cronjob/nightly", "--namespace", "billing"])?;
    let said = outcomes(bed, "billing", &job, 1)?;
    bed.grid.read()?;
    let heard = bed.grid.heard_since(NIGHTLY_KEY, start);
    bed.expect(heard == 1, format!("the CronJob's run reached the database {heard} times, not once: {said:?}"));
    bed.kubectl(&["delete", "job", &job, "--namespace", "billing"]).map(drop)
}

/// The outcomes that there were.
fn distinct(said: &[(String, u64)]) -> BTreeSet<&str> {
    said.iter().map(|(outcome, _)| outcome.as_str()).collect()
}

/// Runs a Job of so many pods, so many at once: what they said, and how many were heard.
fn made(
    bed: &mut Bed,
    name: &str,
    account: &str,
    key: u64,
    address: &str,
    (runs, at_once): (usize, usize),
) -> Result<(Vec<(String, u64)>, usize)> {
    let (start, namespace) = (now(), workload(account).context("there is such a workload")?.namespace);
    bed.apply(name, &job(namespace, name, account, key, &format!("{address}:{PORT}"), (runs, at_once)))?;
    let said = outcomes(bed, namespace, name, runs)?;
    bed.grid.read()?;
    let heard = bed.grid.heard_since(key, start);
    bed.kubectl(&["delete", "job", name, "--namespace", namespace])?;
    Ok((said, heard))
}

fn job(namespace: &str, name: &str, account: &str, key: u64, place: &str, (runs, at_once): (usize, usize)) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "completions": runs, "parallelism": at_once, "backoffLimit": 0,
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
fn outcomes(bed: &Bed, namespace: &str, job: &str, runs: usize) -> Result<Vec<(String, u64)>> {
    wait(&format!("Job {job} to be over"), Duration::from_secs(600), || {
        let said = get(&bed.state, &["job", job, "--namespace", namespace])?;
        Ok((said["status"]["succeeded"] == runs).then_some(()))
    })?;
    let selector = format!("batch.kubernetes.io/job-name={job}");
    let words = ["logs", "--namespace", namespace, "--selector", &selector, "--tail=-1", "--max-log-requests=200"];
    let said = bed.kubectl(&words)?;
    let mut outcomes = Vec::new();
    for line in said.lines() {
        let (outcome, took) = line.trim().split_once(' ').with_context(|| format!("a pod said `{line}`"))?;
        outcomes.push((outcome.to_owned(), took.parse().with_context(|| format!("a pod said `{line}`"))?));
    }
    ensure!(outcomes.len() == runs, "{job} told of {} pods, not {runs}", outcomes.len());
    Ok(outcomes)
}
