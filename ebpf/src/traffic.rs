//! What becomes of TCP connections: established, refused, never answered; and what went over them.
//!
//! The kernel calls this program at events of a socket's life, most of them only where it was asked to. It decides
//! nothing. Which edge a connection belongs to was noted on the socket by the hook that judged it; an accepted socket
//! is only judged at its first packet, so its handshake is counted there ([`bulkhead_begun`]). All events come under
//! the socket's lock, so nothing is counted twice. What a live connection carries is counted on its way out, which is under
//! that lock too ([`bulkhead_carried`]). A connection that is older than the programs has no events: its first packet
//! counts the handshake, and its last bytes aren't told.
//!
//! It also has the first packet of a connection that was held back sent again soon: by then the peer may be known, or our
//! end to the peer.

use aya_ebpf::bindings::{
    __sk_buff, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TIMEOUT_INIT, BPF_TCP_CLOSE,
    BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_ESTABLISHED, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK,
    BPF_TCP_SYN_SENT, bpf_sock_ops, bpf_tcp_sock,
};
use aya_ebpf::helpers::generated::{
    bpf_getsockopt, bpf_setsockopt, bpf_sock_ops_cb_flags_set, bpf_tcp_sock as tcp_sock,
};
use bulkhead_common::Direction;
use bulkhead_common::maps::{CachedVerdict, Carried, SocketVerdict, Stamp, Traffic, role, totals};
use bulkhead_common::outside::OutsideKey;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::kept::socket;
use crate::maps::{OLD_SOCKETS, TRAFFIC};
use crate::outside;
use crate::record::{NOEXIST, add, exchange, total};
use crate::storage::{self, cookie};
use crate::tables::Snapshot;
use crate::words::Words;

/// A field of the context.
macro_rules! of {
    ($ctx:ident, $($field:tt)+) => {
        // SAFETY: the verifier checks each field of the context; those of a socket that isn't there are 0.
        unsafe { read_volatile(addr_of!((*$ctx).$($field)+)) }
    };
}

