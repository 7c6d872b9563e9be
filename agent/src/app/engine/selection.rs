//! Whom each policy selects, for people. It is worked out anew only where what it comes from has changed: a snapshot is
//! taken after every look, and most looks change neither.

use super::status::Ids;
use crate::cluster::builtin;
use crate::config::Workload;
use crate::identity::Identity;
use crate::inventory::Inventory;
use crate::policy::{Policy, PolicySet};
use crate::serve::api::{Finding, PolicyStatus};
use std::sync::Arc;

/// What was worked out last, and from what.
#[derive(Default)]
pub(super) struct Selection {
    set: Arc<PolicySet>,
    inventory: Arc<Inventory>,
    workloads: Vec<(String, Identity)>,
    policies: Arc<[PolicyStatus]>,
    nobody: Vec<Finding>,
}

impl Selection {
    /// Each policy with the workloads that it selects here.
    pub(super) fn policies(&self) -> &Arc<[PolicyStatus]> {
        &self.policies
    }

    /// A finding for each policy that selects nobody in the cluster.
    pub(super) fn nobody(&self) -> &[Finding] {
        &self.nobody
    }

    /// Brings it up to date.
    pub(super) fn follow(&mut self, set: &Arc<PolicySet>, inventory: &Arc<Inventory>, workloads: &[Workload]) {
        let same_set = Arc::ptr_eq(&self.set, set);
        let known = self.workloads.iter().map(|(name, identity)| (name, identity));
        if !same_set || !known.eq(workloads.iter().map(|w| (&w.name, &w.identity))) {
            self.policies = policies(set, workloads);
            self.workloads = workloads.iter().map(|w| (w.name.clone(), w.identity.clone())).collect();
        }
        let same_identities =
            Arc::ptr_eq(&self.inventory, inventory) || self.inventory.identities == inventory.identities;
        if !same_set || !same_identities {
            self.nobody = nobody(set, inventory);
        }
        (self.set, self.inventory) = (Arc::clone(set), Arc::clone(inventory));
    }
}

fn policies(set: &PolicySet, workloads: &[Workload]) -> Arc<[PolicyStatus]> {
    let named = Ids::of(workloads.iter().map(|w| &w.identity));
    let status = |p: &Policy| PolicyStatus {
        name: p.name.to_string(),
        file: p.file.to_string(),
        mode: p.mode.as_str().to_owned(),
        selects: named.selected(p).into_iter().filter_map(|n| Some(workloads.get(n)?.name.clone())).collect(),
    };
    set.iter().map(status).collect()
}

/// The policies that select nobody whom the cluster has now.
fn nobody(set: &PolicySet, inventory: &Inventory) -> Vec<Finding> {
    let named = Ids::of(inventory.identities.values().map(|f| &f.identity));
    let objects = set.iter().filter(|p| !p.selector.is_empty() && !p.file.starts_with(builtin::PREFIX));
    let nobody = objects.filter(|p| named.selected(p).is_empty());
    let finding = |p: &Policy| Finding {
        file: p.file.to_string(),
        error: false,
        text: format!("{} selects no pod that the cluster has now: it holds for those that come", *p.name),
    };
    nobody.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::inventory::IdentityFacts;
    use bulkhead_common::PeerId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn config(names: &[u8]) -> Config {
        let line = |n: &u8| format!("- {{name: w{n}, id: spiffe://t/{}, cgroup: /x/w{n}}}\n", n % 4);
        let lines: String = names.iter().map(line).collect();
        let text = if lines.is_empty() { String::new() } else { format!("workloads:\n{lines}") };
        crate::config::parse("f", &text).unwrap_or_else(|e| panic!("{}", e[0]))
    }

    fn set(names: &[u8]) -> Arc<PolicySet> {
        let policy = |n: &u8| {
            let text = format!(
                "apiVersion: bulkhead.dev/v1alpha1\nkind: SegmentationPolicy\nmetadata: {{name: p{n}}}\n\
                 spec: {{mode: audit, selector: {{ids: ['spiffe://t/{n}']}}, ingress: {{rules: []}}}}\n"
            );
            policy_of(&text)
        };
        Arc::new(names.iter().map(policy).collect())
    }

    fn policy_of(text: &str) -> Policy {
        Policy::clone(&crate::policy::parse("p", text).unwrap_or_else(|e| panic!("{}", e[0])).remove(0))
    }

    fn inventory(identities: &[u8]) -> Arc<Inventory> {
        let facts = |n: &u8| {
            let ids = [format!("spiffe://t/{n}").parse().expect("an ID")].into();
            let identity = Identity { namespace: String::new(), ids };
            let posture = crate::inventory::Posture::Audit;
            (PeerId(256 + u32::from(*n)), IdentityFacts { identity, posture, ports: BTreeMap::new() })
        };
        Arc::new(Inventory { identities: identities.iter().map(facts).collect(), ..Inventory::default() })
    }

    proptest! {
        /// Whatever changed and whatever didn't: what is told is what is worked out from nothing.
        #[test]
        fn what_was_worked_out_before_makes_no_difference(
            steps in prop::collection::vec((0..3u8, prop::collection::btree_set(0..6u8, 0..4)), 1..12),
        ) {
            let (mut all, mut selection) = ((set(&[]), inventory(&[]), config(&[])), Selection::default());
            for (what, numbers) in steps {
                let numbers: Vec<u8> = numbers.into_iter().collect();
                match what {
                    0 => all.0 = set(&numbers),
                    1 => all.1 = inventory(&numbers),
                    _ => all.2 = config(&numbers),
                }
                let mut anew = Selection::default();
                for selection in [&mut selection, &mut anew] {
                    selection.follow(&all.0, &all.1, &all.2.workloads);
                }
                prop_assert_eq!(selection.policies(), anew.policies());
                prop_assert_eq!(selection.nobody(), anew.nobody());
            }
        }
    }
}
