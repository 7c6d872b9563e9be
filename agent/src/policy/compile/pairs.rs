//! From clauses to the entries of pairs: who meets whom, and for each pair the ports cut into blocks of one verdict.
//!
//! The precedence, highest first: revoked, deny, then allow, then the default of each side. (Built-ins, which pass between the
//! two, are about packets that no rule names; the hooks know them.) It is resolved here, so an entry in the kernel is
//! complete: for both sides, both verdicts and every port of its pair and protocol.
//!
//! A pair gets entries if some clause names it as itself. It then inherits what its ends say about any workload, and a
//! part of the world what is said about the world, since the kernel looks no further than the pair. Under break-glass, and
//! where a namespace is lowered, each pair with an end there has entries, since the other end's own default would deny.

use super::super::model::Mode;
use super::super::overrides::Overrides;
use super::clauses::Clause;
use super::peers::{PeerSet, Peers};
use super::ports::{PROTOCOLS, Spans, blocks};
use crate::inventory::Inventory;
use bulkhead_common::maps::RuleKey;
use bulkhead_common::slots::{Baseline, PairHeader, Permit, Sides};
use bulkhead_common::{Class, PeerId};
use std::collections::BTreeMap;

/// An index into the clauses; a lower one takes precedence.
type Rank = u32;
/// No clause: the pair has entries for another reason.
const NOBODY: Rank = Rank::MAX;
/// Every bit of a mask of protocols.
const ALL_PROTOCOLS: u8 = u8::MAX;
/// Both sides' verdicts in force.
const NOW: u8 = Sides::EGRESS_NOW | Sides::INGRESS_NOW;
/// Both sides' audited verdicts.
const AUDITED: u8 = Sides::EGRESS_AUDITED | Sides::INGRESS_AUDITED;

/// For whom nothing is denied, and in which verdicts.
pub(super) struct Open {
    /// For everybody.
    everywhere: u8,
    /// For these, whatever holds for everybody.
    identities: BTreeMap<PeerId, u8>,
}

impl Open {
    pub(super) fn of(overrides: &Overrides, inventory: &Inventory) -> Self {
        let open = inventory.identities.iter().map(|(peer, facts)| {
            let bits = |verdict, bits| if overrides.opens(&facts.identity, verdict) { bits } else { 0 };
            (*peer, bits(Mode::Enforce, NOW) | bits(Mode::Audit, AUDITED))
        });
        let everywhere = if overrides.open_everywhere() { NOW } else { 0 };
        Self { everywhere, identities: open.filter(|(_, bits)| *bits != 0).collect() }
    }

    /// The verdicts in which nothing that this peer takes part in is denied: bits of [`Sides`], for both ends.
    pub(super) fn bits(&self, peer: PeerId) -> u8 {
        self.everywhere | self.identities.get(&peer).copied().unwrap_or(0)
    }

    /// Every pair of which one end alone is open. Where everybody is, each end's default says so.
    fn each_pair(&self, peers: &Peers<'_>, mut pair: impl FnMut(PeerId, PeerId)) {
        for (open, _) in self.identities.iter().filter(|(_, bits)| **bits & !self.everywhere != 0) {
            for other in peers.identities() {
                pair(*open, other);
                pair(other, *open);
            }
        }
    }
}

