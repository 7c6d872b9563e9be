//! The order in which a plan is carried out, so that at no step a program run sees a mixture of two rulesets.
//!
//! The kernel is behind the trait [`Kernel`]; the datapath implements it over system calls, and the tests over a model
//! that looks after each single step whether every reader still sees exactly the ruleset of the epoch that it read.
//!
//! A commit: new entries go in (with the present epoch's payload in one half and the next one's in the other), the
//! other half of what changes is written, and the epoch is raised; from that store on it is in force. What remains is
//! kept in [`Pending`] and done by [`settle`], off the critical path: wait until no run of the former epoch is left, and
//! make both halves equal; from then on the places of what is gone may be another's. Prefixes are deleted, and it waits
//! again, since the kernel may use a deleted element at once.

use super::{Cell, Key, Plan, State};
use bulkhead_common::maps::{PrefixKey, RuleKey};
use bulkhead_common::slots::ABSENT;

/// What the protocol does to the kernel. Each call is one step, and everything before it is visible to a program run
/// that sees its effect.
pub trait Kernel {
    /// What can go wrong.
    type Error;

    /// The present epoch.
    fn epoch(&self) -> u32;
    /// Raises the epoch.
    fn set_epoch(&mut self, epoch: u32);
    /// Writes one half (0 or 1) of a cell, whole.
    fn write(&mut self, cell: Cell, half: usize, payload: u64);
    /// Writes the key of a place, word by word. Both its halves say that nothing is there.
    fn name(&mut self, key: &Key, index: u32);
    /// Adds prefixes. When it fails, any of them may have been added.
    fn insert(&mut self, entries: &[(PrefixKey, u32)]) -> Result<(), Self::Error>;
    /// Deletes prefixes. One that isn't there is no error.
    fn delete(&mut self, keys: &[PrefixKey]) -> Result<(), Self::Error>;
    /// Puts away what was counted beside rules that are gone, and leaves zeroes.
    fn retire(&mut self, rules: &[(RuleKey, u32)]) -> Result<(), Self::Error>;
    /// Sets the levels that are looked at.
    fn set_levels(&mut self, levels: u32);
    /// Sets the built-ins that are on.
    fn set_built_ins(&mut self, built_ins: u32);
    /// Waits until every program run that has begun before has ended.
    fn wait_for_readers(&mut self) -> Result<(), Self::Error>;
}

/// What a commit leaves to be done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// Cells whose halves differ, with the payload that both shall have.
    pub cells: Vec<(Cell, u64)>,
    /// Entries that are in no epoch's ruleset any more, with their indexes.
    pub gone: Vec<(Key, u32)>,
    /// Places of tables that were too small which are nobody's and don't say so.
    pub left_over: Vec<Cell>,
    /// Whether levels or built-ins must still be narrowed to what the image has.
    pub words: bool,
    /// How much of it is done.
    pub done: Done,
}

/// How far [`settle`] came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Done {
    /// Nothing.
    #[default]
    Nothing,
    /// Runs of the former epoch have ended.
    Alone,
    /// What is gone is deleted; some runs may still hold it.
    Deleted,
}

/// The epoch after this one. Never 0, and always of the other parity.
pub const fn following(epoch: u32) -> u32 {
    match epoch.wrapping_add(1) {
        0 => 2,
        next => next,
    }
}

