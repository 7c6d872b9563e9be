//! The hooks that see packets: the wall behind the calls.
//!
//! A connected socket carries its verdict, which holds for one epoch; that is the fast path, one compare a packet.
//! Everything else is judged by the packet's addresses: listeners, unconnected datagram sockets, sockets older than the
//! programs, raw sockets, MPTCP subflows, and any socket whose verdict is of an older epoch. Nothing is ever kept on a
//! listener, because accepted sockets would inherit it.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use bulkhead_common::event::Answer;
use bulkhead_common::maps::{CachedVerdict, SocketState, SocketVerdict, Stamp, role};
use bulkhead_common::slots::Binding;
use bulkhead_common::{Addr, Direction, Hook, Judgement, Outcome, PeerId, Reason, proto};
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use crate::answers::bulkhead_answer;
use crate::control::{Control, control};
use crate::flow;
use crate::kept::{bulkhead_keep_verdict, bulkhead_mark_server, bulkhead_name_maker, cached, socket};
use crate::log::{self, Note};
use crate::maps::OLD_SOCKETS;
use crate::packet::{Packet, is_plainly_to, parse};
use crate::record::{Decision, record, tells};
use crate::storage::{self, cookie};
use crate::tables::{Snapshot, judge};
use crate::traffic::{self, bulkhead_begun, bulkhead_carried};
use crate::who::{Ends, Met, Situation, holder, meet_packet};
use crate::words::{Words, fill, same, settle};

/// Linux: include/net/tcp_states.h, include/linux/net.h, include/uapi/linux/in.h.
const TCP_LISTEN: u32 = 10;
const SOCK_RAW: u32 = 3;
const IPPROTO_MPTCP: u32 = 262;
/// What the functions for packets give.
const PASS: u32 = 1;
const ANSWER: u32 = 2;
/// The loopback device has this index in every network namespace (Linux: LOOPBACK_IFINDEX).
const LOOPBACK_IFINDEX: u32 = 1;

/// One packet, the socket that it comes from or goes to, and the workload that this socket belongs to.
struct View {
    skb: *mut __sk_buff,
    sk: *mut bpf_sock,
    kept: *mut SocketState,
    own: Binding,
    via_loopback: bool,
    /// Whether it is on its way out.
    out: bool,
}

impl View {
    /// Whether the socket is known to live in the host's network namespace.
    #[inline(always)]
    fn host_netns(&self) -> bool {
        storage::has(self.kept, Stamp::HOST_NETNS)
    }

    /// The peer at the other end.
    #[inline(always)]
    fn meet(&self, s: Snapshot, ends: &Ends, as_role: u32) -> Met {
        let lookup_port = if as_role == role::SERVER { 0 } else { ends.peer_port };
        let at = Situation::new(&self.own, lookup_port, self.host_netns(), self.via_loopback);
        meet_packet(self.skb, s, ends, at.asking_node(as_role, self.own.flags, self.out))
    }
}

/// Whether a datagram of a connected socket goes where it is connected to.
#[inline(always)]
fn goes_on(skb: *mut __sk_buff, verdict: *const SocketVerdict, v: CachedVerdict) -> bool {
    // SAFETY: a non-null pointer to the socket's state.
    v.role() != role::NONE && unsafe { is_plainly_to(skb, addr_of!((*verdict).peer), (*verdict).peer_port) }
}

