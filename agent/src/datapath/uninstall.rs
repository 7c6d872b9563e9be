//! Taking everything off: the only way by which enforcement ends.

use super::error::{During, UninstallError};
use super::pins::{self, Set};
use std::io;
use std::path::{Path, PathBuf};

/// What [`uninstall`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Links, programs and maps whose pins were removed.
    pub removed: Vec<PathBuf>,
}

/// What an instance has pinned now, files and folders; nothing if it was never there or is off.
pub fn pinned(instance: &str, bpffs: &Path) -> Result<Vec<PathBuf>, UninstallError> {
    let folder =
        pins::instance_folder(bpffs, instance).map_err(io::Error::other).uninstalling(|| "finding the pins".into())?;
    let mut all = Vec::new();
    let mut open = vec![folder];
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.uninstalling(|| format!("reading {}", folder.display()))?,
        };
        all.push(folder);
        for entry in entries {
            let entry = entry.uninstalling(|| "reading the pins".into())?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                open.push(entry.path());
            } else {
                all.push(entry.path());
            }
        }
    }
    all.sort();
    Ok(all)
}

/// Detaches all programs of an instance and removes its pins. Nothing is contained afterwards.
pub fn uninstall(instance: &str, bpffs: &Path) -> Result<Report, UninstallError> {
    let folder =
        pins::instance_folder(bpffs, instance).map_err(io::Error::other).uninstalling(|| "finding the pins".into())?;
    let mut report = Report::default();
    if !folder.exists() {
        return Ok(report);
    }
    let during = || format!("removing {}", folder.display());
    let lock = pins::lock(&folder).uninstalling(during)?;
    let Some(_lock) = lock else { return Err(UninstallError::AgentRunning(instance.to_owned())) };
    for set in Set::all(&folder).uninstalling(during)? {
        report.removed.extend(set.remove().uninstalling(during)?);
    }
    std::fs::remove_dir(&folder).uninstalling(during)?;
    // The folder of all instances goes with the last of them.
    if let Some(all) = folder.parent()
        && pins::children(all).uninstalling(during)?.is_empty()
    {
        std::fs::remove_dir(all).uninstalling(during)?;
    }
    Ok(report)
}
