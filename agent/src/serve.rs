//! What the agent tells: the control socket for root, and metrics and health for whoever may read them.
//!
//! Both answer from the last [`Snapshot`](crate::app::Snapshot) that the one task published; neither touches the
//! kernel or the state.

pub mod api;
pub mod control;
pub mod metrics;
pub mod orders;
