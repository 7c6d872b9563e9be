//! The folder that outlives the agent. Whole files only: written beside, synced, renamed, and the folder synced.

use super::roster::Roster;
use anyhow::Context;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One instance's folder.
#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
}

impl State {
    /// Makes the folder if it isn't there, for its owner only.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(state: &Path, instance: &str) -> anyhow::Result<Self> {
        let folder = state.join(instance);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("making the state folder {} (set `state:` elsewhere?)", folder.display()))?;
        Ok(Self { folder })
    }

    /// The folder as an agent left it, to be read only. It needn't be there.
    pub fn left_behind(state: &Path, instance: &str) -> Self {
        Self { folder: state.join(instance) }
    }

    /// Takes the folder for this process for as long as the file lives; `None` if another process has it.
    ///
    /// # Errors
    /// When the lock file can't be made.
    pub fn lock(&self) -> anyhow::Result<Option<File>> {
        use rustix::fs::{FlockOperation, flock};
        let path = self.folder.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("locking {}", path.display())),
        }
    }

    /// The numbers for this set of maps: those on disk if they are of the same set, else none.
    ///
    /// # Errors
    /// When the file is there and can't be read: guessing would give numbers a second meaning.
    pub fn roster(&self, generation: u64) -> anyhow::Result<Roster> {
        let path = self.folder.join("identities.json");
        let Some(text) = read(&path)? else { return Ok(Roster::new(generation)) };
        let roster: Roster = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged: run `bulkhead uninstall`, remove it, and start again", path.display())
        })?;
        Ok(if roster.generation() == generation { roster } else { Roster::new(generation) })
    }

    /// Stores the numbers. Only after this may they go into the kernel.
    ///
    /// # Errors
    /// When they didn't reach the disk.
    pub fn save_roster(&self, roster: &Roster) -> anyhow::Result<()> {
        let text = serde_json::to_vec(roster).context("writing the roster as JSON")?;
        self.put("identities.json", &text)
    }

    /// Where something of that name lies that isn't a text stored whole.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A text stored under a name of `[a-z0-9.-]`.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn text(&self, name: &str) -> anyhow::Result<Option<String>> {
        read(&self.folder.join(name))
    }

    /// The same with when it was written, milliseconds since 1970.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn dated_text(&self, name: &str) -> anyhow::Result<Option<(String, u64)>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let path = self.folder.join(name);
        let written = std::fs::metadata(&path)
            .and_then(|meta| meta.modified())
            .with_context(|| format!("reading {}", path.display()))?;
        let since = written.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Some((text, u64::try_from(since.as_millis()).unwrap_or(u64::MAX))))
    }

    /// Stores a text.
    ///
    /// # Errors
    /// When it didn't reach the disk.
    pub fn put(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        replace(&self.folder.join(name), bytes)
    }

    /// Removes a stored text, if it is there.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn drop_text(&self, name: &str) -> anyhow::Result<()> {
        match std::fs::remove_file(self.folder.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("removing {name}")),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

/// Puts a whole file in the place of another, or nothing.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let beside = path.with_added_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("writing {} (is the disk full?)", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn numbers_come_back_for_the_same_maps_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::open(dir.path(), "i").expect("state");
        let mut roster = state.roster(5).expect("none yet");
        let id = "spiffe://t/a".parse().expect("an id");
        roster.peer(&Identity { namespace: String::new(), ids: BTreeSet::from([id]) }).expect("room");
        state.save_roster(&roster).expect("saved");
        assert_eq!(state.roster(5).expect("back"), roster);
        assert_eq!(state.roster(6).expect("new"), Roster::new(6));
        let mode = std::fs::metadata(dir.path().join("i/identities.json")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!dir.path().join("i/identities.json.new").exists());
    }

    #[test]
    fn only_one_holds_the_lock() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::open(dir.path(), "i").expect("state");
        let first = state.lock().expect("locked");
        assert!(first.is_some() && state.lock().expect("asked").is_none());
        drop(first);
        assert!(state.lock().expect("asked").is_some());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_roster() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::open(dir.path(), "i").expect("state");
        state.put("identities.json", b"{\"generation\":5").expect("written");
        let e = state.roster(5).expect_err("damaged");
        assert!(e.to_string().contains("damaged"), "{e}");
    }
}
