//! Giving memory back.
//!
//! Reading files, compiling and committing take for a moment what is several times as large as what stays, and the C
//! library keeps freed memory for the next time. There it may lie for days, so it is given back when such a moment is
//! over. Other C libraries than glibc do that by themselves, or can't be asked.

/// Gives back to the kernel what is free.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, locks what it looks at, and touches free memory only (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets all threads share a few heaps, before there are any: each heap keeps free memory of its own.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers, and sets one that is looked at when a thread allocates for the first time (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