/// cgroup_skb/egress (`OUT`) and cgroup_skb/ingress.
#[inline(always)]
pub fn packet<const OUT: bool>(skb: *mut __sk_buff) -> bool {
    let s = Snapshot::take();
    let sk = socket(skb);
    if sk.is_null() {
        log::note(Note::NoSocket, 0);
        return false;
    }
    // First, so that little has to stay on the stack meanwhile.
    let cookie = cookie(skb);
    let kept = storage::find(sk, cookie);
    let verdict = storage::verdict(kept, cookie);
    // SAFETY: a full socket; the verifier checks each field.
    let (protocol, kind, state, remote) = unsafe {
        (
            read_volatile(addr_of!((*sk).protocol)),
            read_volatile(addr_of!((*sk).type_)),
            read_volatile(addr_of!((*sk).state)),
            read_volatile(addr_of!((*sk).dst_port)),
        )
    };
    let tcp = kind != SOCK_RAW && (protocol == u32::from(proto::TCP) || protocol == IPPROTO_MPTCP);
    // A connected datagram socket may still send elsewhere (sendto), so on the way out its packets' addresses are looked at;
    // on the way in the kernel gives it only what its peer sent.
    let connected = if tcp { state != TCP_LISTEN } else { kind != SOCK_RAW && remote != 0 };
    if tcp && OUT && !connected {
        // A listener's own packets are the answers to SYNs that were judged on their way in. They carry nothing.
        return true;
    }
    if connected && !verdict.is_null() {
        let v = cached(verdict);
        if v.epoch() == s.epoch && v.passes() && (tcp || !OUT || goes_on(skb, verdict, v)) {
            if tcp && OUT && traffic::is_due(verdict) {
                bulkhead_carried(skb);
            }
            if !OUT && remote == Answer::PORT.to_be() && protocol == u32::from(proto::UDP) && v.role() == role::CLIENT {
                bulkhead_answer(skb, s.epoch);
            }
            return true;
        }
    }
    let pass = match (tcp, OUT) {
        (true, true) => bulkhead_tcp_egress(skb, s.epoch, kept),
        (true, false) => bulkhead_tcp_ingress(skb, s.epoch, kept),
        (false, true) => bulkhead_datagram_egress(skb, s.epoch, kept),
        (false, false) => bulkhead_datagram_ingress(skb, s.epoch, kept),
    };
    // The compiler sees that these give so many bits and would return the value as it is; the verifier doesn't.
    let pass = core::hint::black_box(pass);
    if !OUT && pass == PASS | ANSWER {
        bulkhead_answer(skb, s.epoch);
    }
    pass & PASS == PASS
}

// Everything beyond the fast path is in global functions: the verifier looks at each once, wherever the socket's state lives,
// and their stacks aren't the program's. They take that state, or null, and give [`PASS`] to let the packet pass, and
// [`ANSWER`] if it is what a DNS server answers to the workload.

/// TCP, on the way out.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_tcp_egress(skb: *mut __sk_buff, epoch: u32, kept: *mut SocketState) -> u32 {
    tcp_packet::<true>(skb, Snapshot { epoch }, kept) as u32
}

/// TCP, on the way in.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_tcp_ingress(skb: *mut __sk_buff, epoch: u32, kept: *mut SocketState) -> u32 {
    tcp_packet::<false>(skb, Snapshot { epoch }, kept) as u32
}

/// Everything else, on the way out.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_datagram_egress(skb: *mut __sk_buff, epoch: u32, kept: *mut SocketState) -> u32 {
    datagram::<true>(skb, Snapshot { epoch }, kept)
}

/// Everything else, on the way in.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_datagram_ingress(skb: *mut __sk_buff, epoch: u32, kept: *mut SocketState) -> u32 {
    datagram::<false>(skb, Snapshot { epoch }, kept)
}

#[inline(always)]
fn view<const OUT: bool>(skb: *mut __sk_buff, sk: *mut bpf_sock, kept: *mut SocketState, s: Snapshot) -> View {
    // SAFETY: the verifier checks the context's fields.
    let device = unsafe {
        if OUT { read_volatile(addr_of!((*skb).ifindex)) } else { read_volatile(addr_of!((*skb).ingress_ifindex)) }
    };
    View {
        skb,
        sk,
        kept,
        own: holder(s, skb, storage::stamp(kept)),
        via_loopback: device == LOOPBACK_IFINDEX,
        out: OUT,
    }
}

