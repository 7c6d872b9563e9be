//! Walks the live sockets of the workloads' network namespaces, and ends those that don't pass.
//!
//! Who fails is [`crate::revocation`]'s business; here is only the way to the sockets. A network namespace belongs to a
//! thread, so the walk is done by a few threads that end with it. Nothing is kept from one walk to the next: a handle
//! would keep a namespace alive that its workload has left.

use super::folders::{self, Folder};
use super::sock_diag::{self, Socket, state};
use super::{Datapath, sys};
use crate::config::widen;
use crate::image::Image;
use crate::revocation::{self, Failing, Namespace, Owners, Phase, Reach, Role};
use bulkhead_common::maps::{self, CachedVerdict, SocketState, role};
use bulkhead_common::slots::Binding;
use bulkhead_common::verdict::{Flow, Judgement};
use bulkhead_common::{PeerId, proto};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

/// How many threads walk at once.
const THREADS: usize = 4;
/// What is looked at. Raw sockets have no connections, and MPTCP's are listed as the TCP that they are on the wire.
const PROTOCOLS: [u8; 3] = [proto::TCP, proto::UDP, proto::UDPLITE];

/// A live connection that doesn't pass, seen from one of its sockets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The connection.
    pub flow: Flow,
    /// Why.
    pub judgement: Judgement,
    /// The socket's own end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Whether the socket was ended; also when it had gone by itself just then.
    pub destroyed: bool,
}

/// What a walk found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Walk {
    /// Network namespaces that were looked into.
    pub namespaces: usize,
    /// Sockets that were looked at.
    pub sockets: usize,
    /// Those that don't pass.
    pub cuts: Vec<Cut>,
    /// What couldn't be looked at or ended, and why.
    pub faults: Vec<String>,
}

impl Datapath {
    /// Finds the live connections within `reach` that don't pass by this image; with `destroy` it ends them, so that
    /// both applications see an error. The image should be in force by then.
    pub fn walk(&self, image: &Image, reach: &Reach, destroy: bool) -> io::Result<Walk> {
        let mut tree = Vec::new();
        for point in &self.options.attach {
            descend(point, None, image, &mut tree)?;
        }
        let folders = tree.iter().filter(|n| reach.holds(n.binding.peer)).map(|n| &n.folder);
        let mut faults = Vec::new();
        // One that can't be looked at doesn't spare the others' connections.
        let namespaces = sock_diag::namespaces_of(folders, |e| {
            faults.push(e.to_string());
            Ok(())
        })?;
        let host = fs::metadata("/proc/1/ns/net").or_else(|_| fs::metadata("/proc/thread-self/ns/net"))?.ino();
        let owners: Owners = tree.iter().map(|n| (n.folder.id, n.binding)).collect();
        let kept = Kept { places: self.map(maps::SOCKETS)?, others: self.map(maps::OTHER_SOCKETS)? };
        let look =
            |netns: u64| look_into(image, &owners, netns == host, reach, kept, destroy).map_err(|e| e.to_string());

        let threads = THREADS.min(namespaces.len());
        let queue = Mutex::new(namespaces.iter());
        let found = Mutex::new(Walk { namespaces: namespaces.len(), faults, ..Walk::default() });
        std::thread::scope(|scope| -> io::Result<()> {
            for _ in 0..threads {
                std::thread::Builder::new().name("walk".into()).spawn_scoped(scope, || {
                    while let Some((inode, netns)) = queue.lock().ok().and_then(|mut q| q.next()) {
                        let one = enter(netns.as_fd()).map_err(|e| e.to_string()).and_then(|()| look(*inode));
                        if let Ok(mut all) = found.lock() {
                            all.add(one);
                        }
                    }
                })?;
            }
            Ok(())
        })?;
        found.into_inner().map_err(|_| io::Error::other("a thread that walked the sockets panicked"))
    }
}

impl Walk {
    fn add(&mut self, one: Result<Self, String>) {
        match one {
            Ok(one) => {
                self.sockets += one.sockets;
                self.cuts.extend(one.cuts);
                self.faults.extend(one.faults);
            }
            Err(e) => self.faults.push(format!("the sockets of a network namespace can't be looked at: {e}")),
        }
    }
}

/// A cgroup below an attach point, and whose it is.
struct Node {
    folder: Folder,
    binding: Binding,
}

