//! Plays the tricks, first with nothing enforced, then with everything denied, and compares.
//!
//! A trick counts only if it got data through in this same run while nothing was enforced; else it is unavailable. What
//! is "contained" is decided by the receivers' logs, after all senders have had their turn; the kernel's own record
//! (events) then says by which hook. So a denial without effect isn't taken for containment, nor a silent failure for
//! a denial.

use super::report::{Outcome, Report, Row};
use super::tricks::{self, Ground, PATIENCE, Stage, Trick};
use anyhow::{Context as _, Result};
use bulkhead_common::{Hook, Reason};
use std::time::{Duration, Instant};

/// What puts the walls up and takes them down.
pub trait Enforcement {
    /// Takes everything off: sockets made from now on are older than the programs.
    fn off(&mut self) -> Result<()>;
    /// Denies the workloads everything, with one hook left out if so asked.
    fn deny_all(&mut self, ground: &Ground, without: Option<Hook>) -> Result<()>;
    /// The denials since the last call, the oldest first.
    fn denials(&mut self) -> Result<Vec<Denial>>;
}

/// What the kernel recorded of a denial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denial {
    /// The hook that denied.
    pub hook: Hook,
    /// Why.
    pub reason: Reason,
    /// The process that it concerned; 0: not known.
    pub pid: u32,
    /// The source's port; 0: none or not known.
    pub sport: u16,
    /// The destination's port; 0: none.
    pub dport: u16,
}

/// How long after the last sender's turn a receiver may still get something.
const SETTLE: Duration = Duration::from_millis(300);
/// How long the record of a denial may take to come.
const RECORDED_WITHIN: Duration = Duration::from_millis(60);

/// A run of the probe.
pub struct Probe<'e, E> {
    enforcement: &'e mut E,
    ground: Ground,
    number: u16,
}

/// What became of one trick in one round.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Played {
    outcome: Outcome,
    by: Option<Denial>,
    note: String,
}

impl<'e, E: Enforcement> Probe<'e, E> {
    /// Makes the workloads.
    pub fn new(enforcement: &'e mut E) -> Result<Self> {
        Ok(Self { enforcement, ground: Ground::new()?, number: 0 })
    }

    /// Plays every trick. With `each_hook`, then once more with each hook left out in turn.
    pub fn run(&mut self, each_hook: bool) -> Result<Report> {
        let result = self.rounds(each_hook);
        // Also after an error nothing stays enforced.
        self.enforcement.off()?;
        result
    }

    fn rounds(&mut self, each_hook: bool) -> Result<Report> {
        let all = tricks::all();
        self.enforcement.off()?;
        let free: Vec<Result<(), String>> = all.iter().map(|trick| self.freely(trick)).collect();
        let available: Vec<Trick> = all.iter().zip(&free).filter(|(_, f)| f.is_ok()).map(|(t, _)| *t).collect();
        let played = self.round(&available, None)?;

        let mut rest = played.iter();
        let rows = all.iter().zip(&free).filter_map(|(trick, free)| match free {
            Ok(()) => rest.next().map(|p| Row::of(trick, p.outcome, p.by, p.note.clone())),
            Err(why) => Some(Row::of(trick, Outcome::Unavailable, None, why.clone())),
        });
        let mut report = Report { rows: rows.collect(), hooks: Vec::new() };
        if each_hook {
            for hook in Hook::ALL.iter().copied().filter(|h| h.decides()) {
                report.hooks.push((hook, self.flips(hook, &available, &played)?));
            }
        }
        Ok(report)
    }

    /// Plays one trick with nothing enforced.
    fn freely(&mut self, trick: &Trick) -> Result<(), String> {
        let nonce = next(&mut self.number, trick);
        let mut stage = trick.set_up(&self.ground, self.number).map_err(|e| format!("{e:#}"))?;
        let told = stage.play(&nonce);
        match (stage.got_through(&nonce, PATIENCE), told) {
            (true, _) => Ok(()),
            (false, Ok(())) => Err("nothing arrives even if nothing is enforced".into()),
            (false, Err(failure)) => Err(failure.to_string()),
        }
    }

    /// Sets all of these up, denies everything, plays them one after the other, and reads the receivers' logs.
    fn round(&mut self, tricks: &[Trick], without: Option<Hook>) -> Result<Vec<Played>> {
        self.enforcement.off()?;
        // Each with its nonce.
        let mut stages = Vec::new();
        for trick in tricks {
            let nonce = next(&mut self.number, trick);
            stages.push((nonce, trick.set_up(&self.ground, self.number)));
        }
        self.enforcement.deny_all(&self.ground, without).context("can't deny everything")?;

        let mut told = Vec::new();
        for (nonce, stage) in &mut stages {
            self.enforcement.denials()?;
            told.push(match stage {
                Ok(stage) => (stage.play(nonce), recorded(self.enforcement, stage)?),
                Err(_) => (Ok(()), None),
            });
        }
        let deadline = Instant::now() + SETTLE;
        let played = stages.iter_mut().zip(told).map(|((nonce, stage), (told, by))| {
            let left = deadline.saturating_duration_since(Instant::now());
            let got_through = stage.as_mut().map(|stage| stage.got_through(nonce, left));
            let (outcome, by, note) = match got_through {
                Err(e) => (Outcome::Unavailable, None, format!("the second time: {e:#}")),
                Ok(true) => (Outcome::NotContained, None, String::new()),
                Ok(false) => (Outcome::Contained, by, told.err().map(|f| f.to_string()).unwrap_or_default()),
            };
            Played { outcome, by, note }
        });
        let played = played.collect();
        // The senders end before the walls come down: nothing that was held back arrives late.
        drop(stages);
        self.enforcement.off()?;
        Ok(played)
    }

    /// What changes for the tricks that this hook contains when it is left out.
    fn flips(&mut self, hook: Hook, tricks: &[Trick], before: &[Played]) -> Result<Vec<String>> {
        let concerned = |p: &Played| p.by.is_some_and(|d| d.hook == hook);
        let (tricks, before): (Vec<_>, Vec<_>) = tricks.iter().zip(before).filter(|(_, p)| concerned(p)).unzip();
        let after = self.round(&tricks, Some(hook))?;
        let by = |p: &Played| match (p.outcome, p.by) {
            (Outcome::Contained, Some(denial)) => format!("contained by {}", denial.hook.as_str()),
            (outcome, _) => outcome.as_str().to_owned(),
        };
        let changed = before.iter().zip(&after).zip(&tricks).filter_map(|((before, after), trick)| {
            let (before, after) = (by(before), by(after));
            (before != after).then(|| format!("{} {}: {after}", trick.name, trick.family.as_str()))
        });
        Ok(changed.collect())
    }
}

/// A nonce that was never sent before, and the next stage's number.
fn next(number: &mut u16, trick: &Trick) -> Vec<u8> {
    *number = number.wrapping_add(1);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("<{} {} {number} {now}>", trick.name, std::process::id()).into_bytes()
}

/// The first denial that this stage caused, waiting a little for it.
fn recorded<E: Enforcement>(enforcement: &mut E, stage: &Stage<'_>) -> Result<Option<Denial>> {
    let deadline = Instant::now() + RECORDED_WITHIN;
    loop {
        let denials = enforcement.denials()?;
        let own = denials.into_iter().find(|d| stage.concerns(d.pid, d.sport, d.dport));
        if own.is_some() || Instant::now() > deadline {
            return Ok(own);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests;
