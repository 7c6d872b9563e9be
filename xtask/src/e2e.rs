//! `cargo xtask e2e`: the story that docs/kubernetes.md tells, on a real cluster of two nodes.
//!
//! The image is built and imported, deploy/ applied as it is shipped, an estate put beside it; then one step after
//! another changes what is meant to work, or does harm. All the while every member of the estate tries every other in
//! every way there is ([`grid`]), and after each step what arrived is held against what was meant ([`judge`]). Nothing is
//! skipped: a fault that didn't happen is a failure, and so is a request that the API server refused to an agent.
//!
//! | module | what it is |
//! |---|---|
//! | [`estate`] | who is there, and who may talk to whom |
//! | [`grid`] | who tries whom, and what came of it |
//! | [`oracle`] | what is meant, by Bulkhead's reference |
//! | [`judge`] | whether that is right |
//! | [`bed`] | the cluster, the agents, and the steps' common course |
//! | [`story`] | from observe to break-glass |
//! | [`suggest`] | what the agents suggest, and what becomes of it |
//! | [`jobs`] | pods that connect at their first instruction |
//! | [`faults`] | what goes wrong on purpose |
//! | [`evidence`] | the table on the terminal, and the JSON |

mod bed;
mod estate;
mod evidence;
mod faults;
mod grid;
pub(crate) mod interrupt;
mod jobs;
mod judge;
mod oracle;
mod story;
mod suggest;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cluster::{self, State};
use crate::image;
use crate::run::{note, step};
use crate::test;
use bed::Bed;
use evidence::Evidence;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask e2e                       everything: from observe to the last fault
  cargo xtask e2e --story               without the faults
  cargo xtask e2e --keep                leave the cluster up: `cargo xtask cluster down` ends it
  cargo xtask e2e --json evidence.json  what was measured, for programs

Exit codes: 0 everything is as it was meant, 1 something isn't, or couldn't be tried.")]
pub(crate) struct Args {
    /// Write what was measured
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the cluster up
    #[arg(long)]
    keep: bool,
    /// Only the main story: no faults
    #[arg(long)]
    story: bool,
    /// With the optimised program, as it is shipped
    #[arg(long)]
    release: bool,
    /// Do nothing where the cluster's programs would have to be built first, which takes a quarter of an hour
    #[arg(long)]
    if_built: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        test::require_root()?;
        if self.if_built && !cluster::are_built()? {
            note("skipped: the cluster's programs aren't built here; `cargo xtask cluster build` does it, once");
            return Ok(());
        }
        interrupt::watch()?;
        let json = self.json.as_ref().map(std::path::absolute).transpose()?;
        let started = Instant::now();
        let image = image::make(&image::default_name(), self.release)?;
        interrupt::check()?;
        cluster::up(2, false)?;
        let (evidence, told) = match State::require() {
            Ok(state) => self.tell(state, &image),
            Err(error) => (None, Err(error)),
        };
        let down = if self.keep {
            note("the cluster stays up: `cargo xtask cluster down` ends it");
            Ok(())
        } else {
            cluster::down()
        };
        if let (Some(file), Some(evidence)) = (json, &evidence) {
            fs::write(&file, evidence.json()?).with_context(|| format!("can't write {}", file.display()))?;
        }
        if let Some(evidence) = &evidence {
            evidence.tell();
        }
        note(format!("{:.0} s in all", started.elapsed().as_secs_f64()));
        told?;
        down?;
        if evidence.is_none_or(|evidence| evidence.failed()) {
            bail!("it isn't as it was meant");
        }
        Ok(())
    }

    /// The whole run. What it found so far is there in any case.
    fn tell(&self, state: State, image: &image::Made) -> (Option<Evidence>, Result<()>) {
        step("giving the image to the nodes");
        let made = state.import(&image.archive).and_then(|()| Bed::make(state, &image.program));
        let mut bed = match made {
            Ok(bed) => bed,
            Err(error) => return (None, Err(error)),
        };
        // In passing, a few show that it works; a quantile takes many.
        let runs = if self.story { 10 } else { 100 };
        let told = story::tell(&mut bed, runs).and_then(|()| if self.story { Ok(()) } else { faults::tell(&mut bed) });
        let told = told.and(bed.refusals());
        if told.is_err() || bed.evidence.failed() {
            bed.keep_logs();
        }
        (Some(bed.evidence), told)
    }
}
