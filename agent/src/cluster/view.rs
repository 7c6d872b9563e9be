//! All objects together: what they say of this node's pods, of everybody else, and of what is allowed.
//!
//! Pure: the same objects give the same view, whatever happened before; only a posture label that can't be read leaves
//! the posture as it was. Where two objects contradict each other, nobody gets what both claim: that address or cgroup is
//! unknown, which allows nothing where anything is enforced, and it is said.

mod claims;
mod document;
mod fronts;

pub use document::{Document, Revision};

use super::builtin;
use super::callers::Caller;
use super::cgroup::Pods;
use super::crd::NodeWorkload;
use super::node::Node;
use super::peers::{NodePeers, Ports};
use super::pod::Pod;
use super::sandboxes::Given;
use super::services::Slice;
use crate::config::{Cluster, Config, Peer, Position, Service as Facade, Who, Workload, narrow, widen_prefix};
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{Place, Posture};
use crate::policy::Lowered;
use crate::serve::api::ObjectFault;
use bulkhead_common::maps::PrefixKey;
use bulkhead_common::{Addr, Class};
use claims::{By, Claim, Claims, Named};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The label that gives a namespace its posture.
pub const POSTURE: &str = "bulkhead.dev/posture";
/// The annotation that lowers it, to observe or audit: nothing is enforced there then, whatever policies say.
pub const OVERRIDE: &str = "bulkhead.dev/override";

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
    /// What makes the API server call Services.
    pub callers: Vec<Arc<Caller>>,
    /// Policies, of both kinds.
    pub policies: Vec<Arc<Option<Document>>>,
}

/// How far objects differ from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// They are the very same ones.
    None,
    /// Only policies differ.
    Policies,
    /// Others do.
    Others,
}

impl Objects {
    /// How far these differ from those.
    pub fn difference(&self, later: &Self) -> Difference {
        fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
        }
        let Self { pods, peers, services, slices, namespaces, nodes, service_cidrs, callers, policies } = self;
        let others = same(pods, &later.pods)
            && same(peers, &later.peers)
            && same(services, &later.services)
            && same(slices, &later.slices)
            && same(namespaces, &later.namespaces)
            && same(nodes, &later.nodes)
            && same(service_cidrs, &later.service_cidrs)
            && same(callers, &later.callers);
        match (others, same(policies, &later.policies)) {
            (true, true) => Difference::None,
            (true, false) => Difference::Policies,
            (false, _) => Difference::Others,
        }
    }
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
    pub texts: BTreeMap<Arc<str>, Arc<str>>,
    /// Which forms of the objects those are, by the same names; what is built in has none.
    pub revisions: BTreeMap<Arc<str>, Revision>,
    /// What other nodes are to know of this one.
    pub published: Vec<NodeWorkload>,
    /// What looks wrong.
    pub warnings: Vec<ObjectFault>,
    /// Addresses of classes, while it is worked out.
    classes: BTreeMap<Addr, Class>,
}

impl View {
    /// Adds to the file's configuration what the cluster does, taken out of here. What the file says itself stays first.
    pub fn over(&mut self, config: &mut Config) {
        config.workloads.append(&mut self.workloads);
        // The longer list takes the shorter one in.
        self.endpoints.splice(0..0, config.endpoints.drain(..));
        config.endpoints = std::mem::take(&mut self.endpoints);
        config.services.append(&mut self.services);
        config.ranges.append(&mut self.ranges);
    }
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

/// A pod of this node.
struct Own<'a> {
    pod: &'a Pod,
    identity: Arc<Identity>,
    /// As its status tells, or as they were given to it until then.
    addresses: &'a [Addr],
}

/// Works the view out.
pub fn view(settings: &Cluster, objects: &Objects, config: &Config, here: Here<'_>) -> View {
    let Here { pods_at, given, postures } = here;
    let mut view = View::default();
    view.read_postures(settings, objects, config.posture, postures);
    let pods = view.own_pods(settings, objects, given);
    view.read_workloads(&pods, pods_at);
    let others = objects.peers.iter().map(|node| node.addresses()).sum::<usize>();
    let mut claims = Vec::with_capacity(others + pods.iter().map(|own| own.addresses.len()).sum::<usize>());
    for (n, own) in (0..).zip(&pods) {
        let mine = |addr: &Addr| Claim { addr: *addr, identity: &own.identity, by: By::Own(n) };
        claims.extend(own.addresses.iter().map(mine));
    }
    let ports = view.read_peers(settings, objects, &mut claims);
    let claims = Claims::of(claims);
    let nodes = objects.nodes.iter().map(|n| n.addresses.len()).sum::<usize>();
    view.endpoints.reserve_exact(claims.len() + nodes);
    let claimant = |by: By| match by {
        By::Own(n) => pods.get(n as usize).map(|own| format!("pod {}", own.pod.title())),
        By::Node(n) => objects.peers.get(n as usize).map(|told| format!("a pod of node {}", told.node)),
    };
    view.settle_claims(&claims, &ports, |by| claimant(by).unwrap_or_default());
    view.read_nodes(settings, objects);
    view.read_ranges(objects);
    let answering = view.read_services(objects, &claims);
    view.read_policies(objects);
    let facts = builtin::Facts {
        pods: pods.iter().flat_map(|own| own.identity.ids.iter().map(move |id| (own.pod, id))).collect(),
        dns: answering.dns,
        called: answering.called,
        api_server_here: answering.api_server_here,
        node_dns: config.endpoints.iter().any(|p| matches!(p.who, Who::Class(Class::NodeDns))),
    };
    let built_in = builtin::texts(&settings.built_ins, &facts).into_iter();
    view.texts.extend(built_in.map(|(name, text)| (name.into(), text.into())));
    view
}

