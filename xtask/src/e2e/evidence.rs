//! What the run found: a line for each step on the terminal, and the same for programs.

use anyhow::{Context, Result};
use serde::Serialize;

use super::jobs::State;
use super::judge::Found;
use crate::run::note;

/// The fewest ways that a step must have tried.
const FEWEST: usize = 400;

#[derive(Serialize)]
pub(super) struct Evidence {
    nodes: usize,
    steps: Vec<Step>,
    restarts: Restarts,
    first_connections: Vec<FirstConnections>,
    /// What a node's bpffs emptied as by a reboot let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    reboot: Option<Reboot>,
}

/// How long connections took that pods of Jobs made at their first instruction, in microseconds.
#[derive(Serialize)]
struct FirstConnections {
    state: &'static str,
    number: usize,
    p50_us: u64,
    p99_us: u64,
    slowest_us: u64,
    /// Beyond the same without an agent.
    added_p50_us: i64,
    added_p99_us: i64,
}

/// Pods that try what is denied from their first instruction on, while a node has no agent and nothing is pinned there.
#[derive(Default, Serialize)]
pub(super) struct Reboot {
    pub(super) pods: usize,
    /// Those that began before the agent was ready: without any, nothing was tried meanwhile.
    pub(super) pods_before_ready: usize,
    /// From when nothing was pinned until the agent was ready.
    pub(super) open_ms: u64,
    /// Attempts, and those of them that arrived, by where they arrived and whether the node's agent was ready again.
    pub(super) attempts: usize,
    pub(super) leaked_to_other_node: usize,
    pub(super) leaked_before_ready: usize,
    pub(super) leaked_after_ready: usize,
}

#[derive(Serialize)]
struct Step {
    name: String,
    /// Ordered pairs, times the ways from one to the other, tried after the step had settled.
    pairs: usize,
    attempts: usize,
    false_allows: usize,
    false_denies_after_convergence: usize,
    /// Meant to arrive before and after the step, and didn't while it was made.
    lost: usize,
    convergence_ms: u64,
    /// Connections that last, opened before the step and allowed before and after it; how many of them broke; and how many
    /// went on though the step denies them.
    held: usize,
    held_lost: usize,
    held_leaks: usize,
    /// What else the step looked at and wasn't so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrong: Vec<String>,
}

/// What the steps that end agents, or what agents depend on, came to together.
#[derive(Default, Serialize)]
pub(super) struct Restarts {
    pub(super) kills: usize,
    pub(super) packets_sent: usize,
    pub(super) packets_leaked: usize,
    pub(super) connections_lost: usize,
}

impl Step {
    fn failed(&self) -> bool {
        self.pairs < FEWEST
            || self.false_allows > 0
            || self.false_denies_after_convergence > 0
            || self.held_lost > 0
            || self.held_leaks > 0
            || !self.wrong.is_empty()
    }
}

impl Evidence {
    pub(super) fn new(nodes: usize) -> Self {
        let (steps, first_connections) = (Vec::new(), Vec::new());
        Self { nodes, steps, restarts: Restarts::default(), first_connections, reboot: None }
    }

