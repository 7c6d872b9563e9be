//! What is done in a hurry: an identity taken away, and all enforcement lifted; and both undone.

use super::{Story, intrusion, through};
use crate::bank::{BATCH, BROKEN_INTO, Proto, Way};
use crate::evidence::Revocation;
use crate::held::{self, End, Held};
use crate::screen::{BAD, GOOD, in_style};
use crate::{bank, flows, interrupt, traffic, tries};
use anyhow::{Context as _, Result};
use std::time::{Duration, Instant};

/// How many connections are held along each way.
const EACH: usize = 20;
/// How long a revocation's cuts are waited for.
const CUT_WITHIN: Duration = Duration::from_secs(5);
/// How long break-glass may take, in either direction.
const SWITCHED_WITHIN: Duration = Duration::from_secs(5);

impl Story<'_> {
    pub(super) fn revoke(&mut self) -> Result<()> {
        self.screen.step("Revoke", &format!("the identity of {BATCH} is withdrawn: its keys have leaked"));
        let batch = |w: &Way| w.from == bank::index(BATCH) && w.proto == Proto::Tcp && w.intended();
        let ways: Vec<Way> = bank::ways().into_iter().filter(batch).collect();
        let mut held = match Held::open(&self.estate, &ways, EACH) {
            Ok(held) => held,
            Err(e) => {
                self.evidence.complain(&format!("nothing could be revoked: {e:#}"));
                return Ok(());
            }
        };
        let id = flows::id(BATCH);
        self.screen.command(&format!("bulkhead revoke {id} --reason \"leaked keys\""));
        let issued = held::now();
        let said = self.agent.ask(&["revoke", &id, "--reason", "leaked keys"])?;
        let until = Instant::now() + CUT_WITHIN;
        let ends = interrupt::wait("a revocation cuts", 2 * CUT_WITHIN, || {
            let ends = held.ends(&mut self.estate);
            Ok((ends.len() >= held.count() || Instant::now() > until).then_some(ends))
        })?;
        self.screen.say(&said.lines().map(|l| format!("  {l}\n")).collect::<String>());
        let last = ends.iter().map(|e| e.at.saturating_sub(issued)).max().unwrap_or_default();
        self.evidence.revocation = Revocation { sockets: ends.len(), took: last };
        if ends.len() < held.count() {
            self.evidence.complain(&format!("{} of {} sockets are alive", held.count() - ends.len(), held.count()));
        }
        let strange = |e: &&End| ![libc::ECONNABORTED, libc::ECONNRESET].contains(&e.errno);
        if let Some(End { errno, .. }) = ends.iter().find(strange) {
            self.evidence.complain(&format!("a connection that was cut ended with errno {errno}"));
        }
        self.screen.say(&format!(
            "{} of its live TCP connections ended by an error, at both ends:\nthe last one {} after the command.",
            in_style(GOOD, format!("{} of {} sockets", ends.len(), held.count())),
            in_style(GOOD, format!("{} ms", last.as_millis())),
        ));
        let (answered, troubles) = traffic::job(&self.estate)?;
        if answered > 0 {
            self.evidence.complain(&format!("{answered} requests of a revoked identity were answered"));
        }
        let refused = troubles.iter().filter(|t| t.contains("not permitted")).count();
        self.screen.say(&format!("Its job, tried now: {refused} of {} requests get EPERM.", troubles.len()));
        self.screen.command(&format!("bulkhead restore {id}"));
        self.agent.ask(&["restore", &id])?;
        self.batch_job("restored")?;
        self.meanwhile("revoke");
        Ok(())
    }

    pub(super) fn break_glass(&mut self) -> Result<()> {
        self.screen.step("Break-glass", "something is wrong and nobody knows what: enforce nothing, now");
        self.screen.command("bulkhead break-glass --scope node --for 5m --reason \"checkout is down\"");
        let issued = Instant::now();
        self.agent.ask(&["break-glass", "--scope", "node", "--for", "5m", "--reason", "checkout is down"])?;
        let opened = self.switched(issued, true)?;
        let ways = intrusion();
        let open = through(&tries::all(&mut self.estate, &ways, |_| true, Some("intruder"))?).len();
        self.tell(
            opened,
            &format!("{open} of {} ways that no rule allows get through", ways.len()),
            open == ways.len(),
        );
        self.meanwhile("break-glass");
        self.screen.command("bulkhead break-glass --end");
        let issued = Instant::now();
        self.agent.ask(&["break-glass", "--end"])?;
        let closed = self.switched(issued, false)?;
        let tried = tries::all(&mut self.estate, &ways, |_| false, Some("intruder"))?;
        let refused = tried.iter().filter(|t| !t.received && t.errno == libc::EPERM).count();
        self.tell(closed, &format!("{refused} of {} get EPERM again", ways.len()), refused == ways.len());
        self.meanwhile("break-glass");
        Ok(())
    }

    /// Waits until the first of the intruder's ways is open, or isn't any more; says how long that took.
    fn switched(&mut self, issued: Instant, open: bool) -> Result<Option<Duration>> {
        let way = intrusion().into_iter().next().context(format!("{BROKEN_INTO} isn't meant to reach everybody"))?;
        interrupt::wait("the intruder's try", 2 * SWITCHED_WITHIN, || {
            let tried = tries::all(&mut self.estate, &[way], |_| false, Some("intruder"))?;
            let took = issued.elapsed();
            let there = tried.iter().all(|t| t.received == open);
            Ok((there || took > SWITCHED_WITHIN).then_some((took <= SWITCHED_WITHIN).then_some(took)))
        })
    }

    /// Says what came of it.
    fn tell(&mut self, took: Option<Duration>, what: &str, all: bool) {
        let good = all && took.is_some();
        if !good {
            self.evidence.complain(&format!("break-glass: {what}"));
        }
        let took = took.map_or("not in time".to_owned(), |t| format!("after {} ms", t.as_millis()));
        self.screen.say(&format!("{}: {}.", took, in_style(if good { GOOD } else { BAD }, what)));
    }
}
