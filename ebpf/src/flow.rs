//! Datagram flows: who sent the first allowed datagram on which port.
//!
//! A reply is a datagram of a flow that was opened from the other end; it needs no rule of its own. An entry is made
//! only after an allow, so a flood of denied datagrams can't fill the maps. An entry of an older epoch is judged again
//! in the direction that it recorded. One that was evicted makes a reply look new: denied, counted, and healed by the
//! next request.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use bulkhead_common::maps::{CachedVerdict, FLOW_IDLE_NS, FlowKey, FlowValue, SocketState, role};
use bulkhead_common::slots::Binding;
use bulkhead_common::{Class, Outcome};
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::maps::{FLOWS, OLD_SOCKETS, WORLD_FLOWS};
use crate::who::Ends;
use crate::words::{Words, fill};

/// How stale the time of last use may be: a write a second is enough to tell 180 s.
const TOUCH_NS: u64 = 1_000_000_000;

#[inline(always)]
fn key<'s>(space: &'s mut MaybeUninit<FlowKey>, instance: u32, e: &Ends) -> &'s FlowKey {
    let key = FlowKey::zeroed(space);
    key.instance = instance;
    fill(&mut key.peer, e.peer_addr.words());
    key.peer_port = e.peer_port;
    key.local_port = e.own_port;
    key.proto = e.proto();
    key
}

// Global functions: the verifier looks at each once, and their stacks aren't their callers'.

/// The state of the flow between these ends if it has been used lately, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_flow_find(instance: u32, e: *const Ends) -> u64 {
    if e.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that this points to a value of its type.
    let e = unsafe { &*e };
    let mut space = MaybeUninit::uninit();
    let key = key(&mut space, instance, e);
    let found = match FLOWS.get_ptr_mut(key) {
        Some(v) => v,
        None => match WORLD_FLOWS.get_ptr_mut(key) {
            Some(v) => v,
            None => return 0,
        },
    };
    // SAFETY: a map's value stays readable and writable for this run; each field is one aligned u64.
    unsafe {
        // In this order: who else uses it meanwhile would seem to have done so after now, ages ago.
        let used = read_volatile(addr_of!((*found).used));
        let now = bpf_ktime_get_coarse_ns();
        let idle = now.saturating_sub(used);
        if idle > FLOW_IDLE_NS {
            return 0;
        }
        if idle > TOUCH_NS {
            write_volatile(addr_of_mut!((*found).used), now);
        }
        read_volatile(addr_of!((*found).state))
    }
}

/// Remembers a flow. Gives 1, or 0 if it found no room: then the next datagram is judged anew, and nothing is opened.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_flow_keep(instance: u32, e: *const Ends, state: u64, world: u32) -> u32 {
    if e.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that this points to a value of its type.
    let e = unsafe { &*e };
    let mut space = MaybeUninit::uninit();
    let key = key(&mut space, instance, e);
    // SAFETY: the clock has no precondition.
    let value = FlowValue { state, used: unsafe { bpf_ktime_get_coarse_ns() } };
    let result = if world != 0 { WORLD_FLOWS.insert(key, &value, 0) } else { FLOWS.insert(key, &value, 0) };
    result.is_ok() as u32
}

/// The verdict of the flow between these ends; one of epoch 0 if there is none.
#[inline(always)]
pub fn find(own: &Binding, e: &Ends) -> CachedVerdict {
    CachedVerdict(bulkhead_flow_find(own.instance, e))
}

/// Remembers an allowed flow.
#[inline(always)]
pub fn keep(own: &Binding, e: &Ends, peer: &Binding, epoch: u32, outcome: Outcome, role: u32) {
    let world = peer.peer.is_cidr() || peer.peer.0 == Class::World as u32;
    bulkhead_flow_keep(own.instance, e, CachedVerdict::new(epoch, outcome, role, true, false).0, world as u32);
}

/// The direction in which a flow is judged when nothing is recorded: whoever sends opens it.
#[inline(always)]
pub const fn role_of_first(outgoing: bool) -> u32 {
    if outgoing { role::CLIENT } else { role::SERVER }
}

/// The role of our end in a flow that isn't recorded: of a socket that is older than the programs, what the agent found
/// out (its first packet that a program sees may well be a reply); else as `opening` says.
#[inline(always)]
pub fn role_unrecorded(state: *const SocketState, cookie: u64, opening: u32) -> u32 {
    // SAFETY: a non-null pointer to the socket's state. A stamp without a cgroup was made from packets.
    if !state.is_null() && unsafe { (*state).stamp.cgroup } != 0 {
        return opening;
    }
    match OLD_SOCKETS.get_ptr(&cookie) {
        // SAFETY: a map's value stays readable for this run.
        Some(r) if unsafe { *r } != role::NONE => unsafe { *r },
        _ => opening,
    }
}
