//! `bulkhead uninstall`

use super::exit::Answer;
use crate::config::{self, BPFFS};
use crate::datapath;
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Which agent's, by the configuration that it ran with
    #[arg(long, value_name = "FILE", conflicts_with_all = ["instance", "bpffs"])]
    config: Option<PathBuf>,
    /// Which agent's, by its name
    #[arg(long, value_name = "NAME", default_value = config::INSTANCE)]
    instance: String,
    /// Where the BPF filesystem is
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    bpffs: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> super::Result {
    let (instance, bpffs, state) = match &args.config {
        Some(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
            let c = config::parse(&name, &text)
                .map_err(|all| anyhow::anyhow!("{}", all.first().map(ToString::to_string).unwrap_or_default()))?;
            (c.instance, c.bpffs, Some(c.state))
        }
        None => (args.instance.clone(), args.bpffs.clone(), None),
    };
    let report = datapath::uninstall(&instance, &bpffs).map_err(anyhow::Error::new)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.removed).context("writing JSON")?);
    } else if report.removed.is_empty() {
        println!("Nothing of instance `{instance}` was there.");
    } else {
        println!("Instance `{instance}` is off: {} pins removed, nothing is contained any more.", report.removed.len());
        let folder = state.unwrap_or_else(|| config::STATE.into()).join(&instance);
        println!("Left: {} (the last good policies); remove it if you won't come back.", folder.display());
    }
    Ok(Answer::Fine)
}
