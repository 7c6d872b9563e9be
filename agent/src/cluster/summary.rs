//! The one that sums up: writes the status of the policies from what the nodes say, where it differs, and tells by an
//! Event of a policy that can't be taken.
//!
//! Every agent stands in line for the lease by a hash of its node's name. The n-th asks every n times [`lease::RENEW`], so
//! all of 5,000 nodes together ask once a second, and if the first ones are gone the next is soon there. A node whose agent
//! has never told of it doesn't stand there: the first agent of a large cluster needn't wait for all the others' turns.

use super::absent::Absent;
use super::conditions::{Fleet, is_only_counts, newly_refused, status};
use super::crd::{POLICIES, PolicyStatus, SegmentationNode};
use super::kept::Kept;
use super::lease::{self, Hold, Seat};
use super::publish::MANAGER;
use super::view::Document;
use super::watch::{Peers, Spawn, strip};
use crate::config::Cluster;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How often it is looked what is to be written.
const ROUND: Duration = Duration::from_secs(5);
/// How long a status waits that differs in counts alone.
const COUNTS: Duration = Duration::from_secs(60);
/// How long a watch may take to tell of what was written.
const LATE: Duration = Duration::from_secs(30);
/// How long a note of an Event may be, in characters.
const NOTE: usize = 900;
/// Where the Events of objects without a namespace are.
const NOWHERE: &str = "default";

/// A node's place among all, the same for whoever works it out.
pub fn place(node: &str) -> u64 {
    let digest = Sha256::digest(node.as_bytes());
    digest.iter().take(8).fold(0, |n, byte| (n << 8) | u64::from(*byte))
}

/// How many of these agents stand in line before this node's.
fn before(node: &str, agents: &BTreeSet<String>) -> usize {
    let own = (place(node), node);
    agents.iter().filter(|n| (place(n), n.as_str()) < own).count()
}

/// Stands in line, and sums up while it is this agent's turn, until `stopped`.
///
/// # Errors
/// Never: nothing that is in force depends on it.
pub async fn run(
    client: Client,
    settings: Cluster,
    peers: Peers,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let node = settings.node.clone();
    let mut seat = Seat::new(&client, &node);
    let mut waited = 0;
    loop {
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            () = sleep(lease::RENEW) => waited += 1,
        }
        // Looked at each time: of agents that start at once, most have told of themselves by the end of the first.
        if waited <= before(&node, &peers.agents()) {
            continue;
        }
        waited = 0;
        if seat.hold().await == Hold::NotOurs {
            continue;
        }
        tracing::info!("this agent writes the status of policies now");
        let mut sums = Sums::begin(&client, &node, peers.clone());
        let mut absent = Absent::begin(&client, &settings, peers.clone());
        tokio::select! {
            () = absent.go_on() => {}
            _ = stopped.changed() => {
                seat.release().await;
                return Ok(());
            }
            () = sums.go_on(&mut seat) => tracing::info!("another agent writes the status of policies"),
        }
    }
}

/// While it is this agent's turn.
struct Sums {
    client: Client,
    node: String,
    peers: Peers,
    kinds: Spawn,
    reports: Kept<SegmentationNode>,
    policies: Vec<(ApiResource, Kept<DynamicObject>)>,
    /// What was last written of each object, by its UID.
    written: BTreeMap<String, Written>,
}

struct Written {
    at: Instant,
    /// In place of which version.
    before: Option<String>,
    status: PolicyStatus,
}

impl Sums {
    fn begin(client: &Client, node: &str, peers: Peers) -> Self {
        let mut kinds = Spawn::new();
        let every = watcher::Config::default;
        let reports = kinds.kind("segmentationnodes", Api::all(client.clone()), every(), |mut n: SegmentationNode| {
            strip(n.meta_mut());
            n
        });
        let policies = POLICIES.iter().map(|kind| {
            let resource = kind.resource();
            let api = Api::all_with(client.clone(), &resource);
            let kept = kinds.kind(kind.plural, api, every(), |mut p: DynamicObject| {
                strip(&mut p.metadata);
                p
            });
            (resource, kept)
        });
        let policies = policies.collect();
        Self {
            client: client.clone(),
            node: node.to_owned(),
            peers,
            kinds,
            reports,
            policies,
            written: BTreeMap::new(),
        }
    }

