//! The objects of the API server, kept in step.
//!
//! Each kind has a watch and a store of its own. A list replaces a store's content at once, so half of one is never seen;
//! while a watch is broken its store keeps what it had, and the fault is told. Nothing here decides anything.

use super::backoff::Waits;
use super::callers::{self, Caller};
use super::crd::{NodeEndpoints, POLICIES};
use super::leave::Leave;
use super::view::Objects;
use crate::config::{BuiltIn, Cluster};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod, PodSpec, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DynamicObject, ObjectMeta};
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;
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
    pods: Store<Pod>,
    node_endpoints: Store<NodeEndpoints>,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    namespaces: Store<Namespace>,
    nodes: Store<Node>,
    service_cidrs: Store<ServiceCIDR>,
    policies: Vec<Store<DynamicObject>>,
    callers: Vec<Store<Caller>>,
    kinds: Spawn,
}

/// The other nodes, as the watches have them.
#[derive(Clone)]
pub struct Peers {
    nodes: Store<Node>,
    endpoints: Store<NodeEndpoints>,
}

impl Peers {
    /// The names of all nodes.
    pub fn nodes(&self) -> BTreeSet<String> {
        self.nodes.state().iter().filter_map(|n| n.metadata.name.clone()).collect()
    }

    /// What the agents say of their nodes' pods.
    pub fn endpoints(&self) -> Vec<Arc<NodeEndpoints>> {
        self.endpoints.state()
    }

    /// That something belongs to this node: it goes when the node does.
    pub fn owner(&self, node: &str) -> Option<Vec<OwnerReference>> {
        let node = self.nodes.find(|n| n.metadata.name.as_deref() == Some(node))?;
        Some(vec![node.owner_ref(&())?])
    }
}

