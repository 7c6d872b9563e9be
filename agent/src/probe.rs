//! `bulkhead probe`: tricks that try to get data from one workload to another, on the running kernel.
//!
//! Everything here works without another program on the machine, so that it also runs as a static binary in a bare
//! guest. It never touches the caller's own network namespace.

pub mod report;
pub mod runner;
pub mod sandbox;
pub mod tricks;
pub mod walls;
