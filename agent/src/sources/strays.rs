//! What isn't contained: sockets of a workload's processes that the programs don't see as the workload's.
//!
//! A socket keeps the cgroup of its creation. One that was made before its process moved into the workload's cgroup, or
//! that systemd made for the unit (socket activation), or that came from elsewhere by SCM_RIGHTS, is judged by that
//! other cgroup. The kernel tells a socket's cgroup by sock_diag (`INET_DIAG_CGROUP_ID`), per network namespace.
//! Packet sockets (AF_PACKET) pass no cgroup hook at all.

use super::hierarchy::{Hierarchy, Scan};
use crate::config::{Config, narrow};
use crate::serve::api::NotContained;
use bulkhead_common::{Addr, proto};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

mod diag;

/// Looks at every process of every workload. What can't be read (the process ended meanwhile) is left out.
pub fn not_contained(hierarchy: &Hierarchy, config: &Config, scan: &Scan) -> Vec<NotContained> {
    let mut found = BTreeSet::new();
    // The dump of a network namespace, by its inode: most workloads share one.
    let mut dumps: HashMap<u64, Option<HashMap<u64, diag::Socket>>> = HashMap::new();
    for (cgroup, index) in &scan.workloads {
        let Some(workload) = config.workloads.get(*index) else { continue };
        let mut inside = Below::default();
        inside.collect(&hierarchy.directory(&cgroup.path));
        for pid in &inside.processes {
            let sockets = sockets_of(*pid);
            if sockets.is_empty() {
                continue;
            }
            let namespace = format!("/proc/{pid}/ns/net");
            let Ok(id) = std::fs::metadata(&namespace).map(|m| m.ino()) else { continue };
            let dump = dumps.entry(id).or_insert_with(|| {
                let file = File::open(&namespace).ok()?;
                diag::dump(&file).map_err(|e| tracing::debug!("sockets of {namespace}: {e:#}")).ok()
            });
            for inode in packet_sockets(*pid).intersection(&sockets) {
                found.insert(NotContained {
                    what: format!("{}: a packet socket of process {pid} (inode {inode})", workload.name),
                    why: "AF_PACKET passes no cgroup hook: take CAP_NET_RAW from the workload".to_owned(),
                });
            }
            let Some(dump) = dump else { continue };
            for socket in sockets.iter().filter_map(|inode| dump.get(inode)) {
                if !inside.ids.contains(&socket.cgroup) {
                    found.insert(NotContained {
                        what: format!("{}: {} of process {pid}", workload.name, socket.describe()),
                        why: "it was made in another cgroup (before a move, by socket activation, or passed over) and \
                              is judged as that one: restart the service, or let it make its own socket"
                            .to_owned(),
                    });
                }
            }
        }
    }
    found.into_iter().collect()
}

/// The cgroups from one downwards, and the processes in them.
#[derive(Default)]
struct Below {
    ids: BTreeSet<u64>,
    processes: BTreeSet<u32>,
}

impl Below {
    fn collect(&mut self, directory: &Path) {
        let Ok(meta) = std::fs::metadata(directory) else { return };
        self.ids.insert(meta.ino());
        if let Ok(text) = std::fs::read_to_string(directory.join("cgroup.procs")) {
            self.processes.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()));
        }
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            self.collect(&entry.path());
        }
    }
}

/// The inodes of the sockets that a process has open.
fn sockets_of(pid: u32) -> BTreeSet<u64> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let target = |e: std::fs::DirEntry| std::fs::read_link(e.path()).ok();
    entries.flatten().filter_map(target).filter_map(|t| socket_inode(t.to_str()?)).collect()
}

/// The inode in a link such as `socket:[123]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inodes of all packet sockets in a process's network namespace: the last column of /proc/PID/net/packet.
fn packet_sockets(pid: u32) -> BTreeSet<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/packet")).unwrap_or_default();
    text.lines().skip(1).filter_map(|l| l.split_whitespace().last()?.parse().ok()).collect()
}

impl diag::Socket {
    fn describe(&self) -> String {
        let protocol = if self.protocol == proto::TCP { "TCP" } else { "UDP" };
        let address = |a: &Addr, port: u16| std::net::SocketAddr::new(narrow(a), port);
        let local = address(&self.local, self.local_port);
        if self.peer_port == 0 {
            return format!("the {protocol} socket at {local}");
        }
        format!("the {protocol} socket {local} to {}", address(&self.peer, self.peer_port))
    }
}

/// By state, for `preflight`: how many sockets of each workload are older than the programs would be.
pub fn open_sockets(hierarchy: &Hierarchy, scan: &Scan) -> BTreeMap<String, usize> {
    let count = |path: &str| {
        let mut inside = Below::default();
        inside.collect(&hierarchy.directory(path));
        inside.processes.iter().map(|pid| sockets_of(*pid).len()).sum()
    };
    scan.workloads.iter().map(|(c, _)| (c.path.clone(), count(&c.path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn reads_links() {
        assert_eq!(socket_inode("socket:[77]"), Some(77));
        assert_eq!(socket_inode("pipe:[77]"), None);
    }

    /// A listener made here is told as outside of a cgroup that its process isn't in.
    #[test]
    fn the_kernel_tells_a_sockets_cgroup() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let udp = UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).expect("a socket");
        let mine = sockets_of(std::process::id());
        assert!(mine.len() >= 2);
        let namespace = File::open("/proc/self/ns/net").expect("a namespace");
        let dump = diag::dump(&namespace).expect("a dump (are CAP_SYS_ADMIN and CAP_NET_ADMIN there?)");
        let path = std::fs::read_to_string("/proc/self/cgroup").expect("cgroups");
        let path = path.lines().find_map(|l| l.strip_prefix("0::")).expect("cgroup2").to_owned();
        let own = Hierarchy::find().expect("cgroup2").cgroup(&path).expect("my cgroup").id;
        for (port, number) in [
            (tcp.local_addr().expect("bound").port(), proto::TCP),
            (udp.local_addr().expect("bound").port(), proto::UDP),
        ] {
            let (inode, socket) =
                dump.iter().find(|(_, s)| s.local_port == port && s.protocol == number).expect("the socket");
            assert!(mine.contains(inode));
            assert_eq!(socket.cgroup, own);
        }
    }
}
