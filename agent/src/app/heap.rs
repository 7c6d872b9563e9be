//! How the agent's heap is kept small.
//!
//! Reading files, compiling and committing take for a moment what is several times as large as what stays. The C library
//! keeps freed memory for the next time, and learns from one large piece that was freed to put the next into the midst
//! of the small ones, where it can't be given back. So it is told not to. Other C libraries than glibc can't be told.

/// Pieces from this size on get memory of their own, which goes back when they are freed. Bytes.
#[cfg(target_env = "gnu")]
const OWN: i32 = 64 << 10;

/// Sets it up; before there are any other threads.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers, and sets what is looked at when memory is taken (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN);
        // Each thread's own heap keeps free memory of its own.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back to the kernel what is free.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, locks what it looks at, and touches free memory only (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
