//! All objects together: what they say of this node's pods, of everybody else, and of what is allowed.
//!
//! Pure: the same objects give the same view, whatever happened before; only a posture label that can't be read leaves
//! the posture as it was. Where two objects contradict each other, nobody gets what both claim: that address or cgroup is
//! unknown, which allows nothing where anything is enforced, and it is said.

mod document;
mod fronts;

pub use document::{Document, Revision};

use super::builtin;
use super::callers::Caller;
use super::cgroup::Pods;
use super::crd::{NodeEndpoints, NodeWorkload};
use super::pod::{self, Pod};
use super::sandboxes::Given;
use crate::config::{Cluster, Config, Peer, Position, Service as Facade, Who, Workload, narrow, widen_prefix};
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{Place, Posture};
use crate::policy::Lowered;
use crate::policy::model::protocol_number;
use bulkhead_common::maps::PrefixKey;
use bulkhead_common::{Addr, Class};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod as PodObject, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::DynamicObject;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The label that gives a namespace its posture.
pub const POSTURE: &str = "bulkhead.dev/posture";
/// The annotation that lowers it, to observe or audit: nothing is enforced there then, whatever policies say.
pub const OVERRIDE: &str = "bulkhead.dev/override";

/// What the API server has, of what matters here.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// This node's pods.
    pub pods: Vec<Arc<PodObject>>,
    /// What the agents say of their nodes' pods.
    pub node_endpoints: Vec<Arc<NodeEndpoints>>,
    /// All Services.
    pub services: Vec<Arc<Service>>,
    /// All EndpointSlices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// All namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// The ranges of Services' addresses.
    pub service_cidrs: Vec<Arc<ServiceCIDR>>,
    /// What makes the API server call Services.
    pub callers: Vec<Arc<Caller>>,
    /// Policies, of both kinds.
    pub policies: Vec<Arc<DynamicObject>>,
}

/// What they come to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct View {
    /// This node's pods.
    pub workloads: Vec<Workload>,
    /// Their UIDs, in the same order.
    pub uids: Vec<String>,
    /// Everybody else.
    pub endpoints: Vec<Peer>,
    /// Addresses that stand for others.
    pub services: Vec<Facade>,
    /// Addresses that belong to pods or Services, whoever has them.
    pub ranges: Vec<PrefixKey>,
    /// By namespace, as labelled.
    pub postures: BTreeMap<String, Posture>,
    /// Namespaces where nothing is enforced, whatever their label and the policies say.
    pub lowered: BTreeMap<String, Lowered>,
    /// The policies' texts, by name.
    pub texts: BTreeMap<String, String>,
    /// Which forms of the objects those are, by the same names; what is built in has none.
    pub revisions: BTreeMap<String, Revision>,
    /// What other nodes are to know of this one.
    pub published: Vec<NodeWorkload>,
    /// What looks wrong.
    pub warnings: Vec<String>,
}

impl View {
    /// The configuration with everything that the cluster adds. What the file says itself comes first.
    pub fn over(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.workloads.extend(self.workloads.iter().cloned());
        config.endpoints.extend(self.endpoints.iter().cloned());
        config.services.extend(self.services.iter().cloned());
        config.ranges.extend(&self.ranges);
        config
    }
}

/// Who claims an address.
#[derive(Clone, Debug)]
struct Claim {
    uid: String,
    identity: Identity,
}

/// What else there is to know on this node.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// Where its pods' cgroups are.
    pub pods_at: &'a [Pods],
    /// The addresses that its pods were given, for those whose status doesn't tell yet.
    pub given: &'a Given,
    /// The postures of the last view.
    pub postures: &'a BTreeMap<String, Posture>,
}

/// Works the view out.
pub fn view(settings: &Cluster, objects: &Objects, config: &Config, here: Here<'_>) -> View {
    let Here { pods_at, given, postures } = here;
    let mut view = View::default();
    view.read_postures(settings, objects, config.posture, postures);
    let pods = view.own_pods(settings, objects, given);
    view.read_workloads(&pods, pods_at);
    let mut claims: BTreeMap<Addr, Vec<Claim>> = BTreeMap::new();
    for (pod, identity) in &pods {
        for a in &pod.addresses {
            claims.entry(*a).or_default().push(Claim { uid: pod.uid.clone(), identity: identity.clone() });
        }
    }
    let ports = view.read_peers(settings, objects, &mut claims);
    view.settle_claims(&claims, &ports);
    view.read_nodes(settings, objects);
    view.read_ranges(objects);
    let answering = view.read_services(objects, &claims);
    view.read_policies(objects);
    let facts = builtin::Facts {
        pods: pods.iter().flat_map(|(pod, identity)| identity.ids.iter().map(move |id| (pod, id))).collect(),
        dns: answering.dns,
        called: answering.called,
        api_server_here: answering.api_server_here,
        node_dns: config.endpoints.iter().any(|p| matches!(p.who, Who::Class(Class::NodeDns))),
    };
    view.texts.extend(builtin::texts(&settings.built_ins, &facts));
    view
}

