//! The protocol against a model of the kernel that is stricter than the kernel: after every single step, every reader
//! that may still be running must see exactly the ruleset of the epoch that it read, also through an entry that it
//! found earlier.

use super::protocol::{Kernel, Pending, commit, settle};
use super::*;
use bulkhead_common::slots::{Baseline, Binding, Sides};
use proptest::prelude::*;
use std::collections::HashMap;

/// The kernel's maps, and who may be reading them.
#[derive(Default)]
struct Model {
    epoch: u32,
    maps: BTreeMap<Key, u32>,
    cells: HashMap<Cell, [u64; 2]>,
    levels: u32,
    built_ins: u32,
    /// The ruleset of each epoch that a run may be reading.
    readers: BTreeMap<u32, Image>,
    /// Entries that such a run may have found.
    held: BTreeSet<(Key, u32)>,
    /// Elements deleted since the last wait: an insert now might use one again while a run looks at it.
    deleted: usize,
    /// The insert that fails, counted down.
    fail_insert: Option<usize>,
    steps: usize,
}

impl Model {
    fn half(&self, cell: Cell, epoch: u32) -> u64 {
        self.cells.get(&cell).copied().unwrap_or_default()[(epoch & 1) as usize]
    }

    fn lookup(&self, key: &Key, epoch: u32) -> u64 {
        self.maps.get(key).map_or(ABSENT, |i| self.half(Cell::Slot(*i), epoch))
    }

    fn prefix(&self, addr: &Addr, epoch: u32) -> u64 {
        let found =
            (0..=128).rev().find_map(|bits| self.maps.get(&Key::Prefix(PrefixKey { bits, addr: masked(addr, bits) })));
        found.map_or(ABSENT, |i| self.half(Cell::Slot(*i), epoch))
    }

    fn check(&mut self) {
        self.steps += 1;
        self.held.extend(self.maps.iter().map(|(k, i)| (*k, *i)));
        for (epoch, image) in &self.readers {
            let expected: BTreeMap<Key, u64> = payloads(image).collect();
            for key in expected.keys().chain(self.maps.keys()).filter(|k| k.table() != Table::Prefixes) {
                let want = expected.get(key).copied().unwrap_or(ABSENT);
                assert_eq!(self.lookup(key, *epoch), want, "{key:?} in epoch {epoch}");
            }
            for (key, index) in &self.held {
                let got = self.half(Cell::Slot(*index), *epoch);
                match key {
                    Key::Prefix(p) => assert_eq!(got, effective(image, p), "{key:?} held in epoch {epoch}"),
                    _ => assert_eq!(got, expected.get(key).copied().unwrap_or(ABSENT), "{key:?} held in epoch {epoch}"),
                }
            }
            for addr in (0..32).map(|n| address(n << 3)) {
                let want = image.longest_prefix(&addr, 128).map_or(ABSENT, |b| b.encode());
                assert_eq!(self.prefix(&addr, *epoch), want, "{addr:?} in epoch {epoch}");
            }
            for id in (0..IDENTITIES).map(PeerId) {
                let want = image.baselines.get(&id).map_or(ABSENT, |b| b.encode());
                assert_eq!(self.half(Cell::Baseline(id), *epoch), want, "{id:?} in epoch {epoch}");
            }
            assert_eq!(self.levels & image.levels, image.levels);
            assert_eq!(self.built_ins & image.built_ins, image.built_ins);
        }
    }
}

fn effective(image: &Image, prefix: &PrefixKey) -> u64 {
    image.longest_prefix(&prefix.addr, prefix.bits).map_or(ABSENT, |b| b.encode())
}

impl Kernel for Model {
    type Error = &'static str;

