//! Peers outside, counted once more by their address ([`bulkhead_common::outside`]).
//!
//! Before the edge is counted, never after: whoever reads the edges first and the addresses then finds under the
//! addresses all that the edges have.

use aya_ebpf::btf_maps::HashMap;
use bulkhead_common::maps::{Traffic, capacity, totals};
use bulkhead_common::outside::{ALL, CAPACITY, Outside, OutsideKey, Share, has_room};
use bulkhead_common::{Direction, PeerId};
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::maps::{NO_PREALLOC, OUTSIDE_EVEN, OUTSIDE_ODD, SHARES};
use crate::record::{Decision, NOEXIST, add, add_few, add_one, total};
use crate::tables::Snapshot;
use crate::words::{Words, fill};

const _: () = assert!(capacity::IDENTITIES > ALL.0);

/// The map of one era: even or odd.
type Map = HashMap<OutsideKey, Outside, { CAPACITY as usize }, NO_PREALLOC>;

/// How many entries somebody has in such eras.
#[inline(always)]
fn entries(of: PeerId, half: usize) -> Option<*mut u32> {
    let share: *mut Share = SHARES.get_ptr_mut(of.0)?;
    // SAFETY: the element exists as long as the map, and `half` is 0 or 1.
    Some(unsafe { addr_of_mut!((*share).entries).cast::<u32>().add(half & 1) })
}

/// The counts of a key in this map, made if there is room for them.
#[inline(always)]
fn place_in(map: &Map, half: usize, key: &OutsideKey, own: PeerId) -> Option<*mut Outside> {
    if let Some(found) = map.get_ptr_mut(key) {
        return Some(found);
    }
    let (mine, all) = (entries(own, half)?, entries(ALL, half)?);
    // SAFETY: elements of a map, each one aligned u32. They may be a few off for a moment; the map itself holds no more
    // than it can.
    let (held, taken) = unsafe { (read_volatile(mine), read_volatile(all)) };
    if !has_room(held, taken, Snapshot::outside()) {
        return None;
    }
    let mut space = MaybeUninit::uninit();
    if map.insert(key, Outside::zeroed(&mut space), NOEXIST).is_ok() {
        add_few(mine, 1);
        add_few(all, 1);
    }
    // Or somebody else was first.
    map.get_ptr_mut(key)
}

#[inline(always)]
fn place(key: &OutsideKey, own: PeerId) -> Option<*mut Outside> {
    if Snapshot::era() & 1 == 0 { place_in(&OUTSIDE_EVEN, 0, key, own) } else { place_in(&OUTSIDE_ODD, 1, key, own) }
}

/// Counts a decision about a peer outside under its address. Gives 1, or 0 if there was no room. A global function: the
/// verifier looks at it once, and its stack isn't its callers'.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_count_outside(d: *const Decision) -> u32 {
    if d.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that this points to a decision.
    let d = unsafe { &*d };
    let mut space = MaybeUninit::uninit();
    let key = OutsideKey::zeroed(&mut space);
    let outcome = d.judgement.outcome();
    let [low, high] = d.flow.port.to_ne_bytes();
    // SAFETY: an edge's key is four words, aligned to four.
    unsafe {
        let words = addr_of_mut!(key.edge).cast::<u32>();
        write_volatile(words, d.flow.src.0);
        write_volatile(words.add(1), d.flow.dst.0);
        write_volatile(words.add(2), u32::from_ne_bytes([low, high, d.flow.proto, d.direction as u8]));
        write_volatile(words.add(3), u32::from_ne_bytes([outcome as u8, d.judgement.reason as u8, 0, 0]));
    }
    fill(&mut key.addr, d.ends.peer_addr.words());
    let own = match d.direction {
        Direction::Egress => d.flow.src,
        Direction::Ingress => d.flow.dst,
    };
    match place(key, own) {
        Some(counts) => {
            // SAFETY: a map's value stays writable for this run.
            add_one(unsafe { addr_of_mut!((*counts).attempts) });
            1
        }
        None => {
            total(totals::OUTSIDE, 1);
            0
        }
    }
}

/// Adds what became of a connection with a peer outside. What finds no room isn't told by address: the edge has it. A
/// function of its own, so that its stack isn't its caller's.
#[inline(never)]
pub fn keep(from: *const OutsideKey, more: &Traffic) {
    let mut space = MaybeUninit::uninit();
    let key = OutsideKey::zeroed(&mut space);
    let mut n = 0;
    while n < size_of::<OutsideKey>() / 4 {
        // SAFETY: as many words, at both.
        unsafe {
            let word = read_volatile(from.cast::<u32>().add(n));
            write_volatile(core::ptr::from_mut(key).cast::<u32>().add(n), word);
        }
        n += 1;
    }
    let Some(counts) = place(key, key.edge.own_and_peer().0) else { return };
    let more = core::ptr::from_ref(more).cast::<u64>();
    let mut n = 0;
    while n < Traffic::PARTS {
        // SAFETY: it has so many numbers.
        let by = unsafe { read_volatile(more.add(n as usize)) };
        if by != 0 {
            // SAFETY: as above, and a map's value stays writable for this run.
            add(unsafe { addr_of_mut!((*counts).traffic).cast::<u64>().add(n as usize) }, by);
        }
        n += 1;
    }
}

/// Whether what is counted under this key is counted by address too.
#[inline(always)]
pub fn concerns(key: *const OutsideKey) -> bool {
    // SAFETY: a non-null pointer to a socket's storage.
    unsafe {
        let egress = read_volatile(addr_of!((*key).edge.direction)) == Direction::Egress as u8;
        let (src, dst) = (read_volatile(addr_of!((*key).edge.src)), read_volatile(addr_of!((*key).edge.dst)));
        PeerId(if egress { dst } else { src }).is_outside()
    }
}
