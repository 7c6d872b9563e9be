//! Policies of other kinds read as Bulkhead's: NetworkPolicy, the tiers around it, and Istio's AuthorizationPolicy.
//!
//! What is written allows no connection that the original denies. Where the original can't be said, the import errs to the
//! stricter side and tells it as a [`Finding`]; what is left out as a whole and would have refused is one marked looser. An
//! object that can't be read, or has a field that isn't known, keeps everything from being written.
//!
//! | module | what it is |
//! |---|---|
//! | [`tree`] | documents with places and paths |
//! | [`selector`] | label selectors |
//! | [`estate`] | pods, and the identities that they are |
//! | [`model`] | what the kinds have in common |
//! | [`network`], [`tiers`], [`mesh`] | the kinds |
//! | [`resolve`] | labels, addresses and names as Bulkhead's peers and ports |
//! | [`weave`] | tiers and layers as one set in which denies win |
//! | [`write`](mod@write) | the files |
//!
//! Pure.

mod estate;
mod mesh;
mod model;
mod network;
mod resolve;
mod selector;
mod tiers;
mod tree;
mod weave;
mod write;

pub use estate::{Estate, Pod, UnknownNamespace};
pub use model::{Errs, Finding};
pub use selector::Labels;
pub use write::File;

use crate::policy::convert::is_object_name;
use crate::policy::{Diagnostic, Mode, parse};
use model::{Everything, Findings, Source};
use resolve::Resolver;
use serde::Serialize;
use std::collections::BTreeMap;
use tiers::Form;
use tree::{Fields, Reader};

/// What to do where pods are missing.
const GIVE_PODS: &str = "give --cluster, or --pods with `kubectl get pods,namespaces -A -o json`";
/// Mesh and network in one go.
const TWO_LAYERS: &str = "a mesh and a network policy must both allow, but Bulkhead's rules add up: together they would \
                          allow what either allows";

/// How to read and to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The mode of the policies.
    pub mode: Mode,
    /// The namespace of objects that name none.
    pub namespace: Option<String>,
    /// The mesh's root namespace, whose policies are about all namespaces.
    pub root: String,
}

