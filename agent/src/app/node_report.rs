//! From the snapshots to this node's object in the API server: what it does with the policies that concern its workloads.
//!
//! Written only when it says something new, and not at once: news of a policy wait for the node's place in a spread that
//! grows with the cluster, mere counts for a minute, and counts of connections are rounded so that they seldom change.

use super::snapshot::Snapshot;
use crate::cluster::crd::{NodePolicy, SegmentationNode, SegmentationNodeSpec};
use crate::cluster::publish::MANAGER;
use crate::cluster::summary::place;
use crate::cluster::watch::Peers;
use crate::flows::Count;
use crate::inventory::Inventory;
use crate::policy::reference::{self, Connection, End};
use crate::policy::{Policy, PolicySet, Section};
use crate::serve::api::Finding;
use bulkhead_common::maps::EdgeKey;
use bulkhead_common::{Direction, Outcome, PeerId, Reason, proto};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// How often it is looked whether there is anything new.
const LOOK: Duration = Duration::from_secs(3);
/// No more often than this is news of a policy written, and counts alone.
const NEWS: Duration = Duration::from_secs(5);
const COUNTS: Duration = Duration::from_secs(60);
/// After so long it is written although there is no news.
const AGAIN: Duration = Duration::from_secs(600);
/// After a refusal.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many nodes may write in a second when all have news at once, and how long the last may wait.
const AT_ONCE: usize = 250;
const LONGEST_SPREAD: Duration = Duration::from_secs(20);
/// How many faults are told, and how much of each.
const FAULTS: usize = 8;
const TEXT: usize = 512;

/// Writes this node's object until `stopped`.
///
/// # Errors
/// Never: what can't be written is tried again, since what is in force doesn't depend on it.
pub async fn run(
    client: Client,
    node: String,
    peers: Peers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let api: Api<SegmentationNode> = Api::all(client);
    let parameters = PatchParams::apply(MANAGER).force();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = Known::default();
    let mut told: Option<(SegmentationNodeSpec, Instant)> = None;
    let mut since: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            _ = look.tick() => {}
        }
        let snapshot = Arc::clone(&snapshots.borrow());
        let now = tokio::task::block_in_place(|| known.report(&snapshot));
        let news = match &told {
            None => News::Policies,
            // Somebody may have deleted it. If it is there, writing the same changes nothing.
            Some((last, at)) if *last == now && at.elapsed() >= AGAIN => News::Counts,
            Some((last, _)) => News::between(last, &now),
        };
        if news == News::None {
            since = None;
            continue;
        }
        let noticed = *since.get_or_insert_with(Instant::now);
        let written = told.as_ref().map(|(_, at)| *at);
        if noticed.elapsed() < spread(&node, peers.nodes().len())
            || written.is_some_and(|at| at.elapsed() < news.pause())
        {
            continue;
        }
        let mut object = SegmentationNode::new(&node, now.clone());
        object.metadata.owner_references = peers.owner(&node);
        let patch = Patch::Apply(&object);
        let written = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            written = api.patch(&node, &parameters, &patch) => written,
        };
        match written {
            Ok(_) => (told, since) = (Some((now, Instant::now())), None),
            Err(e) => {
                tracing::warn!("this node's state can't be told to the cluster yet: {e}");
                tokio::select! {
                    _ = stopped.changed() => return Ok(()),
                    () = sleep(PATIENCE) => {}
                }
            }
        }
    }
}

/// How long this node waits with news that all nodes may have at once.
fn spread(node: &str, nodes: usize) -> Duration {
    let window = u32::try_from(nodes / AT_ONCE).map_or(LONGEST_SPREAD, |s| Duration::from_secs(s.into()));
    let part = u32::try_from(place(node) >> 32).unwrap_or(0);
    window.min(LONGEST_SPREAD).mul_f64(f64::from(part) / f64::from(u32::MAX))
}

/// In what a report differs from the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum News {
    None,
    /// How many workloads there are, how much would have been denied, what is out of order.
    Counts,
    /// What is in force.
    Policies,
}

impl News {
    fn between(last: &SegmentationNodeSpec, now: &SegmentationNodeSpec) -> Self {
        if last == now {
            return Self::None;
        }
        let mut alike = now.clone();
        alike.workloads = last.workloads;
        alike.faults.clone_from(&last.faults);
        if alike.policies.len() == last.policies.len() {
            for (p, before) in alike.policies.iter_mut().zip(&last.policies) {
                (p.workloads, p.would_deny) = (before.workloads, before.would_deny);
            }
        }
        if alike == *last { Self::Counts } else { Self::Policies }
    }

    const fn pause(self) -> Duration {
        match self {
            Self::Counts => COUNTS,
            Self::None | Self::Policies => NEWS,
        }
    }
}

/// Which identities each policy object concerns: worked out again only when policies or identities changed.
#[derive(Default)]
struct Known {
    policies: Arc<PolicySet>,
    inventory: Arc<Inventory>,
    concerned: BTreeMap<String, BTreeSet<PeerId>>,
}

