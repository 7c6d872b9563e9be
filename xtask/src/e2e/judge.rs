//! What the attempts of a step come to, held against what was meant. Pure.
//!
//! A step changes what is meant to work, or only does harm. Its time is
//!
//! ```text
//! last step's end ─── start ─── changed ─────── settled ─── end
//!         before          either        either or        after
//! ```
//! Up to `start` the former table holds. From `start` to `settled`, five seconds after the change was made, a pair must
//! do what both tables say where they agree; where they don't, either is fine, and the last attempt that went the old way
//! tells how long the change took. From then on the new table holds, without exception.
//!
//! A connection that was opened before `start` and that both tables allow must still work at `end`; of one that the new
//! table denies nothing may arrive from `settled` on; of one that both deny nothing at all.

use std::collections::BTreeSet;

use super::estate::Truth;
use super::grid::{Attempt, Kept, RECENT, Way};

/// How long a change may take to be in force.
pub(super) const GRACE: u64 = 5_000_000;

/// A connection that works has had a message within this time; what was lost in between is sent again by then.
const SILENT: u64 = 4_000_000;

/// How much of either kind is told in words.
const SHOWN: usize = 12;

/// The moments of a step, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) last: u64,
    pub(super) start: u64,
    pub(super) changed: u64,
    pub(super) end: u64,
}

impl Times {
    pub(super) fn settled(&self) -> u64 {
        self.changed + GRACE
    }
}

/// What came of a step.
#[derive(Clone, Default, Debug)]
pub(super) struct Found {
    /// Ways that were tried after the change had settled.
    pub(super) ways: usize,
    /// Attempts that count.
    pub(super) attempts: usize,
    /// Attempts that arrived where they never should have.
    pub(super) false_allows: usize,
    /// Attempts that should have arrived, and didn't.
    pub(super) false_denies: usize,
    /// Attempts during the change that were meant to arrive before and after it, and didn't.
    pub(super) lost: usize,
    /// How long after the change the last attempt went the old way, in microseconds.
    pub(super) convergence: u64,
    /// Connections that last, opened before the step and allowed before and after it.
    pub(super) held: usize,
    /// Those of them that broke, or fell silent.
    pub(super) held_lost: usize,
    /// Connections on which something arrived after the change had settled, though the new table denies them.
    pub(super) held_leaks: usize,
    /// The first of what arrived and never should have, in words.
    pub(super) leaks: Vec<String>,
    /// The first of what didn't arrive, of which there may be very much.
    pub(super) missing: Vec<String>,
}

/// One attempt with all that is needed to judge it.
pub(super) struct Tried<'a> {
    pub(super) sent: u64,
    pub(super) way: &'a Way,
    pub(super) attempt: &'a Attempt,
    pub(super) from: &'a str,
    /// The workloads of those who heard it.
    pub(super) heard: Vec<&'a str>,
    /// Silence says nothing: the sender or whoever is meant was ended or begun during the step, or may be the same.
    pub(super) shaky: bool,
    /// The step took enforcement away where both ends are, so what arrives there says nothing.
    pub(super) unguarded: bool,
}

/// Judges a step.
pub(super) fn judge<'a>(
    times: Times,
    before: &Truth,
    after: &Truth,
    attempts: impl Iterator<Item = Tried<'a>>,
) -> Found {
    let mut found = Found::default();
    let mut ways = BTreeSet::new();
    for a in attempts.filter(|a| a.sent >= times.last && a.sent < times.end) {
        found.attempts += 1;
        let during = a.sent >= times.start && a.sent < times.settled();
        let (old, new) = match a.sent {
            sent if sent < times.start => (before, before),
            _ if during => (before, after),
            _ => (after, after),
        };
        let answered = a.attempt.outcome.as_deref() == Some("heard");
        let meant = (old.allows(a.from, a.way.to), new.allows(a.from, a.way.to));
        // The sender's word counts where the receiver's was lost with it.
        let arrived = !a.heard.is_empty() || answered;
        let mut reached = a.heard.clone();
        if a.heard.is_empty() && answered {
            reached.push(a.way.to);
        }
        for to in reached {
            if !old.allows(a.from, to) && !new.allows(a.from, to) && !a.unguarded {
                found.false_allows += 1;
                keep(&mut found.leaks, || a.words("reached", to, times));
            }
        }
        // One that is still under way says nothing yet, unless it arrived.
        if !arrived && a.attempt.outcome.is_none() {
            continue;
        }
        if a.sent >= times.settled() {
            ways.insert(a.way);
        }
        if meant == (true, true) && !arrived && !a.shaky {
            if during {
                found.lost += 1;
                keep(&mut found.missing, || a.words("lost", a.way.to, times));
            } else {
                found.false_denies += 1;
                keep(&mut found.missing, || a.words("kept from", a.way.to, times));
            }
        }
        if during && a.sent >= times.changed && meant.0 != meant.1 && arrived != meant.1 && !a.shaky {
            found.convergence = found.convergence.max(a.sent - times.changed);
        }
    }
    found.ways = ways.len();
    found
}

/// One connection that lasts, with all that is needed to judge it.
pub(super) struct Lasting<'a> {
    pub(super) opened: u64,
    pub(super) way: &'a Way,
    pub(super) kept: &'a Kept,
    pub(super) from: &'a str,
    /// The workload where its messages arrived.
    pub(super) at: &'a str,
    pub(super) shaky: bool,
    /// As in [`Tried`].
    pub(super) unguarded: bool,
}