    /// Until the lease is lost.
    async fn go_on(&mut self, seat: &mut Seat) {
        loop {
            if seat.hold().await == Hold::NotOurs {
                return;
            }
            // Before everything was listed once, nodes would seem not to have reported.
            if self.kinds.missing().is_empty() && self.round(seat).await == Hold::NotOurs {
                return;
            }
            sleep(ROUND).await;
        }
    }

    /// Writes what differs.
    async fn round(&mut self, seat: &mut Seat) -> Hold {
        let fleet = Fleet::new(&self.peers.nodes(), &self.reports.all(), &self.peers.endpoints());
        let all = self.policies.iter().flat_map(|(_, kept)| kept.all());
        let living: BTreeSet<String> = all.filter_map(|o| o.metadata.uid.clone()).collect();
        self.written.retain(|uid, _| living.contains(uid));
        for (resource, kept) in &self.policies {
            for object in kept.all() {
                let Some(document) = Document::of(&object) else { continue };
                let version = &object.metadata.resource_version;
                let uid = &*document.revision.uid;
                let written = self.written.get(uid);
                // What was written last isn't here yet.
                if written.is_some_and(|w| w.before == *version && w.at.elapsed() < LATE) {
                    continue;
                }
                let last = status_of(&object);
                // Each takes a while where there are thousands of nodes, and this thread has other tasks as well.
                let now = tokio::task::block_in_place(|| status(&document, &fleet, &last, Timestamp::now()));
                let recently = written.filter(|w| w.at.elapsed() < COUNTS);
                // What is written again and again is what the API server doesn't keep, as by an older schema.
                let waits = recently.is_some_and(|w| w.status == now || is_only_counts(&last, &now));
                if last == now || waits {
                    continue;
                }
                if seat.hold().await == Hold::NotOurs {
                    return Hold::NotOurs;
                }
                match self.write(resource, &object, &now).await {
                    Ok(()) => {
                        let (at, before) = (Instant::now(), version.clone());
                        self.written.insert(uid.to_owned(), Written { at, before, status: now.clone() });
                        if let Some(why) = newly_refused(&last, &now) {
                            tracing::error!(object = &*document.title, "refused: {why}");
                            self.tell(resource, &object, &document, why).await;
                        }
                    }
                    // It changed or went meanwhile; the watch will say so, and the next round looks again.
                    Err(kube::Error::Api(e)) if matches!(e.code, 404 | 409) => {}
                    Err(e) => tracing::warn!(object = &*document.title, "its status can't be written yet: {e}"),
                }
            }
        }
        Hold::Ours
    }

    fn api(&self, resource: &ApiResource, object: &DynamicObject) -> Api<DynamicObject> {
        match &object.metadata.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        }
    }

    async fn write(&self, resource: &ApiResource, object: &DynamicObject, now: &PolicyStatus) -> kube::Result<()> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        // With the version that it was worked out from: who writes late writes nothing.
        let patch = json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "status": now});
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.api(resource, object).patch_status(name, &parameters, &Patch::Merge(&patch)).await.map(drop)
    }

    /// One Event for each form of an object: its name is made from that, so a second one is refused.
    async fn tell(&self, resource: &ApiResource, object: &DynamicObject, document: &Document, why: &str) {
        let event = event(&self.node, resource, object, document, why);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            Err(kube::Error::Api(e)) if e.code == 409 => {}
            Err(e) => tracing::warn!(object = &*document.title, "no Event can be written: {e}"),
        }
    }
}

/// The status that an object has; one of another shape is as good as none.
fn status_of(object: &DynamicObject) -> PolicyStatus {
    object.data.get("status").and_then(|s| serde_json::from_value(s.clone()).ok()).unwrap_or_default()
}

fn event(node: &str, resource: &ApiResource, object: &DynamicObject, document: &Document, why: &str) -> Event {
    let name = object.metadata.name.clone().unwrap_or_default();
    let namespace = object.metadata.namespace.clone();
    let revision = &document.revision;
    let form = place(&format!("{}/{}", revision.uid, revision.generation));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{:.200}.{form:016x}", name)),
            namespace: Some(namespace.clone().unwrap_or_else(|| NOWHERE.to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        type_: Some("Warning".to_owned()),
        reason: Some("Refused".to_owned()),
        action: Some("Read".to_owned()),
        note: Some(why.chars().take(NOTE).collect()),
        reporting_controller: Some("bulkhead.dev/agent".to_owned()),
        reporting_instance: Some(node.chars().take(128).collect()),
        regarding: Some(ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            name: Some(name),
            namespace,
            uid: object.metadata.uid.clone(),
            resource_version: object.metadata.resource_version.clone(),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests;
