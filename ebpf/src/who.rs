//! Who is at each end.
//!
//! A workload is found by the ids of a cgroup's ancestors, from the root downwards; the first one that the agent bound
//! to a workload wins, so a process can't leave its identity by making child cgroups. A peer in the same network
//! namespace is whoever owns the socket there; any other peer is found by its address.

use aya_ebpf::bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock, bpf_sock_addr, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_sk_ancestor_cgroup_id, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
    bpf_sk_release, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use bulkhead_common::maps::{LEVELS, Stamp, role};
use bulkhead_common::slots::{ABSENT, Binding};
use bulkhead_common::{Addr, Class, PeerId, proto};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, read_volatile};

use crate::maps::OTHER_SOCKETS;
use crate::packet::load;
use crate::tables::{Snapshot, resolve};
use crate::words::Words;

/// The peer of a connection as far as a hook can tell.
pub enum Met {
    /// The workload itself, within its own network namespace.
    Oneself,
    /// Somebody else.
    Peer(Binding),
    /// Not to be told here: the packet hooks see more.
    Later,
}

/// A connection's ends, seen from the workload whose hook runs.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ends {
    pub own_addr: Addr,
    pub peer_addr: Addr,
    pub own_port: u16,
    pub peer_port: u16,
    /// The IP protocol, a byte.
    pub proto: u32,
}

impl Ends {
    /// The IP protocol.
    #[inline(always)]
    pub const fn proto(&self) -> u8 {
        self.proto as u8
    }
}

/// What has to be known to find the peer besides the ends, in one word, since a BPF function takes five arguments.
///
/// Bits: 0..32 our workload's instance, 32..48 the port for which the peer's address is looked up, 48 to 51 flags.
#[derive(Clone, Copy)]
pub struct Situation(u64);

impl Situation {
    /// `lookup_port` is 0 when the peer opened the connection, since only a server is somebody by its port.
    /// `host_netns`: our socket is known to live in the host's network namespace. `via_loopback`: the packet goes over
    /// the loopback device, so that its peer is in the same network namespace.
    #[inline(always)]
    pub const fn new(own: &Binding, lookup_port: u16, host_netns: bool, via_loopback: bool) -> Self {
        Self(own.instance as u64 | (lookup_port as u64) << 32 | (host_netns as u64) << 48 | (via_loopback as u64) << 49)
    }

    /// Of a server whose network namespace knows the node's: what comes from the node's address is only the node's if the node
    /// has a socket for it. Without a condition, so that the verifier has one path to follow.
    #[inline(always)]
    pub const fn asking_node(self, as_role: u32, flags: u8, out: bool) -> Self {
        let asks = (as_role / role::SERVER) as u64 & (flags / Binding::KNOWS_NODE) as u64 & 1;
        Self(self.0 | asks << 50 | (out as u64) << 51)
    }

    #[inline(always)]
    const fn is_out(self) -> bool {
        self.0 & (1 << 51) != 0
    }

    #[inline(always)]
    const fn asks_node(self) -> bool {
        self.0 & (1 << 50) != 0
    }

