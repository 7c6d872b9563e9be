//! From labels, addresses and names to Bulkhead's peers and ports, each on the safe side.
//!
//! What allows takes only what surely fits: identities all of whose pods are meant. What denies takes whatever may fit.
//! Where the two differ, the difference is a finding.

use super::estate::{Estate, Pick, shortened};
use super::model::{Errs, Findings, Peer, Pods, Port, Source};
use super::tree::Spot;
use crate::policy::diagnostic::{At, Diagnostic, Severity};
use crate::policy::model::{Peer as Named, PortRange, PortSpec};
use crate::policy::{ANY_ID, IdPattern};
use bulkhead_common::Class;
use ipnet::IpNet;
use std::net::IpAddr;

/// Ports in Bulkhead's words; `None`: every port of every protocol.
pub(super) type Ports = Option<Vec<PortSpec>>;

/// Turns ends and ports into Bulkhead's.
pub(super) struct Resolver<'a> {
    pub(super) estate: &'a Estate,
    pub(super) findings: Findings,
    /// What can't be told without pods.
    pub(super) faults: Vec<Diagnostic>,
}

/// Whoever it is.
pub(super) fn anybody() -> Vec<Named> {
    let id = ANY_ID.parse::<IdPattern>().ok().map(Named::Id);
    id.into_iter().chain(Class::ALL.map(Named::Class)).collect()
}

/// The patterns among these.
pub(super) fn patterns(peers: &[Named]) -> Vec<IdPattern> {
    let pattern = |p: &Named| match p {
        Named::Id(pattern) => Some(pattern.clone()),
        _ => None,
    };
    peers.iter().filter_map(pattern).collect()
}

