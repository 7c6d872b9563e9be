//! `bulkhead policy`

use super::exit::Answer;
use crate::policy::{self, PolicySet, Severity};
use crate::sources::policies::read;
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Check policy files: what is wrong, and what may not mean what it says
    #[command(after_help = "Examples:\n  bulkhead policy check policies/*.yaml\n  \
        bulkhead policy check --json /etc/bulkhead/policies\n\n\
        Exit codes: 0 nothing to say, 1 findings, 2 a file couldn't be read.")]
    Check {
        /// Files, or folders of *.yaml and *.yml
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &Command) -> super::Result {
    let Command::Check { files, json } = command;
    let reading = read(files, |_| {});
    if let Some((file, why)) = reading.unreadable.first_key_value() {
        return Err(anyhow::anyhow!("{file} can't be read: {why}").into());
    }
    let documents = reading.texts.iter().flat_map(|(file, text)| policy::read(file, text));
    let (set, mut findings) = PolicySet::assemble(documents, &PolicySet::default());
    findings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    if *json {
        println!("{}", serde_json::to_string_pretty(&findings).context("writing JSON")?);
    } else {
        for f in &findings {
            println!("{f}");
        }
        let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
        let warnings = findings.len() - errors;
        println!("{} files, {} policies: {errors} errors, {warnings} warnings", reading.texts.len(), set.len());
    }
    Ok(if findings.is_empty() { Answer::Fine } else { Answer::Findings })
}
