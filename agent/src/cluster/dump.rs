//! A cluster's objects as `kubectl get … -o json` prints them, for judging without any agent. Pure.
//!
//! All pods are taken together, as if one node ran them, so that what they come to is the whole cluster's. The meaning is
//! [`view`](super::view)'s, the agents' own. An object that isn't understood is refused by name: judged without it, the
//! answer could be another.

use super::callers::Caller;
use super::node::Node;
use super::pod::Pod;
use super::sandboxes::Given;
use super::services::Slice;
use super::view::{Document, Here, Objects, View, view};
use crate::config::Config;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What can't be taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadDump {
    /// Neither an object nor a list.
    #[error("this isn't what `kubectl get … -o json` prints: {0}")]
    Form(String),
    /// Of a kind that plays no part.
    #[error("{object} plays no part here: leave {kind} out (taken are {TAKEN})")]
    Kind {
        /// Which.
        object: String,
        /// Its kind.
        kind: String,
    },
    /// Not of the form of its kind.
    #[error("{object} isn't understood: {why}")]
    Object {
        /// Which.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration is of a plain host.
    #[error("the configuration has no `cluster`, so it doesn't say who pods are")]
    PlainHost,
}

const TAKEN: &str = "Namespace, Pod, Service, EndpointSlice, Node, ServiceCIDR, SegmentationPolicy, \
                     ClusterSegmentationPolicy, ValidatingWebhookConfiguration, MutatingWebhookConfiguration, \
                     APIService, CustomResourceDefinition";

/// Reads one object, or a list of them.
///
/// # Errors
/// When any of it can't be taken.
pub fn read(text: &str) -> Result<Objects, BadDump> {
    let whole: Value = serde_json::from_str(text).map_err(|e| BadDump::Form(e.to_string()))?;
    let mut objects = Objects::default();
    let list = whole["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match (list, &whole["items"]) {
        (true, Value::Array(items)) => items.iter().try_for_each(|item| add(&mut objects, item))?,
        (true, _) => return Err(BadDump::Form("a list without `items`".to_owned())),
        (false, _) => add(&mut objects, &whole)?,
    }
    Ok(objects)
}

fn add(objects: &mut Objects, item: &Value) -> Result<(), BadDump> {
    let kind = item["kind"].as_str().ok_or_else(|| BadDump::Form("an object without a `kind`".to_owned()))?;
    match kind {
        "Namespace" => objects.namespaces.push(Arc::new(read_as(item)?)),
        "Pod" => objects.pods.push(Arc::new(Some(whole(item, Pod::of(&read_as(item)?))?))),
        "Service" => objects.services.push(Arc::new(read_as(item)?)),
        // One that is no Service's plays no part.
        "EndpointSlice" => objects.slices.push(Arc::new(Slice::of(&read_as(item)?))),
        "Node" => objects.nodes.push(Arc::new(Node::of(&read_as(item)?))),
        "ServiceCIDR" => objects.service_cidrs.push(Arc::new(read_as(item)?)),
        "SegmentationPolicy" | "ClusterSegmentationPolicy" => {
            objects.policies.push(Arc::new(Some(whole(item, Document::of(&read_as(item)?))?)));
        }
        "ValidatingWebhookConfiguration"
        | "MutatingWebhookConfiguration"
        | "APIService"
        | "CustomResourceDefinition" => objects.callers.push(Arc::new(Caller::of(read_as(item)?))),
        _ => return Err(BadDump::Kind { object: title(item), kind: kind.to_owned() }),
    }
    Ok(())
}

fn read_as<T: DeserializeOwned>(item: &Value) -> Result<T, BadDump> {
    T::deserialize(item).map_err(|e| BadDump::Object { object: title(item), why: e.to_string() })
}

/// What matters of it, if it has a name and what else the API server gives everything.
fn whole<T>(item: &Value, taken: Option<T>) -> Result<T, BadDump> {
    taken.ok_or_else(|| BadDump::Object { object: title(item), why: "it has no name or no UID".to_owned() })
}

fn title(item: &Value) -> String {
    let word = |v: &Value| v.as_str().map(str::to_owned);
    let meta = &item["metadata"];
    let words = [word(&item["kind"]), word(&meta["namespace"]), word(&meta["name"])];
    words.into_iter().flatten().collect::<Vec<_>>().join("/")
}

