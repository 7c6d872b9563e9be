//! The names by which workloads ask for addresses: read from the kernel's ring, remembered for whoever shows an address.

use super::kernel::Records;
use crate::dns::{self, Resolved};
use bulkhead_common::PeerId;
use bulkhead_common::event::Answer;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often what doesn't hold any more is forgotten.
const TIDY: Duration = Duration::from_secs(60);

/// Names that one task writes and others read.
#[derive(Clone, Debug, Default)]
pub struct Naming(Arc<Mutex<Resolved>>);

impl Naming {
    /// Takes up an answer as it came. What can't be read names nothing.
    pub fn take(&self, answer: &Answer, now: Instant) {
        let payload = answer.payload.get(..usize::from(answer.length)).unwrap_or(&answer.payload);
        if let Some(read) = dns::read(payload) {
            self.lock().remember(PeerId(answer.peer), &read, now);
        }
    }

    /// The name by which this workload asked for the address, if that isn't long ago.
    pub fn name(&self, workload: PeerId, address: IpAddr, now: Instant) -> Option<Arc<str>> {
        self.lock().name(workload, address, now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Resolved> {
        // Whole after each statement, so also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads answers until told to stop.
///
/// # Errors
/// When the stream breaks.
pub async fn run<R: Records<Answer>>(
    mut answers: R,
    naming: Naming,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        let batch = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            _ = tidy.tick() => {
                naming.lock().tidy(Instant::now());
                continue;
            }
            batch = answers.next() => batch?,
        };
        let now = Instant::now();
        for answer in &batch {
            naming.take(answer, now);
        }
    }
}
