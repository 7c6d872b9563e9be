//! The estate of the story: who runs where, and who may talk to whom.
//!
//! The workloads are written down once; the objects for the API server are made from them, and so is the table of pairs
//! that are meant to work, which is deliberately no policy: what the agents make of the policies is held against it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::POD_IMAGE;

/// The port on which members answer, TCP and UDP.
pub(super) const PORT: u16 = 7000;
/// The ports of the nodes' addresses at which two Services are reached, too.
const NODE_PORT: u16 = 30_700;
const MASQUERADED_PORT: u16 = 30_701;
/// Where one Service is reached from outside.
const EXTERNAL: [&str; 2] = ["10.97.0.7", "fd00:97::7"];
/// The address of the database's Service, which init containers must know before it is there.
pub(super) const DATABASE: &str = "10.96.77.1";
/// The Service whose endpoints nobody selects: whoever runs the estate writes them.
pub(super) const BY_HAND: &str = "cache-by-hand";
/// The keys of attempts that init containers make, and those of the CronJob: beyond any that the grid gives.
pub(super) const FIRST_KEYS: u64 = 2_000_000_000;
pub(super) const NIGHTLY_KEY: u64 = 3_000_000_000;
/// The folder of every node that members share with it.
pub(super) const TALK: &str = "lib/talk";
/// The label that makes a pod a member, its value being the workload's name.
pub(super) const MEMBER: &str = "e2e-member";

/// What runs the pods of a workload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Deployment,
    /// Members know each other by name and order.
    StatefulSet,
    /// One on every node.
    DaemonSet,
    /// Runs, connects, and ends: no member.
    CronJob,
}

/// How the kubelet looks whether a pod is well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Probe {
    Tcp,
    Http,
    Exec,
}

/// What a workload's Service is besides an address of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Extra {
    No,
    /// At the nodes' addresses, by their own pods, and at addresses from outside; nobody puts another's in its place.
    Local,
    /// At the nodes' addresses, which put their own in the place of whoever asks.
    Masqueraded,
}

/// One service account with the pods that run under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Workload {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    replicas: u8,
    extra: Extra,
    probe: Probe,
    /// Its pods are in their node's network namespace, and have no Service.
    pub(super) host_network: bool,
    /// Before it starts it connects to the database, by an init container.
    pub(super) connects_first: bool,
}

const fn of(kind: Kind, namespace: &'static str, name: &'static str, replicas: u8) -> Workload {
    let (extra, probe) = (Extra::No, Probe::Tcp);
    Workload { namespace, name, kind, replicas, extra, probe, host_network: false, connects_first: false }
}

pub(super) const WORKLOADS: [Workload; 9] = [
    Workload { probe: Probe::Http, ..of(Kind::Deployment, "shop", "web", 2) },
    Workload { extra: Extra::Local, ..of(Kind::Deployment, "shop", "cart", 2) },
    Workload { probe: Probe::Exec, ..of(Kind::StatefulSet, "data", "db", 3) },
    Workload { extra: Extra::Masqueraded, ..of(Kind::Deployment, "data", "cache", 1) },
    of(Kind::DaemonSet, "data", "shipper", 2),
    Workload { connects_first: true, ..of(Kind::Deployment, "billing", "report", 1) },
    Workload { connects_first: true, ..of(Kind::Deployment, "billing", "intruder", 1) },
    Workload { host_network: true, ..of(Kind::Deployment, "billing", "tool", 1) },
    of(Kind::CronJob, "billing", "nightly", 0),
];

/// The namespaces, in the order in which they begin to enforce.
pub(super) const NAMESPACES: [&str; 3] = ["shop", "data", "billing"];

/// Who is meant to reach whom once everything is enforced.
const INTENDED: [(&str, &str); 8] = [
    ("web", "cart"),
    ("cart", "db"),
    ("cart", "cache"),
    ("db", "db"),
    ("db", "shipper"),
    ("report", "db"),
    ("report", "web"),
    ("nightly", "db"),
];

impl Workload {
    pub(super) fn id(&self) -> String {
        id(self.namespace, self.name)
    }

