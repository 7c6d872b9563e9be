//! Rules for what was seen, with the evidence beside each, and the proof of what they would do.
//!
//! From a history, the policies that exist and everybody there is: the least that lets every regular link through. Each
//! link needs two halves, the source's egress and the destination's ingress; a half that an existing policy allows is
//! left out. What looks like a scan, a slip or an accident of counting is set apart for somebody to decide
//! ([`Apart`]). The proof is about the very text that is handed out: it is read back, compiled, and asked about every
//! link.
//!
//! Pure: what it is told is all it knows, and the same input gives the same files.

mod draft;
mod evidence;
mod outside;
mod proof;
mod sort;
mod unused;
mod write;

use crate::flows::PeerName;
use crate::history::{History, Window, shared_by};
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{Inventory, Posture};
use crate::judge::{Cast, Judge, Who};
use crate::policy::convert::is_object_name;
use crate::policy::reference::{End, isolates};
use crate::policy::{Diagnostic, Mode, PolicySet, Section};
use crate::serve::api::printable;
use bulkhead_common::slots::Sides;
use bulkhead_common::{Class, PeerId, Reason};
pub use draft::Half;
use draft::{Drafts, Named, Opening};
pub use evidence::Evidence;
pub(crate) use evidence::needs_no_rule;
use evidence::{Known, Line, Sight, gather};
use outside::Part;
pub use proof::{LinkName, Proof, Surplus};
use serde::Serialize;
use sort::Length;
pub use sort::{Apart, Mark};
use std::collections::{BTreeMap, BTreeSet};
pub use unused::Unused;
pub use write::PolicyFile;
pub(crate) use write::{port_words, time};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Only these identities get policies, complete ones; all, if there are none here.
    pub only: BTreeSet<SpiffeId>,
    /// The mode of the policies.
    pub mode: Mode,
    /// Take a history in which counts were lost.
    pub despite_losses: bool,
    /// Make rules for what was seen once, too.
    pub keep_once: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self { only: BTreeSet::new(), mode: Mode::Audit, despite_losses: false, keep_once: false }
    }
}

/// Why there is no suggestion.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// Nothing was seen.
    #[error("nothing was seen {window}: let the agent watch while the workloads work, then ask again")]
    Empty {
        /// The window in words.
        window: String,
    },
    /// Some of what happened isn't in the history.
    #[error(
        "{0} connections were counted without their ends (a table was full), so rules might be missing: raise `limits.edges` and learn anew, or take the risk with --despite-losses"
    )]
    Losses(u64),
    /// Nobody has this ID.
    #[error("nobody known here has {0}: check the spelling, or whether it ran in the window")]
    Nobody(SpiffeId),
    /// What was written can't be read back. It is a bug, and better said than enforced.
    #[error("the suggested {file} isn't a good policy file, which is a bug: {first}")]
    Unreadable {
        /// The file.
        file: String,
        /// What is wrong with it.
        first: Box<Diagnostic>,
    },
}

/// A suggested rule for one port of one peer.
#[derive(Clone, Debug, Serialize)]
pub struct SuggestedRule {
    /// Whose rule it is.
    pub workload: PeerName,
    /// Which half of the link.
    pub half: Half,
    /// The peer as the rule names it.
    pub peer: String,
    /// The protocol and port.
    pub port: String,
    /// What it rests on.
    pub evidence: Evidence,
    /// What a reader should know.
    pub marks: BTreeSet<Mark>,
    /// Why the peer is named so, where that needs saying.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Something that was seen and isn't allowed unasked.
#[derive(Clone, Debug, Serialize)]
pub struct SetApart {
    /// What was seen.
    #[serde(flatten)]
    pub link: LinkName,
    /// Why it is here.
    pub why: Apart,
    /// What was seen of it.
    pub evidence: Evidence,
    /// Whether the rules for other things let it through all the same.
    pub allowed: bool,
}

/// What comes of a history.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Suggestion {
    /// The time that it rests on.
    pub window: Window,
    /// The policies, by namespace.
    pub files: Vec<PolicyFile>,
    /// Their rules with what each rests on.
    pub rules: Vec<SuggestedRule>,
    /// What is left for somebody to decide.
    pub apart: Vec<SetApart>,
    /// What existing policies allow and nobody used.
    pub unused: Vec<Unused>,
    /// Identities of which nothing was seen: they have no policy, and under enforce they can do nothing.
    pub unseen: Vec<PeerName>,
    /// What else should be known.
    pub notes: Vec<String>,
    /// What the policies would do.
    pub proof: Proof,
    /// The existing policies and the suggested ones together, for whoever asks them something more (which live
    /// connections they would cut, say).
    #[serde(skip)]
    pub policies: PolicySet,
}

