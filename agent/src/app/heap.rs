//! How little memory that isn't used stays with the agent.
//!
//! A change of the rules takes for a moment several times what stays of it. A command may keep what it freed, since it
//! ends soon and is faster for it; a process that stays gives it back. Not at once, for then a change would have the same
//! pages made anew again and again, but when it is in force.

use std::ffi::CStr;
use std::ptr::null_mut;
use tikv_jemalloc_sys::mallctl;

/// This thread keeps nothing that it freed for itself.
pub fn without_cache() {
    let mut enabled = false;
    // SAFETY: the setting is a `bool`, which is read while this runs.
    told(c"thread.tcache.enabled", unsafe {
        let name = c"thread.tcache.enabled".as_ptr();
        mallctl(name, null_mut(), null_mut(), (&raw mut enabled).cast(), size_of::<bool>())
    });
}

/// What is free goes back to the kernel.
pub fn give_back() {
    // The one heap that there is.
    let name = c"arena.0.purge";
    // SAFETY: this neither reads nor writes a value.
    told(name, unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) });
}

fn told(name: &CStr, refused: i32) {
    if refused != 0 {
        let e = std::io::Error::from_raw_os_error(refused);
        tracing::warn!("{} is refused by the allocator, so more memory stays: {e}", name.to_string_lossy());
    }
}
