//! Following orders, and ending by itself what was asked for a while.
//!
//! An order is on disk before it is in force. One that can't be put in force is taken back, so that what is on disk is
//! what holds.

use super::super::clock::{Clock, Deadline};
use super::super::kernel::Kernel;
use super::super::overrides::{self, BREAK_GLASS, BreakGlass, Enforced, Overrides, Revoked, Target};
use super::super::snapshot::Snapshot;
use super::Engine;
use super::draft::Draft;
use crate::identity::SpiffeId;
use crate::policy::{self, PolicySet};
use crate::serve::api::printable;
use crate::serve::orders::{Cutting, Done, Order, Refusal, Request};
use crate::sources::watch::Dirty;
use crate::time::rfc3339;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often what should be known is said again in the log, in looks.
const REMIND: u32 = 30;

type Answer = Result<Done, Refusal>;

fn bad(why: impl Into<String>) -> Refusal {
    Refusal::Bad(why.into())
}

fn failed(e: &anyhow::Error) -> Refusal {
    Refusal::Failed(format!("{e:#}"))
}

impl<K: Kernel> Engine<K> {
    /// Does what is asked, and says what came of it.
    pub(super) fn carry_out(&mut self, Request { order, answer }: Request, publish: &watch::Sender<Arc<Snapshot>>) {
        let done = tokio::task::block_in_place(|| {
            // Whoever orders has the files in mind as they are now, and they may just have changed.
            self.step(Dirty::ALL);
            self.obey(order)
        });
        // Whoever asks for the status next sees what came of it.
        publish.send_replace(Arc::new(self.snapshot()));
        // Whoever asked may have gone; then nobody is told, and it is done all the same.
        drop(answer.send(done));
    }

