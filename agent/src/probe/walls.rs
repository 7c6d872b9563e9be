//! The real walls: Bulkhead's own programs, attached to the probe's cgroup, under a ruleset that allows nobody
//! anything.
//!
//! They are loaded under an instance name of their own and taken off again, so that an agent that runs on the same
//! host isn't touched.

use super::runner::{Denial, Enforcement};
use super::tricks::Ground;
use crate::datapath::{self, Datapath, Events, Limits, Options};
use crate::identity::Identity;
use crate::inventory::{AttachPoint, Endpoint, IdentityFacts, Inventory, Owner, Place, Posture, WorkloadCgroup};
use crate::policy::{self, PolicySet, RuleTable};
use anyhow::{Context as _, Result};
use bulkhead_common::event::Event;
use bulkhead_common::maps::Control;
use bulkhead_common::{Addr, Hook, PeerId, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// How long the ring is waited for when it may be empty.
const BRIEFLY: Duration = Duration::from_millis(2);

/// Loads and attaches the programs, and takes them off.
pub struct Walls {
    bpffs: PathBuf,
    instance: String,
    runtime: tokio::runtime::Runtime,
    up: Option<(Datapath, Events)>,
}

impl Walls {
    /// `bpffs`: where the BPF file system is mounted, or shall be.
    pub fn new(bpffs: PathBuf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { bpffs, instance: format!("probe-{}", std::process::id()), runtime, up: None })
    }
}

impl Enforcement for Walls {
    fn off(&mut self) -> Result<()> {
        if self.up.take().is_some() {
            datapath::uninstall(&self.instance, &self.bpffs)?;
        }
        Ok(())
    }

    fn deny_all(&mut self, ground: &Ground, without: Option<Hook>) -> Result<()> {
        let options = Options {
            instance: self.instance.clone(),
            bpffs: self.bpffs.clone(),
            attach: vec![ground.sandbox.cgroup().path().to_owned()],
            limits: Limits::default(),
            verbose_kernel_log: false,
        };
        let mut datapath = Datapath::open(options)?;
        let events = datapath.take_events().context("the event ring is missing from the programs")?;
        // From here on `off` takes it down, whatever fails.
        let (datapath, _) = self.up.insert((datapath, events));
        if let Some(hook) = without {
            datapath.disable_hook(hook);
        }
        let compiled = policy::compile(&PolicySet::default(), &inventory(ground)?, &mut RuleTable::default());
        datapath.commit(&compiled.image)?;
        datapath.attach()?;
        Ok(())
    }

    fn denials(&mut self) -> Result<Vec<Denial>> {
        let Some((_, events)) = &mut self.up else { return Ok(Vec::new()) };
        let mut denials = Vec::new();
        // Ends with the first moment in which nothing comes.
        while let Ok(batch) = self.runtime.block_on(async { tokio::time::timeout(BRIEFLY, events.next()).await }) {
            denials.extend(batch.context("can't read the event ring")?.iter().filter_map(denial));
        }
        Ok(denials)
    }
}

impl Drop for Walls {
    fn drop(&mut self) {
        if let Err(e) = self.off() {
            tracing::warn!("can't take the probe's programs off: {e:#}; try: bulkhead uninstall");
        }
    }
}

/// An event, if it tells of something that wasn't let through.
fn denial(event: &Event) -> Option<Denial> {
    let outcome = bulkhead_common::Outcome::from_u8(event.outcome)?;
    let Event { pid, sport, dport, .. } = *event;
    let (hook, reason) = (Hook::from_u8(event.hook)?, Reason::from_u8(event.reason)?);
    (!outcome.passes()).then_some(Denial { hook, reason, pid, sport, dport })
}

/// Each of the ground's workloads, under enforcement.
fn inventory(ground: &Ground) -> Result<Inventory> {
    let sandbox = ground.sandbox.cgroup();
    let mut inventory = Inventory {
        attach_points: vec![AttachPoint { id: sandbox.id(), level: sandbox.level() }],
        built_ins: Control::PASS_ALL,
        ..Inventory::default()
    };
    for (n, workload) in (0..).zip(ground.workloads()) {
        let peer = PeerId(PeerId::FIRST_IDENTITY.0 + n);
        let id = format!("spiffe://probe.local/{}", workload.name()).parse()?;
        let identity = Identity { namespace: String::new(), ids: BTreeSet::from([id]) };
        inventory
            .identities
            .insert(peer, IdentityFacts { identity, posture: Posture::Enforce, ports: BTreeMap::new() });
        let instance = n + 1;
        let cgroup = workload.cgroup();
        inventory.cgroups.push(WorkloadCgroup { id: cgroup.id(), level: cgroup.level(), peer, instance, flags: 0 });
        // Two that share a network namespace share its addresses: the first has them, the sockets tell them apart.
        for place in workload.addresses().map(|ip| Place::Addr(widened(ip))) {
            if inventory.endpoints.iter().all(|e| e.place != place) {
                inventory.endpoints.push(Endpoint { place, owner: Owner::Workload { peer, instance } });
            }
        }
    }
    Ok(inventory)
}

/// The address as the kernel's tables hold it.
fn widened(ip: std::net::IpAddr) -> Addr {
    match ip {
        std::net::IpAddr::V4(v4) => Addr(v4.to_ipv6_mapped().octets()),
        std::net::IpAddr::V6(v6) => Addr(v6.octets()),
    }
}