const fn direction(out: bool) -> Direction {
    if out { Direction::Egress } else { Direction::Ingress }
}

/// What no rule can judge: the own baseline decides.
#[inline(always)]
fn refuse<const OUT: bool>(s: Snapshot, v: &View, d: &mut Decision, reason: Reason) -> bool {
    let as_role = if OUT { role::CLIENT } else { role::SERVER };
    aim(d, v, &Binding::of(PeerId::ANY_WORKLOAD), as_role);
    settle(&mut d.judgement, Judgement::unruled(&s, v.own.peer, direction(OUT), reason));
    record(s, d);
    d.judgement.outcome().passes()
}

/// A decision that is yet to be taken, about nobody yet.
#[inline(always)]
fn undecided<'s, const OUT: bool>(space: &'s mut MaybeUninit<Decision>, v: &View, p: &Packet) -> &'s mut Decision {
    let d = Decision::zeroed(space);
    let e = &mut d.ends;
    let (own_addr, peer_addr) = if OUT { (&p.saddr, &p.daddr) } else { (&p.daddr, &p.saddr) };
    fill(&mut e.own_addr, own_addr.words());
    fill(&mut e.peer_addr, peer_addr.words());
    (e.own_port, e.peer_port) = if OUT { (p.sport, p.dport) } else { (p.dport, p.sport) };
    e.proto = u32::from(proto::judged(p.proto));
    d.flow.proto = e.proto();
    d.judgement.reason = Reason::Incomplete;
    d.direction = direction(OUT);
    d.hook = if OUT { Hook::Egress } else { Hook::Ingress };
    d.made_by(storage::stamp(v.kept));
    d
}

/// Makes it a decision about the flow from whoever opened it, for the role that our end has.
#[inline(always)]
fn aim(d: &mut Decision, v: &View, peer: &Binding, as_role: u32) {
    let server = as_role == role::SERVER;
    let port = if server { d.ends.own_port } else { d.ends.peer_port };
    d.flow.port = if d.ends.proto() == proto::ICMP { 0 } else { port };
    (d.flow.src, d.flow.dst) = if server { (peer.peer, v.own.peer) } else { (v.own.peer, peer.peer) };
    d.direction = direction(!server);
}

/// What the TCP path needs of a packet besides its ends.
struct Segment {
    opens: bool,
    resets: bool,
}

