//! A cluster of any size, as objects of an API server: nodes, pods as agents tell of them, Services, and a policy for each
//! service account, as a user writes them.

use bulkhead_tests::ApiServer;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

pub(crate) const PODS: &str = "/api/v1/pods";
pub(crate) const NODE_ENDPOINTS: &str = "/apis/bulkhead.dev/v1alpha1/nodeendpoints";
pub(crate) const CLUSTER_POLICIES: &str = "/apis/bulkhead.dev/v1alpha1/clustersegmentationpolicies";
const POLICIES: &str = "/apis/bulkhead.dev/v1alpha1/segmentationpolicies";
const NAMESPACES: &str = "/api/v1/namespaces";
const NODES: &str = "/api/v1/nodes";
const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// The namespace of what is measured.
pub(crate) const BENCH: &str = "bench";
/// In how many namespaces the others are.
const TEAMS: u32 = 50;
/// Images that a kubelet lists.
const IMAGES: u32 = 50;
/// How many service accounts each policy names on either side.
const NAMED: u32 = 3;

/// How large it is.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    /// Nodes beside the agent's own.
    pub(crate) nodes: u32,
    /// Pods of each.
    pub(crate) pods: u32,
    /// Service accounts that they have.
    pub(crate) accounts: u32,
    /// Policies, one for each of the first so many service accounts.
    pub(crate) policies: u32,
    pub(crate) services: u32,
    /// Whether pods have an address of each family.
    pub(crate) dual: bool,
}

/// The name of the agent's node.
pub(crate) const NODE: &str = "n0";

/// The namespace of the n-th service account, and its name.
pub(crate) fn account(n: u32) -> (String, String) {
    (format!("team-{}", n % TEAMS), format!("service-{n}"))
}

pub(crate) fn id(namespace: &str, account: &str) -> String {
    format!("spiffe://test/ns/{namespace}/sa/{account}")
}

fn id_of(n: u32) -> String {
    let (namespace, account) = account(n);
    id(&namespace, &account)
}

/// A UID as the API server makes them.
pub(crate) fn uid(kind: u32, n: u32) -> String {
    format!("{kind:08x}-0000-4000-8000-{n:012x}")
}

fn v4(node: u32, pod: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24) + (64 << 16) + node * 256 + pod + 1)
}

/// A pod as its node's agent tells of it.
pub(crate) fn told(uid: &str, namespace: &str, account: &str, addresses: &[String]) -> Value {
    json!({"uid": uid, "namespace": namespace, "ids": [id(namespace, account)], "addresses": addresses,
        "ports": {"http": "TCP/8080"}})
}

/// What the agent of one node tells.
pub(crate) fn endpoints(node: &str, workloads: Vec<Value>) -> Value {
    json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "NodeEndpoints", "metadata": {"name": node, "uid": node},
        "spec": {"publishedBy": node, "workloads": workloads}})
}

impl Sizes {
    /// The pods of a node.
    pub(crate) fn pods_of(&self, node: u32) -> Vec<Value> {
        let pod = |pod: u32| {
            let n = node * self.pods + pod;
            let (namespace, account) = account(n % self.accounts);
            let mut addresses = vec![v4(node, pod).to_string()];
            if self.dual {
                addresses.push(format!("fd00:64::{node:x}:{:x}", pod + 1));
            }
            told(&uid(node, pod), &namespace, &account, &addresses)
        };
        (0..self.pods).map(pod).collect()
    }

    /// Puts all of it into a server.
    pub(crate) fn put(&self, server: &ApiServer) {
        let teams = (0..TEAMS).map(|n| format!("team-{n}")).chain([BENCH.to_owned()]);
        for name in teams {
            server.put(NAMESPACES, json!({"metadata": {"name": name, "labels": {"bulkhead.dev/posture": "enforce"}}}));
        }
        server.put(SERVICE_CIDRS, json!({"metadata": {"name": "all"}, "spec": {"cidrs": ["10.96.0.0/12"]}}));
        server.put(NODES, node(NODE, 0));
        for n in 1..=self.nodes {
            server.put(NODES, node(&format!("n{n}"), n));
            server.put(NODE_ENDPOINTS, endpoints(&format!("n{n}"), self.pods_of(n)));
        }
        (0..self.policies).for_each(|n| server.put(POLICIES, self.policy(n)));
        (0..self.services).for_each(|n| self.service(server, n));
    }

