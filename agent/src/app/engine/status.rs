//! What the engine tells of itself.

use super::super::kernel::Kernel;
use super::super::overrides::Overrides;
use super::super::snapshot::Snapshot;
use super::Engine;
use crate::config::Workload;
use crate::flows;
use crate::identity::Identity;
use crate::inventory::IdentityFacts;
use crate::policy;
use crate::serve::api::{Finding, ObjectStatus, Overridden, Override, PolicyStatus, Status, WorkloadStatus};
use bulkhead_common::PeerId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

impl<K: Kernel> Engine<K> {
    /// The state of affairs, for everybody else.
    pub fn snapshot(&self) -> Snapshot {
        let overrides = self.in_force.overrides();
        let known: HashMap<&Identity, (PeerId, &IdentityFacts)> =
            self.inventory.identities.iter().map(|(n, facts)| (&facts.identity, (*n, facts))).collect();
        let facts_of = |w: &Workload| known.get(&w.identity).map(|(_, facts)| *facts);
        let number_of = |w: &Workload| known.get(&w.identity).map(|(n, _)| *n);
        let mut cgroups: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for i in &self.instances {
            cgroups.entry(i.workload).or_default().push(i.path.clone());
        }
        let workloads = self.config.workloads.iter().enumerate().map(|(index, w)| WorkloadStatus {
            name: w.name.clone(),
            identity: flows::PeerName { id: w.identity.to_string(), namespace: w.identity.namespace.clone() },
            posture: facts_of(w).map_or(w.posture, |f| f.posture),
            revoked: overrides.revokes(&w.identity).is_some(),
            break_glass: overrides.breaks(&w.identity),
            lowered: overrides.lowers(&w.identity),
            outside: number_of(w).map_or(0, |n| self.kernel.outside_share(n)),
            cgroups: cgroups.remove(&index).unwrap_or_default(),
        });
        let expiring = policy::expiry::findings(&self.policies.set, super::super::clock::now());
        let findings = self
            .config_faults
            .iter()
            .chain(&self.policies.findings)
            .chain(&self.assembly_warnings)
            .chain(&expiring)
            .map(|d| Finding { file: d.file.to_string(), error: d.is_error(), text: d.to_string() })
            .chain(self.compile_warnings.iter().map(|text| Finding {
                file: String::new(),
                error: false,
                text: text.clone(),
            }));
        let refused: BTreeSet<&str> =
            self.policies.findings.iter().filter(|d| d.is_error()).map(|d| &*d.file).collect();
        let objects = self.cluster.iter().flat_map(super::Cluster::revisions).map(|(name, revision)| ObjectStatus {
            name: name.clone(),
            uid: revision.uid.clone(),
            generation: revision.generation,
            in_force: self.compiled && !refused.contains(name.as_str()),
        });
        let named = Named::of(&self.config.workloads);
        let policies = self.in_force.iter().map(|p| PolicyStatus {
            name: p.name.to_string(),
            file: p.file.to_string(),
            mode: p.mode.as_str().to_owned(),
            selects: named.selected(p).into_iter().map(str::to_owned).collect(),
        });
        let mut faults = self.source_faults.clone();
        faults.extend(self.kernel_faults.iter().chain(&self.cuts.faults).cloned());
        faults.extend(self.accounts.faults());
        faults.extend(self.cluster.iter().flat_map(super::Cluster::faults));
        let maps = self.kernel.fill().unwrap_or_else(|e| {
            faults.push(format!("the tables' fill can't be read: {e:#}"));
            Vec::new()
        });
        Snapshot {
            status: Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                instance: self.config.instance.clone(),
                pid: std::process::id(),
                kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
                ready: self.ready,
                epoch: self.last_commit.map_or(0, |c| c.epoch),
                generation: format!("{:016x}", self.kernel.generation()),
                commits: self.commits,
                last_commit: self.last_commit,
                lost_events: self.edges.lost_events(),
                without_address: self.edges.without_address(),
                lost_answers: self.edges.lost_answers(),
                programs: self.kernel.programs(),
                features: self.kernel.features(),
                maps,
                workloads: workloads.collect(),
                policies: policies.collect(),
                objects: objects.collect(),
                findings: findings.collect(),
                faults,
                not_contained: self.not_contained.clone(),
                overrides: overridden(&self.overrides, overrides),
                drift: self.drift(),
                open_since_boot_ms: self.open_since_boot,
                cut_sockets: self.cuts.sockets,
                last_cut: self.cuts.last.clone(),
                decision_log: self.accounts.log.borrow().clone(),
            },
            on_cluster: self.cluster.is_some(),
            generation: self.kernel.generation(),
            history: self.accounts.history.borrow().clone(),
            surface: *self.accounts.surface.borrow(),
            inventory: Arc::clone(&self.inventory),
            policies: Arc::clone(&self.in_force),
            names: Arc::clone(&self.names),
            edges: self.edges.clone(),
            outside: Arc::clone(&self.outside),
            naming: self.accounts.naming.clone(),
            series: self.series.clone(),
        }
    }
}

