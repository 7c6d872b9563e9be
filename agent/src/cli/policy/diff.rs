//! `bulkhead policy diff`

use super::files::{self, count, ports};
use crate::cli::exit::Answer;
use crate::cli::names::Names;
use crate::cli::table::{table, text};
use crate::effect::{self, Change};
use anyhow::Context;
use std::path::PathBuf;
use std::slice::from_ref;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// A file or folder of the first set
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// A file or folder of the second set
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// The configuration that says who there is, besides those whom the files name
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> crate::cli::Result {
    let inventory = files::present(args.config.as_deref())?.inventory;
    let (old, new) = (files::policies(from_ref(&args.old))?, files::policies(from_ref(&args.new))?);
    let change = effect::compare(&old, &new, &inventory);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&change).context("writing JSON")?);
    } else {
        println!("{}", report(&change));
    }
    Ok(if change.is_empty() { Answer::Fine } else { Answer::Findings })
}

fn report(change: &Change) -> String {
    if change.is_empty() {
        return "They allow the same.".to_owned();
    }
    let all = || change.gained.iter().chain(&change.lost);
    let names = Names::of(all().flat_map(|p| [&p.source.id, &p.destination.id]));
    let mut t = table(&["", "source", "destination", "ports"]);
    for (sign, list) in [("+", &change.gained), ("-", &change.lost)] {
        for p in list {
            t.add_row([
                sign.to_owned(),
                names.end(&p.source.id, None),
                names.end(&p.destination.id, None),
                ports(p.protocol, p.first, p.last),
            ]);
        }
    }
    let told = count(change.gained.len(), "permission", "permissions");
    let note = names.note().map_or_else(String::new, |n| format!("\n{n}"));
    format!("{}\n\n{told} gained, {} lost.{note}", text(&t), change.lost.len())
}
