//! `bulkhead probe`

use super::exit::Answer;
use super::preflight;
use super::table::WIDTH;
use crate::config::BPFFS;
use crate::probe::report::Expectations;
use crate::probe::runner::Probe;
use crate::probe::walls::Walls;
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Play all tricks again with each hook left out in turn: each must make a difference
    #[arg(long)]
    each_hook: bool,
    /// What is known of this kernel: tricks that may be unavailable or get through (JSON)
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Where the BPF filesystem is
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    bpffs: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> super::Result {
    preflight::missing().map_err(super::exit::Problem::Agent)?;
    let expected: Option<Expectations> = match &args.expect {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            Some(serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?)
        }
        None => None,
    };
    let mut walls = Walls::new(args.bpffs.clone())?;
    let report = Probe::new(&mut walls)?.run(args.each_hook)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.rows).context("writing JSON")?);
    } else {
        print!("{}", report.table(WIDTH));
    }
    let findings = report.findings(expected.as_ref());
    for f in &findings {
        eprintln!("{f}");
    }
    Ok(if findings.is_empty() { Answer::Fine } else { Answer::Findings })
}