/// cgroup/sock_ops.
#[inline(always)]
pub fn happened(ctx: *mut bpf_sock_ops) {
    match of!(ctx, op) {
        BPF_SOCK_OPS_STATE_CB => changes(ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => call_at(ctx, of!(ctx, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG),
        BPF_SOCK_OPS_TIMEOUT_INIT => first_wait(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            call_at(ctx, of!(ctx, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG);
            accepted(ctx);
        }
        _ => {}
    }
}

/// Says at which events of this socket the program wants to be called.
#[inline(always)]
fn call_at(ctx: *mut bpf_sock_ops, flags: u32) {
    // SAFETY: the helper takes this context, and refuses flags that it doesn't know.
    unsafe { bpf_sock_ops_cb_flags_set(ctx, flags as i32) };
}

/// How long the first SYN waits for an answer, in jiffies, where the connect() was held back: 8 to 80 ms, as the kernel
/// counts. Each further wait is as long or twice as long.
const AGAIN: u32 = 8;
/// How many more SYNs there are then before the kernel gives up, so that this is no sooner than without us: from 8 ms to a
/// second it is seven times twice as long.
const MORE: i32 = 7;
/// As often a kernel that isn't asked tries (Linux: net.ipv4.tcp_syn_retries), and as often it does at most with us.
const USUAL: i32 = 6;
const MOST: i32 = 127;
/// Linux: include/uapi/linux/in.h, tcp.h.
const IPPROTO_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;

/// The kernel asks how long the first SYN waits for an answer; without a reply it is a second.
#[inline(always)]
fn first_wait(ctx: *mut bpf_sock_ops) {
    let sk = of!(ctx, __bindgen_anon_2.sk);
    if sk.is_null() || !storage::has(storage::find(sk, cookie(ctx)), Stamp::HELD_BACK) {
        return;
    }
    let mut tries = USUAL;
    let size = core::mem::size_of::<i32>() as i32;
    // SAFETY: the helpers take this context and a number of that size; where the one can't tell, the number stays.
    let patient = unsafe {
        bpf_getsockopt(ctx.cast(), IPPROTO_TCP, TCP_SYNCNT, addr_of_mut!(tries).cast(), size);
        // More than so many were given already, at an earlier connect() of this socket.
        if tries <= USUAL + MORE {
            tries = if tries > USUAL { USUAL + MORE } else { tries + MORE };
        }
        tries <= MOST && bpf_setsockopt(ctx.cast(), IPPROTO_TCP, TCP_SYNCNT, addr_of_mut!(tries).cast(), size) == 0
    };
    if patient {
        // SAFETY: the verifier checks the field.
        unsafe { write_volatile(addr_of_mut!((*ctx).__bindgen_anon_1.reply), AGAIN) };
    }
}

/// A handshake is complete, and the kernel has made a socket for it: the peer opened the connection. It has got a copy
/// of its listener's state, or gets one of its own.
#[inline(always)]
fn accepted(ctx: *mut bpf_sock_ops) {
    let sk = of!(ctx, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    let cookie = cookie(ctx);
    let copy = storage::find(sk, cookie);
    if !copy.is_null() {
        return storage::accept(copy);
    }
    let place = storage::take(cookie);
    if !place.is_null() {
        return storage::accept(place);
    }
    total(totals::WITHOUT_PLACE, 1);
    let state = storage::unstamped(sk, 0, 0, role::SERVER);
    if !state.is_null() {
        storage::accept(state);
    }
}

/// What is kept of the socket, if its connection is counted under an edge; else null.
#[inline(always)]
fn known(ctx: *mut bpf_sock_ops) -> *mut SocketVerdict {
    let sk = of!(ctx, __bindgen_anon_2.sk);
    if sk.is_null() {
        return core::ptr::null_mut();
    }
    let cookie = cookie(ctx);
    let verdict = storage::verdict(storage::find(sk, cookie), cookie);
    // SAFETY: a non-null pointer to the socket's state.
    if verdict.is_null() || unsafe { read_volatile(addr_of!((*verdict).edge.proto)) } == 0 {
        return core::ptr::null_mut();
    }
    verdict
}

/// Counts the handshake, unless that was done. A packet on its way in comes without the socket's lock, so whoever sets the
/// mark counts; if something beside it changes just then, the next event does.
#[inline(always)]
fn count_handshake(verdict: *mut SocketVerdict, more: &mut Traffic) {
    // SAFETY: a non-null pointer to the socket's state; the word with the peer's port, the mark and what follows it.
    let word = unsafe { addr_of_mut!((*verdict).peer_port) }.cast::<u64>();
    // SAFETY: as above; it is aligned to eight bytes.
    let was = unsafe { read_volatile(word) };
    if was & SocketVerdict::ESTABLISHED == 0 && exchange(word, was, was | SocketVerdict::ESTABLISHED) {
        more.established = 1;
    }
}

/// The handshake is complete.
#[inline(always)]
fn established(ctx: *mut bpf_sock_ops) {
    let verdict = known(ctx);
    if !verdict.is_null() {
        let mut space = MaybeUninit::uninit();
        let more = Traffic::zeroed(&mut space);
        count_handshake(verdict, more);
        keep(verdict, more);
    }
}

/// The socket leaves one state for another.
#[inline(always)]
fn changes(ctx: *mut bpf_sock_ops) {
    // SAFETY: this event has arguments.
    let (from, to) = unsafe {
        (
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.args[0])),
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.args[1])),
        )
    };
    if to != BPF_TCP_CLOSE && to != BPF_TCP_FIN_WAIT2 {
        return;
    }
    moves(ctx, from, to);
    if to == BPF_TCP_CLOSE {
        storage::end(cookie(ctx));
    }
}

/// What the connection came to, if this is its end.
#[inline(always)]
fn moves(ctx: *mut bpf_sock_ops, from: u32, to: u32) {
    let verdict = known(ctx);
    if verdict.is_null() {
        return;
    }
    if to == BPF_TCP_FIN_WAIT2 {
        let received = of!(ctx, bytes_received) as u32;
        // SAFETY: a non-null pointer to the socket's state; one aligned u32.
        unsafe { write_volatile(addr_of_mut!((*verdict).half_closed), received) };
        return;
    }
    let mut space = MaybeUninit::uninit();
    let more = Traffic::zeroed(&mut space);
    match from {
        // Whatever comes for a socket that is in this state and doesn't leave it for another one is a reset.
        BPF_TCP_SYN_SENT if of!(ctx, segs_in) != 0 => more.refused = 1,
        BPF_TCP_SYN_SENT => more.timed_out = 1,
        BPF_TCP_ESTABLISHED | BPF_TCP_FIN_WAIT1 | BPF_TCP_FIN_WAIT2 | BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING
        | BPF_TCP_LAST_ACK => {
            count_handshake(verdict, more);
            ended(ctx, verdict, from, more);
        }
        _ => {}
    }
    keep(verdict, more);
    storage::detach(verdict);
}

