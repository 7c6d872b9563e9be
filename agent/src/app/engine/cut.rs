//! Ending the live connections that a commit took the ground from.
//!
//! It is done twice: at once, and again when no program run of the former epoch is left, since a connection may have been
//! let through by one and not yet have been there to be found. Where addresses changed hands, everybody's connections are
//! looked at, so that is done once, and not more often than every [`MOVED`]: in a large cluster such changes never end. Until
//! then what doesn't pass is stopped, but not told to its applications.

use super::super::kernel::Kernel;
use super::super::snapshot::Names;
use super::Engine;
use crate::datapath::Walk;
use crate::flows;
use crate::image::Image;
use crate::revocation::{self, Reach};
use crate::serve::orders::{CutLine, Cutting};
use bulkhead_common::verdict::Side;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long there is at least between two looks at everybody's connections because addresses changed hands.
const MOVED: Duration = Duration::from_secs(1);

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
    /// Addresses changed hands, and nobody has looked since.
    moved: bool,
    /// When everybody's connections were last looked at.
    all: Option<Instant>,
}

impl Cuts {
    /// When it is time to look at everybody's connections, if there is a reason to.
    pub(super) fn due(&self) -> Option<Instant> {
        self.moved.then(|| self.all.map_or_else(Instant::now, |last| last + MOVED))
    }
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

    /// What a commit can have taken the ground from, beside what is due later.
    pub(super) fn reach(&mut self, new: &Image) -> Reach {
        self.cuts.moved |= revocation::moved(self.image.as_ref(), new);
        Reach::between(self.image.as_ref(), new)
    }

    /// The second look.
    pub(super) fn cut_again(&mut self) {
        if let Some(reach) = self.cuts.again.take() {
            self.sweep(&reach, Instant::now());
        }
    }

    /// The look because addresses changed hands, if it is due.
    pub(super) fn cut_moved(&mut self) {
        let now = Instant::now();
        if self.cuts.due().is_some_and(|due| due <= now) {
            self.sweep(&Reach::Everything, now);
        }
    }

    /// What would be cut if this were in force.
    pub(super) fn would_cut(&self, image: &Image, names: &Names) -> anyhow::Result<Cutting> {
        let started = Instant::now();
        let old = self.image.as_ref();
        let reach = if revocation::moved(old, image) { Reach::Everything } else { Reach::between(old, image) };
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
        if *reach == Reach::Everything {
            (self.cuts.moved, self.cuts.all) = (false, Some(started));
        }
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
