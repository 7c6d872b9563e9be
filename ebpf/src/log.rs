//! Lines for somebody who looks for a fault in the programs themselves. Off unless the agent is started with
//! `--kernel-log`: then the level is a constant 0 to the verifier, which takes every call below out of the programs.
//!
//! Numbers in a line are those of [`bulkhead_common::outcome`], and of identities and rules as `status --json` and the
//! state folder have them. Counters and events are in [`crate::record`]; nothing depends on this file.

use aya_log_ebpf::info;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use core::ptr::{addr_of, read_volatile};

use crate::record::Decision;

/// Something that neither a counter nor an event tells.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Note {
    /// A packet without a full socket.
    NoSocket = 1,
    /// A socket's maker belongs to no workload known; the number is its process.
    UnknownMaker = 2,
    /// A refusal is left to the packet hooks, since the peer may become known; the number is its port.
    HeldBack = 3,
    /// The peer of a call can't be told before there is a packet; the number is its port.
    Later = 4,
}

#[inline(always)]
fn on() -> bool {
    level_enabled(Level::Info)
}

/// Writes a note.
#[inline(always)]
pub fn note(note: Note, number: u32) {
    if on() {
        bulkhead_log_note(note as u32, number);
    }
}

/// Writes a decision.
#[inline(always)]
pub fn decision(d: &Decision) {
    if on() {
        bulkhead_log_decision(d);
    }
}

// Global functions: their stacks aren't their callers', and where logging is off the verifier never gets into them.

/// Writes a note. Gives 1.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_log_note(note: u32, number: u32) -> u32 {
    const NO_SOCKET: u32 = Note::NoSocket as u32;
    const UNKNOWN_MAKER: u32 = Note::UnknownMaker as u32;
    const HELD_BACK: u32 = Note::HeldBack as u32;
    match note {
        NO_SOCKET => info!((), "a packet without a full socket is refused"),
        UNKNOWN_MAKER => info!((), "process {} makes a socket and belongs to no workload known", number),
        HELD_BACK => info!((), "a refusal is held back: the peer on port {} isn't known yet", number),
        _ => info!((), "left to the packet hooks: the peer on port {} can't be told yet", number),
    }
    1
}

/// Writes a decision. Gives 1, or 0 if there was none.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_log_decision(d: *const Decision) -> u32 {
    if d.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that this points to a decision.
    let (d, outcome) = unsafe { (&*d, (*d).judgement.outcome()) };
    // Each number is read on its own: a copy of the whole wouldn't fit this function's stack beside the line.
    // SAFETY: fields of the decision.
    unsafe {
        info!(
            (),
            "hook {} decides: outcome {} reason {} from {} to {} port {} protocol {} pid {}",
            d.hook as u8,
            outcome as u8,
            d.judgement.reason as u8,
            read_volatile(addr_of!(d.flow.src.0)),
            read_volatile(addr_of!(d.flow.dst.0)),
            read_volatile(addr_of!(d.flow.port)),
            read_volatile(addr_of!(d.flow.proto)),
            read_volatile(addr_of!(d.pid))
        );
    }
    1
}
