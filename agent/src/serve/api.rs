//! What goes over the control socket, as both ends know it.
//!
//! Fields may be added; none changes its meaning. Every type reads what it writes.

use crate::datapath::Drift;
use crate::declog;
use crate::flows::{Count, Edge, PeerName};
use crate::inventory::Posture;
use crate::policy::Lowered;
use crate::serve::orders::Cutting;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// `GET /status`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The name of this agent.
    pub instance: String,
    /// Its process.
    pub pid: u32,
    /// The running kernel's release.
    pub kernel: String,
    /// Whether a ruleset is in force and the programs are attached.
    pub ready: bool,
    /// Which ruleset is in force.
    pub epoch: u32,
    /// The set of maps.
    pub generation: String,
    /// How many rulesets this agent has applied.
    pub commits: u64,
    /// The last of them.
    pub last_commit: Option<Commit>,
    /// How many events the kernel had no room to send.
    pub lost_events: u64,
    /// How often a peer outside was counted without its address, for want of room.
    #[serde(default)]
    pub without_address: u64,
    /// How many DNS answers weren't told: too many in a second, or no room.
    #[serde(default)]
    pub lost_answers: u64,
    /// How many sockets found their place in the table taken, so that their state was allocated: slower, but nothing else.
    #[serde(default)]
    pub sockets_without_place: u64,
    /// The programs.
    pub programs: Vec<Program>,
    /// What the kernel can and can't do.
    pub features: Vec<Feature>,
    /// How full the tables are.
    pub maps: Vec<MapFill>,
    /// The workloads.
    pub workloads: Vec<WorkloadStatus>,
    /// The policies in force.
    pub policies: Arc<[PolicyStatus]>,
    /// The custom resources that are policies, whether they were taken or not.
    #[serde(default)]
    pub objects: Vec<ObjectStatus>,
    /// What is wrong with the configuration and the policies; the last good form is in force.
    pub findings: Vec<Finding>,
    /// The nodes of whose pods nobody has told yet, and which the agent's first start on this node waits for or, while it
    /// is ready, has gone ahead without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untold_nodes: Vec<String>,
    /// What was found to be out of order in the kernel, or with the agent, at the last look.
    pub faults: Vec<String>,
    /// Those of them that are about objects of the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub object_faults: Vec<ObjectFault>,
    /// What isn't contained here, and why.
    pub not_contained: Vec<NotContained>,
    /// How the decision log is, if one is written.
    #[serde(default)]
    pub decision_log: Option<declog::Health>,
    /// What was commanded and holds above the files.
    #[serde(default)]
    pub overrides: Overridden,
    /// Whether the tables still said what was compiled.
    #[serde(default)]
    pub drift: DriftStatus,
    /// For how long nothing was attached since the machine was started, milliseconds; absent: not known.
    #[serde(default)]
    pub open_since_boot_ms: Option<u64>,
    /// Sockets that were cut since the agent started.
    #[serde(default)]
    pub cut_sockets: u64,
    /// The last time that live connections were cut.
    #[serde(default)]
    pub last_cut: Option<Cutting>,
}

/// What came of reading the kernel's tables back, since the agent started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DriftStatus {
    /// How often that was done.
    pub verified: u64,
    /// How often they didn't say what was compiled.
    pub found: u64,
    /// How often that was put right.
    pub repaired: u64,
    /// The last difference.
    pub last: Option<Drift>,
}

/// What was commanded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Overridden {
    /// IDs that were withdrawn.
    pub revoked: Vec<Override>,
    /// Where nothing is enforced.
    pub break_glass: Vec<Override>,
    /// What was turned to enforce.
    pub enforced: Vec<Override>,
    /// Namespaces in which nothing is enforced, by their annotation or since an ambient mesh is there.
    #[serde(default)]
    pub lowered: BTreeMap<String, Lowered>,
}

