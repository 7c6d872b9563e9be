//! What is meant to work, by Bulkhead's own slow reference: `bulkhead policy test` on the objects that the API server has.
//!
//! It asks for every ordered pair of workloads, TCP and UDP, after each step. So what the kernels do is held against what
//! the policies mean, and not only against what somebody thought that they mean.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::bed::folder;
use super::estate::{PORT, Truth, WORKLOADS, Workload};
use crate::cluster::State;
use crate::run;

/// What is decided above the policies, by command.
#[derive(Default)]
pub(super) struct Above {
    /// IDs.
    pub(super) revoked: Vec<String>,
    /// Scopes.
    pub(super) break_glass: Vec<String>,
}

pub(super) struct Oracle {
    program: PathBuf,
}

const PROTOCOLS: [&str; 2] = ["TCP", "UDP"];

impl Oracle {
    pub(super) fn new(program: &Path) -> Self {
        Self { program: program.to_owned() }
    }

    /// The command line that answers.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// The table as of now.
    pub(super) fn ask(&self, state: &State, above: &Above) -> Result<Truth> {
        let kinds = ["get", "namespaces,pods,segpol,csegpol", "--all-namespaces", "--output=json"];
        let objects = folder().join("objects.json");
        run::write_if_changed(&objects, run::output_of(state.kubectl().args(kinds))?.as_bytes())?;
        let cases = folder().join("cases.yaml");
        run::write_if_changed(&cases, json!({"cases": asked().map(case).collect::<Vec<_>>()}).to_string().as_bytes())?;
        let mut test = Command::new(&self.program);
        test.args(["policy", "test", "--json"]).arg(&cases).arg("--objects").arg(&objects);
        for (option, values) in [("--revoked", &above.revoked), ("--break-glass", &above.break_glass)] {
            test.args(values.iter().flat_map(|value| [option, value]));
        }
        let done = run::collect(&mut test)?;
        // 1: some cases aren't as they say, which all say `allowed`.
        if !matches!(done.status.code(), Some(0 | 1)) {
            bail!("`{}` failed: {}", run::line_of(&test), String::from_utf8_lossy(&done.stderr).trim_end());
        }
        read(&serde_json::from_slice(&done.stdout).context("it printed something that isn't JSON")?)
    }
}

/// Who is asked about, in the order of the cases.
fn asked() -> impl Iterator<Item = (&'static Workload, &'static Workload, &'static str)> {
    let pairs = WORKLOADS.iter().flat_map(|from| WORKLOADS.iter().map(move |to| (from, to)));
    pairs.flat_map(|(from, to)| PROTOCOLS.map(|protocol| (from, to, protocol)))
}

fn case((from, to, protocol): (&Workload, &Workload, &str)) -> Value {
    json!({"from": from.id(), "to": to.id(), "protocol": protocol, "port": PORT, "outcome": "allowed"})
}

/// What came of the cases.
fn read(told: &Value) -> Result<Truth> {
    let cases = told["cases"].as_array().context("it told of no cases")?;
    let asked: Vec<_> = asked().collect();
    ensure!(cases.len() == asked.len(), "it was asked {} cases and told of {}", asked.len(), cases.len());
    let (mut allowed, mut denied) = (BTreeSet::new(), BTreeSet::new());
    for (case, (from, to, protocol)) in cases.iter().zip(asked) {
        let got = &case["got"];
        ensure!(
            got["from"]["party"] == from.id() && got["to"]["party"] == to.id(),
            "it told of another case than it was asked: {got}"
        );
        match got["outcome"].as_str() {
            // What has no members only connects, by TCP; rules that were learned know no more.
            _ if protocol == "UDP" && [from, to].iter().any(|w| w.members() == 0) => {}
            Some("allowed" | "would-deny") => drop(allowed.insert((from.name, to.name))),
            Some("denied" | "would-allow") => drop(denied.insert((from.name, to.name))),
            _ => bail!("it told of no outcome: {got}"),
        }
    }
    if let Some((from, to)) = allowed.intersection(&denied).next() {
        bail!("{from} may reach {to} by one protocol and not by the other, and the estate makes no difference");
    }
    Ok(Truth::Only(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(outcome: impl Fn(&str, &str, &str) -> &'static str) -> Value {
        let got = |(from, to, protocol): (&Workload, &Workload, &str)| {
            json!({"got": {"from": {"party": from.id()}, "to": {"party": to.id()},
                "outcome": outcome(from.name, to.name, protocol)}})
        };
        json!({"cases": asked().map(got).collect::<Vec<_>>()})
    }

    #[test]
    fn what_passes_now_is_what_counts() {
        let truth = read(&told(|from, to, _| match (from, to) {
            ("web", "cart") => "would-deny",
            ("web", "db") => "would-allow",
            ("cart", "db") => "allowed",
            _ => "denied",
        }));
        assert_eq!(truth.expect("a table"), Truth::Only([("web", "cart"), ("cart", "db")].into()));
        assert!(read(&told(|_, _, protocol| if protocol == "TCP" { "allowed" } else { "denied" })).is_err());
        assert!(read(&json!({"cases": []})).is_err());
        assert!(read(&told(|_, _, _| "perhaps")).is_err());
    }
}
