//! `bulkhead probe`: tricks that try to get data from one workload to another, on the running kernel.
//!
//! Everything here works without another program on the machine, so that it also runs as a static binary in a bare
//! guest. It never touches the caller's own network namespace.

pub mod report;
pub mod runner;
pub mod sandbox;
pub mod tricks;
pub mod walls;

use anyhow::Result;
use std::path::Path;

/// Plays every trick against the real programs and takes them off again. With `each_hook`, also with each hook left
/// out in turn, to see what it is good for. `bpffs` is where the BPF file system is mounted, or shall be.
pub fn run(bpffs: &Path, each_hook: bool) -> Result<report::Report> {
    let mut walls = walls::Walls::new(bpffs.to_owned())?;
    runner::Probe::new(&mut walls)?.run(each_hook)
}
