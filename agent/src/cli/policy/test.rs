//! `bulkhead policy test`

use super::files::{self, count};
use super::objects;
use crate::cli::exit::Answer;
use crate::identity::SpiffeId;
use crate::inventory::Posture;
use crate::policy::trial::{self, Coverage, Ran};
use crate::policy::{Mode, Overrides, Policy, PolicySet, Scope};
use crate::serve::api::printable;
use anyhow::{Context, bail};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// Tables of cases
    #[arg(required = true, value_name = "FILE")]
    tests: Vec<PathBuf>,
    /// Policy files or folders; without any, those that the configuration names
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present_any = ["config", "objects"])]
    policies: Vec<PathBuf>,
    /// The configuration that says who there is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A cluster's namespaces, pods and policies, as `kubectl get … -o json` prints them ("-": standard input)
    #[arg(long, value_name = "FILE")]
    objects: Option<PathBuf>,
    /// As if this ID were revoked (again for more)
    #[arg(long, value_name = "ID")]
    revoked: Vec<SpiffeId>,
    /// As if break-glass were on: node, namespace=NAME or workload=ID (again for more)
    #[arg(long, value_name = "SCOPE")]
    break_glass: Vec<Scope>,
    /// As if every policy and everybody were under enforce
    #[arg(long)]
    enforce: bool,
    /// Fail when fewer of the rules are touched, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    min_coverage: u8,
    /// Show every case, and every rule that none touches
    #[arg(long, short)]
    verbose: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// For programs.
#[derive(serde::Serialize)]
struct Told<'a> {
    cases: &'a [Ran],
    coverage: &'a Coverage,
}

pub(super) fn run(args: &Args) -> crate::cli::Result {
    let config = args.config.as_deref();
    let present = match &args.objects {
        Some(file) => objects::present(file, config)?,
        None => files::present(config)?,
    };
    let lowered = present.policies.overrides().lowered.clone();
    let mut set = if args.policies.is_empty() { present.policies } else { files::policies(&args.policies)? };
    let mut inventory = present.inventory;
    if args.enforce {
        set = set.iter().map(|p| Policy { mode: Mode::Enforce, ..p.clone() }).collect::<PolicySet>();
        inventory.identities.values_mut().for_each(|f| f.posture = Posture::Enforce);
    }
    set = set.under(Overrides {
        revoked: args.revoked.iter().cloned().collect(),
        open: args.break_glass.iter().cloned().collect(),
        lowered: if args.enforce { BTreeMap::new() } else { lowered },
    });
    let mut touched = HashSet::new();
    let (mut all, mut faults) = (Vec::new(), 0);
    for file in &args.tests {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
        match trial::read_cases(&name, &text) {
            Ok(cases) => all.extend(trial::run(&name, &cases, &set, &inventory, &mut touched)),
            Err(found) => {
                found.iter().for_each(|f| eprintln!("{f}"));
                faults += found.len();
            }
        }
    }
    if faults > 0 {
        bail_on(faults)?;
    }
    let coverage = trial::coverage(&set, &touched);
    if args.json {
        let told = Told { cases: &all, coverage: &coverage };
        println!("{}", serde_json::to_string_pretty(&told).context("writing JSON")?);
    } else {
        println!("{}", report(&all, &coverage, args.verbose));
    }
    let fine = all.iter().all(|r| r.passed) && coverage.percent() >= usize::from(args.min_coverage);
    Ok(if fine { Answer::Fine } else { Answer::Findings })
}

fn bail_on(faults: usize) -> anyhow::Result<()> {
    bail!("no case was run: {} in the files", count(faults, "error", "errors"))
}

fn report(all: &[Ran], coverage: &Coverage, verbose: bool) -> String {
    let mut lines = Vec::new();
    for r in all.iter().filter(|r| verbose || !r.passed) {
        let word = if r.passed { "pass" } else { "FAIL" };
        lines.push(format!("{word} {}:{}:{}: {}", r.file, r.line, r.column, printable(r.name.as_bytes())));
        if !r.passed {
            lines.push(format!(
                "     expected {}, and it is {} ({})",
                r.expected,
                r.got.outcome.as_str(),
                r.got.reason
            ));
            lines.extend(r.got.to_string().trim_end().lines().map(|l| format!("     {l}").trim_end().to_owned()));
        }
    }
    if verbose {
        for rule in &coverage.untouched {
            lines.push(format!("untouched {}:{}: {rule}: {}", rule.file, rule.line, rule.text));
        }
    }
    let passed = all.iter().filter(|r| r.passed).count();
    lines.push(format!(
        "{}: {passed} passed, {} failed; {} of {} touched ({} %)",
        count(all.len(), "case", "cases"),
        all.len() - passed,
        coverage.covered,
        count(coverage.rules, "rule", "rules"),
        coverage.percent()
    ));
    lines.join("\n")
}