/// Suggests.
///
/// # Errors
/// When there is nothing to go by, or not enough.
pub fn suggest(
    history: &History,
    existing: &PolicySet,
    inventory: &Inventory,
    wish: &Wish,
) -> Result<Suggestion, Refusal> {
    let window = history.window;
    if history.records.is_empty() {
        let window = format!("from {} to {}", time(window.from), time(window.to));
        return Err(Refusal::Empty { window });
    }
    if window.unattributed > 0 && !wish.despite_losses {
        return Err(Refusal::Losses(window.unattributed));
    }
    let names = history.records.iter().flat_map(|r| [&r.link.source, &r.link.destination]);
    let cast = Cast::of(inventory, names);
    let mut notes = Vec::new();
    if window.unattributed > 0 {
        let n = window.unattributed;
        notes.push(format!("{n} connections were counted without their ends: rules may be missing for what they were"));
    }
    notes.extend(history.owners.iter().filter_map(|o| shared_by(&o.peer, &o.owners)));
    let named = chosen(&cast, &wish.only)?;
    let enforced = |p: PeerId| named.as_ref().is_none_or(|only| only.contains(&p));
    let everybody = cast.under(|p| if enforced(p) { Posture::Enforce } else { Posture::Observe });
    let before = Judge::of(existing, &everybody);

    let (lines, nameless) = gather(&history.records, &cast);
    let length = length(history);
    let denied = |line: &Line| {
        let j = before.judge(Who::Peer(line.from), Who::Peer(line.to), line.protocol, line.port);
        j.reason == Reason::DenyRule
    };
    let mut sorted = sort::sort(&lines, length, denied);
    if wish.keep_once {
        sorted.values_mut().filter(|why| **why == Some(Apart::Once)).for_each(|why| *why = None);
    }
    if named.is_some() {
        sorted.retain(|line, _| enforced(line.from) || enforced(line.to));
    }

    let mut work = Work { cast: &cast, before: &before, length, wish, drafts: Drafts::new(), once: Vec::new() };
    for (line, why) in &sorted {
        let Some(known) = lines.get(line).filter(|_| why.is_none()) else { continue };
        work.link(line, known, &enforced);
    }
    let Work { mut drafts, once, .. } = work;
    let seen = whoever_was_seen(&lines, &cast);
    for peer in seen.iter().filter(|p| enforced(**p)) {
        drafts.entry(*peer).or_default();
    }
    drafts.retain(|peer, _| writable(&cast, *peer, &mut notes));

    let isolated = |identity: &Identity, half: Half| isolated(existing, &cast, identity, half);
    let setting = write::Setting {
        cast: &cast,
        existing,
        mode: wish.mode,
        about: format!("what was seen from {} to {}", time(window.from), time(window.to)),
        selector: &|identity| pick(&cast, identity, true),
        isolated: &isolated,
    };
    let files = write::write(&drafts, &setting);
    let policies = proof::read_back(&files, existing)?;
    let after = Judge::of(&policies, &everybody);
    let case = proof::Case { cast: &cast, lines: &lines, sorted: &sorted, once: &once, everybody: &everybody };
    let proof = case.prove([existing, &policies], [&before, &after], &drafts);
    let apart = case.apart(&after, &nameless);
    let unseen = cast.inventory().identities.keys().filter(|p| enforced(**p) && !seen.contains(p));
    Ok(Suggestion {
        window,
        rules: listed(&drafts, &cast),
        apart,
        unused: unused::unused(existing, &everybody, &lines),
        unseen: unseen.map(|p| cast.name(*p)).collect(),
        notes,
        proof,
        files,
        policies,
    })
}

/// Those whom the wish names, if it names any.
fn chosen(cast: &Cast, only: &BTreeSet<SpiffeId>) -> Result<Option<BTreeSet<PeerId>>, Refusal> {
    if only.is_empty() {
        return Ok(None);
    }
    let mut chosen = BTreeSet::new();
    for id in only {
        let having = cast.inventory().identities.iter().filter(|(_, f)| f.identity.ids.contains(id));
        let before = chosen.len();
        chosen.extend(having.map(|(peer, _)| *peer));
        if chosen.len() == before && !cast.inventory().identities.values().any(|f| f.identity.ids.contains(id)) {
            return Err(Refusal::Nobody(id.clone()));
        }
    }
    Ok(Some(chosen))
}

/// How long was watched; where nobody says, as long as there is something to see.
fn length(history: &History) -> Length {
    let Window { from, to, watched, .. } = history.window;
    let first = history.records.iter().map(|r| r.first).min().unwrap_or(0);
    let last = history.records.iter().map(|r| r.last).max().unwrap_or(0);
    let told = [watched, to.saturating_sub(from)].into_iter().find(|n| *n > 0);
    Length(told.unwrap_or(last.saturating_sub(first)))
}

/// The identities that stand at an end of any link.
fn whoever_was_seen(lines: &BTreeMap<Line, Known<'_>>, cast: &Cast) -> BTreeSet<PeerId> {
    let both = lines.iter().filter(|(_, k)| k.evidence.established > 0).flat_map(|(line, _)| [line.from, line.to]);
    both.filter(|p| cast.facts(*p).is_some()).collect()
}

