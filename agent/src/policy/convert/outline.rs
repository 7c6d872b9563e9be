//! What can be read of a document that isn't taken: its name, for a message, and whom it selects, so that those stay
//! isolated instead of open.

use super::Checker;
use crate::policy::diagnostic::At;
use crate::policy::model::{Kind, Mode, Policy, PolicyName};
use std::sync::Arc;

/// As much of a faulty document as its name needs.
#[derive(serde::Deserialize)]
pub struct NameOutline {
    metadata: OutlinedMetadata,
}

/// As much of a faulty document as its stand-in needs.
#[derive(serde::Deserialize)]
pub struct Outline {
    metadata: OutlinedMetadata,
    spec: OutlinedSpec,
}

#[derive(serde::Deserialize)]
struct OutlinedMetadata {
    name: At<String>,
    #[serde(default)]
    namespace: Option<At<String>>,
}

#[derive(serde::Deserialize)]
struct OutlinedSpec {
    mode: Mode,
    selector: OutlinedSelector,
}

#[derive(serde::Deserialize)]
struct OutlinedSelector {
    ids: At<Vec<At<String>>>,
}

/// The name of a document that isn't taken, if at least that can be read.
pub fn outlined_name(kind: Kind, outline: NameOutline) -> Option<Arc<PolicyName>> {
    let mut c = Checker::new(&"".into());
    let name = c.named(kind, outline.metadata.name, outline.metadata.namespace).value;
    c.finish(name).ok()
}

/// What stands in for a document that isn't taken: it selects the same workloads and allows them nothing.
pub fn isolated(file: &Arc<str>, kind: Kind, outline: Outline) -> Option<Policy> {
    let Outline { metadata, spec: OutlinedSpec { mode, selector: OutlinedSelector { ids } } } = outline;
    let mut c = Checker::new(file);
    let policy = Policy {
        name: c.named(kind, metadata.name, metadata.namespace),
        file: Arc::clone(file),
        mode,
        description: Some("stands in for a document that isn't taken; allows nothing".to_owned()),
        selector: c.patterns(ids),
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
        edges: Vec::new(),
        denies: Vec::new(),
        sockets: 0,
        expires: None,
    };
    c.finish(policy).ok()
}
