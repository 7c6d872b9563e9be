//! What the suggested policies would do: every link that was seen is judged by them, and what they allow is compared
//! with what was seen.

use super::draft::Drafts;
use super::evidence::{Evidence, Known, Line, Sight};
use super::sort::{Apart, Mark};
use super::{PolicyFile, Refusal, SetApart};
use crate::effect::{self, Delta, Ends};
use crate::flows::PeerName;
use crate::history::Record;
use crate::inventory::Inventory;
use crate::judge::{Cast, Judge, Who};
use crate::policy::{PolicySet, parse};
use bulkhead_common::Class;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

/// A link by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct LinkName {
    /// Who opens it.
    pub source: PeerName,
    /// Who is connected to.
    pub destination: PeerName,
    /// The IP protocol.
    pub protocol: u8,
    /// The destination's port; 0 for protocols without ports.
    pub port: u16,
    /// The address of the end in the world, where one is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The DNS name by which the workload had asked for it. Chosen by strangers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What the policies would do.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// Links that were established and not set apart.
    pub links: usize,
    /// Their connections.
    pub connections: u64,
    /// Of these links, those that the policies deny. Must be none.
    pub false_denies: Vec<LinkName>,
    /// Of these links, those for which nothing had to be suggested.
    pub allowed_before: usize,
    /// What the suggestion allows beyond what was seen.
    pub surplus: Surplus,
    /// Rules that rest on few connections.
    pub few: usize,
}

/// What the suggested policies allow beyond the existing ones, in pairs times ports. All of the world, and each part of
/// it that a rule names, is one peer.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Surplus {
    /// What they allow.
    pub allowed: u64,
    /// Of it, what was never established.
    pub never_seen: u64,
    /// The second as a part of the first.
    pub share: f64,
}

/// The suggested policies as they are read back from their text, together with those that exist.
pub(super) fn read_back(files: &[PolicyFile], existing: &PolicySet) -> Result<PolicySet, Refusal> {
    let mut all: Vec<_> = existing.iter().cloned().collect();
    for PolicyFile { file, text, .. } in files {
        let policies = parse(file, text)
            .map_err(|mut faults| Refusal::Unreadable { file: file.clone(), first: Box::new(faults.swap_remove(0)) })?;
        all.extend(policies);
    }
    Ok(all.into_iter().collect())
}

/// Everything that is to be proven.
pub(super) struct Case<'a> {
    pub(super) cast: &'a Cast,
    pub(super) lines: &'a BTreeMap<Line, Known<'a>>,
    pub(super) sorted: &'a BTreeMap<Line, Option<Apart>>,
    pub(super) once: &'a [(Line, Sight<'a>)],
    pub(super) everybody: &'a Inventory,
}

