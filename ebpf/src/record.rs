//! Counting, and telling the agent.
//!
//! Counters are the truth: they only grow, by atomic adds. What a rule for just that port allows is counted beside the
//! rule, everything else in the map of edges, and what finds no room there in a total by direction, outcome and reason,
//! so sums stay exact. Peers outside are counted by address besides ([`crate::outside`]). Events carry detail and may be lost;
//! how many were is counted.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use bulkhead_common::event::Event;
use bulkhead_common::maps::{Control, EdgeKey, Stamp, totals};
use bulkhead_common::{Addr, Direction, Flow, Hook, Judgement, Outcome, Reason};
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

use crate::log;
use crate::maps::{EDGES, EVENTS, TOTALS};
use crate::outside::bulkhead_count_outside;
use crate::tables::Snapshot;
use crate::who::Ends;

pub const NOEXIST: u64 = 1;

/// What was decided about which flow, where, and on whose behalf.
#[repr(C)]
pub struct Decision {
    pub flow: Flow,
    pub ends: Ends,
    pub judgement: Judgement,
    /// Which way the flow was opened, seen from here.
    pub direction: Direction,
    pub hook: Hook,
    /// The process and its command name; zero when not known.
    pub pid: u32,
    pub comm: [u32; 4],
}

impl Decision {
    /// Names the socket's maker, as far as the stamp knows it: in the packet hooks nobody is calling.
    #[inline(always)]
    pub fn made_by(&mut self, stamp: *const Stamp) {
        if !stamp.is_null() {
            // SAFETY: a non-null stamp points to the socket's state.
            unsafe {
                self.pid = (*stamp).pid;
                self.comm = (*stamp).comm.as_ptr().cast::<[u32; 4]>().read();
            }
        }
    }
}

#[inline(always)]
pub fn add(p: *mut u64, n: u64) {
    // core offers no fetch_add for this target, since older BPF has no compare-and-swap; the instruction is there.
    // SAFETY: a map's value is aligned to eight bytes and only ever added to.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(p, n) };
}

/// Puts `new` in the place of `old`; false if something else stood there.
#[inline(always)]
pub fn exchange(p: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: a map's value, aligned to eight bytes, and written whole wherever two may meet.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(p, old, new).1 }
}

/// Adds to a number of four bytes.
#[inline(always)]
pub fn add_few(p: *mut u32, n: u32) {
    // SAFETY: a map's value is aligned to four bytes and only ever added to while programs run.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(p, n) };
}

#[inline(always)]
pub fn add_one(p: *mut u64) {
    add(p, 1);
}

/// Adds to one of the totals.
#[inline(always)]
pub fn total(index: u32, n: u64) {
    if let Some(p) = TOTALS.get_ptr_mut(index) {
        add(p, n);
    }
}

#[inline(always)]
fn count(flow: &Flow, direction: Direction, outcome: Outcome, reason: Reason) {
    let key = EdgeKey {
        src: flow.src.0,
        dst: flow.dst.0,
        port: flow.port,
        proto: flow.proto,
        direction: direction as u8,
        outcome: outcome as u8,
        reason: reason as u8,
        pad: [0; 2],
    };
    if let Some(p) = EDGES.get_ptr_mut(&key) {
        return add_one(p);
    }
    if EDGES.insert(&key, &1u64, NOEXIST).is_ok() {
        return;
    }
    // Somebody else was first, or the map is full.
    match EDGES.get_ptr_mut(&key) {
        Some(p) => add_one(p),
        None => total(totals::overflow(direction, outcome, reason), 1),
    }
}

/// Whether an event is due: for every outcome but `allowed`, and for that one on request.
#[inline(always)]
pub fn tells(s: Snapshot, outcome: Outcome) -> bool {
    !matches!(outcome, Outcome::Allowed) || s.flags() & Control::EMIT_ALLOWED != 0
}

/// Counts a decision unless that was done, and sends an event where one is due. Gives 1, or 0 if there was nothing to
/// record. A global function: the verifier looks at it once, and knows nothing of `d` but its type.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_record(epoch: u32, d: *const Decision, counted: u32) -> u32 {
    if d.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that this points to a decision.
    let d = unsafe { &*d };
    let s = Snapshot { epoch };
    let Decision { flow, direction, ends: e, judgement: j, hook, pid, comm } = d;
    let direction = *direction;
    let outcome = j.outcome();
    if counted == 0 {
        count(flow, direction, outcome, j.reason);
    }
    if !tells(s, outcome) {
        return 1;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        total(totals::LOST_EVENTS, 1);
        return 1;
    };
    // SAFETY: CLOCK_MONOTONIC has no precondition.
    let time = unsafe { bpf_ktime_get_ns() };
    let (saddr, daddr, sport, dport): (&Addr, &Addr, u16, u16) = match direction {
        Direction::Egress => (&e.own_addr, &e.peer_addr, e.own_port, e.peer_port),
        Direction::Ingress => (&e.peer_addr, &e.own_addr, e.peer_port, e.own_port),
    };
    entry.write(Event {
        time,
        epoch: s.epoch,
        src: flow.src.0,
        dst: flow.dst.0,
        egress_rule: j.egress_rule,
        ingress_rule: j.ingress_rule,
        pid: *pid,
        saddr: *saddr,
        daddr: *daddr,
        sport,
        dport,
        proto: flow.proto,
        direction: direction as u8,
        outcome: outcome as u8,
        reason: j.reason as u8,
        hook: *hook as u8,
        pad: [0; 7],
        // SAFETY: as many bytes.
        comm: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(*comm) },
    });
    entry.submit(0);
    1
}

/// Counts a decision and sends an event where one is due.
#[inline(always)]
pub fn record(s: Snapshot, d: &Decision) {
    log::decision(d);
    let peer = match d.direction {
        Direction::Egress => d.flow.dst,
        Direction::Ingress => d.flow.src,
    };
    if peer.is_outside() {
        bulkhead_count_outside(d);
    }
    // By far the most is what a rule for just that port allows. Counted from here, so that no stack is on top of another.
    let by_rule = matches!(d.judgement.outcome(), Outcome::Allowed) && matches!(d.judgement.reason, Reason::Rule);
    let counted = by_rule && s.count_beside(&d.flow, d.direction);
    if !counted || tells(s, Outcome::Allowed) {
        bulkhead_record(s.epoch, d, counted as u32);
    }
}
