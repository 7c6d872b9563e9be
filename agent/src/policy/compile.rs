//! The compiler: policies and inventory to the contents of the kernel's tables.
//!
//! Pure, and the same input always gives the same [`Image`] (up to the numbers that the [`RuleTable`] remembers). What
//! an image answers is what [`super::reference`] says of the same policies, which property tests check.
//!
//! The work is proportional to the entries made: each distinct pattern is matched once, then each clause names its
//! pairs, and each pair is resolved by itself.

mod clauses;
mod pairs;
mod peers;
mod places;
mod ports;
mod services;

use super::model::{Mode, Policy};
use super::rules::RuleTable;
use super::set::PolicySet;
use crate::image::Image;
use crate::inventory::{Inventory, Owner, Place, Posture};
use bulkhead_common::PeerId;
use bulkhead_common::maps::MAX_LEVEL;
use bulkhead_common::slots::{Baseline, Sides};
use pairs::Open;
use peers::Peers;
use std::collections::BTreeMap;

/// What was compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The contents of the tables.
    pub image: Image,
    /// What the inventory says that can't all be true.
    pub warnings: Vec<Warning>,
}

/// Something that the inventory says and that can't be taken as it stands.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Warning {
    /// Two owners of one address, port or prefix.
    #[error("{place:?} is claimed by {kept:?} and {other:?}; taking the first: give each its own address")]
    ClaimedTwice {
        /// Where.
        place: Place,
        /// Whose it is taken for.
        kept: Owner,
        /// Who else claims it.
        other: Owner,
    },
    /// Two workloads of one cgroup.
    #[error("cgroup {cgroup} belongs to workloads {} and {}; taking the first: let only one glob match it", kept.0, other.0)]
    SharedCgroup {
        /// The cgroup's id.
        cgroup: u64,
        /// Whose it is taken for.
        kept: PeerId,
        /// Whose else.
        other: PeerId,
    },
    /// A workload's cgroup carries the programs itself, so whatever lies below is that workload and never unknown.
    #[error("cgroup {cgroup} is an attach point and workload {}'s own: attach at its parent instead", peer.0)]
    AttachPointIsWorkload {
        /// The cgroup's id.
        cgroup: u64,
        /// The workload.
        peer: PeerId,
    },
    /// The kernel programs don't look that deep, so processes there are an unknown workload.
    #[error("cgroup {cgroup} lies {level} levels deep, and only {MAX_LEVEL} are looked at: move it up")]
    TooDeep {
        /// The cgroup's id.
        cgroup: u64,
        /// Its level.
        level: u32,
    },
}

/// Compiles.
pub fn compile(set: &PolicySet, inventory: &Inventory, table: &mut RuleTable) -> Compiled {
    table.begin();
    let mut peers = Peers::new(set, inventory, table);
    let clauses = clauses::clauses(set, inventory, &mut peers, table);
    table.end();
    let baselines = baselines(set, inventory, &mut peers);
    let open = Open::of(set.overrides(), inventory);
    let mut entries = pairs::entries(&clauses, &peers, inventory, &baselines, &open);
    entries.sort_unstable();
    let mut image = Image { rules: entries.into_iter().collect(), baselines, ..Image::default() };
    let mut warnings = Vec::new();
    places::fill(&mut image, inventory, &peers, &mut warnings);
    services::fill(&mut image, inventory);
    Compiled { image, warnings }
}

/// What a posture allows, on both sides.
const fn posture(posture: Posture) -> u8 {
    match posture {
        Posture::Observe => Sides::ALL.0,
        Posture::Audit => Sides::EGRESS_NOW | Sides::INGRESS_NOW,
        Posture::Enforce => Sides::NONE.0,
    }
}

/// What a policy takes from the default of those whom it selects.
fn isolation(policy: &Policy) -> u8 {
    let side = |isolates: bool, bits| if isolates { policy.reach(bits) } else { 0 };
    side(policy.ingress.is_some(), Sides::INGRESS) | side(policy.egress.is_some(), Sides::EGRESS)
}

/// The default of every identity. The unknown workload may be any of them, and any that a policy is waiting for.
fn baselines<'a>(set: &'a PolicySet, inventory: &Inventory, peers: &mut Peers<'a>) -> BTreeMap<PeerId, Baseline> {
    let of = |p: Posture| Baseline { sides: Sides(posture(p)), sockets_now: 0, sockets_audited: 0 };
    let mut baselines: BTreeMap<PeerId, Baseline> =
        inventory.identities.iter().map(|(peer, facts)| (*peer, of(facts.posture))).collect();
    let mut unknown = of(inventory.strictest());
    for policy in set.iter() {
        let isolation = isolation(policy);
        unknown.sides.0 &= !isolation;
        for peer in peers.selected(policy).ids.iter() {
            if let Some(b) = baselines.get_mut(peer) {
                b.sides.0 &= !isolation;
                b.sockets_audited |= policy.sockets;
                if policy.mode == Mode::Enforce {
                    b.sockets_now |= policy.sockets;
                }
            }
        }
    }
    baselines.insert(PeerId::UNKNOWN_WORKLOAD, unknown);
    let open = Open::of(set.overrides(), inventory);
    let every_kind = Baseline::RAW | Baseline::SCTP | Baseline::MPTCP;
    for (peer, b) in &mut baselines {
        let bits = open.bits(*peer);
        b.sides.0 |= bits;
        if peer.is_identity() && bits & Sides::EGRESS_NOW != 0 {
            b.sockets_now = every_kind;
        }
        if peer.is_identity() && bits & Sides::EGRESS_AUDITED != 0 {
            b.sockets_audited = every_kind;
        }
    }
    for (peer, facts) in &inventory.identities {
        if set.overrides().revokes(&facts.identity).is_some() {
            baselines.insert(*peer, Baseline { sides: Sides::NONE, sockets_now: 0, sockets_audited: 0 });
        }
    }
    baselines
}
