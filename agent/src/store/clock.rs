//! Whether the wall clock can be trusted to say how old something is.
//!
//! A clock that jumps must not make a store throw away what it holds: a host that wakes up in 2040 by mistake would find
//! everything too old. So after a jump nothing is removed for its age until the clock has gone steadily for a day.
//!
//! Pure: both clocks come in with each look.

/// How far the wall clock may run from the steady one between two looks, milliseconds.
const SLACK: u64 = 60_000;
/// How far it may be ahead of what was stored last when an agent starts: longer, and it can't be told whether the
/// agent was away or the clock is wrong.
const AWAY: u64 = 7 * DAY;
/// How long it must go steadily to be trusted again.
const STEADY: u64 = DAY;
const DAY: u64 = 86_400_000;

/// Two clocks compared.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    last: Option<(u64, u64)>,
    /// When the jump was, by the steady clock, and how far, milliseconds.
    jumped: Option<(u64, i128)>,
}

impl Clock {
    /// Begins, with the time of what was stored last (if anything was).
    pub fn starting(wall: u64, steady: u64, stored: Option<u64>) -> Self {
        let by = stored.map_or(0, |s| i128::from(wall) - i128::from(s));
        let odd = by < -i128::from(SLACK) || by > i128::from(AWAY);
        Self { last: Some((wall, steady)), jumped: odd.then_some((steady, by)) }
    }

    /// Looks at both clocks (milliseconds; only the first may jump), and gives what passed by the steady one.
    pub fn look(&mut self, wall: u64, steady: u64) -> Option<u64> {
        let before = self.last.replace((wall, steady));
        let (wall_before, steady_before) = before?;
        let passed = steady.saturating_sub(steady_before);
        let by = i128::from(wall) - i128::from(wall_before) - i128::from(passed);
        if by.unsigned_abs() > u128::from(SLACK) {
            self.jumped = Some((steady, by));
        }
        Some(passed)
    }

    /// Whether ages can be believed.
    pub fn is_trusted(&self) -> bool {
        match (self.jumped, self.last) {
            (None, _) => true,
            (Some((at, _)), Some((_, steady))) => steady.saturating_sub(at) >= STEADY,
            (Some(_), None) => false,
        }
    }

    /// What to say of it.
    pub fn fault(&self) -> Option<String> {
        let (_, by) = self.jumped.filter(|_| !self.is_trusted())?;
        let way = if by < 0 { "back" } else { "ahead" };
        let seconds = by.unsigned_abs() / 1000;
        Some(format!(
            "the clock jumped {way} by {seconds} s; nothing of the history is removed for its age until the clock has \
             been steady for a day (is time synchronisation at work?)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_clock_is_trusted_and_a_jump_isnt_for_a_day() {
        let mut clock = Clock::starting(1_000_000_000, 0, Some(999_000_000));
        assert_eq!(clock.look(1_000_010_000, 10_000), Some(10_000));
        assert!(clock.is_trusted() && clock.fault().is_none());
        clock.look(5 * 365 * DAY, 20_000);
        assert!(!clock.is_trusted());
        assert!(clock.fault().expect("said").contains("ahead"));
        clock.look(5 * 365 * DAY + STEADY, 20_000 + STEADY);
        assert!(clock.is_trusted() && clock.fault().is_none());
        clock.look(7, 30_000 + STEADY);
        assert!(clock.fault().expect("said").contains("back"));
    }

    #[test]
    fn at_a_start_the_stored_time_is_what_there_is_to_compare_with() {
        assert!(Clock::starting(10 * DAY, 0, None).is_trusted());
        assert!(Clock::starting(10 * DAY, 0, Some(9 * DAY)).is_trusted());
        assert!(!Clock::starting(10 * DAY, 0, Some(11 * DAY)).is_trusted());
        assert!(!Clock::starting(100 * DAY, 0, Some(9 * DAY)).is_trusted());
    }
}