#[inline(always)]
fn tcp_packet<const OUT: bool>(skb: *mut __sk_buff, s: Snapshot, state: *mut SocketState) -> bool {
    let sk = socket(skb);
    if sk.is_null() {
        return false;
    }
    // SAFETY: a full socket; the verifier checks the field.
    let connected = unsafe { read_volatile(addr_of!((*sk).state)) } != TCP_LISTEN;
    let mut space = MaybeUninit::uninit();
    let (v, d, whole, segment) = {
        let mut headers = MaybeUninit::uninit();
        let p = Packet::zeroed(&mut headers);
        let whole = parse(skb, p);
        if !OUT && !connected && whole && p.acknowledges() {
            // The end of a handshake whose SYN was judged. The new socket's first packet, either way, is judged again.
            return true;
        }
        let v = view::<OUT>(skb, sk, state, s);
        let d = undecided::<OUT>(&mut space, &v, p);
        (v, d, whole, Segment { opens: p.opens(), resets: p.resets() })
    };
    let v = &v;
    if !whole {
        return refuse::<OUT>(s, v, d, Reason::Malformed);
    }
    let kept = if connected { storage::verdict(v.kept, cookie(skb)) } else { core::ptr::null_mut() };
    let old = if kept.is_null() { CachedVerdict(0) } else { cached(kept) };
    let excused = segment.resets && old.once_allowed();
    if old.epoch() == s.epoch && old.epoch() != 0 {
        // Only a denial gets here; it was counted when it was decided.
        return old.passes() || excused;
    }
    let inherited = if v.kept.is_null() {
        role::NONE
    } else {
        // SAFETY: a non-null stamp points to the socket's state.
        unsafe { read_volatile(addr_of!((*v.kept).stamp.role)) }
    };
    let mut known_old = false;
    let as_role = if !connected {
        role::SERVER
    } else if old.role() != role::NONE {
        old.role()
    } else if OUT && segment.opens {
        role::CLIENT
    } else if inherited != role::NONE {
        inherited
    } else {
        match OLD_SOCKETS.get_ptr(&cookie(v.skb)) {
            Some(r) => {
                known_old = true;
                // SAFETY: a map's value stays readable for this run.
                unsafe { *r }
            }
            None => role::NONE,
        }
    };

    // The peer that connect() was called with binds the socket's packets, whatever NAT made of the address since.
    if old.connected() && !kept.is_null() {
        // SAFETY: a non-null pointer to the socket's state.
        unsafe {
            d.ends.peer_addr = (*kept).peer;
            d.ends.peer_port = (*kept).peer_port;
        }
    }
    let mut oneself = false;
    match v.meet(s, &d.ends, as_role) {
        Met::Peer(peer) => {
            aim(d, v, &peer, as_role);
            if as_role == role::NONE {
                settle(&mut d.judgement, Judgement::unruled(&s, v.own.peer, direction(OUT), Reason::NoDirection));
            } else {
                judge(s, &d.flow, &mut d.judgement);
            }
        }
        Met::Oneself | Met::Later => {
            oneself = true;
            settle(&mut d.judgement, Judgement::pass(Reason::SelfTraffic));
        }
    }
    let outcome = d.judgement.outcome();

    if connected {
        bulkhead_keep_verdict(v.skb, d, s.epoch, as_role, own_of(v));
        bulkhead_begun(v.skb);
    } else if !OUT && segment.opens && outcome.passes() {
        bulkhead_mark_server(v.skb, own_of(v), u32::from(d.ends.own_port));
    }

    // An attempt is counted once: at the SYN on the listener, or when a socket is first judged.
    let first = old.epoch() == 0 && (known_old || as_role != role::SERVER);
    let attempt = if connected { first } else { !OUT && segment.opens };
    if !oneself && (attempt || !outcome.passes()) {
        if d.pid == 0 && connected && as_role == role::SERVER && tells(s, outcome) {
            bulkhead_name_maker(d, v.own.instance);
        }
        record(s, d);
    }
    outcome.passes() || excused
}

/// Our workload in one word: its instance, and in the upper half its identity.
#[inline(always)]
fn own_of(v: &View) -> u64 {
    u64::from(v.own.instance) | u64::from(v.own.peer.0) << 32
}

/// Whether this datagram socket is connected.
#[inline(always)]
fn connected(sk: *mut bpf_sock) -> bool {
    // SAFETY: a full socket; the verifier checks the fields.
    unsafe { read_volatile(addr_of!((*sk).type_)) != SOCK_RAW && read_volatile(addr_of!((*sk).dst_port)) != 0 }
}

/// Whether the verdict is about this peer.
#[inline(always)]
fn goes_to(kept: *const SocketVerdict, peer: &Addr, port: u16) -> bool {
    // SAFETY: a non-null pointer to the socket's state.
    unsafe { (*kept).peer_port == port && same(&(*kept).peer, peer) }
}

