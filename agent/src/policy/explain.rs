//! Why a connection is allowed or denied: the two verdicts, what each end says, and which rule said it or that none
//! did.
//!
//! Answers by the reference evaluator from policies and inventory alone, so it needs no kernel and no running agent.

use super::model::{Mode, PolicyName, protocol_name};
use super::reference::{self, Connection, Decision, End, SideSays};
use super::rules::{RuleRef, Section};
use super::set::PolicySet;
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{IdentityFacts, Inventory, Posture};
use bulkhead_common::{Addr, Class, Outcome, proto};
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// An end of a connection as a person names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Party {
    /// A workload.
    Id(SpiffeId),
    /// A peer without an identity.
    Class(Class),
    /// Whoever is at this address.
    Address(IpAddr),
    /// A process under an attach point that belongs to no workload known.
    UnknownWorkload,
}

/// A text that names no party.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{text}` is neither a SPIFFE ID nor an address nor a class{why}; classes are {known}, and unknown-workload")]
pub struct BadParty {
    /// What was given.
    pub text: String,
    /// What is wrong with it, where that can be told.
    pub why: String,
    /// The classes.
    pub known: String,
}

impl FromStr for Party {
    type Err = BadParty;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            |why: String| BadParty { text: text.to_owned(), why, known: Class::ALL.map(Class::as_str).join(", ") };
        if text.starts_with(crate::identity::SCHEME) {
            return text.parse().map(Self::Id).map_err(|e: crate::identity::BadSpiffeId| bad(format!(" ({})", e.why)));
        }
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::Address(addr.to_canonical()));
        }
        if text == UNKNOWN_WORKLOAD {
            return Ok(Self::UnknownWorkload);
        }
        Class::from_name(text).map(Self::Class).ok_or_else(|| bad(String::new()))
    }
}

const UNKNOWN_WORKLOAD: &str = "unknown-workload";

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => fmt::Display::fmt(id, f),
            Self::Class(class) => f.write_str(class.as_str()),
            Self::Address(addr) => fmt::Display::fmt(addr, f),
            Self::UnknownWorkload => f.write_str(UNKNOWN_WORKLOAD),
        }
    }
}

/// The whole story of one connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who opens it.
    pub from: EndView,
    /// Who is connected to.
    pub to: EndView,
    /// The protocol's name.
    pub protocol: String,
    /// The destination's port.
    pub port: u16,
    /// `allowed`, `would-deny`, `would-allow` or `denied`.
    #[serde(serialize_with = "as_word")]
    pub outcome: Outcome,
    /// Why, in one word.
    pub reason: &'static str,
    /// What the source says.
    pub egress: SideView,
    /// What the destination says.
    pub ingress: SideView,
    /// What else should be known.
    pub notes: Vec<String>,
}

/// A note for wherever a cluster's network has policies of its own.
pub const BESIDE_CNI: &str =
    "the CNI's NetworkPolicies, and a mesh's policies, hold beside this: a connection must pass all";

/// One end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndView {
    /// As it was asked for.
    pub party: String,
    /// Who that is: SPIFFE IDs, or a class.
    pub peer: String,
    /// The workload's namespace.
    pub namespace: Option<String>,
    /// The workload's posture.
    pub posture: Option<Posture>,
}

/// What one end says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SideView {
    /// Whether it has a say: a peer without an identity has no rules, so it doesn't object.
    pub has_rules: bool,
    /// In the verdict in force.
    pub now: DecisionView,
    /// In the audited verdict.
    pub audited: DecisionView,
    /// The policies that select it.
    pub selected_by: Vec<Selecting>,
}

/// What one end says in one verdict.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionView {
    /// Whether it allows.
    pub allows: bool,
    /// The rule that decided; absent: none did.
    pub rule: Option<RuleRef>,
    /// What decided, in words.
    pub because: String,
}

/// A policy that selects an end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selecting {
    /// Its name.
    pub policy: Arc<PolicyName>,
    /// Its mode.
    pub mode: Mode,
    /// Whether it leaves this direction only what rules allow.
    pub isolates: bool,
}

fn as_word<S: Serializer>(outcome: &Outcome, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(outcome.as_str())
}

