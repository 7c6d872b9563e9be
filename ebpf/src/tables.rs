//! The verdict's tables, read from the maps for one epoch.
//!
//! A program run makes one [`Snapshot`], first, and reads everything through it, so it sees the ruleset of one epoch
//! and never a mixture (see [`bulkhead_common::maps`]).

use aya_ebpf::btf_maps::Array;
use aya_ebpf::btf_maps::lpm_trie::Key;
use bulkhead_common::maps::{AddrPort, RuleKey};
use bulkhead_common::places::{self, GONE, KEY, PROBES, RULE_COUNTS};
use bulkhead_common::slots::{ABSENT, Binding};
use bulkhead_common::{Addr, Class, Direction, Flow, Judgement, PeerId, Reason, Tables, verdict};
use core::ptr::{addr_of, read_volatile};

use crate::maps::{ADDRESS_PORTS, ADDRESSES, BASELINES, CGROUPS, CONTROL, MMAPABLE, PREFIXES, RULES, SLOTS};
use crate::record::add_one;
use crate::words::settle;

/// The tables as of one epoch.
#[derive(Clone, Copy)]
pub struct Snapshot {
    pub epoch: u32,
}

/// A field of the one [`Control`], read whole; 0 if there is none, which the kernel rules out.
macro_rules! control {
    ($field:ident) => {
        match CONTROL.get_ptr(0) {
            // SAFETY: the element exists as long as the map; the agent writes its fields whole.
            Some(c) => unsafe { read_volatile(addr_of!((*c).$field)) },
            None => 0,
        }
    };
}

impl Snapshot {
    /// Reads the epoch. Call it once in a run, before anything else.
    #[inline(always)]
    pub fn take() -> Self {
        Self { epoch: control!(epoch) }
    }

    #[inline(always)]
    pub fn levels(self) -> u64 {
        control!(level_list)
    }

    #[inline(always)]
    pub fn flags(self) -> u32 {
        control!(flags)
    }

    /// Which of the maps of peers outside is counted in. No verdict depends on it, so it needn't be of the epoch.
    #[inline(always)]
    pub fn era() -> u32 {
        control!(era)
    }

    /// When live connections were last asked what they have carried.
    #[inline(always)]
    pub fn tick() -> u32 {
        control!(tick)
    }

    /// How many entries each of them holds.
    #[inline(always)]
    pub fn outside() -> u32 {
        control!(outside)
    }

    #[inline(always)]
    pub fn host_netns(self) -> u64 {
        control!(host_netns)
    }

    /// The size of the n-th searched table, less one.
    #[inline(always)]
    fn mask(&self, n: usize) -> u32 {
        match CONTROL.get_ptr(0) {
            // SAFETY: as above; `n` is a constant below 4, and the other index 0 or 1.
            Some(c) => unsafe { read_volatile(addr_of!((*c).masks[n]).cast::<u32>().add((self.epoch & 1) as usize)) },
            None => 0,
        }
    }

    /// Who the cgroup with this id is bound to.
    #[inline(always)]
    pub fn cgroup(self, id: u64) -> Option<Binding> {
        Binding::decode(bulkhead_find_cgroup(self.epoch, id))
    }

    /// Reads where the search for this address begins, so that its line of memory is under way while other things are done.
    #[inline(always)]
    pub fn foresee(self, addr: &Addr) {
        let at = places::home(control!(seed), &places::address(addr));
        self.half(ADDRESSES.get_ptr(places::place(at, self.mask(1))).map(<*const _>::cast));
    }

    /// Counts a flow beside the rule for exactly its pair and port, seen from this direction. Tells whether there is
    /// such a rule.
    #[inline(always)]
    pub fn count_beside(self, flow: &Flow, direction: Direction) -> bool {
        let key = RuleKey { src: flow.src.0, dst: flow.dst.0, port: flow.port, proto: flow.proto, size: 16 };
        let [a, b] = places::rule(&key);
        bulkhead_count_beside(self.epoch, a, b, direction as u32) == 1
    }

    /// Searches a table for a key as [`bulkhead_common::places`] says. Gives the payload and the place, or
    /// [`ABSENT`] and null.
    #[inline(always)]
    fn find<const W: usize, const P: usize, const N: usize>(
        &self,
        table: &Array<[u64; P], N, MMAPABLE>,
        mask: u32,
        key: [u64; W],
    ) -> (u64, *const [u64; P]) {
        let mut at = places::home(control!(seed), &key);
        let mut n = 0;
        while n < PROBES {
            let Some(place) = table.get_ptr(places::place(at, mask)) else { break };
            let slot = self.half(Some(place.cast()));
            if slot == ABSENT {
                break;
            }
            if slot != GONE {
                let mut same = true;
                let mut w = 0;
                while w < W {
                    // SAFETY: a place is longer than its key.
                    same &= unsafe { read_volatile(place.cast::<u64>().add(KEY + w)) } == key[w];
                    w += 1;
                }
                if same {
                    return (slot, place);
                }
            }
            at = places::next(at);
            n += 1;
        }
        (ABSENT, core::ptr::null())
    }

