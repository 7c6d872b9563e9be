//! The hooks that see a system call: making a socket, connecting it, sending on one that isn't connected.
//!
//! Here a refusal is an immediate error for the application, and the caller is known. Both sides' rules are judged as
//! far as the peer can be told; what can't be told here is left to the packet hooks ([`crate::packets`]).

use aya_ebpf::bindings::{BPF_TCP_CLOSE, BPF_TCP_LISTEN, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_set_retval,
};
use bulkhead_common::maps::{CachedVerdict, SocketState, Stamp, role, totals};
use bulkhead_common::slots::{Baseline, Binding, Sides};
use bulkhead_common::{Class, Direction, Flow, Hook, Judgement, Outcome, PeerId, Reason, Tables, proto};
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::flow;
use crate::log::{self, Note};
use crate::maps::OTHER_SOCKETS;
use crate::record::{Decision, record, tells, total};
use crate::storage::{self, cookie};
use crate::tables::{Snapshot, judge};
use crate::who::{Ends, Met, Situation, caller, meet_call};
use crate::words::{Words, fill, settle, widen};

/// Linux: include/linux/net.h, include/uapi/linux/in.h, include/uapi/asm-generic/errno.h.
const SOCK_RAW: u32 = 3;
const IPPROTO_MPTCP: u32 = 262;
const EPROTONOSUPPORT: i32 = 93;

