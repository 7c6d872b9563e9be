//! All objects together: what they say of this node's pods, of everybody else, and of what is allowed.
//!
//! Pure: the same objects give the same view, whatever happened before; only a posture label that can't be read leaves
//! the posture as it was. Where two objects contradict each other, nobody gets what both claim: that address or cgroup is
//! unknown, which allows nothing where anything is enforced, and it is said.

mod claims;

use super::builtin;
use super::cgroup::Pods;
use super::crd::NodeWorkload;
use super::node::Node;
use super::peers::{NodePeers, Ports};
use super::pod::Pod;
use super::services::{self, Front, Slice};
use crate::config::{Backend, Cluster, Config, Peer, Position, Service as Facade, Who, Workload, narrow, widen_prefix};
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{Place, Posture};
use crate::policy::model::protocol_name;
use crate::serve::api::ObjectFault;
use bulkhead_common::maps::{AddrPort, PrefixKey};
use bulkhead_common::{Addr, Class, proto};
use claims::{Claim, Claims, Named};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::DynamicObject;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The label that gives a namespace its posture.
pub const POSTURE: &str = "bulkhead.dev/posture";
/// The annotation that lowers it, to observe or audit.
pub const OVERRIDE: &str = "bulkhead.dev/override";
/// The cluster's DNS, by the name of its Service.
const DNS: (&str, &str) = ("kube-system", "kube-dns");
/// The API server, by the name of its Service.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// How many places Services may have at other nodes' addresses. Beyond, only this node's are told apart.
const NODE_PORTS: usize = 16_384;

/// What the API server has, of what matters here.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// This node's pods.
    pub pods: Vec<Arc<Option<Pod>>>,
    /// What the agents say of their nodes' pods.
    pub peers: Vec<Arc<NodePeers>>,
    /// All Services.
    pub services: Vec<Arc<Service>>,
    /// All EndpointSlices of Services.
    pub slices: Vec<Arc<Option<Slice>>>,
    /// All namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// The ranges of Services' addresses.
    pub service_cidrs: Vec<Arc<ServiceCIDR>>,
    /// Policies, of both kinds.
    pub policies: Vec<Arc<Option<Document>>>,
}

/// What they come to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct View {
    /// This node's pods.
    pub workloads: Vec<Workload>,
    /// Everybody else.
    pub endpoints: Vec<Peer>,
    /// Addresses that stand for others.
    pub services: Vec<Facade>,
    /// Addresses that belong to pods or Services, whoever has them.
    pub ranges: Vec<PrefixKey>,
    /// By namespace.
    pub postures: BTreeMap<String, Posture>,
    /// The policies' texts, by name.
    pub texts: BTreeMap<String, Arc<str>>,
    /// Which forms of the objects those are, by the same names; what is built in has none.
    pub revisions: BTreeMap<String, Revision>,
    /// What other nodes are to know of this one.
    pub published: Vec<NodeWorkload>,
    /// What looks wrong.
    pub warnings: Vec<ObjectFault>,
    /// Addresses of classes, while it is worked out.
    classes: BTreeMap<Addr, Class>,
}

impl View {
    /// The configuration with everything that the cluster adds, taken out of here. What the file says itself comes first.
    pub fn over(&mut self, config: &Config) -> Config {
        let mut config = config.clone();
        config.workloads.append(&mut self.workloads);
        config.endpoints.append(&mut self.endpoints);
        config.services.append(&mut self.services);
        config.ranges.append(&mut self.ranges);
        config
    }
}

/// Works the view out. `postures` are those of the last view.
pub fn view(
    settings: &Cluster,
    objects: &Objects,
    config: &Config,
    pods_at: &[Pods],
    postures: &BTreeMap<String, Posture>,
) -> View {
    let mut view = View::default();
    view.read_postures(settings, objects, config.posture, postures);
    let pods = view.own_pods(settings, objects);
    view.read_workloads(&pods, pods_at);
    let mut claims = Vec::new();
    for (pod, identity) in &pods {
        let mine = |addr: &Addr| Claim { addr: *addr, uid: &pod.uid, identity: Arc::clone(identity) };
        claims.extend(pod.addresses.iter().map(mine));
    }
    let ports = view.read_peers(settings, objects, &mut claims);
    let claims = Claims::of(claims);
    view.settle_claims(&claims, &ports);
    view.read_nodes(settings, objects);
    view.read_ranges(objects);
    let dns = view.read_services(objects, &claims);
    view.read_policies(objects);
    let facts = builtin::Facts {
        pods: pods.iter().flat_map(|(pod, identity)| identity.ids.iter().map(move |id| (*pod, id))).collect(),
        dns,
        node_dns: config.endpoints.iter().any(|p| matches!(p.who, Who::Class(Class::NodeDns))),
    };
    let built_in = builtin::texts(&settings.built_ins, &facts).into_iter();
    view.texts.extend(built_in.map(|(name, text)| (name, text.into())));
    view
}

