//! Memory written word by word.
//!
//! The linker keeps LLVM from expanding `memset`, so each run of zeroes that it recognises, be it three bytes of
//! padding, becomes a call of a function that writes byte by byte. In the packet hooks that was a tenth of the time.
//! What is written here is volatile, and so never becomes such a call.

use bulkhead_common::maps::{FlowKey, SocketState, Traffic};
use bulkhead_common::outside::{Outside, OutsideKey};
use bulkhead_common::{Addr, Judgement};
use core::mem::MaybeUninit;
use core::ptr::{addr_of_mut, write_volatile};

use crate::packet::Packet;
use crate::record::Decision;
use crate::who::Ends;

/// A type for which all-zero words are a value.
///
/// # Safety
/// They are, and its size and alignment are multiples of four.
pub unsafe trait Words: Sized {
    /// Makes all words zero. In place: a value that is handed on would stand on the stack twice.
    #[inline(always)]
    fn zeroed(space: &mut MaybeUninit<Self>) -> &mut Self {
        let words = space.as_mut_ptr().cast::<u32>();
        let mut n = 0;
        while n < size_of::<Self>() / 4 {
            // SAFETY: the trait promises the alignment, and `n` is within the size.
            unsafe { write_volatile(words.add(n), 0) };
            n += 1;
        }
        // SAFETY: the trait promises that zeroes are a value.
        unsafe { space.assume_init_mut() }
    }
}

// SAFETY: integers, arrays of bytes and enums that have a zero, in structs aligned to four.
unsafe impl Words for Packet {}
// SAFETY: as above.
unsafe impl Words for Ends {}
// SAFETY: as above.
unsafe impl Words for Decision {}
// SAFETY: as above.
unsafe impl Words for FlowKey {}
// SAFETY: as above.
unsafe impl Words for SocketState {}
// SAFETY: as above.
unsafe impl Words for Traffic {}
// SAFETY: as above.
unsafe impl Words for Outside {}
// SAFETY: as above.
unsafe impl Words for OutsideKey {}
// SAFETY: a union of integers, aligned to four.
unsafe impl Words for aya_ebpf::bindings::bpf_sock_tuple {}

/// [`Addr::v4`], in place.
#[inline(always)]
pub fn widen(to: &mut Addr, v4: u32) {
    fill(to, [0, 0, 0xffff_u32.to_be(), v4]);
}

/// [`Addr::from_words`], in place.
#[inline(always)]
pub fn fill(to: &mut Addr, words: [u32; 4]) {
    let p = to.0.as_mut_ptr().cast::<u32>();
    // SAFETY: an address is four words, aligned to four.
    unsafe {
        write_volatile(p, words[0]);
        write_volatile(p.add(1), words[1]);
        write_volatile(p.add(2), words[2]);
        write_volatile(p.add(3), words[3]);
    }
}

/// Whether two addresses are the same.
#[inline(always)]
pub fn same(a: &Addr, b: &Addr) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// Takes over a judgement.
#[inline(always)]
pub fn settle(to: &mut Judgement, j: Judgement) {
    // SAFETY: the fields of a valid value.
    unsafe {
        write_volatile(addr_of_mut!(to.sides), j.sides);
        write_volatile(addr_of_mut!(to.reason), j.reason);
        write_volatile(addr_of_mut!(to.egress_rule), j.egress_rule);
        write_volatile(addr_of_mut!(to.ingress_rule), j.ingress_rule);
    }
}
