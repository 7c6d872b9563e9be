//! What a cluster needs to go on working, as policies with reserved names: shown like any other, turned off one by one
//! in the configuration. Pure.
//!
//! They only open edges, so they isolate nobody; a deny wins over them.

use super::pod::Pod;
use crate::config::BuiltIn;
use crate::identity::SpiffeId;
use crate::policy::model::protocol_name;
use bulkhead_common::proto;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// How the file of each begins: no file of the configuration and no object of the API server is called so.
pub const PREFIX: &str = "built-in/";

/// What they are made from.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// This node's pods with their IDs.
    pub pods: Vec<(&'a Pod, &'a SpiffeId)>,
    /// Who answers for the cluster's DNS, and at which ports.
    pub dns: BTreeSet<(SpiffeId, u8, u16)>,
    /// Whether a port of the node is the cluster's DNS.
    pub node_dns: bool,
    /// Whom the API server calls, and at which TCP ports.
    pub called: BTreeSet<(SpiffeId, u16)>,
    /// Whether it runs on this node, so that what comes from it is the node's.
    pub api_server_here: bool,
}

/// The texts, by file name. One that has nothing to open isn't there.
pub fn texts(on: &BTreeSet<BuiltIn>, facts: &Facts<'_>) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for built_in in on {
        let edges = match built_in {
            BuiltIn::KubeletProbes => probes(facts),
            BuiltIn::ClusterDns => dns(facts),
            BuiltIn::ApiServer => api_server(facts),
            BuiltIn::Webhooks => webhooks(facts),
        };
        if edges.is_empty() {
            continue;
        }
        let name = built_in.as_str();
        let object = json!({
            "apiVersion": crate::policy::document::API_VERSION,
            "kind": "ClusterSegmentationPolicy",
            "metadata": {"name": format!("built-in.{name}")},
            "spec": {"mode": "enforce", "edges": edges},
        });
        texts.insert(format!("{PREFIX}{name}"), object.to_string());
    }
    texts
}

fn port(proto: u8, port: u16) -> Value {
    json!({"protocol": protocol_name(proto), "port": port})
}

fn probes(facts: &Facts<'_>) -> Vec<Value> {
    let mut by_id: BTreeMap<&SpiffeId, BTreeSet<u16>> = BTreeMap::new();
    for (pod, id) in &facts.pods {
        by_id.entry(id).or_default().extend(&pod.probes);
    }
    by_id.retain(|_, ports| !ports.is_empty());
    let edge = |(id, ports): (&SpiffeId, BTreeSet<u16>)| {
        let ports: Vec<Value> = ports.into_iter().map(|n| port(proto::TCP, n)).collect();
        json!({"from": [{"class": "host"}], "to": [{"id": id}], "ports": ports})
    };
    by_id.into_iter().map(edge).collect()
}

fn dns(facts: &Facts<'_>) -> Vec<Value> {
    let anybody = json!([{"id": crate::policy::ANY_ID}]);
    let mut edges = Vec::new();
    for (id, proto, number) in &facts.dns {
        edges.push(json!({"from": anybody, "to": [{"id": id}], "ports": [port(*proto, *number)]}));
    }
    if facts.node_dns {
        let ports = [port(proto::UDP, 53), port(proto::TCP, 53)];
        edges.push(json!({"from": anybody, "to": [{"class": "node-dns"}], "ports": ports}));
    }
    edges
}

fn api_server(facts: &Facts<'_>) -> Vec<Value> {
    let ids: BTreeSet<&SpiffeId> = facts.pods.iter().filter(|(pod, _)| pod.has_token).map(|(_, id)| *id).collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let from: Vec<Value> = ids.into_iter().map(|id| json!({"id": id})).collect();
    vec![json!({"from": from, "to": [{"class": "kube-apiserver"}]})]
}

fn webhooks(facts: &Facts<'_>) -> Vec<Value> {
    let mut by_port: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for (id, number) in &facts.called {
        by_port.entry(*number).or_default().push(json!({"id": id}));
    }
    let mut from = vec![json!({"class": "kube-apiserver"})];
    if facts.api_server_here {
        // Its own sockets lead to the Services' addresses, so it looks like somebody whom the node masquerades.
        from.extend([json!({"class": "host"}), json!({"class": "snat-ingress"})]);
    }
    let edge = |(number, to)| json!({"from": from, "to": to, "ports": [port(proto::TCP, number)]});
    by_port.into_iter().map(edge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_they_open_is_a_policy() {
        let (web, dns): (SpiffeId, SpiffeId) = (
            "spiffe://t/ns/shop/sa/web".parse().expect("an ID"),
            "spiffe://t/ns/kube-system/sa/dns".parse().expect("an ID"),
        );
        let pod = Pod { probes: BTreeSet::from([8080]), has_token: true, ..Pod::default() };
        let facts = Facts {
            pods: vec![(&pod, &web)],
            dns: BTreeSet::from([(dns.clone(), proto::UDP, 53), (dns, proto::TCP, 53)]),
            node_dns: true,
            called: BTreeSet::from([(web.clone(), 8443)]),
            api_server_here: false,
        };
        let off = texts(&BTreeSet::from([BuiltIn::ClusterDns]), &facts);
        assert_eq!(off.len(), 1);
        let all = texts(&BuiltIn::ALL.into(), &facts);
        assert_eq!(all.len(), 4);
        for (file, text) in &all {
            let read = crate::policy::parse(file, text).unwrap_or_else(|e| panic!("{}", e[0]));
            assert_eq!(read.len(), 1);
        }
        assert_eq!(all["built-in/cluster-dns"].matches("\"port\":53").count(), 4);
        assert!(!all["built-in/webhooks"].contains("host"), "{}", all["built-in/webhooks"]);
        let here = texts(&BuiltIn::ALL.into(), &Facts { api_server_here: true, ..facts });
        assert!(here["built-in/webhooks"].contains("host"), "{}", here["built-in/webhooks"]);
        let none = texts(&BuiltIn::ALL.into(), &Facts::default());
        assert!(none.is_empty(), "{none:?}");
    }
}
