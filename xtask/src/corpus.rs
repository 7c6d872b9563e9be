//! `cargo xtask corpus`: how good the suggested rules are, on estates whose true dependencies are known.
//!
//! The estates and the judge are a program of the tests package (`tests/corpus/`), since they need the agent's library.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run::{self, step};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask corpus --json corpus.json    27 estates, and what came of each
  cargo xtask corpus --estate DIR          one of your own, in the form of docs/estate-format.md

Exit codes: 0 nothing that was seen is denied, at most 5 % is surplus, and what isn't covered is named; else 1.")]
pub(crate) struct Args {
    /// Write the scores to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Score the estate in this folder instead
    #[arg(long, value_name = "DIR")]
    estate: Option<PathBuf>,
    /// Where the random numbers begin
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write each estate into a folder of its own below this one
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        step("suggesting rules for estates whose dependencies are known");
        let mut cargo = run::cargo();
        cargo.args(["run", "--quiet", "--package", "bulkhead-tests", "--bin", "corpus", "--"]);
        for (option, path) in [("--json", self.json), ("--estate", self.estate), ("--write", self.write)] {
            if let Some(path) = path {
                cargo.arg(option).arg(env::current_dir().context("where is this?")?.join(path));
            }
        }
        if let Some(seed) = self.seed {
            cargo.arg("--seed").arg(seed.to_string());
        }
        run::run(&mut cargo)
    }
}