impl Known {
    /// What this node has to tell.
    fn report(&mut self, snapshot: &Snapshot) -> SegmentationNodeSpec {
        let Snapshot { status, policies, inventory, edges, .. } = snapshot;
        if !Arc::ptr_eq(&self.policies, policies) || !Arc::ptr_eq(&self.inventory, inventory) {
            *self = Self {
                policies: Arc::clone(policies),
                inventory: Arc::clone(inventory),
                concerned: policies.iter().map(|p| (p.file.to_string(), concerned(p, inventory))).collect(),
            };
        }
        // Workloads that run here, and those of them for which nothing is enforced, by identity.
        let mut here: BTreeMap<(&str, &str), (i64, i64, i64)> = BTreeMap::new();
        for w in status.workloads.iter().filter(|w| !w.cgroups.is_empty()) {
            let n = here.entry((&w.identity.namespace, &w.identity.id)).or_default();
            *n = (n.0 + 1, n.1 + i64::from(w.break_glass), n.2 + i64::from(w.lowered.is_some()));
        }
        let here: BTreeMap<PeerId, (i64, i64, i64)> = inventory
            .identities
            .iter()
            .filter_map(|(peer, f)| {
                let id = f.identity.to_string();
                Some((*peer, *here.get(&(f.identity.namespace.as_str(), id.as_str()))?))
            })
            .collect();
        let by_file: BTreeMap<&str, &Policy> = policies.iter().map(|p| (&*p.file, p)).collect();
        let would: Vec<(&EdgeKey, &Count)> = edges.readings().filter(|(key, _)| counts_here(key)).collect();
        let mut told = Vec::new();
        for object in &status.objects {
            let none = BTreeSet::new();
            let concerned = self.concerned.get(&object.name).unwrap_or(&none);
            let mine = concerned.iter().filter_map(|peer| here.get(peer));
            let (workloads, break_glass, lowered) =
                mine.fold((0, 0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1, sum.2 + n.2));
            let error = refusal(&status.findings, &object.name);
            if workloads == 0 && error.is_none() {
                continue;
            }
            let policy = by_file.get(object.name.as_str());
            told.push(NodePolicy {
                policy: object.name.clone(),
                uid: object.uid.clone(),
                generation: if object.in_force && status.ready { object.generation } else { 0 },
                workloads,
                break_glass,
                lowered,
                would_deny: policy.map_or(0, |p| rounded(would_deny(p, &would, inventory))),
                error,
            });
        }
        let running = here.values().map(|n| n.0).sum();
        let faults = status.faults.iter().take(FAULTS).map(|f| short(f)).collect();
        SegmentationNodeSpec {
            version: status.version.clone(),
            ready: status.ready,
            workloads: running,
            faults,
            policies: told,
        }
    }
}

/// Whom the policy concerns, among those who may run here.
fn concerned(policy: &Policy, inventory: &Inventory) -> BTreeSet<PeerId> {
    let all = inventory.identities.iter().filter(|(peer, _)| !inventory.elsewhere.contains(peer));
    all.filter(|(_, facts)| reference::concerns(policy, &End::Workload(facts))).map(|(peer, _)| *peer).collect()
}

/// Why the object of that name isn't taken.
fn refusal(findings: &[Finding], name: &str) -> Option<String> {
    let texts: Vec<&str> = findings.iter().filter(|f| f.error && f.file == name).map(|f| f.text.as_str()).collect();
    (!texts.is_empty()).then(|| short(&texts.join("; ")))
}

