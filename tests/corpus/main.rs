//! `cargo xtask corpus`: estates whose true dependencies are known, and how good the rules are that are suggested from
//! what was seen of them.
//!
//! The estates are made from a seed, or one is read from a folder. Suggest and simulate are the product's own; the judge
//! is the reference evaluator. It ends with 1 if any dependency that was seen is denied, if too much is allowed that
//! nobody used, or if something isn't covered and nobody says so.

mod builder;
mod estate;
mod generate;
mod score;

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::{Table, presets};
use estate::Estate;
use score::Score;
use std::path::PathBuf;
use std::process::ExitCode;

/// Score suggested rules against estates whose dependencies are known
#[derive(Parser)]
struct Args {
    /// Write the scores to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Score the estate in this folder instead (docs/estate-format.md)
    #[arg(long, value_name = "DIR")]
    estate: Option<PathBuf>,
    /// Where the random numbers begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Fewer estates
    #[arg(long, conflicts_with = "estate")]
    quick: bool,
    /// Write each estate into a folder of its own below this one, for a look
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("corpus: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let estates = match &args.estate {
        Some(folder) => vec![Estate::read(folder)?],
        None => generate::estates(args.seed, args.quick),
    };
    if let Some(folder) = &args.write {
        for estate in &estates {
            estate.write(&folder.join(&estate.name))?;
        }
    }
    let scores: Vec<Score> = estates.iter().map(score::score).collect::<Result<_>>()?;
    println!("{}", table(&scores));
    for score in &scores {
        for one in &score.unnamed {
            println!("{}: not covered, and nobody says so: {one}", score.estate);
        }
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&scores)?;
        std::fs::write(file, text + "\n").with_context(|| format!("can't write {}", file.display()))?;
    }
    let bad = scores.iter().filter(|s| !s.is_good()).count();
    println!("\n{} estates, {bad} of them not as they must be", scores.len());
    Ok(bad == 0)
}

fn table(scores: &[Score]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["estate", "edges", "precision", "recall", "false denies", "surplus", "uncovered", ""]);
    for s in scores {
        table.add_row([
            s.estate.clone(),
            s.edges.to_string(),
            format!("{:.3}", s.precision),
            format!("{:.3}", s.recall),
            s.false_denies.to_string(),
            format!("{:.1} %", s.surplus * 100.0),
            s.uncovered.len().to_string(),
            if s.is_good() { "ok" } else { "BAD" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests;
