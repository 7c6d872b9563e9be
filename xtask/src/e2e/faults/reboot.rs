//! A node on which nothing is in force, as after a reboot: no agent, nothing pinned; and pods that try what is denied from
//! their first instruction on.
//!
//! What arrives until the node's agent is ready is counted by itself, and told: docs/kubernetes.md says that there is such
//! a time. What is no part of it fails: another node never lets anything in, nor does this one once its agent is ready.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::POD_IMAGE;
use crate::e2e::bed::Bed;
use crate::e2e::estate::PORT;
use crate::e2e::evidence::Reboot;
use crate::e2e::grid::{get, now};
use crate::e2e::interrupt::wait;
use crate::run;

const PODS: usize = 20;
/// For how long each of them tries: longer than the agent takes.
const SECONDS: u64 = 25;
const KEY: u64 = 1_500_000_000;
const NODE: &str = "node2";
const JOB: &str = "storm";

pub(super) fn run(bed: &mut Bed) -> Result<()> {
    bed.harm("bpffs emptied, as by a reboot", |bed| {
        let kubelet = format!("kubelet@{NODE}");
        let agent = bed.agents()?.into_iter().find(|a| a.node == NODE).context("no agent there")?;
        let targets: Vec<_> = bed.grid.members.iter().filter(|m| m.workload == "db").cloned().collect();
        ensure!(targets.iter().any(|m| m.node == NODE), "no database pod is on {NODE}");
        bed.state.stop(&kubelet, Duration::ZERO)?;
        run::run_quietly(bed.state.ctr(NODE)?.args(["tasks", "kill", "--signal", "SIGKILL", &agent.container]))?;
        let from = now();
        let empty = ["/sys/fs/bpf", "-mindepth", "1", "-not", "-name", "*.debug", "-delete"];
        run::run_quietly(bed.state.on(NODE, "find")?.args(empty))?;
        bed.kills += 1;
        let places = targets.iter().filter_map(|m| m.addresses.first()).map(|a| format!("{a}:{PORT}")).collect();
        bed.apply(JOB, &storm(places))?;
        bed.state.start(&kubelet)?;
        let ready = wait("the agent to be ready again", Duration::from_secs(180), || {
            let now = bed.agents()?.into_iter().find(|a| a.uid == agent.uid).context("the agent's pod is gone")?;
            Ok((now.restarts > agent.restarts && now.ready).then(super::super::grid::now))
        })?;
        bed.unguarded = Some((NODE, from, ready));
        wait("the pods to have tried", Duration::from_secs(240), || {
            let said = get(&bed.state, &["job", JOB, "--namespace", "billing"])?;
            Ok((said["status"]["succeeded"] == PODS).then_some(()))
        })?;
        let words = ["logs", "--namespace", "billing", "--selector", "batch.kubernetes.io/job-name=storm"];
        let said = bed.kubectl(&[&words[..], &["--tail=-1", "--max-log-requests=50"]].concat())?;
        let began: Vec<(usize, u64)> = said.lines().filter_map(storm_line).collect();
        let attempts = began.iter().map(|(tried, _)| tried).sum();
        ensure!(attempts > PODS * targets.len(), "the pods tried only {attempts} times: {said}");
        let pods_before_ready = began.iter().filter(|(_, since)| *since < ready).count();
        bed.kubectl(&["delete", "job", JOB, "--namespace", "billing"])?;
        bed.grid.read()?;
        let mut told =
            Reboot { pods: PODS, pods_before_ready, attempts, open_ms: (ready - from) / 1000, ..Reboot::default() };
        for ((sent, key), attempt) in bed.grid.attempts.range((from, 0)..) {
            if *key != KEY || attempt.heard.is_empty() {
                continue;
            }
            let here = targets.iter().any(|m| m.node == NODE && attempt.heard.contains(&m.name));
            let count = match (here, *sent < ready) {
                (false, _) => &mut told.leaked_to_other_node,
                (true, true) => &mut told.leaked_before_ready,
                (true, false) => &mut told.leaked_after_ready,
            };
            *count += 1;
        }
        let Reboot { leaked_to_other_node, leaked_after_ready, .. } = told;
        bed.expect(leaked_to_other_node == 0, format!("{leaked_to_other_node} attempts arrived on another node"));
        bed.expect(leaked_after_ready == 0, format!("{leaked_after_ready} attempts arrived once the agent was ready"));
        bed.evidence.reboot(told);
        Ok(())
    })
}

/// How often a pod tried, and when it began.
fn storm_line(line: &str) -> Option<(usize, u64)> {
    let (tried, since) = line.strip_prefix("tried ")?.split_once(" since ")?;
    Some((tried.parse().ok()?, since.parse().ok()?))
}

fn storm(places: Vec<String>) -> Value {
    let mut args = vec!["storm".to_owned(), KEY.to_string(), SECONDS.to_string()];
    args.extend(places);
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": JOB, "namespace": "billing"},
        "spec": {"completions": PODS, "parallelism": PODS, "backoffLimit": 0, "template": {"spec": {
            "serviceAccountName": "intruder", "restartPolicy": "Never",
            "nodeSelector": {"kubernetes.io/hostname": NODE},
            "containers": [{"name": "storm", "image": POD_IMAGE, "imagePullPolicy": "Never", "args": args}],
        }}},
    })
}
