//! Where things are pinned: `<bpffs>/bulkhead/<instance>/<set>/{maps,programs,links/<cgroup id>}`.
//!
//! A set is one complete group of maps with the programs and links over them; its folder is named `v<ABI>`, with a
//! number behind it while it replaces another one. What is pinned stays in force without the agent, so a set is only
//! ever removed after the one that replaces it is attached, and its links go first.

use super::error::OpenError;
use super::object::{PINNED_MAPS, Shapes};
use super::sys;
use bulkhead_common::ABI;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC`
const BPF_FS: i64 = 0xcafe_4a11;

/// Makes sure that a BPF file system is mounted there.
pub(super) fn ensure_bpffs(path: &Path) -> Result<(), OpenError> {
    let is_bpffs = || rustix::fs::statfs(path).is_ok_and(|s| s.f_type == BPF_FS);
    // A folder inside of one will do as well.
    if is_bpffs() {
        return Ok(());
    }
    let no_bpffs = |error: io::Error| OpenError::NoBpffs { path: path.to_owned(), error };
    if !path.exists() {
        fs::create_dir_all(path).map_err(no_bpffs)?;
        if is_bpffs() {
            return Ok(());
        }
    }
    rustix::mount::mount("bpf", path, "bpf", rustix::mount::MountFlags::empty(), Some(c"mode=0700"))
        .map_err(|e| no_bpffs(e.into()))
}

/// The folder of one instance.
pub(super) fn instance_folder(bpffs: &Path, instance: &str) -> Result<PathBuf, OpenError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if instance.is_empty() || instance.len() > 64 || !instance.chars().all(fits) {
        return Err(OpenError::BadInstance(instance.to_owned()));
    }
    Ok(bpffs.join("bulkhead").join(instance))
}

/// Takes the instance for this process: `None` if another one has it. It is given back when the descriptor is closed,
/// by exit or death too.
pub(super) fn lock(folder: &Path) -> io::Result<Option<OwnedFd>> {
    let fd = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(fd)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// One set's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Set {
    pub(super) folder: PathBuf,
}

/// What a set on disk is to this agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fit {
    /// Its maps can be used as they are.
    Adoptable,
    /// They can't, because.
    Different(String),
}

impl Set {
    /// A name that no set has yet.
    pub(super) fn unused(instance: &Path) -> Self {
        let first = std::iter::once(instance.join(format!("v{ABI}")));
        let more = (2..).map(|n| instance.join(format!("v{ABI}-{n}")));
        let folder = first.chain(more).find(|f| !f.exists()).unwrap_or_else(|| instance.join(format!("v{ABI}")));
        Self { folder }
    }

    /// Every set of an instance, in the order of their names.
    pub(super) fn all(instance: &Path) -> io::Result<Vec<Self>> {
        let mut sets = Vec::new();
        for entry in fs::read_dir(instance)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                sets.push(Self { folder: entry.path() });
            }
        }
        sets.sort_by(|a, b| a.folder.cmp(&b.folder));
        Ok(sets)
    }

    pub(super) fn create(&self) -> io::Result<()> {
        for folder in [self.folder.clone(), self.folder.join("maps"), self.programs(), self.links()] {
            make_folder(&folder)?;
        }
        Ok(())
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join("maps").join(name)
    }

    pub(super) fn programs(&self) -> PathBuf {
        self.folder.join("programs")
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.folder.join("links")
    }

    pub(super) fn attach_point(&self, cgroup: u64) -> PathBuf {
        self.links().join(format!("{cgroup:x}"))
    }

    pub(super) fn link(&self, cgroup: u64, program: &str) -> PathBuf {
        self.attach_point(cgroup).join(program)
    }

    /// The pins of all links.
    pub(super) fn all_links(&self) -> io::Result<Vec<PathBuf>> {
        let mut links = Vec::new();
        for point in children(&self.links())? {
            links.extend(children(&point)?);
        }
        Ok(links)
    }

    /// Compares what is pinned with what this agent wants.
    pub(super) fn fit(&self, shapes: &Shapes) -> io::Result<Fit> {
        let name = self.folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let abi = name.strip_prefix('v').and_then(|v| v.split('-').next()?.parse::<u32>().ok());
        if abi != Some(ABI) {
            return Ok(Fit::Different(format!("its layout is {name}, and this agent's is v{ABI}")));
        }
        for map in PINNED_MAPS {
            let fd = match sys::open_pin(&self.map(map)) {
                Ok(fd) => fd,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Ok(Fit::Different(format!("the pin of the map {map} is gone")));
                }
                Err(e) => return Err(e),
            };
            let mut found = sys::map_info(fd.as_fd())?;
            found.id = 0;
            let wanted = shapes.get(map).copied().unwrap_or_default();
            if found != wanted {
                return Ok(Fit::Different(format!(
                    "the map {map} is {}, and this agent wants {}",
                    show(&found),
                    show(&wanted)
                )));
            }
        }
        Ok(Fit::Adoptable)
    }

    /// Detaches and removes everything, links first. Gives the pins that were removed.
    pub(super) fn remove(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for pin in self.all_links()? {
            match sys::open_pin(&pin).and_then(|link| sys::link_detach(link.as_fd())) {
                // Its cgroup is gone, or it was detached before.
                Err(e) if e.raw_os_error() != Some(libc::ENOLINK) && e.kind() != io::ErrorKind::NotFound => {
                    return Err(e);
                }
                _ => {}
            }
            fs::remove_file(&pin)?;
            removed.push(pin);
        }
        remove_tree(&self.folder, &mut removed)?;
        Ok(removed)
    }
}

fn show(info: &sys::MapInfo) -> String {
    let sys::MapInfo { kind, id: _, key_size, value_size, max_entries, flags } = info;
    format!("type {kind}, key {key_size}, value {value_size}, {max_entries} entries, flags {flags:#x}")
}

/// Makes a folder that only root may enter; one that is there is fine.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What a folder holds; nothing if it isn't there.
pub(super) fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|e| Ok(e?.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Removes a folder with all that is in it (bpffs has no links to follow).
fn remove_tree(folder: &Path, removed: &mut Vec<PathBuf>) -> io::Result<()> {
    for path in children(folder)? {
        if path.is_dir() {
            remove_tree(&path, removed)?;
        } else {
            fs::remove_file(&path)?;
            removed.push(path);
        }
    }
    fs::remove_dir(folder)
}
