//! `bulkhead agent`

use super::exit::{Answer, Problem};
use super::preflight;
use crate::app::{self, Failure, Start, heap};
use crate::cluster::cgroup;
use crate::config::{self, Config, Log};
use crate::policy::{Diagnostic, Severity};
use anyhow::Context;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The configuration; deploy/bulkhead.example.yaml explains every field
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Let the kernel programs log too (for debugging; costs time at every decision)
    #[arg(long)]
    kernel_log: bool,
}

pub(super) fn run(args: Args) -> super::Result {
    live(args).map(|()| Answer::Fine).map_err(Problem::Agent)
}

fn live(args: Args) -> Result<(), Failure> {
    let mut config = read(&args.config)?;
    start_log(&config.log).map_err(Failure::Other)?;
    let hierarchy = preflight::missing()?;
    if config.cluster.is_some() && config.attach.is_empty() {
        config.attach = cgroup::attach(&hierarchy).map_err(Failure::Attach)?;
    }
    heap::keep_little();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(heap::without_cache)
        .enable_all()
        .build()
        .context("starting the runtime")
        .map_err(Failure::Other)?;
    let file = std::path::absolute(&args.config).unwrap_or(args.config);
    let start = Start { file, config, hierarchy };
    let verbose = args.kernel_log;
    runtime.block_on(async {
        let end = end().map_err(Failure::Other)?;
        app::run(start, |config, hierarchy| app::kernel::open(config, hierarchy, verbose), end).await
    })
}

pub(super) fn read(file: &Path) -> Result<Config, Failure> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| {
        Failure::Config(vec![Diagnostic {
            file: name.as_str().into(),
            line: 0,
            column: 0,
            severity: Severity::Error,
            message: format!("can't be read: {e}"),
            hint: Some("begin with a copy of deploy/bulkhead.example.yaml".to_owned()),
        }])
    })?;
    config::parse(&name, &text).map_err(Failure::Config)
}

/// Logs to standard error, as the configuration says. Values are escaped by the formats themselves.
pub(super) fn start_log(log: &Log) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.level).context("log.level")?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    if log.json {
        registry.with(layer.json().flatten_event(true)).try_init()?;
    } else {
        registry.with(layer).try_init()?;
    }
    Ok(())
}

/// Ready when somebody asks the agent to end. A hangup is ignored: files are read again when they change.
fn end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut hup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = term.recv() => return,
                _ = int.recv() => return,
                _ = hup.recv() => tracing::info!("files are read again when they change; SIGHUP does nothing"),
            }
        }
    })
}
