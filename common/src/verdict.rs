//! The verdict: one pure function, compiled into the kernel programs and into the agent.
//!
//! It reads its tables through [`Tables`]; the kernel implements that over its maps, tests and `explain` over plain
//! collections. It is total and ends in deny: what isn't found falls to the baseline of the workload concerned, and a
//! baseline that isn't found denies.
//!
//! The order, highest first, is the compiler's business and already in the entries (`policy::compile` writes it out):
//! lifeline, deny, built-in, allow, default. Here it is only:
//!
//! 1. the entry for exactly this pair, if there is one: it is complete, for both sides and every port;
//! 2. else, side by side: the entry for "any workload" opposite, then the baseline of that side's workload.

use crate::addr::Addr;
use crate::maps::{AddrPort, RuleKey};
use crate::outcome::{Direction, Outcome, Reason};
use crate::peer::{Class, PeerId};
use crate::slots::{ABSENT, Baseline, Binding, PairHeader, Permit, Sides};

/// What the verdict reads. Each method gives the slot of one epoch, the same for all calls; [`crate::slots::ABSENT`]
/// where there is no entry.
pub trait Tables {
    /// The slot of a rule or header.
    fn rule(&self, key: &RuleKey) -> u64;
    /// The slot of an identity's baseline.
    fn baseline(&self, id: PeerId) -> u64;
    /// The slot of an address.
    fn address(&self, addr: &Addr) -> u64;
    /// The slot of an address and port.
    fn address_port(&self, key: &AddrPort) -> u64;
    /// The slot of the longest prefix that holds the address.
    fn prefix(&self, addr: &Addr) -> u64;

    /// The encoded [`Permit`] of one pair for one port; [`ABSENT`] if the pair has no entries. Provided: the kernel
    /// only puts a function of its own around it, so that the verifier looks at it once.
    #[inline(always)]
    fn pair(&self, src: PeerId, dst: PeerId, proto: u8, port: u16) -> u64
    where
        Self: Sized,
    {
        permit(self, src, dst, proto, port)
    }
}

/// One side's view of a flow: who opens it to whom, on which port of the destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Who opens it.
    pub src: PeerId,
    /// Who is connected to.
    pub dst: PeerId,
    /// The IP protocol, as [`crate::proto::judged`] gives it.
    pub proto: u8,
    /// The destination's port; 0 for protocols without ports.
    pub port: u16,
}

/// What was decided, and by what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Judgement {
    /// What each side says.
    pub sides: Sides,
    /// Why.
    pub reason: Reason,
    /// The number of the source's rule; 0: none.
    pub egress_rule: u32,
    /// The number of the destination's rule; 0: none.
    pub ingress_rule: u32,
}

/// One of the two ends whose rules have a say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The source, by its egress rules.
    Egress,
    /// The destination, by its ingress rules.
    Ingress,
}

impl Judgement {
    /// Allowed whatever the rules say.
    #[inline(always)]
    pub const fn pass(reason: Reason) -> Self {
        Self { sides: Sides::ALL, reason, egress_rule: 0, ingress_rule: 0 }
    }

    /// Denied whatever the rules say: there is nothing to judge by.
    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Self { sides: Sides::NONE, reason, egress_rule: 0, ingress_rule: 0 }
    }

    /// What no rule can judge is refused where that side's baseline denies, and reported where only the audited one
    /// does. A workload in observe is never refused anything.
    #[inline(always)]
    pub fn unruled<T: Tables>(t: &T, own: PeerId, direction: Direction, reason: Reason) -> Self {
        let Some(b) = Baseline::decode(t.baseline(own)) else {
            return Self::refuse(Reason::Incomplete);
        };
        let sides = match direction {
            Direction::Egress => Sides(b.sides.0 & Sides::EGRESS | Sides::INGRESS),
            Direction::Ingress => Sides(b.sides.0 & Sides::INGRESS | Sides::EGRESS),
        };
        Self { sides, reason, egress_rule: 0, ingress_rule: 0 }
    }

    /// The two verdicts in one word.
    #[inline(always)]
    pub const fn outcome(&self) -> Outcome {
        Outcome::of(self.sides.now(), self.sides.audited())
    }

    /// Which side denies, the source first, the verdict in force before the audited one; `None` if neither does.
    #[inline(always)]
    pub const fn denied_by(&self) -> Option<Side> {
        let s = self.sides.0;
        if s & Sides::EGRESS_NOW == 0 {
            Some(Side::Egress)
        } else if s & Sides::INGRESS_NOW == 0 {
            Some(Side::Ingress)
        } else if s & Sides::EGRESS_AUDITED == 0 {
            Some(Side::Egress)
        } else if s & Sides::INGRESS_AUDITED == 0 {
            Some(Side::Ingress)
        } else {
            None
        }
    }
}

/// Who is at this address, for a connection to this port. A miss in every table is [`Class::Unknown`].
#[inline(always)]
pub fn resolve<T: Tables>(t: &T, addr: &Addr, proto: u8, port: u16) -> Binding {
    if let Some(b) = Binding::decode(t.address(addr)) {
        if b.flags & Binding::HAS_PORTS != 0 {
            let key = AddrPort { addr: *addr, port, proto, pad: 0 };
            if let Some(p) = Binding::decode(t.address_port(&key)) {
                return p;
            }
        }
        return b;
    }
    match Binding::decode(t.prefix(addr)) {
        Some(b) => b,
        None => Binding::of(Class::Unknown.id()),
    }
}

