//! `bulkhead policy`

use super::exit::Answer;
use crate::config::{self, Config};
use crate::inventory::Inventory;
use crate::policy::{self, Diagnostic, PolicySet};
use crate::sources::policies::read;
use crate::sources::roster::Roster;
use crate::sources::{addresses, assemble, hierarchy};
use anyhow::Context;
use std::path::{Path, PathBuf};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Check policy files: what is wrong, and what may not mean what it says
    #[command(after_help = "Examples:\n  bulkhead policy check policies/*.yaml\n  \
        bulkhead policy check --config /etc/bulkhead/bulkhead.yaml\n  \
        bulkhead policy check --strict --json --config bulkhead.yaml new.yaml\n\n\
        Errors keep a policy out of force. Warnings are about rules that are too broad, that never decide\n\
        anything because others do, that say the same twice, or (with --config) that refer to nobody.\n\n\
        Exit codes: 0 no errors, 1 errors (with --strict: or warnings), 2 a file couldn't be read.")]
    Check(Check),
}

#[derive(clap::Args)]
pub(super) struct Check {
    /// Files, or folders of *.yaml and *.yml; without any, those that the configuration names
    #[arg(required_unless_present = "config", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The configuration that says who there is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Let warnings be findings too
    #[arg(long)]
    strict: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Command) -> super::Result {
    let Command::Check(args) = command;
    let mut findings = Vec::new();
    let config = match &args.config {
        Some(file) => configuration(file, &mut findings)?,
        None => None,
    };
    let inventory = match (&args.config, &config) {
        (Some(file), Some(config)) => Some(inventory(file, config)?),
        _ => None,
    };
    let named = config.as_ref().map(|c| c.policies.as_slice()).unwrap_or_default();
    let files = if args.files.is_empty() { named } else { &args.files };

    let reading = read(files, |_| {});
    if let Some((file, why)) = reading.unreadable.first_key_value() {
        return Err(anyhow::anyhow!("{file} can't be read: {why}").into());
    }
    let documents = reading.texts.iter().flat_map(|(file, text)| policy::read(file, text));
    let (set, complaints) = PolicySet::assemble(documents, &PolicySet::default());
    findings.extend(complaints);
    findings.extend(policy::check(&set, inventory.as_ref()));
    findings.extend(policy::expiry::findings(&set, crate::app::clock::now()));
    findings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    let errors = findings.iter().filter(|f| f.is_error()).count();
    let warnings = findings.len() - errors;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings).context("writing JSON")?);
    } else {
        for f in &findings {
            println!("{f}");
        }
        println!(
            "{}, {}: {}, {}",
            count(reading.texts.len(), "file", "files"),
            count(set.len(), "policy", "policies"),
            count(errors, "error", "errors"),
            count(warnings, "warning", "warnings")
        );
    }
    let fine = errors == 0 && !(args.strict && warnings > 0);
    Ok(if fine { Answer::Fine } else { Answer::Findings })
}

fn count(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

fn configuration(file: &Path, findings: &mut Vec<Diagnostic>) -> anyhow::Result<Option<Config>> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
    Ok(config::parse(&name, &text).map_err(|faults| findings.extend(faults)).ok())
}

/// Who there is by the file alone: what runs at present plays no part.
fn inventory(file: &Path, config: &Config) -> anyhow::Result<Inventory> {
    let host = addresses::host().unwrap_or_default();
    let mut roster = Roster::new(0);
    let name = file.display().to_string();
    Ok(assemble::assemble(&name, config, &hierarchy::Scan::default(), &host, &mut roster)?.inventory)
}