/// Puts a plan of this state into force. Whatever was pending must have been settled.
///
/// When it fails nothing has changed for any reader, and the pending work takes back what was written.
pub fn commit<K: Kernel>(kernel: &mut K, state: &mut State, plan: &Plan) -> Result<Pending, (K::Error, Pending)> {
    let epoch = kernel.epoch();
    let (present, next) = ((epoch & 1) as usize, (following(epoch) & 1) as usize);

    let before = state.resize(&plan.sizes);
    for (table, size) in &plan.sizes {
        kernel.write(Cell::Mask(*table), next, u64::from(size - 1));
    }
    for insert in &plan.inserts {
        let cell = Cell::Slot(insert.key.table(), insert.index);
        state.take(insert.key.table(), insert.index);
        kernel.name(&insert.key, insert.index);
        kernel.write(cell, present, insert.present);
        kernel.write(cell, next, insert.next);
    }
    if let Err(error) = kernel.insert(&prefixes(plan.inserts.iter().map(|i| (i.key, i.index)))) {
        state.seats.extend(before);
        let pending = Pending {
            cells: plan.sizes.iter().map(|(table, _)| (Cell::Mask(*table), state.mask(*table))).collect(),
            gone: plan.inserts.iter().map(|i| (i.key, i.index)).collect(),
            ..Pending::default()
        };
        return Err((error, pending));
    }
    for write in plan.writes.iter().chain(&plan.removals) {
        kernel.write(Cell::Slot(write.key.table(), write.index), next, write.next);
    }
    for (id, payload) in &plan.baselines {
        kernel.write(Cell::Baseline(*id), next, *payload);
    }
    // One word each for both epochs: first the union, which adds nothing that one of the two rulesets doesn't have.
    kernel.set_levels(state.levels() | plan.levels);
    kernel.set_built_ins(state.built_ins() | plan.built_ins);
    kernel.set_epoch(following(epoch));

    let pending = Pending {
        cells: (plan.inserts.iter().map(|i| (Cell::Slot(i.key.table(), i.index), i.next)))
            .chain(plan.writes.iter().map(|w| (Cell::Slot(w.key.table(), w.index), w.next)))
            .chain(plan.removals.iter().map(|w| (Cell::Slot(w.key.table(), w.index), w.next)))
            .chain(plan.baselines.iter().map(|(id, payload)| (Cell::Baseline(*id), *payload)))
            .chain(plan.sizes.iter().map(|(table, size)| (Cell::Mask(*table), u64::from(size - 1))))
            .collect(),
        gone: plan.removals.iter().map(|w| (w.key, w.index)).collect(),
        left_over: (before.iter())
            .flat_map(|(table, seats)| seats.all_gone().map(|place| Cell::Slot(*table, place)))
            .collect(),
        words: state.built_ins() != plan.built_ins || state.levels() != plan.levels,
        done: Done::Nothing,
    };
    state.advance(plan);
    Ok(pending)
}

/// Does what a commit has left. When it fails it can be called again, and goes on where it stopped.
pub fn settle<K: Kernel>(kernel: &mut K, state: &mut State, pending: &mut Pending) -> Result<(), K::Error> {
    if pending.done < Done::Alone {
        kernel.wait_for_readers()?;
        pending.done = Done::Alone;
    }
    if pending.done < Done::Deleted {
        let former = 1 - (kernel.epoch() & 1) as usize;
        for (cell, payload) in pending.cells.drain(..) {
            kernel.write(cell, former, payload);
        }
        if std::mem::take(&mut pending.words) {
            kernel.set_levels(state.levels());
            kernel.set_built_ins(state.built_ins());
        }
        kernel.retire(&rules(&pending.gone))?;
        let prefixes = prefixes(pending.gone.iter().copied());
        if !prefixes.is_empty() {
            kernel.delete(&prefixes.iter().map(|(key, _)| *key).collect::<Vec<_>>())?;
        }
        pending.done = Done::Deleted;
    }
    if pending.gone.iter().any(|(key, _)| matches!(key, Key::Prefix(_))) {
        kernel.wait_for_readers()?;
    }
    for (key, index) in pending.gone.drain(..) {
        let cell = Cell::Slot(key.table(), index);
        if key.nothing() != ABSENT {
            for half in [0, 1] {
                kernel.write(cell, half, key.nothing());
            }
        }
        pending.left_over.append(&mut state.leave(key.table(), index));
    }
    for cell in pending.left_over.drain(..) {
        kernel.write(cell, 0, ABSENT);
        kernel.write(cell, 1, ABSENT);
    }
    Ok(())
}

fn prefixes(entries: impl Iterator<Item = (Key, u32)>) -> Vec<(PrefixKey, u32)> {
    entries.filter_map(|(key, index)| if let Key::Prefix(p) = key { Some((p, index)) } else { None }).collect()
}

fn rules(entries: &[(Key, u32)]) -> Vec<(RuleKey, u32)> {
    entries.iter().filter_map(|(key, index)| if let Key::Rule(r) = key { Some((*r, *index)) } else { None }).collect()
}