    fn policy(&self, n: u32) -> Value {
        let (namespace, _) = account(n);
        let other = |k: u32, way: u32| json!([{"id": id_of((n + way * (1 + 37 * k)) % self.accounts)}]);
        let ports = |k: u32| json!([{"port": 8000 + k}]);
        let ingress: Vec<Value> =
            (0..NAMED).map(|k| json!({"from": other(k, self.accounts - 1), "ports": ports(k)})).collect();
        let egress: Vec<Value> = (0..NAMED).map(|k| json!({"to": other(k, 1), "ports": ports(k)})).collect();
        json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "SegmentationPolicy",
            "metadata": {"name": format!("service-{n}"), "namespace": namespace, "uid": uid(1, n), "generation": 1},
            "spec": {"mode": "enforce", "selector": {"ids": [id_of(n)]},
                "ingress": {"rules": ingress}, "egress": {"rules": egress}}})
    }

    /// One Service for one service account; every tenth is reached at another port than its pods listen at.
    fn service(&self, server: &ApiServer, n: u32) {
        let (namespace, account) = account(n);
        let address = Ipv4Addr::from((10 << 24) + (96 << 16) + 256 + n);
        let port = if n.is_multiple_of(10) { 80 } else { 8000 };
        let port = json!([{"name": "http", "port": port, "targetPort": 8000}]);
        server.put(
            SERVICES,
            json!({"metadata": {"name": account, "namespace": namespace, "uid": uid(2, n)},
                "spec": {"clusterIP": address, "clusterIPs": [address], "ports": port}}),
        );
        let all = self.nodes * self.pods;
        let pods = (0..all.div_ceil(self.accounts)).map(|k| n + k * self.accounts).filter(|p| *p < all).take(10);
        let endpoints: Vec<Value> = pods
            .map(|p| json!({"addresses": [v4(p / self.pods, p % self.pods)], "conditions": {"ready": true}}))
            .collect();
        server.put(
            SLICES,
            json!({"metadata": {"name": format!("{account}-a"), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": account}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8000}], "endpoints": endpoints}),
        );
    }
}

/// A node as its kubelet tells of it.
fn node(name: &str, n: u32) -> Value {
    let images: Vec<Value> = (0..IMAGES)
        .map(|i| json!({"names": [format!("registry.example/team/service-{i}:1.{n}")], "sizeBytes": 104_857_600 + i}))
        .collect();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "False", "reason": "KubeletHasSufficient", "message": "kubelet has sufficient",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(condition);
    json!({"metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDRs": [format!("{}/24", Ipv4Addr::from((10 << 24) + (64 << 16) + n * 256))]},
        "status": {"addresses": [{"type": "InternalIP", "address": Ipv4Addr::from((172 << 24) + (16 << 16) + n + 1)},
                {"type": "Hostname", "address": name}],
            "conditions": conditions, "images": images}})
}

/// A pod of the agent's own node.
pub(crate) fn own_pod(name: &str, (namespace, account): (&str, &str), uid: &str, address: Ipv4Addr) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace, "uid": uid},
        "spec": {"nodeName": NODE, "serviceAccountName": account,
            "containers": [{"name": "main", "image": "registry.example/x",
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"port": "http", "path": "/"}}}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

/// Who may connect to whom among what is measured, whatever the others may.
pub(crate) fn edges(name: &str, generation: u32, edges: &[(&str, &str, u16)]) -> Value {
    let edge = |(from, to, port): &(&str, &str, u16)| {
        json!({"from": [{"id": id(BENCH, from)}], "to": [{"id": id(BENCH, to)}],
            "ports": [{"protocol": "UDP", "port": port}]})
    };
    json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "ClusterSegmentationPolicy",
        "metadata": {"name": name, "uid": name, "generation": generation},
        "spec": {"mode": "enforce", "edges": edges.iter().map(edge).collect::<Vec<_>>()}})
}