    #[inline(always)]
    fn half(&self, slots: Option<*const [u64; 2]>) -> u64 {
        let Some(slots) = slots else { return ABSENT };
        // SAFETY: the element exists as long as the map, and the index is 0 or 1; one aligned u64 is read whole.
        unsafe { read_volatile(slots.cast::<u64>().add((self.epoch & 1) as usize)) }
    }
}

impl Tables for Snapshot {
    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> u64 {
        let [a, b] = places::rule(key);
        bulkhead_find_rule(self.epoch, a, b)
    }

    #[inline(always)]
    fn baseline(&self, id: PeerId) -> u64 {
        self.half(BASELINES.get_ptr(id.0))
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> u64 {
        let [a, b] = places::address(addr);
        bulkhead_find_address(self.epoch, a, b)
    }

    #[inline(always)]
    fn address_port(&self, key: &AddrPort) -> u64 {
        let [a, b, c] = places::address_port(key);
        bulkhead_find_address_port(self.epoch, a, b, c)
    }

    #[inline(always)]
    fn prefix(&self, addr: &Addr) -> u64 {
        let [a, b] = places::address(addr);
        bulkhead_find_prefix(self.epoch, a, b)
    }

    #[inline(always)]
    fn pair(&self, src: PeerId, dst: PeerId, proto: u8, port: u16) -> u64 {
        bulkhead_pair(self.epoch, src.0, dst.0, u32::from(proto), u32::from(port))
    }
}

// The functions named `bulkhead_…` are global ones: the verifier looks at each once, not at every call, and knows nothing of
// their arguments but their types. Hence raw pointers, checked for null.

/// A search in [`CGROUPS`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_find_cgroup(epoch: u32, id: u64) -> u64 {
    let s = Snapshot { epoch };
    s.find(&CGROUPS, s.mask(0), [id]).0
}

/// A search in [`ADDRESSES`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_find_address(epoch: u32, a: u64, b: u64) -> u64 {
    let s = Snapshot { epoch };
    s.find(&ADDRESSES, s.mask(1), [a, b]).0
}

/// A search in [`ADDRESS_PORTS`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_find_address_port(epoch: u32, a: u64, b: u64, c: u64) -> u64 {
    let s = Snapshot { epoch };
    s.find(&ADDRESS_PORTS, s.mask(2), [a, b, c]).0
}

/// A search in [`PREFIXES`], by the words of an address.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_find_prefix(epoch: u32, a: u64, b: u64) -> u64 {
    let key = Key::new(128, places::to_address([a, b]).0);
    let Some(index) = PREFIXES.get(&key) else { return ABSENT };
    // An index never changes while its entry lives.
    Snapshot { epoch }.half(SLOTS.get_ptr(*index))
}

/// A search in [`RULES`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_find_rule(epoch: u32, a: u64, b: u64) -> u64 {
    let s = Snapshot { epoch };
    s.find(&RULES, s.mask(3), [a, b]).0
}

/// Counts beside the rule with this key. Gives 1, or 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_count_beside(epoch: u32, a: u64, b: u64, direction: u32) -> u32 {
    let s = Snapshot { epoch };
    let (_, place) = s.find(&RULES, s.mask(3), [a, b]);
    if place.is_null() {
        return 0;
    }
    // SAFETY: a place is longer than that.
    add_one(unsafe { place.cast::<u64>().cast_mut().add(RULE_COUNTS + (direction & 1) as usize) });
    1
}

/// [`Tables::pair`].
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_pair(epoch: u32, src: u32, dst: u32, proto: u32, port: u32) -> u64 {
    verdict::permit(&Snapshot { epoch }, PeerId(src), PeerId(dst), proto as u8, port as u16)
}

/// [`verdict::resolve`], encoded.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_resolve(epoch: u32, addr: *const Addr, proto: u32, port: u32) -> u64 {
    if addr.is_null() {
        return ABSENT;
    }
    // SAFETY: the verifier has checked at each call that this points to an address.
    let addr = unsafe { &*addr };
    verdict::resolve(&Snapshot { epoch }, addr, proto as u8, port as u16).encode()
}

/// Who is at this address.
#[inline(always)]
pub fn resolve(s: Snapshot, addr: &Addr, proto: u8, port: u16) -> Binding {
    let found = bulkhead_resolve(s.epoch, addr, u32::from(proto), u32::from(port));
    Binding::decode(found).unwrap_or(Binding::of(Class::Unknown.id()))
}

/// [`verdict::judge`]. Gives 1, or 0 if there was nothing to judge.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_judge(epoch: u32, flow: *const Flow, judgement: *mut Judgement) -> u32 {
    if flow.is_null() || judgement.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that these point to values of their types.
    unsafe { *judgement = verdict::judge(&Snapshot { epoch }, &*flow) };
    1
}

/// Judges a flow.
#[inline(always)]
pub fn judge(s: Snapshot, flow: &Flow, judgement: &mut Judgement) {
    settle(judgement, Judgement::refuse(Reason::Incomplete));
    bulkhead_judge(s.epoch, flow, judgement);
}
