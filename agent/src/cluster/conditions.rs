//! What becomes of a policy, from what the nodes say of it: counts and conditions. Pure.
//!
//! A node is expected to have a policy in force if pods live there that it concerns, which their `NodeEndpoints` tell. It
//! is in step once its own report names the object's present generation; a node that hasn't reported yet isn't.

use super::crd::{PolicyStatus, SegmentationNode, SegmentationNodeSpec};
use super::peers::NodePeers;
use super::view::Document;
use crate::identity::Identity;
use crate::inventory::{IdentityFacts, Posture};
use crate::policy::reference::{End, concerns};
use crate::policy::{self, Diagnostic, Mode, Policy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How many nodes are named in a message.
const NAMED: usize = 5;
/// How long a message may be, in characters.
const MESSAGE: usize = 1024;

/// What is known of the nodes.
#[derive(Debug, Default)]
pub struct Fleet {
    /// What each says.
    reports: BTreeMap<String, SegmentationNodeSpec>,
    /// Where pods of each identity live.
    residents: Vec<(IdentityFacts, BTreeSet<String>)>,
}

impl Fleet {
    /// Of the nodes that exist; what others left behind doesn't count.
    pub fn new(nodes: &BTreeSet<String>, reports: &[Arc<SegmentationNode>], peers: &[Arc<NodePeers>]) -> Self {
        let exists = |name: &Option<String>| name.clone().filter(|n| nodes.contains(n));
        let reports = reports
            .iter()
            .filter_map(|r| Some((exists(&r.metadata.name)?, r.spec.clone())))
            .collect::<BTreeMap<_, _>>();
        let mut at: BTreeMap<&Identity, BTreeSet<String>> = BTreeMap::new();
        for of in peers.iter().filter(|p| nodes.contains(&*p.node)) {
            for pod in of.pods() {
                at.entry(pod.identity).or_default().insert(of.node.to_string());
            }
        }
        let facts = |identity: &Identity| IdentityFacts {
            identity: identity.clone(),
            posture: Posture::Observe,
            ports: BTreeMap::new(),
        };
        Self { reports, residents: at.into_iter().map(|(identity, nodes)| (facts(identity), nodes)).collect() }
    }

    /// Where pods live that the policy concerns.
    fn expected(&self, policy: &Policy) -> BTreeSet<&str> {
        let concerned = self.residents.iter().filter(|(facts, _)| concerns(policy, &End::Workload(facts)));
        concerned.flat_map(|(_, nodes)| nodes.iter().map(String::as_str)).collect()
    }
}

/// What one policy's status should be, `last` being the one that it has.
pub fn status(object: &Document, fleet: &Fleet, last: &PolicyStatus, now: Timestamp) -> PolicyStatus {
    let read = policy::read(&object.title, &object.text).pop();
    let (policy, error) = match read {
        Some(Ok(policy)) => (Some(policy), None),
        Some(Err(rejected)) => (None, Some(said(object, rejected.diagnostics))),
        None => (None, Some("it is empty".to_owned())),
    };
    let time = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let expired = policy.as_ref().and_then(|p| p.expires.as_ref()).is_some_and(|at| at.value <= time);
    let generation = object.revision.generation;

    let reports: BTreeMap<&str, _> = fleet
        .reports
        .iter()
        .filter_map(|(node, spec)| {
            let of_it = |p: &&_| same(p, object);
            Some((node.as_str(), spec.policies.iter().find(of_it)?))
        })
        .collect();
    let mut expected: BTreeSet<&str> = BTreeSet::new();
    if !expired {
        expected.extend(policy.iter().flat_map(|p| fleet.expected(p)));
        expected.extend(reports.iter().filter(|(_, r)| r.workloads > 0).map(|(node, _)| *node));
    }
    let in_step = |node: &&&str| reports.get(**node).is_some_and(|r| r.generation == generation && r.error.is_none());
    let behind: Vec<&str> = expected.iter().filter(|node| !in_step(node)).copied().collect();
    let refusing: Vec<&str> = reports.iter().filter(|(_, r)| r.error.is_some()).map(|(node, _)| *node).collect();
    let sum = |of: fn(&super::crd::NodePolicy) -> i64| reports.values().map(|r| of(r)).fold(0, i64::saturating_add);
    let (open, lowered) = (sum(|r| r.break_glass), sum(|r| r.lowered));
    let off = |n: i64, why| format!("nothing is enforced for {n} of its workloads now{why}");

    let accepted = match &error {
        None => ("True", "Accepted", String::new()),
        Some(why) => ("False", "Invalid", why.clone()),
    };
    let late =
        || format!("{} of {} nodes don't have this form in force yet: {}", behind.len(), expected.len(), few(&behind));
    let enforced = match &policy {
        None => ("False", "Invalid", "nothing of this form is in force".to_owned()),
        Some(_) if expired => ("False", "Expired", "spec.expiresAt has passed".to_owned()),
        Some(p) if p.mode == Mode::Audit => ("False", "AuditMode", "it says what it would deny".to_owned()),
        Some(_) if expected.is_empty() => ("False", "NothingConcerned", "it concerns no pod that runs".to_owned()),
        Some(_) if !behind.is_empty() => ("False", "NodesBehind", late()),
        Some(_) if open > 0 => ("False", "BreakGlass", off(open, "")),
        Some(_) if lowered > 0 => ("False", "Lowered", off(lowered, ": their namespace is lowered")),
        Some(_) => ("True", "Enforced", String::new()),
    };
    let degraded = if error.is_some() {
        let instead = "its last good form stays in force; where there is none, what it selects is isolated";
        ("True", "Invalid", instead.to_owned())
    } else if let Some(node) = refusing.first() {
        let why = reports[node].error.clone().unwrap_or_default();
        ("True", "RefusedByNodes", format!("{}: {why}", few(&refusing)))
    } else if !behind.is_empty() {
        ("True", "NodesBehind", late())
    } else {
        ("False", "AsExpected", String::new())
    };
    let condition = |kind: &str, (status, reason, message): (&str, &str, String)| {
        let before = last.conditions.iter().find(|c| c.type_ == kind && c.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(MESSAGE).collect(),
            observed_generation: Some(generation),
            last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
        }
    };
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    PolicyStatus {
        observed_generation: generation,
        workloads: sum(|r| r.workloads),
        rules: policy.as_ref().map_or(last.rules, |p| count(rules(p))),
        would_deny: sum(|r| r.would_deny),
        nodes: count(expected.len()),
        nodes_in_step: count(expected.len() - behind.len()),
        conditions: vec![
            condition(ACCEPTED, accepted),
            condition("Enforced", enforced),
            condition("Degraded", degraded),
        ],
    }
}

/// The condition that tells whether a policy can be taken at all.
pub const ACCEPTED: &str = "Accepted";

/// Whether it says no more than how many: such a difference can wait.
pub fn is_only_counts(last: &PolicyStatus, now: &PolicyStatus) -> bool {
    let alike = PolicyStatus { workloads: last.workloads, would_deny: last.would_deny, ..now.clone() };
    alike == *last
}

/// Why this form of the object isn't taken, if that hasn't been said of it before.
pub fn newly_refused<'s>(last: &PolicyStatus, now: &'s PolicyStatus) -> Option<&'s str> {
    let refused = |s: &PolicyStatus| s.conditions.iter().any(|c| c.type_ == ACCEPTED && c.status == "False");
    let before = refused(last) && last.observed_generation == now.observed_generation;
    let accepted = now.conditions.iter().find(|c| c.type_ == ACCEPTED && c.status == "False")?;
    (!before).then_some(accepted.message.as_str())
}

