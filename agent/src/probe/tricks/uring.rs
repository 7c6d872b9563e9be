//! System calls that the kernel makes for the workload, perhaps from a thread of its own.

use super::{Family, Stage, Trick, Wall};
use anyhow::Result;
use bulkhead_common::Hook;
use io_uring::{IoUring, opcode, squeue, types::Fd};
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;

pub(super) const TRICKS: &[Trick] = &[
    Trick { name: "uring-tcp-connect", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: tcp },
    Trick { name: "uring-tcp-sqpoll", family: Family::Ipv4, wall: Wall::Hook(Hook::Connect), setup: tcp_sqpoll },
    Trick { name: "uring-tcp-sqpoll", family: Family::Ipv6, wall: Wall::Hook(Hook::Connect), setup: tcp_sqpoll },
    Trick { name: "uring-udp-sendmsg", family: Family::Ipv4, wall: Wall::Hook(Hook::Sendmsg), setup: udp },
    Trick { name: "uring-udp-sqpoll", family: Family::Ipv6, wall: Wall::Hook(Hook::Sendmsg), setup: udp_sqpoll },
];

fn ring(polled: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if polled {
        builder.setup_sqpoll(100);
    }
    builder.build(4)
}

/// Submits one entry and gives its result.
fn run(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<i32> {
    // SAFETY: everything that the entry points to is owned by a caller that waits here for its completion.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(-libc::EIO, |c| c.result());
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn tcp(stage: &mut Stage<'_>) -> Result<()> {
    connect(stage, false)
}

fn tcp_sqpoll(stage: &mut Stage<'_>) -> Result<()> {
    connect(stage, true)
}

fn connect(stage: &mut Stage<'_>, polled: bool) -> Result<()> {
    let to = stage.tcp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        turn.doing("io_uring_setup");
        let mut ring = ring(polled)?;
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        let address = SockAddr::from(to);
        turn.doing("IORING_OP_CONNECT");
        run(&mut ring, &opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len()).build())?;
        turn.doing("IORING_OP_SEND");
        let length = u32::try_from(nonce.len()).map_err(io::Error::other)?;
        run(&mut ring, &opcode::Send::new(Fd(socket.as_raw_fd()), nonce.as_ptr(), length).build()).map(drop)
    })
}

fn udp(stage: &mut Stage<'_>) -> Result<()> {
    sendmsg(stage, false)
}

fn udp_sqpoll(stage: &mut Stage<'_>) -> Result<()> {
    sendmsg(stage, true)
}

fn sendmsg(stage: &mut Stage<'_>, polled: bool) -> Result<()> {
    let to = stage.udp_at_b()?;
    stage.send(&stage.ground().a, |turn| {
        turn.doing("io_uring_setup");
        let mut ring = ring(polled)?;
        let nonce = turn.ready()?;
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        let address = SockAddr::from(to);
        let bytes = [IoSlice::new(&nonce)];
        let message = MsgHdr::new().with_addr(&address).with_buffers(&bytes);
        turn.doing("IORING_OP_SENDMSG");
        // MsgHdr is a transparent wrapper of msghdr.
        let pointer = std::ptr::from_ref(&message).cast();
        run(&mut ring, &opcode::SendMsg::new(Fd(socket.as_raw_fd()), pointer).build()).map(drop)
    })
}
