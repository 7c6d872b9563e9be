//! Throw-away workloads on the real kernel: cgroups, network namespaces on a common switch, and processes in them.
//!
//! | guard | what it holds |
//! |---|---|
//! | [`Cgroup`] | a cgroup and all below it, with whatever runs there |
//! | [`Netns`] | a network namespace, kept by a file descriptor |
//! | [`Switch`] | a namespace with a bridge; [`Switch::plug`] connects a namespace to it, with an address pair |
//! | [`Process`] | a forked child in a cgroup and namespace, running a closure |
//! | [`Sandbox`] | one cgroup and one switch, under which [`Workload`]s are made |
//!
//! Each guard removes what it made when it is dropped, also while a panic unwinds; only a killed caller leaves empty
//! cgroups behind, and its processes end with it. Names are unique (process id and a counter), so any number of
//! sandboxes can exist side by side. The caller's own namespace, addresses and mounts stay as they are.
//!
//! It must not depend on programs such as `ip`, nor on what it is there to try: of the rest of Bulkhead it knows only
//! where cgroup2 is mounted.

mod cgroup;
mod netlink;
mod netns;
mod process;
mod receiver;
mod switch;

pub use cgroup::Cgroup;
pub use netlink::index as link_index;
pub use netns::{Netns, enter_new, up_link, up_loopback};
pub use process::{Failure, Process, Turn};
pub use receiver::{Reply, bind_udp, collect, listen};
pub use switch::{Plug, Switch};

use crate::sources::hierarchy::Hierarchy;
use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{io, process as std_process};

/// A cgroup for the programs to be attached to, and a switch that connects the workloads below it.
pub struct Sandbox {
    cgroup: Cgroup,
    switch: Switch,
}

impl Sandbox {
    /// A new one directly below the root of the cgroup hierarchy.
    pub fn new(label: &str) -> Result<Self> {
        Self::below(&Hierarchy::find()?.mount, label)
    }

    /// A new one below a cgroup that exists already.
    pub fn below(parent: &Path, label: &str) -> Result<Self> {
        let name = unique(label);
        let cgroup = Cgroup::create(parent, &name)
            .with_context(|| format!("can't create the cgroup {name} in {}; run as root", parent.display()))?;
        let switch = Switch::new()
            .context("can't make a network namespace with a bridge; CAP_NET_ADMIN, veth and bridge are needed")?;
        Ok(Self { cgroup, switch })
    }

    /// The cgroup above all workloads: where the programs are attached.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The switch between the workloads.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// A workload with a cgroup, a network namespace and an address pair of its own.
    pub fn workload(&self, name: &str) -> Result<Workload> {
        let plug = Arc::new(self.switch.plug()?);
        self.workload_on(name, plug)
    }

    /// A workload with a cgroup of its own in a network namespace that others may share, as services of one host do.
    pub fn workload_on(&self, name: &str, plug: Arc<Plug>) -> Result<Workload> {
        let cgroup = self.cgroup.child(name).with_context(|| format!("can't create the cgroup {name}"))?;
        Ok(Workload { name: name.to_owned(), cgroup, plug })
    }

    /// Runs `body` in a process of no workload: directly in the sandbox's cgroup, in that namespace.
    pub fn outsider<F>(&self, netns: &Netns, body: F) -> io::Result<Process>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        Process::spawn(Some(&self.cgroup), Some(netns), body)
    }
}

/// A cgroup and a network namespace: where a workload's processes run.
pub struct Workload {
    name: String,
    cgroup: Cgroup,
    plug: Arc<Plug>,
}

impl Workload {
    /// Its name, also the name of its cgroup.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its place on the switch; share it to make a second workload in the same namespace.
    pub fn plug(&self) -> &Arc<Plug> {
        &self.plug
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        self.plug.netns()
    }

    /// Its IPv4 address on the switch.
    pub fn v4(&self) -> Ipv4Addr {
        self.plug.v4()
    }

    /// Its IPv6 address on the switch.
    pub fn v6(&self) -> Ipv6Addr {
        self.plug.v6()
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// Runs `body` as this workload, in a process of its own. See [`Process::spawn`].
    pub fn spawn<F>(&self, body: F) -> io::Result<Process>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        Process::spawn(Some(&self.cgroup), Some(self.netns()), body)
    }

    /// Receives TCP and UDP, IPv4 and IPv6, on these ports of all its addresses; [`Process::receives`] tells what came.
    pub fn serve(&self, ports: &[u16], reply: Reply) -> io::Result<Process> {
        let mut process = self.spawn(|turn| {
            turn.doing("listening");
            let mut sockets = Vec::new();
            for &port in ports {
                // One socket per protocol takes both families.
                let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
                sockets.extend([listen(at)?, bind_udp(at)?]);
            }
            turn.ready()?;
            collect(turn, sockets, reply)
        })?;
        process.wait_ready(SERVE_WITHIN).map_err(io::Error::other)?;
        process.go(&[])?;
        Ok(process)
    }
}

/// How long a child may take until it listens.
const SERVE_WITHIN: Duration = Duration::from_secs(10);

/// `bulkhead-<label>-<pid>-<n>`, never given twice on this machine.
fn unique(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("bulkhead-{label}-{}-{}", std_process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests;