    #[inline(always)]
    const fn instance(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn lookup_port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[inline(always)]
    const fn host_netns(self) -> bool {
        self.0 & (1 << 48) != 0
    }

    #[inline(always)]
    const fn via_loopback(self) -> bool {
        self.0 & (1 << 49) != 0
    }
}

// How a global function says what it met; the binding is in its out parameter.
const LATER: u32 = 0;
const ONESELF: u32 = 1;
const PEER: u32 = 2;

impl Met {
    #[inline(always)]
    fn of(code: u32, b: u64) -> Self {
        match code {
            ONESELF => Self::Oneself,
            PEER => Self::Peer(Binding::decode(b).unwrap_or(UNKNOWN)),
            _ => Self::Later,
        }
    }
}

/// The workload that this cgroup belongs to. The flag says whether it lies below an attach point at all.
#[inline(always)]
fn walk(s: Snapshot, id_at: impl Fn(i32) -> u64) -> (Option<Binding>, bool) {
    let mut levels = s.levels();
    let mut managed = false;
    let mut n = 0;
    while n < LEVELS {
        let level = (levels & 0xff) as i32;
        if level == 0 {
            break;
        }
        if let Some(b) = s.cgroup(id_at(level)) {
            if b.peer.0 != PeerId::UNKNOWN_WORKLOAD.0 {
                return (Some(b), true);
            }
            // An attach point that is nobody's.
            managed = true;
        }
        levels >>= 8;
        n += 1;
    }
    (None, managed)
}

const UNKNOWN: Binding = Binding::of(PeerId::UNKNOWN_WORKLOAD);

// The functions named `bulkhead_…` are global ones: the verifier looks at each once, not at every call, and knows
// nothing of their arguments but their types. Hence raw pointers, checked for null, and scalars as results.

/// What a socket's stamp says of this cgroup, if it is of this epoch: the same as a walk would find.
#[inline(always)]
fn stamped(s: Snapshot, stamp: *const Stamp, cgroup: u64) -> Option<Binding> {
    if stamp.is_null() {
        return None;
    }
    // SAFETY: a non-null stamp points to the socket's state.
    unsafe {
        if (*stamp).epoch != s.epoch || (*stamp).cgroup != cgroup {
            return None;
        }
        let flags = ((*stamp).flags >> Stamp::BINDING) as u8 & 0x7f;
        Some(Binding { peer: PeerId((*stamp).peer), instance: (*stamp).instance, flags })
    }
}

/// The workload of the calling process, which is in this cgroup, encoded; 0 if it is unknown. The stamp is that of the
/// socket concerned, or null.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_caller(epoch: u32, stamp: *const Stamp, cgroup: u64) -> u64 {
    let s = Snapshot { epoch };
    // SAFETY: the helper takes any level and gives 0 for one that doesn't exist.
    match stamped(s, stamp, cgroup).or_else(|| walk(s, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) }).0)
    {
        Some(b) => b.encode(),
        None => ABSENT,
    }
}

/// The workload of the packet's socket, encoded; 0 if it is unknown. The stamp is the socket's, or null.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_holder(skb: *mut __sk_buff, epoch: u32, stamp: *const Stamp) -> u64 {
    let s = Snapshot { epoch };
    // SAFETY: as above; the context is the program's own.
    let found = unsafe { stamped(s, stamp, bpf_skb_cgroup_id(skb)) };
    match found.or_else(|| walk(s, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) }).0) {
        Some(b) => b.encode(),
        None => ABSENT,
    }
}

/// The workload of the calling process, which is in this cgroup.
#[inline(always)]
pub fn caller(s: Snapshot, stamp: *const Stamp, cgroup: u64) -> Binding {
    Binding::decode(bulkhead_caller(s.epoch, stamp, cgroup)).unwrap_or(UNKNOWN)
}

/// The workload of the packet's socket: the sender's at egress, the receiver's at ingress.
#[inline(always)]
pub fn holder(s: Snapshot, skb: *mut __sk_buff, stamp: *const Stamp) -> Binding {
    Binding::decode(bulkhead_holder(skb, s.epoch, stamp)).unwrap_or(UNKNOWN)
}

/// The socket in this network namespace to which a packet from our end to the peer's would go; release it. A function
/// of its own, so that its stack isn't its callers'.
#[inline(never)]
fn opposite(ctx: *mut c_void, e: &Ends) -> *mut bpf_sock {
    let mut space = MaybeUninit::uninit();
    let tuple = bpf_sock_tuple::zeroed(&mut space);
    // Connecting to the unspecified address means the loopback address (Linux: ip_route_output_key_hash_rcu).
    let size = if e.peer_addr.is_v4() {
        // SAFETY: a union of plain integers, all of them zero so far.
        unsafe {
            let t = &mut tuple.__bindgen_anon_1.ipv4;
            t.saddr = if e.own_addr.is_v4() { e.own_addr.words()[3] } else { 0 };
            t.daddr = e.peer_addr.words()[3];
            if t.daddr == 0 {
                t.daddr = u32::from_ne_bytes([127, 0, 0, 1]);
            }
            t.sport = e.own_port.to_be();
            t.dport = e.peer_port.to_be();
        }
        12
    } else {
        // SAFETY: as above.
        unsafe {
            let t = &mut tuple.__bindgen_anon_1.ipv6;
            t.saddr = e.own_addr.words();
            t.daddr = e.peer_addr.words();
            if e.peer_addr.is_loopback() {
                t.daddr[3] = 1u32.to_be();
            }
            t.sport = e.own_port.to_be();
            t.dport = e.peer_port.to_be();
        }
        36
    };
    // Widened with its sign: the kernel takes any negative number for the namespace where the program runs.
    let netns = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: the tuple lives on this stack and `size` is that of one of its forms.
    unsafe {
        match e.proto() {
            proto::TCP => bpf_sk_lookup_tcp(ctx, tuple, size, netns, 0),
            proto::UDP => bpf_sk_lookup_udp(ctx, tuple, size, netns, 0),
            _ => core::ptr::null_mut(),
        }
    }
}

