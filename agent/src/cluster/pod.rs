//! What of a pod matters here, taken from the API server's object. Pure.
//!
//! A pod's names, labels and annotations are its author's; only what decides about identity is taken, and nothing is
//! trusted that the pod itself can change while it runs.

use super::crd::NodeWorkload;
use crate::config::Filling;
use crate::identity::SpiffeId;
use crate::policy::model::{protocol_name, protocol_number};
use bulkhead_common::{Addr, proto};
use k8s_openapi::api::core::v1::{Container, Pod as Object, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};

/// The annotation with the UID under which the kubelet runs a static pod: its own, not the API server's.
const STATIC_UID: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Its UID as it stands in its cgroup's name, hyphens included.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// What runs it, as `Kind/name`: its Deployment rather than the ReplicaSet in between. `Pod/name` if nothing does.
    pub owner: String,
    /// The node that it is bound to; empty: none yet.
    pub node: String,
    /// Its addresses; none while it has no network, or in the node's.
    pub addresses: Vec<Addr>,
    /// Whether it is in the node's network namespace.
    pub host_network: bool,
    /// Whether its containers run.
    pub running: bool,
    /// Whether it has ended for good, so that its addresses may be another's.
    pub over: bool,
    /// Its named ports: name to (IP protocol, port). A name that means two things is none.
    pub ports: BTreeMap<String, (u8, u16)>,
    /// The TCP ports that its probes go to.
    pub probes: BTreeSet<u16>,
    /// Its host ports: (IP protocol, port of the node, port of the pod).
    pub host_ports: BTreeSet<(u8, u16, u16)>,
    /// Whether it can talk to the API server in its own name.
    pub has_token: bool,
    /// The UID that the API server knows it by.
    pub object_uid: String,
    /// Name and UID of the DaemonSet that made it, if one did.
    pub daemon_set: Option<(String, String)>,
}

impl Pod {
    /// Takes what matters. `None` if it has no name or UID, which the API server rules out.
    pub fn of(object: &Object) -> Option<Self> {
        let meta = &object.metadata;
        let name = meta.name.clone()?;
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
        let uid = match annotation(MIRROR) {
            Some(_) => annotation(STATIC_UID),
            None => None,
        };
        let uid = uid.or_else(|| meta.uid.clone())?;
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let host_network = spec.host_network.unwrap_or(false);
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let running = status.phase.as_deref() == Some("Running");
        let addresses = status.pod_ips.unwrap_or_default().into_iter().filter_map(|ip| address(&ip.ip)).collect();
        let sidecars = spec.init_containers.unwrap_or_default();
        let mut this = Self {
            uid,
            namespace: meta.namespace.clone().unwrap_or_default(),
            service_account: spec
                .service_account_name
                .filter(|s| !s.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            owner: owner(object, &name),
            object_uid: meta.uid.clone().unwrap_or_default(),
            daemon_set: controller(object)
                .filter(|by| by.kind == "DaemonSet")
                .map(|by| (by.name.clone(), by.uid.clone())),
            name,
            node: spec.node_name.unwrap_or_default(),
            addresses: if host_network { Vec::new() } else { addresses },
            host_network,
            running,
            over,
            has_token: spec.volumes.unwrap_or_default().iter().any(|v| {
                let projected = v.projected.as_ref().and_then(|p| p.sources.as_ref());
                projected.is_some_and(|all| all.iter().any(|s| s.service_account_token.is_some()))
            }),
            ..Self::default()
        };
        let mut unclear = BTreeSet::new();
        for container in spec.containers.iter().chain(&sidecars) {
            this.container(container, &mut unclear);
        }
        for name in unclear {
            this.ports.remove(&name);
        }
        Some(this)
    }

    fn container(&mut self, c: &Container, unclear: &mut BTreeSet<String>) {
        let mut own = BTreeMap::new();
        for p in c.ports.iter().flatten() {
            let (Some(proto), Ok(port)) = (protocol(p.protocol.as_deref()), u16::try_from(p.container_port)) else {
                continue;
            };
            if let Some(name) = p.name.clone().filter(|n| !n.is_empty()) {
                own.insert(name.clone(), port);
                if self.ports.insert(name.clone(), (proto, port)).is_some_and(|was| was != (proto, port)) {
                    unclear.insert(name);
                }
            }
            if let Some(host) = p.host_port.and_then(|h| u16::try_from(h).ok()).filter(|h| *h != 0) {
                self.host_ports.insert((proto, host, port));
            }
        }
        for probe in [&c.liveness_probe, &c.readiness_probe, &c.startup_probe].into_iter().flatten() {
            self.probes.extend(probe_port(probe, &own));
        }
        if let Some(hooks) = &c.lifecycle {
            for http in [&hooks.post_start, &hooks.pre_stop].into_iter().flatten().filter_map(|h| h.http_get.as_ref()) {
                self.probes.extend(number(&http.port, &own));
            }
        }
    }

    /// What the template of its ID is filled with.
    pub fn filling(&self) -> Filling<'_> {
        Filling {
            namespace: &self.namespace,
            service_account: &self.service_account,
            pod: &self.name,
            owner: &self.owner,
        }
    }

    /// What other nodes are to know of it, under these IDs and at these addresses.
    pub fn told<'i>(&self, ids: impl IntoIterator<Item = &'i SpiffeId>, addresses: &[Addr]) -> NodeWorkload {
        let port = |(name, (proto, n)): (&String, &(u8, u16))| (name.clone(), format!("{}/{n}", protocol_name(*proto)));
        NodeWorkload {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            ids: ids.into_iter().map(ToString::to_string).collect(),
            addresses: addresses.iter().map(|a| crate::config::narrow(a).to_string()).collect(),
            ports: self.ports.iter().map(port).collect(),
        }
    }

    /// For people: `namespace/name`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// An address as the API server writes it.