/// Something that was commanded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Override {
    /// An ID, a scope, or what was turned to enforce.
    pub what: String,
    /// Since when, milliseconds since 1970.
    pub since: u64,
    /// When it ends by itself; of a trial, when it is turned back unless confirmed.
    pub until: Option<u64>,
    /// Why.
    pub reason: String,
}

/// One application of a ruleset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Commit {
    /// Its epoch.
    pub epoch: u32,
    /// New entries.
    pub inserts: u64,
    /// Changed slots.
    pub writes: u64,
    /// Entries to be removed.
    pub removals: u64,
    /// From the call until it was in force, microseconds.
    pub in_force_after_us: u64,
}

/// One loaded program.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Where it hooks in.
    pub hook: String,
    /// The cgroup that it is attached to.
    pub attach_point: String,
    /// The kernel's id; 0: not loaded.
    pub id: u32,
    /// How many instructions the verifier looked at, where the kernel says.
    pub verified_instructions: Option<u32>,
    /// Whether it is attached.
    pub attached: bool,
}

/// Something that a kernel may lack.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Whether this kernel has it.
    pub available: bool,
    /// Whether the agent can't do without.
    #[serde(default)]
    pub required: bool,
    /// What follows from that.
    pub note: String,
}

/// How full a table is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MapFill {
    /// The table.
    pub name: String,
    /// Entries in it.
    pub used: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// One workload of the configuration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// Its name.
    pub name: String,
    /// Who it is.
    pub identity: PeerName,
    /// Its posture.
    pub posture: Posture,
    /// Whether an ID of it was revoked.
    #[serde(default)]
    pub revoked: bool,
    /// Whether nothing is enforced for it now, by break-glass.
    #[serde(default)]
    pub break_glass: bool,
    /// How far its namespace is lowered, if it is: then nothing is enforced for it either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowered: Option<Lowered>,
    /// How many addresses outside are counted for its identity.
    #[serde(default)]
    pub outside: u32,
    /// What runs it on a cluster: `shop/Deployment/web`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The cgroups in which it runs now.
    pub cgroups: Vec<String>,
}

/// One policy in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// The file that it came from.
    pub file: String,
    /// `audit` or `enforce`.
    #[serde(default)]
    pub mode: String,
    /// The names of the workloads that it selects.
    #[serde(default)]
    pub selects: Vec<String>,
}

/// One policy object of the API server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectStatus {
    /// Kind, namespace if it has one, and name; [`PolicyStatus::file`] of a policy that came from it is the same.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Which form of it was read last.
    pub generation: i64,
    /// Whether that form is in force; else its last good one is, or what stands in for it.
    pub in_force: bool,
}

/// One complaint about a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Which file or object; empty: not known.
    #[serde(default)]
    pub file: String,
    /// Whether it keeps something out of force; else it is a warning.
    pub error: bool,
    /// `file:line:column: severity: message (hint: …)`.
    pub text: String,
}

/// Something that is wrong with an object of the cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct ObjectFault {
    /// Its kind and name, such as `Namespace/shop`; of a kind that can't be watched, what it is called in requests.
    pub object: String,
    /// What is wrong.
    pub text: String,
}

/// Something that Bulkhead doesn't keep apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct NotContained {
    /// What.
    pub what: String,
    /// Why, and what would help.
    pub why: String,
}

/// A line of `GET /edges`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EdgeLine {
    /// Between whom.
    #[serde(flatten)]
    pub edge: Edge,
    /// How often and when.
    #[serde(flatten)]
    pub count: Count,
    /// Of a peer outside, the addresses with the most of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<AddressLine>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_addresses: u64,
    /// What runs the source's workloads of this node, on a cluster.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub source_owners: BTreeSet<String>,
    /// What runs the destination's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub destination_owners: BTreeSet<String>,
}

