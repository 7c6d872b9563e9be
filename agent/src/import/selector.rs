//! Label selectors, as `metav1.LabelSelector` has them: all requirements must hold, and none is everybody.

use super::tree::{Reader, Value};
use std::collections::BTreeMap;

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// The label with a namespace's name, which the API server sets and keeps.
pub(super) const NAME: &str = "kubernetes.io/metadata.name";

/// A label selector.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Selector(Vec<(String, Is)>);

/// What a label must be.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Is {
    In(Vec<String>),
    /// Also where the label is missing.
    NotIn(Vec<String>),
    There,
    Missing,
}

impl Selector {
    /// Reads one.
    pub(super) fn read(reader: &mut Reader, value: Value) -> Self {
        let mut fields = reader.map(value);
        let mut all = Vec::new();
        if let Some(labels) = fields.take("matchLabels") {
            for (key, value) in reader.map(labels).rest() {
                if let Some(text) = reader.text(value) {
                    all.push((key, Is::In(vec![text])));
                }
            }
        }
        for item in fields.take("matchExpressions").map(|v| reader.list(v)).unwrap_or_default() {
            let mut one = reader.map(item);
            let spot = one.spot.clone();
            let key = one.take("key").and_then(|v| reader.text(v));
            let operator = one.take("operator").and_then(|v| reader.text(v));
            let values = one.take("values").map(|v| reader.texts(v)).unwrap_or_default();
            let values: Vec<String> = values.into_iter().map(|(_, text)| text).collect();
            reader.finish(one);
            let is = match (operator.as_deref(), values.is_empty()) {
                (Some("In"), false) => Is::In(values),
                (Some("NotIn"), false) => Is::NotIn(values),
                (Some("Exists"), true) => Is::There,
                (Some("DoesNotExist"), true) => Is::Missing,
                _ => {
                    let hint = "In and NotIn have values, Exists and DoesNotExist have none";
                    reader.fault(&spot, format!("`{}` is no requirement", spot.path), hint);
                    continue;
                }
            };
            match key {
                Some(key) => all.push((key, is)),
                None => reader.fault(&spot, format!("`{}` has no key", spot.path), "name the label in `key`"),
            }
        }
        reader.finish(fields);
        Self(all)
    }

    /// Labels that must have these values.
    pub(super) fn of(labels: Vec<(String, String)>) -> Self {
        Self(labels.into_iter().map(|(key, value)| (key, Is::In(vec![value]))).collect())
    }

    /// Whether it selects everybody.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, if it selects namespaces by nothing but their names.
    pub(super) fn names(&self) -> Option<Vec<String>> {
        match &self.0[..] {
            [(key, Is::In(names))] if key == NAME => Some(names.clone()),
            _ => None,
        }
    }

    /// Whether it selects what has these labels.
    pub(super) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, is)| match (is, labels.get(key)) {
            (Is::In(values), Some(value)) => values.contains(value),
            (Is::NotIn(values), Some(value)) => !values.contains(value),
            (Is::There, there) => there.is_some(),
            (Is::Missing, there) => there.is_none(),
            (Is::In(_), None) => false,
            (Is::NotIn(_), None) => true,
        })
    }
}
