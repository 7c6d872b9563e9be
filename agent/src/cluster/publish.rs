//! This node's pods, told to the other nodes: one object per node, written by its agent alone.

use super::backoff::Waits;
use super::crd::{NodeEndpoints, NodeEndpointsSpec, NodeWorkload};
use super::watch::Peers;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Who writes, in the object's managed fields.
pub(crate) const MANAGER: &str = "bulkhead-agent";
/// No more often than this is anything written: pods come in swarms.
const PAUSE: Duration = Duration::from_millis(200);
/// After so long it is written although nothing changed.
const AGAIN: Duration = Duration::from_secs(600);

/// Once it may have been an accident, and pods that the others don't know are denied where they enforce.
fn waits_after_refusals() -> impl Iterator<Item = Duration> {
    std::iter::once(PAUSE).chain(Waits::default())
}

/// Writes what is to be published whenever it changed, until `stopped`.
///
/// # Errors
/// Never: what can't be written is tried again, since what is in force here doesn't depend on it.
pub async fn run(
    client: Client,
    node: String,
    peers: Peers,
    mut workloads: watch::Receiver<Arc<Vec<NodeWorkload>>>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let api: Api<NodeEndpoints> = Api::all(client);
    // What is there at the beginning hasn't been told yet.
    workloads.mark_changed();
    let mut waits = waits_after_refusals();
    loop {
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            changed = workloads.changed() => if changed.is_err() { return Ok(()) },
            // Somebody may have deleted it. If it is there, writing the same changes nothing.
            () = sleep(AGAIN) => {}
        }
        let now = workloads.borrow_and_update().clone();
        let mut object =
            NodeEndpoints::new(&node, NodeEndpointsSpec { published_by: node.clone(), workloads: now.to_vec() });
        object.metadata.owner_references = peers.owner(&node);
        let patch = Patch::Apply(&object);
        let parameters = PatchParams::apply(MANAGER).force();
        let written = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            written = api.patch(&node, &parameters, &patch) => written,
        };
        let pause = match written {
            Ok(object) => {
                tracing::debug!(version = object.meta().resource_version, pods = now.len(), "told the other nodes");
                waits = waits_after_refusals();
                PAUSE
            }
            Err(e) => {
                tracing::warn!("the other nodes can't be told of this node's pods yet: {e}");
                workloads.mark_changed();
                waits.next().unwrap_or(PAUSE)
            }
        };
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            () = sleep(pause) => {}
        }
    }
}