fn same(told: &super::crd::NodePolicy, object: &Document) -> bool {
    *told.policy == *object.title && *told.uid == *object.revision.uid
}

fn rules(p: &Policy) -> usize {
    let side = |rules: &Option<Vec<_>>| rules.as_ref().map_or(0, Vec::len);
    side(&p.ingress) + side(&p.egress) + p.edges.len() + p.denies.len()
}

/// What is wrong, each after its field: an object has no lines and columns.
fn said(object: &Document, otherwise: Vec<Diagnostic>) -> String {
    // One field a line, so that the line tells the field.
    let spread = serde_json::from_str::<serde_json::Value>(&object.text).ok();
    let spread = spread.and_then(|v| serde_json::to_string_pretty(&v).ok()).unwrap_or_default();
    let read = policy::read(&object.title, &spread).pop();
    let diagnostics = read.and_then(Result::err).map_or(otherwise, |rejected| rejected.diagnostics);
    let one = |d: &Diagnostic| {
        let field = field(&spread, d.line).map(|f| format!("{f}: ")).unwrap_or_default();
        let hint = d.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("{field}{}{hint}", d.message)
    };
    diagnostics.iter().filter(|d| d.is_error()).map(one).collect::<Vec<_>>().join("; ")
}

/// Which field stands in this line, from 1, of JSON with one field a line: `spec.ingress.rules[0].ports[1].port`.
fn field(spread: &str, line: u32) -> Option<String> {
    let lines: Vec<&str> = spread.lines().collect();
    let depth = |at: usize| lines[at].len() - lines[at].trim_start().len();
    let closes = |at: usize| lines[at].trim_start().starts_with([']', '}']);
    let mut at = usize::try_from(line).ok()?.checked_sub(1).filter(|at| *at < lines.len())?;
    let mut path: Vec<String> = Vec::new();
    while depth(at) > 0 {
        let own = depth(at);
        // A closing bracket belongs to what it closes.
        if closes(at) {
            at = (0..at).rev().find(|n| depth(*n) == own)?;
        }
        let text = lines[at].trim_start();
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
        let key = values.next().and_then(Result::ok).filter(|_| text[values.byte_offset()..].starts_with(':'));
        let parent = (0..at).rev().find(|n| depth(*n) < own)?;
        path.push(match key {
            Some(key) => key,
            None => {
                let before = (parent + 1..at).filter(|n| depth(*n) == own && !closes(*n)).count();
                format!("[{before}]")
            }
        });
        at = parent;
    }
    path.reverse();
    let text = path.join(".").replace(".[", "[");
    (!text.is_empty()).then_some(text)
}

fn few(nodes: &[&str]) -> String {
    let mut text = nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if nodes.len() > NAMED {
        text.push_str(&format!(" and {} more", nodes.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests;
