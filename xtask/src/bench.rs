//! `cargo xtask bench`: what Bulkhead costs, each figure beside nothing and beside empty programs on the same hooks.
//!
//! The measuring itself is a program of the tests package (`tests/bench/`), built with optimisation; it prints the
//! figures as they come. Here they meet their bars: a table, a file of JSON, and an exit code.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::run::{self, step};
use crate::setup::{self, Purpose};
use crate::{build, test};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench                        everything, in some five minutes
  cargo xtask bench --quick                fewer rounds: more noise
  cargo xtask bench --only udp-connect     one figure
  cargo xtask bench k8s                    those about a node of a large Kubernetes cluster
  cargo xtask bench --json bench.json      the figures also as JSON

A bar in `x` limits the ratio of Bulkhead to no programs, one with `+` what Bulkhead adds to that, and any
other the figure itself. In the JSON, `bar` is the bare number.")]
pub(crate) struct Args {
    /// Take only the figures of this part
    part: Option<Part>,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take only this figure (again for more)
    #[arg(long, value_name = "NAME")]
    only: Vec<Measurement>,
    /// A quarter of the rounds
    #[arg(long)]
    quick: bool,
}

/// A part of the figures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A node of a large Kubernetes cluster
    K8s,
}

impl Part {
    const fn measurements(self) -> &'static [Measurement] {
        match self {
            Self::K8s => &[Measurement::K8sReact, Measurement::K8sScale],
        }
    }
}

/// What can be measured by itself; some give several figures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// UDP connect() with 10,000 rules and 1,000 endpoints
    UdpConnect,
    /// TCP connect + accept + close between two namespaces, on one CPU
    TcpConnect,
    /// A small request and response on a held TCP connection, on one CPU
    TcpRequest,
    /// The same with datagrams
    UdpPingPong,
    /// TCP throughput of one connection, on one CPU
    TcpBulk,
    /// What a verdict costs with 100,000 rules, as a multiple of what it costs with 10
    Verdict,
    /// A commit of 10,000 rules from nothing, and of one changed rule
    Commit,
    /// What the verifier goes through, and how long loading and attaching take
    Load,
    /// Whether as many connects are counted as two threads make
    Counted,
    /// From `bulkhead revoke` to the end of 1,000 live sockets
    Revocation,
    /// What a flood of denied connects does to others' connects, to the log and to the agent's memory
    DeniedFlood,
    /// The agent's memory with 50,000 endpoints, 1,000 identities and 10,000 rules
    AgentMemory,
    /// A suggestion and a graph over two weeks of 6,000 links, and their store
    SuggestGraph,
    /// From a cluster's change to what a pod sees, with 10,000 pods and 1,000 policies; 1,000 pods in a second
    K8sReact,
    /// The agent's memory and first sync with 50,000 pods on 5,000 nodes
    K8sScale,
}

/// What a figure is held against.
enum Bar {
    /// At most so many times what it takes without programs.
    Ratio(f64),
    /// At most so much more than without programs.
    Added(f64),
    /// At most so much.
    Absolute(f64),
}

const BARS: [(&str, Bar); 25] = [
    ("udp-connect", Bar::Added(250.0)),
    ("tcp-connect", Bar::Ratio(1.10)),
    ("tcp-request", Bar::Ratio(1.06)),
    ("udp-ping-pong", Bar::Ratio(1.10)),
    ("tcp-bulk", Bar::Ratio(1.03)),
    ("verdict", Bar::Ratio(1.2)),
    ("commit-all", Bar::Absolute(250.0)),
    ("commit-one", Bar::Absolute(5.0)),
    ("verifier", Bar::Absolute(100_000.0)),
    ("load-attach", Bar::Absolute(2000.0)),
    ("counted", Bar::Absolute(0.0)),
    ("revocation", Bar::Absolute(250.0)),
    ("denied-flood", Bar::Ratio(1.2)),
    ("flood-counted", Bar::Absolute(0.0)),
    // Two files of 4 MiB are what the measured agent is told to keep.
    ("flood-log", Bar::Absolute(8.0)),
    ("flood-memory", Bar::Absolute(16.0)),
    ("agent-memory", Bar::Absolute(64.0)),
    ("suggest", Bar::Absolute(1000.0)),
    ("graph", Bar::Absolute(1000.0)),
    ("history-store", Bar::Absolute(95.0)),
    ("k8s-pod", Bar::Absolute(50.0)),
    ("k8s-policy", Bar::Absolute(50.0)),
    ("k8s-swarm", Bar::Absolute(1000.0)),
    ("k8s-memory", Bar::Absolute(64.0)),
    ("k8s-sync", Bar::Absolute(5000.0)),
];

/// What the measuring program prints.
#[derive(Deserialize)]
struct Figure {
    name: String,
    unit: String,
    none: Option<f64>,
    empty: Option<f64>,
    bulkhead: f64,
    ratio: Option<f64>,
    added: Option<f64>,
    note: String,
}

/// A figure and how it did.
#[derive(Serialize)]
struct Row {
    name: String,
    unit: String,
    none: Option<f64>,
    empty: Option<f64>,
    bulkhead: f64,
    ratio: Option<f64>,
    bar: f64,
    ok: bool,
    /// What else there is to say of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
    #[serde(skip)]
    limit: String,
}

