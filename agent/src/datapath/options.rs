//! What the datapath is told, and what it tells of itself: plain data.

use crate::plan::Capacities;
use bulkhead_common::places::array;
use bulkhead_common::{Hook, maps, outside};
use std::path::PathBuf;
use std::time::Duration;

/// How the datapath is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of this agent's pins: several agents of one kernel differ here. Letters, digits, '-' and '_'.
    pub instance: String,
    /// Where the BPF file system is mounted, or shall be.
    pub bpffs: PathBuf,
    /// The cgroups that carry the programs.
    pub attach: Vec<PathBuf>,
    /// How much fits into the maps.
    pub limits: Limits,
    /// Let the programs log what they do. It costs instructions: for debugging.
    pub verbose_kernel_log: bool,
}

/// How many entries the maps hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Cgroups of workloads.
    pub cgroups: u32,
    /// Single addresses.
    pub addresses: u32,
    /// Addresses with a port of their own.
    pub address_ports: u32,
    /// Prefixes.
    pub prefixes: u32,
    /// Blocks of ports of all pairs of peers.
    pub rules: u32,
    /// Counted edges, and edges of which is kept what became of their connections.
    pub edges: u32,
    /// Remembered datagram flows, for peers inside and outside the cluster each.
    pub flows: u32,
    /// Edges to peers outside that are counted by address.
    pub outside: u32,
}

impl Default for Limits {
    fn default() -> Self {
        use maps::capacity as c;
        Self {
            cgroups: c::CGROUPS,
            addresses: c::ADDRESSES,
            address_ports: c::ADDRESS_PORTS,
            prefixes: c::PREFIXES,
            rules: c::RULES,
            edges: c::EDGES,
            flows: c::FLOWS,
            outside: outside::CAPACITY,
        }
    }
}

impl Limits {
    pub(super) fn by_map(&self) -> [(&'static str, u32); 13] {
        [
            (maps::CGROUPS, array(self.cgroups)),
            (maps::ADDRESSES, array(self.addresses)),
            (maps::ADDRESS_PORTS, array(self.address_ports)),
            (maps::PREFIXES, self.prefixes),
            (maps::SLOTS, self.prefixes.saturating_add(1)),
            (maps::RULES, array(self.rules)),
            (maps::EDGES, self.edges),
            (maps::RETIRED, self.edges),
            (maps::TRAFFIC, self.edges),
            (maps::FLOWS, self.flows),
            (maps::WORLD_FLOWS, self.flows),
            (outside::OUTSIDE[0], self.outside),
            (outside::OUTSIDE[1], self.outside),
        ]
    }

    pub(super) fn capacities(&self) -> Capacities {
        Capacities {
            cgroups: self.cgroups,
            addresses: self.addresses,
            address_ports: self.address_ports,
            prefixes: self.prefixes,
            rules: self.rules,
            identities: maps::capacity::IDENTITIES,
        }
    }
}

/// What a commit did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The epoch that is in force now.
    pub epoch: u32,
    /// Entries added.
    pub inserts: usize,
    /// Entries and baselines changed.
    pub writes: usize,
    /// Entries taken away.
    pub removals: usize,
    /// From the call to the moment at which it was in force.
    pub in_force_after: Duration,
}

/// How the maps came about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// There were none.
    New,
    /// A former agent's, used as they are.
    Adopted,
    /// New, beside a former agent's that couldn't be used, for this reason. The former ones stay in force until
    /// [`Datapath::attach`].
    Replacing(String),
}

/// A program at an attach point.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ProgramStatus {
    /// The program's name.
    pub name: &'static str,
    /// The hook that it is part of.
    #[serde(serialize_with = "hook_name")]
    pub hook: Hook,
    /// The cgroup.
    pub attach_point: PathBuf,
    /// The program's id in the kernel.
    pub id: u32,
    /// How many instructions the verifier went through; `None` where the kernel doesn't tell.
    pub verified_insns: Option<u32>,
    /// Whether it is attached there.
    pub attached: bool,
}

fn hook_name<S: serde::Serializer>(hook: &Hook, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(hook.as_str())
}

/// How long it took to get the programs into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Timings {
    /// Making or opening the maps, and loading and verifying all programs.
    pub load: Duration,
    /// Attaching them to all attach points, the last time that this was done.
    pub attach: Duration,
}