/// Whose the cgroups are from here on downwards: the first one that is a workload's gives it to all below.
fn descend(path: &Path, above: Option<Binding>, image: &Image, tree: &mut Vec<Node>) -> io::Result<()> {
    let (folder, below) = match folders::look(path) {
        Ok(found) => found,
        // Gone meanwhile, and its sockets' packets are denied by themselves.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let here = image.cgroups.get(&folder.id).copied().filter(|b| b.peer != PeerId::UNKNOWN_WORKLOAD);
    let workload = above.or(here);
    let binding = workload.unwrap_or(Binding::of(PeerId::UNKNOWN_WORKLOAD));
    tree.push(Node { folder, binding });
    for path in below {
        descend(&path, workload, image, tree)?;
    }
    Ok(())
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(netns, Some(rustix::thread::LinkNameSpaceType::Network))?)
}

/// Judges the sockets of this thread's network namespace.
fn look_into(
    image: &Image,
    owners: &Owners,
    host: bool,
    reach: &Reach,
    kept: Kept<'_>,
    destroy: bool,
) -> io::Result<Walk> {
    let sockets = sock_diag::sockets_of(&PROTOCOLS, Some(kept.others))?;
    let known: Vec<revocation::Socket> = sockets.iter().map(|s| known(s, kept)).collect();
    let failing: Vec<(Failing, &Socket)> = revocation::failing(image, owners, Namespace { sockets: &known, host })
        .into_iter()
        .filter(|f| reach.holds(f.flow.src) || reach.holds(f.flow.dst))
        .filter_map(|f| Some((sockets.get(f.socket)?, f)).map(|(s, f)| (f, s)))
        .collect();
    let ended = if destroy { sock_diag::destroy_all(failing.iter().map(|(_, s)| *s))? } else { Vec::new() };
    let mut walk = Walk { namespaces: 1, sockets: sockets.len(), ..Walk::default() };
    for (n, (Failing { socket: _, flow, judgement }, s)) in failing.into_iter().enumerate() {
        let destroyed = match ended.get(n) {
            None => false,
            Some(Ok(())) => true,
            // It went by itself, mostly because its other end was ended before it.
            Some(Err(e)) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => true,
            Some(Err(e)) => {
                walk.faults.push(format!("the socket {} to {} couldn't be ended: {e}", s.local, s.remote));
                false
            }
        };
        walk.cuts.push(Cut { flow, judgement, local: s.local, remote: s.remote, destroyed });
    }
    Ok(walk)
}

/// A socket as it is judged.
fn known(s: &Socket, kept: Kept<'_>) -> revocation::Socket {
    let phase = match (s.protocol, s.state) {
        (proto::TCP, state::LISTEN) => Phase::Open,
        (proto::TCP, state::CLOSE | state::TIME_WAIT) => Phase::Idle,
        (proto::TCP, _) => Phase::Connected,
        _ if s.remote.port() != 0 => Phase::Connected,
        _ if s.local.port() != 0 => Phase::Open,
        _ => Phase::Idle,
    };
    revocation::Socket {
        proto: s.protocol,
        phase,
        local: (widen(s.local.ip()), s.local.port()),
        remote: (widen(s.remote.ip()), s.remote.port()),
        cgroup: s.cgroup,
        role: noted(s, kept),
    }
}

/// Where the programs keep what they know of a socket.
#[derive(Clone, Copy)]
struct Kept<'m> {
    /// [`maps::SOCKETS`].
    places: BorrowedFd<'m>,
    /// [`maps::OTHER_SOCKETS`].
    others: BorrowedFd<'m>,
}

impl Kept<'_> {
    /// What is kept of this socket. It may be of another layout: then nothing is known.
    fn of(self, s: &Socket) -> Option<SocketState> {
        if !s.kept.is_empty() {
            return <SocketState as zerocopy::FromBytes>::read_from_bytes(&s.kept).ok();
        }
        let place = sys::map_lookup(self.places, &SocketState::place(s.cookie), SocketState::default()).ok()?;
        (place.owner == s.cookie).then_some(place)
    }
}

/// The role that the programs noted.
fn noted(s: &Socket, kept: Kept<'_>) -> Option<Role> {
    let kept = kept.of(s)?;
    let verdict = if kept.owner == s.cookie { CachedVerdict(kept.verdict.state).role() } else { role::NONE };
    let inherited = if s.protocol == proto::TCP { kept.stamp.role } else { role::NONE };
    match if verdict == role::NONE { inherited } else { verdict } {
        role::CLIENT => Some(Role::Client),
        role::SERVER => Some(Role::Server),
        _ => None,
    }
}
