//! `cargo xtask image`: the agent as a container image, without a container engine.
//!
//! One static file, no shell, no distribution. The same sources and compiler give the same digest: nothing in the
//! archive says when or where it was made, and the paths of this machine are cut out of the program.

pub(crate) mod archive;
mod bill;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::build;
use crate::run::{self, cargo_home, note, root, step};
use archive::Image;

/// Where the image's files are.
const PROGRAM: &str = "/bulkhead";
const BILL: &str = "/bulkhead.cdx.json";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask image                            target/image/bulkhead.tar, an OCI archive
  cargo xtask image --name reg.example/bh:1    under this name
  cargo xtask image --dev                      without optimising, for tests

It goes into a cluster by `ctr -n k8s.io images import`, `kind load image-archive`, `k3s ctr images import`,
and into a registry by `skopeo copy oci-archive:target/image/bulkhead.tar docker://REGISTRY/NAME:TAG`.")]
pub(crate) struct Args {
    /// The image's name
    #[arg(long, default_value_t = default_name())]
    name: String,
    /// Don't optimise the program: quicker to build
    #[arg(long)]
    dev: bool,
}

/// With the version of the workspace, which xtask shares.
pub(crate) fn default_name() -> String {
    format!("bulkhead.dev/bulkhead:{}", env!("CARGO_PKG_VERSION"))
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let made = make(&self.name, !self.dev)?;
        note(format!("{}, {}", self.name, made.digest));
        note(shown(&made.archive));
        note(shown(&made.bill));
        Ok(())
    }
}

/// An image that was made.
pub(crate) struct Made {
    pub(crate) archive: PathBuf,
    pub(crate) bill: PathBuf,
    pub(crate) digest: String,
}

/// Builds the agent and its image.
pub(crate) fn make(name: &str, release: bool) -> Result<Made> {
    build::kernel()?;
    let program = static_program("bulkhead", "bulkhead", release)?;
    step("putting the image together");
    let bill = bill::of("bulkhead")?;
    let content = std::fs::read(&program).with_context(|| format!("can't read {}", program.display()))?;
    let labels = [
        ("org.opencontainers.image.title", "bulkhead"),
        ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
        ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY")),
    ];
    let image = Image {
        name: name.to_owned(),
        files: vec![(PROGRAM.to_owned(), 0o755, content), (BILL.to_owned(), 0o644, bill.clone())],
        folders: ["/etc", "/proc", "/run", "/sys", "/tmp", "/var"].map(str::to_owned).into(),
        entrypoint: vec![PROGRAM.to_owned()],
        command: Vec::new(),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    };
    let folder = run::target().join("image");
    let (archive, beside) = (folder.join("bulkhead.tar"), folder.join("bulkhead.cdx.json"));
    let digest = image.write(&archive)?;
    run::write_if_changed(&beside, &bill)?;
    Ok(Made { archive, bill: beside, digest })
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
}

/// Builds a program of `package` that needs nothing but the kernel, and answers where it is.
pub(crate) fn static_program(package: &str, name: &str, release: bool) -> Result<PathBuf> {
    step(format!("building a static {name}"));
    let mut cargo = run::cargo();
    cargo.args([
        "build",
        "--quiet",
        "--package",
        package,
        "--bin",
        name,
        "--message-format",
        "json-render-diagnostics",
    ]);
    // Named although it is the host's own, so that the flags don't reach build scripts and macros.
    cargo.arg("--target").arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // The same setting as the guests' programs: one build serves both.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "false");
    if release {
        cargo
            .arg("--release")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
        flags.push(format!("--remap-path-prefix={}=.", root().display()));
        flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).env_remove("RUSTFLAGS");
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("can't start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", run::line_of(&cargo), output.status);
    }
    let said = String::from_utf8(output.stdout).context("cargo printed something that isn't text")?;
    for line in said.lines() {
        let artifact: Artifact = serde_json::from_str(line).context("cargo printed JSON that isn't its own")?;
        if let (Some(executable), Some(target)) = (artifact.executable, artifact.target)
            && target.name == name
        {
            return Ok(executable);
        }
    }
    bail!("cargo built no {name}")
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}
