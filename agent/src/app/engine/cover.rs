//! What a start on a cluster's node waits for: the API server's lists; and the first start on a node of a cluster that
//! enforces, until every other node is told of.
//!
//! A pod that nobody has told of is unknown, which is denied where anything is enforced. A node without an agent is told of
//! by the agent that holds the lease, and that may be this one, a moment later. Where nothing of Bulkhead is attached,
//! waiting opens nothing that was closed: so the agent tells of its own node, takes its turn and follows orders, but
//! attaches nothing until then, or until it has waited long enough. What was attached before is never waited with.

use super::super::clock;
use super::super::kernel::Kernel;
use super::super::snapshot::Snapshot;
use super::{CHECK, Cluster, Engine, Failure, GATHER, look};
use crate::policy::{Mode, Policy};
use crate::serve::orders::Request;
use crate::sources::watch::Dirty;
use crate::time::rfc3339;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// How long the API server's lists may take before that is said, again and again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a first start waits at most. A lease whose holder has gone may take the greater part of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How many nodes are named where there are many.
const NAMED: usize = 8;

/// Of whom nobody had told at the first start.
#[derive(Default)]
pub(super) struct Cover {
    /// The nodes.
    untold: BTreeSet<String>,
    /// Until when it waits for them, and the same in milliseconds since 1970; `None`: it doesn't.
    until: Option<(Instant, u64)>,
}

impl Cover {
    /// What is wrong as long as nobody tells of these.
    pub(super) fn fault(&self, untold: &[String]) -> Option<String> {
        if untold.is_empty() {
            return None;
        }
        let nodes = named(untold);
        Some(match self.until {
            Some((_, until)) => format!(
                "nothing is in force here yet: nobody has told of the pods of {nodes} (NodeEndpoints); at {} the agent \
                 goes ahead without them",
                rfc3339(until)
            ),
            None => format!(
                "nobody has told of the pods of {nodes} (NodeEndpoints), and the agent has gone ahead without them: they \
                 are unknown, which is denied where anything is enforced"
            ),
        })
    }
}

/// As many names as can be read.
fn named(nodes: &[String]) -> String {
    match nodes.get(..NAMED) {
        Some(first) if nodes.len() > NAMED => format!("{} and {} more nodes", first.join(", "), nodes.len() - NAMED),
        _ => nodes.join(", "),
    }
}

impl<K: Kernel> Engine<K> {
    /// Where nothing is in force: puts in force what this node knew of itself, so that it isn't open until the API
    /// server has told. Then waits until every kind of object was listed once.
    ///
    /// # Errors
    /// When what is known can't be put in force.
    pub(crate) async fn await_lists(&mut self) -> Result<(), Failure> {
        if self.kernel.in_force().is_none() && self.remember().map_err(Failure::Other)? {
            tracing::warn!("nothing is in force here: what this node knew of itself is, until the API server has told");
            self.first().await?;
        }
        if let Some(cluster) = &self.cluster {
            let watch = cluster.watch();
            while tokio::time::timeout(PATIENCE, watch.synced()).await.is_err() {
                tracing::warn!("waiting for the API server's lists of: {}", watch.missing().join(", "));
            }
        }
        self.learn();
        Ok(())
    }

    /// Whether nothing is attached yet, and a ruleset would deny pods of nodes that nobody has told of. Where it is, the
    /// engine has looked, and the time begins after which it goes ahead.
    ///
    /// # Errors
    /// When it can't be looked.
    pub(crate) fn lacks_cover(&mut self, limit: Duration) -> anyhow::Result<bool> {
        self.cover.untold.clear();
        let untold = match &self.cluster {
            Some(cluster) if !self.ready && !self.kernel.adopted() => self.untold_by(cluster),
            _ => return Ok(false),
        };
        if untold.is_empty() {
            return Ok(false);
        }
        self.look(Dirty::ALL)?;
        if self.cluster.as_ref().is_some_and(|cluster| self.enforces(cluster)) {
            self.cover.untold = untold;
            self.cover.until.get_or_insert_with(|| {
                let length = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                (Instant::now() + limit, clock::now().saturating_add(length))
            });
        }
        Ok(!self.cover.untold.is_empty())
    }

    /// Waits until it doesn't lack cover, at most so long, and then puts the first ruleset in force. Gives whether it did:
    /// it may be `stopped` before.
    ///
    /// # Errors
    /// When a first start fails.
    pub(crate) async fn await_cover(
        &mut self,
        limit: Duration,
        publish: &watch::Sender<Arc<Snapshot>>,
        orders: &mut mpsc::Receiver<Request>,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<bool, Failure> {
        let mut changes = self.cluster.as_ref().map(Cluster::changes);
        let mut said = false;
        while tokio::task::block_in_place(|| self.lacks_cover(limit)).map_err(Failure::Other)? {
            let end = self.cover.until.map_or_else(Instant::now, |(end, _)| end);
            publish.send_replace(Arc::new(self.snapshot()));
            if !std::mem::replace(&mut said, true) {
                self.tell_cover();
            }
            tokio::select! {
                _ = stopped.changed() => return Ok(false),
                () = sleep_until(end) => {
                    self.cover.until = None;
                    self.tell_cover();
                    break;
                }
                // It goes into the tables, and is in force with the rest.
                Some(request) = orders.recv() => self.carry_out(request, publish),
                () = look::changed(&mut changes) => sleep(GATHER).await,
                dirty = self.watcher.changed() => drop(dirty.map_err(Failure::Other)?),
                () = sleep(CHECK) => {}
            }
        }
        self.cover.until = None;
        self.first().await?;
        publish.send_replace(Arc::new(self.snapshot()));
        Ok(true)
    }

    /// Those of them of whom nobody has told to this day.
    pub(super) fn untold(&self) -> Vec<String> {
        match &self.cluster {
            Some(cluster) if !self.cover.untold.is_empty() => {
                let now = self.untold_by(cluster);
                self.cover.untold.intersection(&now).cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    fn tell_cover(&self) {
        if let Some(fault) = self.cover.fault(&self.untold()) {
            tracing::warn!("{fault}");
        }
    }

    fn untold_by(&self, cluster: &Cluster) -> BTreeSet<String> {
        let own = self.base.cluster.as_ref().map_or("", |settings| settings.node.as_str());
        cluster.watch().peers().untold(own)
    }

    /// Whether anybody is denied who isn't known: by a posture, or by a policy that isolates whom it selects.
    fn enforces(&self, cluster: &Cluster) -> bool {
        let lowered = cluster.lowered();
        let isolates = |p: &&Policy| p.mode == Mode::Enforce && (p.ingress.is_some() || p.egress.is_some());
        let mut isolating = self.policies.set.iter().filter(isolates);
        cluster.enforces() || isolating.any(|p| p.namespace().is_none_or(|ns| !lowered.contains_key(ns)))
    }
}
