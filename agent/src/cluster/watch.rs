//! The objects of the API server, kept in step.
//!
//! Each kind has a watch of its own, and of each object what matters is kept ([`super::kept`]); while a watch is broken
//! that stays, and the fault is told. Nothing here decides anything.

use super::backoff::Waits;
use super::callers::{self, Caller};
use super::crd::{NodeEndpoints, POLICIES};
use super::kept::Kept;
use super::leave::Leave;
use super::node::Node;
use super::peers::{NodePeers, Reader};
use super::pod::Pod;
use super::services::Slice;
use super::view::{Document, Objects};
use crate::config::{BuiltIn, Cluster};
use crate::serve::api::ObjectFault;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Pod as PodObject, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DynamicObject, ObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch as signal;
use tokio::task::JoinSet;

/// How the watches are.
#[derive(Clone, Debug, Default)]
struct Health {
    /// Kinds that haven't been listed once.
    missing: Vec<&'static str>,
    /// What is wrong with a kind's watch now.
    faults: BTreeMap<&'static str, String>,
}

/// All watches of an agent. They end when this is dropped.
pub struct Watch {
    /// The name of this node.
    own: String,
    pods: Kept<Option<Pod>>,
    peers: Kept<NodePeers>,
    services: Kept<Service>,
    slices: Kept<Option<Slice>>,
    namespaces: Kept<Namespace>,
    nodes: Kept<Node>,
    service_cidrs: Kept<ServiceCIDR>,
    callers: Vec<Kept<Caller>>,
    policies: Vec<Kept<Option<Document>>>,
    kinds: Spawn,
}

/// The other nodes, as the watches have them.
#[derive(Clone)]
pub struct Peers {
    nodes: Kept<Node>,
    endpoints: Kept<NodePeers>,
}

impl Peers {
    /// The names of all nodes.
    pub fn nodes(&self) -> BTreeSet<String> {
        self.nodes.all().iter().map(|n| n.name.clone()).collect()
    }

    /// The nodes whose own agents have told of them.
    pub fn agents(&self) -> BTreeSet<String> {
        let nodes = self.nodes();
        let own = self.endpoints().into_iter().filter(|p| p.is_its_own() && nodes.contains(&*p.node));
        own.map(|p| p.node.to_string()).collect()
    }

    /// The nodes beside this one of whose pods no agent has told.
    pub fn untold(&self, own: &str) -> BTreeSet<String> {
        let mut nodes = self.nodes();
        nodes.remove(own);
        for told in self.endpoints() {
            nodes.remove(&*told.node);
        }
        nodes
    }

    /// What the agents say of their nodes' pods.
    pub fn endpoints(&self) -> Vec<Arc<NodePeers>> {
        self.endpoints.all()
    }

    /// That something belongs to this node: it goes when the node does.
    pub fn owner(&self, node: &str) -> Option<Vec<OwnerReference>> {
        let node = self.nodes.get("", node)?;
        Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.name.clone(),
            uid: node.uid.clone(),
            ..OwnerReference::default()
        }])
    }
}

impl Watch {
    /// Begins to watch. [`Watch::synced`] tells when every kind was listed once.
    pub fn start(client: &Client, settings: &Cluster) -> Self {
        let mut spawn = Spawn::new();
        let own = watcher::Config::default().fields(&format!("spec.nodeName={}", settings.node));
        let every = watcher::Config::default;
        let pods = spawn.kind("pods", Api::all(client.clone()), own, |p: PodObject| Pod::of(&p));
        let mut reader = Reader::default();
        let peers =
            spawn.kind("nodeendpoints", Api::all(client.clone()), every(), move |e: NodeEndpoints| reader.read(&e));
        let services = spawn.kind("services", Api::all(client.clone()), every(), bare);
        let slices = spawn.kind("endpointslices", Api::all(client.clone()), every(), |s: EndpointSlice| Slice::of(&s));
        let namespaces = spawn.kind("namespaces", Api::all(client.clone()), every(), bare);
        let nodes = spawn.kind("nodes", Api::all(client.clone()), every(), |n: NodeObject| Node::of(&n));
        let service_cidrs = spawn.kind("servicecidrs", Api::all(client.clone()), every(), bare);
        let policies = POLICIES
            .iter()
            .map(|kind| {
                let api = Api::all_with(client.clone(), &kind.resource());
                spawn.kind(kind.plural, api, every(), |p: DynamicObject| Document::of(&p))
            })
            .collect();
        let called = settings.built_ins.contains(&BuiltIn::Webhooks);
        let callers = callers::kinds()
            .into_iter()
            .filter(|_| called)
            .map(|(name, resource)| {
                let api = Api::all_with(client.clone(), &resource);
                spawn.if_possible(name, api, every(), Caller::of)
            })
            .collect();
        Self {
            own: settings.node.clone(),
            pods,
            peers,
            services,
            slices,
            namespaces,
            nodes,
            service_cidrs,
            callers,
            policies,
            kinds: spawn,
        }
    }

