//! Programs that do nothing but allow, on the hooks that Bulkhead uses: what the hooks themselves cost.
//!
//! Two instructions each, handed to the kernel by hand, so that no build of the kernel programs can make them more.

use anyhow::{Context, Result};
use std::ffi::c_long;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// A hook: the program's name among Bulkhead's, `enum bpf_prog_type` and `enum bpf_attach_type`.
pub(crate) struct Hook {
    pub(crate) name: &'static str,
    kind: u32,
    attach_type: u32,
}

const fn hook(name: &'static str, kind: u32, attach_type: u32) -> Hook {
    Hook { name, kind, attach_type }
}

const HOOKS: [Hook; 9] = [
    hook("sock_release", 9, 34),
    hook("sock_create", 9, 2),
    hook("ingress", 8, 0),
    hook("egress", 8, 1),
    hook("connect4", 18, 10),
    hook("connect6", 18, 11),
    hook("sendmsg4", 18, 14),
    hook("sendmsg6", 18, 15),
    hook("sock_ops", 13, 3),
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
pub(crate) static ALLOW: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// The names of the hooks' programs.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.name)
}

/// Puts such a program on each hook of a cgroup. They go when the links are closed.
pub(crate) fn attach(cgroup: &Path) -> Result<Vec<OwnedFd>> {
    attach_with(cgroup, |hook| load(hook, &ALLOW))
}

/// Puts what `program` gives on each hook of a cgroup.
pub(crate) fn attach_with(cgroup: &Path, program: impl Fn(&Hook) -> Result<OwnedFd>) -> Result<Vec<OwnedFd>> {
    let directory = File::open(cgroup).with_context(|| format!("can't open {}", cgroup.display()))?;
    let one = |hook: &Hook| {
        let fd = program(hook)?;
        let (program, target) = (fd.as_raw_fd(), directory.as_raw_fd());
        bpf(LINK_CREATE, &LinkCreate { program, target, attach_type: hook.attach_type, flags: 0 })
            .with_context(|| format!("can't attach a program for {}", hook.name))
    };
    HOOKS.iter().map(one).collect()
}

/// Hands a program for that hook to the kernel.
pub(crate) fn load(hook: &Hook, code: &[u64]) -> Result<OwnedFd> {
    let load = ProgLoad {
        kind: hook.kind,
        attach_type: hook.attach_type,
        instructions: u32::try_from(code.len())?,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &load).with_context(|| format!("can't load a program for {}", hook.name))
}

/// One call of bpf() that answers with a file descriptor.
pub(crate) fn bpf<T>(command: c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: these commands read the attributes, which are as long as said and point to data that outlives the call,
    // and answer with a new file descriptor.
    unsafe {
        match RawFd::try_from(libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>())) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
