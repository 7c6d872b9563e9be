//! The estate of the story: who runs where, and who may talk to whom.
//!
//! The workloads are written down once; the objects for the API server are made from them, and so is the table of pairs
//! that are meant to work, which is deliberately no policy: what the agents make of the policies is held against it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::POD_IMAGE;

/// The port on which members answer, TCP and UDP.
pub(super) const PORT: u16 = 7000;
/// The port of the nodes' addresses at which one Service is reached, too.
const NODE_PORT: u16 = 30_700;
/// The folder of every node that members share with it.
pub(super) const TALK: &str = "lib/talk";
/// The label that makes a pod a member, its value being the workload's name.
pub(super) const MEMBER: &str = "e2e-member";

/// One service account with the pods that run under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Workload {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    replicas: u8,
    /// Members know each other by name and order.
    stateful: bool,
    /// Its Service is at the nodes' addresses too.
    node_port: bool,
    /// Its pods are in their node's network namespace, and have no Service.
    pub(super) host_network: bool,
}

const fn deployment(namespace: &'static str, name: &'static str, replicas: u8) -> Workload {
    Workload { namespace, name, replicas, stateful: false, node_port: false, host_network: false }
}

pub(super) const WORKLOADS: [Workload; 7] = [
    deployment("shop", "web", 2),
    Workload { node_port: true, ..deployment("shop", "cart", 2) },
    Workload { stateful: true, ..deployment("data", "db", 3) },
    deployment("data", "cache", 1),
    deployment("billing", "report", 1),
    deployment("billing", "intruder", 1),
    Workload { host_network: true, ..deployment("billing", "tool", 1) },
];

/// The namespaces, in the order in which they begin to enforce.
pub(super) const NAMESPACES: [&str; 3] = ["shop", "data", "billing"];

/// Who is meant to reach whom once everything is enforced.
const INTENDED: [(&str, &str); 6] =
    [("web", "cart"), ("cart", "db"), ("cart", "cache"), ("db", "db"), ("report", "db"), ("report", "web")];

impl Workload {
    pub(super) fn id(&self) -> String {
        id(self.namespace, self.name)
    }

    /// How many pods it has.
    pub(super) fn members(&self) -> usize {
        usize::from(self.replicas)
    }
}

/// The SPIFFE ID that the shipped template gives.
fn id(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

/// The workload of that name.
pub(super) fn workload(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|w| w.name == name)
}

/// Which pairs of workloads may talk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Truth {
    /// Everybody with everybody.
    All,
    /// These, source first.
    Only(BTreeSet<(&'static str, &'static str)>),
}

impl Truth {
    /// What is meant to work under enforcement.
    pub(super) fn intended() -> Self {
        Self::Only(INTENDED.into())
    }

    /// The same without what `gone` says of source and destination.
    pub(super) fn without(&self, gone: impl Fn(&str, &str) -> bool) -> Self {
        match self {
            Self::All => Self::All,
            Self::Only(pairs) => Self::Only(pairs.iter().copied().filter(|(from, to)| !gone(from, to)).collect()),
        }
    }

    pub(super) fn allows(&self, from: &str, to: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(pairs) => pairs.iter().any(|(f, t)| *f == from && *t == to),
        }
    }
}

/// Namespaces, service accounts, pods and Services.
pub(super) fn objects() -> Value {
    let mut items: Vec<Value> = NAMESPACES
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .collect();
    for w in &WORKLOADS {
        items.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(w, w.name)}));
        items.push(pods(w));
        if !w.host_network {
            items.push(service(w, w.name, false));
        }
        if w.stateful {
            items.push(service(w, &format!("{}-members", w.name), true));
        }
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn metadata(w: &Workload, name: &str) -> Value {
    json!({"name": name, "namespace": w.namespace})
}

fn pods(w: &Workload) -> Value {
    let labels = json!({(MEMBER): w.name});
    let mut spec = json!({
        "replicas": w.replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod(w)},
    });
    if w.stateful {
        spec["serviceName"] = format!("{}-members", w.name).into();
        spec["podManagementPolicy"] = "Parallel".into();
    }
    let kind = if w.stateful { "StatefulSet" } else { "Deployment" };
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata(w, w.name), "spec": spec})
}

