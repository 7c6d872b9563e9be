//! The verdict's tables, read from the maps for one epoch.
//!
//! A program run makes one [`Snapshot`], first, and reads everything through it, so it sees the ruleset of one epoch
//! and never a mixture (see [`bulkhead_common::maps`]).

use aya_ebpf::btf_maps::lpm_trie::Key;
use bulkhead_common::maps::{AddrPort, Control, RuleKey};
use bulkhead_common::slots::{ABSENT, Binding};
use bulkhead_common::{Addr, PeerId, Tables};
use core::ptr::{addr_of, read_volatile};

use crate::maps::{ADDRESS_PORTS, ADDRESSES, BASELINES, CGROUPS, CONTROL, PREFIXES, RULES, SLOTS};

/// The tables as of one epoch.
pub struct Snapshot {
    pub epoch: u32,
    control: *const Control,
}

impl Snapshot {
    /// Reads the epoch. Call it once in a run, before anything else. Always `Some`: `CONTROL` has an element 0.
    #[inline(always)]
    pub fn take() -> Option<Self> {
        let control = CONTROL.get_ptr(0)?;
        // SAFETY: the element exists as long as the map; the agent writes its fields whole.
        let epoch = unsafe { read_volatile(addr_of!((*control).epoch)) };
        Some(Self { epoch, control })
    }

    #[inline(always)]
    pub fn levels(&self) -> u32 {
        // SAFETY: as in `take`.
        unsafe { read_volatile(addr_of!((*self.control).levels)) }
    }

    #[inline(always)]
    pub fn flags(&self) -> u32 {
        // SAFETY: as in `take`.
        unsafe { read_volatile(addr_of!((*self.control).flags)) }
    }

    #[inline(always)]
    pub fn host_netns(&self) -> u64 {
        // SAFETY: as in `take`.
        unsafe { read_volatile(addr_of!((*self.control).host_netns)) }
    }

    /// Who the cgroup with this id is bound to.
    #[inline(always)]
    pub fn cgroup(&self, id: u64) -> Option<Binding> {
        Binding::decode(self.slot(CGROUPS.get_ptr(&id)))
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
        self.slot(RULES.get_ptr(key))
    }

    #[inline(always)]
    fn baseline(&self, id: PeerId) -> u64 {
        self.half(BASELINES.get_ptr(id.0))
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> u64 {
        self.slot(ADDRESSES.get_ptr(addr))
    }

    #[inline(always)]
    fn address_port(&self, key: &AddrPort) -> u64 {
        self.slot(ADDRESS_PORTS.get_ptr(key))
    }

    #[inline(always)]
    fn prefix(&self, addr: &Addr) -> u64 {
        let key = Key::new(128, addr.0);
        self.slot(PREFIXES.get(&key).map(core::ptr::from_ref))
    }
}
