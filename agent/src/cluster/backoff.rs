//! How long a watch that broke waits before it is begun again.
//!
//! As kube's own way, which grows to half a minute, but never longer than [`MOST`]: an API server that has just started
//! refuses everything for a moment, then says that what was seen last is too old, and each costs a wait. Pods that came
//! meanwhile are unknown for as long, and so denied where anything is enforced.

use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use std::time::Duration;

/// The longest wait.
const MOST: Duration = Duration::from_secs(2);

/// The waits of one watch.
#[derive(Default)]
pub(super) struct Waits(DefaultBackoff);

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(within)
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// A wait that isn't too long. Which part of the last second it ends in stays as random as it was, so that a cluster's
/// agents don't come all at once.
fn within(wait: Duration) -> Duration {
    if wait <= MOST { wait } else { MOST / 2 + Duration::from_nanos(u64::from(wait.subsec_nanos())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_is_longer_than_the_longest_and_none_is_nothing() {
        for wait in Waits::default().take(40) {
            assert!(wait <= MOST && wait >= Duration::from_millis(500), "{wait:?}");
        }
        assert_eq!(within(Duration::from_millis(30_250)), Duration::from_millis(1_250));
    }
}
