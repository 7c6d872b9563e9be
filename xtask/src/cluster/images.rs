//! The images that every node gets: the test pod's, which also holds sandboxes, and CoreDNS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::node::POD_IMAGE;
use crate::image::archive::Image;
use crate::programs;
use crate::run::step;

/// The pod's program in the cluster's folder, for whoever wants to ask from outside of a pod.
pub(super) const POD_PROGRAM: &str = "pod";

const COREDNS_IMAGE: &str = "bulkhead.test/coredns:1";

/// Puts them together, and answers their archives.
pub(super) fn build(programs: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let pod = programs::one("bulkhead-pod", "pod", false)?;
    fs::copy(&pod, folder.join(POD_PROGRAM)).context("can't copy the pod's program")?;
    step("putting the cluster's images together");
    let pod = of_one(POD_IMAGE, &pod, "/pod", &["pause"])?;
    let archive = folder.join("pod.tar");
    pod.write(&archive)?;
    // This one never changes, and is large: it stays beside the program.
    let coredns = programs.join("coredns.tar");
    if !coredns.exists() {
        let partial = programs.join("coredns.tar.partial");
        of_one(COREDNS_IMAGE, &programs.join("coredns"), "/coredns", &[])?.write(&partial)?;
        fs::rename(&partial, &coredns).context("can't name coredns.tar")?;
    }
    Ok(vec![archive, coredns])
}

/// An image of one static program.
fn of_one(name: &str, program: &Path, path: &str, arguments: &[&str]) -> Result<Image> {
    let content = fs::read(program).with_context(|| format!("can't read {}", program.display()))?;
    Ok(Image {
        name: name.to_owned(),
        files: vec![(path.to_owned(), 0o755, content)],
        folders: vec!["/etc".to_owned(), "/tmp".to_owned()],
        entrypoint: vec![path.to_owned()],
        command: arguments.iter().map(|&word| word.to_owned()).collect(),
        labels: Vec::new(),
    })
}