impl Default for Wish {
    fn default() -> Self {
        Self { mode: Mode::Audit, namespace: None, root: "istio-system".to_owned() }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Imported {
    /// The policies.
    pub files: Vec<File>,
    /// What isn't carried as it is.
    pub findings: Vec<Finding>,
    /// How many objects were read.
    pub objects: usize,
    /// How many policies were written.
    pub policies: usize,
    /// Objects that are no policies, by kind.
    pub others: BTreeMap<String, usize>,
}

/// Imports the objects of these files, each a name and a text.
///
/// # Errors
/// Everything that keeps the files from being read, with its place; then nothing is written.
pub fn import(texts: &[(String, String)], estate: &Estate, wish: &Wish) -> Result<Imported, Vec<Diagnostic>> {
    let mut all = Everything::default();
    let mut imported = Imported::default();
    let mut findings = Findings::default();
    let mut faults = Vec::new();
    let mut layers = Layers::default();
    for (file, text) in texts {
        let mut reader = Reader { file: file.as_str().into(), faults: Vec::new() };
        for object in reader.objects(text) {
            let mut reading = Reading {
                reader: &mut reader,
                estate,
                wish,
                findings: &mut findings,
                layers: &mut layers,
                all: &mut all,
            };
            match reading.object(object) {
                Taken::Policy => imported.objects += 1,
                Taken::Other(kind) => *imported.others.entry(kind).or_default() += 1,
            }
        }
        faults.append(&mut reader.faults);
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut resolver = Resolver { estate, findings, faults };
    let woven = weave::weave(&all, &mut resolver);
    if !resolver.faults.is_empty() {
        return Err(resolver.faults);
    }
    imported.findings = resolver.findings.all();
    imported.files = write::write(woven, wish.mode);
    // What was written is read as any file is: what can't be is better not written.
    for File { file, text } in &imported.files {
        imported.policies += parse(file, text)?.len();
    }
    Ok(imported)
}

/// Which layers there are policies of.
#[derive(Default)]
struct Layers {
    network: bool,
    mesh: bool,
}

/// What an object was.
enum Taken {
    Policy,
    Other(String),
}

struct Reading<'a> {
    reader: &'a mut Reader,
    estate: &'a Estate,
    wish: &'a Wish,
    findings: &'a mut Findings,
    layers: &'a mut Layers,
    all: &'a mut Everything,
}

/// Kinds that judge connections and aren't read here.
fn judges(group: &str, kind: &str) -> bool {
    const GROUPS: [&str; 7] = [
        "cilium.io",
        "crd.projectcalico.org",
        "projectcalico.org",
        "crd.antrea.io",
        "policy.networking.k8s.io",
        "networking.k8s.io",
        "policy.linkerd.io",
    ];
    kind.contains("NetworkPolic")
        || kind == "AuthorizationPolicy"
        || kind == "PeerAuthentication"
        || GROUPS.contains(&group) && kind.ends_with("Policy")
}

impl Reading<'_> {
    fn object(&mut self, mut fields: Fields) -> Taken {
        let reader = &mut *self.reader;
        let spot = fields.spot.clone();
        let version = fields.take("apiVersion").and_then(|v| reader.text(v));
        let kind = fields.take("kind").and_then(|v| reader.text(v));
        let (Some(version), Some(kind)) = (version, kind) else {
            reader.fault(&spot, "this is no object of an API", "every object has an apiVersion and a kind");
            return Taken::Other(String::new());
        };
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let known = matches!(
            (version.as_str(), kind.as_str()),
            ("networking.k8s.io/v1", "NetworkPolicy")
                | ("security.istio.io/v1" | "security.istio.io/v1beta1", "AuthorizationPolicy")
                | ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy")
                | ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy")
        );
        if !known && !judges(group, &kind) {
            return Taken::Other(kind);
        }
        let Some(mut metadata) = fields.take("metadata").map(|v| reader.map(v)) else {
            reader.fault(&spot, format!("this {kind} has no metadata"), "add `metadata` with a name");
            return Taken::Policy;
        };
        let name = metadata.take("name").and_then(|v| reader.text(v)).unwrap_or_default();
        let namespace = metadata.take("namespace").and_then(|v| reader.text(v));
        let cluster = group == "policy.networking.k8s.io";
        let namespace = match (cluster, namespace.or_else(|| self.wish.namespace.clone())) {
            (true, _) => String::new(),
            (false, Some(namespace)) => namespace,
            (false, None) => {
                reader.fault(&spot, format!("{kind} {name} names no namespace"), "add it, or give --namespace");
                return Taken::Policy;
            }
        };
        if !is_object_name(&name) || !namespace.is_empty() && (!is_object_name(&namespace) || namespace.contains('.')) {
            reader.fault(&metadata.spot, format!("this {kind} has no name that can be one"), "a-z, 0-9, '-' and '.'");
            return Taken::Policy;
        }
        let source = Source { file: reader.file.clone(), kind: kind.clone(), namespace, name, spot: spot.clone() };
        if !known {
            let reason = format!("{kind} of {version} isn't read here: nothing of it is carried");
            self.findings.add(&source, &spot, Errs::Looser, reason);
            return Taken::Policy;
        }
        let annotations = metadata.take("annotations").map(|v| reader.map(v).rest()).unwrap_or_default();
        let dry = annotations
            .into_iter()
            .any(|(key, value)| key == "istio.io/dry-run" && matches!(&value.node, tree::Node::Text(t) if t == "true"));
        let spec = fields.take("spec").map(|v| reader.map(v));
        drop(fields.take("status"));
        self.reader.finish(fields);
        self.spec(source, spec, dry);
        Taken::Policy
    }

    fn spec(&mut self, source: Source, spec: Option<Fields>, dry: bool) {
        let mesh = source.kind == "AuthorizationPolicy";
        if mesh {
            self.layers.mesh = true
        } else {
            self.layers.network = true
        }
        if self.layers.mesh && self.layers.network {
            self.reader.fault(&source.spot, TWO_LAYERS, "import the one or the other");
            return;
        }
        if mesh && !self.estate.has_mesh_ids() {
            let hint = "the template is spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount} there";
            self.reader.fault(&source.spot, "principals aren't the IDs that this template gives", hint);
            return;
        }
        let spec = match spec {
            Some(spec) => spec,
            // Only a mesh's policy means something without a spec.
            None if mesh => Fields::none(source.spot.clone()),
            None => {
                self.reader.fault(&source.spot, format!("{source} has no spec"), "add one");
                return;
            }
        };
        match source.kind.as_str() {
            "NetworkPolicy" => network::read(self.reader, source, spec, self.all),
            "AdminNetworkPolicy" => tiers::read(self.reader, source, Form::Admin, spec, self.all),
            "BaselineAdminNetworkPolicy" => {
                tiers::read(self.reader, source, Form::Baseline, spec, self.all);
            }
            "ClusterNetworkPolicy" => tiers::read(self.reader, source, Form::Cluster, spec, self.all),
            _ => {
                let mut mesh = mesh::Mesh { estate: self.estate, root: &self.wish.root, findings: self.findings };
                mesh::read(self.reader, source, spec, &mut mesh, dry, self.all);
            }
        }
    }
}

#[cfg(test)]
mod tests;
