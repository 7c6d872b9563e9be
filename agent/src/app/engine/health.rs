//! What the engine looks after: the kernel side, the counters, whether what is in force is what was compiled, and for how
//! long nothing was.

use super::super::clock::Clock;
use super::super::kernel::Kernel;
use super::Engine;
use crate::flows;
use crate::revocation::Reach;
use crate::serve::api::DriftStatus;
use crate::sources::strays;
use bulkhead_common::Outcome;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// In how many looks the tables are read back once: about a minute.
const VERIFY: u32 = 30;
/// How long an era of the counts by address lasts at least.
const ERA: Duration = Duration::from_secs(600);
/// Where it is stored how long the machine was open.
const BOOT: &str = "boot.json";

/// Of one boot of the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Boot {
    /// Which.
    id: String,
    /// For how long nothing was attached since, milliseconds.
    open: u64,
}

impl<K: Kernel> Engine<K> {
    /// Looks the kernel side over, puts right what it can, and reads the counters.
    pub(super) fn check(&mut self) {
        let mut faults = Vec::new();
        match self.kernel.inspect() {
            Ok(found) => {
                for f in found {
                    if !K::is_repairable(&f) {
                        faults.push(f.to_string());
                        continue;
                    }
                    faults.push(match self.kernel.repair(&f) {
                        Ok(()) => format!("{f}; put right"),
                        Err(e) => format!("{f}; it couldn't be put right: {e:#}"),
                    });
                }
            }
            Err(e) => faults.push(format!("the kernel side can't be looked at: {e:#}")),
        }
        if let Err(e) = self.read_counters() {
            faults.push(format!("the counters can't be read: {e:#}"));
        }
        if let Err(e) = self.turn_era() {
            faults.push(format!("the counts by address can't be renewed: {e:#}"));
        }
        // What lasts is logged once; status and metrics have it for as long as it lasts.
        for new in faults.iter().filter(|f| !self.kernel_faults.contains(f)) {
            tracing::error!("{new}");
        }
        self.kernel_faults = faults;
        self.not_contained = self.strays.look(&self.hierarchy, &self.config, &self.scan, strays::AT_ONCE);
        self.not_contained.extend(self.meshes.told(&self.config, &self.scan));
        self.not_contained.extend(self.node_netns.blind(&self.config, &self.scan));
    }

    fn read_counters(&mut self) -> anyhow::Result<()> {
        self.edges.fold_traffic(self.kernel.traffic()?);
        let readings = self.kernel.edges()?;
        let names = Arc::clone(&self.names);
        let now = std::time::Instant::now();
        for (key, more) in self.edges.fold(&readings, super::super::clock::now()) {
            if Outcome::from_u8(key.outcome) == Some(Outcome::Allowed) {
                self.accounts.sightings.miss(&key, now);
            } else {
                self.series.add(&flows::edge(&key, |p| names.peer(p)), more);
            }
        }
        let outside = self.kernel.outside()?;
        Arc::make_mut(&mut self.outside).fold(outside, super::super::clock::now());
        self.edges.fold_totals(&self.kernel.totals()?);
        self.kernel.tick();
        Ok(())
    }

    /// Makes room for other addresses where there is none left, without losing a count: another era begins, and what was
    /// counted in the former goes once the history has it.
    fn turn_era(&mut self) -> anyhow::Result<()> {
        let without = self.edges.without_address();
        if self.outside.has_former() {
            if self.accounts.kept.era() == Some(self.outside.era()) {
                self.kernel.empty_former_era()?;
            }
            return Ok(());
        }
        let (since, before) = self.era;
        let crowded = self.outside.is_crowded() || without > before;
        if crowded && since.elapsed() >= ERA {
            self.kernel.begin_era()?;
            self.era = (Instant::now(), without);
        }
        Ok(())
    }

    /// Right after the programs were attached: for how long there were none since the machine was started.
    pub(super) fn note_boot(&mut self, now: &Clock) -> anyhow::Result<()> {
        let stored = self.state.text(BOOT)?.and_then(|text| serde_json::from_str::<Boot>(&text).ok());
        let same = stored.filter(|b| b.id == now.boot && self.kernel.adopted());
        let boot = match same {
            Some(boot) => boot,
            // What was attached by somebody whose record is lost has been there since some time; nothing is known.
            None if self.kernel.adopted() => return Ok(()),
            None => {
                let boot = Boot { id: now.boot.clone(), open: now.up };
                self.state.put(BOOT, &serde_json::to_vec(&boot)?)?;
                boot
            }
        };
        self.open_since_boot = Some(boot.open);
        Ok(())
    }

    /// Every so often: reads the tables back and puts right what differs.
    pub(super) fn verify(&mut self) {
        if self.looks % VERIFY != 2 {
            return;
        }
        let Some(image) = &self.image else { return };
        let drift = match self.kernel.verify(image) {
            Ok(Some(drift)) => drift,
            Ok(None) => return,
            Err(e) => {
                tracing::error!("the tables can't be read back: {e:#}");
                return;
            }
        };
        self.drift.verified += 1;
        if drift.is_none() {
            return;
        }
        self.drift.found += 1;
        self.drift.last = Some(drift);
        tracing::error!(
            missing = drift.missing,
            changed = drift.changed,
            foreign = drift.foreign,
            words = drift.words,
            "the kernel's tables don't say what was compiled: somebody else has written to them"
        );
        match self.kernel.realign(image) {
            Ok(done) => {
                tracing::warn!(epoch = done.epoch, "the tables are put right");
                self.drift.repaired += 1;
                self.commits += 1;
                self.last_commit = Some(done);
                // What was let through meanwhile goes on otherwise.
                self.cut(Reach::Everything, Instant::now());
            }
            Err(e) => tracing::error!("the tables can't be put right: {e:#}"),
        }
    }

    pub(super) fn drift(&self) -> DriftStatus {
        self.drift
    }
}
