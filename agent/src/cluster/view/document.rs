//! A policy object in the shape of a file. Pure.

use kube::core::DynamicObject;
use serde_json::json;
use std::sync::Arc;

/// Which form of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Revision {
    /// Which object of that name.
    pub uid: Arc<str>,
    /// Which form of it.
    pub generation: i64,
}

/// A policy object as a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Its kind, namespace if it has one, and name, with slashes between them: the file's name.
    pub title: Arc<str>,
    /// What it says.
    pub text: Arc<str>,
    /// Which form that is.
    pub revision: Revision,
}

impl Document {
    /// The object's; `None` if it has no name or kind, which the API server rules out.
    pub fn of(object: &DynamicObject) -> Option<Self> {
        let (types, meta) = (object.types.as_ref()?, &object.metadata);
        let name = meta.name.as_ref()?;
        let mut metadata = json!({"name": name});
        let title = match &meta.namespace {
            Some(namespace) => {
                metadata["namespace"] = json!(namespace);
                format!("{}/{namespace}/{name}", types.kind)
            }
            None => format!("{}/{name}", types.kind),
        };
        let mut text = json!({"apiVersion": types.api_version, "kind": types.kind, "metadata": metadata});
        if let Some(spec) = object.data.get("spec") {
            text["spec"] = spec.clone();
        }
        let revision = Revision {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            generation: meta.generation.unwrap_or_default(),
        };
        Some(Self { title: title.into(), text: text.to_string().into(), revision })
    }
}
