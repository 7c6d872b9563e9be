//! What the engine tells of itself.

use super::super::kernel::Kernel;
use super::super::overrides::Overrides;
use super::super::snapshot::Snapshot;
use super::Engine;
use crate::config::Workload;
use crate::flows;
use crate::inventory::IdentityFacts;
use crate::policy;
use crate::serve::api::{Finding, ObjectStatus, Overridden, Override, PolicyStatus, Status, WorkloadStatus};
use std::collections::BTreeSet;
use std::sync::Arc;

impl<K: Kernel> Engine<K> {
    /// The state of affairs, for everybody else.
    pub fn snapshot(&self) -> Snapshot {
        let overrides = self.in_force.overrides();
        let identities = &self.inventory.identities;
        let facts_of = |w: &Workload| identities.values().find(|f| f.identity == w.identity);
        let number_of = |w: &Workload| identities.iter().find(|(_, f)| f.identity == w.identity).map(|(n, _)| *n);
        let workloads = self.config.workloads.iter().enumerate().map(|(index, w)| WorkloadStatus {
            name: w.name.clone(),
            identity: flows::PeerName { id: w.identity.to_string(), namespace: w.identity.namespace.clone() },
            posture: facts_of(w).map_or(w.posture, |f| f.posture),
            revoked: overrides.revokes(&w.identity).is_some(),
            break_glass: overrides.opens(&w.identity),
            outside: number_of(w).map_or(0, |n| self.kernel.outside_share(n)),
            cgroups: self.instances.iter().filter(|i| i.workload == index).map(|i| i.path.clone()).collect(),
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
        let policies = self.in_force.iter().map(|p| PolicyStatus {
            name: p.name.to_string(),
            file: p.file.to_string(),
            mode: p.mode.as_str().to_owned(),
            selects: self.config.workloads.iter().filter(|w| selects(p, w)).map(|w| w.name.clone()).collect(),
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
                overrides: overridden(&self.overrides),
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

/// Whether a policy selects a workload of the configuration.
fn selects(policy: &policy::Policy, w: &Workload) -> bool {
    let facts = IdentityFacts { identity: w.identity.clone(), posture: w.posture, ports: w.ports.clone() };
    policy::reference::selects(policy, &policy::reference::End::Workload(&facts))
}

fn overridden(overrides: &Overrides) -> Overridden {
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
    Overridden { revoked: revoked.collect(), break_glass: break_glass.collect(), enforced: enforced.collect() }
}