/// Judges a connection and tells why.
pub fn explain(set: &PolicySet, inventory: &Inventory, from: &Party, to: &Party, proto: u8, port: u16) -> Explanation {
    let proto = proto::judged(proto);
    let mut notes = Vec::new();
    let (stranger_from, stranger_to) = (stranger(from, inventory), stranger(to, inventory));
    let from_end = end(from, inventory, &stranger_from, proto, 0, &mut notes);
    let to_end = end(to, inventory, &stranger_to, proto, port, &mut notes);
    let connection = Connection { from: from_end, to: to_end, proto, port };
    let judged = reference::judge(set, inventory, &connection);
    let opened = |own: &End<'_>| Opened::of(set, own, &connection);
    let (egress_open, ingress_open) = (opened(&from_end), opened(&to_end));
    if let Some(why) = egress_open.now.as_ref().or(ingress_open.now.as_ref()) {
        notes.push(format!("{why}: denies and defaults aren't in force here"));
    }
    Explanation {
        from: end_view(from, &from_end),
        to: end_view(to, &to_end),
        protocol: protocol_name(proto),
        port,
        outcome: judged.outcome,
        reason: judged.reason.as_str(),
        egress: side_view(set, inventory, &from_end, judged.egress, Section::Egress, &egress_open),
        ingress: side_view(set, inventory, &to_end, judged.ingress, Section::Ingress, &ingress_open),
        notes,
    }
}

/// Why an end denies nothing, in each verdict; `None`: it does as its rules say.
struct Opened {
    now: Option<String>,
    audited: Option<String>,
}

impl Opened {
    fn of(set: &PolicySet, own: &End<'_>, c: &Connection<'_>) -> Self {
        let overrides = set.overrides();
        let lowered = [&c.from, &c.to].into_iter().find_map(|end| match end {
            End::Workload(facts) => Some((&facts.identity.namespace, overrides.lowers(&facts.identity)?)),
            _ => None,
        });
        let why = |verdict| {
            let scopes: Vec<String> = overrides.open.iter().map(ToString::to_string).collect();
            reference::is_open(set, own, c, verdict).then(|| match lowered {
                Some((namespace, to)) => format!("the namespace {namespace} is lowered to {}", to.as_str()),
                None => format!("break-glass is on ({})", scopes.join(", ")),
            })
        };
        Self { now: why(Mode::Enforce), audited: why(Mode::Audit) }
    }

    fn in_verdict(&self, verdict: Mode) -> Option<&String> {
        match verdict {
            Mode::Enforce => self.now.as_ref(),
            Mode::Audit => self.audited.as_ref(),
        }
    }
}

/// A workload that isn't in the inventory, as it would be taken if it came: by the strictest posture.
fn stranger(party: &Party, inventory: &Inventory) -> Option<IdentityFacts> {
    let Party::Id(id) = party else { return None };
    let segments: Vec<&str> = id.segments().collect();
    let namespace = match segments[..] {
        ["ns", namespace, "sa", _] => namespace.to_owned(),
        _ => String::new(),
    };
    let identity = Identity { namespace, ids: BTreeSet::from([id.clone()]) };
    Some(IdentityFacts { identity, posture: inventory.strictest(), ports: BTreeMap::new() })
}

fn end<'a>(
    party: &Party,
    inventory: &'a Inventory,
    stranger: &'a Option<IdentityFacts>,
    proto: u8,
    port: u16,
    notes: &mut Vec<String>,
) -> End<'a> {
    match party {
        Party::Class(class) => End::Class(*class),
        Party::UnknownWorkload => End::UnknownWorkload,
        Party::Address(addr) => {
            let widened = match addr.to_canonical() {
                IpAddr::V4(v4) => Addr::v4(v4.octets()),
                IpAddr::V6(v6) => Addr(v6.octets()),
            };
            reference::at_address(inventory, &widened, proto, port).unwrap_or(End::Class(Class::Unknown))
        }
        Party::Id(id) => {
            let mut known = inventory.identities.values().filter(|f| f.identity.ids.contains(id));
            match (known.next(), stranger) {
                (Some(facts), _) => {
                    let others = known.count();
                    if others > 0 {
                        notes.push(format!("{} other identities have {id} too; this is about the first", others));
                    }
                    End::Workload(facts)
                }
                (None, Some(facts)) => {
                    notes.push(format!(
                        "no workload known here has {id}; judged as one of namespace \"{}\" under posture {}",
                        facts.identity.namespace,
                        facts.posture.as_str()
                    ));
                    End::Workload(facts)
                }
                (None, None) => End::UnknownWorkload,
            }
        }
    }
}

fn end_view(party: &Party, end: &End<'_>) -> EndView {
    let (peer, facts) = match end {
        End::Workload(facts) => (facts.identity.to_string(), Some(facts)),
        End::UnknownWorkload => (UNKNOWN_WORKLOAD.to_owned(), None),
        End::Class(class) => (class.as_str().to_owned(), None),
        End::World(_) => (Class::World.as_str().to_owned(), None),
    };
    EndView {
        party: party.to_string(),
        peer,
        namespace: facts.map(|f| f.identity.namespace.clone()),
        posture: facts.map(|f| f.posture),
    }
}

