//! What the run found: a line for each step on the terminal, and the same for programs.

use anyhow::{Context, Result};
use serde::Serialize;

use super::judge::Found;
use crate::run::note;

/// The fewest ways that a step must have tried.
const FEWEST: usize = 400;

#[derive(Serialize)]
pub(super) struct Evidence {
    nodes: usize,
    steps: Vec<Step>,
    restarts: Restarts,
    first_connections: FirstConnections,
}

/// How long connections took that pods of Jobs made at their first instruction, in microseconds.
#[derive(Default, Serialize)]
struct FirstConnections {
    number: usize,
    median_us: u64,
    slowest_us: u64,
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
            || !self.wrong.is_empty()
    }
}

impl Evidence {
    pub(super) fn new(nodes: usize) -> Self {
        Self { nodes, steps: Vec::new(), restarts: Restarts::default(), first_connections: FirstConnections::default() }
    }

    /// Takes the times of first connections, in order.
    pub(super) fn first_connections(&mut self, took: &[u64]) {
        let (Some(median), Some(slowest)) = (took.get(took.len() / 2), took.last()) else { return };
        self.first_connections = FirstConnections { number: took.len(), median_us: *median, slowest_us: *slowest };
    }

    /// Takes a step's result, and says it. `kills`: how many processes the step ended.
    pub(super) fn add(&mut self, name: &str, found: Found, wrong: Vec<String>, kills: usize) {
        if self.steps.is_empty() {
            println!("{}", line(["STEP", "PAIRS", "TRIED", "LEAKS", "DENIED", "LOST", "IN FORCE", ""]));
        }
        let step = Step {
            name: name.to_owned(),
            pairs: found.ways,
            attempts: found.attempts,
            false_allows: found.false_allows,
            false_denies_after_convergence: found.false_denies,
            lost: found.lost,
            convergence_ms: found.convergence.div_ceil(1000),
            wrong,
        };
        if kills > 0 {
            self.restarts.kills += kills;
            self.restarts.packets_sent += step.attempts;
            self.restarts.packets_leaked += step.false_allows;
            self.restarts.connections_lost += step.lost + step.false_denies_after_convergence;
        }
        let number = |n: usize| n.to_string();
        println!(
            "{}",
            line([
                name,
                &number(step.pairs),
                &number(step.attempts),
                &number(step.false_allows),
                &number(step.false_denies_after_convergence),
                &number(step.lost),
                &format!("{} ms", step.convergence_ms),
                if step.failed() { "WRONG" } else { "right" },
            ])
        );
        for words in step.wrong.iter().chain(&found.words) {
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
        let FirstConnections { number, median_us, slowest_us } = self.first_connections;
        note(format!(
            "{number} connections at a pod's first instruction: median {} ms, slowest {} ms",
            median_us / 1000,
            slowest_us / 1000
        ));
        let Restarts { kills, packets_sent, packets_leaked, connections_lost } = self.restarts;
        note(format!(
            "over {kills} restarts: {packets_sent} attempts, {packets_leaked} leaks, {connections_lost} lost"
        ));
    }
}

fn line(cells: [&str; 8]) -> String {
    let [name, pairs, tried, leaks, denied, lost, force, word] = cells;
    format!("{name:<34} {pairs:>6} {tried:>7} {leaks:>6} {denied:>6} {lost:>5} {force:>9}  {word}")
}
