//! Static programs: executables of the workspace that need nothing but a kernel, for guests, images and pods.
//!
//! Every caller builds them with the same flags, so one build serves all.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run::{self, cargo_home, root, step};

/// An executable that cargo has built.
pub(crate) struct Program {
    pub name: String,
    /// What it is for cargo: `bin`, `test`.
    pub kind: String,
    pub file: PathBuf,
}

/// The lines of cargo's `--message-format=json` that name an executable.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Option<ArtifactTarget>,
}

#[derive(Deserialize)]
struct ArtifactTarget {
    name: String,
    kind: Vec<String>,
}

/// Builds the program `name` of `package`.
pub(crate) fn one(package: &str, name: &str, release: bool) -> Result<PathBuf> {
    step(format!("building a static {name}"));
    let mut cargo = run::cargo();
    cargo.args(["build", "--quiet", "--package", package, "--bin", name]);
    let built = all(cargo, release)?.into_iter().find(|p| p.name == name);
    Ok(built.with_context(|| format!("cargo built no {name}"))?.file)
}

/// Builds what this `cargo build` asks for, statically.
pub(crate) fn all(mut cargo: Command, release: bool) -> Result<Vec<Program>> {
    // Named although it is the host's own, so that the flags don't reach build scripts and macros.
    cargo.arg("--target").arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    if release {
        cargo.args(["--release"]).env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        cargo.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
        flags.push(format!("--remap-path-prefix={}=.", root().display()));
        flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    } else {
        // Dozens of them have to fit into a guest's memory.
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "false").env("CARGO_PROFILE_DEV_STRIP", "symbols");
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).env_remove("RUSTFLAGS");
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("can't start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", run::line_of(&cargo), output.status);
    }
    let said = String::from_utf8(output.stdout).context("cargo printed something that isn't text")?;
    let mut programs = Vec::new();
    for line in said.lines() {
        let artifact: Artifact = serde_json::from_str(line).context("cargo printed JSON that isn't its own")?;
        if let (Some(file), Some(ArtifactTarget { name, kind })) = (artifact.executable, artifact.target) {
            programs.push(Program { name, kind: kind.into_iter().next().unwrap_or_default(), file });
        }
    }
    Ok(programs)
}
