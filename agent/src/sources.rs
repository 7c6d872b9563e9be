//! What changes on the host: cgroups, files, addresses.
//!
//! Level-triggered throughout: a notification only says *look again*, and a look always reads everything, so that a
//! notification lost, doubled or out of order does no harm. Watches are set before what they watch is read.
//!
//! [`assemble`] and [`roster`] are pure; the rest does I/O.

pub mod addresses;
pub mod assemble;
pub mod hierarchy;
pub mod meshes;
pub mod node_netns;
pub mod policies;
pub mod roster;
pub mod state;
pub mod strays;
pub mod watch;