#[inline(always)]
fn pid() -> u32 {
    // SAFETY: the helper has no precondition.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// The cgroup of the calling process.
#[inline(always)]
fn current_cgroup() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Writes the caller's command name. On failure the helper zeroes it.
#[inline(always)]
fn comm(name: *mut [u32; 4]) {
    // SAFETY: the buffer is as long as said.
    unsafe { bpf_get_current_comm(name.cast(), 16) };
}

/// Says who makes a socket.
#[inline(always)]
fn stamp(stamp: &mut Stamp, s: Snapshot, own: &Binding, cgroup: u64, flags: u32) {
    stamp.cgroup = cgroup;
    stamp.epoch = s.epoch;
    stamp.instance = own.instance;
    stamp.peer = own.peer.0;
    stamp.pid = pid();
    stamp.flags = flags | u32::from(own.flags) << Stamp::BINDING;
    comm(stamp.comm.as_mut_ptr().cast());
}

/// cgroup/sock_create: stamps the socket with its maker, and refuses kinds that no rule can judge.
#[inline(always)]
pub fn create(sk: *mut bpf_sock) -> bool {
    let s = Snapshot::take();
    let cgroup = current_cgroup();
    let own = caller(s, core::ptr::null(), cgroup);
    // SAFETY: the verifier checks each field of the context; the cookie helper takes this context.
    let (kind, protocol, netns) = unsafe {
        (read_volatile(addr_of!((*sk).type_)), read_volatile(addr_of!((*sk).protocol)), bpf_get_netns_cookie(sk.cast()))
    };
    if own.peer.0 == PeerId::UNKNOWN_WORKLOAD.0 {
        log::note(Note::UnknownMaker, pid());
    }
    let in_host = netns == s.host_netns();
    let judged = protocol == u32::from(proto::TCP) || protocol == u32::from(proto::UDP);
    if !in_host && kind != SOCK_RAW && judged {
        let place = storage::take(cookie(sk));
        if !place.is_null() {
            // SAFETY: the state is there.
            stamp(unsafe { &mut (*place).stamp }, s, &own, cgroup, 0);
            return true;
        }
        total(totals::WITHOUT_PLACE, 1);
    }
    let mut space = MaybeUninit::uninit();
    let state = SocketState::zeroed(&mut space);
    stamp(&mut state.stamp, s, &own, cgroup, if in_host { Stamp::HOST_NETNS } else { 0 });
    let stamped = !OTHER_SOCKETS.get_or_create(sk, state).is_null();

    // Which leave this kind of socket needs, if any.
    let (reason, leave) = if kind == SOCK_RAW {
        (Reason::RawSocket, Baseline::RAW)
    } else if protocol == u32::from(proto::SCTP) {
        (Reason::SctpSocket, Baseline::SCTP)
    } else if protocol == IPPROTO_MPTCP {
        (Reason::MptcpSocket, Baseline::MPTCP)
    } else if !stamped {
        (Reason::NoRoom, 0)
    } else if protocol == u32::from(proto::TCP)
        || protocol == u32::from(proto::UDP)
        || protocol == u32::from(proto::UDPLITE)
        || protocol == u32::from(proto::ICMP)
        || protocol == u32::from(proto::ICMPV6)
    {
        return true;
    } else {
        (Reason::Protocol, 0)
    };
    let mut j = Judgement::unruled(&s, own.peer, Direction::Egress, reason);
    if let Some(b) = Baseline::decode(s.baseline(own.peer)) {
        if b.sockets_now & leave != 0 {
            j.sides = Sides(j.sides.0 | Sides::EGRESS_NOW);
        }
        if b.sockets_audited & leave != 0 {
            j.sides = Sides(j.sides.0 | Sides::EGRESS_AUDITED);
        }
    }
    if j.sides.0 == Sides::ALL.0 {
        return true;
    }
    let mut space = MaybeUninit::uninit();
    let d = undecided(&mut space, Hook::SockCreate);
    d.flow.src = own.peer;
    d.ends.proto = protocol & 0xff;
    d.flow.proto = protocol as u8;
    settle(&mut d.judgement, j);
    let passes = d.judgement.outcome().passes();
    tell(s, d);
    if passes {
        return true;
    }
    if protocol == IPPROTO_MPTCP {
        // A client that gets this falls back to TCP.
        // SAFETY: the helper takes any negative errno.
        unsafe { bpf_set_retval(-EPROTONOSUPPORT) };
    }
    false
}

/// cgroup/sock_release: its process has closed the socket.
#[inline(always)]
pub fn release(sk: *mut bpf_sock) {
    // SAFETY: the verifier checks each field of the context.
    let (protocol, state) = unsafe { (read_volatile(addr_of!((*sk).protocol)), read_volatile(addr_of!((*sk).state))) };
    let connected = protocol == u32::from(proto::TCP) && state != BPF_TCP_CLOSE && state != BPF_TCP_LISTEN;
    storage::leave(cookie(sk), !connected);
}

/// The socket of a sock_addr context.
#[inline(always)]
fn socket(ctx: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: the verifier checks each field of the context.
    unsafe { read_volatile(addr_of!((*ctx).__bindgen_anon_1.sk)) }
}

/// Finds the ends of the connection that a sock_addr context is about. The own address isn't chosen yet.
#[inline(always)]
fn look<const V6: bool>(ctx: *mut bpf_sock_addr, sk: *mut bpf_sock, d: &mut Decision) {
    // SAFETY: the verifier checks each field of the context and of the socket, which isn't null.
    unsafe {
        let protocol = read_volatile(addr_of!((*ctx).protocol));
        let e = &mut d.ends;
        if V6 {
            let words = [
                read_volatile(addr_of!((*ctx).user_ip6[0])),
                read_volatile(addr_of!((*ctx).user_ip6[1])),
                read_volatile(addr_of!((*ctx).user_ip6[2])),
                read_volatile(addr_of!((*ctx).user_ip6[3])),
            ];
            fill(&mut e.peer_addr, words);
        } else {
            widen(&mut e.peer_addr, read_volatile(addr_of!((*ctx).user_ip4)));
        }
        // In host byte order.
        e.own_port = read_volatile(addr_of!((*sk).src_port)) as u16;
        e.peer_port = u16::from_be(read_volatile(addr_of!((*ctx).user_port)) as u16);
        // On the wire an MPTCP connection is TCP.
        e.proto = u32::from(if protocol == IPPROTO_MPTCP { proto::TCP } else { proto::judged(protocol as u8) });
    }
    d.flow.proto = d.ends.proto();
    d.flow.port = d.ends.peer_port;
}

/// Whether the socket was made by another workload than the caller's, which is in this cgroup.
#[inline(always)]
fn foreign(own: &Binding, stamp: *const Stamp, cgroup: u64) -> bool {
    if stamp.is_null() {
        return false;
    }
    // SAFETY: a non-null stamp points to the socket's state.
    unsafe {
        // Without a cgroup it was made from what the packets told, and nobody knows the maker.
        (*stamp).cgroup != 0 && (*stamp).cgroup != cgroup && (own.instance == 0 || (*stamp).instance != own.instance)
    }
}

/// A decision about a call that is yet to be taken: somebody opens a flow to somebody.
#[inline(always)]
fn undecided(space: &mut MaybeUninit<Decision>, hook: Hook) -> &mut Decision {
    let d = Decision::zeroed(space);
    d.flow.dst = PeerId::ANY_WORKLOAD;
    d.judgement.reason = Reason::Incomplete;
    d.hook = hook;
    d
}

/// The peer of a call.
#[inline(always)]
fn meet(s: Snapshot, ctx: *mut bpf_sock_addr, own: &Binding, kept: *const SocketState, ends: &Ends) -> Met {
    let host_netns = storage::has(kept, Stamp::HOST_NETNS);
    meet_call(ctx, s, ends, Situation::new(own, ends.peer_port, host_netns, false))
}

/// Whether a datagram socket's port may be one on which the workload serves somebody. The kernel chose it for this socket
/// alone if it was connected without one, and has been connected ever since: whoever disconnects it gives the port back, and
/// a connected socket gets nothing but what its peer sends.
#[inline(always)]
fn may_serve(sk: *mut bpf_sock, kept: *mut SocketState, own_port: u16) -> bool {
    // SAFETY: the socket isn't null; the verifier checks the field.
    let connected = unsafe { read_volatile(addr_of!((*sk).dst_port)) } != 0;
    let alone = own_port == 0 || connected && storage::has(kept, Stamp::AUTOBOUND);
    storage::flag(kept, Stamp::AUTOBOUND, alone);
    !alone
}

/// Whether a refusal is left to the packet hooks: an unknown peer's owner may become known any moment, and what is
/// dropped there is sent again. An error here would be final.
#[inline(always)]
fn held_back(peer: &Binding, d: &Decision) -> bool {
    let held = peer.peer.0 == Class::Unknown as u32 && !d.judgement.outcome().passes();
    if held {
        log::note(Note::HeldBack, u32::from(d.ends.peer_port));
    }
    held
}

/// The call goes on, and the packet hooks judge.
#[inline(always)]
fn later(d: &Decision) -> bool {
    log::note(Note::Later, u32::from(d.ends.peer_port));
    true
}

/// Whether a workload that hasn't been there for long connects to another: until all nodes know its address, they drop it.
#[inline(always)]
fn may_be_unknown(own: &Binding, peer: &Binding) -> bool {
    own.flags & Binding::YOUNG != 0 && peer.peer.is_identity()
}

/// Whether it may be that the node asked, or somebody whom it masqueraded: which of the two, the packet hooks find out.
#[inline(always)]
fn may_be_masqueraded(own: &Binding, peer: &Binding, as_role: u32) -> bool {
    as_role == role::SERVER && own.flags & Binding::KNOWS_NODE != 0 && peer.peer.0 == Class::Host as u32
}

/// Turns the decision round: the flow is one that the peer opened.
#[inline(always)]
fn reverse(d: &mut Decision, own: &Binding, peer: &Binding) {
    d.direction = Direction::Ingress;
    d.flow = Flow { src: peer.peer, dst: own.peer, proto: d.ends.proto(), port: d.ends.own_port };
}

/// Turns the decision back: the flow is one that the caller opens.
#[inline(always)]
fn open(d: &mut Decision, own: &Binding, peer: &Binding) {
    d.direction = Direction::Egress;
    d.flow.src = own.peer;
    d.flow.dst = peer.peer;
    d.flow.port = d.ends.peer_port;
}

/// Judges the flow that a call is about. For a server's it is its client's flow; but a datagram that isn't a reply which
/// the rules allow may still open a flow of its own, which is then told.
#[inline(always)]
fn judge_either(s: Snapshot, d: &mut Decision, own: &Binding, peer: &Binding, as_role: &mut u32) -> bool {
    if *as_role != role::SERVER {
        judge(s, &d.flow, &mut d.judgement);
        return false;
    }
    reverse(d, own, peer);
    judge(s, &d.flow, &mut d.judgement);
    let reply = d.judgement;
    if reply.outcome() == Outcome::Allowed {
        return false;
    }
    open(d, own, peer);
    judge(s, &d.flow, &mut d.judgement);
    if (d.judgement.outcome() as u8) < reply.outcome() as u8 {
        *as_role = role::CLIENT;
        return true;
    }
    reverse(d, own, peer);
    settle(&mut d.judgement, reply);
    false
}

/// cgroup/connect4 and connect6.
#[inline(always)]
pub fn connect<const V6: bool>(ctx: *mut bpf_sock_addr) -> bool {
    let s = Snapshot::take();
    let sk = socket(ctx);
    if sk.is_null() {
        return false;
    }
    let mut space = MaybeUninit::uninit();
    let d = undecided(&mut space, Hook::Connect);
    look::<V6>(ctx, sk, d);
    s.foresee(&d.ends.peer_addr);
    let cookie = cookie(ctx);
    let mut kept = storage::again(storage::find(sk, cookie), cookie);
    let (stamp, cgroup) = (storage::stamp(kept), current_cgroup());
    let own = &caller(s, stamp, cgroup);
    d.flow.src = own.peer;
    let mut as_role = role::CLIENT;
    // Whether this opens a flow that hasn't been counted.
    let mut fresh = true;

    if foreign(own, stamp, cgroup) {
        settle(&mut d.judgement, Judgement::unruled(&s, own.peer, Direction::Egress, Reason::ForeignSocket));
    } else {
        match meet(s, ctx, own, kept, &d.ends) {
            // Nothing is kept for oneself either: NAT may yet send it elsewhere, and the packet hooks see where it goes.
            Met::Oneself => return true,
            Met::Later => return later(d),
            Met::Peer(peer) => {
                d.flow.dst = peer.peer;
                // A server that connects its socket back to a client goes on with the client's flow.
                if d.ends.proto() != proto::TCP && may_serve(sk, kept, d.ends.own_port) {
                    let recorded = flow::find(own, &d.ends);
                    fresh = recorded.epoch() == 0;
                    if recorded.role() == role::SERVER {
                        as_role = role::SERVER;
                    }
                }
                if may_be_masqueraded(own, &peer, as_role) {
                    return later(d);
                }
                if judge_either(s, d, own, &peer, &mut as_role) {
                    fresh = true;
                }
                let held = held_back(&peer, d);
                storage::flag(kept, Stamp::HELD_BACK, held || may_be_unknown(own, &peer));
                if held {
                    return true;
                }
            }
        }
    }
    let outcome = d.judgement.outcome();
    if fresh || !outcome.passes() {
        tell(s, d);
    }
    if !outcome.passes() {
        // Nothing is kept: a socket that was connected elsewhere before stays what it was.
        return false;
    }
    let state = CachedVerdict::new(s.epoch, outcome, as_role, true, true).0;
    if kept.is_null() {
        kept = storage::unstamped(sk, own.instance, own.peer.0, role::NONE);
    }
    if !kept.is_null() {
        // SAFETY: the state is there. The peer first: a reader that sees the new state sees the new peer.
        unsafe {
            let kept = storage::claim(kept, cookie);
            if d.ends.proto() == proto::TCP {
                storage::attach(kept, d);
            }
            fill(&mut (*kept).peer, d.ends.peer_addr.words());
            write_volatile(addr_of_mut!((*kept).peer_port), d.ends.peer_port);
            write_volatile(addr_of_mut!((*kept).state), state);
        }
    }
    // Without room for the verdict the packet hooks judge each packet.
    true
}

/// Records a decision on behalf of the calling process.
#[inline(always)]
fn tell(s: Snapshot, d: &mut Decision) {
    if tells(s, d.judgement.outcome()) {
        d.pid = pid();
        comm(&mut d.comm);
    }
    record(s, d);
}

/// cgroup/sendmsg4 and sendmsg6: datagrams with an address of their own.
#[inline(always)]
pub fn sendmsg<const V6: bool>(ctx: *mut bpf_sock_addr) -> bool {
    let s = Snapshot::take();
    let sk = socket(ctx);
    if sk.is_null() {
        return false;
    }
    let mut space = MaybeUninit::uninit();
    let d = undecided(&mut space, Hook::Sendmsg);
    look::<V6>(ctx, sk, d);
    let cookie = cookie(ctx);
    let state = storage::find(sk, cookie);
    let (stamp, cgroup) = (storage::stamp(state), current_cgroup());
    let own = &caller(s, stamp, cgroup);
    d.flow.src = own.peer;
    if foreign(own, stamp, cgroup) {
        settle(&mut d.judgement, Judgement::unruled(&s, own.peer, Direction::Egress, Reason::ForeignSocket));
        tell(s, d);
        return d.judgement.outcome().passes();
    }
    let recorded = flow::find(own, &d.ends);
    if recorded.epoch() == s.epoch && recorded.passes() {
        return recorded.epoch() != 0;
    }
    let mut fresh = recorded.epoch() == 0;
    let mut as_role =
        if recorded.epoch() != 0 { recorded.role() } else { flow::role_unrecorded(state, cookie, role::CLIENT) };
    let peer = match meet(s, ctx, own, state, &d.ends) {
        Met::Oneself => return true,
        Met::Later => return later(d),
        Met::Peer(peer) => peer,
    };
    d.flow.dst = peer.peer;
    if may_be_masqueraded(own, &peer, as_role) {
        return later(d);
    }
    if judge_either(s, d, own, &peer, &mut as_role) {
        fresh = true;
    }
    if held_back(&peer, d) {
        return true;
    }
    let outcome = d.judgement.outcome();
    if fresh || !outcome.passes() {
        tell(s, d);
    }
    if outcome.passes() {
        flow::keep(own, &d.ends, &peer, s.epoch, outcome, as_role);
    }
    outcome.passes()
}
