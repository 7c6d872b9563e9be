//! The `bulkhead` command: arguments in, an exit code out.

use std::ffi::c_char;
use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

/// A change of the rules takes and frees a hundred thousand small pieces; with glibc's allocator that was a sixth of its
/// time.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// How it is set up, found under this name: one heap for all threads, and what is free goes back to the kernel within a
/// second. The agent gives back more, and sooner ([`bulkhead::app::heap`]).
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static SET_UP: &c_char = {
    let text = c"narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0";
    // SAFETY: it is there, and for as long as the program.
    unsafe { &*text.as_ptr() }
};

fn main() -> ExitCode {
    bulkhead::cli::main()
}
