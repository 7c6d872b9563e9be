//! Nodes that have no agent (yet): their pods, told by the one agent that holds the lease, so that a rollout node by node
//! denies nobody. An agent that comes tells of its node itself, and from then on nobody else may (deploy/: admission.yaml).

use super::crd::{NodeEndpoints, NodeEndpointsSpec, NodeWorkload};
use super::kept::Kept;
use super::peers::{NodePeers, Reader};
use super::pod::Pod;
use super::publish::MANAGER;
use super::watch::{Peers, Spawn};
use crate::config::Cluster;
use k8s_openapi::api::core::v1::Pod as Object;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How often it is looked which nodes have no agent.
const LOOK: Duration = Duration::from_secs(5);
/// No more often than this are changes of pods looked at.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the watch may take to tell of what was written.
const LATE: Duration = Duration::from_secs(30);

/// While it is this agent's turn.
pub(crate) struct Absent {
    client: Client,
    settings: Cluster,
    peers: Peers,
    /// All pods of the cluster; only while some node has no agent.
    pods: Option<(Spawn, Kept<Option<Pod>>)>,
    /// What was last written of each node.
    told: BTreeMap<String, (Vec<NodeWorkload>, Instant)>,
    /// What was last complained about.
    complaint: String,
}

impl Absent {
    pub(crate) fn begin(client: &Client, settings: &Cluster, peers: Peers) -> Self {
        Self {
            client: client.clone(),
            settings: settings.clone(),
            peers,
            pods: None,
            told: BTreeMap::new(),
            complaint: String::new(),
        }
    }

    /// Tells of their pods for as long as it is polled.
    pub(crate) async fn go_on(&mut self) {
        loop {
            self.round().await;
            let changes = self.pods.as_ref().map(|(watch, _)| watch.changes());
            match changes {
                // That nothing changed in time is no news, and neither is a watch that has ended.
                Some(mut changes) => drop(timeout(LOOK, changes.changed()).await),
                None => sleep(LOOK).await,
            }
            sleep(PAUSE).await;
        }
    }

    async fn round(&mut self) {
        let endpoints = self.peers.endpoints();
        let absent = absent(&self.peers.nodes(), &endpoints);
        if absent.is_empty() {
            (self.pods, self.told) = (None, BTreeMap::new());
            return;
        }
        let (watch, pods) = self.pods.get_or_insert_with(|| {
            let mut watch = Spawn::new();
            let every = watcher::Config::default();
            let pods = watch.kind("all pods", Api::all(self.client.clone()), every, |p: Object| Pod::of(&p));
            (watch, pods)
        });
        // Of half a list it would be told that the other half isn't there.
        if !watch.missing().is_empty() {
            return;
        }
        let all = pods.all();
        let workloads = tokio::task::block_in_place(|| workloads(&self.settings, &absent, &all));
        self.told.retain(|node, _| absent.contains(node));
        for (node, now) in workloads {
            let written = self.told.get(&node).is_some_and(|(last, at)| *last == now && at.elapsed() < LATE);
            if written {
                continue;
            }
            let object = self.object(&node, now);
            let there = endpoints.iter().find(|p| *p.node == *node);
            // As others read it.
            if there.is_none_or(|there| **there != Reader::default().read(&object)) {
                self.write(&node, object).await;
            }
        }
    }

    fn object(&self, node: &str, workloads: Vec<NodeWorkload>) -> NodeEndpoints {
        NodeEndpoints::new(node, NodeEndpointsSpec { published_by: self.settings.node.clone(), workloads })
    }