fn identity(namespace: &str, ids: impl IntoIterator<Item = SpiffeId>) -> Identity {
    Identity { namespace: namespace.to_owned(), ids: ids.into_iter().collect() }
}

impl View {
    fn warn(&mut self, message: String) {
        self.warnings.push(message);
    }

    fn posture(&self, namespace: &str) -> Posture {
        // A namespace that isn't known yet: its strictest neighbour's.
        let strictest = || self.postures.values().copied().max().unwrap_or(Posture::Observe);
        let labelled = self.postures.get(namespace).copied().unwrap_or_else(strictest);
        match self.lowered.get(namespace) {
            Some(Lowered::Observe) => Posture::Observe,
            Some(Lowered::Audit) => labelled.min(Posture::Audit),
            None => labelled,
        }
    }

    fn read_postures(
        &mut self,
        settings: &Cluster,
        objects: &Objects,
        default: Posture,
        last: &BTreeMap<String, Posture>,
    ) {
        for object in &objects.namespaces {
            let Some(name) = object.metadata.name.clone() else { continue };
            let label = object.metadata.labels.as_ref().and_then(|l| l.get(POSTURE));
            let posture = match label.map(|text| (text, word(text))) {
                Some((_, Some(p))) => p,
                Some((text, None)) => {
                    let kept = last.get(&name).copied().unwrap_or(Posture::Enforce);
                    self.warn(format!(
                        "namespace {name}: {POSTURE}={text:?} isn't a posture, so it stays in {} (write observe, audit or enforce)",
                        kept.as_str()
                    ));
                    kept
                }
                None if settings.exempt.contains(&name) => Posture::Observe,
                None => default,
            };
            if let Some(text) = object.metadata.annotations.as_ref().and_then(|a| a.get(OVERRIDE)) {
                match Lowered::from_name(text) {
                    Some(to) => drop(self.lowered.insert(name.clone(), to)),
                    None => self.warn(format!(
                        "namespace {name}: {OVERRIDE}={text:?} does nothing (it can lower the posture to observe or audit)"
                    )),
                }
            }
            self.postures.insert(name, posture);
        }
    }

    /// This node's pods that run or will, each with who it is.
    fn own_pods(&mut self, settings: &Cluster, objects: &Objects, given: &Given) -> Vec<(Pod, Identity)> {
        let mut by_uid: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
        for mut pod in objects.pods.iter().filter_map(|p| Pod::of(p)) {
            if pod.node == settings.node && !pod.over {
                if let Some(given) = given.get(&pod.uid).filter(|_| pod.addresses.is_empty() && !pod.host_network) {
                    pod.addresses.clone_from(given);
                }
                by_uid.entry(pod.uid.clone()).or_default().push(pod);
            }
        }
        let mut pods = Vec::new();
        for (uid, mut same) in by_uid {
            if let [first, second, ..] = &same[..] {
                self.warn(format!(
                    "pods {} and {} both say that they run under UID {uid}, so neither is known",
                    first.title(),
                    second.title()
                ));
                continue;
            }
            let Some(pod) = same.pop() else { continue };
            match settings.template.id(pod.filling()) {
                Ok(id) => {
                    let identity = identity(&pod.namespace, [id]);
                    pods.push((pod, identity));
                }
                Err(e) => self.warn(format!("pod {} stays unknown: {e}", pod.title())),
            }
        }
        pods
    }

    fn read_workloads(&mut self, pods: &[(Pod, Identity)], pods_at: &[Pods]) {
        let mut ports: BTreeMap<&Identity, Ports> = BTreeMap::new();
        for (pod, identity) in pods {
            ports.entry(identity).or_default().add(&pod.ports);
        }
        for (pod, identity) in pods {
            let ports = ports.get(identity).map(Ports::clear).unwrap_or_default();
            self.published.push(pod.told(&identity.ids));
            self.uids.push(pod.uid.clone());
            self.workloads.push(Workload {
                name: pod.title(),
                posture: self.posture(&pod.namespace),
                identity: identity.clone(),
                cgroups: pods_at.iter().flat_map(|at| at.patterns(&pod.uid)).collect(),
                ports,
                addresses: pod.addresses.clone(),
                young: false,
                at: Position::default(),
            });
        }
        // In the node's network namespace they have no addresses of their own to tell of.
        self.published.retain(|w| !w.addresses.is_empty());
        self.published.sort();
    }

