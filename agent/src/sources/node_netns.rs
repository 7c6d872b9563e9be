//! Which workloads' network namespaces know the node's by the number that the programs look for sockets by.
//!
//! A connection that comes from the node's address is the node's own only if it has a socket for it; else it is somebody
//! else's, whom the node masqueraded. Where the number isn't known, the two can't be told apart: both stay `host`, so
//! that probes go on, and it is said.

use super::hierarchy::{Hierarchy, Scan};
use crate::config::Config;
use crate::datapath::{folders, netns_id, sock_diag};
use crate::serve::api::NotContained;
use bulkhead_common::slots::Binding;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is known of a workload's network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Sight {
    /// It knows the node's by the right number.
    Known,
    /// It is the node's.
    Same,
    /// The two can't be told apart there, and why.
    Blind(String),
}

/// Of each cgroup of a workload, once a process runs there: a network namespace is a pod's for as long as it lives.
#[derive(Default)]
pub struct NodeNetns(BTreeMap<u64, Sight>);

impl NodeNetns {
    /// Looks at the cgroups that are new. Whether anything has changed.
    pub fn look(&mut self, hierarchy: &Hierarchy, scan: &Scan) -> bool {
        let before = self.0.len();
        let living: BTreeSet<u64> = scan.workloads.iter().map(|(c, _)| c.id).collect();
        self.0.retain(|id, _| living.contains(id));
        let mut changed = self.0.len() != before;
        for (cgroup, _) in &scan.workloads {
            if self.0.contains_key(&cgroup.id) {
                continue;
            }
            if let Some(sight) = first_process(&hierarchy.directory(&cgroup.path)).and_then(sight) {
                self.0.insert(cgroup.id, sight);
                changed = true;
            }
        }
        changed
    }

    /// Whether the programs can tell the node from whom it masquerades, for whoever is in this cgroup.
    pub fn knows_node(&self, cgroup: u64) -> bool {
        self.0.get(&cgroup) == Some(&Sight::Known)
    }

    /// Where they can't.
    pub fn blind<'a>(&'a self, config: &'a Config, scan: &'a Scan) -> impl Iterator<Item = NotContained> + 'a {
        scan.workloads.iter().filter_map(|(cgroup, index)| {
            let Some(Sight::Blind(why)) = self.0.get(&cgroup.id) else { return None };
            Some(NotContained {
                what: format!("{}: what the node masquerades", config.workloads.get(*index)?.name),
                why: format!("it counts as the node itself, `host`: {why}"),
            })
        })
    }
}

/// A process in a cgroup or below; `None`: there is none yet.
fn first_process(directory: &Path) -> Option<u32> {
    let events = std::fs::read_to_string(directory.join("cgroup.events")).ok()?;
    if events.lines().any(|line| line == "populated 0") {
        return None;
    }
    folders::first_process(&folders::folders_below(directory).ok()?)
}

/// `None`: the process has gone, and another one will be looked at.
fn sight(pid: u32) -> Option<Sight> {
    match look_from(pid) {
        Ok(sight) => Some(sight),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => None,
        Err(e) => Some(Sight::Blind(format!("its network namespace can't be looked at ({e})"))),
    }
}

fn look_from(pid: u32) -> io::Result<Sight> {
    let (theirs, ours) = (File::open(format!("/proc/{pid}/ns/net"))?, File::open("/proc/thread-self/ns/net")?);
    if theirs.metadata()?.ino() == ours.metadata()?.ino() {
        return Ok(Sight::Same);
    }
    let number = sock_diag::in_netns(theirs, || netns_id::known_as(ours.as_fd(), Binding::NODE_NETNS))?;
    Ok(match number {
        Some(Binding::NODE_NETNS) => Sight::Known,
        Some(other) => Sight::Blind(format!(
            "its network namespace knows the node's by the number {other}, not {}",
            Binding::NODE_NETNS
        )),
        None => Sight::Blind("its network namespace doesn't know the node's".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::sandbox::{Netns, Sandbox};
    use crate::sources::hierarchy::Cgroup;
    use std::time::Duration;

    #[test]
    fn a_namespace_is_known_by_the_number_that_it_was_given() {
        let (one, other) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        let ask = |whose: &Netns, number| {
            one.run(|| netns_id::known_as(whose.as_fd(), number)).expect("a thread").expect("an answer")
        };
        assert_eq!(ask(&other, 0), Some(0));
        assert_eq!(ask(&other, 7), Some(0), "it has one already");
        let third = Netns::new().expect("a namespace");
        assert_eq!(ask(&third, 0), None, "that number is another's");
    }

    #[test]
    fn a_workload_is_looked_at_once_a_process_runs_there() {
        let sandbox = Sandbox::new("netns").expect("tests on the real kernel run as root");
        let workload = sandbox.workload("pod").expect("a workload");
        let h = Hierarchy::find().expect("cgroup2");
        let path = format!("/{}", workload.cgroup().path().strip_prefix(&h.mount).expect("below it").display());
        let cgroup = Cgroup { path, id: workload.cgroup().id(), level: workload.cgroup().level() };
        let id = cgroup.id;
        let mut scan = Scan { workloads: vec![(cgroup, 0)], ..Scan::default() };
        let mut all = NodeNetns::default();
        assert!(!all.look(&h, &scan), "nobody is there");
        let mut process = workload.spawn(|turn| turn.ready().map(drop)).expect("a process");
        process.wait_ready(Duration::from_secs(10)).expect("it begins");
        assert!(all.look(&h, &scan) && !all.look(&h, &scan), "looked at once");
        // Its veth pair leads to the sandbox's switch, and that has the number.
        assert!(!all.knows_node(id));
        let config =
            crate::config::parse("f", "workloads: [{name: pod, id: 'spiffe://t/a', cgroup: /x/y}]\n").expect("fine");
        let blind: Vec<NotContained> = all.blind(&config, &scan).collect();
        assert!(blind[0].what.contains("pod: what the node masquerades"), "{blind:?}");
        scan.workloads.clear();
        assert!(all.look(&h, &scan) && all.blind(&config, &scan).next().is_none(), "it has gone");
    }
}
