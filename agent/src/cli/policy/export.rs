//! `bulkhead policy export`

#[derive(clap::Args)]
pub(in crate::cli) struct Args {}

pub(super) fn run(_: &Args) -> crate::cli::Result {
    Err(anyhow::anyhow!("being written").into())
}