fn side_view(
    set: &PolicySet,
    inventory: &Inventory,
    end: &End<'_>,
    says: SideSays,
    side: Section,
    open: &Opened,
) -> SideView {
    let has_rules = matches!(end, End::Workload(_) | End::UnknownWorkload);
    let selected_by: Vec<Selecting> = set
        .iter()
        .filter(|policy| reference::selects(policy, end) || reference::isolates(policy, end, side))
        .map(|policy| Selecting {
            policy: Arc::clone(&policy.name),
            mode: policy.mode,
            isolates: reference::isolates(policy, end, side),
        })
        .collect();
    let posture = match end {
        End::Workload(facts) => facts.posture,
        _ => inventory.strictest(),
    };
    let because = |decision: &Decision, verdict: Mode| match (&decision.rule, decision.allows) {
        (Some(rule), _) => rule.to_string(),
        (None, _) if !has_rules => "no identity, so no rules".to_owned(),
        (None, true) => match open.in_verdict(verdict) {
            Some(why) => why.clone(),
            None => format!("no rule speaks of it, and the posture is {}", posture.as_str()),
        },
        (None, false) => {
            let counts = |s: &&Selecting| s.isolates && (verdict == Mode::Audit || s.mode == Mode::Enforce);
            match selected_by.iter().find(counts) {
                Some(by) => format!("no rule allows it, and {} leaves only what rules allow", by.policy),
                None => format!("no rule allows it, and the posture is {}", posture.as_str()),
            }
        }
    };
    let view = |decision: Decision, verdict: Mode| DecisionView {
        because: because(&decision, verdict),
        allows: decision.allows,
        rule: decision.rule,
    };
    let (now, audited) = (view(says.now, Mode::Enforce), view(says.audited, Mode::Audit));
    SideView { has_rules, now, audited, selected_by }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (label, end) in [("from", &self.from), ("to", &self.to)] {
            let mut text = end.party.clone();
            if end.peer != end.party {
                text.push_str(&format!(" is {}", end.peer));
            }
            if let Some(posture) = end.posture {
                text.push_str(&format!(" (posture {})", posture.as_str()));
            }
            wrapped(f, label, &text)?;
        }
        let port = if self.port == 0 { String::new() } else { format!("/{}", self.port) };
        wrapped(f, "on", &format!("{}{port}", self.protocol))?;
        wrapped(f, "verdict", &format!("{} ({})", self.outcome.as_str(), self.reason))?;
        for (label, side) in [("source", &self.egress), ("destination", &self.ingress)] {
            f.write_str("\n")?;
            if side.now == side.audited {
                decision(f, label, "", &side.now)?;
            } else {
                decision(f, label, "now ", &side.now)?;
                decision(f, "", "audited ", &side.audited)?;
            }
            for by in &side.selected_by {
                let isolates = if by.isolates { ", isolates" } else { "" };
                wrapped(f, "", &format!("selected by {} ({}{isolates})", by.policy, by.mode.as_str()))?;
            }
        }
        for note in &self.notes {
            f.write_str("\n")?;
            wrapped(f, "note", note)?;
        }
        Ok(())
    }
}

fn decision(f: &mut fmt::Formatter<'_>, label: &str, verdict: &str, d: &DecisionView) -> fmt::Result {
    let word = if d.allows { "allows" } else { "denies" };
    wrapped(f, label, &format!("{verdict}{word}: {}", d.because))?;
    match &d.rule {
        // There is no file to look into.
        Some(rule) if rule.section == Section::Revoked => Ok(()),
        Some(rule) => wrapped(f, "", &format!("  {}:{}: {}", rule.file, rule.line, rule.text)),
        None => Ok(()),
    }
}

/// How wide the terminal's lines are.
const COLUMNS: usize = 100;
/// Where the text begins, behind the label.
const INDENT: usize = 13;

/// Writes a label and its text, broken between words; only a word that is longer than a line runs over.
fn wrapped(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    write!(f, "{label:<INDENT$}")?;
    let indent = INDENT + text.len() - text.trim_start().len();
    let mut column = INDENT;
    for (n, word) in text.trim_end().split(' ').enumerate() {
        if n > 0 {
            if column + 1 + word.chars().count() > COLUMNS {
                write!(f, "\n{:1$}", "", indent)?;
                column = indent;
            } else {
                f.write_str(" ")?;
                column += 1;
            }
        }
        f.write_str(word)?;
        column += word.chars().count();
    }
    f.write_str("\n")
}