/// Whether a policy can stand in this identity's namespace.
fn writable(cast: &Cast, peer: PeerId, notes: &mut Vec<String>) -> bool {
    let Some(facts) = cast.facts(peer) else { return false };
    let namespace = &facts.identity.namespace;
    let good = namespace.is_empty() || is_object_name(namespace) && !namespace.contains('.');
    if !good {
        let who = facts.identity.to_string();
        let namespace = printable(namespace.as_bytes());
        notes.push(format!("no policy can be written for {who}: `{namespace}` can't be a policy's namespace"));
    }
    good
}

fn isolated(existing: &PolicySet, cast: &Cast, identity: &Identity, half: Half) -> bool {
    let facts = cast.inventory().identities.values().find(|f| f.identity == *identity);
    let section = match half {
        Half::Ingress => Section::Ingress,
        Half::Egress => Section::Egress,
    };
    facts.is_some_and(|f| existing.iter().any(|policy| isolates(policy, &End::Workload(f), section)))
}

/// The ID by which an identity is named: one that as few others as possible have, in its namespace or everywhere.
fn pick(cast: &Cast, identity: &Identity, within: bool) -> String {
    let others = |id: &&SpiffeId| {
        let all = cast.inventory().identities.values();
        all.filter(|f| (!within || f.identity.namespace == identity.namespace) && f.identity.ids.contains(id)).count()
    };
    let id = match identity.ids.len() {
        1 => identity.ids.first(),
        _ => identity.ids.iter().min_by_key(|id| (others(id), (*id).clone())),
    };
    id.map(ToString::to_string).unwrap_or_default()
}

fn listed(drafts: &Drafts, cast: &Cast) -> Vec<SuggestedRule> {
    let mut rules = Vec::new();
    for (peer, draft) in drafts {
        for half in [Half::Ingress, Half::Egress] {
            for (named, openings) in draft.half(half) {
                for ((protocol, port), opening) in openings {
                    let Opening { evidence, marks, why } = opening.clone();
                    rules.push(SuggestedRule {
                        workload: cast.name(*peer),
                        half,
                        peer: named.to_string(),
                        port: port_words(*protocol, *port),
                        evidence,
                        marks,
                        why,
                    });
                }
            }
        }
    }
    rules.sort_by(|a, b| {
        let key = |r: &SuggestedRule| (r.workload.namespace.clone(), r.workload.id.clone(), r.half);
        key(a).cmp(&key(b))
    });
    rules
}

/// Drafting the rules, link by link.
struct Work<'a> {
    cast: &'a Cast,
    before: &'a Judge,
    length: Length,
    wish: &'a Wish,
    drafts: Drafts,
    /// Addresses that were left out as slips.
    once: Vec<(Line, Sight<'a>)>,
}

impl<'a> Work<'a> {
    /// Both halves of a link, as far as they are needed.
    fn link(&mut self, line: &Line, known: &Known<'a>, enforced: &impl Fn(PeerId) -> bool) {
        for (half, own, peer, bit) in [
            (Half::Egress, line.from, line.to, Sides::EGRESS_AUDITED),
            (Half::Ingress, line.to, line.from, Sides::INGRESS_AUDITED),
        ] {
            if !own.is_identity() || !enforced(own) {
                continue;
            }
            let needed = |sight: &Sight<'_>| {
                let (from, to) = sight.ends(line);
                self.before.judge(from, to, line.protocol, line.port).sides.0 & bit == 0
            };
            if peer.class() == Some(Class::World) {
                let choice = outside::choose(known, self.length, self.wish.keep_once, needed);
                for chosen in choice.parts {
                    let named = match chosen.part {
                        Part::World => Named::Class(Class::World),
                        Part::Net(net) => Named::Net(net),
                    };
                    self.open(own, half, named, line, chosen.evidence, chosen.why);
                }
                self.once.extend(choice.once.into_iter().map(|sight| (*line, sight)));
            } else if known.sights.iter().any(needed) {
                let named = match (peer.class(), self.cast.facts(peer)) {
                    (Some(class), _) => Named::Class(class),
                    (None, Some(facts)) => Named::Id(pick(self.cast, &facts.identity, false)),
                    (None, None) => continue,
                };
                self.open(own, half, named, line, known.evidence.clone(), String::new());
            }
        }
    }

    fn open(&mut self, own: PeerId, half: Half, named: Named, line: &Line, evidence: Evidence, why: String) {
        let mut marks = self.length.marks(&evidence);
        match named {
            Named::Class(Class::World) => {
                marks.insert(Mark::World);
            }
            Named::Class(Class::Metadata) if half == Half::Egress => {
                marks.insert(Mark::Metadata);
            }
            _ => {}
        }
        let opening = Opening { evidence, marks, why };
        self.drafts.entry(own).or_default().add(half, named, (line.protocol, line.port), opening);
    }
}

impl Sight<'_> {
    /// Both ends of the link, with this address where the world stands.
    fn ends(&self, line: &Line) -> (Who, Who) {
        let end = |p: PeerId| match self.address {
            Some(address) if p.class() == Some(Class::World) => Who::Address(address),
            _ => Who::Peer(p),
        };
        (end(line.from), end(line.to))
    }
}

#[cfg(test)]
mod tests;