/// Makes the entries of all pairs.
pub(super) fn entries(
    clauses: &[Clause<'_>],
    peers: &Peers<'_>,
    inventory: &Inventory,
    baselines: &BTreeMap<PeerId, Baseline>,
    open: &Open,
) -> Vec<(RuleKey, u64)> {
    let mut meetings = Meetings { elsewhere: Elsewhere::of(inventory), ..Meetings::default() };
    for (rank, clause) in (0..).zip(clauses) {
        meetings.add(rank, clause, &clause.from, &clause.to, peers, inventory);
        for e in &clause.except {
            let from = e.from.as_ref().map_or_else(|| clause.from.clone(), |f| clause.from.meet(f));
            let to = e.to.as_ref().map_or_else(|| clause.to.clone(), |t| clause.to.meet(t));
            if e.from.is_some() || e.to.is_some() {
                meetings.add(rank, clause, &from, &to, peers, inventory);
            }
        }
    }
    let Meetings { pairs, elsewhere, .. } = &mut meetings;
    open.each_pair(peers, |src, dst| {
        if elsewhere.concerns_here(src, dst) {
            pairs.push((src, dst, NOBODY));
        }
    });
    meetings.pairs.sort_unstable();
    meetings.pairs.dedup();

    let mut writer = Writer { clauses, inventory, baselines, open, entries: Vec::new(), cuts: Vec::new() };
    let mut ranks = Vec::new();
    for pair in meetings.pairs.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (src, dst, _) = pair[0];
        let own = pair.iter().map(|(_, _, rank)| *rank);
        let every = if pair.iter().any(|(_, _, rank)| *rank == NOBODY) { ALL_PROTOCOLS } else { 0 };
        let protocols = own.clone().fold(every, |mask, r| mask | writer.protocols(r, dst));
        ranks.clear();
        ranks.extend(own);
        if src.is_identity() && dst.is_identity() {
            ranks.extend(meetings.to_any.get(&src).into_iter().flatten());
            ranks.extend(meetings.from_any.get(&dst).into_iter().flatten());
        } else if dst.is_cidr() {
            ranks.extend(meetings.of_pair(src, Class::World.id()));
        } else if src.is_cidr() {
            ranks.extend(meetings.of_pair(Class::World.id(), dst));
        }
        ranks.sort_unstable();
        ranks.dedup();
        writer.pair(src, dst, &ranks, protocols);
    }
    for (src, ranks) in &mut meetings.to_any {
        ranks.dedup();
        let protocols = ranks.iter().fold(0, |mask, r| mask | writer.protocols(*r, PeerId::ANY_WORKLOAD));
        writer.pair(*src, PeerId::ANY_WORKLOAD, ranks, protocols);
    }
    for (dst, ranks) in &mut meetings.from_any {
        ranks.dedup();
        let protocols = ranks.iter().fold(0, |mask, r| mask | writer.protocols(*r, *dst));
        writer.pair(PeerId::ANY_WORKLOAD, *dst, ranks, protocols);
    }
    writer.entries
}

/// Which clauses speak of which pairs.
#[derive(Default)]
struct Meetings {
    /// Of pairs named as themselves, in order when all are added.
    pairs: Vec<(PeerId, PeerId, Rank)>,
    /// By source: what it says about any workload as destination. In order of rank.
    to_any: BTreeMap<PeerId, Vec<Rank>>,
    /// By destination: what it says about any workload as source. In order of rank.
    from_any: BTreeMap<PeerId, Vec<Rank>>,
    elsewhere: Elsewhere,
}

impl Meetings {
    fn add(
        &mut self,
        rank: Rank,
        clause: &Clause<'_>,
        from: &PeerSet,
        to: &PeerSet,
        peers: &Peers<'_>,
        inventory: &Inventory,
    ) {
        let egress = clause.bits & Sides::EGRESS != 0;
        let ingress = clause.bits & Sides::INGRESS != 0;
        let elsewhere = &self.elsewhere;
        let mut meet = |s: PeerId, d: PeerId| {
            if elsewhere.concerns_here(s, d) {
                self.pairs.push((s, d, rank));
            }
        };
        for s in from.ids.iter() {
            to.ids.iter().for_each(|d| meet(*s, *d));
        }
        // An entry for "any workload" as destination is read for the source's side only, and the other way round. So
        // where such a clause decides the other side as well, its pairs are written out.
        if from.any && egress {
            for s in peers.identities() {
                to.ids.iter().for_each(|d| meet(s, *d));
            }
        }
        if to.any && ingress {
            for d in peers.identities() {
                from.ids.iter().for_each(|s| meet(*s, d));
            }
        }
        // A named port is another number at each destination, so no entry for all of them can hold it.
        if to.any && egress && clause.names_ports() {
            let having = inventory.identities.iter().filter(|(_, facts)| clause.names_port_of(facts));
            for (d, _) in having {
                from.ids.iter().for_each(|s| meet(*s, *d));
                if from.any {
                    peers.identities().for_each(|s| meet(s, *d));
                }
            }
        }
        if from.any && ingress && !egress {
            for d in to.ids.iter().filter(|d| d.is_identity()) {
                self.from_any.entry(*d).or_default().push(rank);
            }
        }
        if to.any && egress && !ingress {
            for s in from.ids.iter().filter(|s| s.is_identity()) {
                self.to_any.entry(*s).or_default().push(rank);
            }
        }
        if from.any && to.any {
            for p in peers.identities() {
                self.to_any.entry(p).or_default().push(rank);
                self.from_any.entry(p).or_default().push(rank);
            }
        }
    }

