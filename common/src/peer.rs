//! Who stands at an end of a connection, as a number the kernel can compare.
//!
//! A [`PeerId`] is a workload's identity, one of the named [`Class`]es for peers that have no SPIFFE ID, or a part of
//! the world that a rule names by CIDR. The agent hands identities out and never gives a number a second meaning
//! within one set of maps, so a stale entry can only be wrong about *whether*, never about *who*.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A node-local number for who a peer is. Host byte order.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerId(pub u32);

impl PeerId {
    /// A workload under an attach point whose owner the agent hasn't told the kernel (yet).
    pub const UNKNOWN_WORKLOAD: Self = Self(0);
    /// As a rule's source or destination: any workload that has an identity.
    pub const ANY_WORKLOAD: Self = Self(16);
    /// The first number that can be a workload's identity.
    pub const FIRST_IDENTITY: Self = Self(256);
    /// The first number that can be a part of the world named by CIDR.
    pub const FIRST_CIDR: Self = Self(0x8000_0000);

    /// Whether this is the identity of a known workload.
    #[inline(always)]
    pub const fn is_identity(self) -> bool {
        self.0 >= Self::FIRST_IDENTITY.0 && self.0 < Self::FIRST_CIDR.0
    }

    /// Whether this is a part of the world that a rule names by CIDR.
    #[inline(always)]
    pub const fn is_cidr(self) -> bool {
        self.0 >= Self::FIRST_CIDR.0
    }

    /// The class, if this number stands for one.
    pub const fn class(self) -> Option<Class> {
        Class::from_number(self.0)
    }
}

/// The peers that have no SPIFFE ID. None of them is a silent allow.
///
/// Where several fit an address, the order of the variants decides, a workload's identity coming after
/// `KubeApiserver`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Class {
    /// The Kubernetes API server, by address and port.
    KubeApiserver = 1,
    /// This node: its own addresses, and its processes that belong to no workload.
    Host = 2,
    /// Another node of the cluster, and whatever there runs in its network namespace.
    RemoteNode = 3,
    /// The node's DNS resolver.
    NodeDns = 4,
    /// The cloud's metadata service, 169.254.169.254 and its kin. Not part of the world.
    Metadata = 5,
    /// Inside the ranges that belong to workloads, owner not known (yet).
    Unknown = 6,
    /// Everything else that has a unicast address.
    World = 7,
    /// Multicast and limited broadcast.
    Multicast = 8,
    /// Whoever reached a workload through this node, which put its own address in the place of theirs. Only as the source
    /// of a connection, and never by an address alone.
    SnatIngress = 9,
}

impl Class {
    /// Every class, in order of precedence.
    pub const ALL: [Self; 9] = [
        Self::KubeApiserver,
        Self::Host,
        Self::RemoteNode,
        Self::NodeDns,
        Self::Metadata,
        Self::Unknown,
        Self::World,
        Self::Multicast,
        Self::SnatIngress,
    ];

    /// The class as a peer.
    #[inline(always)]
    pub const fn id(self) -> PeerId {
        PeerId(self as u32)
    }

    /// The class of that number, if there is one.
    pub const fn from_number(n: u32) -> Option<Self> {
        Some(match n {
            1 => Self::KubeApiserver,
            2 => Self::Host,
            3 => Self::RemoteNode,
            4 => Self::NodeDns,
            5 => Self::Metadata,
            6 => Self::Unknown,
            7 => Self::World,
            8 => Self::Multicast,
            9 => Self::SnatIngress,
            _ => return None,
        })
    }

    /// The name in policies, metrics, logs and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::Host => "host",
            Self::RemoteNode => "remote-node",
            Self::NodeDns => "node-dns",
            Self::Metadata => "metadata",
            Self::Unknown => "unknown",
            Self::World => "world",
            Self::Multicast => "multicast",
            Self::SnatIngress => "snat-ingress",
        }
    }

    /// The class of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_the_class() {
        for c in Class::ALL {
            assert_eq!(Class::from_number(c.id().0), Some(c));
            assert_eq!(Class::from_name(c.as_str()), Some(c));
            assert!(!c.id().is_identity() && !c.id().is_cidr());
        }
        assert_eq!(Class::from_number(0), None);
        assert_eq!(PeerId::ANY_WORKLOAD.class(), None);
    }

    #[test]
    fn the_ranges_do_not_overlap() {
        assert!(PeerId::FIRST_IDENTITY.is_identity() && !PeerId::FIRST_IDENTITY.is_cidr());
        assert!(PeerId::FIRST_CIDR.is_cidr() && !PeerId::FIRST_CIDR.is_identity());
        assert!(!PeerId::ANY_WORKLOAD.is_identity() && !PeerId::UNKNOWN_WORKLOAD.is_identity());
    }
}