#[inline(always)]
fn oneself_or(at: Situation, b: Binding, out: &mut u64) -> u32 {
    *out = b.encode();
    if b.instance != 0 && b.instance == at.instance() { ONESELF } else { PEER }
}

/// Who answers in this network namespace where no socket does: the node in the host's, the workload elsewhere. A
/// sender that has closed its socket by now was judged at its own egress, where the receiver's socket was found.
#[inline(always)]
fn nobody(at: Situation, out: &mut u64) -> u32 {
    *out = Binding::of(Class::Host.id()).encode();
    if at.host_netns() { PEER } else { ONESELF }
}

/// The peer of a call, before there is a packet.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_meet_call(
    ctx: *mut bpf_sock_addr,
    epoch: u32,
    e: *const Ends,
    at: u64,
    out: *mut u64,
) -> u32 {
    if e.is_null() {
        return LATER;
    }
    if out.is_null() {
        return LATER;
    }
    // SAFETY: the verifier has checked at each call that these point to values of their types.
    let (e, out) = unsafe { (&*e, &mut *out) };
    let s = Snapshot { epoch };
    let at = Situation(at);
    if !e.peer_addr.is_loopback() {
        let b = resolve(s, &e.peer_addr, e.proto(), at.lookup_port());
        if !at.host_netns() || b.peer.0 != Class::Host as u32 {
            return oneself_or(at, b, out);
        }
    }
    let sk = opposite(ctx.cast(), e);
    if sk.is_null() {
        return nobody(at, out);
    }
    // Neither the cgroup nor the cookie of a socket can be asked for in this hook, only the stamp that lives with it. No
    // stamp, or one made before the maker was known: the packet hooks will tell.
    let theirs = OTHER_SOCKETS.get(sk);
    let mut found = Binding { peer: PeerId(0), instance: 0, flags: 0 };
    if !theirs.is_null() {
        // SAFETY: the storage is there, and the socket is held.
        unsafe {
            found.peer = PeerId((*theirs).stamp.peer);
            found.instance = (*theirs).stamp.instance;
        }
    }
    // SAFETY: the reference that the lookup took.
    unsafe { bpf_sk_release(sk.cast()) };
    if found.instance == 0 { LATER } else { oneself_or(at, found, out) }
}

/// The peer of a call, before there is a packet.
#[inline(always)]
pub fn meet_call(ctx: *mut bpf_sock_addr, s: Snapshot, e: &Ends, at: Situation) -> Met {
    let mut b = ABSENT;
    let code = bulkhead_meet_call(ctx, s.epoch, e, at.0, &mut b);
    Met::of(code, b)
}

/// The peer of a packet on the loopback device.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_meet_packet(skb: *mut __sk_buff, epoch: u32, e: *const Ends, at: u64, out: *mut u64) -> u32 {
    if e.is_null() {
        return LATER;
    }
    if out.is_null() {
        return LATER;
    }
    // SAFETY: the verifier has checked at each call that these point to values of their types.
    let (e, out) = unsafe { (&*e, &mut *out) };
    let s = Snapshot { epoch };
    let at = Situation(at);
    let sk = opposite(skb.cast(), e);
    if sk.is_null() {
        return nobody(at, out);
    }
    // SAFETY: the socket is held until it is released below.
    let (workload, managed) = walk(s, |level| unsafe { bpf_sk_ancestor_cgroup_id(sk.cast(), level) });
    // SAFETY: the reference that the lookup took.
    unsafe { bpf_sk_release(sk.cast()) };
    match workload {
        Some(b) => oneself_or(at, b, out),
        None => {
            let other = if managed { UNKNOWN } else { Binding::of(Class::Host.id()) };
            *out = other.encode();
            PEER
        }
    }
}