    /// Tells when something changed, again and again.
    pub fn changes(&self) -> signal::Receiver<u64> {
        self.kinds.changes()
    }

    /// Waits until every kind was listed once. Cancel it to stop waiting.
    pub async fn synced(&self) {
        let mut changes = self.changes();
        while !self.missing().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The kinds that weren't listed yet.
    pub fn missing(&self) -> Vec<&'static str> {
        self.kinds.missing()
    }

    /// What is wrong with the watches now, for each kind.
    pub fn faults(&self) -> Vec<ObjectFault> {
        let health = self.kinds.health.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = |(kind, why): (&&str, &String)| ObjectFault {
            object: (*kind).to_owned(),
            text: format!("{kind} can't be watched: {why}"),
        };
        health.faults.iter().map(fault).collect()
    }

    /// The nodes, and what their agents say of their pods.
    pub fn peers(&self) -> Peers {
        Peers { nodes: self.nodes.clone(), endpoints: self.peers.clone() }
    }

    /// What tells whether enforcement ends with the agent.
    pub fn leave(&self, client: &Client) -> Leave {
        Leave::new(client.clone(), self.pods.clone(), self.namespaces.clone())
    }

    /// All objects as they are now. What this node itself told the others isn't among them: it is no news here.
    pub fn objects(&self) -> Objects {
        let mut peers = self.peers.all();
        peers.retain(|told| *told.node != *self.own);
        Objects {
            pods: self.pods.all(),
            peers,
            services: self.services.all(),
            slices: self.slices.all(),
            namespaces: self.namespaces.all(),
            nodes: self.nodes.all(),
            service_cidrs: self.service_cidrs.all(),
            callers: self.callers.iter().flat_map(Kept::all).collect(),
            policies: self.policies.iter().flat_map(Kept::all).collect(),
        }
    }
}

fn bare<K: Resource>(mut object: K) -> K {
    strip(object.meta_mut());
    object
}

/// Takes off what is large and never looked at.
pub(super) fn strip(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// Watches that end when this is dropped.
pub(super) struct Spawn {
    tell: signal::Sender<u64>,
    health: Arc<Mutex<Health>>,
    tasks: JoinSet<()>,
}

impl Spawn {
    pub(super) fn new() -> Self {
        Self { tell: signal::channel(0).0, health: Arc::default(), tasks: JoinSet::new() }
    }

    /// Tells when something changed, again and again.
    pub(super) fn changes(&self) -> signal::Receiver<u64> {
        self.tell.subscribe()
    }

    /// The kinds that weren't listed yet.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).missing.clone()
    }

    /// Watches one kind, and keeps of each object what `take` makes of it.
    pub(super) fn kind<K, T>(
        &mut self,
        name: &'static str,
        api: Api<K>,
        config: watcher::Config,
        take: impl FnMut(K) -> T + Send + 'static,
    ) -> Kept<T>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        T: PartialEq + Send + Sync + 'static,
    {
        self.watch(name, api, config, take, true)
    }

    /// Watches one kind that can be done without: where it can't be listed nobody waits for it.
    pub(super) fn if_possible<K, T>(
        &mut self,
        name: &'static str,
        api: Api<K>,
        config: watcher::Config,
        take: impl FnMut(K) -> T + Send + 'static,
    ) -> Kept<T>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        T: PartialEq + Send + Sync + 'static,
    {
        self.watch(name, api, config, take, false)
    }

    fn watch<K, T>(
        &mut self,
        name: &'static str,
        api: Api<K>,
        config: watcher::Config,
        mut take: impl FnMut(K) -> T + Send + 'static,
        needed: bool,
    ) -> Kept<T>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        T: PartialEq + Send + Sync + 'static,
    {
        let kept = Kept::default();
        let held = kept.clone();
        self.health.lock().unwrap_or_else(PoisonError::into_inner).missing.push(name);
        let (tell, health) = (self.tell.clone(), Arc::clone(&self.health));
        self.tasks.spawn(async move {
            let events = watch(api, config).backoff(Waits::default());
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                let fault = match event {
                    Ok(event) => {
                        let (listed, going_on) =
                            (matches!(event, Event::InitDone), matches!(event, Event::Init | Event::InitApply(_)));
                        let changed = held.take(event, &mut take);
                        if going_on {
                            continue;
                        }
                        let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
                        if listed {
                            health.missing.retain(|n| *n != name);
                        }
                        if health.faults.remove(name).is_none() && !changed {
                            continue;
                        }
                        None
                    }
                    Err(e) => Some(e.to_string()),
                };
                if let Some(why) = fault {
                    let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
                    if !needed {
                        health.missing.retain(|n| *n != name);
                    }
                    if health.faults.insert(name, why.clone()).as_ref() != Some(&why) {
                        tracing::warn!("{name} can't be watched, what was known of them stays: {why}");
                    }
                }
                tell.send_modify(|n| *n = n.wrapping_add(1));
            }
        });
        kept
    }
}
