//! A cluster's objects as `kubectl get … -o json` prints them, for judging without any agent. Pure.
//!
//! All pods are taken together, as if one node ran them, so that what they come to is the whole cluster's. The meaning is
//! [`view`](super::view)'s, the agents' own. An object that isn't understood is refused by name: judged without it, the
//! answer could be another.

use super::view::{Objects, View, view};
use crate::config::Config;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
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
                     ClusterSegmentationPolicy";

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
        "Namespace" => objects.namespaces.push(taken(item)?),
        "Pod" => objects.pods.push(taken(item)?),
        "Service" => objects.services.push(taken(item)?),
        "EndpointSlice" => objects.slices.push(taken(item)?),
        "Node" => objects.nodes.push(taken(item)?),
        "ServiceCIDR" => objects.service_cidrs.push(taken(item)?),
        "SegmentationPolicy" | "ClusterSegmentationPolicy" => objects.policies.push(taken::<DynamicObject>(item)?),
        _ => return Err(BadDump::Kind { object: title(item), kind: kind.to_owned() }),
    }
    Ok(())
}

fn taken<T: DeserializeOwned>(item: &Value) -> Result<Arc<T>, BadDump> {
    let read = serde_json::from_value(item.clone()).map(Arc::new);
    read.map_err(|e| BadDump::Object { object: title(item), why: e.to_string() })
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
    for pod in &mut objects.pods {
        // Those that no node runs yet, too: they will be who they are.
        let pod: &mut Pod = Arc::make_mut(pod);
        pod.spec.get_or_insert_default().node_name = Some(settings.node.clone());
    }
    Ok(view(settings, &objects, config, &[], &BTreeMap::new()))
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
    fn what_isnt_understood_is_refused_by_name() {
        let refused = |text: &str| read(text).expect_err(text).to_string();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "shop", "name": "key"}});
        assert!(refused(&list(json!([secret]))).starts_with("Secret/shop/key plays no part here"));
        let odd = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop", "labels": 1}});
        assert!(refused(&odd.to_string()).starts_with("Namespace/shop isn't understood"));
        assert!(refused("{}").contains("without a `kind`"));
        assert!(refused(r#"{"kind": "List"}"#).contains("without `items`"));
        assert!(refused("no").starts_with("this isn't what"));
        let plain = crate::config::parse("b.yaml", "workloads: []").expect("a configuration");
        assert_eq!(everybody(Objects::default(), &plain), Err(BadDump::PlainHost));
    }
}
