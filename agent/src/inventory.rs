//! What the sources know of the host, with identities already numbered: the compiler's other input beside the policies.
//!
//! Plain data, no I/O. An inventory is made anew whenever something changed; comparing the compiled images, not the
//! events, decides what is written to the kernel.

use crate::identity::Identity;
use bulkhead_common::maps::{AddrPort, PrefixKey};
use bulkhead_common::{Addr, Class, PeerId};
use std::collections::{BTreeMap, BTreeSet};

/// The default verdict of a workload, as the pair (in force, audited).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posture {
    /// (allow, allow): only watch.
    Observe,
    /// (allow, deny): say what would be denied.
    Audit,
    /// (deny, deny): deny.
    Enforce,
}

impl Posture {
    /// The word in files and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }
}

/// What is known of one identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentityFacts {
    /// Who it is.
    pub identity: Identity,
    /// Its posture.
    pub posture: Posture,
    /// Its named ports: name to (IP protocol, port).
    pub ports: BTreeMap<String, (u8, u16)>,
}

/// A cgroup whose processes, and those of all cgroups below it, are one workload instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkloadCgroup {
    /// The cgroup's id: its directory's inode number.
    pub id: u64,
    /// How many levels below the root of the hierarchy it lies.
    pub level: u32,
    /// Who runs there.
    pub peer: PeerId,
    /// Which instance of that identity.
    pub instance: u32,
    /// Flags of [`bulkhead_common::slots::Binding`] for a cgroup.
    pub flags: u8,
}

/// A cgroup that carries the programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachPoint {
    /// The cgroup's id.
    pub id: u64,
    /// How many levels below the root of the hierarchy it lies.
    pub level: u32,
}

/// Where an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// One address, all ports.
    Addr(Addr),
    /// One port of one address.
    Port(AddrPort),
    /// All addresses of a prefix.
    Prefix(PrefixKey),
}

/// Who is at a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A workload instance; instance 0 when it isn't one of this node's, or not known which.
    Workload {
        /// Who it is.
        peer: PeerId,
        /// Which instance of that identity.
        instance: u32,
    },
    /// A peer without a SPIFFE ID.
    Class(Class),
}

/// A place and its owner. Two endpoints may name the same place: the compiler takes the one whose owner comes first
/// in the order of [`Class`] (workloads after `kube-apiserver`), the lowest number among workloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Where.
    pub place: Place,
    /// Who.
    pub owner: Owner,
}

/// What stands at places where several may answer, or at another port than the one connected to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its number.
    pub peer: PeerId,
    /// Where it is reached: IP protocol and port.
    pub ports: BTreeSet<(u8, u16)>,
    /// Who may answer, and at which port; at least one.
    pub backends: BTreeSet<(PeerId, u16)>,
}

/// Everything that the compiler knows besides the policies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory {
    /// Every identity that can stand at an end of a connection, by its number.
    pub identities: BTreeMap<PeerId, IdentityFacts>,
    /// Those of them that run elsewhere only. What two of these may do to each other is no business of this node's, and so
    /// isn't compiled.
    pub elsewhere: BTreeSet<PeerId>,
    /// The cgroups of this node's workloads.
    pub cgroups: Vec<WorkloadCgroup>,
    /// The cgroups that carry the programs.
    pub attach_points: Vec<AttachPoint>,
    /// Who is where. `world` for everything else is implied.
    pub endpoints: Vec<Endpoint>,
    /// Services that are judged by whoever may answer.
    pub services: Vec<Service>,
    /// The built-ins that are on: `PASS_…` bits of [`bulkhead_common::maps::Control`].
    pub built_ins: u32,
}

impl Inventory {
    /// The strictest posture in force anywhere: what a workload gets that isn't known yet.
    pub fn strictest(&self) -> Posture {
        self.identities.values().map(|f| f.posture).max().unwrap_or(Posture::Observe)
    }
}
