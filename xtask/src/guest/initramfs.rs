//! The guest's file system: one cpio archive, written straight from files of this machine.
//!
//! The kernel unpacks it into memory and starts `/init` from it. Nothing is staged on disk, so no file needs to belong
//! to root.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive that is being written.
pub(super) struct Initramfs {
    out: BufWriter<File>,
    folders: BTreeSet<String>,
    /// Entries written so far; the kernel takes two with the same inode number for one file.
    entries: u32,
}

impl Initramfs {
    pub(super) fn create(file: &Path) -> Result<Self> {
        let out = File::create(file).with_context(|| format!("can't write {}", file.display()))?;
        Ok(Self { out: BufWriter::new(out), folders: BTreeSet::new(), entries: 0 })
    }

    /// Adds an empty folder, and those above it.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above)?;
        }
        if !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        self.entry(path, FOLDER, &[])
    }

    /// Adds an executable file with this content.
    pub(super) fn program(&mut self, path: &str, content: &[u8]) -> Result<()> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above)?;
        }
        self.entry(path, PROGRAM, content)
    }

    /// Adds a copy of this machine's `file`.
    pub(super) fn copy(&mut self, path: &str, file: &Path) -> Result<()> {
        let content = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        self.program(path, &content)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.entry(path, LINK, to.as_bytes())
    }

    /// Closes the archive.
    pub(super) fn finish(self) -> Result<()> {
        let mut out = newc::trailer(self.out).context("can't close the initramfs")?;
        out.flush().context("can't close the initramfs")
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large for an initramfs"))?;
        let mut entry = newc::Builder::new(path).ino(self.entries).mode(mode).nlink(1).write(&mut self.out, size);
        entry
            .write_all(content)
            .and_then(|()| entry.finish().map(drop))
            .with_context(|| format!("can't put {path} into the initramfs"))
    }
}
