//! An estate under enforcement: the real programs over the real workloads, with whatever policies a test wants.
//!
//! The pins have a name of their own and are removed on drop, also after a panic.

use crate::sandbox::Switch;
use crate::{Estate, SOON, Workload};
use bulkhead::datapath::{self, Datapath, Limits, OpenError, Options, UninstallError};
use bulkhead::identity::Identity;
use bulkhead::image::Image;
use bulkhead::inventory::{AttachPoint, Endpoint, IdentityFacts, Inventory, Owner, Place, Posture, WorkloadCgroup};
use bulkhead::policy::{PolicySet, RuleTable, compile, read};
use bulkhead_common::maps::{Control, EdgeKey, PrefixKey};
use bulkhead_common::{Addr, Class, Hook, Outcome, PeerId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where the BPF file system is.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A policy that lets `web` connect to `database`, at any port.
pub const WEB_TO_DATABASE: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: one}
spec:
  mode: enforce
  edges:
    - from: [{id: spiffe://test/web}]
      to: [{id: spiffe://test/database}]
";

/// A policy that lets one workload connect to another, by TCP and UDP at one port.
pub fn edge(from: &str, to: &str, port: u16) -> String {
    format!(
        "
---
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {{name: {from}-to-{to}-{port}}}
spec:
  mode: enforce
  edges:
    - from: [{{id: spiffe://test/{from}}}]
      to: [{{id: spiffe://test/{to}}}]
      ports: [{{protocol: TCP, port: {port}}}, {{protocol: UDP, port: {port}}}]
"
    )
}

/// The programs, attached above an estate's workloads.
pub struct Enforced {
    datapath: Option<Datapath>,
    inventory: Inventory,
    rules: RuleTable,
    instance: String,
}

/// The SPIFFE ID of a test's workload.
pub fn id(name: &str) -> String {
    format!("spiffe://test/{name}")
}

impl Enforced {
    /// Loads, commits and attaches: each workload of the estate has the identity `spiffe://test/NAME`.
    pub fn over(estate: &Estate, posture: Posture, policies: &str) -> Self {
        Self::without(estate, posture, policies, &[])
    }

    /// The same with some hooks left out.
    pub fn without(estate: &Estate, posture: Posture, policies: &str, hooks: &[Hook]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instance = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let options = options(&instance, vec![estate.sandbox().cgroup().path().to_owned()]);
        let mut datapath = Datapath::open(options).expect("the programs load");
        for hook in hooks {
            datapath.disable_hook(*hook);
        }
        let mut this = Self {
            datapath: Some(datapath),
            inventory: inventory(estate, posture),
            rules: RuleTable::default(),
            instance,
        };
        this.apply(posture, policies);
        this.datapath().attach().expect("the programs attach");
        this
    }

    /// Commits other policies, with this posture for all workloads.
    pub fn apply(&mut self, posture: Posture, policies: &str) -> u32 {
        for facts in self.inventory.identities.values_mut() {
            facts.posture = posture;
        }
        let image = self.compile(policies);
        self.datapath().commit(&image).expect("a commit").epoch
    }

    /// The image of these policies over the estate as it is.
    pub fn compile(&mut self, policies: &str) -> Image {
        let (set, findings) = PolicySet::assemble(read("test.yaml", policies), &PolicySet::default());
        assert!(findings.is_empty(), "{findings:?}");
        compile(&set, &self.inventory, &mut self.rules).image
    }

    /// What the estate is known as.
    pub fn inventory(&mut self) -> &mut Inventory {
        &mut self.inventory
    }

    /// The programs.
    pub fn datapath(&mut self) -> &mut Datapath {
        self.datapath.as_mut().expect("open until dropped")
    }

    /// The name of the pins.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Gives the datapath up as a killed agent does: its pins stay. [`Enforced::reopen`] takes it back.
    pub fn abandon(&mut self) {
        drop(self.datapath.take());
    }

    /// Opens the pins again.
    pub fn reopen(&mut self, estate: &Estate) -> &mut Datapath {
        let within = Duration::from_secs(10);
        let options = || options(&self.instance, vec![estate.sandbox().cgroup().path().to_owned()]);
        let opened = once_free(within, || Datapath::open(options()), |e| matches!(e, OpenError::AnotherAgent { .. }));
        self.datapath.insert(opened.expect("the pins are adopted"))
    }

    /// The number of a workload's identity.
    pub fn peer(&self, name: &str) -> PeerId {
        let wanted = id(name);
        let found = self.inventory.identities.iter().find(|(_, f)| f.identity.ids.iter().any(|i| i.as_str() == wanted));
        *found.expect("a workload of that name").0
    }

    /// How often something was counted from one workload to another, by any protocol, port and reason.
    pub fn counted(&mut self, from: PeerId, to: PeerId, outcome: Outcome) -> u64 {
        self.edges()
            .iter()
            .filter(|(k, _)| k.src == from.0 && k.dst == to.0 && k.outcome == outcome as u8)
            .map(|(_, n)| n)
            .sum()
    }

    /// All counters.
    pub fn edges(&mut self) -> Vec<(EdgeKey, u64)> {
        self.datapath().edges().expect("the counters can be read")
    }
}

/// Tries until the pins' lock is free. A process that another test has just forked holds a copy of every descriptor, the
/// lock's too, until it closes them.
fn once_free<T, E>(
    within: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + within;
    loop {
        match attempt() {
            Err(e) if is_held(&e) && Instant::now() < deadline => sleep(Duration::from_millis(2)),
            done => return done,
        }
    }
}

/// Takes the pins of an instance off when it is dropped. What holds them open must be dropped before.
pub struct Off<'a>(pub &'a str);

impl Drop for Off<'_> {
    fn drop(&mut self) {
        let uninstall = || datapath::uninstall(self.0, Path::new(BPFFS));
        if let Err(e) = once_free(SOON, uninstall, |e| matches!(e, UninstallError::AgentRunning(_))) {
            eprintln!("the pins of {} stay: {e}", self.0);
        }
    }
}

impl Drop for Enforced {
    fn drop(&mut self) {
        drop(self.datapath.take());
        drop(Off(&self.instance));
    }
}

/// How a test opens the programs.
pub fn options(instance: &str, attach: Vec<PathBuf>) -> Options {
    Options {
        instance: instance.to_owned(),
        bpffs: BPFFS.into(),
        attach,
        limits: Limits::default(),
        verbose_kernel_log: false,
    }
}

/// The widened form of an address.
pub fn widened(a: IpAddr) -> Addr {
    match a {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr(a.octets()),
    }
}

/// Each workload with an identity, an instance and, unless it shares them, its addresses.
pub fn inventory(estate: &Estate, posture: Posture) -> Inventory {
    let mut inventory = Inventory { built_ins: Control::PASS_ALL, ..Inventory::default() };
    let top = estate.sandbox().cgroup();
    inventory.attach_points.push(AttachPoint { id: top.id(), level: top.level() });
    for (n, w) in (0u32..).zip(estate.workloads()) {
        let (peer, instance) = (PeerId(PeerId::FIRST_IDENTITY.0 + n), n + 1);
        let ids = [id(w.name()).parse().expect("a SPIFFE ID")].into();
        let identity = Identity { namespace: String::new(), ids };
        inventory.identities.insert(peer, IdentityFacts { identity, posture, ports: BTreeMap::new() });
        let cgroup = w.cgroup();
        inventory.cgroups.push(WorkloadCgroup { id: cgroup.id(), level: cgroup.level(), peer, instance, flags: 0 });
        if !shares_addresses(estate, w) {
            inventory.endpoints.extend(
                w.addresses()
                    .map(|a| Endpoint { place: Place::Addr(widened(a)), owner: Owner::Workload { peer, instance } }),
            );
        }
    }
    // Everything else on the workloads' segment is somebody not known yet.
    let (v4, v6) = (Switch::V4, Switch::V6);
    for (a, bits) in [(IpAddr::from(v4.0), 96 + u32::from(v4.1)), (v6.0.into(), u32::from(v6.1))] {
        let place = Place::Prefix(PrefixKey { bits, addr: widened(a) });
        inventory.endpoints.push(Endpoint { place, owner: Owner::Class(Class::Unknown) });
    }
    inventory
}

fn shares_addresses(estate: &Estate, w: &Workload) -> bool {
    estate.workloads().iter().filter(|o| o.v4() == w.v4()).count() > 1
}
