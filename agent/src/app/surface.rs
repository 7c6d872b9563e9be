//! The lateral-movement surface, computed anew when policies or identities changed, beside everything else.

use super::snapshot::Snapshot;
use crate::policy::{self, RuleTable};
use crate::report::{Report, Surface, report};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often at most: it looks at each pair of identities.
const REST: Duration = Duration::from_secs(30);

/// The report of what is in force. Takes a moment where there are many identities.
pub fn of(snapshot: &Snapshot) -> Report {
    // Numbers of rules don't matter here.
    let compiled = policy::compile(&snapshot.policies, &snapshot.inventory, &mut RuleTable::default());
    report(&compiled.image, &snapshot.inventory)
}

/// Keeps it up to date until told to stop.
///
/// # Errors
/// When its thread is lost.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    surface: watch::Sender<Option<Surface>>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut last: Option<Arc<Snapshot>> = None;
    loop {
        let now = Arc::clone(&snapshots.borrow_and_update());
        let same = last
            .as_ref()
            .is_some_and(|l| l.policies == now.policies && l.inventory.identities == now.inventory.identities);
        let mut rest = Duration::ZERO;
        if !same {
            let computed = Arc::clone(&now);
            surface.send_replace(Some(tokio::task::spawn_blocking(move || of(&computed).surface).await?));
            last = Some(now);
            rest = REST;
        }
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            () = tokio::time::sleep(rest) => {}
        }
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}
