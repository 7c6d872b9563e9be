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
use litemap::LiteMap;
use pairs::Open;
use peers::{PeerSet, Peers};
use std::collections::BTreeMap;
use std::sync::Arc;

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

/// What was compiled last, and from what: where nothing differs of what a half of the image is made from, that half is the
/// same.
#[derive(Clone, Copy, Debug)]
pub struct Former<'a> {
    /// The policies.
    pub set: &'a PolicySet,
    /// The inventory.
    pub inventory: &'a Inventory,
    /// What came of them, by the same table of rules.
    pub image: &'a Image,
    /// What couldn't be taken.
    pub warnings: &'a [Warning],
}

/// Compiles.
pub fn compile(set: &PolicySet, inventory: &Inventory, table: &mut RuleTable) -> Compiled {
    let mut compiled = places(set, inventory, table);
    rules(&mut compiled.image, set, inventory, None, table);
    compiled
}

/// The same, where the halves that can't have changed are taken over.
pub fn compile_after(
    former: Option<Former<'_>>,
    set: &PolicySet,
    inventory: &Inventory,
    table: &mut Arc<RuleTable>,
) -> Compiled {
    let mut compiled =
        match former.filter(|f| same_places(f.inventory, inventory) && peers::nets(f.set) == peers::nets(set)) {
            Some(f) => Compiled { image: places_of(f.image), warnings: f.warnings.to_vec() },
            None => places(set, inventory, Arc::make_mut(table)),
        };
    match former.filter(|f| f.set == set && same_rules(f.inventory, inventory)) {
        Some(f) => {
            compiled.image.rules.clone_from(&f.image.rules);
            compiled.image.baselines.clone_from(&f.image.baselines);
        }
        None => {
            let former = former.map(|f| (f.inventory, f.image));
            rules(&mut compiled.image, set, inventory, former, Arc::make_mut(table));
        }
    }
    compiled
}

/// Whether nothing differs of what rules and baselines are made from beside the policies.
fn same_rules(a: &Inventory, b: &Inventory) -> bool {
    let Inventory { identities, elsewhere, cgroups, attach_points: _, endpoints: _, services, built_ins: _ } = a;
    *identities == b.identities
        && *elsewhere == b.elsewhere
        && *services == b.services
        && services::sources(cgroups) == services::sources(&b.cgroups)
}

/// Whether nothing differs of what says who is where, beside the parts of the world.
fn same_places(a: &Inventory, b: &Inventory) -> bool {
    let Inventory { identities: _, elsewhere: _, cgroups, attach_points, endpoints, services: _, built_ins } = a;
    *cgroups == b.cgroups && *attach_points == b.attach_points && *endpoints == b.endpoints && *built_ins == b.built_ins
}

/// Everything but rules and baselines.
fn places(set: &PolicySet, inventory: &Inventory, table: &mut RuleTable) -> Compiled {
    let (mut image, mut warnings) = (Image::default(), Vec::new());
    places::fill(&mut image, inventory, &peers::parts(set, table), &mut warnings);
    Compiled { image, warnings }
}

/// The same of an image.
fn places_of(image: &Image) -> Image {
    let Image { cgroups, addresses, address_ports, prefixes, rules: _, baselines: _, levels, built_ins } = image;
    Image {
        cgroups: cgroups.clone(),
        addresses: addresses.clone(),
        address_ports: address_ports.clone(),
        prefixes: prefixes.clone(),
        rules: LiteMap::new(),
        baselines: BTreeMap::new(),
        levels: *levels,
        built_ins: *built_ins,
    }
}

/// Fills in rules and baselines.
fn rules(
    image: &mut Image,
    set: &PolicySet,
    inventory: &Inventory,
    former: Option<(&Inventory, &Image)>,
    table: &mut RuleTable,
) {
    table.begin();
    let mut peers = Peers::new(set, inventory, table);
    let selected: Vec<PeerSet> = set.iter().map(|policy| peers.selected(policy)).collect();
    let clauses = clauses::clauses(set, &selected, inventory, &mut peers, table);
    table.end();
    let open = Open::of(set.overrides(), inventory);
    image.baselines = baselines(set, &selected, inventory, &open);
    let mut entries = pairs::entries(&clauses, &peers, inventory, &image.baselines, &open);
    entries.sort_unstable();
    image.rules = entries.into_iter().collect();
    services::fill(image, inventory, former);
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

/// The default of every identity. The unknown workload may be any of them, and any that a policy is waiting for. Whom each
/// policy selects is given.
fn baselines(set: &PolicySet, selected: &[PeerSet], inventory: &Inventory, open: &Open) -> BTreeMap<PeerId, Baseline> {
    let of = |p: Posture| Baseline { sides: Sides(posture(p)), sockets_now: 0, sockets_audited: 0 };
    let mut baselines: BTreeMap<PeerId, Baseline> =
        inventory.identities.iter().map(|(peer, facts)| (*peer, of(facts.posture))).collect();
    let mut unknown = of(inventory.strictest());
    for (policy, selected) in set.iter().zip(selected) {
        let isolation = isolation(policy);
        unknown.sides.0 &= !isolation;
        for peer in selected.ids.iter() {
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
