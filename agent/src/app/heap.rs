//! How little memory that isn't used stays with the agent.
//!
//! A change of the rules takes for a moment several times what stays of it. A command may keep what it freed, since it
//! ends soon and is faster for it; a process that stays gives it back. Not quite at once, for then a change would
//! have the same pages made anew again and again, but all of it when it is in force.

use std::ffi::CStr;
use std::ptr::null_mut;
use tikv_jemalloc_sys::mallctl;

/// For how long, in milliseconds, memory that isn't used may stay while a change is worked out.
const DECAY: isize = 10;

/// From here on this process keeps little.
pub fn keep_little() {
    set(c"arena.0.dirty_decay_ms", DECAY);
    without_cache();
}

/// This thread keeps nothing that it freed for itself.
pub fn without_cache() {
    set(c"thread.tcache.enabled", false);
}

fn set<T>(name: &CStr, mut value: T) {
    // SAFETY: it reads `size_of::<T>()` bytes of the value while this runs, and refuses a setting of any other length.
    told(name, unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), (&raw mut value).cast(), size_of::<T>()) });
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
