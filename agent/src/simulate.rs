//! What another policy set would have done to what was seen: the links that it newly denies, and those that it newly
//! allows, with how often each was tried.
//!
//! The present set is asked what it lets through now; the candidate, what it would let through once all of it is
//! enforced. So a candidate in audit shows what its enforcement would cut. Pure.

use crate::flows::PeerName;
use crate::history::{History, Record, Window};
use crate::identity::SpiffeId;
use crate::inventory::{Inventory, Posture};
use crate::judge::{Cast, Judge};
use crate::policy::{PolicySet, RuleRef};
use crate::suggest::needs_no_rule;
use bulkhead_common::verdict::Judgement;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A link on which two sets differ, or which neither allows.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Who opens it.
    pub source: PeerName,
    /// Who is connected to.
    pub destination: PeerName,
    /// The IP protocol.
    pub protocol: u8,
    /// The destination's port; 0 for protocols without ports.
    pub port: u16,
    /// The address of the end in the world, where it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// How often it was tried.
    pub attempts: u64,
    /// How often it was established.
    pub established: u64,
    /// When it was first seen, milliseconds since 1970.
    pub first: u64,
    /// When it was last seen.
    pub last: u64,
    /// Why, in the word of [`bulkhead_common::Reason`], by the candidate.
    pub reason: &'static str,
    /// The rule of the candidate that decided, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
}

/// What a candidate would change.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Simulation {
    /// The time that was looked at.
    pub window: Window,
    /// How many links were judged.
    pub links: usize,
    /// Let through by the present set, and denied by the candidate.
    pub newly_denied: Vec<Verdict>,
    /// Denied by the present set and allowed by the candidate.
    pub newly_allowed: Vec<Verdict>,
    /// Denied by both, though it was established once: before the present set was in force.
    pub still_denied: Vec<Verdict>,
    /// Records that speak of an end that no rule can speak of.
    pub unjudged: usize,
}

/// By which postures the candidate is judged. The present set is judged by those that everybody has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Under {
    /// Those that everybody has.
    #[default]
    Present,
    /// Everybody under enforce: only rules allow.
    Enforce,
    /// These under enforce, the others under observe.
    Only(BTreeSet<SpiffeId>),
}

/// Two sets, ready to be asked about links one by one.
#[derive(Debug)]
pub struct Comparison {
    cast: Cast,
    present: Judge,
    candidate: Judge,
}

/// What a candidate changes for one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Both allow.
    Allowed,
    /// The candidate denies it newly.
    NewlyDenied,
    /// The candidate allows it newly.
    NewlyAllowed,
    /// Both deny.
    StillDenied,
}

impl Comparison {
    /// For links between these names.
    pub fn of<'a>(
        present: &PolicySet,
        candidate: &PolicySet,
        inventory: &Inventory,
        names: impl IntoIterator<Item = &'a PeerName>,
        under: &Under,
    ) -> Self {
        let cast = Cast::of(inventory, names);
        let everybody = cast.under(|peer| {
            let facts = cast.facts(peer);
            match under {
                Under::Present => facts.map_or(Posture::Enforce, |f| f.posture),
                Under::Enforce => Posture::Enforce,
                Under::Only(ids) => match facts.is_some_and(|f| f.identity.ids.iter().any(|id| ids.contains(id))) {
                    true => Posture::Enforce,
                    false => Posture::Observe,
                },
            }
        });
        let present = Judge::as_it_is(present, cast.inventory());
        Self { present, candidate: Judge::of(candidate, &everybody), cast }
    }

    /// What the candidate does to this record's link; `None` if an end of it is nobody that rules can speak of.
    pub fn judge(&self, record: &Record) -> Option<(Effect, Judgement)> {
        let (Some(from), Some(to)) = self.cast.ends(record) else { return None };
        let link = &record.link;
        let [was, is] = [&self.present, &self.candidate].map(|j| j.judge(from, to, link.protocol, link.port));
        let effect = match (was.sides.now(), is.sides.audited()) {
            (true, true) => Effect::Allowed,
            (true, false) => Effect::NewlyDenied,
            (false, true) => Effect::NewlyAllowed,
            (false, false) => Effect::StillDenied,
        };
        Some((effect, is))
    }

    /// The candidate's rule that stands behind a judgement.
    pub fn rule(&self, judgement: &Judgement) -> Option<&RuleRef> {
        use bulkhead_common::verdict::Side;
        let number = match judgement.denied_by() {
            Some(Side::Egress) => judgement.egress_rule,
            Some(Side::Ingress) => judgement.ingress_rule,
            None if judgement.egress_rule != 0 => judgement.egress_rule,
            None => judgement.ingress_rule,
        };
        self.candidate.rule(number)
    }
}

/// Judges everything that was seen by both sets. What was never let through counts among the newly allowed as well: it
/// was tried.
pub fn simulate(
    history: &History,
    present: &PolicySet,
    candidate: &PolicySet,
    inventory: &Inventory,
    under: &Under,
) -> Simulation {
    let names = history.records.iter().flat_map(|r| [&r.link.source, &r.link.destination]);
    let comparison = Comparison::of(present, candidate, inventory, names, under);
    let mut simulation = Simulation { window: history.window, ..Simulation::default() };
    let mut found: BTreeMap<_, (Effect, Verdict)> = BTreeMap::new();
    for record in history.records.iter().filter(|r| !needs_no_rule(r)) {
        let Some((effect, judgement)) = comparison.judge(record) else {
            simulation.unjudged += 1;
            continue;
        };
        let (link, counts) = (&record.link, &record.counts);
        let key = (link.clone(), record.address);
        let (_, verdict) = found.entry(key).or_insert_with(|| {
            let verdict = Verdict {
                source: link.source.clone(),
                destination: link.destination.clone(),
                protocol: link.protocol,
                port: link.port,
                address: record.address,
                attempts: 0,
                established: 0,
                first: record.first,
                last: record.last,
                reason: judgement.reason.as_str(),
                rule: comparison.rule(&judgement).cloned(),
            };
            (effect, verdict)
        });
        verdict.attempts = verdict.attempts.saturating_add(counts.attempts);
        verdict.established = verdict.established.saturating_add(counts.established);
        verdict.first = verdict.first.min(record.first);
        verdict.last = verdict.last.max(record.last);
    }
    simulation.links = found.len();
    for (effect, verdict) in found.into_values() {
        match effect {
            Effect::Allowed => {}
            Effect::NewlyDenied => simulation.newly_denied.push(verdict),
            Effect::NewlyAllowed => simulation.newly_allowed.push(verdict),
            Effect::StillDenied if verdict.established > 0 => simulation.still_denied.push(verdict),
            Effect::StillDenied => {}
        }
    }
    simulation
}

#[cfg(test)]
mod tests;
