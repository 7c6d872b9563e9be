//! Policies after checking: whatever stands here has a meaning, and one meaning only.
//!
//! Made from documents by [`super::convert`], all or nothing, and read by the compiler and the reference evaluator.

use super::diagnostic::At;
pub use super::document::Mode;
use super::pattern::IdPattern;
use bulkhead_common::slots::Sides;
use bulkhead_common::{Class, proto};
use ipnet::IpNet;
use std::fmt;
use std::sync::Arc;

/// What kind of document a policy came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// For the workloads of the whole cluster or host.
    ClusterSegmentationPolicy,
    /// For the workloads of one namespace.
    SegmentationPolicy,
}

impl Kind {
    /// The word in `kind:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterSegmentationPolicy => "ClusterSegmentationPolicy",
            Self::SegmentationPolicy => "SegmentationPolicy",
        }
    }
}

impl Kind {
    /// The kind of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ClusterSegmentationPolicy, Self::SegmentationPolicy].into_iter().find(|k| k.as_str() == name)
    }
}

/// What tells one policy from another. The order is the order in which policies are looked at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct PolicyName {
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty on a plain host and for what is cluster-wide.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.as_str())?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// One policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Its name, and where it begins.
    pub name: At<Arc<PolicyName>>,
    /// The file that it came from.
    pub file: Arc<str>,
    /// Into which verdicts it goes.
    pub mode: Mode,
    /// For people.
    pub description: Option<String>,
    /// Whom `ingress`, `egress` and `sockets` are about: any of these patterns. Empty: nobody.
    pub selector: Vec<At<IdPattern>>,
    /// Who may connect to them; `Some` isolates.
    pub ingress: Option<Vec<At<Rule>>>,
    /// To whom they may connect; `Some` isolates.
    pub egress: Option<Vec<At<Rule>>>,
    /// Connections that are open on both sides.
    pub edges: Vec<At<Edge>>,
    /// Connections that no rule can allow.
    pub denies: Vec<At<Deny>>,
    /// Kinds of socket that they may make: bits of [`bulkhead_common::slots::Baseline`].
    pub sockets: u8,
    /// When it stops to hold, milliseconds since 1970.
    pub expires: Option<At<u64>>,
}

impl Policy {
    /// The only namespace whose workloads it selects, if it has one.
    pub fn namespace(&self) -> Option<&str> {
        match self.name.kind {
            Kind::SegmentationPolicy => Some(&self.name.namespace),
            Kind::ClusterSegmentationPolicy => None,
        }
    }

    /// The bits of [`Sides`] for the verdicts that it reaches, among those given.
    pub fn reach(&self, sides: u8) -> u8 {
        match self.mode {
            Mode::Enforce => sides,
            Mode::Audit => sides & (Sides::EGRESS_AUDITED | Sides::INGRESS_AUDITED),
        }
    }
}

/// Adding to the lines of everything that was read from one document of several.
impl Policy {
    pub(super) fn move_down(&mut self, lines: u32) {
        let Self { name, selector, ingress, egress, edges, denies, expires, .. } = self;
        name.line += lines;
        let time = |at: &mut Option<At<u64>>| at.iter_mut().for_each(|t| t.line += lines);
        time(expires);
        selector.iter_mut().for_each(|p| p.line += lines);
        let peers = |list: &mut Vec<At<Peer>>| list.iter_mut().for_each(|p| p.line += lines);
        let ports = |list: &mut Ports| list.iter_mut().flatten().for_each(|p| p.line += lines);
        for rule in ingress.iter_mut().chain(egress).flatten() {
            rule.line += lines;
            time(&mut rule.value.expires);
            peers(&mut rule.value.peers);
            ports(&mut rule.value.ports);
        }
        for edge in edges {
            edge.line += lines;
            time(&mut edge.value.expires);
            peers(&mut edge.value.from);
            peers(&mut edge.value.to);
            ports(&mut edge.value.ports);
        }
        for deny in denies {
            deny.line += lines;
            time(&mut deny.value.expires);
            peers(&mut deny.value.from);
            peers(&mut deny.value.to);
            ports(&mut deny.value.ports);
            for except in &mut deny.value.except {
                except.line += lines;
                except.value.from.iter_mut().chain(&mut except.value.to).for_each(peers);
                ports(&mut except.value.ports);
            }
        }
    }
}

