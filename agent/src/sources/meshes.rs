//! Meshes in the pods' network namespaces: sidecars, to which a namespace redirects, and ambient ones, whose agent has
//! sockets of its own in there.
//!
//! Neither is contained as the rules read. Behind a redirection the programs see the proxy's port in the place of the one
//! connected to. What an ambient mesh's sockets carry is judged, if at all, as that mesh's, so its namespace isn't enforced.

use super::hierarchy::{Hierarchy, Scan};
use crate::config::Config;
use crate::datapath::folders::{first_process, folders_below};
use crate::datapath::{redirects, sock_diag};
use crate::serve::api::NotContained;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How many pods are looked at in one look: each takes about a millisecond.
const AT_ONCE: usize = 16;

/// What was found in one pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Found {
    redirects: bool,
    /// Where somebody else accepts connections.
    foreign: BTreeSet<SocketAddr>,
    /// Why it couldn't be looked at.
    fault: Option<String>,
}

/// Of each workload's cgroup in which something runs.
#[derive(Default)]
pub struct Meshes {
    found: BTreeMap<u64, Found>,
    /// Whom the last look ended with.
    last: u64,
}

impl Meshes {
    /// Looks at those that are new, and at a few others, one after another. Whether anything has changed.
    pub fn look(&mut self, hierarchy: &Hierarchy, scan: &Scan) -> bool {
        let paths: BTreeMap<u64, &str> = scan.workloads.iter().map(|(c, _)| (c.id, c.path.as_str())).collect();
        let before = self.found.len();
        self.found.retain(|id, _| paths.contains_key(id));
        let mut changed = self.found.len() != before;
        let new = paths.keys().filter(|id| !self.found.contains_key(*id));
        let next =
            self.found.range(self.last.saturating_add(1)..).chain(self.found.range(..=self.last)).map(|(id, _)| id);
        let due: Vec<u64> = new.chain(next).take(AT_ONCE).copied().collect();
        for id in due {
            let Some(found) = paths.get(&id).and_then(|path| look_into(&hierarchy.directory(path))) else { continue };
            if self.found.contains_key(&id) {
                self.last = id;
            }
            if self.found.get(&id) != Some(&found) {
                self.found.insert(id, found);
                changed = true;
            }
        }
        if self.found.range(self.last.saturating_add(1)..).next().is_none() {
            self.last = 0;
        }
        changed
    }

    /// The namespaces that aren't enforced because of an ambient mesh.
    pub fn ambient<'a>(&'a self, config: &'a Config, scan: &'a Scan) -> impl Iterator<Item = &'a str> {
        let lowers = !enforces(config);
        let has = move |id: &u64| lowers && self.found.get(id).is_some_and(|f| !f.foreign.is_empty());
        let workloads = scan.workloads.iter().filter(move |(c, _)| has(&c.id));
        workloads.filter_map(|(_, index)| Some(config.workloads.get(*index)?.identity.namespace.as_str()))
    }

    /// What isn't contained because of them.
    pub fn told<'a>(&'a self, config: &'a Config, scan: &'a Scan) -> impl Iterator<Item = NotContained> + 'a {
        scan.workloads.iter().flat_map(|(cgroup, index)| {
            let mut all = Vec::new();
            let (Some(found), Some(workload)) = (self.found.get(&cgroup.id), config.workloads.get(*index)) else {
                return all;
            };
            let mut tell = |what: String, why: String| {
                all.push(NotContained { what: format!("{}: {what}", workload.name), why });
            };
            if found.redirects {
                tell(
                    "its network namespace redirects connections (a sidecar's REDIRECT or TPROXY)".to_owned(),
                    "its rules are judged by the proxy's port, not by the one connected to: leave its namespace in \
                     observe or audit, or open the proxy's port"
                        .to_owned(),
                );
            }
            if let Some(at) = found.foreign.first() {
                let how = if enforces(config) { "is enforced all the same" } else { "isn't enforced" };
                tell(
                    format!("another agent accepts connections in its network namespace, at {at} (an ambient mesh's?)"),
                    format!("what goes that way isn't judged as its own: {} {how}", workload.identity.namespace),
                );
            }
            if let Some(why) = &found.fault {
                tell("whether a mesh redirects it".to_owned(), format!("it can't be looked at: {why}"));
            }
            all
        })
    }
}

