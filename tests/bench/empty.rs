//! Programs that do nothing but allow, on the hooks that Bulkhead uses: what the hooks themselves cost.
//!
//! Two instructions each, handed to the kernel by hand, so that no build of the kernel programs can make them more.

use anyhow::{Context, Result};
use std::ffi::c_long;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// A program's name among Bulkhead's, `enum bpf_prog_type` and `enum bpf_attach_type`.
const HOOKS: [(&str, u32, u32); 8] = [
    ("sock_create", 9, 2),
    ("ingress", 8, 0),
    ("egress", 8, 1),
    ("connect4", 18, 10),
    ("connect6", 18, 11),
    ("sendmsg4", 18, 14),
    ("sendmsg6", 18, 15),
    ("sock_ops", 13, 3),
];

/// Linux: include/uapi/linux/bpf.h, `union bpf_attr` as BPF_PROG_LOAD and as BPF_LINK_CREATE read it.
const PROG_LOAD: c_long = 5;
const LINK_CREATE: c_long = 28;

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    version_and_flags: [u32; 2],
    name: [u8; 16],
    device: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: RawFd,
    target: RawFd,
    attach_type: u32,
    flags: u32,
}

/// `r0 = 1; exit`
static ALLOW: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// The names of the hooks' programs.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|(name, ..)| *name)
}

/// Puts such a program on each hook of a cgroup. They go when the links are closed.
pub(crate) fn attach(cgroup: &Path) -> Result<Vec<OwnedFd>> {
    let directory = File::open(cgroup).with_context(|| format!("can't open {}", cgroup.display()))?;
    let one = |&(name, kind, attach_type): &(&str, u32, u32)| {
        let load = ProgLoad {
            kind,
            attach_type,
            instructions: 2,
            code: ALLOW.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            ..ProgLoad::default()
        };
        let program = bpf(PROG_LOAD, &load).with_context(|| format!("can't load an empty program for {name}"))?;
        let (program, target) = (program.as_raw_fd(), directory.as_raw_fd());
        bpf(LINK_CREATE, &LinkCreate { program, target, attach_type, flags: 0 })
            .with_context(|| format!("can't attach an empty program for {name}"))
    };
    HOOKS.iter().map(one).collect()
}

fn bpf<T>(command: c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: both commands read the attributes, which are as long as said and point to data that outlives the call,
    // and answer with a new file descriptor.
    unsafe {
        match RawFd::try_from(libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>())) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