/// The entry of one pair for one port, as [`Tables::pair`] says.
#[inline(always)]
pub fn permit<T: Tables>(t: &T, src: PeerId, dst: PeerId, proto: u8, port: u16) -> u64 {
    let mut key = RuleKey { src: src.0, dst: dst.0, port, proto, size: 16 };
    // Most rules name a single port, so that block comes first and the header is only read after it.
    let block = t.rule(&key);
    if block != ABSENT {
        return block;
    }
    key.port = 0;
    key.size = RuleKey::HEADER;
    let Some(header) = PairHeader::decode(t.rule(&key)) else { return ABSENT };
    let mut size: u8 = 0;
    while size < 16 {
        if header.sizes & (1 << size) != 0 {
            key.port = port & block_mask(size);
            key.size = size;
            let block = t.rule(&key);
            if block != ABSENT {
                return block;
            }
        }
        size += 1;
    }
    Permit { sides: header.sides, egress_rule: 0, ingress_rule: 0 }.encode()
}

/// The mask that keeps the leading `size` bits of a port.
#[expect(clippy::cast_possible_truncation, reason = "the upper half of the word is shifted in from, not kept")]
#[inline(always)]
pub const fn block_mask(size: u8) -> u16 {
    (0xffff_0000_u32 >> (size & 0x1f)) as u16
}

/// Judges a flow by both sides' rules.
#[inline(always)]
pub fn judge<T: Tables>(t: &T, flow: &Flow) -> Judgement {
    let Flow { src, dst, proto, port } = *flow;

    // 1. The pair itself. A part of the world without rules of its own falls back to the world.
    let mut found = t.pair(src, dst, proto, port);
    if found == ABSENT {
        if dst.is_cidr() {
            found = t.pair(src, Class::World.id(), proto, port);
        } else if src.is_cidr() {
            found = t.pair(Class::World.id(), dst, proto, port);
        }
    }
    if let Some(p) = Permit::decode(found) {
        return reasoned(flow, p.sides, p.egress_rule, p.ingress_rule);
    }

    // 2. Each side by itself. A peer without an identity has no rules, so its side allows.
    let mut sides = Sides::ALL.0;
    let (mut egress_rule, mut ingress_rule) = (0, 0);
    if has_rules(src) {
        let entry = if has_rules(dst) { t.pair(src, opposite(dst), proto, port) } else { ABSENT };
        match Permit::decode(entry) {
            Some(p) => {
                sides &= p.sides.0 | Sides::INGRESS;
                egress_rule = p.egress_rule;
            }
            None => match Baseline::decode(t.baseline(src)) {
                Some(b) => sides &= b.sides.0 | Sides::INGRESS,
                None => return Judgement::refuse(Reason::Incomplete),
            },
        }
    }
    if has_rules(dst) {
        let entry = if has_rules(src) { t.pair(opposite(src), dst, proto, port) } else { ABSENT };
        match Permit::decode(entry) {
            Some(p) => {
                sides &= p.sides.0 | Sides::EGRESS;
                ingress_rule = p.ingress_rule;
            }
            None => match Baseline::decode(t.baseline(dst)) {
                Some(b) => sides &= b.sides.0 | Sides::EGRESS,
                None => return Judgement::refuse(Reason::Incomplete),
            },
        }
    }
    reasoned(flow, Sides(sides), egress_rule, ingress_rule)
}

/// Whether rules can select this peer: a workload's identity, or the unknown workload, which has only a baseline.
#[inline(always)]
const fn has_rules(p: PeerId) -> bool {
    p.is_identity() || p.0 == PeerId::UNKNOWN_WORKLOAD.0
}

/// As what the other side's rules may name a workload when they don't name it by itself.
#[inline(always)]
const fn opposite(p: PeerId) -> PeerId {
    if p.is_identity() { PeerId::ANY_WORKLOAD } else { Class::Unknown.id() }
}

/// Adds the reason. Kept apart so that there is one place that says which of several reasons is given.
#[inline(always)]
fn reasoned(flow: &Flow, sides: Sides, egress_rule: u32, ingress_rule: u32) -> Judgement {
    let mut j = Judgement { sides, reason: Reason::Posture, egress_rule, ingress_rule };
    j.reason = match j.denied_by() {
        None if egress_rule | ingress_rule != 0 => Reason::Rule,
        None => Reason::Posture,
        Some(Side::Egress) if egress_rule != 0 => Reason::DenyRule,
        Some(Side::Ingress) if ingress_rule != 0 => Reason::DenyRule,
        Some(Side::Egress) if flow.src.0 == PeerId::UNKNOWN_WORKLOAD.0 => Reason::UnknownWorkload,
        Some(Side::Ingress) if flow.dst.0 == PeerId::UNKNOWN_WORKLOAD.0 => Reason::UnknownWorkload,
        Some(Side::Egress) if flow.dst.0 == Class::Unknown as u32 => Reason::UnknownPeer,
        Some(Side::Ingress) if flow.src.0 == Class::Unknown as u32 => Reason::UnknownPeer,
        Some(Side::Egress) => Reason::NoEgressRule,
        Some(Side::Ingress) => Reason::NoIngressRule,
    };
    j
}

#[cfg(test)]
mod tests;
