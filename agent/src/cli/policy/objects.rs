//! `--objects`: who there is in a cluster and which policies it has, from a file of its objects.

use super::files::{Present, configuration, refuse};
use crate::cluster::dump;
use crate::config;
use crate::policy::{self, Diagnostic, Overrides, PolicySet};
use crate::sources::assemble;
use crate::sources::hierarchy::Scan;
use crate::sources::roster::Roster;
use anyhow::Context;
use std::collections::BTreeSet;
use std::path::Path;

/// What holds where no configuration is given: that of deploy/, for some node.
const SHIPPED: &str = "posture: observe\ncluster: {node: any}\n";

/// What the objects in this file say; the configuration's `cluster` says who pods are.
pub(super) fn present(file: &Path, config_file: Option<&Path>) -> anyhow::Result<Present> {
    let name = file.display().to_string();
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    let objects = dump::read(&text.with_context(|| format!("reading {name}"))?).with_context(|| name.clone())?;
    let mut findings = Vec::new();
    let config = match config_file {
        Some(file) => configuration(file, &mut findings)?,
        None => config::parse("bulkhead.yaml", SHIPPED).map_err(|faults| findings.extend(faults)).ok(),
    };
    let Some(config) = config else { return refuse(&findings) };
    let mut view = dump::everybody(objects, &config)?;
    for warning in &view.warnings {
        eprintln!("bulkhead: {name}: {}", warning.text);
    }
    let mut whole = config.clone();
    view.over(&mut whole);
    let mut roster = Roster::new(0);
    let inventory = assemble::assemble(&name, &whole, &Scan::default(), &BTreeSet::new(), &mut roster)?.inventory;
    let documents = view.texts.iter().flat_map(|(title, text)| policy::read(title, text));
    let (policies, findings) = PolicySet::assemble(documents, &PolicySet::default());
    if findings.iter().any(Diagnostic::is_error) {
        return refuse(&findings);
    }
    let policies = policies.under(Overrides { lowered: view.lowered, ..Overrides::default() });
    let texts = view.texts.into_iter().map(|(title, text)| (title.to_string(), text.to_string())).collect();
    Ok(Present { inventory, policies, texts })
}
