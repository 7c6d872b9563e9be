//! A network namespace without a name: it exists as long as its guard, or something inside it, does.

use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;

/// A network namespace, held by a file descriptor.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: u64,
}

impl Netns {
    /// Makes a new one, with `lo` up. The caller's thread stays in its own.
    pub fn new() -> io::Result<Self> {
        let file = in_a_thread(|| {
            enter_new()?;
            up_loopback()?;
            File::open("/proc/thread-self/ns/net")
        })??;
        Ok(Self { id: file.metadata()?.st_ino(), fd: file.into() })
    }

    /// The namespace's inode, as /proc/PID/ns/net shows it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Runs `body` inside, in a thread made for it.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_a_thread(|| {
            self.enter()?;
            Ok(body())
        })?
    }

    /// Sets a value below /proc/sys/net, for example `("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/net/{key}"), value))?
    }

    /// Takes the calling thread into the namespace, for good.
    pub(super) fn enter(&self) -> io::Result<()> {
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes the calling thread into a network namespace of its own.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET changes which namespace the thread's future sockets are made in; no memory and no file
    // descriptor is shared differently afterwards.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Sets `lo` up in the calling thread's namespace; its addresses come with it.
pub fn up_loopback() -> io::Result<()> {
    up_link("lo")
}

/// Sets a link of the calling thread's namespace up.
pub fn up_link(name: &str) -> io::Result<()> {
    super::netlink::Route::open()?.up(super::netlink::index(name)?)
}

fn in_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, body)?;
        thread.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}