fn identity(namespace: &str, ids: impl IntoIterator<Item = SpiffeId>) -> Identity {
    Identity { namespace: namespace.to_owned(), ids: ids.into_iter().collect() }
}

impl View {
    fn warn(&mut self, object: String, text: String) {
        self.warnings.push(ObjectFault { object, text });
    }

    fn posture(&self, namespace: &str) -> Posture {
        // A namespace that isn't known yet: its strictest neighbour's.
        let strictest = || self.postures.values().copied().max().unwrap_or(Posture::Observe);
        self.postures.get(namespace).copied().unwrap_or_else(strictest)
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
            let mut posture = match label.map(|text| (text, word(text))) {
                Some((_, Some(p))) => p,
                Some((text, None)) => {
                    let kept = last.get(&name).copied().unwrap_or(Posture::Enforce);
                    self.warn(format!("Namespace/{name}"), format!(
                        "namespace {name}: {POSTURE}={text:?} isn't a posture, so it stays in {} (write observe, audit or enforce)",
                        kept.as_str()
                    ));
                    kept
                }
                None if settings.exempt.contains(&name) => Posture::Observe,
                None => default,
            };
            if let Some(text) = object.metadata.annotations.as_ref().and_then(|a| a.get(OVERRIDE)) {
                match word(text) {
                    Some(lower @ (Posture::Observe | Posture::Audit)) => posture = posture.min(lower),
                    _ => self.warn(format!("Namespace/{name}"), format!(
                        "namespace {name}: {OVERRIDE}={text:?} does nothing (it can lower the posture to observe or audit)"
                    )),
                }
            }
            self.postures.insert(name, posture);
        }
    }

    /// This node's pods that run or will, each with who it is.
    fn own_pods<'a>(&mut self, settings: &Cluster, objects: &'a Objects) -> Vec<(&'a Pod, Arc<Identity>)> {
        let mut by_uid: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
        for pod in objects.pods.iter().filter_map(|p| Option::as_ref(p)) {
            if pod.node == settings.node && !pod.over {
                by_uid.entry(&pod.uid).or_default().push(pod);
            }
        }
        for pod in by_uid.values().flatten().filter(|p| p.running && p.addresses.is_empty() && !p.host_network) {
            let text =
                format!("pod {} runs and has no address, so what it is asked for isn't known to be it", pod.title());
            self.warnings.push(ObjectFault { object: format!("Pod/{}", pod.title()), text });
        }
        let mut known: HashMap<(&str, SpiffeId), Arc<Identity>> = HashMap::new();
        let mut pods = Vec::new();
        for (uid, same) in by_uid {
            let pod = match &same[..] {
                [one] => *one,
                [first, second, ..] => {
                    self.warn(
                        format!("Pod/{}", first.title()),
                        format!(
                            "pods {} and {} both say that they run under UID {uid}, so neither is known",
                            first.title(),
                            second.title()
                        ),
                    );
                    continue;
                }
                [] => continue,
            };
            match settings.template.id(pod.filling()) {
                Ok(id) => {
                    let one = || Arc::new(identity(&pod.namespace, [id.clone()]));
                    let identity = known.entry((&pod.namespace, id.clone())).or_insert_with(one);
                    pods.push((pod, Arc::clone(identity)));
                }
                Err(e) => {
                    self.warn(format!("Pod/{}", pod.title()), format!("pod {} stays unknown: {e}", pod.title()));
                }
            }
        }
        pods
    }

    fn read_workloads(&mut self, pods: &[(&Pod, Arc<Identity>)], pods_at: &[Pods]) {
        let mut named = Named::default();
        for (pod, identity) in pods {
            named.add(identity, &pod.ports);
        }
        for (pod, identity) in pods {
            let ports = named.of(identity);
            self.published.push(NodeWorkload {
                uid: pod.uid.clone(),
                namespace: pod.namespace.clone(),
                ids: identity.ids.iter().map(ToString::to_string).collect(),
                addresses: pod.addresses.iter().map(|a| narrow(a).to_string()).collect(),
                ports: pod.ports.iter().map(|(name, (p, n))| (name.clone(), written(*p, *n))).collect(),
            });
            self.workloads.push(Workload {
                name: pod.title(),
                posture: self.posture(&pod.namespace),
                identity: Identity::clone(identity),
                cgroups: pods_at.iter().flat_map(|at| at.patterns(&pod.uid)).collect(),
                ports: Ports::clone(&ports),
                addresses: pod.addresses.clone(),
                owner: format!("{}/{}", pod.namespace, pod.owner),
                at: Position::default(),
            });
        }
        // In the node's network namespace they have no addresses of their own to tell of.
        self.published.retain(|w| !w.addresses.is_empty());
        self.published.sort();
    }

    /// What other nodes' agents say. Gives the named ports of each identity.
    fn read_peers<'a>(&mut self, settings: &Cluster, objects: &'a Objects, claims: &mut Vec<Claim<'a>>) -> Named<'a> {
        let mut named = Named::default();
        for node in objects.peers.iter().filter(|p| *p.node != *settings.node) {
            let object = format!("NodeEndpoints/{}", node.node);
            node.faults.iter().for_each(|text| self.warn(object.clone(), text.clone()));
            for pod in &node.pods {
                named.add(&pod.identity, &pod.ports);
                let claim = |addr: &Addr| Claim { addr: *addr, uid: &pod.uid, identity: Arc::clone(&pod.identity) };
                claims.extend(pod.addresses.iter().map(claim));
            }
        }
        named.settle();
        named
    }

    /// Gives each address to its one claimant; one with several identities is nobody's.
    fn settle_claims(&mut self, claims: &Claims<'_>, ports: &Named<'_>) {
        let own: BTreeSet<Addr> = self.workloads.iter().flat_map(|w| w.addresses.iter().copied()).collect();
        let mut nobodys = BTreeSet::new();
        self.endpoints.reserve(claims.len());
        for all in claims.by_address() {
            let first = &all[0];
            if let Some(other) = all.iter().find(|c| c.identity != first.identity) {
                nobodys.insert(first.addr);
                self.class(first.addr, Class::Unknown);
                self.warn(
                    format!("Address/{}", narrow(&first.addr)),
                    format!(
                        "{} is claimed by {} (pod {}) and {} (pod {}), so it is nobody's",
                        narrow(&first.addr),
                        first.identity,
                        first.uid,
                        other.identity,
                        other.uid
                    ),
                );
            } else if !own.contains(&first.addr) {
                self.endpoints.push(Peer {
                    place: Place::Addr(first.addr),
                    who: Who::Identity {
                        posture: self.posture(&first.identity.namespace),
                        ports: ports.of(&first.identity),
                        identity: Arc::clone(&first.identity),
                    },
                });
            }
        }
        for w in &mut self.workloads {
            w.addresses.retain(|a| !nobodys.contains(a));
        }
    }

    /// An address is of this class.
    fn class(&mut self, addr: Addr, class: Class) {
        self.endpoints.push(Peer { place: Place::Addr(addr), who: Who::Class(class) });
        self.classes.insert(addr, class);
    }

    fn read_nodes(&mut self, settings: &Cluster, objects: &Objects) {
        for node in &objects.nodes {
            let class = if node.name == settings.node { Class::Host } else { Class::RemoteNode };
            node.addresses.iter().for_each(|a| self.class(*a, class));
        }
    }

    fn read_ranges(&mut self, objects: &Objects) {
        let pods = objects.nodes.iter().flat_map(|n| n.pods.iter().copied());
        let services = objects.service_cidrs.iter().filter_map(|c| c.spec.as_ref()?.cidrs.as_ref()).flatten();
        let services = services.filter_map(|text| text.parse().ok()).map(widen_prefix);
        let ranges: BTreeSet<PrefixKey> = pods.chain(services).collect();
        self.ranges = ranges.into_iter().collect();
    }

    /// Reads the Services. Gives who answers for the cluster's DNS.
    fn read_services(&mut self, objects: &Objects, claims: &Claims<'_>) -> BTreeSet<(SpiffeId, u8, u16)> {
        let class_at = std::mem::take(&mut self.classes);
        let ranges: BTreeSet<PrefixKey> = self.ranges.iter().copied().collect();
        let inside = |a: &Addr| ranges.iter().any(|r| crate::image::masked(a, r.bits) == r.addr);
        let who = |a: &Addr| match (class_at.get(a), claims.first(a)) {
            (Some(c), _) => Backend::Class(*c),
            (None, Some(claim)) => Backend::Identity(Arc::clone(&claim.identity)),
            (None, None) if inside(a) => Backend::Class(Class::Unknown),
            (None, None) => Backend::Class(Class::World),
        };
        let nodes: Vec<Addr> = objects.nodes.iter().flat_map(|n| n.addresses.iter().copied()).collect();
        let own: BTreeSet<Addr> = class_at.iter().filter(|(_, c)| **c == Class::Host).map(|(a, _)| *a).collect();
        let services = objects.services.iter().map(|s| &**s);
        let fronts = services::fronts(services, objects.slices.iter().filter_map(|s| Option::as_ref(s)));
        let on_nodes = fronts.iter().filter(|f| f.node_port.is_some()).count();
        let everywhere = on_nodes * nodes.len() <= NODE_PORTS;
        if !everywhere {
            self.warn(
                "Services".to_owned(),
                format!(
                    "{on_nodes} node ports at {} addresses are too many: only this node's are judged as their Services",
                    nodes.len()
                ),
            );
        }
        let mut dns = BTreeSet::new();
        for front in fronts {
            let of = |(namespace, name)| front.title.starts_with(&format!("{namespace}/{name}:"));
            if of(API_SERVER) {
                self.api_server(&front);
                continue;
            }
            let backends: BTreeSet<(Backend, u16)> = front.backends.iter().map(|(a, port)| (who(a), *port)).collect();
            if of(DNS) {
                for (backend, port) in &backends {
                    if let Backend::Identity(identity) = backend {
                        dns.extend(identity.ids.iter().map(|id| (id.clone(), front.proto, *port)));
                    }
                }
            }
            let mut places = front.places;
            if let Some(port) = front.node_port {
                let at = nodes.iter().filter(|a| everywhere || own.contains(a));
                places.extend(at.map(|a| AddrPort { addr: *a, port, proto: front.proto, pad: 0 }));
            }
            self.services.push(Facade { title: front.title, places, backends: backends.into_iter().collect() });
        }
        dns
    }

    /// The API server is a class of its own, at its Service's address and at its own.
    fn api_server(&mut self, front: &Front) {
        let own =
            front.backends.iter().map(|(addr, port)| AddrPort { addr: *addr, port: *port, proto: proto::TCP, pad: 0 });
        for place in front.places.iter().copied().chain(own) {
            self.endpoints.push(Peer { place: Place::Port(place), who: Who::Class(Class::KubeApiserver) });
        }
    }

    fn read_policies(&mut self, objects: &Objects) {
        for document in objects.policies.iter().filter_map(|d| Option::as_ref(d)) {
            self.revisions.insert(document.title.clone(), document.revision.clone());
            self.texts.insert(document.title.clone(), Arc::clone(&document.text));
        }
    }
}