    fn epoch(&self) -> u32 {
        self.epoch
    }
    fn set_epoch(&mut self, epoch: u32) {
        // The caller says beforehand what the next epoch's ruleset is.
        assert!(self.readers.remove(&u32::MAX).map(|image| self.readers.insert(epoch, image)).is_some());
        self.epoch = epoch;
        self.check();
    }
    fn write(&mut self, cell: Cell, half: usize, payload: u64) {
        self.cells.entry(cell).or_default()[half] = payload;
        self.check_without_next();
    }
    fn insert(&mut self, entries: &[(Key, u32)]) -> Result<(), &'static str> {
        for (key, index) in entries {
            assert_eq!(self.deleted, 0, "an element is used again while a run may look at it");
            if let Some(left) = &mut self.fail_insert {
                if *left == 0 {
                    return Err("full");
                }
                *left -= 1;
            }
            assert!(self.maps.insert(*key, *index).is_none(), "{key:?} is there already");
            self.check_without_next();
        }
        Ok(())
    }
    fn delete(&mut self, keys: &[Key]) -> Result<(), &'static str> {
        for key in keys {
            self.deleted += usize::from(self.maps.remove(key).is_some());
            self.check_without_next();
        }
        Ok(())
    }
    fn set_levels(&mut self, levels: u32) {
        self.levels = levels;
        self.check_without_next();
    }
    fn set_built_ins(&mut self, built_ins: u32) {
        self.built_ins = built_ins;
        self.check_without_next();
    }
    fn wait_for_readers(&mut self) -> Result<(), &'static str> {
        let epoch = self.epoch;
        self.readers.retain(|e, _| *e == epoch || *e == u32::MAX);
        self.held.clear();
        self.deleted = 0;
        self.check_without_next();
        Ok(())
    }
}

impl Model {
    /// Nobody reads the coming epoch yet.
    fn check_without_next(&mut self) {
        let next = self.readers.remove(&u32::MAX);
        self.check();
        if let Some(image) = next {
            self.readers.insert(u32::MAX, image);
        }
    }
}

const IDENTITIES: u32 = 4;

fn address(n: u8) -> Addr {
    let mut a = Addr([0; 16]);
    a.0[0] = n;
    a
}

fn binding() -> impl Strategy<Value = Binding> {
    (256u32..260, 0u32..3).prop_map(|(peer, instance)| Binding { peer: PeerId(peer), instance, flags: 0 })
}

/// Images over few keys, so that two of them share many, and prefixes that lie in one another.
fn image() -> impl Strategy<Value = Image> {
    let prefix = (0u32..=5, any::<u8>()).prop_map(|(bits, n)| PrefixKey { bits, addr: masked(&address(n), bits) });
    let rule =
        (256u32..258, 256u32..258, 0u16..3).prop_map(|(src, dst, port)| RuleKey { src, dst, port, proto: 6, size: 16 });
    let port = (0u8..3, 0u16..2).prop_map(|(n, port)| AddrPort { addr: address(n), port, proto: 6, pad: 0 });
    let baseline = (0u8..16).prop_map(|s| Baseline { sides: Sides(s), sockets_now: 0, sockets_audited: 0 });
    (
        prop::collection::btree_map(0u64..4, binding(), 0..4),
        prop::collection::btree_map((0u8..4).prop_map(address), binding(), 0..4),
        prop::collection::btree_map(port, binding(), 0..3),
        prop::collection::btree_map(prefix, binding(), 0..8),
        prop::collection::btree_map(rule, 1u64..4, 0..6),
        prop::collection::btree_map((0..IDENTITIES).prop_map(PeerId), baseline, 0..4),
        0u32..16,
        0u32..16,
    )
        .prop_map(|(cgroups, addresses, address_ports, prefixes, rules, baselines, levels, built_ins)| Image {
            cgroups,
            addresses,
            address_ports,
            prefixes,
            rules,
            baselines,
            levels,
            built_ins,
        })
}

/// Commits, with the model looking on.
fn run(model: &mut Model, state: &mut State, next: &Image) -> Result<Pending, (&'static str, Pending)> {
    let plan = state.plan(next, &Capacities::default()).expect("small images fit");
    model.readers.insert(u32::MAX, next.clone());
    let result = commit(model, state, &plan);
    model.readers.remove(&u32::MAX);
    result
}

