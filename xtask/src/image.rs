//! `cargo xtask image`: the agent as a container image, without a container engine.
//!
//! One static file, no shell, no distribution. The same sources and compiler give the same digest: nothing in the
//! archive says when or where it was made, and the paths of this machine are cut out of the program.

pub(crate) mod archive;
mod bill;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::{self, note, root, step};
use crate::{build, programs};
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
    /// The program in it, which runs here as well.
    pub(crate) program: PathBuf,
}

/// Builds the agent and its image.
pub(crate) fn make(name: &str, release: bool) -> Result<Made> {
    build::kernel()?;
    let program = programs::one("bulkhead", "bulkhead", release)?;
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
    Ok(Made { archive, bill: beside, digest, program })
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}