    /// What other nodes' agents say. Gives the named ports of each identity.
    fn read_peers(
        &mut self,
        settings: &Cluster,
        objects: &Objects,
        claims: &mut BTreeMap<Addr, Vec<Claim>>,
    ) -> BTreeMap<Identity, Ports> {
        let mut ports: BTreeMap<Identity, Ports> = BTreeMap::new();
        let nodes: BTreeSet<&str> = objects.nodes.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
        for object in &objects.node_endpoints {
            let node = object.metadata.name.as_deref().unwrap_or_default();
            if node == settings.node {
                continue;
            }
            // What an agent says of a node that isn't its own counts for nodes that there are.
            if object.spec.published_by != node && !nodes.contains(node) {
                self.warn(format!(
                    "{} says what pods run on {node}, which is no node, so it doesn't count",
                    object.spec.published_by
                ));
                continue;
            }
            for w in &object.spec.workloads {
                let ids: Result<BTreeSet<SpiffeId>, _> = w.ids.iter().map(|id| id.parse()).collect();
                let ids = match ids {
                    Ok(ids) if !ids.is_empty() => ids,
                    Ok(_) => continue,
                    Err(e) => {
                        self.warn(format!("node {node} says of pod {}: {e}", w.uid));
                        continue;
                    }
                };
                let identity = identity(&w.namespace, ids);
                let named = w.ports.iter().filter_map(|(name, text)| Some((name.clone(), read_port(text)?))).collect();
                ports.entry(identity.clone()).or_default().add(&named);
                for a in w.addresses.iter().filter_map(|text| pod::address(text)) {
                    claims.entry(a).or_default().push(Claim { uid: w.uid.clone(), identity: identity.clone() });
                }
            }
        }
        ports
    }

    /// Gives each address to its one claimant; one with several identities is nobody's.
    fn settle_claims(&mut self, claims: &BTreeMap<Addr, Vec<Claim>>, ports: &BTreeMap<Identity, Ports>) {
        let own: BTreeSet<Addr> = self.workloads.iter().flat_map(|w| w.addresses.iter().copied()).collect();
        let mut nobodys = BTreeSet::new();
        for (addr, all) in claims {
            let Some(first) = all.first() else { continue };
            if let Some(other) = all.iter().find(|c| c.identity != first.identity) {
                nobodys.insert(*addr);
                self.endpoints.push(Peer { place: Place::Addr(*addr), who: Who::Class(Class::Unknown) });
                self.warn(format!(
                    "{} is claimed by {} (pod {}) and {} (pod {}), so it is nobody's",
                    narrow(addr),
                    first.identity,
                    first.uid,
                    other.identity,
                    other.uid
                ));
            } else if !own.contains(addr) {
                self.endpoints.push(Peer {
                    place: Place::Addr(*addr),
                    who: Who::Identity {
                        posture: self.posture(&first.identity.namespace),
                        ports: ports.get(&first.identity).map(Ports::clear).unwrap_or_default(),
                        identity: Arc::new(first.identity.clone()),
                    },
                });
            }
        }
        for w in &mut self.workloads {
            w.addresses.retain(|a| !nobodys.contains(a));
        }
    }

    fn read_nodes(&mut self, settings: &Cluster, objects: &Objects) {
        for object in &objects.nodes {
            let own = object.metadata.name.as_deref() == Some(&settings.node);
            let class = if own { Class::Host } else { Class::RemoteNode };
            for a in node_addresses(object) {
                self.endpoints.push(Peer { place: Place::Addr(a), who: Who::Class(class) });
            }
        }
    }

    fn read_ranges(&mut self, objects: &Objects) {
        let pods = objects.nodes.iter().filter_map(|n| n.spec.as_ref()?.pod_cidrs.as_ref()).flatten();
        let services = objects.service_cidrs.iter().filter_map(|c| c.spec.as_ref()?.cidrs.as_ref()).flatten();
        let ranges: BTreeSet<PrefixKey> =
            pods.chain(services).filter_map(|text| text.parse().ok()).map(widen_prefix).collect();
        self.ranges = ranges.into_iter().collect();
    }

    fn read_policies(&mut self, objects: &Objects) {
        for object in &objects.policies {
            let Some(document) = Document::of(object) else { continue };
            self.revisions.insert(document.title.clone(), document.revision);
            self.texts.insert(document.title, document.text);
        }
    }
}

fn word(text: &str) -> Option<Posture> {
    [Posture::Observe, Posture::Audit, Posture::Enforce].into_iter().find(|p| p.as_str() == text)
}

fn node_addresses(node: &Node) -> Vec<Addr> {
    let addresses = node.status.iter().filter_map(|s| s.addresses.as_ref()).flatten();
    addresses.filter_map(|a| pod::address(&a.address)).collect()
}

fn read_port(text: &str) -> Option<(u8, u16)> {
    let (name, port) = text.split_once('/')?;
    Some((protocol_number(name)?, port.parse().ok()?))
}

/// Named ports of one identity, gathered from all that have it. A name that means two things means nothing.
#[derive(Clone, Debug, Default)]
struct Ports(BTreeMap<String, Option<(u8, u16)>>);

impl Ports {
    fn add(&mut self, more: &BTreeMap<String, (u8, u16)>) {
        for (name, port) in more {
            let kept = self.0.entry(name.clone()).or_insert(Some(*port));
            if *kept != Some(*port) {
                *kept = None;
            }
        }
    }

    fn clear(&self) -> BTreeMap<String, (u8, u16)> {
        self.0.iter().filter_map(|(name, port)| Some((name.clone(), (*port)?))).collect()
    }
}

#[cfg(test)]
mod tests;
