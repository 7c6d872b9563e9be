//! How little memory that isn't used stays with the agent.
//!
//! A change of the rules takes for a moment several times what stays of it. A command may keep what it freed, since it
//! ends soon and is faster for it; a process that stays gives it back.

use std::ffi::CStr;
use tikv_jemalloc_sys::mallctl;

/// From now on free pages go back to the kernel at once. To be called before there are other threads.
pub fn give_back() {
    set(c"arenas.dirty_decay_ms", 0_isize);
    set(c"arena.0.dirty_decay_ms", 0_isize);
    without_cache();
}

/// This thread keeps nothing that it freed for itself.
pub fn without_cache() {
    set(c"thread.tcache.enabled", false);
}

fn set<T>(name: &CStr, mut value: T) {
    let (old, length) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: it reads `size_of::<T>()` bytes of the value while this runs, and refuses any other length than the
    // setting's own.
    let refused = unsafe { mallctl(name.as_ptr(), old, length, (&raw mut value).cast(), size_of::<T>()) };
    if refused != 0 {
        let e = std::io::Error::from_raw_os_error(refused);
        tracing::warn!("the allocator can't be set up ({}), so more memory stays: {e}", name.to_string_lossy());
    }
}