/// The workloads of the configuration by their IDs, in order.
struct Named<'a> {
    workloads: &'a [Workload],
    by_id: Vec<(&'a str, usize)>,
}

impl<'a> Named<'a> {
    fn of(workloads: &'a [Workload]) -> Self {
        let ids = workloads.iter().enumerate().flat_map(|(n, w)| w.identity.ids.iter().map(move |id| (id.as_str(), n)));
        let mut by_id: Vec<_> = ids.collect();
        by_id.sort_unstable();
        Self { workloads, by_id }
    }

    /// The names of those that a policy selects, in the configuration's order: as `policy::reference::selects` says.
    fn selected(&self, policy: &policy::Policy) -> Vec<&'a str> {
        let mut all = BTreeSet::new();
        for pattern in &policy.selector {
            let start = self.by_id.partition_point(|(id, _)| *id < pattern.literal_prefix());
            let near = self.by_id[start..].iter().take_while(|(id, _)| id.starts_with(pattern.literal_prefix()));
            all.extend(near.filter(|(id, _)| pattern.matches_text(id)).map(|(_, n)| *n));
        }
        let meant = all.into_iter().filter_map(|n| self.workloads.get(n));
        let here = |w: &&Workload| policy.namespace().is_none_or(|ns| ns == w.identity.namespace);
        meant.filter(here).map(|w| w.name.as_str()).collect()
    }
}

/// What was commanded, and what is in force of it.
fn overridden(overrides: &Overrides, in_force: &policy::Overrides) -> Overridden {
    let Overrides { revoked, break_glass, enforced } = overrides;
    let revoked = revoked.iter().map(|(id, r)| Override {
        what: id.to_string(),
        since: r.since,
        until: None,
        reason: r.reason.clone(),
    });
    let break_glass = break_glass.iter().map(|(scope, b)| Override {
        what: scope.to_string(),
        since: b.deadline.set,
        until: Some(b.deadline.until),
        reason: b.reason.clone(),
    });
    let enforced = enforced.iter().map(|(target, e)| Override {
        what: target.to_string(),
        since: e.since,
        until: e.confirm_by.as_ref().map(|d| d.until),
        reason: String::new(),
    });
    Overridden {
        revoked: revoked.collect(),
        break_glass: break_glass.collect(),
        enforced: enforced.collect(),
        lowered: in_force.lowered.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::reference::{End, selects};

    /// The quick way and the plain one say the same.
    #[test]
    fn whom_a_policy_selects_is_what_the_reference_says() {
        let config = crate::config::parse(
            "f",
            "workloads:\n- {name: a, id: spiffe://t/ns/s/sa/a, namespace: s, cgroup: /x/a}\n\
             - {name: b, id: spiffe://t/ns/s/sa/b, namespace: s, cgroup: /x/b}\n\
             - {name: other, id: spiffe://t/ns/o/sa/a, namespace: o, cgroup: /x/c}\n\
             - {name: plain, id: spiffe://t/x, cgroup: /x/d}\n",
        )
        .unwrap_or_else(|e| panic!("{}", e[0]));
        let named = Named::of(&config.workloads);
        for (namespace, patterns) in [
            ("s", "'spiffe://t/ns/s/sa/a'"),
            ("s", "'spiffe://t/ns/*/sa/a'"),
            ("s", "'spiffe://**'"),
            ("o", "'spiffe://t/ns/s/sa/a', 'spiffe://t/ns/o/**'"),
            ("s", "'spiffe://t/none'"),
        ] {
            let text = format!(
                "apiVersion: bulkhead.dev/v1alpha1\nkind: SegmentationPolicy\n\
                 metadata: {{name: p, namespace: {namespace}}}\n\
                 spec: {{mode: audit, selector: {{ids: [{patterns}]}}, ingress: {{rules: []}}}}\n"
            );
            let policy = policy::parse("p", &text).unwrap_or_else(|e| panic!("{}", e[0])).remove(0);
            let plain: Vec<&str> = config
                .workloads
                .iter()
                .filter(|w| {
                    let (identity, ports) = (w.identity.clone(), w.ports.clone());
                    selects(&policy, &End::Workload(&IdentityFacts { identity, posture: w.posture, ports }))
                })
                .map(|w| w.name.as_str())
                .collect();
            assert_eq!(named.selected(&policy), plain, "{namespace} {patterns}");
        }
    }
}
