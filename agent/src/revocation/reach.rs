//! Whose live connections a commit can have taken the ground from: there is no need to look at any other.
//!
//! Errs to one side only: it may name somebody whose connections all go on, never leave out somebody whose don't.

use crate::image::Image;
use bulkhead_common::PeerId;
use bulkhead_common::maps::RuleKey;
use bulkhead_common::slots::{Permit, Sides};
use std::collections::BTreeSet;

/// Whose connections there are to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Those between these and anybody. Empty: none.
    Of(BTreeSet<PeerId>),
    /// All.
    Everything,
}

impl Reach {
    /// What becomes of going from one ruleset to the next, beside what [`moved`] tells; `None`: what was in force before isn't
    /// known.
    pub fn between(old: Option<&Image>, new: &Image) -> Self {
        let mut ends = BTreeSet::new();
        if !refuses(new) {
            return Self::Of(ends);
        }
        let Some(old) = old else { return Self::Everything };
        let tighter = old.baselines.iter().any(|(peer, was)| {
            let is = new.baselines.get(peer).map_or(Sides::NONE, |b| b.sides);
            new.baselines.contains_key(peer) && loses(was.sides, is)
        });
        if tighter {
            return Self::Everything;
        }
        for (cgroup, is) in &new.cgroups {
            if old.cgroups.get(cgroup).map(|was| was.peer) != Some(is.peer) {
                ends.insert(is.peer);
            }
        }
        let gone = old.rules.keys().filter(|k| !new.rules.contains_key(k));
        let changed = new.rules.iter().filter(|(key, is)| match (old.rules.get(key), sides(**is)) {
            (Some(was), _) if was == *is => false,
            (_, is) if is.now() => false,
            (Some(was), is) => loses(sides(*was), is),
            (None, _) => true,
        });
        for key in gone.chain(changed.map(|(key, _)| key)) {
            let RuleKey { src, dst, .. } = *key;
            for end in [PeerId(src), PeerId(dst)] {
                if end == PeerId::ANY_WORKLOAD {
                    return Self::Everything;
                }
                if end.is_identity() {
                    ends.insert(end);
                }
            }
        }
        Self::Of(ends)
    }

    /// Whether there is nobody to look at.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Of(ends) if ends.is_empty())
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Of(mut a), Self::Of(b)) => {
                a.extend(b);
                Self::Of(a)
            }
            _ => Self::Everything,
        }
    }

    /// Whether this one's connections are among them.
    pub fn holds(&self, peer: PeerId) -> bool {
        match self {
            Self::Of(ends) => ends.contains(&peer),
            Self::Everything => true,
        }
    }
}

/// Whether addresses changed hands where something is refused: each may be anybody's peer.
pub fn moved(old: Option<&Image>, new: &Image) -> bool {
    let Some(old) = old.filter(|_| refuses(new)) else { return false };
    old.addresses != new.addresses || old.address_ports != new.address_ports || old.prefixes != new.prefixes
}

/// Whether anything at all is refused in force.
fn refuses(image: &Image) -> bool {
    let all = image.baselines.values().map(|b| b.sides);
    all.chain(image.rules.values().map(|r| sides(*r))).any(|s| !s.now())
}

/// What a rule or a header allows: both have it in the same bits.
fn sides(payload: u64) -> Sides {
    Permit::decode(payload).map_or(Sides::NONE, |p| p.sides)
}

/// Whether something that was allowed in force isn't any more.
const fn loses(was: Sides, is: Sides) -> bool {
    was.0 & !is.0 & (Sides::EGRESS_NOW | Sides::INGRESS_NOW) != 0
}