impl Case<'_> {
    /// Judges every link, and counts what is allowed.
    pub(super) fn prove(&self, sets: [&PolicySet; 2], judges: [&Judge; 2], drafts: &Drafts) -> Proof {
        let [before, after] = judges;
        let mut proof = Proof { surplus: self.surplus(sets, judges), ..Proof::default() };
        let slips: BTreeSet<(Line, Option<IpAddr>)> = self.once.iter().map(|(l, s)| (*l, s.address)).collect();
        for (line, _) in self.sorted.iter().filter(|(_, why)| why.is_none()) {
            let sights = self.lines.get(line).into_iter().flat_map(|k| &k.sights);
            let mut allowed_before = true;
            for sight in sights.filter(|s| s.evidence.established > 0 && !slips.contains(&(*line, s.address))) {
                let (from, to) = sight.ends(line);
                let allows = |j: &Judge| j.judge(from, to, line.protocol, line.port).sides.audited();
                proof.connections += sight.evidence.established;
                allowed_before &= allows(before);
                if !allows(after) {
                    proof.false_denies.push(self.name(line, Some(sight)));
                }
            }
            proof.links += 1;
            proof.allowed_before += usize::from(allowed_before);
        }
        let openings =
            drafts.values().flat_map(|d| d.ingress.values().chain(d.egress.values())).flat_map(|o| o.values());
        proof.few = openings.filter(|o| o.marks.contains(&Mark::Few)).count();
        proof
    }

    /// What was set apart, and whether the rules for other things let it through.
    pub(super) fn apart(&self, after: &Judge, nameless: &[&Record]) -> Vec<SetApart> {
        let mut all = Vec::new();
        for (line, why) in self.sorted {
            let (Some(why), Some(known)) = (why, self.lines.get(line)) else { continue };
            let allowed = |s: &Sight<'_>| {
                let (from, to) = s.ends(line);
                after.judge(from, to, line.protocol, line.port).sides.audited()
            };
            let only = match &known.sights[..] {
                [one] => Some(one),
                _ => None,
            };
            let (link, evidence) = (self.name(line, only), known.evidence.clone());
            all.push(SetApart { link, why: *why, evidence, allowed: known.sights.iter().all(allowed) });
        }
        for (line, sight) in self.once {
            let (from, to) = sight.ends(line);
            let allowed = after.judge(from, to, line.protocol, line.port).sides.audited();
            let (link, evidence) = (self.name(line, Some(sight)), sight.evidence.clone());
            all.push(SetApart { link, why: Apart::Once, evidence, allowed });
        }
        let mut strangers: BTreeMap<LinkName, Vec<&Record>> = BTreeMap::new();
        for record in nameless {
            let crate::history::Link { source, destination, protocol, port } = record.link.clone();
            let link = LinkName { source, destination, protocol, port, address: None, name: None };
            strangers.entry(link).or_default().push(record);
        }
        for (link, records) in strangers {
            let evidence = Evidence::of(records);
            all.push(SetApart { link, why: Apart::UnknownPeer, evidence, allowed: false });
        }
        all.sort_by(|a, b| (a.why, &a.link).cmp(&(b.why, &b.link)));
        all.dedup_by(|a, b| a.why == b.why && a.link == b.link);
        all
    }

    /// A link by name; of the world, one address of it.
    fn name(&self, line: &Line, sight: Option<&Sight<'_>>) -> LinkName {
        let Line { from, to, protocol, port } = *line;
        let (source, destination) = (self.cast.name(from), self.cast.name(to));
        let address = sight.and_then(|s| s.address);
        let name = address.and(sight).and_then(Sight::name).map(ToOwned::to_owned);
        LinkName { source, destination, protocol, port, address, name }
    }

    fn surplus(&self, sets: [&PolicySet; 2], judges: [&Judge; 2]) -> Surplus {
        let ends = Ends::of(self.everybody, sets);
        let around = |who: Who, address: Option<IpAddr>| -> Vec<Who> {
            match (address, who.class()) {
                (Some(a), Some(Class::World)) => ends.around(a).collect(),
                _ => vec![who],
            }
        };
        let mut seen: HashSet<(Who, Who, u8, u16)> = HashSet::new();
        for (line, known) in self.lines {
            for sight in known.sights.iter().filter(|s| s.evidence.established > 0) {
                for from in around(Who::Peer(line.from), sight.address) {
                    let to = around(Who::Peer(line.to), sight.address);
                    seen.extend(to.into_iter().map(|to| (from, to, line.protocol, line.port)));
                }
            }
        }
        let deltas = effect::deltas(sets, judges, self.everybody, &ends);
        let gained: HashSet<_> = deltas.into_iter().filter(|d| d.gained).collect();
        // Where a greater part of the world is allowed, the smaller ones in it are no peers of their own.
        let in_a_greater = |d: &Delta| {
            let address = |who: Who| match who {
                Who::Address(a) => Some(a),
                Who::Peer(_) => None,
            };
            let from = address(d.from).map(|a| ends.around(a).skip(1).map(|from| Delta { from, ..*d }));
            let to = address(d.to).map(|a| ends.around(a).skip(1).map(|to| Delta { to, ..*d }));
            from.into_iter().flatten().chain(to.into_iter().flatten()).any(|greater| gained.contains(&greater))
        };
        let mut surplus = Surplus::default();
        for d in gained.iter().filter(|d| !in_a_greater(d)) {
            let ports = u64::from(d.last - d.first) + 1;
            let known = (d.first..=d.last).filter(|port| seen.contains(&(d.from, d.to, d.protocol, *port))).count();
            surplus.allowed += ports;
            surplus.never_seen += ports - u64::try_from(known).unwrap_or(ports).min(ports);
        }
        if surplus.allowed > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a share for people")]
            let share = surplus.never_seen as f64 / surplus.allowed as f64;
            surplus.share = share;
        }
        surplus
    }
}