impl Resolver<'_> {
    /// Whom labels select.
    pub(super) fn pick(&mut self, source: &Source, pods: &Pods) -> Pick {
        let Some(pick) = self.estate.pick(&pods.scope, &pods.pods) else {
            let at = At { value: (), line: pods.spot.line, column: pods.spot.column };
            let message = format!("{source}: labels select pods, and it isn't known which pods there are");
            self.faults.push(at.diagnose(&source.file, Severity::Error, message, super::GIVE_PODS));
            return Pick::default();
        };
        pick
    }

    /// Says that some pods of an identity are meant and others aren't.
    fn say_parts(&mut self, source: &Source, spot: &Spot, pick: &Pick, what: &str) {
        for part in &pick.part {
            let reason = format!(
                "of the pods of {}, {} fit and {} don't: {what}; give them service accounts of their own",
                part.id,
                self.estate.titles(&part.picked),
                self.estate.titles(&part.others)
            );
            self.findings.add(source, spot, Errs::Stricter, reason);
        }
    }

    /// Peers that surely fit.
    pub(super) fn allowed(&mut self, source: &Source, peers: &[(Spot, Peer)]) -> Vec<Named> {
        let mut all = Vec::new();
        for (spot, peer) in peers {
            match peer {
                Peer::Anybody => all.extend(anybody()),
                Peer::Pods(pods) => {
                    let pick = self.pick(source, pods);
                    self.say_parts(source, spot, &pick, "an identity is allowed as a whole, so it isn't");
                    if !pick.host.is_empty() && !pods.pods.is_empty() {
                        let who = shortened(pick.host);
                        let reason =
                            format!("{who} in the node's own network can't be told apart: not allowed by this");
                        self.findings.add(source, spot, Errs::Neither, reason);
                    }
                    all.extend(pick.whole.into_iter().map(Named::Id));
                }
                Peer::Ids(ids) => all.extend(ids.iter().cloned().map(Named::Id)),
                Peer::Block { net, except } => {
                    let inside = self.inside(net, except);
                    if !inside.is_empty() {
                        let reason = format!(
                            "{net} is only a part of the world to Bulkhead, without {} inside: add peers for those that \
                             are meant",
                            inside.join(", ")
                        );
                        self.findings.add(source, spot, Errs::Stricter, reason);
                    }
                    all.push(Named::Cidr { net: *net, except: except.clone() });
                }
                Peer::Nodes(nodes) if nodes.is_empty() => {
                    all.extend([Class::Host, Class::RemoteNode].map(Named::Class));
                }
                Peer::Nodes(_) => {
                    let reason = "nodes aren't told apart by labels: not allowed by this";
                    self.findings.add(source, spot, Errs::Stricter, reason);
                }
                Peer::Domains => {
                    let reason = "rules name no domains: not allowed by this; name the addresses";
                    self.findings.add(source, spot, Errs::Stricter, reason);
                }
            }
        }
        once(all)
    }

    /// Peers that may fit.
    pub(super) fn denied(&mut self, source: &Source, peers: &[(Spot, Peer)]) -> Vec<Named> {
        let mut all = Vec::new();
        for (spot, peer) in peers {
            match peer {
                Peer::Anybody => all.extend(anybody()),
                Peer::Pods(pods) => {
                    let pick = self.pick(source, pods);
                    self.say_parts(source, spot, &pick, "an identity is denied as a whole, so all of them are");
                    all.extend(pick.any().into_iter().map(Named::Id));
                }
                Peer::Ids(ids) => all.extend(ids.iter().cloned().map(Named::Id)),
                Peer::Block { net, except } => all.extend(self.denied_block(source, spot, net, except)),
                Peer::Nodes(_) => {
                    let reason = "nodes aren't told apart, nor from the API server: all of them are denied";
                    self.findings.add(source, spot, Errs::Stricter, reason);
                    all.extend([Class::Host, Class::RemoteNode, Class::KubeApiserver].map(Named::Class));
                }
                Peer::Domains => {
                    let reason = "rules name no domains, so whoever may have one is denied";
                    self.findings.add(source, spot, Errs::Stricter, reason);
                    all.extend(anybody());
                }
            }
        }
        once(all)
    }

    /// A part of the world, and whoever else has an address there.
    fn denied_block(&mut self, source: &Source, spot: &Spot, net: &IpNet, except: &[IpNet]) -> Vec<Named> {
        if net.prefix_len() == 0 && except.is_empty() {
            // Every address of one family: whoever it is may have one.
            let reason = format!("whoever may have an address in {net} is denied, at its other addresses, too");
            self.findings.add(source, spot, Errs::Stricter, reason);
            return anybody();
        }
        let mut all = vec![Named::Cidr { net: *net, except: except.to_vec() }];
        let ids = self.estate.inside(net, except);
        let nodes = self.estate.nodes_inside(net, except);
        if !ids.is_empty() || nodes || !self.estate.is_given() {
            let reason = format!(
                "workloads, nodes and the API server go by who they are and not by address: those that may be in {net} \
                 are denied wherever they are"
            );
            self.findings.add(source, spot, Errs::Stricter, reason);
            all.push(Named::Class(Class::Unknown));
            if self.estate.is_given() {
                all.extend(ids.iter().filter_map(|id| id.as_str().parse().ok()).map(Named::Id));
            } else {
                all.extend(ANY_ID.parse().ok().map(Named::Id));
            }
            if nodes || !self.estate.is_given() {
                all.extend([Class::Host, Class::RemoteNode].map(Named::Class));
            }
        }
        match self.estate.api_server_inside(net, except) {
            Some(false) => {}
            known => {
                if known.is_none() {
                    let reason = format!("where the API server is isn't known: as if it were in {net}, it is denied");
                    self.findings.add(source, spot, Errs::Stricter, reason);
                }
                all.push(Named::Class(Class::KubeApiserver));
            }
        }
        if net.contains(&metadata_address(net)) {
            all.push(Named::Class(Class::Metadata));
        }
        all
    }

    /// What is inside a block that isn't the world, in words.
    fn inside(&self, net: &IpNet, except: &[IpNet]) -> Vec<String> {
        let mut inside = Vec::new();
        let ids = self.estate.inside(net, except);
        if !ids.is_empty() {
            inside.push(format!("the pods of {}", shortened(ids.iter().map(ToString::to_string).collect())));
        }
        if self.estate.nodes_inside(net, except) {
            inside.push("nodes".to_owned());
        }
        let metadata = metadata_address(net);
        if net.contains(&metadata) && !except.iter().any(|e| e.contains(&metadata)) {
            inside.push(format!("the metadata service at {metadata}"));
        }
        inside
    }

    /// Ports that surely fit, at those destinations; `None`: none.
    pub(super) fn allowed_ports(
        &mut self,
        source: &Source,
        ports: &Option<Vec<(Spot, Port)>>,
        whose: &[IdPattern],
    ) -> Option<Ports> {
        let Some(ports) = ports else { return Some(None) };
        let mut all = Vec::new();
        for (spot, port) in ports {
            match port {
                Port::All(_) | Port::Range(..) => all.extend(plain(port)),
                Port::Named(protos, name) => {
                    let meaning = self.estate.meaning(name, Some(whose));
                    if meaning.unclear.is_empty() {
                        all.extend(named(protos, name));
                    } else {
                        let who = shortened(meaning.unclear.iter().map(ToString::to_string).collect());
                        let reason = format!(
                            "pods of {who} don't all mean one port by `{name}`: nothing is allowed by it; name the number"
                        );
                        self.findings.add(source, spot, Errs::Stricter, reason);
                    }
                }
            }
        }
        (!all.is_empty()).then_some(Some(once(all)))
    }

    /// Ports that may fit, at those destinations; `None`: none.
    pub(super) fn denied_ports(
        &mut self,
        source: &Source,
        ports: &Option<Vec<(Spot, Port)>>,
        whose: &[IdPattern],
    ) -> Option<Ports> {
        let Some(ports) = ports else { return Some(None) };
        let mut all = Vec::new();
        for (spot, port) in ports {
            all.extend(plain(port));
            if let Port::Named(protos, name) = port {
                all.extend(named(protos, name));
                let meaning = self.estate.meaning(name, Some(whose));
                if !meaning.unclear.is_empty() {
                    let who = shortened(meaning.unclear.iter().map(ToString::to_string).collect());
                    let reason = format!(
                        "pods of {who} don't all mean one port by `{name}`: every port that any of them means is denied"
                    );
                    self.findings.add(source, spot, Errs::Stricter, reason);
                    let meant = meaning.ports.into_iter().filter(|(p, _)| protos.contains(p));
                    all.extend(meant.map(|(proto, n)| PortSpec { proto, ports: PortRange::Range(n, n) }));
                }
            }
        }
        (!all.is_empty()).then_some(Some(once(all)))
    }
}

