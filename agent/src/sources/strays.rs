//! What isn't contained: sockets of a workload's processes that the programs don't see as the workload's.
//!
//! A socket keeps the cgroup of its creation. One that was made before its process moved into the workload's cgroup, or
//! that systemd made for the unit (socket activation), or that came from elsewhere by SCM_RIGHTS, is judged by that
//! other cgroup. The kernel tells a socket's cgroup by sock_diag (`INET_DIAG_CGROUP_ID`), per network namespace.
//! Packet sockets (AF_PACKET) pass no cgroup hook at all.

use super::hierarchy::{Hierarchy, Scan};
use crate::config::Config;
use crate::datapath::folders::{Folder, folders_below};
use crate::datapath::sock_diag;
use crate::flows;
use crate::serve::api::NotContained;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// In how many network namespaces sockets are listed in one look: for each, the kernel goes through the machine's.
pub const AT_ONCE: usize = 4;
/// How many sockets of one workload are looked at.
const MOST: usize = 1 << 16;
/// How many of one workload are told one by one.
const TOLD: usize = 16;

/// What isn't contained, as far as is known. A socket's cgroup never changes, so each is looked up once; and of a workload
/// that was looked at before, only what is still open at the next look.
#[derive(Default)]
pub struct Strays {
    /// By the cgroup's number.
    workloads: BTreeMap<u64, Workload>,
    /// Whose sockets were listed last.
    last: u64,
}

/// The sockets that one workload has open, by inode.
#[derive(Default)]
struct Workload {
    /// Its own, and those of a kind that no rule is about.
    fine: HashSet<u64>,
    /// To be looked up. One that has no port yet isn't listed: it stays here.
    waiting: HashSet<u64>,
    strays: BTreeMap<u64, Stray>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stray {
    Packet,
    Elsewhere { protocol: u8, local: SocketAddr, remote: SocketAddr },
}

/// One workload as it is now.
struct Now<'c> {
    name: &'c str,
    cgroups: BTreeSet<u64>,
    open: Open,
}

impl Strays {
    /// Looks at every process of every workload; sockets are listed in some network namespaces only, in turn. What can't be
    /// read (the process ended meanwhile) is left out.
    pub fn look(&mut self, hierarchy: &Hierarchy, config: &Config, scan: &Scan, at_once: usize) -> Vec<NotContained> {
        let now: BTreeMap<u64, Now<'_>> = scan
            .workloads
            .iter()
            .filter_map(|(cgroup, index)| {
                let inside = Below::of(&hierarchy.directory(&cgroup.path));
                let open = Open::by(&inside.processes, MOST);
                let name = &config.workloads.get(*index)?.name;
                Some((cgroup.id, Now { name, cgroups: inside.ids, open }))
            })
            .collect();
        self.workloads.retain(|id, _| now.contains_key(id));
        let mut lists = Lists { at_once, ..Lists::default() };
        for (id, workload) in now.range(self.last.saturating_add(1)..).chain(now.range(..=self.last)) {
            let known = self.workloads.entry(*id).or_default();
            for inode in known.update(&workload.open) {
                if lists.want(inode, workload) {
                    self.last = *id;
                }
            }
        }
        let listed = lists.read();
        for (id, workload) in &now {
            if let Some(known) = self.workloads.get_mut(id) {
                known.learn(&listed, &workload.cgroups);
            }
        }
        now.iter().filter_map(|(id, w)| Some(self.workloads.get(id)?.told(w))).flatten().collect()
    }
}

impl Workload {
    /// Forgets what was closed. Gives the sockets to look up.
    fn update(&mut self, open: &Open) -> Vec<u64> {
        let is_new = self.fine.is_empty() && self.waiting.is_empty() && self.strays.is_empty();
        self.fine.retain(|inode| open.sockets.contains_key(inode));
        self.waiting.retain(|inode| open.sockets.contains_key(inode));
        self.strays.retain(|inode, _| open.sockets.contains_key(inode));
        let mut due: Vec<u64> = self.waiting.iter().copied().collect();
        for (inode, at) in &open.sockets {
            if self.fine.contains(inode) || self.waiting.contains(inode) || self.strays.contains_key(inode) {
                continue;
            }
            match kind(&at.path()) {
                Some(Kind::Packet) => drop(self.strays.insert(*inode, Stray::Packet)),
                Some(Kind::Listed) => {
                    self.waiting.insert(*inode);
                    if is_new {
                        due.push(*inode);
                    }
                }
                Some(Kind::Other) => drop(self.fine.insert(*inode)),
                None => {}
            }
        }
        due
    }

