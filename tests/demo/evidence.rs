//! What the story measured, whether it held, and the table at its end.

use crate::bank::{self, PARTIES, Way};
use crate::screen::{BAD, FAINT, GOOD, Screen, cell, in_style, table};
use crate::story::others;
use crate::traffic::Business;
use crate::tries::Tried;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

/// The intruder under enforcement.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Intruder {
    /// How many ways it tried.
    pub(crate) attempts: usize,
    /// How many of them were refused by EPERM, and not received.
    pub(crate) denied: usize,
}

/// The median of a connect(), in nanoseconds.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Connect {
    /// Without any program.
    pub(crate) none: u64,
    /// Under enforcement.
    pub(crate) bulkhead: u64,
}

/// What `bulkhead policy suggest` made of what was seen.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Suggested {
    /// Its rules.
    pub(crate) rules: usize,
    /// What was seen and would be denied.
    pub(crate) false_denies: usize,
    /// Pairs and ports that it allows and nobody used.
    pub(crate) surplus: u64,
}

/// A workload's live connections, after its identity was revoked.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Revocation {
    /// Sockets that ended, of both ends.
    pub(crate) sockets: usize,
    /// From the command to the last one's end.
    pub(crate) took: Duration,
}

/// A part of all pairs of identities.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Share {
    /// So many ...
    pub(crate) part: u64,
    /// ... of so many.
    pub(crate) of: u64,
}

impl Share {
    /// From 0 to 1, in thousandths.
    #[expect(clippy::cast_precision_loss, reason = "a share, of far fewer pairs than a double counts exactly")]
    fn number(self) -> f64 {
        (self.part as f64 / self.of.max(1) as f64 * 1000.0).round() / 1000.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} % ({} of {} pairs)", self.number() * 100.0, self.part, self.of)
    }
}

/// The lateral-movement surface, as `bulkhead report` gives it.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Surface {
    /// While nothing is enforced.
    pub(crate) before: Share,
    /// Under enforcement.
    pub(crate) after: Share,
}

/// All of it.
#[derive(Default)]
pub(crate) struct Evidence {
    /// Every way, flat.
    pub(crate) before: Vec<Tried>,
    /// Every way, under enforcement.
    pub(crate) after: Vec<Tried>,
    /// The intruder, under enforcement.
    pub(crate) intruder: Intruder,
    /// What a connect costs.
    pub(crate) connect: Connect,
    /// The rules.
    pub(crate) suggested: Suggested,
    /// The identity that was taken away.
    pub(crate) revocation: Revocation,
    /// What can get to what.
    pub(crate) surface: Surface,
    business: Business,
    took: Duration,
    complaints: Vec<String>,
}

impl Evidence {
    /// Something isn't as the story wants it.
    pub(crate) fn complain(&mut self, what: &str) {
        self.complaints.push(what.to_owned());
    }

    /// The last figures, and what follows from all of them. What is enforced is what was suggested, so each way that
    /// differs from the table of intentions is named here.
    pub(crate) fn close(&mut self, business: Business, took: Duration) {
        (self.business, self.took) = (business, took);
        for t in &self.after {
            if t.received != t.way.intended() {
                let what = if t.received {
                    "gets through by the suggestion, and isn't meant to"
                } else {
                    "doesn't get through"
                };
                self.complaints.push(format!("{} {what} (errno {})", t.way, t.errno));
            }
        }
        if business.lost > 0 {
            self.complaints.push(format!("{} requests of the bank's business were lost", business.lost));
        }
        if business.refused > 0 {
            self.complaints.push(format!("{} requests of the bank's business were refused", business.refused));
        }
    }

    /// Whether the story held.
    pub(crate) fn held(&self) -> bool {
        self.complaints.is_empty()
    }