    fn of_pair(&self, src: PeerId, dst: PeerId) -> impl Iterator<Item = Rank> {
        let start = self.pairs.partition_point(|(s, d, _)| (*s, *d) < (src, dst));
        self.pairs[start..].iter().take_while(move |(s, d, _)| (*s, *d) == (src, dst)).map(|(_, _, rank)| *rank)
    }
}

/// By number: whether an identity runs elsewhere only.
#[derive(Default)]
pub(super) struct Elsewhere(Vec<bool>);

impl Elsewhere {
    pub(super) fn of(inventory: &Inventory) -> Self {
        let most = inventory.elsewhere.last().map_or(0, |last| last.0 as usize + 1);
        let mut all = vec![false; most];
        for peer in &inventory.elsewhere {
            if let Some(one) = all.get_mut(peer.0 as usize) {
                *one = true;
            }
        }
        Self(all)
    }

    /// Whether a workload of this node may be judged as this. One that isn't known yet is looked up as the class.
    pub(super) fn is_here(&self, peer: PeerId) -> bool {
        match peer.class() {
            Some(class) => matches!(class, Class::Unknown | Class::Host),
            None => peer.is_identity() && !self.0.get(peer.0 as usize).copied().unwrap_or(false),
        }
    }

    /// Whether rules have a say in this pair, and this node may see a connection of it.
    fn concerns_here(&self, src: PeerId, dst: PeerId) -> bool {
        (src.is_identity() || dst.is_identity()) && (self.is_here(src) || self.is_here(dst))
    }
}

/// Writes the entries of one pair after the other.
struct Writer<'a> {
    clauses: &'a [Clause<'a>],
    inventory: &'a Inventory,
    baselines: &'a BTreeMap<PeerId, Baseline>,
    open: &'a Open,
    entries: Vec<(RuleKey, u64)>,
    /// Where a clause begins (true) or has ended; kept to be used again.
    cuts: Vec<(u32, bool, Rank)>,
}