/// What the objects come to for the whole cluster.
///
/// # Errors
/// When the configuration is of a plain host.
pub fn everybody(mut objects: Objects, config: &Config) -> Result<View, BadDump> {
    let settings = config.cluster.as_ref().ok_or(BadDump::PlainHost)?;
    for pod in objects.pods.iter_mut().filter_map(|p| Arc::make_mut(p).as_mut()) {
        // Those that no node runs yet, too: they will be who they are.
        pod.node.clone_from(&settings.node);
    }
    let here = Here { pods_at: &[], given: &Given::new(), postures: &BTreeMap::new() };
    Ok(view(settings, &objects, config, here))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Posture;
    use serde_json::json;

    fn config() -> Config {
        crate::config::parse("bulkhead.yaml", "cluster: {node: n1}").expect("a configuration")
    }

    fn list(items: Value) -> String {
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }

    #[test]
    fn pods_of_all_nodes_are_who_they_are_under_their_namespaces_posture() {
        let pod = |name: &str, node: Option<&str>| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": name},
                "spec": {"nodeName": node, "serviceAccountName": name, "containers": []}})
        };
        let text = list(json!([
            {"apiVersion": "v1", "kind": "Namespace",
             "metadata": {"name": "shop", "labels": {"bulkhead.dev/posture": "enforce"}}},
            pod("web", Some("n1")), pod("cart", Some("n2")), pod("late", None),
            {"apiVersion": "bulkhead.dev/v1alpha1", "kind": "SegmentationPolicy",
             "metadata": {"name": "web", "namespace": "shop"}, "spec": {"mode": "audit"}, "status": {"rules": 1}},
        ]));
        let view = everybody(read(&text).expect("good"), &config()).expect("of a cluster");
        let who: Vec<_> = view.workloads.iter().map(|w| (w.identity.to_string(), w.posture)).collect();
        let id = |name: &str| (format!("spiffe://cluster.local/ns/shop/sa/{name}"), Posture::Enforce);
        assert_eq!(who, [id("cart"), id("late"), id("web")]);
        let policy: Value = serde_json::from_str(&view.texts["SegmentationPolicy/shop/web"]).expect("JSON");
        assert_eq!(policy["spec"], json!({"mode": "audit"}));
    }

    #[test]
    fn a_lowered_namespace_and_whom_the_api_server_calls_count() {
        let text = list(json!([
            {"apiVersion": "v1", "kind": "Namespace",
             "metadata": {"name": "shop", "annotations": {"bulkhead.dev/override": "audit"}}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "shop"},
             "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": 443}]}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": "hook", "namespace": "shop", "labels": {"kubernetes.io/service-name": "hook"}},
             "ports": [{"port": 8443}], "endpoints": [{"addresses": ["10.0.0.1"]}]},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hook", "namespace": "shop", "uid": "a"},
             "spec": {"serviceAccountName": "hook", "containers": []}, "status": {"podIPs": [{"ip": "10.0.0.1"}]}},
            {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
             "metadata": {"name": "hook"},
             "webhooks": [{"name": "a.b.c", "clientConfig": {"service": {"namespace": "shop", "name": "hook"}}}]},
        ]));
        let view = everybody(read(&text).expect("good"), &config()).expect("of a cluster");
        assert_eq!(view.lowered, [("shop".to_owned(), crate::policy::Lowered::Audit)].into());
        assert!(view.texts["built-in/webhooks"].contains("8443"), "{:?}", view.texts);
    }

    #[test]
    fn what_isnt_understood_is_refused_by_name() {
        let refused = |text: &str| read(text).expect_err(text).to_string();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "shop", "name": "key"}});
        assert!(refused(&list(json!([secret]))).starts_with("Secret/shop/key plays no part here"));
        let nameless = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop"}});
        assert!(refused(&nameless.to_string()).starts_with("Pod/shop/web isn't understood"));
        let odd = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop", "labels": 1}});
        assert!(refused(&odd.to_string()).starts_with("Namespace/shop isn't understood"));
        assert!(refused("{}").contains("without a `kind`"));
        assert!(refused(r#"{"kind": "List"}"#).contains("without `items`"));
        assert!(refused("no").starts_with("this isn't what"));
        let plain = crate::config::parse("b.yaml", "workloads: []").expect("a configuration");
        assert_eq!(everybody(Objects::default(), &plain), Err(BadDump::PlainHost));
    }
}