/// One address of a peer outside.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressLine {
    /// The address.
    pub address: IpAddr,
    /// The DNS name by which the workload had asked for it. Chosen by strangers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How often and when, as far as this agent knows.
    #[serde(flatten)]
    pub count: Count,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A line of `GET /observe?follow=true`: one decision as it was made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Decision {
    /// When it was read, milliseconds since 1970.
    pub time: u64,
    /// By which ruleset.
    pub epoch: u32,
    /// Between whom.
    #[serde(flatten)]
    pub edge: Edge,
    /// The hook that decided.
    pub hook: String,
    /// The source's address and port, as far as known.
    pub source_address: String,
    /// The destination's address and port.
    pub destination_address: String,
    /// The DNS name by which our workload had asked for its peer's address. Chosen by strangers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The process; 0: not known.
    pub pid: u32,
    /// Its command name. Any bytes that the process chose, made printable.
    pub comm: String,
    /// Its executable, if it was still there.
    pub executable: Option<String>,
    /// The source's rule.
    pub egress_rule: Option<String>,
    /// The destination's rule.
    pub ingress_rule: Option<String>,
    /// Whether break-glass held for it.
    #[serde(default)]
    pub break_glass: bool,
}

/// `GET /explain`: the same story for people and for programs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// Whether it is let through now.
    pub passes: bool,
    /// For people.
    pub text: String,
    /// For programs: [`crate::policy::Explanation`].
    pub explanation: serde_json::Value,
}

impl Explained {
    /// Tells it both ways.
    ///
    /// # Errors
    /// When it can't be written as JSON.
    pub fn of(explanation: &crate::policy::Explanation) -> serde_json::Result<Self> {
        Ok(Self {
            passes: explanation.outcome.passes(),
            text: explanation.to_string(),
            explanation: serde_json::to_value(explanation)?,
        })
    }
}

/// What to show of edges and decisions: all that is given must fit.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Filter {
    /// A part of a SPIFFE ID or class, of either end.
    pub id: Option<String>,
    /// A namespace of either end.
    pub namespace: Option<String>,
    /// An outcome.
    pub verdict: Option<String>,
    /// The destination's port.
    pub port: Option<u16>,
}

impl Filter {
    /// Whether this edge is to be shown.
    pub fn fits(&self, edge: &Edge) -> bool {
        let Self { id, namespace, verdict, port } = self;
        let ends = [&edge.source, &edge.destination];
        id.as_ref().is_none_or(|id| ends.iter().any(|e| e.id.contains(id.as_str())))
            && namespace.as_ref().is_none_or(|n| ends.iter().any(|e| e.namespace == *n))
            && verdict.as_ref().is_none_or(|v| edge.outcome == *v)
            && port.is_none_or(|p| edge.port == p)
    }
}

/// Whether a terminal does something with it instead of showing it: control characters and direction marks.
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Makes a text that a process chose safe for terminals and logs: control characters, direction marks and backslashes
/// become escapes.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_obeyed(c) || c == '\\' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_made_printable() {
        assert_eq!(printable(b"nginx: worker"), "nginx: worker");
        assert_eq!(printable(b"\x1b[2Jx\n\xffy\\"), "\\u{1b}[2Jx\\n\\xffy\\\\");
        assert_eq!(printable("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }

    #[test]
    fn everything_given_must_fit() {
        let name = |id: &str, ns: &str| PeerName { id: id.to_owned(), namespace: ns.to_owned() };
        let edge = Edge {
            source: name("spiffe://t/web", "shop"),
            destination: name("spiffe://t/db", ""),
            port: 5432,
            protocol: 6,
            direction: "egress".to_owned(),
            outcome: "denied".to_owned(),
            reason: "no-egress-rule".to_owned(),
        };
        let fits = |f: Filter| f.fits(&edge);
        assert!(fits(Filter::default()));
        assert!(fits(Filter { id: Some("t/db".to_owned()), port: Some(5432), ..Filter::default() }));
        assert!(fits(Filter { namespace: Some("shop".to_owned()), ..Filter::default() }));
        assert!(!fits(Filter { id: Some("t/db".to_owned()), port: Some(80), ..Filter::default() }));
        assert!(!fits(Filter { verdict: Some("allowed".to_owned()), ..Filter::default() }));
    }
}
