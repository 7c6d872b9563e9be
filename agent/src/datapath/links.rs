//! The programs' links to the attach points: made, found again, updated in place, checked.

use super::error::AttachError;
use super::object::Mount;
use super::pins::{Set, make_folder};
use super::sys;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A cgroup that carries the programs.
#[derive(Debug)]
pub(super) struct AttachPoint {
    pub(super) path: PathBuf,
    pub(super) directory: File,
    /// The cgroup's id: its directory's inode number.
    pub(super) id: u64,
}

impl AttachPoint {
    pub(super) fn open(path: &Path) -> Result<Self, AttachError> {
        let no_cgroup = |error| AttachError::NoCgroup { path: path.to_owned(), error };
        let directory = File::open(path).map_err(no_cgroup)?;
        let metadata = directory.metadata().map_err(no_cgroup)?;
        if !path.join("cgroup.procs").exists() {
            return Err(no_cgroup(io::Error::other("it has no cgroup.procs")));
        }
        Ok(Self { path: path.to_owned(), id: metadata.ino(), directory })
    }
}

/// A program at an attach point.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) mount: Mount,
    pub(super) cgroup: u64,
    pub(super) path: PathBuf,
    pub(super) fd: OwnedFd,
}

impl Link {
    /// The program and cgroup that the kernel says it joins now; cgroup 0: detached.
    pub(super) fn info(&self) -> io::Result<sys::LinkInfo> {
        sys::link_info(self.fd.as_fd())
    }
}

/// A pinned link that still holds its cgroup.
pub(super) fn find(set: &Set, mount: Mount, point: &AttachPoint) -> io::Result<Option<Link>> {
    let fd = match sys::open_pin(&set.link(point.id, mount.program)) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let info = sys::link_info(fd.as_fd())?;
    if info.cgroup != point.id || info.attach_type != mount.attach_type {
        return Ok(None);
    }
    Ok(Some(Link { mount, cgroup: point.id, path: point.path.clone(), fd }))
}

/// Makes a link and pins it.
pub(super) fn create(set: &Set, mount: Mount, point: &AttachPoint, program: BorrowedFd<'_>) -> io::Result<Link> {
    let fd = sys::link_create(program, point.directory.as_fd(), mount.attach_type)?;
    make_folder(&set.attach_point(point.id))?;
    repin(fd.as_fd(), &set.link(point.id, mount.program))?;
    Ok(Link { mount, cgroup: point.id, path: point.path.clone(), fd })
}

/// Pins, in the place of whatever is pinned there; at each moment one of the two is. (A name of the BPF file system may
/// have no dot, and the other agents of this host don't write into our folder.)
pub(super) fn repin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let fresh = path.with_file_name(format!("{name}-new"));
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    sys::pin(fd, &fresh)?;
    fs::rename(&fresh, path)
}
