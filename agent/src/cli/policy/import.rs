//! `bulkhead policy import`

use super::estate::{Whom, expand, read, store, told};
use super::files::count;
use crate::cli::exit::Answer;
use crate::import::{Errs, Imported, Wish, import};
use crate::policy::Mode;
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// Files or folders of objects, as kubectl writes them ("-": standard input)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    whom: Whom,
    /// The mode of the policies
    #[arg(long, value_enum, default_value_t = super::suggest::Word::Audit)]
    mode: super::suggest::Word,
    /// Write a file per namespace into this folder; none that is there already is touched
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The namespace of objects that name none
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The mesh's root namespace, whose policies are about all namespaces
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,
    /// As JSON: files, findings, counts
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> crate::cli::Result {
    let texts = expand(&args.files)?.iter().map(|f| read(f)).collect::<anyhow::Result<Vec<_>>>()?;
    let estate = args.whom.estate()?;
    let wish =
        Wish { mode: Mode::from(args.mode), namespace: args.namespace.clone(), root: args.root_namespace.clone() };
    let imported = match import(&texts, &estate, &wish) {
        Ok(imported) => imported,
        Err(faults) => {
            faults.iter().for_each(|f| eprintln!("{f}"));
            return Err(refused(faults.len()).into());
        }
    };
    if let Some(folder) = &args.out {
        store(Some(folder), &imported.files)?;
    } else if !args.json {
        store(None, &imported.files)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&imported).context("writing JSON")?);
    } else {
        eprintln!("{}", report(&imported));
    }
    Ok(if imported.findings.is_empty() { Answer::Fine } else { Answer::Findings })
}

fn refused(faults: usize) -> anyhow::Error {
    anyhow::anyhow!("nothing is written from objects that can't be read: {}", count(faults, "error", "errors"))
}

fn report(imported: &Imported) -> String {
    let mut lines: Vec<String> = imported.findings.iter().map(told).collect();
    let of = |errs| imported.findings.iter().filter(|f| f.errs == errs).count();
    if !imported.others.is_empty() {
        let kinds: Vec<String> = imported.others.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        lines.push(format!("Not looked at: {}", kinds.join(", ")));
    }
    lines.push(format!(
        "{} read, {} written; not carried as they are: {} (stricter), {} (LOOSER), {} (neither)",
        count(imported.objects, "object", "objects"),
        count(imported.policies, "policy", "policies"),
        of(Errs::Stricter),
        of(Errs::Looser),
        of(Errs::Neither)
    ));
    lines.join("\n")
}