#[inline(always)]
fn datagram<const OUT: bool>(skb: *mut __sk_buff, s: Snapshot, state: *mut SocketState) -> u32 {
    let sk = socket(skb);
    if sk.is_null() {
        return 0;
    }
    let mut space = MaybeUninit::uninit();
    let mut headers = MaybeUninit::uninit();
    let p = Packet::zeroed(&mut headers);
    let whole = parse(skb, p);
    let answer = !OUT && p.proto == proto::UDP && p.sport == Answer::PORT;
    // Of a flow that our end opened.
    let told = |passes: bool, as_role: u32| {
        if answer && passes && as_role == role::CLIENT { PASS | ANSWER } else { passes as u32 }
    };
    let v = &view::<OUT>(skb, sk, state, s);
    let (d, kind) = (undecided::<OUT>(&mut space, v, p), control::<OUT>(s, v.skb, v.sk, !v.kept.is_null(), p));
    if !whole {
        return refuse::<OUT>(s, v, d, Reason::Malformed) as u32;
    }
    match kind {
        Control::Pass => return PASS,
        Control::Forged => return refuse::<OUT>(s, v, d, Reason::ForgedControl) as u32,
        Control::Judge => {}
    }
    let kept = if connected(sk) { storage::verdict(v.kept, cookie(skb)) } else { core::ptr::null_mut() };
    let old = if kept.is_null() { CachedVerdict(0) } else { cached(kept) };
    // The socket's own verdict speaks for the peer that it is connected to.
    let bound =
        !kept.is_null() && old.role() != role::NONE && (!OUT || goes_to(kept, &d.ends.peer_addr, d.ends.peer_port));
    if bound && old.epoch() == s.epoch {
        return told(old.passes(), old.role());
    }
    let recorded = flow::find(&v.own, &d.ends);
    if !bound && recorded.epoch() == s.epoch && recorded.epoch() != 0 {
        return told(recorded.passes(), recorded.role());
    }
    // In the host's namespace the packet of a connected socket may bear another address than connect() was called with,
    // because NAT came in between; sendto() elsewhere would have left a flow.
    let translated = OUT && !bound && v.host_netns() && old.connected() && recorded.epoch() == 0;
    if translated && old.epoch() == s.epoch {
        return old.passes() as u32;
    }

    let opening = flow::role_of_first(OUT);
    let mut as_role = if bound || translated {
        old.role()
    } else if recorded.role() != role::NONE {
        recorded.role()
    } else {
        flow::role_unrecorded(v.kept, cookie(skb), opening)
    };
    if translated && !kept.is_null() {
        // SAFETY: a non-null pointer to the socket's state.
        unsafe {
            d.ends.peer_addr = (*kept).peer;
            d.ends.peer_port = (*kept).peer_port;
        }
    }
    let mut peer = match v.meet(s, &d.ends, as_role) {
        // A resolver of its own may name for it what it likes.
        Met::Oneself | Met::Later => return told(true, role::CLIENT),
        Met::Peer(b) => b,
    };
    aim(d, v, &peer, as_role);
    judge(s, &d.flow, &mut d.judgement);
    let mut fresh = !bound && !translated && recorded.epoch() == 0;
    if as_role != opening && !bound && !translated && d.judgement.outcome() != Outcome::Allowed {
        // It isn't a reply that the rules allow. Then it may still open a flow of its own.
        let reply = d.judgement;
        if let Met::Peer(other) = v.meet(s, &d.ends, opening) {
            aim(d, v, &other, opening);
            judge(s, &d.flow, &mut d.judgement);
            if (d.judgement.outcome() as u8) < reply.outcome() as u8 {
                (peer, as_role, fresh) = (other, opening, true);
            } else {
                aim(d, v, &peer, as_role);
                settle(&mut d.judgement, reply);
            }
        }
    }
    let outcome = d.judgement.outcome();
    if fresh || !outcome.passes() {
        record(s, d);
    }
    if (bound || translated) && !kept.is_null() {
        let state = CachedVerdict::new(s.epoch, outcome, as_role, true, old.connected()).0;
        // SAFETY: a non-null pointer to the socket's state; one aligned u64.
        unsafe { write_volatile(addr_of_mut!((*kept).state), state) };
    } else if outcome.passes() {
        flow::keep(&v.own, &d.ends, &peer, s.epoch, outcome, as_role);
    }
    told(outcome.passes(), as_role)
}