    /// Does what is asked.
    fn obey(&mut self, order: Order) -> Answer {
        let now = Clock::now();
        match order {
            Order::Revoke { id, reason, dry_run, unseen } => {
                self.revoke(id, printable(reason.as_bytes()), dry_run, unseen, &now)
            }
            Order::Restore { id, again } => {
                let mut next = self.overrides.clone();
                if next.revoked.remove(&id).is_none() {
                    if again {
                        return Ok(self.already(format!("{id} isn't revoked")));
                    }
                    return Err(bad(format!("{id} isn't revoked; `bulkhead status` lists what is")));
                }
                let cut = self.adopt(next)?;
                Ok(self.done(format!("{id} is restored: its rules hold again"), cut))
            }
            Order::BreakGlass { scope, seconds, reason, unseen } => {
                let (length, reason) = (length(seconds)?, printable(reason.as_bytes()));
                let known = &self.inventory.identities;
                let seen = scope == policy::Scope::Node || known.values().any(|f| scope.holds(&f.identity));
                if !seen && !unseen {
                    return Err(bad(format!(
                        "nothing here is in the scope {scope}: `bulkhead status` lists the workloads"
                    )));
                }
                let deadline = Deadline::after(&now, length);
                let text = format!("nothing is enforced for {scope} until {}", rfc3339(deadline.until));
                let mut next = self.overrides.clone();
                next.break_glass.insert(scope.clone(), BreakGlass { deadline, reason: reason.clone() });
                let cut = self.adopt(next).map_err(|e| match (e, scope == policy::Scope::Node) {
                    (Refusal::Failed(why), false) => Refusal::Failed(format!("{why}; `--scope node` needs no room")),
                    (other, _) => other,
                })?;
                tracing::warn!(scope = scope.to_string(), reason, "break-glass: {text}");
                Ok(self.done(text, cut))
            }
            Order::EndBreakGlass { again } => {
                if self.overrides.break_glass.is_empty() {
                    if again {
                        return Ok(self.already("break-glass isn't on".to_owned()));
                    }
                    return Err(bad("break-glass isn't on"));
                }
                let cut = self.adopt(Overrides { break_glass: BTreeMap::new(), ..self.overrides.clone() })?;
                tracing::warn!("break-glass was ended by command: enforcing again");
                Ok(self.done("break-glass is over: enforcing again".to_owned(), cut))
            }
            Order::Enforce { target, seconds, dry_run, unseen } => self.enforce(target, seconds, dry_run, unseen, &now),
            Order::Confirm { again } => {
                let mut next = self.overrides.clone();
                let Some((target, _)) = next.trial() else {
                    if again {
                        return Ok(self.already("no trial of enforcement is going on".to_owned()));
                    }
                    return Err(bad("no trial of enforcement is going on"));
                };
                let target = target.clone();
                if let Some(e) = next.enforced.get_mut(&target) {
                    e.confirm_by = None;
                }
                let cut = self.adopt(next)?;
                Ok(self
                    .done(format!("{target} stays enforced; write that into the files, for whoever reads them"), cut))
            }
            Order::Revert { target, again } => {
                let mut next = self.overrides.clone();
                let on_trial = next.trial().map(|(t, _)| t.clone());
                let Some(target) = target.or(on_trial) else {
                    if again {
                        return Ok(self.already("no trial of enforcement is going on".to_owned()));
                    }
                    return Err(bad("no trial of enforcement is going on; to turn back what was confirmed, name it"));
                };
                if next.enforced.remove(&target).is_none() {
                    if again {
                        return Ok(self.already(format!("{target} isn't turned to enforce by command")));
                    }
                    return Err(bad(format!("{target} wasn't turned to enforce by command")));
                }
                let cut = self.adopt(next)?;
                Ok(self.done(format!("{target} is as the files say again"), cut))
            }
            Order::TakeOff => Err(bad("this agent can't take itself off: stop it, then run `bulkhead uninstall`")),
            Order::Live { policies, enforce } => {
                let documents = policies.iter().flat_map(|(file, text)| policy::read(file, text));
                let (set, findings) = PolicySet::assemble(documents, &PolicySet::default());
                if let Some(first) = findings.first() {
                    return Err(bad(first.to_string()));
                }
                let mut next = self.overrides.clone();
                if let Some(target) = enforce {
                    next.enforced.insert(target, Enforced { since: now.wall, confirm_by: None });
                }
                let cut = self.preview(set, &next)?;
                Ok(self.done(String::new(), Some(cut)))
            }
        }
    }

    fn revoke(&mut self, id: SpiffeId, reason: String, dry_run: bool, unseen: bool, now: &Clock) -> Answer {
        let seen = self.inventory.identities.values().any(|f| f.identity.ids.contains(&id));
        if !seen && !unseen {
            return Err(bad(format!("no workload and no endpoint here has the ID {id}: `bulkhead status` lists them")));
        }
        let mut next = self.overrides.clone();
        next.revoked.insert(id.clone(), Revoked { since: now.wall, reason: reason.clone() });
        if dry_run {
            let cut = self.preview(self.policies.set.clone(), &next)?;
            let text = format!("{id} isn't revoked: this is what it would cut");
            return Ok(Done { unseen: !seen, ..self.done(text, Some(cut)) });
        }
        let already = self.overrides.revoked.contains_key(&id);
        let cut = self.adopt(next)?;
        tracing::warn!(id = id.as_str(), reason, epoch = self.epoch(), "an ID was revoked");
        let text = format!("{id} is revoked until `bulkhead restore {id}`");
        Ok(Done { already, unseen: !seen, ..self.done(text, cut) })
    }