    /// What its init containers write with their attempts.
    pub(super) fn first_key(&self) -> u64 {
        FIRST_KEYS + WORKLOADS.iter().position(|w| w == self).map_or(0, |at| at as u64)
    }

    /// Whether it has a Service.
    pub(super) fn is_served(&self) -> bool {
        !self.host_network && self.kind != Kind::CronJob
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

    /// The same with these, too.
    pub(super) fn with(&self, more: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        match self {
            Self::All => Self::All,
            Self::Only(pairs) => Self::Only(pairs.iter().copied().chain(more).collect()),
        }
    }

    /// Pairs of workloads with pods about which the other says otherwise, each with what this one says.
    pub(super) fn differs(&self, other: &Self) -> Vec<(&'static str, &'static str, bool)> {
        let all = || WORKLOADS.iter().filter(|w| w.members() > 0).map(|w| w.name);
        let pairs = all().flat_map(|from| all().map(move |to| (from, to, self.allows(from, to))));
        pairs.filter(|(from, to, allows)| other.allows(from, to) != *allows).collect()
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
    let all = NAMESPACES.iter().map(|name| namespace(name, "observe")).chain(WORKLOADS.iter().flat_map(of_workload));
    let more = [
        service(&WORKLOADS[3], BY_HAND, json!({"selector": null})),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere", "namespace": "shop"},
            "spec": {"type": "ExternalName", "externalName": "db.data.svc.cluster.local"}}),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": all.chain(more).collect::<Vec<_>>()})
}

/// One namespace with all that is in it.
pub(super) fn objects_of(name: &str, posture: &str) -> Value {
    let all = WORKLOADS.iter().filter(|w| w.namespace == name).flat_map(of_workload);
    json!({"apiVersion": "v1", "kind": "List", "items": std::iter::once(namespace(name, posture)).chain(all).collect::<Vec<_>>()})
}

fn namespace(name: &str, posture: &str) -> Value {
    let labels = if posture == "observe" { json!({}) } else { json!({"bulkhead.dev/posture": posture}) };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn of_workload(w: &Workload) -> Vec<Value> {
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(w, w.name)}),
        match w.kind {
            Kind::CronJob => nightly(w),
            _ => pods(w),
        },
    ];
    if w.is_served() {
        items.push(service(w, w.name, json!({})));
    }
    if w.kind == Kind::StatefulSet {
        items.push(service(w, &format!("{}-members", w.name), json!({"clusterIP": "None"})));
    }
    items
}

fn metadata(w: &Workload, name: &str) -> Value {
    json!({"name": name, "namespace": w.namespace})
}

fn pods(w: &Workload) -> Value {
    let labels = json!({(MEMBER): w.name});
    let mut spec = json!({
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod(w)},
    });
    if w.kind != Kind::DaemonSet {
        spec["replicas"] = w.replicas.into();
    }
    if w.kind == Kind::StatefulSet {
        spec["serviceName"] = format!("{}-members", w.name).into();
        spec["podManagementPolicy"] = "Parallel".into();
    }
    json!({"apiVersion": "apps/v1", "kind": format!("{:?}", w.kind), "metadata": metadata(w, w.name), "spec": spec})
}

fn pod(w: &Workload) -> Value {
    let probe = match w.probe {
        Probe::Tcp => json!({"tcpSocket": {"port": PORT}}),
        Probe::Http => json!({"httpGet": {"port": "talk", "path": "/"}}),
        Probe::Exec => json!({"exec": {"command": ["/pod", "alive", PORT.to_string()]}}),
    };
    let with = |more: Value| {
        let mut probe = probe.clone();
        probe["timeoutSeconds"] = 5.into();
        merge(&mut probe, more);
        probe
    };
    let first = json!({
        "name": "first", "image": POD_IMAGE, "imagePullPolicy": "Never",
        "args": ["once", w.first_key().to_string(), "tcp", format!("{DATABASE}:{PORT}")],
    });
    json!({
        "serviceAccountName": w.name,
        "hostNetwork": w.host_network,
        "terminationGracePeriodSeconds": 1,
        // On both nodes, where there are several.
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {(MEMBER): w.name}},
        }],
        "initContainers": if w.connects_first { vec![first] } else { Vec::new() },
        "containers": [{
            "name": "member", "image": POD_IMAGE, "imagePullPolicy": "Never",
            "args": ["talk", PORT.to_string(), "/talk", "$(NAME)"],
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [
                {"name": "talk", "containerPort": PORT, "protocol": "TCP"},
                {"name": "talk-udp", "containerPort": PORT, "protocol": "UDP"},
            ],
            "readinessProbe": with(json!({"periodSeconds": 2})),
            // A pod that enforcement cuts off from its kubelet would be started again.
            "livenessProbe": with(json!({"periodSeconds": 10, "failureThreshold": 3})),
            "volumeMounts": [{"name": "talk", "mountPath": "/talk"}],
        }],
        "volumes": [{"name": "talk", "hostPath": {"path": format!("/var/{TALK}"), "type": "DirectoryOrCreate"}}],
    })
}

