//! Bulkhead's policies as NetworkPolicies or as Istio's AuthorizationPolicies.
//!
//! What is written never allows a connection that the policies deny, as far as the other side can say it at all: it has no
//! denies ([`network`]) or judges one end only ([`mesh`]). Each thing that can't be said is a [`Finding`] with the side on
//! which it errs.
//!
//! | module | what it is |
//! |---|---|
//! | [`targets`] | patterns as namespaces and labels |
//! | [`network`] | NetworkPolicies |
//! | [`mesh`] | AuthorizationPolicies |
//!
//! Pure.

mod mesh;
mod network;
mod targets;

use crate::import::{Errs, Estate, File, Finding};
use crate::policy::diagnostic::At;
use crate::policy::{Mode, Policy, PolicySet};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use targets::Targets;

/// As what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// networking.k8s.io/v1
    NetworkPolicy,
    /// security.istio.io/v1
    AuthorizationPolicy,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Exported {
    /// The objects.
    pub files: Vec<File>,
    /// What can't be said there.
    pub findings: Vec<Finding>,
    /// How many objects were written.
    pub objects: usize,
}

/// Exports the policies. `root` is the mesh's root namespace.
pub fn export(set: &PolicySet, estate: &Estate, form: Form, root: &str) -> Exported {
    let mut out = Out { estate, root, findings: BTreeSet::new(), objects: Vec::new(), names: BTreeSet::new() };
    for policy in set.iter() {
        out.common(policy);
        match form {
            Form::NetworkPolicy => out.network(policy),
            Form::AuthorizationPolicy => out.mesh(policy),
        }
    }
    let objects = out.objects.len();
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for (namespace, object) in out.objects {
        let text = files.entry(namespace).or_insert_with(|| HEAD.to_owned());
        // Plain data: there is nothing in it that YAML couldn't say.
        text.push_str(&format!("---\n{}", serde_saphyr::to_string(&object).unwrap_or_default()));
    }
    let files = files.into_iter().map(|(namespace, text)| File { file: format!("{namespace}.yaml"), text });
    Exported { files: files.collect(), findings: out.findings.into_iter().collect(), objects }
}

const HEAD: &str = "# Written by `bulkhead policy export`: labels and addresses stand for who there was then.\n";

/// What is being written.
struct Out<'a> {
    estate: &'a Estate,
    root: &'a str,
    findings: BTreeSet<Finding>,
    /// With their namespaces.
    objects: Vec<(String, Value)>,
    names: BTreeSet<(String, String)>,
}

impl Out<'_> {
    /// Something of a policy that can't be said as it is.
    fn find<T>(
        &mut self,
        policy: &Policy,
        at: &At<T>,
        field: impl Into<String>,
        errs: Errs,
        reason: impl Into<String>,
    ) {
        self.findings.insert(Finding {
            file: Arc::clone(&policy.file),
            line: at.line,
            column: at.column,
            object: policy.name.to_string(),
            field: field.into(),
            errs,
            reason: reason.into(),
        });
    }

    /// What neither form can say.
    fn common(&mut self, policy: &Policy) {
        if policy.mode == Mode::Audit {
            let reason = "there is no audit there: what it would deny is denied as soon as this is applied";
            self.find(policy, &policy.name, "spec.mode", Errs::Stricter, reason);
        }
        if let Some(time) = &policy.expires {
            let reason = "nothing ends by itself there: take it away when the time has come";
            self.find(policy, time, "spec.expiresAt", Errs::Looser, reason);
        }
        if policy.sockets != 0 {
            let reason = "kinds of socket aren't judged there";
            self.find(policy, &policy.name, "spec.sockets", Errs::Looser, reason);
        }
        for (n, edge) in policy.edges.iter().enumerate() {
            let reason = "there are no rules for both ends at once, so nothing is allowed by it: write an ingress and an \
                          egress rule";
            self.find(policy, edge, format!("spec.edges[{n}]"), Errs::Stricter, reason);
        }
    }

    /// An object of this name, or of one that nobody has yet.
    fn push(&mut self, namespace: &str, name: &str, mut object: Value) {
        let numbered = (2..).map(|n| format!("{name}-{n}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered);
        let free = |n: &String| self.names.insert((namespace.to_owned(), n.clone()));
        let name = names.find(free).unwrap_or_else(|| name.to_owned());
        object["metadata"] = serde_json::json!({"name": name, "namespace": namespace});
        self.objects.push((namespace.to_owned(), object));
    }

    /// Those whom the policy selects, with findings about those who can't be told.
    fn selected(&mut self, policy: &Policy) -> Targets {
        let patterns: Vec<_> = policy.selector.iter().map(|p| p.value.clone()).collect();
        let targets = targets::of(self.estate, &patterns, policy.namespace());
        for (id, why) in &targets.lost {
            let reason = format!("{id}: {why}; nobody isolates it there");
            self.find(policy, &policy.name, "spec.selector", Errs::Looser, reason);
        }
        targets
    }
}

#[cfg(test)]
mod tests;
