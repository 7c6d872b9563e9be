//! What is kept of a packet's socket.
//!
//! It is large, so what makes or writes it are global functions: the verifier looks at each once, and their stacks aren't
//! their callers'.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use bulkhead_common::Reason;
use bulkhead_common::maps::{CachedVerdict, ListenerKey, Maker, SocketState, SocketVerdict, role};
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::maps::MAKERS;
use crate::record::Decision;
use crate::storage::{self, cookie};
use crate::words::fill;

/// The packet's socket, if it is a full one.
#[inline(always)]
pub fn socket(skb: *mut __sk_buff) -> *mut bpf_sock {
    // SAFETY: the verifier checks the context's field, and that a null pointer isn't used.
    unsafe {
        let sk = read_volatile(addr_of!((*skb).__bindgen_anon_2.sk));
        if sk.is_null() {
            return sk;
        }
        bpf_sk_fullsock(sk)
    }
}

#[inline(always)]
pub fn cached(kept: *mut SocketVerdict) -> CachedVerdict {
    // SAFETY: a non-null pointer to the socket's state; one aligned u64.
    CachedVerdict(unsafe { read_volatile(addr_of!((*kept).state)) })
}

/// The state of a packet's socket, made if there is none; or null.
#[inline(always)]
fn state_of(skb: *mut __sk_buff, own: u64, role: u32) -> *mut SocketState {
    let sk = socket(skb);
    if sk.is_null() {
        return core::ptr::null_mut();
    }
    let kept = storage::find(sk, cookie(skb));
    if kept.is_null() { storage::unstamped(sk, own as u32, (own >> 32) as u32, role) } else { kept }
}

/// Keeps what was decided with the packet's socket, and, until it has been let through once, under what its connection
/// is counted. Gives 1, or 0 if there was no room.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_keep_verdict(
    skb: *mut __sk_buff,
    d: *const Decision,
    epoch: u32,
    as_role: u32,
    own: u64,
) -> u32 {
    if d.is_null() {
        return 0;
    }
    let kept = state_of(skb, own, role::NONE);
    if kept.is_null() {
        return 0;
    }
    let mine = storage::claim(kept, cookie(skb));
    let old = cached(mine);
    // SAFETY: the storage is there, and the verifier has checked at each call that `d` points to a decision. Where
    // connect() wrote the peer it stays as it is.
    unsafe {
        let judgement = &(*d).judgement;
        let state = CachedVerdict::new(epoch, judgement.outcome(), as_role, old.once_allowed(), old.connected());
        write_volatile(addr_of_mut!((*mine).state), state.0);
        if !old.once_allowed() && !matches!(judgement.reason, Reason::SelfTraffic) {
            if !old.connected() {
                fill(&mut (*mine).peer, (*d).ends.peer_addr.words());
            }
            storage::attach(mine, &*d);
        }
    }
    1
}

/// A listener's first SYN is let through: what gets a copy of its state inherits that the peer opened the connection, and for
/// the others its maker is noted. Gives 1, or 0 if there was no room.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_mark_server(skb: *mut __sk_buff, own: u64, port: u32) -> u32 {
    let kept = state_of(skb, own, role::SERVER);
    if kept.is_null() {
        return 0;
    }
    // SAFETY: the state is there; aligned words.
    unsafe {
        let marked = read_volatile(addr_of!((*kept).stamp.role)) == role::SERVER;
        let pid = read_volatile(addr_of!((*kept).stamp.pid));
        write_volatile(addr_of_mut!((*kept).stamp.role), role::SERVER);
        if marked || pid == 0 {
            return 1;
        }
        let maker = Maker { pid, comm: addr_of!((*kept).stamp.comm).cast::<[u32; 4]>().read() };
        MAKERS.insert(&ListenerKey { instance: own as u32, port }, &maker, 0).is_ok() as u32
    }
}

/// Names who made the listener that the packet's socket was accepted from, where that isn't known. Gives 1, or 0 if it stays
/// unknown.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_name_maker(d: *mut Decision, instance: u32) -> u32 {
    if d.is_null() {
        return 0;
    }
    // SAFETY: the verifier has checked at each call that this points to a decision.
    let d = unsafe { &mut *d };
    let key = ListenerKey { instance, port: u32::from(d.ends.own_port) };
    let Some(maker) = MAKERS.get_ptr(&key) else { return 0 };
    // SAFETY: a map's value stays readable for this run.
    unsafe {
        d.pid = (*maker).pid;
        d.comm = (*maker).comm;
    }
    1
}
