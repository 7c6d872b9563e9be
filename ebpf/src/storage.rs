//! Values that live with a socket (`BPF_MAP_TYPE_SK_STORAGE`).
//!
//! aya's own wrapper takes only the context of sock_addr programs and has no flag for cloning; this one takes any
//! socket pointer that the verifier accepts, so each hook can use it.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use core::ptr;

/// Kernel: include/uapi/linux/bpf.h, BPF_MAP_TYPE_SK_STORAGE.
const TYPE: usize = 24;

/// A map definition in BTF form; the loader reads the types of its fields.
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; TYPE],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders for the loader and never dereferenced.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value of this socket, or null.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> *mut T {
        // SAFETY: the verifier checks map and socket; a null value with no flag only looks up.
        unsafe { bpf_sk_storage_get(ptr::from_ref(self).cast_mut().cast(), sk.cast(), ptr::null_mut(), 0).cast() }
    }

    /// The value of this socket, made of zeroes if there is none; null when there is no room for one.
    #[inline(always)]
    pub fn get_or_create_zeroed(&self, sk: *mut bpf_sock) -> *mut T {
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: the verifier checks map and socket; without an initial value the kernel zeroes the new one.
        unsafe { bpf_sk_storage_get(ptr::from_ref(self).cast_mut().cast(), sk.cast(), ptr::null_mut(), flags).cast() }
    }

    /// The value of this socket, made from `initial` if there is none; null when there is no room for one.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut bpf_sock, initial: &mut T) -> *mut T {
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: the verifier checks map and socket, and that `initial` is as large as the map's value.
        unsafe {
            bpf_sk_storage_get(ptr::from_ref(self).cast_mut().cast(), sk.cast(), ptr::from_mut(initial).cast(), flags)
                .cast()
        }
    }
}