    /// Takes what was found of those that wait.
    fn learn(&mut self, listed: &HashMap<u64, sock_diag::Socket>, inside: &BTreeSet<u64>) {
        let Self { fine, waiting, strays } = self;
        waiting.retain(|inode| {
            let Some(s) = listed.get(inode) else { return true };
            match s.cgroup {
                Some(id) if !inside.contains(&id) => {
                    let stray = Stray::Elsewhere { protocol: s.protocol, local: s.local, remote: s.remote };
                    strays.insert(*inode, stray);
                }
                _ => drop(fine.insert(*inode)),
            }
            false
        });
    }

    fn told(&self, now: &Now<'_>) -> Vec<NotContained> {
        let mut told = Vec::new();
        let mut tell = |what: String, why: &str| {
            told.push(NotContained { what: format!("{}: {what}", now.name), why: why.to_owned() });
        };
        for (inode, stray) in self.strays.iter().take(TOLD) {
            let pid = now.open.sockets.get(inode).map_or(0, |at| at.pid);
            tell(format!("{stray} of process {pid} (inode {inode})"), stray.why());
        }
        if let Some(more) = self.strays.len().checked_sub(TOLD).filter(|more| *more > 0) {
            tell(format!("{more} more such sockets"), "see those above");
        }
        if now.open.more {
            tell(
                format!("its sockets beyond {MOST}"),
                "so many aren't looked at: whether they were made in another cgroup isn't known",
            );
        }
        told
    }
}

impl Stray {
    const fn why(&self) -> &'static str {
        match self {
            Self::Packet => "AF_PACKET passes no cgroup hook: take CAP_NET_RAW from the workload",
            Self::Elsewhere { .. } => {
                "it was made in another cgroup (before a move, by socket activation, or passed over) and is judged as \
                 that one: restart the service, or let it make its own socket"
            }
        }
    }
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Elsewhere { protocol, local, remote } = self else { return f.write_str("a packet socket") };
        let protocol = match *protocol {
            sock_diag::RAW => "raw".to_owned(),
            other => flows::protocol(other).to_uppercase(),
        };
        let address = |a: &SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        write!(f, "the {protocol} socket at {}", address(local))?;
        if remote.port() == 0 { Ok(()) } else { write!(f, " to {}", address(remote)) }
    }
}

/// What is to be listed, by the inode of the network namespace.
#[derive(Default)]
struct Lists {
    at_once: usize,
    wanted: BTreeMap<u64, (File, HashSet<u64>)>,
    /// Of each process asked about.
    of_process: HashMap<u32, Option<u64>>,
}

impl Lists {
    /// Whether this socket will be looked up.
    fn want(&mut self, inode: u64, workload: &Now<'_>) -> bool {
        let Some(pid) = workload.open.sockets.get(&inode).map(|at| at.pid) else { return false };
        let path = || format!("/proc/{pid}/ns/net");
        let of = self.of_process.entry(pid).or_insert_with(|| Some(std::fs::metadata(path()).ok()?.ino()));
        let Some(netns) = *of else { return false };
        if !self.wanted.contains_key(&netns) {
            if self.wanted.len() >= self.at_once {
                return false;
            }
            let Ok(file) = File::open(path()) else { return false };
            self.wanted.insert(netns, (file, HashSet::new()));
        }
        self.wanted.get_mut(&netns).is_some_and(|(_, sockets)| sockets.insert(inode))
    }

