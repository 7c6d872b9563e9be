//! Bulkhead's kernel programs: default deny between workload identities, at connect and socket level.
//!
//! | file | what it is |
//! |---|---|
//! | `maps.rs` | the maps |
//! | `storage.rs` | what is kept of a socket, and where |
//! | `tables.rs` | the verdict's tables, as of one epoch |
//! | `who.rs` | the workload at our end, and the peer |
//! | `packet.rs` | headers |
//! | `calls.rs` | sock_create, sock_release, connect, sendmsg |
//! | `packets.rs` | egress, ingress |
//! | `kept.rs` | the same of a packet's socket |
//! | `control.rs` | the kernel's own packets |
//! | `flow.rs` | datagram flows |
//! | `record.rs` | counters and events |
//! | `answers.rs` | what DNS servers answer |
//! | `outside.rs` | counters of peers outside, by address |
//! | `traffic.rs` | what becomes of TCP connections: sock_ops |
//! | `words.rs` | memory written word by word |
//! | `log.rs` | lines for whoever looks for a fault in the programs; off by default |
//!
//! What is decided is [`bulkhead_common::verdict`]'s business; the programs find out who is concerned, ask it, obey and
//! record. Each program ends in deny: a value that can't be read is never a reason to let something pass.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is passed by value stands on the stack twice, and the stack is short"
)]
#![expect(internal_features, reason = "an atomic add has no other spelling for this target")]
mod answers;
mod calls;
mod control;
mod flow;
mod kept;
mod log;
mod maps;
mod outside;
mod packet;
mod packets;
mod record;
mod storage;
mod tables;
mod traffic;
mod who;
mod words;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext};

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    calls::create(ctx.sock) as i32
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    calls::release(ctx.sock);
    1
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    calls::connect::<false>(ctx.sock_addr) as i32
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    calls::connect::<true>(ctx.sock_addr) as i32
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    calls::sendmsg::<false>(ctx.sock_addr) as i32
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    calls::sendmsg::<true>(ctx.sock_addr) as i32
}

#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    packets::packet::<true>(ctx.skb.skb) as i32
}

#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    packets::packet::<false>(ctx.skb.skb) as i32
}

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    traffic::happened(ctx.ops);
    1
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