    /// Requests of the business that were refused, and ways that are meant and didn't get through.
    fn false_denials(&self) -> u64 {
        let ways = self.after.iter().filter(|t| t.way.intended() && !t.received).count();
        self.business.refused + u64::try_from(ways).unwrap_or(u64::MAX)
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "workloads": bank::workloads(),
            "reachable_pairs": {
                "before": bank::pairs(&through(&self.before)),
                "after": bank::pairs(&through(&self.after)),
                "intended": bank::pairs(&intended()),
            },
            "false_denials": self.false_denials(),
            "lost": self.business.lost,
            "intruder": {
                "attempts": self.intruder.attempts,
                "denied": self.intruder.denied,
                "errno": if self.intruder.denied > 0 { "EPERM" } else { "" },
            },
            "connect_ns": { "none": self.connect.none, "bulkhead": self.connect.bulkhead },
            "suggest": {
                "rules": self.suggested.rules,
                "false_denies": self.suggested.false_denies,
                "surplus": self.suggested.surplus,
            },
            "revocation": { "sockets": self.revocation.sockets, "ms": milliseconds(self.revocation.took) },
            "surface": { "before": self.surface.before.number(), "after": self.surface.after.number() },
        })
    }

    /// For people.
    pub(crate) fn show(&self, screen: &mut Screen) {
        screen.step("Before and after", "as the receivers' logs have it");
        let (before, after) = (through(&self.before), through(&self.after));
        let mut reach = table(&["party", "reached, flat", "reaches, enforced"]);
        for (n, party) in PARTIES.iter().enumerate() {
            let from = |ways: &[Way]| others(ways.iter().filter(|w| w.from == n));
            let now = from(&after);
            let now = if now.is_empty() { cell(FAINT, "nobody") } else { cell(GOOD, now.join(", ")) };
            reach.add_row([Cell::new(party.name), cell(BAD, from(&before).len()), now]);
        }
        screen.table(&reach);
        screen.print("");
        let mut sums = table(&["", "flat", "enforced", "meant"]);
        let row = |what: &str, a: usize, b: usize, c: usize| {
            let style = if b == c { GOOD } else { BAD };
            [Cell::new(what), cell(BAD, a), cell(style, b), Cell::new(c)]
        };
        let meant = intended();
        sums.add_row(row(
            "pairs that reach each other",
            bank::pairs(&before),
            bank::pairs(&after),
            bank::pairs(&meant),
        ));
        sums.add_row(row("ways between them", before.len(), after.len(), meant.len()));
        let micros = |ns: u64| format!("{}.{} µs", ns / 1000, ns % 1000 / 100);
        sums.add_row([
            "connect(), median".to_owned(),
            micros(self.connect.none),
            micros(self.connect.bulkhead),
            String::new(),
        ]);
        let percent = |share: Share| format!("{:.1} %", share.number() * 100.0);
        let Surface { before, after } = self.surface;
        sums.add_row(["lateral-movement surface".to_owned(), percent(before), percent(after), String::new()]);
        screen.table(&sums);
        screen.print("");
        screen
            .say("What is enforced is what was suggested, unchanged; `meant` is a table that somebody wrote by hand.");
        let Business { answered, lost, .. } = self.business;
        let style = if lost + self.false_denials() == 0 { GOOD } else { BAD };
        screen.say(&format!(
            "Of {} requests of the bank's business, {}.",
            answered + lost + self.business.refused,
            in_style(style, format!("{lost} were lost and {} falsely denied", self.false_denials()))
        ));
        screen.say(&format!(
            "Of {} tries of the intruder, {}.",
            self.intruder.attempts,
            in_style(GOOD, format!("{} were refused with EPERM", self.intruder.denied))
        ));
        for complaint in self.complaints.iter().take(20) {
            screen.say(&in_style(BAD, format!("But {complaint}.")));
        }
        if self.complaints.len() > 20 {
            screen.say(&in_style(BAD, format!("And {} more like these.", self.complaints.len() - 20)));
        }
        let verdict =
            if self.held() { in_style(GOOD, "The story held") } else { in_style(BAD, "The story did not hold") };
        screen.say(&format!("{verdict}, in {} s.", self.took.as_secs()));
    }
}

/// In tenths.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

fn through(tried: &[Tried]) -> Vec<Way> {
    tried.iter().filter(|t| t.received).map(|t| t.way).collect()
}

fn intended() -> Vec<Way> {
    bank::ways().into_iter().filter(|w| w.intended()).collect()
}
