//! `bulkhead early`

use super::agent::{read, start_log};
use super::exit::{Answer, Problem};
use super::preflight;
use crate::app::engine::LAST_CONFIG;
use crate::app::{self, Failure, Start};
use crate::config::{self, Config};
use crate::sources::state::State;
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The configuration that the agent runs with
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where its last good form is looked for if it isn't good now
    #[arg(long, value_name = "PATH", default_value = config::STATE)]
    state: PathBuf,
    /// Whose, there
    #[arg(long, value_name = "NAME", default_value = config::INSTANCE)]
    instance: String,
}

pub(super) fn run(args: Args) -> super::Result {
    once(args).map(|()| Answer::Fine).map_err(Problem::Agent)
}

fn once(args: Args) -> Result<(), Failure> {
    let (config, fault) = match read(&args.config) {
        Ok(config) => (config, None),
        Err(fault) => match last_good(&args) {
            Some(config) => (config, Some(fault)),
            None => return Err(fault),
        },
    };
    start_log(&config.log).map_err(Failure::Other)?;
    if let Some(fault) = fault {
        tracing::error!("the last good configuration is taken: {fault}");
    }
    let hierarchy = preflight::missing()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime").map_err(Failure::Other)?;
    let file = std::path::absolute(&args.config).unwrap_or(args.config);
    let start = Start { file, config, hierarchy };
    let status = runtime.block_on(app::once(start, |config, hierarchy| app::kernel::open(config, hierarchy, false)))?;
    for finding in &status.findings {
        tracing::warn!("{}", finding.text);
    }
    tracing::info!(epoch = status.epoch, "in force until an agent comes; what it doesn't know is judged strictly");
    Ok(())
}

fn last_good(args: &Args) -> Option<Config> {
    let text = State::left_behind(&args.state, &args.instance).text(LAST_CONFIG).ok()??;
    config::parse(LAST_CONFIG, &text).ok()
}
