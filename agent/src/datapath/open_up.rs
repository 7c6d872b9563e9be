//! Ending enforcement on what is pinned, without an agent.
//!
//! It must work when an agent can't start, so it loads nothing, compiles nothing and reads no policy: each rule and each
//! default that is there is made to allow in force, as one commit; what is audited stays. Only those who were revoked
//! stay denied. An agent that adopts the tables afterwards puts its own ruleset into them, and that ends it.

use super::error::{During, OpenError};
use super::pins::{self, Set};
use super::sys;
use super::tables::Tables;
use crate::plan::protocol::{Kernel, following};
use crate::plan::{Capacities, Cell, Key};
use bulkhead_common::places::GONE;
use bulkhead_common::slots::{Baseline, PairHeader, Permit, Sides};
use bulkhead_common::{ABI, PeerId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

/// Both sides' verdicts in force.
const NOW: u8 = Sides::EGRESS_NOW | Sides::INGRESS_NOW;

/// Lets everything through that an instance's pinned tables judge, but what belongs to the peers that `revoked` names
/// for this set of maps. Gives the epoch that is in force now; `None`: nothing was.
pub fn open_up(
    instance: &str,
    bpffs: &Path,
    revoked: impl Fn(u64) -> BTreeSet<PeerId>,
) -> Result<Option<u32>, OpenError> {
    let folder = pins::instance_folder(bpffs, instance)?;
    if !folder.exists() {
        return Ok(None);
    }
    let lock = pins::lock(&folder).opening(|| format!("locking {}", folder.display()))?;
    let Some(_lock) = lock else {
        return Err(OpenError::AnotherAgent { instance: instance.to_owned(), path: folder });
    };
    let mut epoch = None;
    for set in Set::all(&folder).opening(|| format!("reading the pins under {}", folder.display()))? {
        let opened = open_set(&set, &revoked).opening(|| format!("opening up {}", set.folder.display()))?;
        epoch = epoch.max(Some(opened));
    }
    Ok(epoch)
}

fn open_set(set: &Set, revoked: &impl Fn(u64) -> BTreeSet<PeerId>) -> io::Result<u32> {
    let name = set.folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name.split('-').next() != Some(&format!("v{ABI}")) {
        return Err(io::Error::other(format!("it was made by another version than this one (v{ABI})")));
    }
    let mut maps: BTreeMap<String, OwnedFd> = BTreeMap::new();
    for pin in pins::children(&set.folder.join("maps"))? {
        let name = pin.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        maps.insert(name, sys::open_pin(&pin)?);
    }
    let find = |name: &str| {
        maps.get(name)
            .map(|fd| fd.as_fd())
            .ok_or_else(|| io::Error::other(format!("the pin of the map {name} is gone")))
    };
    // Nothing is added, so how much would fit doesn't matter.
    let mut tables = Tables::new(find, Capacities::default())?;
    let epoch = tables.epoch();
    if epoch == 0 {
        return Ok(0);
    }
    let revoked = revoked(tables.control.generation().load(Ordering::Acquire));
    let found = tables.read()?;
    let mut cells: Vec<(Cell, u64)> = found.gone.iter().map(|(t, place)| (Cell::Slot(*t, *place), GONE)).collect();
    cells.extend(found.sizes.iter().map(|(t, size)| (Cell::Mask(*t), u64::from(size.saturating_sub(1)))));
    for (key, entry) in &found.entries {
        // A prefix that isn't in force was left by an interrupted commit; it decides nothing by itself.
        if entry.payload != 0 {
            let payload = opened(key, entry.payload, &revoked);
            cells.push((Cell::Slot(key.table(), entry.index), payload));
        }
    }
    for (peer, payload) in &found.baselines {
        let open = Baseline::decode(*payload).filter(|_| !revoked.contains(peer)).map(|b| {
            let sockets_now = Baseline::RAW | Baseline::SCTP | Baseline::MPTCP;
            Baseline { sides: Sides(b.sides.0 | NOW), sockets_now, ..b }.encode()
        });
        cells.push((Cell::Baseline(*peer), open.unwrap_or(*payload)));
    }
    let next = following(epoch);
    // Nobody may read the other half any more: an interrupted commit may have left readers there.
    tables.wait_for_readers()?;
    for (cell, payload) in &cells {
        tables.write(*cell, (next & 1) as usize, *payload);
    }
    tables.set_epoch(next);
    tables.wait_for_readers()?;
    for (cell, payload) in &cells {
        tables.write(*cell, (epoch & 1) as usize, *payload);
    }
    Ok(next)
}

/// What an entry says then.
fn opened(key: &Key, payload: u64, revoked: &BTreeSet<PeerId>) -> u64 {
    let Key::Rule(rule) = key else { return payload };
    if [rule.src, rule.dst].iter().any(|p| revoked.contains(&PeerId(*p))) {
        return payload;
    }
    if rule.size == bulkhead_common::maps::RuleKey::HEADER {
        return PairHeader::decode(payload)
            .map_or(payload, |h| PairHeader { sides: Sides(h.sides.0 | NOW), ..h }.encode());
    }
    Permit::decode(payload).map_or(payload, |p| Permit { sides: Sides(p.sides.0 | NOW), ..p }.encode())
}
