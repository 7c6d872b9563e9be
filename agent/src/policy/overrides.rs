//! What is decided above all policies: identities that were withdrawn, enforcement that was turned off for a while, and
//! namespaces that were lowered.
//!
//! An ID that was revoked is denied both ways in both verdicts, whatever its rules say, under break-glass too. Where
//! break-glass holds, the verdict in force is what it would be if nothing enforced: denies don't count, and what no rule
//! speaks of is allowed. The audited verdict stays as it is, so what would be denied still shows. A namespace that is
//! lowered to audit is the same as one under break-glass, without an end; one that is lowered to observe has its audited
//! verdict treated like the one in force, so nothing is told of it either.

use super::model::{Kind, Mode, PolicyName};
use super::rules::{RuleRef, Section};
use crate::identity::{BadSpiffeId, Identity, SpiffeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What is above the policies now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// IDs that were withdrawn.
    pub revoked: BTreeSet<SpiffeId>,
    /// Where nothing is enforced for a while.
    pub open: BTreeSet<Scope>,
    /// Namespaces where nothing is enforced, until that is taken back: for every connection with an end in one.
    pub lowered: BTreeMap<String, Lowered>,
}

/// How far a namespace is lowered. The order is that of postures.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lowered {
    /// Neither verdict denies anything.
    Observe,
    /// Nothing is enforced; the audited verdict stays.
    Audit,
}

impl Lowered {
    /// The word in the annotation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Audit => "audit",
        }
    }

    /// The one of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Observe, Self::Audit].into_iter().find(|l| l.as_str() == name)
    }
}

/// Where break-glass holds: for every connection with an end in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// Everywhere.
    Node,
    /// The workloads of a namespace; empty: those of none.
    Namespace(String),
    /// The workloads that have an ID.
    Workload(SpiffeId),
}

/// A text that names no scope.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadScope {
    /// None of the forms.
    #[error("`{0}` isn't a scope: write `workload=spiffe://…`, `namespace=NAME` or `node`")]
    Form(String),
    /// Not an ID.
    #[error(transparent)]
    Id(#[from] BadSpiffeId),
}

impl FromStr for Scope {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            None if text == "node" => Ok(Self::Node),
            Some(("namespace", name)) => Ok(Self::Namespace(name.to_owned())),
            Some(("workload", id)) => Ok(Self::Workload(id.parse()?)),
            _ => Err(BadScope::Form(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = BadScope;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Namespace(name) => write!(f, "namespace={name}"),
            Self::Workload(id) => write!(f, "workload={id}"),
        }
    }
}

impl Scope {
    /// Whether it holds for this identity.
    pub fn holds(&self, identity: &Identity) -> bool {
        match self {
            Self::Node => true,
            Self::Namespace(name) => identity.namespace == *name,
            Self::Workload(id) => identity.ids.contains(id),
        }
    }
}

impl Overrides {
    /// Whether nothing is enforced anywhere.
    pub fn open_everywhere(&self) -> bool {
        self.open.contains(&Scope::Node)
    }

    /// Whether nothing is enforced for this identity by break-glass.
    pub fn breaks(&self, identity: &Identity) -> bool {
        self.open.iter().any(|scope| scope.holds(identity))
    }

    /// How far this identity's namespace is lowered, if it is.
    pub fn lowers(&self, identity: &Identity) -> Option<Lowered> {
        self.lowered.get(&identity.namespace).copied()
    }

    /// Whether the verdict in force, or the audited one, denies nothing to this identity but what was revoked.
    pub fn opens(&self, identity: &Identity, verdict: Mode) -> bool {
        let lowered = self.lowers(identity);
        match verdict {
            Mode::Enforce => lowered.is_some() || self.breaks(identity),
            Mode::Audit => lowered == Some(Lowered::Observe),
        }
    }

    /// The ID by which this identity was revoked, if it was.
    pub fn revokes(&self, identity: &Identity) -> Option<&SpiffeId> {
        identity.ids.iter().find_map(|id| self.revoked.get(id))
    }

    /// What stands as the rule where a revoked ID is denied.
    pub(super) fn rule(id: &SpiffeId) -> RuleRef {
        let kind = Kind::ClusterSegmentationPolicy;
        let policy = PolicyName { kind, namespace: String::new(), name: "revoked".to_owned() };
        let text = Arc::from(format!("{id} is revoked"));
        let file = "bulkhead revoke".into();
        RuleRef { policy: Arc::new(policy), section: Section::Revoked, index: 0, text, file, line: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        for text in ["node", "namespace=payments", "namespace=", "workload=spiffe://t/a"] {
            assert_eq!(text.parse::<Scope>().expect(text).to_string(), text);
        }
        for (text, why) in [("everything", "namespace=NAME"), ("workload=a", "spiffe://"), ("node=a", "isn't a scope")]
        {
            let e = text.parse::<Scope>().expect_err(text).to_string();
            assert!(e.contains(why), "{e}");
        }
    }
}
