//! `bulkhead crd`

use super::exit::{Answer, Problem};
use crate::cluster::crd;
use anyhow::Context;

#[derive(clap::Args)]
pub(super) struct Args {
    /// As a JSON list instead of YAML documents
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> super::Result {
    print(args).map(|()| Answer::Fine).map_err(Problem::Query)
}

fn print(args: &Args) -> anyhow::Result<()> {
    let all = crd::all();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    for definition in all {
        print!("---\n{}", serde_saphyr::to_string(&definition).context("writing YAML")?);
    }
    Ok(())
}