/// Who a peer is that was found by its address. Where the situation says so, the node is only itself if it has a socket for
/// this connection; else it passes somebody else's on. A listener isn't one, since whoever is masqueraded may have chosen
/// the port from which it comes.
///
/// It takes every peer, and reads the headers by itself, so that its callers' paths don't part here and what the verifier
/// knows of their stacks stays known: it would have to follow all of them to the end.
#[unsafe(no_mangle)]
pub extern "C" fn bulkhead_node_or_masked(skb: *mut __sk_buff, at: u64, peer: u32) -> u32 {
    let at = Situation(at);
    if !at.asks_node() || peer != Class::Host as u32 {
        return peer;
    }
    match node_socket(skb, at.is_out()) {
        Some(true) => peer,
        Some(false) | None => Class::SnatIngress as u32,
    }
}

/// Whether the node has a socket of its own for the packet's connection. `None`: it can't be read. Straight from the headers
/// into what is looked up, because the stack is short; behind an IPv6 extension header nothing is looked for.
#[inline(always)]
fn node_socket(skb: *mut __sk_buff, out: bool) -> Option<bool> {
    let mut space = MaybeUninit::uninit();
    let tuple = bpf_sock_tuple::zeroed(&mut space);
    let [first] = load::<[u8; 1]>(skb, 0)?;
    // Where our end's address stands, and where the other's; ours is the source of what the node's socket gets.
    let (protocol, size, own_port) = if first >> 4 == 4 {
        let (own, other) = if out { (12, 16) } else { (16, 12) };
        let [protocol] = load::<[u8; 1]>(skb, 9)?;
        let ports = u32::from(first & 0xf) * 4;
        let (own_port, other_port) = if out { (ports, ports + 2) } else { (ports + 2, ports) };
        // SAFETY: a union of plain integers, all of them zero so far.
        let t = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        t.saddr = u32::from_ne_bytes(load(skb, own)?);
        t.daddr = u32::from_ne_bytes(load(skb, other)?);
        t.sport = u16::from_ne_bytes(load(skb, own_port)?);
        t.dport = u16::from_ne_bytes(load(skb, other_port)?);
        (protocol, 12, t.sport)
    } else {
        let (own, other) = if out { (8, 24) } else { (24, 8) };
        let [protocol] = load::<[u8; 1]>(skb, 6)?;
        let (own_port, other_port) = if out { (40, 42) } else { (42, 40) };
        // SAFETY: as above.
        let t = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        let mut n = 0;
        while n < 4 {
            t.saddr[n] = u32::from_ne_bytes(load(skb, own + 4 * n as u32)?);
            t.daddr[n] = u32::from_ne_bytes(load(skb, other + 4 * n as u32)?);
            n += 1;
        }
        t.sport = u16::from_ne_bytes(load(skb, own_port)?);
        t.dport = u16::from_ne_bytes(load(skb, other_port)?);
        (protocol, 36, t.sport)
    };
    let netns = Binding::NODE_NETNS as u64;
    // SAFETY: the tuple lives on this stack and `size` is that of one of its forms.
    let sk = unsafe {
        match protocol {
            proto::TCP => bpf_sk_lookup_tcp(skb.cast(), tuple, size, netns, 0),
            proto::UDP => bpf_sk_lookup_udp(skb.cast(), tuple, size, netns, 0),
            // There is no socket to look for, and no node port for it either.
            proto::ICMP | proto::ICMPV6 => return Some(true),
            _ => core::ptr::null_mut(),
        }
    };
    if sk.is_null() {
        return Some(false);
    }
    // SAFETY: the socket is held; the verifier checks the fields.
    let (state, port) = unsafe { (read_volatile(addr_of!((*sk).state)), read_volatile(addr_of!((*sk).dst_port))) };
    // SAFETY: the reference that the lookup took.
    unsafe { bpf_sk_release(sk.cast()) };
    Some(state != BPF_TCP_LISTEN && port == own_port)
}

/// The peer of a packet.
#[inline(always)]
pub fn meet_packet(skb: *mut __sk_buff, s: Snapshot, e: &Ends, at: Situation) -> Met {
    if !at.via_loopback() {
        // Whatever comes from or goes to a device isn't oneself, even if it bears the own address. Not in the function
        // below: with one call more between here and the tables, the stack would be too deep for 6.1.
        let b = resolve(s, &e.peer_addr, e.proto(), at.lookup_port());
        let peer = PeerId(bulkhead_node_or_masked(skb, at.0, b.peer.0));
        return Met::Peer(Binding { peer, ..b });
    }
    let mut b = ABSENT;
    let code = bulkhead_meet_packet(skb, s.epoch, e, at.0, &mut b);
    Met::of(code, b)
}
