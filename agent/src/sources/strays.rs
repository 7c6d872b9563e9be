//! Sockets of a workload that lie outside it.
