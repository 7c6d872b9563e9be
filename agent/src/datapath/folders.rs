//! Cgroups as the folders that they are.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Links to a folder that has none below it: its name, and its own dot. A list of its files takes twenty times as long.
const ALONE: u64 = 2;

/// One cgroup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    /// Its folder.
    pub path: PathBuf,
    /// The number that programs know it by: its folder's inode number.
    pub id: u64,
}

impl Folder {
    /// The processes in it, but not below. None if it has gone, or is a threaded cgroup: those stand further up.
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }
}

/// A process in these cgroups; `None`: there is none.
pub fn first_process(folders: &[Folder]) -> Option<u32> {
    folders.iter().find_map(|folder| folder.processes().first().copied())
}

/// A cgroup, and the folders right below its own.
pub(super) fn look(path: &Path) -> io::Result<(Folder, Vec<PathBuf>)> {
    let meta = fs::metadata(path)?;
    let folder = Folder { path: path.to_owned(), id: meta.ino() };
    let mut below = Vec::new();
    if meta.nlink() != ALONE {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                below.push(entry.path());
            }
        }
    }
    Ok((folder, below))
}

/// A cgroup and all below it; what goes meanwhile isn't there.
///
/// # Errors
/// When they can't be listed, or the cgroup itself isn't there.
pub fn folders_below(cgroup: &Path) -> io::Result<Vec<Folder>> {
    let (folder, mut left) = look(cgroup)?;
    let mut found = vec![folder];
    while let Some(path) = left.pop() {
        match look(&path) {
            Ok((folder, below)) => {
                found.push(folder);
                left.extend(below);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::sandbox::Sandbox;
    use std::collections::BTreeSet;

    #[test]
    fn every_cgroup_below_is_found() {
        let sandbox = Sandbox::new("folders").expect("tests on the real kernel run as root");
        let all = |below: &Path| -> BTreeSet<u64> {
            folders_below(below).expect("they can be listed").into_iter().map(|f| f.id).collect()
        };
        let one = sandbox.cgroup().child("one").expect("a cgroup");
        assert_eq!(all(one.path()), BTreeSet::from([one.id()]));
        let (two, three) = (one.child("two").expect("a cgroup"), one.child("three").expect("a cgroup"));
        let four = three.child("four").expect("a cgroup");
        assert_eq!(all(one.path()), BTreeSet::from([one.id(), two.id(), three.id(), four.id()]));
        drop((four, three, two));
        assert_eq!(all(one.path()), BTreeSet::from([one.id()]));
        let path = one.path().to_owned();
        drop(one);
        assert!(folders_below(&path).is_err());
    }
}
