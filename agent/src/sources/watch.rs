//! Wake-ups: something below the attach points, among the files, or among the addresses may have changed.
//!
//! A wake-up says where to look, never what happened. The watch of a directory is set before it is read
//! ([`super::hierarchy::Hierarchy::scan`] sees to that), and an overflow of the queue wakes everything.

use anyhow::Context;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// Where to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dirty {
    /// At the cgroups.
    pub cgroups: bool,
    /// At the configuration and the policies.
    pub files: bool,
    /// At the host's addresses.
    pub addresses: bool,
    /// At the cluster's objects.
    pub cluster: bool,
}

impl Dirty {
    /// Everywhere.
    pub const ALL: Self = Self { cgroups: true, files: true, addresses: true, cluster: true };

    /// Whether there is anything to look at.
    pub const fn any(self) -> bool {
        self.cgroups || self.files || self.addresses || self.cluster
    }

    /// Adds another's.
    pub const fn add(&mut self, other: Self) {
        self.cgroups |= other.cgroups;
        self.files |= other.files;
        self.addresses |= other.addresses;
        self.cluster |= other.cluster;
    }
}

/// What a watched directory is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cgroups,
    Files,
    Cluster,
}

/// The watches. `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of linux/rtnetlink.h.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// Watches directories and the host's addresses.
pub struct Watcher {
    inotify: AsyncFd<InotifyFd>,
    kinds: HashMap<WatchDescriptor, Kind>,
    addresses: AsyncFd<Socket>,
}

/// [`Inotify`] under the trait that [`AsyncFd`] wants.
struct InotifyFd(Inotify);

impl AsRawFd for InotifyFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Watcher {
    /// Begins to watch addresses, and no directory yet.
    ///
    /// # Errors
    /// When the kernel refuses; the number of inotify instances is limited (fs.inotify.max_user_instances).
    pub fn new() -> anyhow::Result<Self> {
        let inotify = Inotify::init().context("inotify (raise fs.inotify.max_user_instances?)")?;
        let mut socket = Socket::new(NETLINK_ROUTE).context("a netlink socket for addresses")?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, ADDRESS_GROUPS)).context("listening for address changes")?;
        // SAFETY: it owns its descriptor, which stays the same and open until it is dropped, after deregistration.
        let inotify = unsafe { AsyncFd::register(InotifyFd(inotify))? };
        // SAFETY: as above.
        let addresses = unsafe { AsyncFd::register(socket)? };
        Ok(Self { inotify, kinds: HashMap::new(), addresses })
    }

    /// Watches for directories that come and go in this one. Again is no harm.
    ///
    /// # Errors
    /// When the kernel refuses, other than because the directory is gone.
    pub fn cgroups(&mut self, directory: &Path) -> anyhow::Result<()> {
        self.watch(directory, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE, Kind::Cgroups)
    }

    /// Watches for files that are written, come or go in this directory. Again is no harm.
    ///
    /// # Errors
    /// When the kernel refuses, other than because the directory is gone.
    pub fn files(&mut self, directory: &Path) -> anyhow::Result<()> {
        let mask = WatchMask::CLOSE_WRITE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE;
        self.watch(directory, mask, Kind::Files)
    }

    /// Watches for files that tell of this node's pods. Again is no harm.
    ///
    /// # Errors
    /// When the kernel refuses, other than because the directory is gone.
    pub fn cluster(&mut self, directory: &Path) -> anyhow::Result<()> {
        self.watch(directory, WatchMask::CLOSE_WRITE | WatchMask::DELETE | WatchMask::MOVE, Kind::Cluster)
    }

    fn watch(&mut self, directory: &Path, mask: WatchMask, kind: Kind) -> anyhow::Result<()> {
        let mask = mask | WatchMask::ONLYDIR | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        match self.inotify.get_ref().0.watches().add(directory, mask) {
            Ok(wd) => {
                self.kinds.insert(wd, kind);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => {
                Err(e).with_context(|| format!("watching {} (raise fs.inotify.max_user_watches?)", directory.display()))
            }
        }
    }

    /// Waits until there is something to look at. Loses nothing when it is dropped before it is done.
    ///
    /// # Errors
    /// When the kernel takes the watches away.
    pub async fn changed(&mut self) -> anyhow::Result<Dirty> {
        loop {
            let mut dirty = Dirty::default();
            tokio::select! {
                ready = self.inotify.readable_mut() => {
                    let mut ready = ready?;
                    let mut buffer = [0; 4096];
                    match ready.get_inner_mut().0.read_events(&mut buffer) {
                        Ok(events) => {
                            for event in events {
                                if event.mask.contains(EventMask::Q_OVERFLOW) {
                                    dirty.add(Dirty { addresses: false, ..Dirty::ALL });
                                    continue;
                                }
                                match self.kinds.get(&event.wd) {
                                    Some(Kind::Cgroups) => dirty.cgroups = true,
                                    Some(Kind::Files) => dirty.files = true,
                                    Some(Kind::Cluster) => dirty.cluster = true,
                                    None => {}
                                }
                                if event.mask.contains(EventMask::IGNORED) {
                                    self.kinds.remove(&event.wd);
                                }
                            }
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                        Err(e) => return Err(e).context("reading inotify"),
                    }
                }
                ready = self.addresses.readable() => {
                    let mut ready = ready?;
                    let mut buffer = Vec::with_capacity(8192);
                    match ready.get_inner().recv_from(&mut buffer, 0) {
                        Ok(_) => dirty.addresses = true,
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                        // ENOBUFS: some were lost. A look reads everything anyway.
                        Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => dirty.addresses = true,
                        Err(e) => return Err(e).context("reading address changes"),
                    }
                }
            }
            if dirty.any() {
                return Ok(dirty);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(5);

    async fn next(w: &mut Watcher) -> Dirty {
        timeout(DEADLINE, w.changed()).await.expect("a wake-up in time").expect("no error")
    }

    #[tokio::test]
    async fn a_new_directory_wakes() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut w = Watcher::new().expect("watches");
        w.cgroups(dir.path()).expect("watched");
        std::fs::create_dir(dir.path().join("x.service")).expect("a folder");
        assert!(next(&mut w).await.cgroups);
        std::fs::remove_dir(dir.path().join("x.service")).expect("removed");
        assert_eq!(next(&mut w).await, Dirty { cgroups: true, ..Dirty::default() });
    }

    #[tokio::test]
    async fn a_file_put_in_place_by_rename_wakes() {
        let dir = tempfile::tempdir().expect("a folder");
        let other = tempfile::tempdir().expect("a folder");
        std::fs::write(other.path().join("new"), "x").expect("written");
        let mut w = Watcher::new().expect("watches");
        w.files(dir.path()).expect("watched");
        w.files(dir.path()).expect("twice is no harm");
        std::fs::rename(other.path().join("new"), dir.path().join("policy.yaml")).expect("renamed");
        assert_eq!(next(&mut w).await, Dirty { files: true, ..Dirty::default() });
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_no_error() {
        let mut w = Watcher::new().expect("watches");
        w.files(Path::new("/nonexistent/folder")).expect("no error");
    }
}
