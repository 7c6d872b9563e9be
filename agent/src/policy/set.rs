//! All policies together: what is in force once files have been read, and what becomes of documents that weren't taken.

use super::diagnostic::{Diagnostic, Severity};
use super::model::{Policy, PolicyName};
use super::overrides::Overrides;
use super::parse::{Document, Rejected};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// The policies in force, in the order of their names. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicySet {
    policies: BTreeMap<Arc<PolicyName>, Arc<Policy>>,
    overrides: Overrides,
}

impl PolicySet {
    /// The policies, in the order in which they are looked at.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().map(|policy| &**policy)
    }

    /// The policy of that name.
    pub fn get(&self, name: &PolicyName) -> Option<&Policy> {
        self.policies.get(name).map(|policy| &**policy)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// What is decided above them.
    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// The same policies, those that it is about as the change leaves them; their names must stay.
    #[must_use]
    pub fn each(mut self, about: impl Fn(&Policy) -> bool, mut change: impl FnMut(&mut Policy)) -> Self {
        let meant = self.policies.values_mut().filter(|policy| about(policy));
        meant.for_each(|policy| change(Arc::make_mut(policy)));
        self
    }

    /// Those of the policies that are to stay.
    #[must_use]
    pub fn only(mut self, mut stays: impl FnMut(&Policy) -> bool) -> Self {
        self.policies.retain(|_, policy| stays(policy));
        self
    }

    /// The same policies with this above them.
    #[must_use]
    pub fn under(self, overrides: Overrides) -> Self {
        Self { overrides, ..self }
    }

    /// What is in force after these documents were read where `last` was in force before.
    ///
    /// A document that isn't taken keeps its last good form; if it has none, its stand-in isolates what it selects.
    /// Where not even its name can be read, every policy that its file gave before stays. Of two documents of one
    /// name, the form in force stays; if there is none, the first. The findings are returned beside the set.
    pub fn assemble(documents: impl IntoIterator<Item = Document>, last: &Self) -> (Self, Vec<Diagnostic>) {
        let mut findings = Vec::new();
        let mut rejected: Vec<Rejected> = Vec::new();
        let mut policies: BTreeMap<Arc<PolicyName>, Arc<Policy>> = BTreeMap::new();
        for document in documents {
            match document {
                Err(r) => rejected.push(r),
                Ok(policy) => match policies.entry(Arc::clone(&policy.name)) {
                    Entry::Vacant(place) => {
                        place.insert(policy);
                    }
                    Entry::Occupied(mut first) => {
                        let one = first.get();
                        let place = format!("{}:{}:{}", one.file, one.name.line, one.name.column);
                        let message = format!("{} is already defined at {place}", *policy.name);
                        let hint = "give one of the two another name; until then the form in force stays";
                        findings.push(policy.name.diagnose(&policy.file, Severity::Error, message, hint));
                        if let Some(good) = last.policies.get(&*policy.name) {
                            first.insert(Arc::clone(good));
                        }
                    }
                },
            }
        }
        for Rejected { file, name, isolated, diagnostics } in rejected {
            findings.extend(diagnostics);
            match name {
                None => {
                    for good in last.policies.values().filter(|p| p.file == file) {
                        policies.entry(Arc::clone(&good.name)).or_insert_with(|| Arc::clone(good));
                    }
                }
                Some(name) => {
                    if let Some(form) = last.policies.get(&name).cloned().or(isolated.map(|p| Arc::new(*p))) {
                        policies.entry(name).or_insert(form);
                    }
                }
            }
        }
        (Self { policies, overrides: Overrides::default() }, findings)
    }
}

impl FromIterator<Policy> for PolicySet {
    fn from_iter<I: IntoIterator<Item = Policy>>(policies: I) -> Self {
        let policies = policies.into_iter().map(|p| (Arc::clone(&p.name), Arc::new(p))).collect();
        Self { policies, overrides: Overrides::default() }
    }
}
