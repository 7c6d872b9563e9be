//! What a ruleset is compiled from: whom there is and where, and what is allowed to whom, with what was commanded above both.

use super::super::clock;
use super::super::kernel::Kernel;
use super::super::overrides::Overrides;
use super::Engine;
use crate::inventory::Inventory;
use crate::policy::{self, Compiled, Former, Lowered, PolicySet};
use crate::sources::assemble::{Assembled, assemble};
use bulkhead_common::Class;
use bulkhead_common::slots::{Baseline, Binding, Sides};
use std::sync::Arc;

/// What the host's own processes below an attach point may do: no policy selects them, so everything.
pub(crate) const HOST: Baseline = Baseline {
    sides: Sides::ALL,
    sockets_now: Baseline::RAW | Baseline::SCTP | Baseline::MPTCP,
    sockets_audited: Baseline::RAW | Baseline::SCTP | Baseline::MPTCP,
};

/// What a ruleset is compiled from.
pub(super) struct Draft {
    pub(super) assembled: Assembled,
    pub(super) set: PolicySet,
}

impl<K: Kernel> Engine<K> {
    /// What a ruleset is compiled from, with what was commanded above it.
    pub(super) fn draft(&mut self, policies: PolicySet, overrides: &Overrides) -> anyhow::Result<Draft> {
        Ok(Draft { assembled: self.assembled(overrides)?, set: self.set(policies, overrides) })
    }

    /// Whom there is, and where.
    fn assembled(&mut self, overrides: &Overrides) -> anyhow::Result<Assembled> {
        let name = self.file.display().to_string();
        let mut assembled = assemble(&name, &self.config, &self.scan, &self.host, &mut self.roster)?;
        for c in assembled.inventory.cgroups.iter_mut().filter(|c| self.node_netns.knows_node(c.id)) {
            c.flags |= Binding::KNOWS_NODE;
        }
        overrides.raise(&mut assembled.inventory);
        Ok(assembled)
    }

    /// What is allowed to whom.
    pub(super) fn set(&self, policies: PolicySet, overrides: &Overrides) -> PolicySet {
        let mut lowered = self.cluster.as_ref().map(|c| c.lowered().clone()).unwrap_or_default();
        for namespace in self.meshes.ambient(&self.config, &self.scan) {
            lowered.insert(namespace.to_owned(), Lowered::Observe);
        }
        overrides.over(policy::expiry::at(policies, clock::now()), lowered)
    }

    /// The inventory as it is now: the last one, as long as nothing that it is made from has changed. New numbers in it are
    /// being written down until [`Self::numbers_are_saved`].
    pub(super) fn inventory_now(&mut self, overrides: &Overrides) -> anyhow::Result<Arc<Inventory>> {
        if self.drafted.as_ref() == Some(overrides) {
            debug_assert!(self.assembled(overrides).is_ok_and(|a| a.inventory == *self.inventory));
            return Ok(Arc::clone(&self.inventory));
        }
        let Assembled { inventory, instances, warnings } = self.assembled(overrides)?;
        (self.instances, self.assembly_warnings) = (instances, warnings);
        let extent = self.roster.extent();
        if self.saved != Some(extent) {
            let (roster, state) = (self.roster.clone(), self.state.clone());
            self.saving.begin(move || state.save_roster(&roster))?;
            self.saved = Some(extent);
        }
        Ok(shared(&self.inventory, inventory))
    }

    /// Waits until they are.
    pub(super) fn numbers_are_saved(&mut self) -> anyhow::Result<()> {
        let done = self.saving.finish();
        if done.is_err() {
            self.saved = None;
        }
        done
    }

    pub(super) fn compile(&mut self, set: &PolicySet, inventory: &Inventory) -> Compiled {
        let former = self.image.as_ref().filter(|_| self.compiled).map(|image| Former {
            set: &self.in_force,
            inventory: &self.inventory,
            image,
            warnings: &self.compile_warnings,
        });
        let mut compiled = policy::compile_after(former, set, inventory, &mut self.rules);
        // Their cgroups are in the inventory, so it tells whether there are any.
        if inventory.cgroups.iter().any(|c| c.peer == Class::Host.id()) {
            compiled.image.baselines.insert(Class::Host.id(), HOST);
        } else {
            compiled.image.baselines.remove(&Class::Host.id());
        }
        compiled
    }
}

/// The former value if the new one is no other: whoever holds it needn't hold both.
pub(super) fn shared<T: PartialEq>(former: &Arc<T>, new: T) -> Arc<T> {
    if **former == new { Arc::clone(former) } else { Arc::new(new) }
}
