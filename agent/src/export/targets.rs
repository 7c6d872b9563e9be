//! Patterns over SPIFFE IDs as namespaces and labels: whole namespaces where the pattern takes all of one, else labels
//! that all pods of an identity have and no other pod of its namespace has.

use crate::identity::SpiffeId;
use crate::import::{Estate, Labels};
use crate::policy::IdPattern;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Labels that change with every rollout or pod.
const FLEETING: [&str; 6] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
];

/// Some pods of one namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Target {
    pub(super) namespace: String,
    /// Empty: all of them.
    pub(super) labels: Labels,
    /// Whose they are; empty for all.
    pub(super) id: Option<SpiffeId>,
}

impl Target {
    /// As the API has it.
    pub(super) fn labels(&self) -> Value {
        match self.labels.is_empty() {
            true => json!({}),
            false => {
                json!({"matchLabels": self.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>()})
            }
        }
    }

    /// A part of a name.
    pub(super) fn suffix(&self) -> String {
        let last =
            self.id.as_ref().and_then(|id| id.segments().last().map(str::to_ascii_lowercase)).unwrap_or_default();
        last.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect()
    }
}

/// What patterns stand for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Targets {
    /// Everybody in every namespace.
    pub(super) everybody: bool,
    pub(super) targets: Vec<Target>,
    /// Those that can't be told, with the reason.
    pub(super) lost: Vec<(String, String)>,
}

/// What these patterns stand for, in one namespace or in all.
pub(super) fn of(estate: &Estate, patterns: &[IdPattern], only: Option<&str>) -> Targets {
    let mut found = Targets::default();
    let covered = |glob: &Option<IdPattern>| glob.as_ref().is_some_and(|g| patterns.iter().any(|p| p.covers(g)));
    found.everybody = only.is_none() && covered(&estate.glob(None));
    let mut namespaces: BTreeSet<String> = estate.namespaces(|_| true).into_iter().collect();
    // A namespace may be named though nobody is in it yet.
    for pattern in patterns {
        let named = |n: &&str| {
            estate.glob(Some(n)).is_some_and(|g| pattern.covers(&g) && g.literal_prefix() == pattern.literal_prefix())
        };
        let segments = pattern.literal_prefix().trim_start_matches("spiffe://").split('/').skip(1);
        namespaces.extend(segments.filter(named).map(str::to_owned));
    }
    namespaces.extend(only.map(str::to_owned));
    let mut whole = BTreeSet::new();
    for namespace in namespaces.into_iter().filter(|n| only.is_none_or(|only| only == n)) {
        if covered(&estate.glob(Some(&namespace))) {
            found.targets.push(Target { namespace: namespace.clone(), labels: Labels::new(), id: None });
            whole.insert(namespace);
        }
    }
    let here = |namespace: &str| only.is_none_or(|only| only == namespace);
    let ids = estate
        .ids(|namespace, id| here(namespace) && !whole.contains(namespace) && patterns.iter().any(|p| p.matches(id)));
    for id in ids {
        match estate.apart(&id, &FLEETING) {
            Some((namespace, labels)) => found.targets.push(Target { namespace, labels, id: Some(id) }),
            None => {
                let why = "no labels tell its pods from the others of its namespace".to_owned();
                found.lost.push((id.to_string(), why));
            }
        }
    }
    for pattern in patterns.iter().filter(|p| p.is_exact()) {
        let known = estate.ids(|_, id| pattern.matches(id));
        if known.is_empty() {
            let why = match estate.is_given() {
                true => "it has no pods at present".to_owned(),
                false => "its pods aren't known: give --cluster or --pods".to_owned(),
            };
            found.lost.push((pattern.to_string(), why));
        }
    }
    found
}
