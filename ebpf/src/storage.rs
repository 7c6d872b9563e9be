//! Values that live with a socket (`BPF_MAP_TYPE_SK_STORAGE`).
//!
//! aya's own wrapper takes only the context of sock_addr programs and has no flag for cloning; this one takes any
//! socket pointer that the verifier accepts, so each hook can use it.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use bulkhead_common::maps::{SocketState, SocketVerdict, Stamp};
use core::mem::MaybeUninit;
use core::ptr;

use crate::maps::SOCKETS;
use crate::record::Decision;
use crate::tables::Snapshot;
use crate::words::Words;

/// Kernel: include/uapi/linux/bpf.h, BPF_MAP_TYPE_SK_STORAGE.
const TYPE: usize = 24;

/// A map definition in BTF form; the loader reads the types of its fields.
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; TYPE],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders for the loader and never dereferenced.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value of this socket, or null.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> *mut T {
        // SAFETY: the verifier checks map and socket; a null value with no flag only looks up.
        unsafe { bpf_sk_storage_get(ptr::from_ref(self).cast_mut().cast(), sk.cast(), ptr::null_mut(), 0).cast() }
    }

    /// The value of this socket, made from `initial` if there is none; null when there is no room for one.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut bpf_sock, initial: &mut T) -> *mut T {
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: the verifier checks map and socket, and that `initial` is as large as the map's value.
        unsafe {
            bpf_sk_storage_get(ptr::from_ref(self).cast_mut().cast(), sk.cast(), ptr::from_mut(initial).cast(), flags)
                .cast()
        }
    }
}

/// The stamp of a socket's state, or null.
#[inline(always)]
pub fn stamp(state: *mut SocketState) -> *mut Stamp {
    // It comes first.
    state.cast()
}

/// Notes whether the socket's present connect() is held back.
#[inline(always)]
pub fn note_held(state: *mut SocketState, held: bool) {
    if state.is_null() {
        return;
    }
    // SAFETY: a non-null pointer to the socket's storage; one aligned u32.
    unsafe {
        let flags = ptr::addr_of_mut!((*state).stamp.flags);
        let was = ptr::read_volatile(flags);
        let now = if held { was | Stamp::HELD_BACK } else { was & !Stamp::HELD_BACK };
        if now != was {
            ptr::write_volatile(flags, now);
        }
    }
}

/// Whether the socket's present connect() is held back.
#[inline(always)]
pub fn is_held(state: *mut SocketState) -> bool {
    // SAFETY: a non-null pointer to the socket's storage; one aligned u32.
    !state.is_null() && unsafe { ptr::read_volatile(ptr::addr_of!((*state).stamp.flags)) } & Stamp::HELD_BACK != 0
}

/// The verdict of a socket's state, if it is this socket's own and not a copy of its listener's; else null.
#[inline(always)]
pub fn verdict(state: *mut SocketState, cookie: u64) -> *mut SocketVerdict {
    if state.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: a non-null pointer to the socket's storage; one aligned u64.
    unsafe {
        if ptr::read_volatile(ptr::addr_of!((*state).owner)) != cookie {
            return ptr::null_mut();
        }
        ptr::addr_of_mut!((*state).verdict)
    }
}

/// The state of a socket that nobody stamped, made by the kernel (MPTCP) or before the programs came: all that is known
/// is whose cgroup it is in.
#[inline(always)]
pub fn unstamped(sk: *mut bpf_sock, instance: u32, peer: u32, role: u32) -> *mut SocketState {
    let mut space = MaybeUninit::uninit();
    let made = SocketState::zeroed(&mut space);
    made.stamp.instance = instance;
    made.stamp.peer = peer;
    made.stamp.role = role;
    SOCKETS.get_or_create(sk, made)
}

/// Makes the verdict this socket's own, empty, unless it is already.
#[inline(always)]
pub fn claim(state: *mut SocketState, cookie: u64) -> *mut SocketVerdict {
    // SAFETY: the storage is there. The state goes before the owner comes, so that a copied verdict is never seen as
    // one's own.
    unsafe {
        let verdict = ptr::addr_of_mut!((*state).verdict);
        if ptr::read_volatile(ptr::addr_of!((*state).owner)) != cookie {
            ptr::write_volatile(ptr::addr_of_mut!((*verdict).state), 0);
            detach(verdict);
            ptr::write_volatile(ptr::addr_of_mut!((*verdict).tick), Snapshot::tick());
            ptr::write_volatile(ptr::addr_of_mut!((*state).owner), cookie);
        }
        verdict
    }
}

/// Notes under what the connection that the verdict is about is counted.
#[inline(always)]
pub fn attach(verdict: *mut SocketVerdict, d: &Decision) {
    let [low, high] = d.flow.port.to_ne_bytes();
    let (outcome, reason) = (d.judgement.outcome() as u8, d.judgement.reason as u8);
    // SAFETY: the storage is there; an edge's key is four words, aligned to four. The protocol comes last: with it the
    // key counts.
    unsafe {
        let words = ptr::addr_of_mut!((*verdict).edge).cast::<u32>();
        ptr::write_volatile(words, d.flow.src.0);
        ptr::write_volatile(words.add(1), d.flow.dst.0);
        ptr::write_volatile(words.add(3), u32::from_ne_bytes([outcome, reason, 0, 0]));
        ptr::write_volatile(words.add(2), u32::from_ne_bytes([low, high, d.flow.proto, d.direction as u8]));
    }
}

/// The next connection of the socket is another one.
#[inline(always)]
pub fn detach(verdict: *mut SocketVerdict) {
    // SAFETY: the storage is there; aligned words.
    unsafe {
        ptr::write_volatile(ptr::addr_of_mut!((*verdict).edge).cast::<u32>().add(2), 0);
        ptr::write_volatile(ptr::addr_of_mut!((*verdict).established), 0);
        let counted = ptr::addr_of_mut!((*verdict).counted).cast::<u64>();
        ptr::write_volatile(counted, 0);
        ptr::write_volatile(counted.add(1), 0);
        ptr::write_volatile(counted.add(2), 0);
    }
}