/// What went over a connection that ends.
///
/// The kernel counts each end's closing as a byte, and for whoever opened it the opening too.
#[inline(always)]
fn ended(ctx: *mut bpf_sock_ops, verdict: *mut SocketVerdict, from: u32, more: &mut Traffic) {
    // SAFETY: a non-null pointer to the socket's state.
    let half_closed = unsafe { read_volatile(addr_of!((*verdict).half_closed)) };
    let received = of!(ctx, bytes_received);
    let closed = matches!(from, BPF_TCP_FIN_WAIT2 | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK)
        && of!(ctx, snd_una) == of!(ctx, snd_nxt);
    let peer_closed = matches!(from, BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK)
        // In this state it isn't told; but the last thing that a peer sends is that it closes.
        || from == BPF_TCP_FIN_WAIT2 && received as u32 != half_closed;
    let carried = Carried {
        acked: of!(ctx, bytes_acked).saturating_sub(opened(verdict) as u64 + closed as u64),
        received: received.saturating_sub(peer_closed as u64),
        segs_out: of!(ctx, segs_out),
        segs_in: of!(ctx, segs_in),
    };
    count_carried(verdict, &carried, more);
}

/// Whether our end opened the connection.
#[inline(always)]
fn opened(verdict: *const SocketVerdict) -> bool {
    // SAFETY: a non-null pointer to the socket's state.
    unsafe { read_volatile(addr_of!((*verdict).edge.direction)) == Direction::Egress as u8 }
}

/// Adds what wasn't counted yet, and notes that it is.
#[inline(always)]
fn count_carried(verdict: *mut SocketVerdict, now: &Carried, more: &mut Traffic) {
    // SAFETY: a non-null pointer to the socket's state; written under the socket's lock.
    unsafe {
        let counted = addr_of_mut!((*verdict).counted);
        let acked = now.acked.saturating_sub(read_volatile(addr_of!((*counted).acked)));
        let received = now.received.saturating_sub(read_volatile(addr_of!((*counted).received)));
        let out = u64::from(now.segs_out.wrapping_sub(read_volatile(addr_of!((*counted).segs_out))));
        let inward = u64::from(now.segs_in.wrapping_sub(read_volatile(addr_of!((*counted).segs_in))));
        note(verdict, now);
        if opened(verdict) {
            (more.bytes_sent, more.bytes_received) = (acked, received);
            (more.packets_sent, more.packets_received) = (out, inward);
        } else {
            (more.bytes_sent, more.bytes_received) = (received, acked);
            (more.packets_sent, more.packets_received) = (inward, out);
        }
    }
}

/// Takes so much for counted.
#[inline(always)]
fn note(verdict: *mut SocketVerdict, now: &Carried) {
    // SAFETY: a non-null pointer to the socket's state; aligned words.
    unsafe {
        let counted = addr_of_mut!((*verdict).counted);
        write_volatile(addr_of_mut!((*counted).acked), now.acked);
        write_volatile(addr_of_mut!((*counted).received), now.received);
        write_volatile(addr_of_mut!((*counted).segs_out), now.segs_out);
        write_volatile(addr_of_mut!((*counted).segs_in), now.segs_in);
    }
}

/// What a connection has carried until now, while neither end has closed it.
#[inline(always)]
fn carried(tcp: *const bpf_tcp_sock, opened: bool) -> Carried {
    // SAFETY: the helper's pointer isn't null; the verifier checks each field.
    unsafe {
        Carried {
            acked: read_volatile(addr_of!((*tcp).bytes_acked)).saturating_sub(opened as u64),
            received: read_volatile(addr_of!((*tcp).bytes_received)),
            segs_out: read_volatile(addr_of!((*tcp).segs_out)),
            segs_in: read_volatile(addr_of!((*tcp).segs_in)),
        }
    }
}

/// Whether a connection wasn't looked at since the last tick.
#[inline(always)]
pub fn is_due(verdict: *const SocketVerdict) -> bool {
    // SAFETY: a non-null pointer to the socket's state.
    unsafe { read_volatile(addr_of!((*verdict).tick)) != Snapshot::tick() }
}

