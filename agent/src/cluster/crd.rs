//! The custom resources: what `bulkhead crd` prints and deploy/ holds.
//!
//! The specs are the file form's own types ([`crate::policy::document`]), so a file is a resource. The API server checks
//! what a schema and CEL can say; the agent converts every object by itself all the same, since an object may have
//! passed an older schema.

use crate::policy::document::{ClusterSegmentationPolicySpec, SegmentationPolicySpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::schema::StructuralSchemaRewriter;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The group of [`crate::policy::document::API_VERSION`].
pub const GROUP: &str = "bulkhead.dev";
/// The version of it.
pub const VERSION: &str = "v1alpha1";

/// A kind of policy, as the API server calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// One of them.
    pub kind: &'static str,
    /// All of them.
    pub plural: &'static str,
}

/// The two: of one namespace, and of the cluster.
pub const POLICIES: [Kind; 2] = [
    Kind { kind: "SegmentationPolicy", plural: "segmentationpolicies" },
    Kind { kind: "ClusterSegmentationPolicy", plural: "clustersegmentationpolicies" },
];

impl Kind {
    /// For requests of it.
    pub fn resource(&self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, self.kind), self.plural)
    }
}

/// Where one node's pods are and who they are. Written by that node's agent, read by all others.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(group = "bulkhead.dev", version = "v1alpha1", kind = "NodeEndpoints", plural = "nodeendpoints")]
#[kube(shortname = "nodeep", category = "bulkhead", derive = "PartialEq")]
#[kube(printcolumn = r#"{"name": "Published-By", "type": "string", "jsonPath": ".spec.publishedBy"}"#)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[serde(rename_all = "camelCase")]
pub struct NodeEndpointsSpec {
    /// The node whose agent wrote this: the same as the object's name, or another's while this node has no agent yet.
    pub published_by: String,
    /// The workloads that have addresses of their own.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub workloads: Vec<NodeWorkload>,
}

/// One pod of a node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeWorkload {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its SPIFFE IDs.
    #[schemars(length(max = 16))]
    pub ids: Vec<String>,
    /// Its addresses.
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,
    /// Its named ports: `TCP/8080`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, String>,
}

/// How one node is, and what it does with the policies that concern its workloads. Written by that node's agent alone,
/// read by the one that sums up.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(group = "bulkhead.dev", version = "v1alpha1", kind = "SegmentationNode", plural = "segmentationnodes")]
#[kube(shortname = "segnode", category = "bulkhead", derive = "PartialEq")]
#[kube(printcolumn = r#"{"name": "Ready", "type": "boolean", "jsonPath": ".spec.ready"}"#)]
#[kube(printcolumn = r#"{"name": "Workloads", "type": "integer", "jsonPath": ".spec.workloads"}"#)]
#[kube(printcolumn = r#"{"name": "Fault", "type": "string", "jsonPath": ".spec.faults[0]"}"#)]
#[kube(printcolumn = r#"{"name": "Version", "type": "string", "jsonPath": ".spec.version"}"#)]
#[serde(rename_all = "camelCase")]
pub struct SegmentationNodeSpec {
    /// The agent's version.
    pub version: String,
    /// Whether a ruleset is in force and the programs are attached.
    pub ready: bool,
    /// How many workloads run there.
    pub workloads: i64,
    /// What is out of order, the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub faults: Vec<String>,
    /// The policies that concern workloads of this node, and those that it can't take.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub policies: Vec<NodePolicy>,
}

/// What a node does with one policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePolicy {
    /// Its kind, namespace if it has one, and name: `SegmentationPolicy/shop/web`.
    pub policy: String,
    /// The object's UID.
    pub uid: String,
    /// The generation that is in force there; 0: none, or an earlier form.
    pub generation: i64,
    /// How many of the node's workloads it concerns.
    pub workloads: i64,
    /// For how many of them nothing is enforced now, by break-glass.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub break_glass: i64,
    /// For how many of them nothing is enforced now, since their namespace is lowered.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lowered: i64,
    /// How many connections it would have denied, at least: rounded down, so that a number that grows is seldom written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub would_deny: i64,
    /// Why the node can't take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// What becomes of a policy.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// The generation that the rest is about.
    pub observed_generation: i64,
    /// How many workloads it concerns, over all nodes that reported.
    pub workloads: i64,
    /// How many rules, edges and denies it has.
    pub rules: i64,
    /// How many connections it would have denied, at least.
    pub would_deny: i64,
    /// How many nodes have workloads that it concerns.
    pub nodes: i64,
    /// In how many of them it is in force as it is written now.
    pub nodes_in_step: i64,
    /// Accepted, Enforced, Degraded.
    pub conditions: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
}

/// All of them, in the order in which they may be created.
pub fn all() -> Vec<CustomResourceDefinition> {
    let [namespaced, cluster] = &POLICIES;
    vec![
        policy::<SegmentationPolicySpec>(namespaced, "segpol", "Namespaced"),
        policy::<ClusterSegmentationPolicySpec>(cluster, "csegpol", "Cluster"),
        NodeEndpoints::crd(),
        SegmentationNode::crd(),
    ]
}

/// One kind of policy.
fn policy<S: JsonSchema>(of: &Kind, short: &str, scope: &str) -> CustomResourceDefinition {
    let Kind { kind, plural } = of;
    let schema = |value: Value| json!({"type": "object", "required": ["spec"], "properties": {"spec": value, "status": schema_of::<PolicyStatus>()}});
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let definition = json!({
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "shortNames": [short],
                "categories": ["bulkhead"],
            },
            "versions": [{
                "name": VERSION, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema(schema_of::<S>())},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Mode", "string", ".spec.mode"),
                    column("Workloads", "integer", ".status.workloads"),
                    column("Rules", "integer", ".status.rules"),
                    column("Would-Deny", "integer", ".status.wouldDeny"),
                    column("Nodes", "integer", ".status.nodes"),
                    column("In-Step", "integer", ".status.nodesInStep"),
                    column("Accepted", "string", ".status.conditions[?(@.type=='Accepted')].status"),
                    column("Enforced", "string", ".status.conditions[?(@.type=='Enforced')].status"),
                    column("Degraded", "string", ".status.conditions[?(@.type=='Degraded')].status"),
                    column("Age", "date", ".metadata.creationTimestamp"),
                ],
            }],
        },
    });
    serde_json::from_value(definition).expect("a literal of the definition's own shape")
}

/// A type's schema in the form that the API server takes.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let generator = settings.with_transform(StructuralSchemaRewriter).into_generator();
    let mut value = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut value);
    value
}

/// How long a list may be: the API server works out beforehand what checking the longest would cost.
const LONGEST: u64 = 256;
/// The same for lists of exceptions, which hold lists themselves and stand in a list.
const EXCEPTIONS: u64 = 16;

/// Takes out what a structural schema may not hold, and bounds every list.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("type").is_some_and(|t| t == "array") {
                map.entry("maxItems").or_insert(LONGEST.into());
            }
            if map.get("additionalProperties") == Some(&Value::Bool(false)) {
                map.remove("additionalProperties");
            }
            if let Some(Value::Object(except)) = map.get_mut("except").filter(|e| e["type"] == "array") {
                except.insert("maxItems".to_owned(), EXCEPTIONS.into());
            }
            map.remove("title");
            map.values_mut().for_each(tidy);
        }
        Value::Array(all) => all.iter_mut().for_each(tidy),
        _ => {}
    }
}