/// The CronJob. When it would run by itself nobody is there any more: a run is made when it is wanted.
fn nightly(w: &Workload) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata(w, w.name),
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": {
            "serviceAccountName": w.name, "restartPolicy": "Never",
            "containers": [{
                "name": "nightly", "image": POD_IMAGE, "imagePullPolicy": "Never",
                "args": ["once", NIGHTLY_KEY.to_string(), "tcp", format!("{DATABASE}:{PORT}")],
            }],
        }}}}},
    })
}

fn service(w: &Workload, name: &str, more: Value) -> Value {
    let own = name == w.name;
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": PORT, "protocol": protocol});
    let mut ports = ["TCP", "UDP"].map(port);
    if w.extra == Extra::Masqueraded && own {
        ports[0]["targetPort"] = "talk".into();
        ports[1]["targetPort"] = "talk-udp".into();
    }
    let node_port = match w.extra {
        Extra::Local => Some((NODE_PORT, "Local")),
        Extra::Masqueraded => Some((MASQUERADED_PORT, "Cluster")),
        Extra::No => None,
    };
    let mut spec = json!({"ipFamilyPolicy": "RequireDualStack", "selector": {(MEMBER): w.name}});
    if let Some((number, policy)) = node_port.filter(|_| own) {
        ports.iter_mut().for_each(|p| p["nodePort"] = number.into());
        spec["type"] = "NodePort".into();
        spec["externalTrafficPolicy"] = policy.into();
    }
    if w.extra == Extra::Local && own {
        spec["externalIPs"] = json!(EXTERNAL);
    }
    if w.kind == Kind::StatefulSet && own {
        spec["clusterIP"] = DATABASE.into();
    }
    spec["ports"] = ports.into();
    merge(&mut spec, more);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(w, name), "spec": spec})
}

/// The endpoints of the Service that selects nobody: those of the workload's pods at present.
pub(super) fn endpoints_by_hand(addresses: &[String]) -> Value {
    let slice = |family: &str, of: Vec<&String>| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("{BY_HAND}-{}", family.to_lowercase()), "namespace": WORKLOADS[3].namespace,
                "labels": {"kubernetes.io/service-name": BY_HAND},
            },
            "ports": [
                {"name": "tcp", "port": PORT, "protocol": "TCP"}, {"name": "udp", "port": PORT, "protocol": "UDP"},
            ],
            "endpoints": of.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect::<Vec<_>>(),
        })
    };
    let (v6, v4) = addresses.iter().partition(|a| a.contains(':'));
    json!({"apiVersion": "v1", "kind": "List", "items": [slice("IPv4", v4), slice("IPv6", v6)]})
}

/// Adds fields; null takes one away.
fn merge(into: &mut Value, more: Value) {
    let (Value::Object(into), Value::Object(more)) = (into, more) else { return };
    for (key, value) in more {
        if value.is_null() {
            into.remove(&key);
        } else {
            into.insert(key, value);
        }
    }
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
    matches!(pair, ("cart" | "db" | "nightly", "db"))
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
        assert_eq!(text.matches("\"from\":").count(), edges + 3, "edges, and who may reach the database");
        assert!(!text.contains("intruder"), "nobody is meant to talk to it");
    }
}