fn pod(w: &Workload) -> Value {
    json!({
        "serviceAccountName": w.name,
        "hostNetwork": w.host_network,
        "terminationGracePeriodSeconds": 1,
        // On both nodes, where there are several.
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {(MEMBER): w.name}},
        }],
        "containers": [{
            "name": "member", "image": POD_IMAGE, "imagePullPolicy": "Never",
            "args": ["talk", PORT.to_string(), "/talk", "$(NAME)"],
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [
                {"name": "talk", "containerPort": PORT, "protocol": "TCP"},
                {"name": "talk-udp", "containerPort": PORT, "protocol": "UDP"},
            ],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 2, "timeoutSeconds": 5},
            "volumeMounts": [{"name": "talk", "mountPath": "/talk"}],
        }],
        "volumes": [{"name": "talk", "hostPath": {"path": format!("/var/{TALK}"), "type": "DirectoryOrCreate"}}],
    })
}

fn service(w: &Workload, name: &str, headless: bool) -> Value {
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": PORT, "protocol": protocol});
    let mut ports = ["TCP", "UDP"].map(port);
    if w.node_port {
        ports.iter_mut().for_each(|p| p["nodePort"] = NODE_PORT.into());
    }
    let mut spec = json!({"ipFamilyPolicy": "RequireDualStack", "selector": {(MEMBER): w.name}, "ports": ports});
    if headless {
        spec["clusterIP"] = "None".into();
    }
    if w.node_port {
        spec["type"] = "NodePort".into();
        // Otherwise the node would put its own address in the place of the pod's.
        spec["externalTrafficPolicy"] = "Local".into();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(w, name), "spec": spec})
}

/// The policies that open what is intended: namespaces open their own sides, and the cluster's opens both at once.
pub(super) fn policies(mode: &str) -> Value {
    let ports = json!([{"port": PORT}, {"protocol": "UDP", "port": PORT}]);
    let peer = |name: &str| workload(name).map_or(Value::Null, |w| json!([{"id": w.id()}]));
    let edge = |(from, to): &(&str, &str)| json!({"from": peer(from), "to": peer(to), "ports": ports});
    let mut items = vec![json!({
        "apiVersion": "bulkhead.dev/v1alpha1", "kind": "ClusterSegmentationPolicy",
        "metadata": {"name": "story"},
        "spec": {"mode": mode, "edges": INTENDED.iter().filter(|pair| !own_sides(pair)).map(edge).collect::<Vec<_>>()},
    })];
    for w in &WORKLOADS {
        let of = |own: fn(&(&'static str, &'static str)) -> &'static str,
                  other: fn(&(&'static str, &'static str)) -> &'static str,
                  word: &str|
         -> Vec<Value> {
            let mine = INTENDED.iter().filter(|pair| own_sides(pair) && own(pair) == w.name);
            mine.map(|pair| json!({word: peer(other(pair)), "ports": ports})).collect()
        };
        let (ingress, egress) = (of(|p| p.1, |p| p.0, "from"), of(|p| p.0, |p| p.1, "to"));
        if ingress.is_empty() && egress.is_empty() {
            continue;
        }
        let mut spec = json!({"mode": mode, "selector": {"ids": [w.id()]}});
        for (section, rules) in [("ingress", ingress), ("egress", egress)] {
            if !rules.is_empty() {
                spec[section] = json!({"rules": rules});
            }
        }
        items.push(json!({
            "apiVersion": "bulkhead.dev/v1alpha1", "kind": "SegmentationPolicy",
            "metadata": metadata(w, w.name), "spec": spec,
        }));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Pairs that the two namespaces open each on its own side.
fn own_sides(pair: &(&str, &str)) -> bool {
    matches!(pair, ("cart" | "db", "db"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_intended_is_between_workloads_that_are_there_and_in_one_policy_each() {
        for (from, to) in INTENDED {
            assert!(workload(from).is_some() && workload(to).is_some(), "{from} {to}");
        }
        let text = policies("enforce").to_string();
        assert!(!text.contains("null"), "{text}");
        let edges = INTENDED.iter().filter(|p| !own_sides(p)).count();
        assert_eq!(text.matches("\"from\":").count(), edges + 2, "edges, and who may reach the database");
        assert!(!text.contains("intruder"), "nobody is meant to talk to it");
    }
}