    async fn write(&mut self, node: &str, mut object: NodeEndpoints) {
        let api: Api<NodeEndpoints> = Api::all(self.client.clone());
        object.metadata.owner_references = self.peers.owner(node);
        match api.patch(node, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await {
            Ok(_) => {
                let now = object.spec.workloads;
                tracing::info!(node, pods = now.len(), "told of the pods of a node that has no agent");
                self.told.insert(node.to_owned(), (now, Instant::now()));
                self.complaint.clear();
            }
            // Its agent has come, or the node has gone; the next look sees it.
            Err(e) => {
                let why = format!("the pods of {node}, which has no agent, can't be told yet: {e}");
                if self.complaint != why {
                    tracing::warn!("{why}");
                    self.complaint = why;
                }
            }
        }
    }
}

/// The nodes of which no agent of their own has told.
fn absent(nodes: &BTreeSet<String>, endpoints: &[Arc<NodePeers>]) -> BTreeSet<String> {
    let present: BTreeSet<&str> = endpoints.iter().filter(|p| p.is_its_own()).map(|p| &*p.node).collect();
    nodes.iter().filter(|n| !present.contains(n.as_str())).cloned().collect()
}

/// What there is to tell of each of these nodes. A pod whose ID can't be made isn't told, and stays unknown.
fn workloads(
    settings: &Cluster,
    nodes: &BTreeSet<String>,
    pods: &[Arc<Option<Pod>>],
) -> BTreeMap<String, Vec<NodeWorkload>> {
    let mut told: BTreeMap<String, Vec<NodeWorkload>> = nodes.iter().map(|n| (n.clone(), Vec::new())).collect();
    for pod in pods.iter().filter_map(|p| Option::as_ref(p)).filter(|p| !p.over && !p.addresses.is_empty()) {
        let (Some(list), Ok(id)) = (told.get_mut(&pod.node), settings.template.id(pod.filling())) else { continue };
        list.push(pod.told(&[id], &pod.addresses));
    }
    told.values_mut().for_each(|list| list.sort());
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{Fake, yaml};
    use crate::cluster::watch::Watch;
    use serde_json::json;

    fn pod(name: &str, node: &str, ip: &str) -> Object {
        let text = format!(
            "{{metadata: {{name: {name}, namespace: shop, uid: {name}}}, spec: {{nodeName: {node}, \
             serviceAccountName: web, containers: [{{name: c, ports: [{{name: http, containerPort: 80}}]}}]}}, \
             status: {{phase: Running, podIPs: [{{ip: {ip}}}]}}}}"
        );
        serde_json::from_value(yaml(&text)).expect("a pod")
    }

    fn told(name: &str, by: &str) -> NodeEndpoints {
        NodeEndpoints::new(name, NodeEndpointsSpec { published_by: by.to_owned(), workloads: Vec::new() })
    }

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_node_is_absent_until_its_own_agent_tells() {
        let nodes = names(&["n1", "n2", "n3"]);
        let told = |name: &str, by: &str| Arc::new(Reader::default().read(&told(name, by)));
        assert_eq!(absent(&nodes, &[told("n1", "n1"), told("n2", "n1")]), names(&["n2", "n3"]));
        assert_eq!(absent(&nodes, &[told("n1", "n1"), told("n2", "n2"), told("n3", "n3")]), names(&[]));
        assert_eq!(absent(&names(&["n1"]), &[told("gone", "n1")]), names(&["n1"]));
    }

    #[test]
    fn each_pod_with_an_address_is_told_under_its_node() {
        let settings = Cluster::new("n1", None, Some("t")).expect("fine");
        let ended = {
            let mut p = pod("c", "n2", "10.0.0.3");
            p.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
            p
        };
        let pods = [pod("a", "n2", "10.0.0.1"), pod("b", "n1", "10.0.0.2"), ended].map(|p| Arc::new(Pod::of(&p)));
        let all = workloads(&settings, &names(&["n2", "n3"]), &pods);
        assert_eq!(all.len(), 2);
        assert_eq!(all["n3"], []);
        let [one] = &all["n2"][..] else { panic!("{all:?}") };
        assert_eq!((one.uid.as_str(), &one.addresses[..]), ("a", &["10.0.0.1".to_owned()][..]));
        assert_eq!(
            (&one.ids[..], one.ports["http"].as_str()),
            (&["spiffe://t/ns/shop/sa/web".to_owned()][..], "TCP/80")
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pods_are_told_until_their_nodes_agent_comes() {
        const ENDPOINTS: &str = "/apis/bulkhead.dev/v1alpha1/nodeendpoints";
        let (fake, client) = Fake::start().await;
        for node in ["n1", "n2"] {
            let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "uid": node}});
            fake.put("/api/v1/nodes", object);
        }
        let of = |o: &NodeEndpoints| serde_json::to_value(o).expect("plain data");
        fake.put(ENDPOINTS, of(&told("n1", "n1")));
        fake.put("/api/v1/pods", serde_json::to_value(pod("a", "n2", "10.0.0.1")).expect("plain data"));
        let settings = Cluster::new("n1", None, Some("t")).expect("fine");
        let watch = Watch::start(&client, &settings);
        watch.synced().await;
        let mut all = Absent::begin(&client, &settings, watch.peers());
        let patches = || fake.writes().iter().filter(|w| **w == format!("PATCH {ENDPOINTS}/n2")).count();
        let mut rounds = 0;
        while patches() == 0 {
            all.round().await;
            sleep(Duration::from_millis(5)).await;
            rounds += 1;
            assert!(rounds < 1000, "{:?}", fake.writes());
        }
        let there = fake.get(ENDPOINTS, "n2").expect("written");
        assert_eq!(there["spec"]["publishedBy"], "n1");
        assert_eq!(there["spec"]["workloads"][0]["addresses"][0], "10.0.0.1");
        for _ in 0..10 {
            all.round().await;
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(patches(), 1, "once is enough");

        fake.put(ENDPOINTS, of(&told("n2", "n2")));
        while !absent(&all.peers.nodes(), &all.peers.endpoints()).is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        fake.put("/api/v1/pods", serde_json::to_value(pod("b", "n2", "10.0.0.2")).expect("plain data"));
        all.round().await;
        assert!(all.pods.is_none() && patches() == 1, "its own agent tells now");
    }
}