/// Whether ambient meshes keep nothing from being enforced.
fn enforces(config: &Config) -> bool {
    config.cluster.as_ref().is_some_and(|c| c.enforce_in_ambient_mesh)
}

/// `None`: nothing runs there, or not any more.
fn look_into(directory: &Path) -> Option<Found> {
    let folders = folders_below(directory).ok()?;
    let pid = first_process(&folders)?;
    let own: BTreeSet<u64> = folders.iter().map(|f| f.id).collect();
    match within(pid, &own) {
        Ok(found) => Some(found),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => None,
        Err(e) => Some(Found { fault: Some(e.to_string()), ..Found::default() }),
    }
}

fn within(pid: u32, own: &BTreeSet<u64>) -> io::Result<Found> {
    let (theirs, ours) = (File::open(format!("/proc/{pid}/ns/net"))?, File::open("/proc/thread-self/ns/net")?);
    if theirs.metadata()?.ino() == ours.metadata()?.ino() {
        return Ok(Found::default());
    }
    sock_diag::in_netns(theirs, || {
        let mut foreign = BTreeSet::new();
        sock_diag::listeners(|s| {
            if s.cgroup.is_some_and(|id| !own.contains(&id)) {
                foreign.insert(s.local);
            }
        })?;
        Ok(Found { redirects: redirects::any()?, foreign, fault: None })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::sandbox::{Process, Sandbox, listen};
    use crate::sources::hierarchy::Cgroup;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    #[test]
    fn a_listener_of_somebody_else_in_a_pods_namespace_is_found() {
        let sandbox = Sandbox::new("mesh").expect("tests on the real kernel run as root");
        let workload = sandbox.workload("pod").expect("a workload");
        let h = Hierarchy::find().expect("cgroup2");
        let path = format!("/{}", workload.cgroup().path().strip_prefix(&h.mount).expect("below it").display());
        let cgroup = Cgroup { path, id: workload.cgroup().id(), level: workload.cgroup().level() };
        let scan = Scan { workloads: vec![(cgroup, 0)], ..Scan::default() };
        let config = "workloads: [{name: pod, id: 'spiffe://t/a', namespace: shop, cgroup: /x/y}]\n";
        let config = crate::config::parse("f", config).expect("fine");
        let listening = |port: u16, inside: bool| {
            let cgroup = inside.then(|| workload.cgroup());
            let mut process = Process::spawn(cgroup, Some(workload.netns()), |turn| {
                let _socket = listen((Ipv4Addr::UNSPECIFIED, port).into())?;
                turn.ready().map(drop)
            })
            .expect("a process");
            process.wait_ready(Duration::from_secs(10)).expect("it listens");
            process
        };
        let mut all = Meshes::default();
        assert!(!all.look(&h, &scan), "nobody is there");
        let _own = listening(80, true);
        assert!(all.look(&h, &scan) && !all.look(&h, &scan));
        assert_eq!((all.ambient(&config, &scan).count(), all.told(&config, &scan).count()), (0, 0));
        let other = listening(15008, false);
        assert!(all.look(&h, &scan));
        assert_eq!(all.ambient(&config, &scan).collect::<Vec<_>>(), ["shop"]);
        let told: Vec<NotContained> = all.told(&config, &scan).collect();
        assert!(told[0].what.contains("0.0.0.0:15008"), "{told:?}");
        let mut all_the_same = config.clone();
        let cluster = crate::config::Cluster {
            enforce_in_ambient_mesh: true,
            ..crate::config::Cluster::new("n", None, None).expect("fine")
        };
        all_the_same.cluster = Some(cluster);
        assert_eq!((all.ambient(&all_the_same, &scan).count(), all.told(&all_the_same, &scan).count()), (0, 1));
        drop(other);
        assert!(all.look(&h, &scan) && all.ambient(&config, &scan).next().is_none(), "it has gone");
    }
}