impl Row {
    fn of(figure: Figure) -> Result<Self> {
        let Figure { name, unit, none, empty, bulkhead, ratio, added, note } = figure;
        let bar = BARS.iter().find(|(n, _)| *n == name).map(|(_, bar)| bar);
        let (value, bar, limit) = match bar.with_context(|| format!("the figure {name} has no bar"))? {
            // A verdict that cost nothing with few rules can't be a multiple of that with many.
            Bar::Ratio(bar) => (ratio.filter(|ratio| *ratio > 0.0), *bar, format!("{bar:.2} x")),
            Bar::Added(bar) => (added, *bar, format!("+{bar} {unit}")),
            Bar::Absolute(bar) => (Some(bulkhead), *bar, format!("{bar} {unit}")),
        };
        let ok = value.is_some_and(|value| value <= bar);
        Ok(Self { name, unit, none, empty, bulkhead, ratio, bar, ok, note, limit })
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        test::require_root()?;
        setup::ensure(Purpose::Build)?;
        build::kernel()?;
        step("measuring (with other work on this machine the figures are worse than they need be)");
        let rows = self.measure()?;
        println!("\n{}", table(&rows));
        for Row { name, note, .. } in rows.iter().filter(|row| !row.note.is_empty()) {
            println!("{name}: {note}");
        }
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&rows)? + "\n";
            fs::write(file, text).with_context(|| format!("can't write {}", file.display()))?;
        }
        let missed: Vec<&str> = rows.iter().filter(|row| !row.ok).map(|row| row.name.as_str()).collect();
        if !missed.is_empty() {
            bail!("over the bar: {}", missed.join(", "));
        }
        Ok(())
    }

    /// Runs the measuring program and reads its figures.
    fn measure(&self) -> Result<Vec<Row>> {
        // The agent too: some figures are of the real one.
        let mut cargo = run::cargo();
        cargo.args(["build", "--quiet", "--release", "--package", "bulkhead", "--bin", "bulkhead"]);
        run::run(cargo.args(["--package", "bulkhead-tests", "--bin", "bench"]))?;
        let folder = run::target().join("release");
        let mut bench = Command::new(folder.join("bench"));
        bench.env("BULKHEAD", folder.join("bulkhead"));
        if self.quick {
            bench.arg("--quick");
        }
        let part = self.part.map_or(&[][..], Part::measurements);
        for name in self.only.iter().chain(part).filter_map(ValueEnum::to_possible_value) {
            bench.arg(name.get_name());
        }
        let mut child = bench.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("the measuring program has no output")?;
        let rows = BufReader::new(output)
            .lines()
            .map(|line| Row::of(serde_json::from_str(&line?).context("the measuring program printed no figure")?));
        // Read to the end before its exit code counts, so that it isn't cut off.
        let rows: Vec<Result<Row>> = rows.collect();
        let status = child.wait()?;
        if !status.success() {
            bail!("`{}` failed: {status}", run::line_of(&bench));
        }
        rows.into_iter().collect()
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "unit", "none", "empty", "bulkhead", "ratio", "at most", ""]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            row.unit.clone(),
            number(row.none),
            number(row.empty),
            number(Some(row.bulkhead)),
            row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}")),
            row.limit.clone(),
            if row.ok { "ok" } else { "OVER" }.to_owned(),
        ]);
    }
    for column in 2..=6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |v| if v < 100.0 { format!("{v:.1}") } else { format!("{v:.0}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, bulkhead: f64, ratio: Option<f64>, added: Option<f64>) -> Row {
        let (name, unit, note) = (name.to_owned(), "ns".to_owned(), String::new());
        Row::of(Figure { name, unit, none: Some(1000.0), empty: None, bulkhead, ratio, added, note })
            .expect("it has a bar")
    }

    #[test]
    fn each_kind_of_bar_looks_at_its_own_number() {
        assert!(row("udp-connect", 1250.0, Some(1.25), Some(250.0)).ok);
        assert!(!row("udp-connect", 1251.0, Some(1.0), Some(251.0)).ok);
        assert!(row("tcp-connect", 9999.0, Some(1.1), Some(9999.0)).ok);
        assert!(!row("tcp-connect", 1.0, Some(1.11), Some(0.0)).ok);
        assert!(row("commit-one", 5.0, None, None).ok);
        assert!(!row("commit-one", 5.1, None, None).ok);
        // Not one may be missed.
        assert!(row("counted", 0.0, None, None).ok);
        assert!(!row("counted", 1.0, None, None).ok);
    }

    #[test]
    fn what_cannot_be_told_is_over_the_bar() {
        assert!(!row("tcp-connect", 1.0, None, None).ok);
        assert!(!row("tcp-connect", 1.0, Some(f64::NAN), None).ok);
        assert!(!row("verdict", 1.0, Some(-1.8), None).ok);
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let rows = [row("udp-ping-pong", 123_456.0, Some(1.234), None), row("verifier", 99_999.0, None, None)];
        assert!(table(&rows).lines().all(|line| line.chars().count() <= 100), "{}", table(&rows));
    }
}
