//! Somebody else with root who writes to the pinned tables.

use crate::enforced::BPFFS;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

const MAP_UPDATE_ELEM: libc::c_long = 2;
const OBJ_GET: libc::c_long = 7;

/// A pinned array, open for writing.
pub struct Array(OwnedFd);

impl Array {
    /// The map of that name of an instance's only set.
    pub fn pinned(instance: &str, name: &str) -> Self {
        let folder = PathBuf::from(BPFFS).join("bulkhead").join(instance);
        let set = std::fs::read_dir(folder).expect("pins").next().expect("a set").expect("a folder");
        let path = CString::new(set.path().join("maps").join(name).to_str().expect("a path")).expect("no zero in it");
        let attr = [path.as_ptr().addr() as u64, 0];
        // SAFETY: the head of `union bpf_attr` for this command; the path outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, attr.as_ptr(), size_of_val(&attr)) };
        assert!(fd >= 0, "opening {path:?}: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just given it to us.
        Self(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) })
    }

    /// Writes one element; false if there is none of that index.
    pub fn write(&self, index: u32, value: &[u64]) -> bool {
        let map = u64::from(self.0.as_raw_fd().unsigned_abs());
        let attr = [map, std::ptr::from_ref(&index).addr() as u64, value.as_ptr().addr() as u64, 0];
        // SAFETY: the head of `union bpf_attr` for this command; key and value outlive the call, and the caller knows the
        // map's sizes.
        let done = unsafe { libc::syscall(libc::SYS_bpf, MAP_UPDATE_ELEM, attr.as_ptr(), size_of_val(&attr)) };
        done == 0
    }
}
