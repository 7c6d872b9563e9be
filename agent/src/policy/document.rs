//! Policies as they are written: YAML in the shape of a Kubernetes object, so the same file will be a custom resource.
//!
//! These types say which fields exist and nothing more; what the fields may mean together is
//! [`super::convert`]'s business. An unknown field is an error, and so is a field that is there without a value:
//! `ports:` with nothing behind it must not read as "every port".

use super::diagnostic::At;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// The only `apiVersion`.
pub const API_VERSION: &str = "bulkhead.dev/v1alpha1";

/// A document: who it is, and what it says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<S> {
    /// [`API_VERSION`].
    pub api_version: At<String>,
    /// The name of the kind that `S` is the spec of.
    pub kind: At<String>,
    /// Its name.
    pub metadata: Metadata,
    /// What it says.
    pub spec: S,
}

/// A document's name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique among the documents of its kind and namespace.
    pub name: At<String>,
    /// The namespace whose workloads it selects; empty on a plain host.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<At<String>>,
    /// For tools and people; not read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For tools and people; not read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The spec of `kind: SegmentationPolicy`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SegmentationPolicySpec {
    /// Into which verdicts it goes.
    pub mode: Mode,
    /// For people.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The workloads that it is about, among those of its namespace.
    pub selector: At<Selector>,
    /// Who may connect to them. If it is there, nobody else may.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
    /// To whom they may connect. If it is there, to nobody else.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Kinds of socket that they may make although no rule can judge them.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub sockets: Option<At<Vec<SocketKind>>>,
    /// When it stops to hold (RFC 3339).
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<At<String>>,
}

/// The spec of `kind: ClusterSegmentationPolicy`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.selector) || !(has(self.ingress) || has(self.egress) || has(self.sockets))", "message": "ingress, egress and sockets need a selector"}, {"rule": "has(self.selector) || has(self.edges) || has(self.denies)", "message": "a selector, edges or denies"}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSegmentationPolicySpec {
    /// Into which verdicts it goes.
    pub mode: Mode,
    /// For people.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The workloads, of any namespace, that `ingress`, `egress` and `sockets` are about.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub selector: Option<At<Selector>>,
    /// Who may connect to them. If it is there, nobody else may.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
    /// To whom they may connect. If it is there, to nobody else.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Connections that are open on both sides.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub edges: Option<At<Vec<At<Edge>>>>,
    /// Connections that no rule can allow.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub denies: Option<At<Vec<At<Deny>>>>,
    /// Kinds of socket that they may make although no rule can judge them.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub sockets: Option<At<Vec<SocketKind>>>,
    /// When it stops to hold (RFC 3339).
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<At<String>>,
}

/// Into which of the two verdicts a policy goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Into the audited one: it says what it would do.
    Audit,
    /// Into both.
    Enforce,
}

impl Mode {
    /// The word in files and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }
}

/// Which workloads.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// SPIFFE IDs or globs; at least one.
    pub ids: At<Vec<At<String>>>,
}

/// Rules by which the selected workloads take connections.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ingress {
    /// An empty list allows nothing.
    #[serde(default)]
    pub rules: Vec<At<IngressRule>>,
}

/// Rules by which the selected workloads open connections.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Egress {
    /// An empty list allows nothing.
    #[serde(default)]
    pub rules: Vec<At<EgressRule>>,
}

/// Who may connect to the selected workloads, on which of their ports.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRule {
    /// At least one.
    pub from: At<Vec<At<Peer>>>,
    /// At least one; without it, every port of every protocol.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ports: Option<At<Vec<At<Port>>>>,
    /// When it stops to hold (RFC 3339).
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<At<String>>,
}

/// To whom the selected workloads may connect, on which of the other's ports.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// At least one.
    pub to: At<Vec<At<Peer>>>,
    /// At least one; without it, every port of every protocol.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ports: Option<At<Vec<At<Port>>>>,
    /// When it stops to hold (RFC 3339).
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<At<String>>,
}

/// A connection that is open on both sides.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edge {
    /// At least one.
    pub from: At<Vec<At<Peer>>>,
    /// At least one.
    pub to: At<Vec<At<Peer>>>,
    /// At least one; without it, every port of every protocol.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ports: Option<At<Vec<At<Port>>>>,
    /// When it stops to hold (RFC 3339).
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<At<String>>,
}

/// A connection that no rule can allow.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deny {
    /// At least one.
    pub from: At<Vec<At<Peer>>>,
    /// At least one.
    pub to: At<Vec<At<Peer>>>,
    /// At least one; without it, every port of every protocol.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ports: Option<At<Vec<At<Port>>>>,
    /// What it leaves to the rules; at least one if it is there.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub except: Option<At<Vec<At<Except>>>>,
    /// When it stops to hold (RFC 3339).
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<At<String>>,
}

/// What a deny leaves to the rules: connections that fit all the fields given, at least one of them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.from) || has(self.to) || has(self.ports)", "message": "at least one of from, to and ports"}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Except {
    /// Whoever opens it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub from: Option<At<Vec<At<Peer>>>>,
    /// Whoever is connected to.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub to: Option<At<Vec<At<Peer>>>>,
    /// The port.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ports: Option<At<Vec<At<Port>>>>,
}

/// An end of a connection: exactly one of `id`, `class` and `cidr`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.cidr) ? !has(self.id) && !has(self.class) : has(self.id) != has(self.class) && !has(self.except)", "message": "exactly one of id, class and cidr; except goes with cidr"}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// A SPIFFE ID or a glob.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub id: Option<At<String>>,
    /// The name of a class.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub class: Option<At<String>>,
    /// A part of the world.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub cidr: Option<At<String>>,
    /// Parts of the `cidr` that aren't meant.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub except: Option<At<Vec<At<String>>>>,
}

/// Ports of the destination.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.port) || has(self.protocol)", "message": "a port or a protocol"}, {"rule": "!has(self.endPort) || has(self.port)", "message": "endPort goes with port"}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// TCP when a port is given; else it must be there.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// A number or a name; without it, every port of the protocol.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub port: Option<At<PortValue>>,
    /// The last port of a range that begins with `port`.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub end_port: Option<At<i64>>,
}

/// A port as it is written: by number, or by the name that the destination gives it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = int_or_string)]
#[serde(untagged)]
pub enum PortValue {
    /// Any number; whether it is a port is checked later.
    Number(i64),
    /// A name.
    Name(String),
}

/// Protocols that rules can name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the protocol of that name")]
pub enum Protocol {
    TCP,
    UDP,
    SCTP,
    UDPLite,
    ICMP,
}

/// Kinds of socket that no rule can judge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the kind of that name")]
pub enum SocketKind {
    RAW,
    SCTP,
    MPTCP,
}

/// The API server's word for a number or a text.
fn int_or_string(schema: &mut schemars::Schema) {
    *schema = schemars::json_schema!({"x-kubernetes-int-or-string": true});
}

/// A field that is there has a value: serde alone would take `field: null` for a field that isn't.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}
