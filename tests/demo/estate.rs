//! The bank for real: cgroups, network namespaces, and a listening process for each party.
//!
//! Everything is gone when it is dropped. Nothing of the host's network is changed: the two services that share its
//! namespace listen on loopback addresses only.

use crate::bank::{Home, PARTIES, Party};
use crate::server;
use anyhow::{Context as _, Result};
use bulkhead::probe::sandbox::{Cgroup, Plug, Process, Sandbox, Turn, Workload};
use bulkhead::sources::hierarchy::Hierarchy;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

/// The card network's addresses, in the prefixes that are set aside for documentation.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 10), Ipv6Addr::new(0x2001, 0xdb8, 0xca4d, 0, 0, 0, 0, 0x10));

/// How long a process may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// All parties, listening.
pub(crate) struct Estate {
    // Dropped in this order: processes, then their cgroups, then the one above them.
    servers: Vec<Process>,
    places: Vec<Place>,
    sandbox: Sandbox,
}

/// Where a party's processes run.
enum Place {
    Own(Workload),
    Host(Cgroup),
    Outside(Plug),
}

impl Estate {
    /// Makes everything and starts the servers.
    pub(crate) fn build() -> Result<Self> {
        let sandbox = Sandbox::new("demo")?;
        let mut estate = Self { servers: Vec::new(), places: Vec::new(), sandbox };
        for party in &PARTIES {
            let place = estate.place(party).with_context(|| format!("can't make {}", party.name))?;
            estate.places.push(place);
        }
        for (n, party) in PARTIES.iter().enumerate() {
            let server = estate.serve(n).with_context(|| format!("{} can't listen", party.name))?;
            estate.servers.push(server);
        }
        Ok(estate)
    }

    fn place(&self, party: &Party) -> Result<Place> {
        Ok(match party.home {
            Home::Own => Place::Own(self.sandbox.workload(party.name)?),
            Home::Host => Place::Host(self.sandbox.cgroup().child(party.name)?),
            Home::Outside => Place::Outside(self.sandbox.switch().plug_at(OUTSIDE.0, OUTSIDE.1)?),
        })
    }

    /// Runs `body` as that party, in a process that is called `name`.
    pub(crate) fn spawn<F>(&self, party: usize, name: &'static str, body: F) -> io::Result<Process>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        let named = |turn: &mut Turn| {
            let name = std::ffi::CString::new(name)?;
            rustix::thread::set_name(&name)?;
            body(turn)
        };
        match &self.places[party] {
            Place::Own(workload) => workload.spawn(named),
            Place::Host(cgroup) => Process::spawn(Some(cgroup), None, named),
            Place::Outside(plug) => Process::spawn(None, Some(plug.netns()), named),
        }
    }

    /// Where that party's service is reached.
    pub(crate) fn address(&self, party: usize, v6: bool) -> SocketAddr {
        let (four, six) = match &self.places[party] {
            Place::Own(workload) => (workload.v4(), workload.v6()),
            Place::Host(_) => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
            Place::Outside(plug) => (plug.v4(), plug.v6()),
        };
        let ip: IpAddr = if v6 { six.into() } else { four.into() };
        (ip, PARTIES[party].port).into()
    }

    /// What that party's server has received, besides what it answered.
    pub(crate) fn received(&mut self, party: usize) -> &[Vec<u8>] {
        self.servers[party].received()
    }

    /// The directory of that party's cgroup, if it has one.
    pub(crate) fn directory(&self, party: usize) -> Option<&Path> {
        match &self.places[party] {
            Place::Own(workload) => Some(workload.cgroup().path()),
            Place::Host(cgroup) => Some(cgroup.path()),
            Place::Outside(_) => None,
        }
    }

    /// That party's server.
    pub(crate) fn process(&self, party: usize) -> u32 {
        self.servers[party].pid()
    }

    /// The path of the cgroup above all workloads, from the root of the hierarchy.
    pub(crate) fn cgroup(&self) -> Result<String> {
        let path = self.sandbox.cgroup().path();
        let name = path.file_name().context("a cgroup has a name")?;
        Ok(format!("/{}", name.to_string_lossy()))
    }

    fn serve(&self, party: usize) -> Result<Process> {
        let at = match PARTIES[party].home {
            // A socket for both families, as most servers have; on loopback there is one for each.
            Home::Own | Home::Outside => vec![(Ipv6Addr::UNSPECIFIED, PARTIES[party].port).into()],
            Home::Host => vec![self.address(party, false), self.address(party, true)],
        };
        let at = at.as_slice();
        let mut server = self.spawn(party, PARTIES[party].name, |turn| server::run(turn, at))?;
        server.wait_ready(LISTENS_WITHIN)?;
        server.go(&[])?;
        Ok(server)
    }
}

/// Removes the cgroups whose names begin so: of a demo that was killed, whose processes ended with it.
pub(crate) fn clear_leftovers(prefix: &str) -> Result<()> {
    for entry in fs::read_dir(Hierarchy::find()?.mount).context("can't read the cgroup2 file system")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            remove_with_children(&entry.path()).with_context(|| format!("can't remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn remove_with_children(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_with_children(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}
