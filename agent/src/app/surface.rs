//! The lateral-movement surface, computed anew when policies or identities changed, beside everything else.

use super::snapshot::Snapshot;
use crate::inventory::Inventory;
use crate::policy::{self, PolicySet, RuleTable};
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
    // No more of the last snapshot than what it is compared by: the rest of it may go.
    let mut last: Option<(Arc<PolicySet>, Arc<Inventory>)> = None;
    loop {
        let now = Arc::clone(&snapshots.borrow_and_update());
        let same = last.as_ref().is_some_and(|(policies, inventory)| {
            *policies == now.policies
                && (Arc::ptr_eq(inventory, &now.inventory) || inventory.identities == now.inventory.identities)
        });
        let mut rest = Duration::ZERO;
        if !same {
            let computed = Arc::clone(&now);
            let computing = move || of(&computed).surface;
            surface.send_replace(Some(tokio::task::spawn_blocking(computing).await?));
            rest = REST;
        }
        // Those of now also where they say the same: nobody else may hold the former ones any more.
        last = Some((Arc::clone(&now.policies), Arc::clone(&now.inventory)));
        drop(now);
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
