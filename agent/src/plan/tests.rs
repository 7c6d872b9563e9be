//! The protocol against a model of the kernel that is stricter than the kernel: after every single step, every reader
//! that may still be running must see exactly the ruleset of the epoch that it read, also through an entry that it
//! found earlier.

use super::protocol::{Kernel, Pending, commit, settle};
use super::*;
use crate::image::masked;
use bulkhead_common::slots::{Baseline, Binding, Sides};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const SEED: u64 = 0x0123_4567_89ab_cdef;

/// Tables so small that keys get in each other's way.
const SMALL: Capacities =
    Capacities { cgroups: 40, addresses: 40, address_ports: 4, prefixes: 16, rules: 80, identities: IDENTITIES };

/// The kernel's maps, and who may be reading them.
#[derive(Default)]
struct Model {
    epoch: u32,
    prefixes: BTreeMap<PrefixKey, u32>,
    names: HashMap<(Table, u32), Key>,
    cells: HashMap<Cell, [u64; 2]>,
    levels: u32,
    built_ins: u32,
    /// The ruleset of each epoch that a run may be reading.
    readers: BTreeMap<u32, Image>,
    /// Prefixes that such a run may have found, and places whose key it may be comparing.
    held: BTreeSet<(PrefixKey, u32)>,
    compared: BTreeSet<(Table, u32)>,
    /// Elements deleted since the last wait: an insert now might use one again while a run looks at it.
    deleted: usize,
    /// The insert that fails, counted down.
    fail_insert: Option<usize>,
    /// Rules whose counts were put away.
    retired: BTreeSet<(RuleKey, u32)>,
    steps: usize,
}

impl Model {
    fn half(&self, cell: Cell, epoch: u32) -> u64 {
        self.cells.get(&cell).copied().unwrap_or_default()[(epoch & 1) as usize]
    }

    /// As the kernel programs search.
    fn lookup(&self, key: &Key, epoch: u32) -> u64 {
        let (table, mut at) = (key.table(), key.home(SEED));
        let mask = u32::try_from(self.half(Cell::Mask(table), epoch)).expect("a mask");
        for _ in 0..PROBES {
            let place = places::place(at, mask);
            let slot = self.half(Cell::Slot(table, place), epoch);
            if slot == ABSENT {
                break;
            }
            if slot != GONE && self.names.get(&(table, place)) == Some(key) {
                return slot;
            }
            at = places::next(at);
        }
        ABSENT
    }

    fn prefix(&self, addr: &Addr, epoch: u32) -> u64 {
        let found = (0..=128).rev().find_map(|bits| self.prefixes.get(&PrefixKey { bits, addr: masked(addr, bits) }));
        found.map_or(ABSENT, |i| self.half(Cell::Slot(Table::Prefixes, *i), epoch))
    }

