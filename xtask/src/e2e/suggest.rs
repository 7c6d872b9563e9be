//! What `bulkhead policy suggest --cluster` makes of what was seen: written as a person would have it written, and applied
//! with kubectl.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::bed::{Bed, folder};
use super::estate::{NAMESPACES, Truth};
use super::grid::{get, items, now, text};
use super::interrupt::wait;
use super::jobs;
use crate::run::{self, note};

/// So often must each way have been gone before it is asked what to allow: rules that rest on fewer are marked.
const OFTEN: usize = 5;
/// How the files say that they only audit.
const AUDIT: &str = "mode: audit";

/// The suggested files of the estate's namespaces.
#[derive(Default)]
pub(super) struct Suggested {
    files: Vec<(&'static str, String)>,
}

/// Lets the agents see everything that is meant often enough, the CronJob's run too, and asks for rules.
pub(super) fn learn(bed: &mut Bed) -> Result<Suggested> {
    let since = now();
    jobs::nightly(bed)?;
    (0..OFTEN).try_for_each(|_| bed.created_with_webhook())?;
    let mut rare = 0;
    wait("every way that is meant to be gone often enough", Duration::from_secs(90), || {
        bed.grid.read()?;
        let ways: BTreeSet<u64> = bed.grid.attempted().map(|(_, key)| key).collect();
        rare = ways.iter().filter(|key| bed.grid.heard_since(**key, since) < OFTEN).count();
        Ok((rare == 0).then_some(()))
    })
    .with_context(|| format!("{rare} ways that are meant aren't gone"))?;
    let output = folder().join("suggested");
    let mut said = String::new();
    let mut missing = Vec::new();
    // Agents add to their history every ten seconds.
    wait("the history to have every pair", Duration::from_secs(60), || {
        if output.exists() {
            fs::remove_dir_all(&output).with_context(|| format!("can't remove {}", output.display()))?;
        }
        let mut suggest = bed.cluster_command();
        let done = run::collect(suggest.args(["policy", "suggest", "--cluster", "--output"]).arg(&output))?;
        said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        if done.status.code() != Some(0) {
            return Ok(None);
        }
        let files = read(&output)?;
        missing = unnamed(&files);
        Ok(missing.is_empty().then_some(()))
    })
    .with_context(|| format!("no rule is suggested for {missing:?}; it said:\n{said}"))?;
    ensure!(said.contains(": 0 would be denied"), "the proof doesn't hold:\n{said}");
    for line in said.lines().filter(|l| l.starts_with("policies ") || l.starts_with("replay ")) {
        note(line);
    }
    Ok(Suggested { files: read(&output)? })
}

/// Files by namespace, of those that are the estate's.
fn read(output: &std::path::Path) -> Result<Vec<(&'static str, String)>> {
    let mut files = Vec::new();
    for namespace in NAMESPACES {
        let file = output.join(format!("{namespace}.yaml"));
        if file.exists() {
            let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
            ensure!(text.contains(AUDIT), "{} doesn't audit", file.display());
            files.push((namespace, text));
        }
    }
    Ok(files)
}

/// Identities that are meant to be connected to or to connect, and that the files don't name.
fn unnamed(files: &[(&'static str, String)]) -> Vec<String> {
    let Truth::Only(pairs) = Truth::intended() else { return Vec::new() };
    let names: BTreeSet<&str> = pairs.iter().flat_map(|(from, to)| [*from, *to]).collect();
    let ids = names.into_iter().filter_map(super::estate::workload).map(super::estate::Workload::id);
    ids.filter(|id| !files.iter().any(|(_, text)| text.contains(id.as_str()))).collect()
}

impl Suggested {
    /// As they are, or with the mode changed as the README says.
    pub(super) fn apply(&self, bed: &Bed, mode: &str) -> Result<()> {
        for (namespace, text) in &self.files {
            let file = folder().join(format!("suggested-{namespace}-{mode}.yaml"));
            run::write_if_changed(&file, text.replace(AUDIT, &format!("mode: {mode}")).as_bytes())?;
            bed.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.to_string_lossy()])?;
        }
        Ok(())
    }
}

/// Deletes the namespaces' policies that aren't among these, which have taken their place.
pub(super) fn delete_all_but(bed: &Bed, kept: &Value) -> Result<()> {
    let names = |list: &Value| -> BTreeSet<(String, String)> {
        let all = items(list).filter(|p| p["kind"] == "SegmentationPolicy").map(|p| &p["metadata"]);
        all.map(|meta| (text(&meta["namespace"]), text(&meta["name"]))).collect()
    };
    let there = names(&get(&bed.state, &["segpol", "--all-namespaces"])?);
    let stay = names(kept);
    let gone: Vec<_> = there.difference(&stay).collect();
    ensure!(!gone.is_empty(), "no suggested policy was there");
    gone.into_iter()
        .try_for_each(|(namespace, name)| bed.kubectl(&["delete", "segpol", name, "--namespace", namespace]).map(drop))
}