fn short(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

/// Whether this node counts it: what would be denied, at its source, or where a source without an identity gets to.
fn counts_here(key: &EdgeKey) -> bool {
    let would = key.outcome == Outcome::WouldDeny as u8;
    would && (key.direction == Direction::Egress as u8 || PeerId(key.src).class().is_some())
}

/// How many of these connections the policy would have denied.
fn would_deny(policy: &Policy, would: &[(&EdgeKey, &Count)], inventory: &Inventory) -> u64 {
    let end = |n: u32| {
        let peer = PeerId(n);
        match (inventory.identities.get(&peer), peer.class()) {
            (Some(facts), _) => Some(End::Workload(facts)),
            (None, Some(class)) => Some(End::Class(class)),
            (None, None) => None,
        }
    };
    let denied = would.iter().filter(|(key, _)| {
        let isolates = |n: u32, side| end(n).is_some_and(|own| reference::isolates(policy, &own, side));
        match Reason::from_u8(key.reason) {
            Some(Reason::DenyRule) => match (end(key.src), end(key.dst)) {
                (Some(from), Some(to)) => {
                    let c = Connection { from, to, proto: proto::judged(key.proto), port: key.port };
                    reference::denies(policy, &c)
                }
                _ => false,
            },
            Some(Reason::NoEgressRule) => isolates(key.src, Section::Egress),
            Some(Reason::NoIngressRule) => isolates(key.dst, Section::Ingress),
            Some(_) => isolates(key.src, Section::Egress) || isolates(key.dst, Section::Ingress),
            None => false,
        }
    });
    denied.fold(0, |sum, (_, count)| sum.saturating_add(count.total))
}

/// Rounded down to 1, 2 or 5 and noughts: on the way to a million it changes nineteen times.
fn rounded(n: u64) -> i64 {
    let mut best = 0;
    let mut step = 1_u64;
    for _ in 0..19 {
        for of in [1, 2, 5].map(|of| step.saturating_mul(of)) {
            if of <= n {
                best = of;
            }
        }
        step = step.saturating_mul(10);
    }
    i64::try_from(best).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::inventory::{IdentityFacts, Posture};
    use bulkhead_common::Class;

    #[test]
    fn a_count_that_grows_is_seldom_new() {
        let changes = (1..=1_000_000_u64).filter(|n| rounded(*n) != rounded(n - 1)).count();
        assert_eq!(changes, 19);
        assert_eq!([0, 1, 4, 5, 19, 99, 100].map(rounded), [0, 1, 2, 5, 10, 50, 100]);
        assert_eq!(rounded(u64::MAX), 5_000_000_000_000_000_000);
    }

    #[test]
    fn nodes_wait_their_turn_and_small_clusters_dont() {
        assert_eq!(spread("n1", 100), Duration::ZERO);
        let waits: BTreeSet<Duration> = (0..500).map(|n| spread(&format!("node-{n}"), 5000)).collect();
        assert!(waits.len() > 400 && waits.last() <= Some(&LONGEST_SPREAD), "{}", waits.len());
        let early = waits.iter().filter(|w| **w < LONGEST_SPREAD / 2).count();
        assert!((150..350).contains(&early), "{early} of 500 in the first half");
    }

    #[test]
    fn counts_wait_longer_than_what_is_in_force() {
        let policy = |generation, workloads, would_deny| NodePolicy {
            policy: "SegmentationPolicy/shop/web".to_owned(),
            generation,
            workloads,
            would_deny,
            ..NodePolicy::default()
        };
        let of = |policies| SegmentationNodeSpec { policies, ..SegmentationNodeSpec::default() };
        let first = of(vec![policy(1, 2, 3)]);
        assert_eq!(News::between(&first, &first), News::None);
        assert_eq!(News::between(&first, &of(vec![policy(1, 5, 10)])), News::Counts);
        assert_eq!(News::between(&first, &of(vec![policy(2, 2, 3)])), News::Policies);
        assert_eq!(News::between(&first, &of(vec![])), News::Policies);
        assert!(News::Counts.pause() > News::Policies.pause());
    }

    #[test]
    fn what_would_be_denied_is_laid_to_whoever_denies_it() {
        let facts = |name: &str| IdentityFacts {
            identity: Identity {
                namespace: "shop".to_owned(),
                ids: [format!("spiffe://t/{name}").parse().expect("an ID")].into(),
            },
            posture: Posture::Observe,
            ports: BTreeMap::new(),
        };
        let (web, db) = (PeerId(256), PeerId(257));
        let identities = BTreeMap::from([(web, facts("web")), (db, facts("db"))]);
        let inventory = Inventory { identities, ..Inventory::default() };
        let read = |spec: &str, kind: &str, namespace: &str| {
            let text = format!(
                "apiVersion: bulkhead.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p{namespace}}}\nspec: {spec}\n"
            );
            crate::policy::parse("p", &text).unwrap_or_else(|e| panic!("{}", e[0])).remove(0)
        };
        let closed = read(
            "{mode: audit, selector: {ids: ['spiffe://t/db']}, ingress: {rules: []}}",
            "SegmentationPolicy",
            ", namespace: shop",
        );
        let never = read(
            "{mode: audit, denies: [{from: [{id: 'spiffe://t/web'}], to: [{id: 'spiffe://t/db'}], ports: [{port: 22}]}]}",
            "ClusterSegmentationPolicy",
            "",
        );
        let key = |src: PeerId, direction: Direction, reason: Reason, port| EdgeKey {
            src: src.0,
            dst: db.0,
            port,
            proto: proto::TCP,
            direction: direction as u8,
            outcome: Outcome::WouldDeny as u8,
            reason: reason as u8,
            ..EdgeKey::default()
        };
        let count = |total| Count { total, first: 0, last: 0 };
        let all = [
            (key(web, Direction::Egress, Reason::NoIngressRule, 80), count(3)),
            // The same connections at the other end: this node counts them once.
            (key(web, Direction::Ingress, Reason::NoIngressRule, 80), count(3)),
            (key(Class::World.id(), Direction::Ingress, Reason::NoIngressRule, 80), count(10)),
            (key(web, Direction::Egress, Reason::DenyRule, 22), count(100)),
            (key(web, Direction::Egress, Reason::NoEgressRule, 80), count(1000)),
        ];
        let would: Vec<_> = all.iter().map(|(k, c)| (k, c)).filter(|(k, _)| counts_here(k)).collect();
        assert_eq!(would_deny(&closed, &would, &inventory), 13);
        assert_eq!(would_deny(&never, &would, &inventory), 100);
        assert_eq!(concerned(&closed, &inventory), BTreeSet::from([db]));
        assert_eq!(concerned(&never, &inventory), BTreeSet::from([web, db]));
    }
}