    fn check(&mut self) {
        self.steps += 1;
        self.held.extend(self.prefixes.iter().map(|(k, i)| (*k, *i)));
        for (epoch, image) in &self.readers {
            let there = self.cells.iter().filter(|(_, halves)| !matches!(halves[(epoch & 1) as usize], ABSENT | GONE));
            self.compared
                .extend(there.filter_map(|(c, _)| if let Cell::Slot(t, i) = c { Some((*t, *i)) } else { None }));
            let expected: BTreeMap<Key, u64> = payloads(image).collect();
            for key in expected.keys().chain(self.names.values()).filter(|k| k.table() != Table::Prefixes) {
                let want = expected.get(key).copied().unwrap_or(ABSENT);
                assert_eq!(self.lookup(key, *epoch), want, "{key:?} in epoch {epoch}");
            }
            for (prefix, index) in &self.held {
                let got = self.half(Cell::Slot(Table::Prefixes, *index), *epoch);
                assert_eq!(got, effective(image, prefix), "{prefix:?} held in epoch {epoch}");
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
    fn name(&mut self, key: &Key, index: u32) {
        if key.table() == Table::Prefixes {
            return;
        }
        let place = (key.table(), index);
        assert!(!self.compared.contains(&place), "the key at {place:?} changes while a run may compare it");
        if let Some(Key::Rule(before)) = self.names.insert(place, *key) {
            assert!(self.retired.remove(&(before, index)), "{before:?} is counted where another rule comes");
        }
        self.check_without_next();
    }
    fn insert(&mut self, entries: &[(PrefixKey, u32)]) -> Result<(), &'static str> {
        for (prefix, index) in entries {
            assert_eq!(self.deleted, 0, "an element is used again while a run may look at it");
            if let Some(left) = &mut self.fail_insert {
                if *left == 0 {
                    return Err("full");
                }
                *left -= 1;
            }
            assert!(self.prefixes.insert(*prefix, *index).is_none(), "{prefix:?} is there already");
            self.check_without_next();
        }
        Ok(())
    }
    fn delete(&mut self, keys: &[PrefixKey]) -> Result<(), &'static str> {
        for key in keys {
            self.deleted += usize::from(self.prefixes.remove(key).is_some());
            self.check_without_next();
        }
        Ok(())
    }
    fn retire(&mut self, rules: &[(RuleKey, u32)]) -> Result<(), &'static str> {
        for (rule, index) in rules {
            assert!(!self.compared.contains(&(Table::Rules, *index)), "a run may still count beside {rule:?}");
            self.retired.insert((*rule, *index));
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
        self.compared.clear();
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
    let rule = (256u32..258, 256u32..258, 0u16..20).prop_map(|(src, dst, port)| RuleKey {
        src,
        dst,
        port,
        proto: 6,
        size: 16,
    });
    let port = (0u8..3, 0u16..2).prop_map(|(n, port)| AddrPort { addr: address(n), port, proto: 6, pad: 0 });
    let baseline = (0u8..16).prop_map(|s| Baseline { sides: Sides(s), sockets_now: 0, sockets_audited: 0 });
    (
        prop::collection::btree_map(0u64..4, binding(), 0..4),
        prop::collection::btree_map((0u8..4).prop_map(address), binding(), 0..4),
        prop::collection::btree_map(port, binding(), 0..3),
        prop::collection::btree_map(prefix, binding(), 0..8),
        prop::collection::btree_map(rule, (1u64..4).prop_map(|n| n | 1 << 63), 0..24),
        prop::collection::btree_map((0..IDENTITIES).prop_map(PeerId), baseline, 0..4),
        0u32..16,
        0u32..16,
    )
        .prop_map(|(cgroups, addresses, address_ports, prefixes, rules, baselines, levels, built_ins)| Image {
            cgroups,
            addresses: addresses.into_iter().collect(),
            address_ports,
            prefixes,
            rules: rules.into_iter().collect(),
            baselines,
            levels,
            built_ins,
        })
}

/// Commits, with the model looking on.
fn run(model: &mut Model, state: &mut State, next: &Image) -> Result<Pending, (&'static str, Pending)> {
    for table in Table::ALL {
        model.cells.entry(Cell::Mask(table)).or_insert([u64::from(places::SMALLEST - 1); 2]);
    }
    let plan = state.plan(next).expect("small images fit");
    model.readers.insert(u32::MAX, next.clone());
    let result = commit(model, state, &plan);
    model.readers.remove(&u32::MAX);
    result
}

/// Nothing is left over: the maps hold the image and nothing else, with both halves equal.
fn assert_settled(model: &Model, state: &State, image: &Image) {
    let expected: BTreeMap<Key, u64> = payloads(image).collect();
    let mut found = Found { levels: model.levels, built_ins: model.built_ins, ..Found::default() };
    for (cell, halves) in &model.cells {
        if let Cell::Slot(Table::Prefixes, index) = cell
            && !model.prefixes.values().any(|i| i == index)
        {
            continue;
        }
        assert_eq!(halves[0], halves[1], "{cell:?}");
        match *cell {
            Cell::Slot(Table::Prefixes, _) => {}
            Cell::Slot(table, index) => match halves[0] {
                ABSENT => {}
                GONE => found.gone.push((table, index)),
                payload => {
                    found.entries.insert(model.names[&(table, index)], Entry { index, payload });
                }
            },
            Cell::Baseline(id) if halves[0] != ABSENT => {
                found.baselines.insert(id, halves[0]);
            }
            Cell::Baseline(_) => {}
            Cell::Mask(table) => {
                found.sizes.insert(table, u32::try_from(halves[0]).expect("a mask") + 1);
            }
        }
    }
    for (prefix, index) in &model.prefixes {
        let payload = model.half(Cell::Slot(Table::Prefixes, *index), 0);
        found.entries.insert(Key::Prefix(*prefix), Entry { index: *index, payload });
    }
    assert_eq!(found.entries.iter().map(|(k, e)| (*k, e.payload)).collect::<BTreeMap<_, _>>(), expected);
    assert_eq!(state.image(), *image, "it can be told what is in force");
    assert_eq!(model.built_ins, image.built_ins);
    assert_eq!(model.levels, image.levels);
    let (restored, clear) = State::restore(SMALL, SEED, found).expect("every entry is where it is searched for");
    assert_eq!(clear, [], "what could be free is free");
    // Which indexes of the slot array were used once isn't known any more.
    let forgetful = |s: &State| {
        let mut s = s.clone();
        (s.free, s.fresh) = (BTreeSet::new(), 1);
        s
    };
    assert_eq!(forgetful(&restored), forgetful(state));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_its_epoch_and_nothing_is_left_over(images in prop::collection::vec(image(), 1..5)) {
        let (mut model, mut state) = (Model::default(), State::new(SMALL, SEED));
        model.readers.insert(0, Image::default());
        for image in &images {
            let mut pending = run(&mut model, &mut state, image).expect("the model has room");
            settle(&mut model, &mut state, &mut pending).expect("nothing fails");
            assert_settled(&model, &state, image);
        }
    }

    #[test]
    fn a_commit_that_fails_changes_nothing(first in image(), second in image(), after in 0usize..6) {
        let (mut model, mut state) = (Model::default(), State::new(SMALL, SEED));
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
    let state = State::new(Capacities { addresses: 3, ..Capacities::default() }, SEED);
    let refused = state.plan(&image).expect_err("four don't fit three");
    assert_eq!(refused, Refused::Full { map: "ADDRESSES", needed: 4, capacity: 3 });
    assert!(refused.to_string().contains("raise its limit"));
}

#[test]
fn keys_that_all_begin_their_search_at_one_place_are_refused() {
    let state = State::new(Capacities::default(), SEED);
    // In the largest table too.
    let mask = places::most_places(Capacities::default().cgroups) - 1;
    let together = (0..).filter(|id| Key::Cgroup(*id).home(SEED) & mask == 5).take(PROBES as usize + 1);
    let mut image = Image::default();
    for id in together {
        assert!(state.plan(&image).is_ok());
        image.cgroups.insert(id, Binding::of(PeerId(256)));
    }
    assert_eq!(state.plan(&image), Err(Refused::Crowded { map: "CGROUPS" }));
}

#[test]
fn what_goes_and_what_comes_are_counted_together() {
    let capacities = Capacities { addresses: 1, ..SMALL };
    let mut state = State::new(capacities, SEED);
    let of =
        |n: u8| Image { addresses: [(address(n), Binding::of(PeerId(256)))].into_iter().collect(), ..Image::default() };
    let plan = state.plan(&of(1)).expect("one fits");
    state.advance(&plan);
    let refused = state.plan(&of(2)).expect_err("both are there for a moment");
    assert_eq!(refused, Refused::Full { map: "ADDRESSES", needed: 2, capacity: 1 });
}

#[test]
fn the_same_image_again_is_an_empty_plan() {
    let (mut model, mut state) = (Model::default(), State::new(SMALL, SEED));
    model.readers.insert(0, Image::default());
    let image = Image { addresses: [(address(1), Binding::of(PeerId(256)))].into_iter().collect(), ..Image::default() };
    let mut pending = run(&mut model, &mut state, &image).expect("the model has room");
    settle(&mut model, &mut state, &mut pending).expect("nothing fails");
    assert!(state.plan(&image).expect("it fits").is_empty());
}

#[test]
fn restoring_refuses_an_entry_that_no_search_finds() {
    let found = |entries: &[(Key, u32)]| Found {
        entries: entries.iter().map(|(k, i)| (*k, Entry { index: *i, payload: 1 << 63 })).collect(),
        ..Found::default()
    };
    let mask = places::SMALLEST - 1;
    let (a, b) = (Key::Cgroup(1), Key::Cgroup(2));
    let (home_a, home_b) = (places::place(a.home(SEED), mask), places::place(b.home(SEED), mask));
    let restore = |entries: &[(Key, u32)]| State::restore(Capacities::default(), SEED, found(entries)).map(drop);
    assert_eq!(restore(&[(a, home_a), (b, home_b)]), Ok(()));
    assert_eq!(restore(&[(a, home_a + places::SMALLEST)]).map_err(|e| e.key), Err(a), "of another table");
    assert_eq!(restore(&[(a, 0)]).map_err(|e| e.key), Err(a));
    let (c, d) = (
        Key::Prefix(PrefixKey { bits: 0, addr: Addr::default() }),
        Key::Prefix(PrefixKey { bits: 1, addr: Addr::default() }),
    );
    assert_eq!(restore(&[(c, 7), (d, 8)]), Ok(()));
    assert_eq!(restore(&[(c, 7), (d, 7)]), Err(BadIndex { key: d, index: 7 }));
    assert_eq!(restore(&[(c, 0)]), Err(BadIndex { key: c, index: 0 }));
}

#[test]
fn an_epoch_is_never_zero_again_and_parity_alternates() {
    use super::protocol::following;
    for epoch in [0, 1, 2, u32::MAX - 1, u32::MAX] {
        assert_ne!(following(epoch), 0);
        assert_ne!(following(epoch) & 1, epoch & 1);
    }
}
