//! The agent's file: which cgroups are which workloads, who is at which address, and how strict to be.
//!
//! Two steps, as the policies take them: a low struct that is as near to the YAML as can be ([`low`], serde only), and
//! the checked [`Config`] that the rest of the agent uses. The conversion is all or nothing: one error, and there is no
//! `Config`, so that the agent stays with the last good one.
//!
//! Pure: it reads a text, never a file.

mod check;
mod cluster;
mod globs;
mod low;
mod template;

pub use check::{BPFFS, INSTANCE, SOCKET, STATE, parse};
pub use cluster::{BuiltIn, Cluster, EXEMPT};
pub use globs::CgroupGlob;
pub use template::{BadTemplate, Filling, Template};

use crate::identity::Identity;
use crate::inventory::{Owner, Place, Posture};
use crate::store::Bounds;
use bulkhead_common::{Addr, Class, maps};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The name of this agent's pins and state, so that several can run on one kernel.
    pub instance: String,
    /// The workloads, in the file's order: where two match a cgroup, the first is taken.
    pub workloads: Vec<Workload>,
    /// The cgroups that carry the programs, as paths below the root of the hierarchy. None lies inside another.
    pub attach: Vec<String>,
    /// Who the processes below an attach point are that belong to no workload.
    pub unlisted: Unlisted,
    /// Peers at addresses that aren't this host's workloads.
    pub endpoints: Vec<Peer>,
    /// Addresses that stand for others. A file has none; a cluster adds them.
    pub services: Vec<Service>,
    /// The cluster whose node this is; `None`: a plain host.
    pub cluster: Option<Cluster>,
    /// Addresses that belong to workloads: whoever is there and isn't known is class `unknown`, not `world`.
    pub ranges: Vec<maps::PrefixKey>,
    /// The posture where nothing closer says otherwise.
    pub posture: Posture,
    /// By namespace.
    pub postures: BTreeMap<String, Posture>,
    /// Policy files and folders.
    pub policies: Vec<PathBuf>,
    /// Where metrics and health are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The control socket.
    pub socket: PathBuf,
    /// The folder that outlives the agent.
    pub state: PathBuf,
    /// Where bpffs is, or is to be mounted.
    pub bpffs: PathBuf,
    /// How to log.
    pub log: Log,
    /// Whether DNS answers are read for the names of addresses.
    pub dns: bool,
    /// `PASS_…` bits of [`maps::Control`].
    pub built_ins: u32,
    /// How many entries the kernel's tables hold.
    pub limits: Capacities,
    /// What of the history is kept.
    pub history: Bounds,
    /// Where decisions are written down; `None`: nowhere.
    pub decision_log: Option<DecisionLog>,
}

/// One entry of `workloads`.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// What people call it; unique.
    pub name: String,
    /// Who it is.
    pub identity: Identity,
    /// Its cgroups.
    pub cgroups: Vec<CgroupGlob>,
    /// Its posture, resolved.
    pub posture: Posture,
    /// Its named ports: name to (IP protocol, port).
    pub ports: BTreeMap<String, (u8, u16)>,
    /// Addresses that are its own.
    pub addresses: Vec<Addr>,
    /// Whether others may not know of it yet.
    pub young: bool,
    /// What runs it on a cluster, as `Kind/name`; empty: not known.
    pub owner: String,
    /// Where it stands in the file.
    pub at: Position,
}

/// One entry of `endpoints`.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Where it is.
    pub place: Place,
    /// Who it is.
    pub who: Who,
}

/// Who an endpoint is: not numbered yet, unlike [`Owner`].
#[derive(Clone, Debug, PartialEq)]
pub enum Who {
    /// A workload somewhere.
    Identity {
        /// Who it is.
        identity: Arc<Identity>,
        /// The posture that its side is judged by here.
        posture: Posture,
        /// Its named ports.
        ports: Arc<BTreeMap<String, (u8, u16)>>,
    },
    /// A class.
    Class(Class),
}

impl Who {
    /// The owner, if it needs no number.
    pub const fn class(&self) -> Option<Owner> {
        match self {
            Self::Class(c) => Some(Owner::Class(*c)),
            Self::Identity { .. } => None,
        }
    }
}

/// Addresses that stand for whoever answers there.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// `namespace/name:port`.
    pub title: String,
    /// Where it is reached; one protocol.
    pub places: Vec<maps::AddrPort>,
    /// Who answers, and at which port.
    pub backends: Vec<(Backend, u16)>,
}

/// Who answers for a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// A workload.
    Identity(Arc<Identity>),
    /// Somebody without a SPIFFE ID.
    Class(Class),
}

/// Who the processes below an attach point are that belong to no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlisted {
    /// The host's own: no policy selects them, nothing of theirs is denied on their own side.
    Host,
    /// Unknown workloads: judged by the strictest posture in force, and no rule allows them anything.
    Unknown,
}

/// How to log.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// As JSON lines instead of text.
    pub json: bool,
    /// What to log, in the syntax of tracing's `EnvFilter`.
    pub level: String,
}

/// How many entries the kernel's tables hold; `None`: the built-in number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capacities {
    /// Entries for single addresses.
    pub addresses: Option<u32>,
    /// Entries for rules.
    pub rules: Option<u32>,
    /// Entries for edges.
    pub edges: Option<u32>,
    /// Entries for datagram flows.
    pub flows: Option<u32>,
    /// Entries for peers outside, by address.
    pub outside: Option<u32>,
}

/// Where and how decisions are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionLog {
    /// The file.
    pub path: PathBuf,
    /// The form of its lines.
    pub format: LogForm,
    /// A file this large is put aside and a new one begun, bytes.
    pub max_size: u64,
    /// How many files there may be, the current one among them.
    pub keep: u32,
    /// How often each allowed edge is written.
    pub interval: Duration,
    /// A file whose first line names the policies' revision, such as a Git commit.
    pub revision_file: Option<PathBuf>,
}

/// The form of a line of the decision log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// Our own names.
    Json,
    /// OCSF Network Activity, class 4001.
    Ocsf,
}

/// A place in the file, counted from 1; 0: not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// The address in the kernel's form.
pub fn widen(addr: IpAddr) -> Addr {
    match addr {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr(a.octets()),
    }
}

/// The prefix in the kernel's form; bits beyond its length are cleared.
pub fn widen_prefix(net: ipnet::IpNet) -> maps::PrefixKey {
    let net = net.trunc();
    let more = match net {
        ipnet::IpNet::V4(_) => bulkhead_common::addr::V4_PREFIX_BITS,
        ipnet::IpNet::V6(_) => 0,
    };
    maps::PrefixKey { bits: u32::from(net.prefix_len()) + more, addr: widen(net.network()) }
}

/// The address as people write it.
pub fn narrow(addr: &Addr) -> IpAddr {
    std::net::Ipv6Addr::from(addr.0).to_canonical()
}

#[cfg(test)]
mod tests;
