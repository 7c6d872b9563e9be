//! What workloads are answered by DNS servers, told to the agent: the names beside addresses come from there.
//!
//! Only datagrams that were let through, and that belong to a flow which the workload opened itself: nobody else can
//! put names into its mouth. They have a ring of their own and a budget a second for each identity, so that a flood of
//! them costs nobody else his.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_load_bytes};
use bulkhead_common::event::Answer;
use bulkhead_common::maps::{Control, totals};
use bulkhead_common::outside::Share;
use bulkhead_common::{PeerId, proto};
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::kept::socket;
use crate::maps::{ANSWERS, SHARES};
use crate::packet::load;
use crate::record::total;
use crate::storage;
use crate::tables::Snapshot;
use crate::who::holder;

/// The length of an UDP header.
const UDP: u32 = 8;

/// Where the payload of an UDP datagram begins; 0 where that isn't simple.
#[inline(always)]
fn payload(skb: *mut __sk_buff) -> u32 {
    let Some([first, _, _, _, _, _, next, _, _, v4]) = load::<[u8; 10]>(skb, 0) else { return 0 };
    match (first >> 4, v4, next) {
        (4, proto::UDP, _) => u32::from(first & 0x0f) * 4 + UDP,
        (6, _, proto::UDP) => 40 + UDP,
        _ => 0,
    }
}

/// Whether one more answer of this identity is told in this second.
#[inline(always)]
fn may_tell(peer: PeerId) -> bool {
    let Some(share) = SHARES.get_ptr_mut(peer.0) else { return false };
    let share: *mut Share = share;
    // SAFETY: the element exists as long as the map; aligned words. When two CPUs meet here a few more may pass.
    unsafe {
        let second = (bpf_ktime_get_coarse_ns() / 1_000_000_000) as u32;
        if read_volatile(addr_of!((*share).second)) != second {
            write_volatile(addr_of_mut!((*share).second), second);
            write_volatile(addr_of_mut!((*share).answers), 0);
        }
        let told = read_volatile(addr_of!((*share).answers));
        write_volatile(addr_of_mut!((*share).answers), told.wrapping_add(1));
        told < Answer::PER_SECOND
    }
}

/// Tells the agent of an answer. Gives 1, or 0 if there was nothing to tell or no room. A global function: the verifier
/// looks at it once, and its stack isn't its callers'.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_answer(skb: *mut __sk_buff, epoch: u32) -> u32 {
    let s = Snapshot { epoch };
    if s.flags() & Control::TELL_ANSWERS == 0 {
        return 0;
    }
    let sk = socket(skb);
    if sk.is_null() {
        return 0;
    }
    let own = holder(s, skb, storage::stamp(storage::find(sk, storage::cookie(skb))));
    if !own.peer.is_identity() {
        return 0;
    }
    // SAFETY: the verifier checks the context's field.
    let (offset, whole) = (payload(skb), unsafe { read_volatile(addr_of!((*skb).len)) });
    if offset == 0 || whole <= offset {
        return 0;
    }
    let rest = whole - offset;
    let (length, cut) = if rest > Answer::MOST as u32 { (Answer::MOST as u32, 1) } else { (rest, 0) };
    if !may_tell(own.peer) {
        total(totals::LOST_ANSWERS, 1);
        return 0;
    }
    let Some(mut entry) = ANSWERS.reserve(0) else {
        total(totals::LOST_ANSWERS, 1);
        return 0;
    };
    let answer: *mut Answer = entry.as_mut_ptr();
    // The compiler knows that it is in these bounds; the verifier must see it, too.
    let length = (core::hint::black_box(length).wrapping_sub(1) & (Answer::MOST as u32 - 1)) + 1;
    // SAFETY: the entry is as large as an answer, and the helper writes no more than `length` into its payload.
    unsafe {
        write_volatile(addr_of_mut!((*answer).time), bpf_ktime_get_ns());
        write_volatile(addr_of_mut!((*answer).peer), own.peer.0);
        write_volatile(addr_of_mut!((*answer).length), length as u16);
        write_volatile(addr_of_mut!((*answer).cut), cut);
        if bpf_skb_load_bytes(skb.cast(), offset, addr_of_mut!((*answer).payload).cast(), length) != 0 {
            entry.discard(0);
            return 0;
        }
    }
    entry.submit(0);
    1
}
