//! Ending the live connections that a commit took the ground from.
//!
//! It is done twice: at once, and again when no program run of the former epoch is left, since a connection may have been
//! let through by one and not yet have been there to be found.

use super::super::kernel::Kernel;
use super::super::snapshot::Names;
use super::Engine;
use crate::datapath::Walk;
use crate::flows;
use crate::image::Image;
use crate::revocation::Reach;
use crate::serve::orders::{CutLine, Cutting};
use bulkhead_common::verdict::Side;
use std::collections::BTreeMap;
use tokio::time::Instant;

/// What was cut until now.
#[derive(Default)]
pub(super) struct Cuts {
    /// The last time that something was.
    pub(super) last: Option<Cutting>,
    /// Sockets, since the start.
    pub(super) sockets: u64,
    /// What wasn't found or ended at the last look.
    pub(super) faults: Vec<String>,
    /// Where to look once more.
    again: Option<Reach>,
}

impl<K: Kernel> Engine<K> {
    /// Ends what doesn't pass. Gives what that was, if there was anything to look at.
    pub(super) fn cut(&mut self, reach: Reach, started: Instant) -> Option<Cutting> {
        let cutting = self.sweep(&reach, started)?;
        self.cuts.again = Some(match self.cuts.again.take() {
            Some(other) => other.and(reach),
            None => reach,
        });
        Some(cutting)
    }

    /// The second look.
    pub(super) fn cut_again(&mut self) {
        if let Some(reach) = self.cuts.again.take() {
            self.sweep(&reach, Instant::now());
        }
    }

    /// What would be cut if this were in force.
    pub(super) fn would_cut(&self, image: &Image, names: &Names) -> anyhow::Result<Cutting> {
        let started = Instant::now();
        let reach = Reach::between(self.image.as_ref(), image);
        let walk = if reach.is_empty() { Walk::default() } else { self.kernel.walk(image, &reach, false)? };
        let mut cutting = told(walk, names, started);
        (cutting.dry_run, cutting.epoch) = (true, self.epoch());
        Ok(cutting)
    }

    pub(super) fn epoch(&self) -> u32 {
        self.last_commit.map_or(0, |c| c.epoch)
    }

    fn sweep(&mut self, reach: &Reach, started: Instant) -> Option<Cutting> {
        let image = self.image.as_ref().filter(|_| !reach.is_empty())?;
        let walk = match self.kernel.walk(image, reach, true) {
            Ok(walk) => walk,
            Err(e) => {
                let fault = format!("live connections can't be looked at, so what is denied now may hang: {e:#}");
                tracing::error!("{fault}");
                self.cuts.faults = vec![fault];
                return None;
            }
        };
        let mut cutting = told(walk, &self.names, started);
        cutting.epoch = self.epoch();
        for fault in &cutting.faults {
            tracing::error!("{fault}");
        }
        self.cuts.faults.clone_from(&cutting.faults);
        for c in &cutting.connections {
            tracing::warn!(
                source = c.source.id,
                destination = c.destination.id,
                protocol = flows::protocol(c.protocol),
                port = c.port,
                reason = c.reason,
                rule = c.rule.as_deref().unwrap_or("none allows"),
                sockets = c.sockets,
                epoch = cutting.epoch,
                "live connections were cut"
            );
        }
        if cutting.sockets > 0 {
            tracing::info!(
                sockets = cutting.sockets,
                namespaces = cutting.namespaces,
                looked_at = cutting.looked_at,
                took_us = cutting.took_us,
                "the cut is done"
            );
            self.cuts.sockets = self.cuts.sockets.saturating_add(cutting.sockets);
            self.cuts.last = Some(cutting.clone());
        }
        Some(cutting)
    }
}

/// A walk in names.
fn told(walk: Walk, names: &Names, started: Instant) -> Cutting {
    let Walk { namespaces, sockets, cuts, faults } = walk;
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let mut lines = BTreeMap::new();
    for cut in &cuts {
        let number = match cut.judgement.denied_by() {
            Some(Side::Egress) => cut.judgement.egress_rule,
            Some(Side::Ingress) => cut.judgement.ingress_rule,
            None => 0,
        };
        let line = CutLine {
            source: names.peer(cut.flow.src),
            destination: names.peer(cut.flow.dst),
            protocol: cut.flow.proto,
            port: cut.flow.port,
            reason: cut.judgement.reason.as_str().to_owned(),
            rule: names.rule(number),
            sockets: 0,
        };
        *lines.entry(line).or_insert(0u64) += 1;
    }
    Cutting {
        time: super::super::clock::now(),
        epoch: 0,
        dry_run: false,
        namespaces: count(namespaces),
        looked_at: count(sockets),
        sockets: count(cuts.len()),
        took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        connections: lines.into_iter().map(|(line, sockets)| CutLine { sockets, ..line }).collect(),
        faults,
    }
}
