//! What is kept of a socket, and where.
//!
//! Most sockets have a place in a table, found by their cookie: it is taken when the socket is made, or when a handshake is
//! complete, and given back when the socket is over, by [`leave`] and [`end`]. Nothing is allocated for it and nothing freed,
//! which would cost more than all the rest. The others' state lives with the socket (`BPF_MAP_TYPE_SK_STORAGE`): of those in
//! the host's network namespace, where a call finds its peer by the socket, whose cookie it can't ask for; of raw ones and
//! the like, which are not to be confused with the kernel's own; of those that nobody stamped; and wherever the place is
//! another's. So a full table costs time, and nothing else.
//!
//! aya's own wrapper of such storage takes only the context of sock_addr programs and has no flag for cloning; this one takes
//! any socket pointer that the verifier accepts, so each hook can use it.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get};
use bulkhead_common::maps::{SocketState, SocketVerdict, Stamp, role};
use core::mem::MaybeUninit;
use core::ptr;

use crate::maps::{OTHER_SOCKETS, SOCKETS, TAKEN};
use crate::record::{Decision, exchange};
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

/// The cookie of the socket that the program's context is about.
#[inline(always)]
pub fn cookie<C>(ctx: *mut C) -> u64 {
    // SAFETY: the helper takes the context of each kind of program here; the verifier checks that it is one.
    unsafe { bpf_get_socket_cookie(ctx.cast()) }
}

/// The place of the socket with this cookie, whoever has it.
#[inline(always)]
fn place(cookie: u64) -> *mut SocketState {
    match SOCKETS.get_ptr_mut(SocketState::place(cookie)) {
        Some(place) => place,
        None => ptr::null_mut(),
    }
}

/// Whose that place is.
#[inline(always)]
fn taken(cookie: u64) -> *mut u64 {
    match TAKEN.get_ptr_mut(SocketState::place(cookie)) {
        Some(taken) => taken,
        None => ptr::null_mut(),
    }
}

#[inline(always)]
fn read(word: *const u64) -> u64 {
    // SAFETY: a non-null pointer to one aligned u64 of a map's value.
    unsafe { ptr::read_volatile(word) }
}

#[inline(always)]
fn write(word: *mut u64, value: u64) {
    // SAFETY: as above.
    unsafe { ptr::write_volatile(word, value) };
}

/// Whether what is kept there is about the socket with this cookie.
#[inline(always)]
fn owned(state: *const SocketState, cookie: u64) -> bool {
    // SAFETY: a non-null pointer to a socket's state.
    read(unsafe { ptr::addr_of!((*state).owner) }) == cookie
}

/// The state of this socket, or null.
#[inline(always)]
pub fn find(sk: *mut bpf_sock, cookie: u64) -> *mut SocketState {
    let place = place(cookie);
    if !place.is_null() && owned(place, cookie) { place } else { OTHER_SOCKETS.get(sk) }
}

/// Takes the socket's place: its state, empty; or null when the place is another's. Nobody looks for it before it is made: the
/// socket isn't anybody's yet.
#[inline(always)]
pub fn take(cookie: u64) -> *mut SocketState {
    let (taken, place) = (taken(cookie), place(cookie));
    if taken.is_null() || place.is_null() {
        return ptr::null_mut();
    }
    let was = read(taken);
    if was != 0 && was & SocketState::OVER == 0 || !exchange(taken, was, cookie) {
        return ptr::null_mut();
    }
    // SAFETY: a map's value; stamp and verdict are whole words of eight bytes.
    unsafe {
        zero(ptr::addr_of_mut!((*place).stamp).cast(), size_of::<Stamp>() / 8);
        zero(ptr::addr_of_mut!((*place).verdict).cast(), size_of::<SocketVerdict>() / 8);
        ptr::write_volatile(ptr::addr_of_mut!((*place).verdict.tick), Snapshot::tick());
        write(ptr::addr_of_mut!((*place).owner), cookie);
    }
    place
}

#[inline(always)]
fn zero(words: *mut u64, count: usize) {
    let mut n = 0;
    while n < count {
        // SAFETY: the caller has so many words.
        unsafe { ptr::write_volatile(words.add(n), 0) };
        n += 1;
    }
}

/// No process has the socket any more. If it isn't `over` by that, [`end`] comes when its connection is.
#[inline(always)]
pub fn leave(cookie: u64, over: bool) {
    let taken = taken(cookie);
    if !taken.is_null() && read(taken) & !SocketState::OVER == cookie {
        write(taken, cookie | if over { SocketState::OVER } else { SocketState::CLOSED });
    }
}