    /// What the kernel says of those that were asked about.
    fn read(self) -> HashMap<u64, sock_diag::Socket> {
        let mut found = HashMap::new();
        for (netns, wanted) in self.wanted.into_values() {
            let listed: io::Result<()> = sock_diag::in_netns(netns, || {
                sock_diag::each_of(&sock_diag::PROTOCOLS, |socket| {
                    let inode = u64::from(socket.inode);
                    if wanted.contains(&inode) {
                        found.insert(inode, socket);
                    }
                })
            });
            if let Err(e) = listed {
                tracing::debug!("the sockets of a network namespace can't be listed: {e}");
            }
        }
        found
    }
}

/// What sort of socket it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Packet,
    /// Of [`sock_diag::PROTOCOLS`].
    Listed,
    Other,
}

/// By the name of its protocol, which the kernel gives as an attribute of the open file; `None`: closed meanwhile. One whose
/// name can't be read is looked up.
fn kind(open: &Path) -> Option<Kind> {
    let mut name = [0u8; 32];
    let length = match rustix::fs::getxattr(open, "system.sockprotoname", &mut name[..]) {
        Ok(length) => length,
        Err(Errno::NOENT | Errno::SRCH) => return None,
        Err(_) => return Some(Kind::Listed),
    };
    let name = name.get(..length).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
    Some(match name {
        b"PACKET" => Kind::Packet,
        b"" | b"TCP" | b"TCPv6" | b"UDP" | b"UDPv6" | b"UDP-Lite" | b"UDPLITEv6" | b"RAW" | b"RAWv6" => Kind::Listed,
        _ => Kind::Other,
    })
}

/// The cgroups from one downwards, and the processes in them.
struct Below {
    ids: BTreeSet<u64>,
    processes: BTreeSet<u32>,
}

impl Below {
    fn of(directory: &Path) -> Self {
        let folders = folders_below(directory).unwrap_or_default();
        let ids = folders.iter().map(|f| f.id).collect();
        Self { ids, processes: folders.iter().flat_map(Folder::processes).collect() }
    }
}

/// Where a process has a socket open.
#[derive(Clone, Copy, Debug)]
struct At {
    pid: u32,
    fd: u32,
}

impl At {
    fn path(self) -> PathBuf {
        format!("/proc/{}/fd/{}", self.pid, self.fd).into()
    }
}

/// The sockets that some processes have open.
struct Open {
    /// By inode.
    sockets: BTreeMap<u64, At>,
    /// There are more.
    more: bool,
}

impl Open {
    fn by(processes: &BTreeSet<u32>, most: usize) -> Self {
        let mut sockets = BTreeMap::new();
        for pid in processes.iter().copied() {
            let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for entry in entries.flatten() {
                let inode = std::fs::read_link(entry.path()).ok().and_then(|link| socket_inode(link.to_str()?));
                let fd = entry.file_name().to_str().and_then(|fd| fd.parse().ok());
                if let (Some(inode), Some(fd)) = (inode, fd) {
                    if sockets.len() >= most {
                        return Self { sockets, more: true };
                    }
                    sockets.entry(inode).or_insert(At { pid, fd });
                }
            }
        }
        Self { sockets, more: false }
    }
}

