//! `bulkhead policy check`

use super::files::{configuration, count, inventory};
use crate::cli::Result;
use crate::cli::exit::Answer;
use crate::policy::{self, PolicySet};
use crate::sources::policies::read;
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
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

pub(super) fn run(args: &Args) -> Result {
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