/// Counts what a live connection has carried since it was last looked at. Called for what it sends, since that is done
/// under the socket's lock, and each end sends at least acknowledgements. Gives 1, or 0 if there was nothing to count.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_carried(skb: *mut __sk_buff) -> u32 {
    let sk = socket(skb);
    if sk.is_null() {
        return 0;
    }
    // SAFETY: a full socket; the verifier checks the field.
    let state = unsafe { read_volatile(addr_of!((*sk).state)) };
    let cookie = cookie(skb);
    let kept = storage::find(sk, cookie);
    let verdict = storage::verdict(kept, cookie);
    if verdict.is_null() {
        return 0;
    }
    // SAFETY: non-null pointers to the socket's state. Of a socket that nobody stamped it isn't known whether the
    // programs have seen its beginning, until its handshake is counted.
    let concerned = unsafe {
        write_volatile(addr_of_mut!((*verdict).tick), Snapshot::tick());
        read_volatile(addr_of!((*verdict).edge.proto)) != 0
            && (read_volatile(addr_of!((*verdict).established)) != 0
                || read_volatile(addr_of!((*kept).stamp.cgroup)) != 0
                || storage::has(kept, Stamp::ACCEPTED))
    };
    // Once an end has closed, its byte for that is among the others, until the end of the connection tells.
    if !concerned || state != BPF_TCP_ESTABLISHED {
        return 0;
    }
    // SAFETY: the helper takes any full socket, and gives null for one that isn't TCP.
    let tcp = unsafe { tcp_sock(sk) };
    if tcp.is_null() {
        return 0;
    }
    let mut space = MaybeUninit::uninit();
    let more = Traffic::zeroed(&mut space);
    count_handshake(verdict, more);
    count_carried(verdict, &carried(tcp, opened(verdict)), more);
    keep(verdict, more);
    1
}

/// Counts the handshake of a connection that was accepted, or is older than the programs, at the first packet that passes.
/// What the latter carried until now was before their time. Gives 1, or 0 if there was nothing to count.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_begun(skb: *mut __sk_buff) -> u32 {
    let sk = socket(skb);
    if sk.is_null() {
        return 0;
    }
    let cookie = cookie(skb);
    let kept = storage::find(sk, cookie);
    let verdict = storage::verdict(kept, cookie);
    if verdict.is_null() {
        return 0;
    }
    // SAFETY: a non-null pointer to the socket's state.
    let pending = unsafe {
        read_volatile(addr_of!((*verdict).edge.proto)) != 0
            && read_volatile(addr_of!((*verdict).established)) == 0
            && CachedVerdict(read_volatile(addr_of!((*verdict).state))).passes()
    };
    if !pending {
        return 0;
    }
    if !storage::has(kept, Stamp::ACCEPTED) {
        // SAFETY: a full socket; the verifier checks the field.
        let state = unsafe { read_volatile(addr_of!((*sk).state)) };
        if state == BPF_TCP_SYN_SENT || OLD_SOCKETS.get_ptr(&cookie).is_none() {
            return 0;
        }
        // SAFETY: the helper takes any full socket, and gives null for one that isn't TCP.
        let tcp = unsafe { tcp_sock(sk) };
        if tcp.is_null() {
            return 0;
        }
        note(verdict, &carried(tcp, opened(verdict)));
    }
    let mut space = MaybeUninit::uninit();
    let more = Traffic::zeroed(&mut space);
    count_handshake(verdict, more);
    keep(verdict, more);
    1
}

/// Adds to what is counted under the socket's edge; what finds no room goes into the totals. A function of its own, but not
/// a global one: 6.1 takes no key that a caller only knows by its type.
#[inline(never)]
fn keep(verdict: *const SocketVerdict, more: &Traffic) {
    // SAFETY: a non-null pointer to the socket's state. The key may change meanwhile, if the connection has just been
    // judged again; then it is another one, but whole enough for a look-up.
    let edge = unsafe { &*addr_of!((*verdict).edge) };
    // SAFETY: the peer's address stands behind the edge.
    let outside = unsafe { addr_of!((*verdict).edge) }.cast::<OutsideKey>();
    if outside::concerns(outside) {
        outside::keep(outside, more);
    }
    let mut place = TRAFFIC.get_ptr_mut(edge);
    if place.is_none() {
        if TRAFFIC.insert(edge, more, NOEXIST).is_ok() {
            return;
        }
        // Somebody else was first, or the map is full.
        place = TRAFFIC.get_ptr_mut(edge);
    }
    let more = core::ptr::from_ref(more).cast::<u64>();
    let mut n = 0;
    while n < Traffic::PARTS {
        // SAFETY: it has so many numbers.
        let by = unsafe { read_volatile(more.add(n as usize)) };
        if by != 0 {
            match place {
                // SAFETY: as above, and a map's value stays writable for this run.
                Some(p) => add(unsafe { p.cast::<u64>().add(n as usize) }, by),
                None => total(totals::TRAFFIC + n, by),
            }
        }
        n += 1;
    }
}