fn identity(namespace: &str, ids: impl IntoIterator<Item = SpiffeId>) -> Identity {
    Identity { namespace: namespace.to_owned(), ids: ids.into_iter().collect() }
}

impl View {
    fn warn(&mut self, object: String, text: String) {
        self.warnings.push(ObjectFault { object, text });
    }

    /// Whether a namespace is enforced by its posture.
    pub fn enforces(&self) -> bool {
        self.postures.keys().any(|namespace| self.posture(namespace) == Posture::Enforce)
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
                match Lowered::from_name(text) {
                    Some(to) => drop(self.lowered.insert(name.clone(), to)),
                    None => self.warn(format!("Namespace/{name}"), format!(
                        "namespace {name}: {OVERRIDE}={text:?} does nothing (it can lower the posture to observe or audit)"
                    )),
                }
            }
            self.postures.insert(name, posture);
        }
    }

    /// This node's pods that run or will, each with who it is.
    fn own_pods<'a>(&mut self, settings: &Cluster, objects: &'a Objects, given: &'a Given) -> Vec<Own<'a>> {
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
                    let untold = pod.addresses.is_empty() && !pod.host_network;
                    let addresses = given.get(&pod.uid).filter(|_| untold).unwrap_or(&pod.addresses);
                    pods.push(Own { pod, identity: Arc::clone(identity), addresses });
                }
                Err(e) => {
                    self.warn(format!("Pod/{}", pod.title()), format!("pod {} stays unknown: {e}", pod.title()));
                }
            }
        }
        pods
    }

    fn read_workloads(&mut self, pods: &[Own<'_>], pods_at: &[Pods]) {
        let mut named = Named::default();
        for Own { pod, identity, .. } in pods {
            named.add(identity, &pod.ports);
        }
        for Own { pod, identity, addresses } in pods {
            let ports = named.of(identity);
            self.published.push(pod.told(&identity.ids, addresses));
            self.uids.push(pod.uid.clone());
            self.workloads.push(Workload {
                name: pod.title(),
                posture: self.posture(&pod.namespace),
                identity: Identity::clone(identity),
                cgroups: pods_at.iter().flat_map(|at| at.patterns(&pod.uid)).collect(),
                ports: Ports::clone(&ports),
                addresses: addresses.to_vec(),
                young: false,
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
        let nodes: BTreeSet<&str> = objects.nodes.iter().map(|n| n.name.as_str()).collect();
        for (n, node) in (0..).zip(&objects.peers).filter(|(_, told)| *told.node != *settings.node) {
            let object = format!("NodeEndpoints/{}", node.node);
            // What an agent says of a node that isn't its own counts for nodes that there are.
            if !node.is_its_own() && !nodes.contains(&*node.node) {
                let text = format!(
                    "{} says what pods run on {}, which is no node, so it doesn't count",
                    node.published_by, node.node
                );
                self.warn(object, text);
                continue;
            }
            node.faults.iter().for_each(|text| self.warn(object.clone(), text.clone()));
            for pod in node.pods() {
                named.add(pod.identity, pod.ports);
                let claim = |addr: &Addr| Claim { addr: *addr, identity: pod.identity, by: By::Node(n) };
                claims.extend(pod.addresses.iter().map(claim));
            }
        }
        named.settle();
        named
    }

    /// Gives each address to its one claimant; one with several identities is nobody's.
    fn settle_claims(&mut self, claims: &Claims<'_>, ports: &Named<'_>, claimant: impl Fn(By) -> String) {
        let mut nobodys = BTreeSet::new();
        // Each identity is shared by all that have it.
        let mut known: foldhash::HashMap<*const Identity, (Posture, Arc<Ports>)> = foldhash::HashMap::default();
        for all in claims.by_address() {
            let first = &all[0];
            if let Some(other) = all.iter().find(|c| c.identity != first.identity) {
                nobodys.insert(first.addr);
                self.class(first.addr, Class::Unknown);
                self.warn(
                    format!("Address/{}", narrow(&first.addr)),
                    format!(
                        "{} is claimed by {} ({}) and {} ({}), so it is nobody's",
                        narrow(&first.addr),
                        first.identity,
                        claimant(first.by),
                        other.identity,
                        claimant(other.by)
                    ),
                );
            } else if let By::Node(_) = first.by {
                let identity = Arc::clone(first.identity);
                let (posture, ports) = known
                    .entry(Arc::as_ptr(&identity))
                    .or_insert_with(|| (self.posture(&identity.namespace), ports.of(&identity)));
                let who = Who::Identity { posture: *posture, ports: Arc::clone(ports), identity };
                self.endpoints.push(Peer { place: Place::Addr(first.addr), who });
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

    /// The same view where the objects differ in policies only: what is built in goes by the others.
    pub fn read_policies_again(&mut self, objects: &Objects) {
        self.texts.retain(|name, _| name.starts_with(builtin::PREFIX));
        self.revisions.clear();
        self.read_policies(objects);
    }

    fn read_policies(&mut self, objects: &Objects) {
        for document in objects.policies.iter().filter_map(|d| Option::as_ref(d)) {
            self.revisions.insert(Arc::clone(&document.title), document.revision.clone());
            self.texts.insert(Arc::clone(&document.title), Arc::clone(&document.text));
        }
    }
}

fn word(text: &str) -> Option<Posture> {
    [Posture::Observe, Posture::Audit, Posture::Enforce].into_iter().find(|p| p.as_str() == text)
}

#[cfg(test)]
mod tests;