    fn enforce(&mut self, target: Target, seconds: u64, dry_run: bool, unseen: bool, now: &Clock) -> Answer {
        let length = length(seconds)?;
        let seen = target.exists(&self.policies.set, &self.inventory);
        if !seen && !unseen {
            return Err(bad(format!("there is no {target} here: `bulkhead status` lists workloads and policies")));
        }
        let mut next = self.overrides.clone();
        if let Some((other, by)) = next.trial().filter(|(t, _)| **t != target) {
            let by = rfc3339(by.until);
            return Err(bad(format!("{other} is on trial until {by}: confirm or revert that first")));
        }
        let deadline = Deadline::after(now, length);
        let text = format!(
            "{target} is enforced, and turned back at {} unless `bulkhead enforce --confirm` comes",
            rfc3339(deadline.until)
        );
        next.enforced.insert(target.clone(), Enforced { since: now.wall, confirm_by: Some(deadline) });
        if dry_run {
            let cut = self.preview(self.policies.set.clone(), &next)?;
            let text = format!("{target} isn't turned to enforce: this is what it would cut");
            return Ok(Done { unseen: !seen, ..self.done(text, Some(cut)) });
        }
        let cut = self.adopt(next)?;
        tracing::warn!("{text}");
        Ok(Done { unseen: !seen, ..self.done(text, cut) })
    }

    fn done(&self, text: String, cut: Option<Cutting>) -> Done {
        Done { text, epoch: self.epoch(), cut, ..Done::default() }
    }

    /// There was nothing to do.
    fn already(&self, text: String) -> Done {
        Done { already: true, ..self.done(text, None) }
    }

    /// Puts this in force in the place of what was commanded before, or nothing.
    fn adopt(&mut self, next: Overrides) -> Result<Option<Cutting>, Refusal> {
        next.store(&self.state).map_err(|e| failed(&e))?;
        let last = std::mem::replace(&mut self.overrides, next);
        self.put_in_force().map_err(|e| {
            self.overrides = last;
            if let Err(e) = self.overrides.store(&self.state) {
                tracing::error!("what is on disk isn't what holds: {e:#}");
            }
            failed(&e.context("nothing has changed"))
        })
    }

    /// What these policies and orders would cut.
    fn preview(&mut self, policies: PolicySet, overrides: &Overrides) -> Result<Cutting, Refusal> {
        let rules = Arc::clone(&self.rules);
        let Draft { assembled, set } = self.draft(policies, overrides).map_err(|e| failed(&e))?;
        let compiled = self.compile(&set, &assembled.inventory);
        let names = self.names_now();
        self.rules = rules;
        self.would_cut(&compiled.image, &names).map_err(|e| failed(&e))
    }

    /// Ends what is over, and breaks the glass if root asked for it by a file. Gives whether anything changed.
    ///
    /// # Errors
    /// When the state folder can't be read or written.
    pub(super) fn tend(&mut self, now: &Clock) -> anyhow::Result<bool> {
        let mut next = self.overrides.clone();
        let file = self.state.dated_text(BREAK_GLASS)?;
        if let Some((text, written)) = &file {
            next.from_file(text, *written, now);
            tracing::warn!("the file {BREAK_GLASS} in the state folder asks for break-glass");
        }
        for ended in next.sweep(now) {
            tracing::warn!("{ended}");
        }
        if next == self.overrides && file.is_none() {
            return Ok(false);
        }
        next.store(&self.state)?;
        self.overrides = next;
        if file.is_some() {
            self.state.drop_text(BREAK_GLASS)?;
        }
        Ok(true)
    }

    /// The same at each look, and every so often a reminder.
    pub(super) fn tend_or_tell(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(REMIND) {
            for notice in self.overrides.notices() {
                tracing::warn!("{notice}");
            }
        }
        let now = Clock::now();
        let expired = self.expires.is_some_and(|t| t <= now.wall);
        if expired {
            tracing::warn!("a policy or a rule has expired");
        }
        match self.tend(&now) {
            Ok(changed) => changed || expired,
            Err(e) => {
                tracing::error!("what was commanded can't be looked after: {e:#}");
                expired
            }
        }
    }
}

/// A length that may be asked for.
fn length(seconds: u64) -> Result<Duration, Refusal> {
    let length = Duration::from_secs(seconds);
    if length.is_zero() || length > overrides::LONGEST {
        let hours = overrides::LONGEST.as_secs() / 3600;
        return Err(bad(format!("{seconds} s can't be asked for: at least a second and at most {hours} hours")));
    }
    Ok(length)
}