/// One entry of a policy's ingress or egress list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The other end: any of these.
    pub peers: Vec<At<Peer>>,
    /// On which ports.
    pub ports: Ports,
    /// The rule in one line; two rules with the same line mean the same.
    pub text: Arc<str>,
    /// When it stops to hold, milliseconds since 1970.
    pub expires: Option<At<u64>>,
}

/// A connection that is open on both sides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Who opens it: any of these.
    pub from: Vec<At<Peer>>,
    /// Who is connected to: any of these.
    pub to: Vec<At<Peer>>,
    /// On which ports.
    pub ports: Ports,
    /// The edge in one line.
    pub text: Arc<str>,
    /// When it stops to hold, milliseconds since 1970.
    pub expires: Option<At<u64>>,
}

/// A connection that no rule can allow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deny {
    /// Who opens it: any of these.
    pub from: Vec<At<Peer>>,
    /// Who is connected to: any of these.
    pub to: Vec<At<Peer>>,
    /// On which ports.
    pub ports: Ports,
    /// What it leaves to the rules.
    pub except: Vec<At<Except>>,
    /// The deny in one line.
    pub text: Arc<str>,
    /// When it stops to hold, milliseconds since 1970.
    pub expires: Option<At<u64>>,
}

/// What a deny leaves to the rules: what fits all three.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Except {
    /// `None`: whoever it is.
    pub from: Option<Vec<At<Peer>>>,
    /// `None`: whoever it is.
    pub to: Option<Vec<At<Peer>>>,
    /// On which ports.
    pub ports: Ports,
}

/// An end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Workloads by SPIFFE ID.
    Id(IdPattern),
    /// A peer without a SPIFFE ID.
    Class(Class),
    /// A part of the world, never a workload or another class.
    Cidr {
        /// The part.
        net: IpNet,
        /// What of it isn't meant.
        except: Vec<IpNet>,
    },
}

/// Ports of the destination; `None`: every port of every protocol.
pub type Ports = Option<Vec<At<PortSpec>>>;

/// Ports of one protocol.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PortSpec {
    /// The IP protocol.
    pub proto: u8,
    /// Which of its ports.
    pub ports: PortRange,
}

/// Which ports of a protocol.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PortRange {
    /// All.
    All,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// Whatever the destination gives this name.
    Named(Arc<str>),
}

/// The protocols that rules can judge.
pub const PROTOCOLS: [(u8, &str); 5] = [
    (proto::TCP, "TCP"),
    (proto::UDP, "UDP"),
    (proto::SCTP, "SCTP"),
    (proto::UDPLITE, "UDPLite"),
    (proto::ICMP, "ICMP"),
];

/// The name of a protocol, or its number.
pub fn protocol_name(number: u8) -> String {
    let known = PROTOCOLS.iter().find(|(n, _)| *n == proto::judged(number));
    known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// The number of a protocol that rules can judge, by its name in any case or by its number.
pub fn protocol_number(name: &str) -> Option<u8> {
    let number = name.parse().ok().map(proto::judged);
    PROTOCOLS.iter().find(|(n, known)| known.eq_ignore_ascii_case(name) || Some(*n) == number).map(|(n, _)| *n)
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(pattern) => fmt::Display::fmt(pattern, f),
            Self::Class(class) => f.write_str(class.as_str()),
            Self::Cidr { net, except } => {
                write!(f, "{net}")?;
                for (i, e) in except.iter().enumerate() {
                    f.write_str(if i == 0 { " except " } else { "," })?;
                    write!(f, "{e}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&protocol_name(self.proto))?;
        match &self.ports {
            PortRange::All => Ok(()),
            PortRange::Range(a, b) if a == b => write!(f, "/{a}"),
            PortRange::Range(a, b) => write!(f, "/{a}-{b}"),
            PortRange::Named(name) => write!(f, "/{name}"),
        }
    }
}

/// Items with commas between them.
pub(crate) fn listed<T: fmt::Display>(items: &[At<T>]) -> String {
    items.iter().map(|i| i.value.to_string()).collect::<Vec<_>>().join(", ")
}

/// Ports in words.
pub(crate) fn ports_listed(ports: &Ports) -> String {
    ports.as_ref().map_or_else(|| "any port".to_owned(), |list| listed(list))
}