/// Which form of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Revision {
    /// Which object of that name.
    pub uid: String,
    /// Which form of it.
    pub generation: i64,
}

/// A policy object as a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Its kind, namespace if it has one, and name, with slashes between them: the file's name.
    pub title: String,
    /// What it says.
    pub text: Arc<str>,
    /// Which form that is.
    pub revision: Revision,
}

impl Document {
    /// The object's; `None` if it has no name or kind, which the API server rules out.
    pub fn of(object: &DynamicObject) -> Option<Self> {
        let (types, meta) = (object.types.as_ref()?, &object.metadata);
        let name = meta.name.as_ref()?;
        let mut metadata = json!({"name": name});
        let title = match &meta.namespace {
            Some(namespace) => {
                metadata["namespace"] = json!(namespace);
                format!("{}/{namespace}/{name}", types.kind)
            }
            None => format!("{}/{name}", types.kind),
        };
        let mut text = json!({"apiVersion": types.api_version, "kind": types.kind, "metadata": metadata});
        if let Some(spec) = object.data.get("spec") {
            text["spec"] = spec.clone();
        }
        let revision =
            Revision { uid: meta.uid.clone().unwrap_or_default(), generation: meta.generation.unwrap_or_default() };
        Some(Self { title, text: text.to_string().into(), revision })
    }
}

fn word(text: &str) -> Option<Posture> {
    [Posture::Observe, Posture::Audit, Posture::Enforce].into_iter().find(|p| p.as_str() == text)
}

/// A port as agents tell each other.
fn written(proto: u8, port: u16) -> String {
    format!("{}/{port}", protocol_name(proto))
}

#[cfg(test)]
mod tests;
