//! `cargo xtask manifests`: what deploy/ holds twice is written from one source.
//!
//! `deploy/kubernetes/crds.yaml` is what the agent prints, `deploy/daemonset.yaml` is everything that
//! `deploy/kustomization.yaml` names in one file, and `deploy/helm/bulkhead` is the same with values ([`chart`]). A test
//! holds them together.

mod chart;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::run::{self, note, root, step};

/// Where it says so.
const HEAD: &str = "# Everything that deploy/kustomization.yaml names, in one file: kubectl apply --server-side -f FILE\n\
                    # Written by `cargo xtask manifests`; edit deploy/kubernetes/ instead.\n";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask manifests    after a change to the custom resources or to deploy/kubernetes/")]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let agent = build::agent(false)?;
        step("writing deploy/");
        let deploy = root().join("deploy");
        let printed = Command::new(agent).arg("crd").output().context("running bulkhead crd")?;
        ensure!(printed.status.success(), "bulkhead crd: {}", String::from_utf8_lossy(&printed.stderr));
        put("kubernetes/crds.yaml", &printed.stdout)?;
        let listed = fs::read_to_string(deploy.join("kustomization.yaml"))?;
        let mut files = Vec::new();
        for name in listed.lines().filter_map(|l| l.trim().strip_prefix("- ")) {
            let text = fs::read_to_string(deploy.join(name)).with_context(|| format!("deploy/{name}"))?;
            files.push((name.to_owned(), text));
        }
        let mut all = HEAD.to_owned();
        for (_, text) in &files {
            all.push_str("---\n");
            all.push_str(text.strip_prefix("---\n").unwrap_or(text));
        }
        put("daemonset.yaml", all.as_bytes())?;
        for (name, text) in chart::files(&files, env!("CARGO_PKG_VERSION"))? {
            let path = deploy.join(chart::FOLDER).join(&name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            put(&format!("{}/{name}", chart::FOLDER), text.as_bytes())?;
        }
        Ok(())
    }
}

fn put(name: &str, bytes: &[u8]) -> Result<()> {
    let changed = run::write_if_changed(&root().join("deploy").join(name), bytes)?;
    note(format!("deploy/{name}, {}", if changed { "new" } else { "unchanged" }));
    Ok(())
}