fn metadata_address(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(_) => IpAddr::from([169, 254, 169, 254]),
        IpNet::V6(_) => IpAddr::from([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]),
    }
}

fn plain(port: &Port) -> Option<PortSpec> {
    match *port {
        Port::All(proto) => Some(PortSpec { proto, ports: PortRange::All }),
        Port::Range(proto, first, last) => Some(PortSpec { proto, ports: PortRange::Range(first, last) }),
        Port::Named(..) => None,
    }
}

fn named(protos: &[u8], name: &str) -> Vec<PortSpec> {
    protos.iter().map(|proto| PortSpec { proto: *proto, ports: PortRange::Named(name.into()) }).collect()
}

/// Each once, in the order in which they came.
fn once<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut kept: Vec<T> = Vec::with_capacity(all.len());
    for item in all {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

/// Whether some connection may fit both; it may say yes where none does.
pub(super) fn overlap(a: &[Named], b: &[Named]) -> bool {
    let both = |a: &Named, b: &Named| match (a, b) {
        (Named::Id(p), Named::Id(q)) => patterns_overlap(p, q),
        (Named::Class(p), Named::Class(q)) => p == q,
        (Named::Cidr { net: p, .. }, Named::Cidr { net: q, .. }) => p.contains(q) || q.contains(p),
        (Named::Class(class), Named::Cidr { .. }) | (Named::Cidr { .. }, Named::Class(class)) => *class == Class::World,
        _ => false,
    };
    a.iter().any(|a| b.iter().any(|b| both(a, b)))
}

pub(super) fn patterns_overlap(p: &IdPattern, q: &IdPattern) -> bool {
    if p.covers(q) || q.covers(p) {
        return true;
    }
    if p.is_exact() || q.is_exact() {
        return false;
    }
    let (p, q) = (p.literal_prefix(), q.literal_prefix());
    p.starts_with(q) || q.starts_with(p)
}

/// Whether everything that fits the second surely fits the first.
pub(super) fn covers(a: &[Named], b: &[Named]) -> bool {
    let covers = |a: &Named, b: &Named| match (a, b) {
        (Named::Id(p), Named::Id(q)) => p.covers(q),
        (Named::Class(p), Named::Class(q)) => p == q,
        (Named::Class(class), Named::Cidr { .. }) => *class == Class::World,
        (Named::Cidr { net: p, except }, Named::Cidr { net: q, .. }) => except.is_empty() && p.contains(q),
        _ => false,
    };
    b.iter().all(|b| a.iter().any(|a| covers(a, b)))
}

/// The same for ports.
pub(super) fn ports_overlap(a: &Ports, b: &Ports) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    let both = |a: &PortSpec, b: &PortSpec| {
        a.proto == b.proto
            && match (&a.ports, &b.ports) {
                (PortRange::Range(p, q), PortRange::Range(r, s)) => p <= s && r <= q,
                _ => true,
            }
    };
    a.iter().any(|a| b.iter().any(|b| both(a, b)))
}

/// The same for ports.
pub(super) fn ports_cover(a: &Ports, b: &Ports) -> bool {
    let Some(a) = a else { return true };
    let Some(b) = b else { return false };
    let covers = |a: &PortSpec, b: &PortSpec| {
        a.proto == b.proto
            && match (&a.ports, &b.ports) {
                (PortRange::All, _) => true,
                (PortRange::Range(p, q), PortRange::Range(r, s)) => p <= r && s <= q,
                (p, q) => p == q,
            }
    };
    b.iter().all(|b| a.iter().any(|a| covers(a, b)))
}