pub fn address(text: &str) -> Option<Addr> {
    text.parse().ok().map(crate::config::widen)
}

/// The IP protocol of that name; the API's default is TCP.
pub fn protocol(name: Option<&str>) -> Option<u8> {
    name.map_or(Some(proto::TCP), protocol_number)
}

/// The port that the kubelet connects to; `None`: it runs something inside instead.
fn probe_port(probe: &Probe, names: &BTreeMap<String, u16>) -> Option<u16> {
    if let Some(http) = &probe.http_get {
        return number(&http.port, names);
    }
    if let Some(tcp) = &probe.tcp_socket {
        return number(&tcp.port, names);
    }
    probe.grpc.as_ref().and_then(|g| u16::try_from(g.port).ok())
}

fn number(port: &IntOrString, names: &BTreeMap<String, u16>) -> Option<u16> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(name) => names.get(name).copied(),
    }
}

fn controller(object: &Object) -> Option<&OwnerReference> {
    object.metadata.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// What runs the pod. A ReplicaSet is named after its Deployment and the hash of the pod's template, a CronJob's Job
/// after the CronJob and the minute.
fn owner(object: &Object, name: &str) -> String {
    let Some(by) = controller(object) else { return format!("Pod/{name}") };
    let label = |key: &str| object.metadata.labels.as_ref().and_then(|l| l.get(key));
    if by.kind == "ReplicaSet"
        && let Some(hash) = label("pod-template-hash")
        && let Some(deployment) = by.name.strip_suffix(hash.as_str()).and_then(|n| n.strip_suffix('-'))
    {
        return format!("Deployment/{deployment}");
    }
    if by.kind == "Job"
        && let Some((cron, minute)) = by.name.rsplit_once('-')
        && minute.len() >= 8
        && minute.bytes().all(|b| b.is_ascii_digit())
    {
        return format!("CronJob/{cron}");
    }
    format!("{}/{}", by.kind, by.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Pod {
        Pod::of(&serde_json::from_value(crate::cluster::tests::yaml(text)).expect("a pod")).expect("whole")
    }

    #[test]
    fn takes_what_decides() {
        let p = pod("
metadata:
  {name: web-5d8-x, namespace: shop, uid: 6f1c, labels: {pod-template-hash: 5d8},
   ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d8, uid: r, controller: true}]}
spec:
  nodeName: n1
  serviceAccountName: web
  volumes: [{name: t, projected: {sources: [{serviceAccountToken: {path: token}}]}}]
  initContainers: [{name: proxy, ports: [{name: admin, containerPort: 15000}]}]
  containers:
  - name: web
    ports: [{name: http, containerPort: 8080, hostPort: 80}, {name: dns, containerPort: 53, protocol: UDP}]
    readinessProbe: {httpGet: {port: http}}
    livenessProbe: {tcpSocket: {port: 9000}}
    startupProbe: {exec: {command: [x]}}
status: {phase: Running, podIPs: [{ip: 10.0.0.7}, {ip: 'fd00::7'}]}");
        assert_eq!((p.uid.as_str(), p.owner.as_str(), p.service_account.as_str()), ("6f1c", "Deployment/web", "web"));
        assert_eq!(p.ports["http"], (6, 8080));
        assert_eq!(p.ports["dns"], (17, 53));
        assert_eq!(p.ports["admin"], (6, 15000));
        assert_eq!(p.probes, BTreeSet::from([8080, 9000]));
        assert_eq!(p.host_ports, BTreeSet::from([(6, 80, 8080)]));
        assert_eq!(p.addresses.len(), 2);
        assert!(p.has_token && !p.over && !p.host_network);
    }

    #[test]
    fn a_static_pod_goes_by_the_uid_of_its_cgroup() {
        let p = pod("
metadata:
  {name: etcd-n1, namespace: kube-system, uid: api,
   annotations: {kubernetes.io/config.mirror: abc, kubernetes.io/config.hash: abc}}
spec: {hostNetwork: true, containers: []}
status: {podIPs: [{ip: 192.0.2.1}]}");
        assert_eq!((p.uid.as_str(), p.owner.as_str(), p.service_account.as_str()), ("abc", "Pod/etcd-n1", "default"));
        assert!(p.addresses.is_empty(), "the node's address isn't the pod's");
        // Anybody may write the other annotation; without the mirror's it says nothing.
        let p = pod("{metadata: {name: a, uid: api, annotations: {kubernetes.io/config.hash: victim}}}");
        assert_eq!(p.uid, "api");
    }

    #[test]
    fn a_name_that_means_two_ports_is_none() {
        let p = pod("
metadata: {name: a, uid: u}
spec:
  containers:
  - {name: a, ports: [{name: http, containerPort: 80}]}
  - {name: b, ports: [{name: http, containerPort: 81}], readinessProbe: {httpGet: {port: http}}}");
        assert!(p.ports.is_empty());
        assert_eq!(p.probes, BTreeSet::from([81]), "a probe means its own container's port");
    }

    #[test]
    fn owners_are_what_people_wrote() {
        let of = |kind: &str, name: &str| {
            pod(&format!(
                "{{metadata: {{name: p, uid: u, ownerReferences: [{{apiVersion: v, kind: {kind}, name: {name}, uid: u, controller: true}}]}}}}"
            ))
            .owner
        };
        assert_eq!(of("Job", "report-29384720"), "CronJob/report");
        assert_eq!(of("Job", "migrate-2"), "Job/migrate-2");
        assert_eq!(of("StatefulSet", "db"), "StatefulSet/db");
        assert_eq!(of("ReplicaSet", "bare"), "ReplicaSet/bare");
    }
}