impl Writer<'_> {
    /// The protocols of which the clause names ports at this destination, exceptions not taken off.
    fn protocols(&self, rank: Rank, dst: PeerId) -> u8 {
        self.clause(rank).map_or(0, |c| match c.ports.named.is_empty() {
            true => c.ports.spans.protocols(),
            false => c.ports.at(self.inventory.identities.get(&dst)).protocols(),
        })
    }

    fn clause(&self, rank: Rank) -> Option<&Clause<'_>> {
        self.clauses.get(rank as usize)
    }

    /// Writes the header and blocks of a pair, for the protocols in the mask.
    fn pair(&mut self, src: PeerId, dst: PeerId, ranks: &[Rank], protocols: u8) {
        let concerned = side(src, Sides::EGRESS) | side(dst, Sides::INGRESS);
        let default = |p: PeerId, side: u8| match self.baselines.get(&p) {
            Some(b) if concerned & side != 0 => b.sides.0 & side,
            _ => side,
        };
        let open = self.open.bits(src) | self.open.bits(dst);
        let default = default(src, Sides::EGRESS) | default(dst, Sides::INGRESS) | open;
        let spans: Vec<(Rank, Spans)> = ranks.iter().filter_map(|r| Some((*r, self.spans(*r, src, dst)?))).collect();
        for (_, proto) in PROTOCOLS.iter().enumerate().filter(|(n, _)| protocols & (1 << n) != 0) {
            self.cuts.clear();
            for (rank, spans) in &spans {
                for (first, last) in spans.of_protocol(*proto) {
                    self.cuts.push((first.into(), true, *rank));
                    self.cuts.push((u32::from(last) + 1, false, *rank));
                }
            }
            self.cuts.sort_unstable();
            let key = RuleKey { src: src.0, dst: dst.0, port: 0, proto: *proto, size: 0 };
            self.protocol(key, concerned, default, open);
        }
    }

    /// The ports that a clause speaks of, between these two.
    fn spans(&self, rank: Rank, src: PeerId, dst: PeerId) -> Option<Spans> {
        let clause = self.clause(rank)?;
        let destination = self.inventory.identities.get(&dst);
        let mut spans = clause.ports.at(destination);
        for e in &clause.except {
            if e.from.as_ref().is_none_or(|f| f.holds(src)) && e.to.as_ref().is_none_or(|t| t.holds(dst)) {
                spans = spans.without(&e.ports.at(destination));
            }
        }
        Some(spans)
    }

    /// Sweeps over the cuts, and writes the blocks between them and then the header.
    fn protocol(&mut self, key: RuleKey, concerned: u8, default: u8, waived: u8) {
        let cuts = std::mem::take(&mut self.cuts);
        let mut active: Vec<Rank> = Vec::new();
        let mut sizes = 0;
        let mut open: Option<(u32, Permit)> = None;
        for at in cuts.chunk_by(|a, b| a.0 == b.0) {
            for (_, begins, rank) in at {
                match (active.binary_search(rank), begins) {
                    (Err(n), true) => active.insert(n, *rank),
                    (Ok(n), false) => {
                        active.remove(n);
                    }
                    _ => {}
                }
            }
            let here = at[0].0;
            let permit =
                decide(active.iter().filter_map(|r| self.clauses.get(*r as usize)), concerned, default, waived);
            let as_by_default = permit == Permit { sides: Sides(default), egress_rule: 0, ingress_rule: 0 };
            if let Some((start, open)) = open.filter(|(_, open)| *open != permit) {
                self.blocks(key, start, here, open, &mut sizes);
            }
            open = match open {
                Some((start, same)) if same == permit => Some((start, same)),
                _ if as_by_default => None,
                _ => Some((here, permit)),
            };
        }
        // Nothing is open here: at the last cut every clause has ended.
        self.cuts = cuts;
        let header = PairHeader { sides: Sides(default), sizes };
        self.entries.push((RuleKey { size: RuleKey::HEADER, ..key }, header.encode()));
    }

    fn blocks(&mut self, key: RuleKey, start: u32, end: u32, permit: Permit, sizes: &mut u32) {
        let (Ok(first), Ok(last)) = (u16::try_from(start), u16::try_from(end.saturating_sub(1))) else { return };
        for (port, size) in blocks((first, last)) {
            *sizes |= 1 << size;
            self.entries.push((RuleKey { port, size, ..key }, permit.encode()));
        }
    }
}

/// The bits of a side that rules have a say in: a peer without an identity has no rules.
const fn side(peer: PeerId, side: u8) -> u8 {
    if peer.is_identity() { side } else { 0 }
}

/// The verdicts where these clauses apply, in their order of precedence, and who decided them. In the verdicts `open`
/// no deny counts but a revocation.
fn decide<'a>(clauses: impl Iterator<Item = &'a Clause<'a>>, concerned: u8, default: u8, open: u8) -> Permit {
    let (mut undecided, mut sides) = (concerned, default);
    let mut by = [0; 4];
    for clause in clauses {
        let waived = if clause.deny && !clause.revokes { open } else { 0 };
        let decided = clause.bits & undecided & !waived;
        if decided == 0 {
            continue;
        }
        sides = if clause.deny { sides & !decided } else { sides | decided };
        undecided &= !decided;
        for (n, rule) in by.iter_mut().enumerate() {
            if decided & (1 << n) != 0 {
                *rule = clause.number;
            }
        }
        if undecided == 0 {
            break;
        }
    }
    // The rule that is named is that of the verdict which denies, the one in force first; if neither does, that which
    // allows now, else that which allows in the audit. So a number beside a denial is always a deny's.
    let named = |now: usize, audited: usize| {
        if sides & (1 << now) == 0 {
            by[now]
        } else if sides & (1 << audited) == 0 || by[now] == 0 {
            by[audited]
        } else {
            by[now]
        }
    };
    Permit { sides: Sides(sides), egress_rule: named(0, 1), ingress_rule: named(2, 3) }
}