/// The inode in a link such as `socket:[123]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// For `preflight`: how many sockets of each workload's cgroup are older than the programs would be.
pub fn open_sockets(hierarchy: &Hierarchy, scan: &Scan) -> BTreeMap<String, usize> {
    let count = |path: &str| Open::by(&Below::of(&hierarchy.directory(path)).processes, usize::MAX).sockets.len();
    scan.workloads.iter().map(|(c, _)| (c.path.clone(), count(&c.path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::sandbox::{Process, Sandbox, Workload, bind_udp, listen};
    use crate::sources::hierarchy::Cgroup;
    use socket2::{Domain, Protocol, Socket, Type};
    use std::net::Ipv4Addr;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);
    const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    #[test]
    fn reads_links() {
        assert_eq!(socket_inode("socket:[77]"), Some(77));
        assert_eq!(socket_inode("pipe:[77]"), None);
    }

    struct Fixture {
        hierarchy: Hierarchy,
        config: Config,
        scan: Scan,
        workload: Workload,
        _sandbox: Sandbox,
    }

    impl Fixture {
        fn new() -> Self {
            let sandbox = Sandbox::new("strays").expect("tests on the real kernel run as root");
            let workload = sandbox.workload("shop").expect("a workload");
            let hierarchy = Hierarchy::find().expect("cgroup2");
            let below = workload.cgroup().path().strip_prefix(&hierarchy.mount).expect("below it");
            let path = format!("/{}", below.display());
            let cgroup = Cgroup { path, id: workload.cgroup().id(), level: workload.cgroup().level() };
            let scan = Scan { workloads: vec![(cgroup, 0)], ..Scan::default() };
            let config = "workloads: [{name: shop, id: 'spiffe://t/a', cgroup: /x/y}]\n";
            let config = crate::config::parse("f", config).expect("fine");
            Self { hierarchy, config, scan, workload, _sandbox: sandbox }
        }

        fn look(&self, strays: &mut Strays, at_once: usize) -> Vec<String> {
            let told = strays.look(&self.hierarchy, &self.config, &self.scan, at_once);
            told.into_iter().map(|n| n.what).collect()
        }
    }

    #[test]
    fn what_a_workload_makes_itself_is_its_own() {
        let f = Fixture::new();
        let own = f.workload.spawn(|turn| {
            let _sockets = (listen((ANY, 80).into())?, bind_udp((ANY, 53).into())?);
            turn.ready().map(drop)
        });
        let mut own = own.expect("a process");
        own.wait_ready(SOON).expect("it has sockets");
        let mut strays = Strays::default();
        assert_eq!(f.look(&mut strays, AT_ONCE), [""; 0]);
        let known = strays.workloads.values().next().expect("it is known");
        assert!(known.fine.len() >= 2 && known.waiting.is_empty(), "they won't be listed again");
    }

    /// Made in another cgroup: one that listens, one that gets its port later, and one that no cgroup's program sees.
    #[test]
    fn what_a_process_brings_along_is_told() {
        let f = Fixture::new();
        let mut guest = Process::spawn(None, Some(f.workload.netns()), |turn| {
            let _packet = Socket::new(Domain::PACKET, Type::RAW, None)?;
            let _listening = listen((ANY, 81).into())?;
            let late = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            turn.ready()?;
            late.bind(&SocketAddr::from((ANY, 82)).into())?;
            turn.received(b"bound")?;
            turn.ready().map(drop)
        })
        .expect("a process");
        guest.wait_ready(SOON).expect("it has sockets");
        let mut strays = Strays::default();
        assert_eq!(f.look(&mut strays, AT_ONCE), [""; 0], "it isn't there yet");
        f.workload.cgroup().enter(guest.pid()).expect("moved");
        let told = f.look(&mut strays, AT_ONCE);
        assert!(told.len() == 2 && told.iter().any(|t| t.contains("a packet socket")), "{told:?}");
        assert!(told.iter().any(|t| t.contains("the TCP socket at 0.0.0.0:81")), "{told:?}");
        guest.go(b"bind").expect("told");
        assert!(guest.receives(b"bound", SOON));
        assert_eq!(f.look(&mut strays, 0), told, "not this time, and nothing is forgotten");
        let told = f.look(&mut strays, AT_ONCE);
        assert!(told.len() == 3 && told.iter().any(|t| t.contains("the UDP socket at 0.0.0.0:82")), "{told:?}");
        drop(guest);
        assert_eq!(f.look(&mut strays, AT_ONCE), [""; 0], "they have gone");
    }

    #[test]
    fn very_many_are_told_in_few_lines() {
        let f = Fixture::new();
        let mut guest = Process::spawn(Some(f.workload.cgroup()), None, |turn| {
            let packet = || Socket::new(Domain::PACKET, Type::RAW, None);
            let _sockets = (0..TOLD + 5).map(|_| packet()).collect::<io::Result<Vec<_>>>()?;
            turn.ready().map(drop)
        })
        .expect("a process");
        guest.wait_ready(SOON).expect("it has sockets");
        let told = f.look(&mut Strays::default(), AT_ONCE);
        assert_eq!(told.len(), TOLD + 1);
        assert!(told.iter().any(|t| t == "shop: 5 more such sockets"), "{told:?}");
        let pids = BTreeSet::from([guest.pid()]);
        let open = Open::by(&pids, 7);
        assert_eq!((open.sockets.len(), open.more), (7, true));
    }
}