/// Nothing is left over: the maps hold the image and nothing else, with both halves equal.
fn assert_settled(model: &Model, state: &State, image: &Image) {
    let expected: BTreeMap<Key, u64> = payloads(image).collect();
    assert_eq!(model.maps.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (key, payload) in &expected {
        assert_eq!([model.lookup(key, 0), model.lookup(key, 1)], [*payload; 2], "{key:?}");
    }
    for id in (0..IDENTITIES).map(PeerId) {
        assert_eq!(model.half(Cell::Baseline(id), 0), model.half(Cell::Baseline(id), 1));
    }
    assert_eq!(model.built_ins, image.built_ins);
    assert_eq!(model.levels, image.levels);
    let restored = State::restore(
        expected.iter().map(|(k, p)| (*k, Entry { index: model.maps[k], payload: *p })).collect(),
        image.baselines.iter().map(|(k, v)| (*k, v.encode())).collect(),
        model.levels,
        model.built_ins,
        64,
    )
    .expect("every index is used once");
    assert_eq!(state.entries(), restored.entries());
    assert_eq!(state.baselines(), restored.baselines());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_its_epoch_and_nothing_is_left_over(images in prop::collection::vec(image(), 1..5)) {
        let (mut model, mut state) = (Model::default(), State::default());
        model.readers.insert(0, Image::default());
        for image in &images {
            let mut pending = run(&mut model, &mut state, image).expect("the model has room");
            settle(&mut model, &mut state, &mut pending).expect("nothing fails");
            assert_settled(&model, &state, image);
        }
    }

    #[test]
    fn a_commit_that_fails_changes_nothing(first in image(), second in image(), after in 0usize..6) {
        let (mut model, mut state) = (Model::default(), State::default());
        model.readers.insert(0, Image::default());
        let mut pending = run(&mut model, &mut state, &first).expect("the model has room");
        settle(&mut model, &mut state, &mut pending).expect("nothing fails");
        model.fail_insert = Some(after);
        let (mut pending, image) = match run(&mut model, &mut state, &second) {
            Ok(pending) => (pending, &second),
            Err((_, pending)) => (pending, &first),
        };
        settle(&mut model, &mut state, &mut pending).expect("nothing fails");
        model.fail_insert = None;
        let state_now = state.clone();
        assert_settled(&model, &state_now, image);
        let mut pending = run(&mut model, &mut state, &second).expect("the model has room");
        settle(&mut model, &mut state, &mut pending).expect("nothing fails");
        assert_settled(&model, &state, &second);
    }
}

#[test]
fn a_plan_that_does_not_fit_is_refused_with_the_map_and_both_numbers() {
    let mut image = Image::default();
    for n in 0..4 {
        image.addresses.insert(address(n), Binding::of(PeerId(256)));
    }
    let capacities = Capacities { addresses: 3, ..Capacities::default() };
    let refused = State::default().plan(&image, &capacities).expect_err("four don't fit three");
    assert_eq!(refused, Refused::Full { map: "ADDRESSES", needed: 4, capacity: 3 });
    assert!(refused.to_string().contains("raise its limit"));

    let capacities = Capacities { slots: 4, ..Capacities::default() };
    let refused = State::default().plan(&image, &capacities).expect_err("element 0 is never used");
    assert_eq!(refused, Refused::Full { map: "SLOTS", needed: 5, capacity: 4 });
}

#[test]
fn what_goes_and_what_comes_are_counted_together() {
    let (mut model, mut state) = (Model::default(), State::default());
    model.readers.insert(0, Image::default());
    let of = |n: u8| Image { addresses: [(address(n), Binding::of(PeerId(256)))].into(), ..Image::default() };
    let mut pending = run(&mut model, &mut state, &of(1)).expect("the model has room");
    settle(&mut model, &mut state, &mut pending).expect("nothing fails");
    let capacities = Capacities { addresses: 1, ..Capacities::default() };
    let refused = state.plan(&of(2), &capacities).expect_err("both are there for a moment");
    assert_eq!(refused, Refused::Full { map: "ADDRESSES", needed: 2, capacity: 1 });
}

#[test]
fn the_same_image_again_is_an_empty_plan() {
    let (mut model, mut state) = (Model::default(), State::default());
    model.readers.insert(0, Image::default());
    let image = Image { addresses: [(address(1), Binding::of(PeerId(256)))].into(), ..Image::default() };
    let mut pending = run(&mut model, &mut state, &image).expect("the model has room");
    settle(&mut model, &mut state, &mut pending).expect("nothing fails");
    assert!(state.plan(&image, &Capacities::default()).expect("it fits").is_empty());
}

#[test]
fn restoring_refuses_an_index_that_two_entries_share() {
    let entry = Entry { index: 7, payload: 1 };
    let entries: BTreeMap<Key, Entry> = [(Key::Cgroup(1), entry), (Key::Cgroup(2), entry)].into();
    let bad = State::restore(entries, BTreeMap::new(), 0, 0, 64).expect_err("7 is used twice");
    assert_eq!(bad, BadIndex { key: Key::Cgroup(2), index: 7 });
}

#[test]
fn an_epoch_is_never_zero_again_and_parity_alternates() {
    use super::protocol::following;
    for epoch in [0, 1, 2, u32::MAX - 1, u32::MAX] {
        assert_ne!(following(epoch), 0);
        assert_ne!(following(epoch) & 1, epoch & 1);
    }
}