/// The socket's connection is over. Its process may open another one with it, if it has one; what was accepted may never
/// have had one.
#[inline(always)]
pub fn end(cookie: u64) {
    let (taken, place) = (taken(cookie), place(cookie));
    if taken.is_null() || place.is_null() {
        return;
    }
    let was = read(taken);
    if was == cookie | SocketState::CLOSED || was == cookie && has(place, Stamp::ACCEPTED) {
        write(taken, cookie | SocketState::OVER);
    }
}

/// The state with which a socket is connected. One that was accepted may be connected anew when its connection is over: then
/// the place is its process's to give back, unless it is somebody else's by now.
#[inline(always)]
pub fn again(state: *mut SocketState, cookie: u64) -> *mut SocketState {
    let taken = taken(cookie);
    if state.is_null() || taken.is_null() || read(taken) != cookie | SocketState::OVER {
        return state;
    }
    if !exchange(taken, cookie | SocketState::OVER, cookie) {
        return ptr::null_mut();
    }
    flag(state, Stamp::ACCEPTED, false);
    state
}

/// The stamp of a socket's state, or null.
#[inline(always)]
pub fn stamp(state: *mut SocketState) -> *mut Stamp {
    // It comes first.
    state.cast()
}

/// The kernel made this socket when a handshake was complete.
#[inline(always)]
pub fn accept(state: *mut SocketState) {
    // SAFETY: the state is there; an aligned word.
    unsafe { ptr::write_volatile(ptr::addr_of_mut!((*state).stamp.role), role::SERVER) };
    flag(state, Stamp::ACCEPTED, true);
}

/// Sets one of the stamp's flags, or takes it back.
#[inline(always)]
pub fn flag(state: *mut SocketState, flag: u32, set: bool) {
    if state.is_null() {
        return;
    }
    // SAFETY: a non-null pointer to the socket's state; one aligned u32.
    unsafe {
        let flags = ptr::addr_of_mut!((*state).stamp.flags);
        let was = ptr::read_volatile(flags);
        let now = if set { was | flag } else { was & !flag };
        if now != was {
            ptr::write_volatile(flags, now);
        }
    }
}

/// Whether one of the stamp's flags is set.
#[inline(always)]
pub fn has(state: *const SocketState, flag: u32) -> bool {
    // SAFETY: a non-null pointer to the socket's state; one aligned u32.
    !state.is_null() && unsafe { ptr::read_volatile(ptr::addr_of!((*state).stamp.flags)) } & flag != 0
}

/// The verdict of a socket's state, if it is this socket's own and not a copy of its listener's; else null.
#[inline(always)]
pub fn verdict(state: *mut SocketState, cookie: u64) -> *mut SocketVerdict {
    if state.is_null() {
        return ptr::null_mut();
    }
    if !owned(state, cookie) {
        return ptr::null_mut();
    }
    // SAFETY: a non-null pointer to the socket's state.
    unsafe { ptr::addr_of_mut!((*state).verdict) }
}

/// The state of a socket that nobody stamped, made by the kernel (MPTCP) or before the programs came: all that is known
/// is whose cgroup it is in.
#[inline(always)]
pub fn unstamped(sk: *mut bpf_sock, instance: u32, peer: u32, as_role: u32) -> *mut SocketState {
    let mut space = MaybeUninit::uninit();
    let made = SocketState::zeroed(&mut space);
    made.stamp.instance = instance;
    made.stamp.peer = peer;
    made.stamp.role = as_role;
    OTHER_SOCKETS.get_or_create(sk, made)
}

/// Makes the verdict this socket's own, empty, unless it is already.
#[inline(always)]
pub fn claim(state: *mut SocketState, cookie: u64) -> *mut SocketVerdict {
    // SAFETY: the storage is there. The state goes before the owner comes, so that a copied verdict is never seen as
    // one's own.
    unsafe {
        let verdict = ptr::addr_of_mut!((*state).verdict);
        if !owned(state, cookie) {
            ptr::write_volatile(ptr::addr_of_mut!((*verdict).state), 0);
            detach(verdict);
            ptr::write_volatile(ptr::addr_of_mut!((*verdict).tick), Snapshot::tick());
            write(ptr::addr_of_mut!((*state).owner), cookie);
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
