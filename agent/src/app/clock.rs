//! Times that a jump of the clock can't stretch.
//!
//! What ends by itself has both its end by the wall clock and its end by the time since boot. Within one boot only the
//! latter counts; after another boot the former, and a clock that stands before the beginning ends it too. So it may
//! end early after a reboot, but it never lasts longer than asked.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the clocks say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Milliseconds since 1970.
    pub wall: u64,
    /// Which boot of the machine this is.
    pub boot: String,
    /// Milliseconds since then, suspended ones included.
    pub up: u64,
}

impl Clock {
    /// Now.
    pub fn now() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { wall: now(), boot: boot.trim().to_owned(), up: read(ClockId::Boottime) }
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    read(ClockId::Realtime)
}

fn read(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    let (seconds, nanos) = (u64::try_from(t.tv_sec).unwrap_or(0), u64::try_from(t.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// When something ends by itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deadline {
    /// When it was set, milliseconds since 1970.
    pub set: u64,
    /// The end, milliseconds since 1970.
    pub until: u64,
    boot: String,
    up_until: u64,
}

impl Deadline {
    /// So long from now.
    pub fn after(clock: &Clock, length: Duration) -> Self {
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        Self {
            set: clock.wall,
            until: clock.wall.saturating_add(length),
            boot: clock.boot.clone(),
            up_until: clock.up.saturating_add(length),
        }
    }

    /// Whether it is over.
    pub fn is_over(&self, clock: &Clock) -> bool {
        if self.boot == clock.boot {
            return clock.up >= self.up_until;
        }
        clock.wall < self.set || clock.wall >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(wall: u64, boot: &str, up: u64) -> Clock {
        Clock { wall, boot: boot.to_owned(), up }
    }

    #[test]
    fn a_jump_of_the_clock_neither_ends_nor_stretches_it() {
        let d = Deadline::after(&clock(1_000_000, "a", 500), Duration::from_secs(60));
        for wall in [0, 1_000_000, u64::MAX] {
            assert!(!d.is_over(&clock(wall, "a", 60_499)), "{wall}");
            assert!(d.is_over(&clock(wall, "a", 60_500)), "{wall}");
        }
    }

    #[test]
    fn after_a_reboot_the_wall_clock_counts_and_doubt_ends_it() {
        let d = Deadline::after(&clock(1_000_000, "a", 500), Duration::from_secs(60));
        assert!(!d.is_over(&clock(1_059_999, "b", 0)));
        assert!(d.is_over(&clock(1_060_000, "b", 0)));
        assert!(
            d.is_over(&clock(999_999, "b", 0)),
            "the clock was set back, so it can't be told how long it has lasted"
        );
    }
}
