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
use crate::words::settle;

/// The tables as of one epoch.
#[derive(Clone, Copy)]
pub struct Snapshot {
    pub epoch: u32,
}

/// A field of the one [`Control`], read whole; 0 if there is none, which the kernel rules out.
macro_rules! control {
    ($field:ident$([$n:literal])?) => {
        match CONTROL.get_ptr(0) {
            // SAFETY: the element exists as long as the map; the agent writes its fields whole.
            Some(c) => unsafe { read_volatile(addr_of!((*c).$field$([$n])?)) },
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

    #[inline(always)]
    pub fn host_netns(self) -> u64 {
        control!(host_netns)
    }

    /// Who the cgroup with this id is bound to.
    #[inline(always)]
    pub fn cgroup(self, id: u64) -> Option<Binding> {
        Binding::decode(self.find(&CGROUPS, control!(masks[0]), [id]).0)
    }

    /// Where a flow is counted that the rule for exactly this pair and port allows, seen from this direction; null if
    /// there is no such rule.
    #[inline(always)]
    pub fn rule_count(self, flow: &Flow, direction: Direction) -> *mut u64 {
        let key = RuleKey { src: flow.src.0, dst: flow.dst.0, port: flow.port, proto: flow.proto, size: 16 };
        let (_, place) = self.find(&RULES, control!(masks[3]), places::rule(&key));
        if place.is_null() {
            return core::ptr::null_mut();
        }
        // SAFETY: a place is longer than that; a direction is 0 or 1.
        unsafe { place.cast::<u64>().cast_mut().add(RULE_COUNTS + (direction as usize & 1)) }
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
            let Some(place) = table.get_ptr(at & mask) else { break };
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
    fn slot(&self, index: Option<*const u32>) -> u64 {
        let Some(index) = index else { return ABSENT };
        // SAFETY: a map's value stays readable for this run, and an index never changes while its entry lives.
        let index = unsafe { *index };
        self.half(SLOTS.get_ptr(index))
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
        self.find(&RULES, control!(masks[3]), places::rule(key)).0
    }

    #[inline(always)]
    fn baseline(&self, id: PeerId) -> u64 {
        self.half(BASELINES.get_ptr(id.0))
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> u64 {
        self.find(&ADDRESSES, control!(masks[1]), places::address(addr)).0
    }

    #[inline(always)]
    fn address_port(&self, key: &AddrPort) -> u64 {
        self.find(&ADDRESS_PORTS, control!(masks[2]), places::address_port(key)).0
    }

    #[inline(always)]
    fn prefix(&self, addr: &Addr) -> u64 {
        let key = Key::new(128, addr.0);
        self.slot(PREFIXES.get(&key).map(core::ptr::from_ref))
    }

    #[inline(always)]
    fn pair(&self, src: PeerId, dst: PeerId, proto: u8, port: u16) -> u64 {
        bulkhead_pair(self.epoch, src.0, dst.0, u32::from(proto), u32::from(port))
    }
}

// The functions named `bulkhead_…` are global ones: the verifier looks at each once, not at every call, and knows nothing of
// their arguments but their types. Hence raw pointers, checked for null.

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
    // A copy on the stack, which the compiler mustn't see through: 6.1 takes no map key out of an argument's memory.
    // SAFETY: the verifier has checked at each call that this points to an address.
    let addr = unsafe { read_volatile(addr) };
    verdict::resolve(&Snapshot { epoch }, &addr, proto as u8, port as u16).encode()
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
