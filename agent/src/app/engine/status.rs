//! What the engine tells of itself.

use super::super::kernel::Kernel;
use super::super::overrides::Overrides;
use super::super::snapshot::Snapshot;
use super::Engine;
use crate::config::Workload;
use crate::flows::PeerName;
use crate::identity::Identity;
use crate::inventory::IdentityFacts;
use crate::policy;
use crate::serve::api::{Finding, ObjectFault, ObjectStatus, Overridden, Override, Status, WorkloadStatus};
use bulkhead_common::PeerId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

impl<K: Kernel> Engine<K> {
    /// The state of affairs, for everybody else.
    pub fn snapshot(&mut self) -> Snapshot {
        self.selection.follow(&self.in_force, &self.inventory, &self.config.workloads);
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
            identity: PeerName { id: w.identity.to_string(), namespace: w.identity.namespace.clone() },
            posture: facts_of(w).map_or(w.posture, |f| f.posture),
            revoked: overrides.revokes(&w.identity).is_some(),
            break_glass: overrides.breaks(&w.identity),
            lowered: overrides.lowers(&w.identity),
            outside: number_of(w).map_or(0, |n| self.kernel.outside_share(n)),
            owner: w.owner.clone(),
            cgroups: cgroups.remove(&index).unwrap_or_default(),
        });
        let owners = owners(&self.config.workloads);
        let expiring = policy::expiry::findings(&self.policies.set, super::super::clock::now());
        let findings = self
            .config_faults
            .iter()
            .chain(&self.policies.findings)
            .chain(&self.assembly_warnings)
            .chain(&expiring)
            .map(|d| Finding { file: d.file.to_string(), error: d.is_error(), text: d.to_string() })
            .chain(self.compile_warnings.iter().map(ToString::to_string).chain(shared(&owners)).map(|text| Finding {
                file: String::new(),
                error: false,
                text,
            }))
            .chain(self.cluster.iter().flat_map(|_| self.selection.nobody().iter().cloned()));
        let refused: BTreeSet<&str> =
            self.policies.findings.iter().filter(|d| d.is_error()).map(|d| &*d.file).collect();
        let objects = self.cluster.iter().flat_map(super::Cluster::revisions).map(|(name, revision)| ObjectStatus {
            name: name.to_string(),
            uid: revision.uid.to_string(),
            generation: revision.generation,
            in_force: self.compiled && !refused.contains(&**name),
        });
        let mut faults = self.source_faults.clone();
        faults.extend(self.kernel_faults.iter().chain(&self.cuts.faults).cloned());
        faults.extend(self.accounts.faults());
        let untold_nodes = self.untold();
        faults.extend(self.cover.fault(&untold_nodes));
        let object_faults: Vec<ObjectFault> = self.cluster.iter().flat_map(super::Cluster::faults).collect();
        faults.extend(object_faults.iter().map(|f| f.text.clone()));
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
                sockets_without_place: self.edges.without_place(),
                programs: self.kernel.programs(),
                features: self.kernel.features(),
                maps,
                workloads: workloads.collect(),
                policies: Arc::clone(self.selection.policies()),
                objects: objects.collect(),
                findings: findings.collect(),
                untold_nodes,
                faults,
                object_faults,
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
            owners,
            edges: self.edges.clone(),
            outside: Arc::clone(&self.outside),
            naming: self.accounts.naming.clone(),
            series: self.series.clone(),
        }
    }
}

/// What runs the workloads of each identity, where that is known.
fn owners(workloads: &[Workload]) -> BTreeMap<PeerName, BTreeSet<String>> {
    let mut all: BTreeMap<PeerName, BTreeSet<String>> = BTreeMap::new();
    for w in workloads.iter().filter(|w| !w.owner.is_empty()) {
        let name = PeerName { id: w.identity.to_string(), namespace: w.identity.namespace.clone() };
        all.entry(name).or_default().insert(w.owner.clone());
    }
    all
}

/// Identities that several share, a line each.
fn shared(owners: &BTreeMap<PeerName, BTreeSet<String>>) -> impl Iterator<Item = String> {
    owners.iter().filter_map(|(name, owners)| crate::history::shared_by(name, owners))
}

/// Identities by their IDs, in order.
pub(super) struct Ids<'a> {
    identities: Vec<&'a Identity>,
    by_id: Vec<(&'a str, usize)>,
}

impl<'a> Ids<'a> {
    pub(super) fn of(identities: impl Iterator<Item = &'a Identity>) -> Self {
        let identities: Vec<&Identity> = identities.collect();
        let ids = identities.iter().enumerate().flat_map(|(n, i)| i.ids.iter().map(move |id| (id.as_str(), n)));
        let mut by_id: Vec<_> = ids.collect();
        by_id.sort_unstable();
        Self { identities, by_id }
    }

    /// The places of those that a policy selects, as `policy::reference::selects` says.
    pub(super) fn selected(&self, policy: &policy::Policy) -> BTreeSet<usize> {
        let mut all = BTreeSet::new();
        for pattern in &policy.selector {
            let start = self.by_id.partition_point(|(id, _)| *id < pattern.literal_prefix());
            let near = self.by_id[start..].iter().take_while(|(id, _)| id.starts_with(pattern.literal_prefix()));
            all.extend(near.filter(|(id, _)| pattern.matches_text(id)).map(|(_, n)| *n));
        }
        let here = |n: &usize| {
            let of = self.identities.get(*n);
            of.is_some_and(|i| policy.namespace().is_none_or(|ns| ns == i.namespace))
        };
        all.retain(here);
        all
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
        let named = Ids::of(config.workloads.iter().map(|w| &w.identity));
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
            let plain: BTreeSet<usize> = (0..)
                .zip(&config.workloads)
                .filter(|(_, w)| {
                    let (identity, ports) = (w.identity.clone(), w.ports.clone());
                    selects(&policy, &End::Workload(&IdentityFacts { identity, posture: w.posture, ports }))
                })
                .map(|(n, _)| n)
                .collect();
            assert_eq!(named.selected(&policy), plain, "{namespace} {patterns}");
        }
    }
}