impl Watch {
    /// Begins to watch. [`Watch::synced`] tells when every kind was listed once.
    pub fn start(client: &Client, settings: &Cluster) -> Self {
        let mut spawn = Spawn::new();
        let own = watcher::Config::default().fields(&format!("spec.nodeName={}", settings.node));
        let every = watcher::Config::default;
        let pods = spawn.kind("pods", Api::all(client.clone()), (), own, |p: &mut Pod| {
            strip(&mut p.metadata);
            strip_status(p);
        });
        let node_endpoints = spawn.kind("nodeendpoints", Api::all(client.clone()), (), every(), bare);
        let services = spawn.kind("services", Api::all(client.clone()), (), every(), bare);
        let slices = spawn.kind("endpointslices", Api::all(client.clone()), (), every(), bare);
        let namespaces = spawn.kind("namespaces", Api::all(client.clone()), (), every(), bare);
        let nodes = spawn.kind("nodes", Api::all(client.clone()), (), every(), |n: &mut Node| {
            strip(&mut n.metadata);
            if let Some(status) = &mut n.status {
                status.images = None;
                status.conditions = None;
            }
        });
        let service_cidrs = spawn.kind("servicecidrs", Api::all(client.clone()), (), every(), bare);
        let policies = POLICIES
            .iter()
            .map(|kind| {
                let resource = kind.resource();
                let api = Api::all_with(client.clone(), &resource);
                spawn.kind(kind.plural, api, resource, every(), |p: &mut DynamicObject| {
                    strip(&mut p.metadata);
                    if let Some(all) = p.data.as_object_mut() {
                        all.remove("status");
                    }
                })
            })
            .collect();
        let called = settings.built_ins.contains(&BuiltIn::Webhooks);
        let callers = callers::kinds()
            .into_iter()
            .filter(|_| called)
            .map(|(name, resource)| {
                let api = Api::all_with(client.clone(), &resource);
                spawn.if_possible(name, api, resource, every(), bare)
            })
            .collect();
        Self {
            pods,
            node_endpoints,
            services,
            slices,
            namespaces,
            nodes,
            service_cidrs,
            policies,
            callers,
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

    /// What is wrong with the watches now, a line for each kind.
    pub fn faults(&self) -> Vec<String> {
        let health = self.kinds.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.faults.iter().map(|(kind, why)| format!("{kind} can't be watched: {why}")).collect()
    }

    /// The nodes, and what their agents say of their pods.
    pub fn peers(&self) -> Peers {
        Peers { nodes: self.nodes.clone(), endpoints: self.node_endpoints.clone() }
    }

    /// What tells whether enforcement ends with the agent.
    pub fn leave(&self, client: &Client) -> Leave {
        Leave::new(client.clone(), self.pods.clone(), self.namespaces.clone())
    }

    /// All objects as they are now.
    pub fn objects(&self) -> Objects {
        Objects {
            pods: self.pods.state(),
            node_endpoints: self.node_endpoints.state(),
            services: self.services.state(),
            slices: self.slices.state(),
            namespaces: self.namespaces.state(),
            nodes: self.nodes.state(),
            service_cidrs: self.service_cidrs.state(),
            callers: self.callers.iter().flat_map(Store::state).collect(),
            policies: self.policies.iter().flat_map(Store::state).collect(),
        }
    }
}

fn strip_status(pod: &mut Pod) {
    if let Some(status) = &mut pod.status {
        status.conditions = None;
        status.container_statuses = None;
        status.init_container_statuses = None;
    }
}

/// Leaves of a pod only what tells who it is and where: there may be very many.
pub(super) fn slim(pod: &mut Pod) {
    strip(&mut pod.metadata);
    strip_status(pod);
    let Some(spec) = &mut pod.spec else { return };
    let bare = |c: &Container| Container { name: c.name.clone(), ports: c.ports.clone(), ..Container::default() };
    *spec = PodSpec {
        node_name: spec.node_name.take(),
        host_network: spec.host_network,
        service_account_name: spec.service_account_name.take(),
        containers: spec.containers.iter().map(bare).collect(),
        init_containers: spec.init_containers.as_ref().map(|all| all.iter().map(bare).collect()),
        ..PodSpec::default()
    };
}

fn bare<K: Resource>(object: &mut K) {
    strip(object.meta_mut());
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

    /// Watches one kind.
    pub(super) fn kind<K>(
        &mut self,
        name: &'static str,
        api: Api<K>,
        dynamic: K::DynamicType,
        config: watcher::Config,
        small: impl Fn(&mut K) + Send + 'static,
    ) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        self.watch(name, api, dynamic, config, small, true)
    }

    /// Watches one kind that can be done without: where it can't be listed nobody waits for it.
    pub(super) fn if_possible<K>(
        &mut self,
        name: &'static str,
        api: Api<K>,
        dynamic: K::DynamicType,
        config: watcher::Config,
        small: impl Fn(&mut K) + Send + 'static,
    ) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        self.watch(name, api, dynamic, config, small, false)
    }

    fn watch<K>(
        &mut self,
        name: &'static str,
        api: Api<K>,
        dynamic: K::DynamicType,
        config: watcher::Config,
        small: impl Fn(&mut K) + Send + 'static,
        needed: bool,
    ) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        let writer = reflector::store::Writer::new(dynamic);
        let store = writer.as_reader();
        self.health.lock().unwrap_or_else(PoisonError::into_inner).missing.push(name);
        let (tell, health) = (self.tell.clone(), Arc::clone(&self.health));
        self.tasks.spawn(async move {
            let events = watch(api, config).backoff(Waits::default()).modify(small).reflect(writer);
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                {
                    let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
                    match &event {
                        Ok(Event::InitDone) => {
                            health.missing.retain(|n| *n != name);
                            health.faults.remove(name);
                        }
                        // Before a list is complete the store hasn't changed.
                        Ok(Event::Init | Event::InitApply(_)) => continue,
                        Ok(Event::Apply(_) | Event::Delete(_)) => drop(health.faults.remove(name)),
                        Err(e) => {
                            if !needed {
                                health.missing.retain(|n| *n != name);
                            }
                            let why = e.to_string();
                            if health.faults.insert(name, why.clone()).as_ref() != Some(&why) {
                                tracing::warn!("{name} can't be watched, what was known of them stays: {why}");
                            }
                        }
                    }
                }
                tell.send_modify(|n| *n = n.wrapping_add(1));
            }
        });
        store
    }
}