impl Found {
    /// Adds the connections that last.
    pub(super) fn add_lasting<'a>(
        &mut self,
        times: Times,
        before: &Truth,
        after: &Truth,
        all: impl Iterator<Item = Lasting<'a>>,
    ) {
        let is_over = |c: &Lasting<'_>| c.kept.broke.as_deref() == Some("unwanted");
        for c in all.filter(|c| c.kept.last > 0 && !is_over(c)) {
            let (was, is) = (before.allows(c.from, c.at), after.allows(c.from, c.at));
            let never = !was && !is && c.kept.last >= times.last && !c.unguarded;
            let recent = c.kept.last + RECENT >= times.last;
            let still = !is && c.kept.last >= times.settled() && !c.unguarded;
            if still || never {
                self.held_leaks += 1;
                keep(&mut self.leaks, || c.words("still reaches", times));
            } else if was && is && c.opened < times.start && recent && !c.shaky {
                self.held += 1;
                if c.kept.broke.is_some() || c.silent(times) > SILENT {
                    self.held_lost += 1;
                    keep(&mut self.missing, || c.words("lost its connection to", times));
                }
            }
        }
    }
}

impl Tried<'_> {
    fn words(&self, word: &str, to: &str, times: Times) -> String {
        let at = (i128::from(self.sent) - i128::from(times.changed)) / 1000;
        let outcome = self.attempt.outcome.as_deref().unwrap_or("under way");
        format!("{} {word} {to}: {} ({outcome}) at {at} ms", self.from, self.way)
    }
}

impl Lasting<'_> {
    fn words(&self, words: &str, times: Times) -> String {
        let why = self.kept.broke.as_deref().unwrap_or("no error");
        let silent = self.silent(times) / 1000;
        format!("{} {words} {}: {} ({why}), {silent} ms before the end", self.from, self.at, self.way)
    }

    /// For how long nothing has arrived.
    fn silent(&self, times: Times) -> u64 {
        times.end.saturating_sub(self.kept.last)
    }
}

/// Adds a line, unless there are enough.
fn keep(lines: &mut Vec<String>, line: impl FnOnce() -> String) {
    if lines.len() < SHOWN {
        lines.push(line());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { last: 0, start: 1_000_000, changed: 2_000_000, end: 9_000_000 };

    fn judged(sent: u64, to: &'static str, heard: Option<&'static str>, before: &Truth, after: &Truth) -> Found {
        let way = Way {
            from: "a-1".to_owned(),
            to,
            by: to.to_owned(),
            protocol: "tcp",
            address: String::new(),
            masked: false,
        };
        let attempt = Attempt { outcome: Some("silence".to_owned()), heard: Vec::new(), from: Vec::new() };
        let heard = heard.into_iter().collect();
        let tried = Tried { sent, way: &way, attempt: &attempt, from: "web", heard, shaky: false, unguarded: false };
        judge(TIMES, before, after, std::iter::once(tried))
    }

    #[test]
    fn a_change_may_take_five_seconds_and_what_it_doesnt_concern_none() {
        let (all, some) = (Truth::All, Truth::intended());
        // From everything to what is intended: web may not reach the database any more.
        let late = judged(6_999_999, "db", Some("db"), &all, &some);
        assert_eq!((late.false_allows, late.convergence), (0, 4_999_999));
        assert_eq!(judged(7_000_000, "db", Some("db"), &all, &some).false_allows, 1);
        assert_eq!(judged(7_000_000, "db", None, &all, &some).false_denies, 0);
        // Allowed before and after.
        assert_eq!(judged(3_000_000, "cart", None, &all, &some).lost, 1);
        assert_eq!(judged(8_000_000, "cart", None, &all, &some).false_denies, 1);
        assert_eq!(judged(500_000, "db", None, &all, &some).false_denies, 1, "before the change the old table holds");
        // Denied before and after.
        assert_eq!(judged(3_000_000, "db", Some("db"), &some, &some).false_allows, 1);
        let right = judged(8_000_000, "cart", Some("cart"), &some, &some);
        assert_eq!((right.false_allows, right.false_denies, right.ways), (0, 0, 1));
    }

    #[test]
    fn a_connection_lasts_where_it_is_allowed_and_ends_where_it_isnt() {
        let way = Way {
            from: "a-1".to_owned(),
            to: "db",
            by: "db-0".to_owned(),
            protocol: "hold",
            address: String::new(),
            masked: false,
        };
        let judged = |from: &str, last: u64, broke: Option<&str>, before: &Truth| {
            let kept = Kept { last, at: "db-0".to_owned(), broke: broke.map(str::to_owned) };
            let lasting =
                Lasting { opened: 500_000, way: &way, kept: &kept, from, at: "db", shaky: false, unguarded: false };
            let mut found = Found::default();
            found.add_lasting(TIMES, before, &Truth::intended(), std::iter::once(lasting));
            (found.held, found.held_lost, found.held_leaks)
        };
        let (all, some) = (Truth::All, Truth::intended());
        assert_eq!(judged("cart", 8_900_000, None, &some), (1, 0, 0));
        assert_eq!(judged("cart", 8_900_000, Some("reset"), &some), (1, 1, 0));
        assert_eq!(judged("cart", 4_000_000, Some("unwanted"), &some), (0, 0, 0), "its opener was told to end it");
        assert_eq!(judged("cart", 4_000_000, None, &all), (1, 1, 0), "silent for five seconds");
        assert_eq!(judged("web", 6_900_000, Some("reset"), &all), (0, 0, 0), "cut in time");
        assert_eq!(judged("web", 7_000_000, None, &all), (0, 0, 1));
        assert_eq!(judged("web", 500_000, None, &some), (0, 0, 1), "it was denied already");
    }

    #[test]
    fn what_counts_is_who_heard_it() {
        let some = Truth::intended();
        let gone_astray = judged(8_000_000, "cart", Some("db"), &some, &some);
        assert_eq!(gone_astray.false_allows, 1, "the address was somebody else's");
    }
}