    /// Takes the times of first connections, in order.
    pub(super) fn first_connections(&mut self, state: State, took: &[u64]) {
        let at =
            |percent: usize| took.get((took.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
        let (p50, p99) = (at(50), at(99));
        let bare = self.first_connections.iter().find(|f| f.state == State::Without.as_str());
        let beyond = |now: u64, bare: u64| i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(bare).unwrap_or(0);
        self.first_connections.push(FirstConnections {
            state: state.as_str(),
            number: took.len(),
            p50_us: p50,
            p99_us: p99,
            slowest_us: took.last().copied().unwrap_or(0),
            added_p50_us: bare.map_or(0, |b| beyond(p50, b.p50_us)),
            added_p99_us: bare.map_or(0, |b| beyond(p99, b.p99_us)),
        });
    }

    /// Takes what came of emptying a node's bpffs.
    pub(super) fn reboot(&mut self, reboot: Reboot) {
        self.reboot = Some(reboot);
    }

    /// Takes a step's result, and says it. `kills`: how many processes the step ended.
    pub(super) fn add(&mut self, name: &str, found: Found, wrong: Vec<String>, kills: usize) {
        if self.steps.is_empty() {
            println!("{}", line(["STEP", "PAIRS", "TRIED", "LEAKS", "DENIED", "LOST", "HELD", "IN FORCE", ""]));
        }
        let step = Step {
            name: name.to_owned(),
            pairs: found.ways,
            attempts: found.attempts,
            false_allows: found.false_allows,
            false_denies_after_convergence: found.false_denies,
            lost: found.lost,
            convergence_ms: found.convergence.div_ceil(1000),
            held: found.held,
            held_lost: found.held_lost,
            held_leaks: found.held_leaks,
            wrong,
        };
        if kills > 0 {
            self.restarts.kills += kills;
            self.restarts.packets_sent += step.attempts;
            self.restarts.packets_leaked += step.false_allows + step.held_leaks;
            self.restarts.connections_lost += step.lost + step.false_denies_after_convergence + step.held_lost;
        }
        let number = |n: usize| n.to_string();
        println!(
            "{}",
            line([
                name,
                &number(step.pairs),
                &number(step.attempts),
                &number(step.false_allows + step.held_leaks),
                &number(step.false_denies_after_convergence),
                &number(step.lost + step.held_lost),
                &number(step.held),
                &format!("{} ms", step.convergence_ms),
                if step.failed() { "WRONG" } else { "right" },
            ])
        );
        for words in step.wrong.iter().chain(&found.leaks).chain(&found.missing) {
            note(words);
        }
        if step.pairs < FEWEST {
            note(format!("{} ways are too few: {FEWEST} are to be tried", step.pairs));
        }
        self.steps.push(step);
    }

    pub(super) fn failed(&self) -> bool {
        self.steps.is_empty() || self.steps.iter().any(Step::failed)
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).context("can't write JSON")? + "\n")
    }

    /// The sum.
    pub(super) fn tell(&self) {
        let wrong = self.steps.iter().filter(|s| s.failed()).count();
        let attempts: usize = self.steps.iter().map(|s| s.attempts).sum();
        let leaks: usize = self.steps.iter().map(|s| s.false_allows).sum();
        note(format!("{} steps, {wrong} wrong; {attempts} attempts, {leaks} leaks", self.steps.len()));
        for f in &self.first_connections {
            let ms = |us: u64| us as f64 / 1000.0;
            note(format!(
                "{} connections at a pod's first instruction, {}: median {:.1} ms, p99 {:.1} ms (added {:.1} ms)",
                f.number,
                f.state,
                ms(f.p50_us),
                ms(f.p99_us),
                f.added_p99_us as f64 / 1000.0
            ));
        }
        if let Some(r) = &self.reboot {
            note(format!(
                "bpffs emptied: {} attempts of {} pods, {} of which began before the agent was ready ({:.1} s)",
                r.attempts,
                r.pods,
                r.pods_before_ready,
                r.open_ms as f64 / 1000.0
            ));
            note(format!(
                "{} leaks before the agent was ready, {} after, {} on the other node",
                r.leaked_before_ready, r.leaked_after_ready, r.leaked_to_other_node
            ));
        }
        let Restarts { kills, packets_sent, packets_leaked, connections_lost } = self.restarts;
        note(format!(
            "over {kills} restarts: {packets_sent} attempts, {packets_leaked} leaks, {connections_lost} lost"
        ));
    }
}

fn line(cells: [&str; 9]) -> String {
    let [name, pairs, tried, leaks, denied, lost, held, force, word] = cells;
    format!("{name:<36} {pairs:>6} {tried:>7} {leaks:>6} {denied:>6} {lost:>5} {held:>5} {force:>9}  {word}")
}
