//! `bulkhead policy export`

use super::estate::{Whom, store, told};
use super::files::{count, policies};
use crate::cli::exit::Answer;
use crate::export::{Exported, Form, export};
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// Files or folders of policies
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// As what
    #[arg(long = "as", value_enum, value_name = "KIND")]
    form: Word,
    #[command(flatten)]
    whom: Whom,
    /// Write a file per namespace into this folder; none that is there already is touched
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The mesh's root namespace, whose policies are about all namespaces
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,
    /// As JSON: files, findings, counts
    #[arg(long)]
    json: bool,
}

/// [`Form`], as clap wants it.
#[derive(Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "lowercase")]
enum Word {
    /// networking.k8s.io/v1
    NetworkPolicy,
    /// security.istio.io/v1
    AuthorizationPolicy,
}

pub(super) fn run(args: &Args) -> crate::cli::Result {
    let set = policies(&args.files)?;
    let estate = args.whom.estate()?;
    let form = match args.form {
        Word::NetworkPolicy => Form::NetworkPolicy,
        Word::AuthorizationPolicy => Form::AuthorizationPolicy,
    };
    let exported = export(&set, &estate, form, &args.root_namespace);
    if let Some(folder) = &args.out {
        store(Some(folder), &exported.files)?;
    } else if !args.json {
        store(None, &exported.files)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&exported).context("writing JSON")?);
    } else {
        eprintln!("{}", report(set.len(), &exported));
    }
    Ok(if exported.findings.is_empty() { Answer::Fine } else { Answer::Findings })
}

fn report(policies: usize, exported: &Exported) -> String {
    let mut lines: Vec<String> = exported.findings.iter().map(told).collect();
    lines.push(format!(
        "{} read, {} written; {}",
        count(policies, "policy", "policies"),
        count(exported.objects, "object", "objects"),
        count(exported.findings.len(), "thing can't be said there", "things can't be said there")
    ));
    lines.join("\n")
}
