//! How the agent's heap is kept small.
//!
//! Reading files, compiling and committing take for a moment what is several times as large as what stays. The allocator
//! keeps freed memory for the next time; it is given back to the kernel when such work is over, and not in the midst of it,
//! where the next step would have to take it anew.

/// Gives back to the kernel what is free.
pub fn trim() {
    let nothing = std::ptr::null_mut();
    for order in [c"thread.tcache.flush", c"arena.4096.purge"] {
        // SAFETY: the name ends with a zero, and both orders (4096 is every arena) neither read nor write a value: jemalloc(3).
        // In a program with another allocator there is nothing to give back.
        unsafe {
            tikv_jemalloc_sys::mallctl(order.as_ptr(), nothing, nothing.cast(), nothing, 0);
        }
    }
}
