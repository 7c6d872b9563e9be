//! The story: flat, observe, suggest, audit, enforce, an identity taken away, break-glass, and what all that changed.
//!
//! Rules come from nobody's hand: what is enforced is what `bulkhead policy suggest` made of the agent's history. It is
//! held against the hand-written table of intentions ([`bank`]), way by way.
//!
//! What goes wrong on the way is a complaint, not an end: the story goes on and says at its end that it didn't hold.

mod learn;
mod trust;

use crate::agent::Agent;
use crate::bank::{self, BROKEN_INTO, PARTIES, Way};
use crate::estate::Estate;
use crate::evidence::{Evidence, Intruder};
use crate::flows::{self, Flow};
use crate::screen::{BAD, FAINT, GOOD, Screen, in_style};
use crate::traffic::{Business, Traffic};
use crate::tries::{self, Tried};
use crate::{interrupt, latency, look};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the counters may take to show up: the agent reads them every other second.
const SHOWN_WITHIN: Duration = Duration::from_secs(12);

/// What it is told with.
pub(crate) struct Files<'a> {
    /// The agent's binary.
    pub(crate) program: &'a Path,
    /// The folder of its files.
    pub(crate) shipped: &'a Path,
    /// Where pictures are drawn.
    pub(crate) pictures: &'a Path,
}

/// Everything that the steps share. Dropped in this order: first the agent with its programs, the estate at last.
struct Story<'a> {
    screen: &'a mut Screen,
    pictures: &'a Path,
    agent: Agent,
    traffic: Traffic,
    estate: Estate,
    evidence: Evidence,
}

/// Tells it from the beginning to the end.
pub(crate) fn tell(screen: &mut Screen, files: &Files<'_>, keep: bool) -> Result<Evidence> {
    let Files { program, shipped, pictures } = *files;
    let began = Instant::now();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    screen.print(&format!("A small bank on this kernel (Linux {kernel})"));
    screen.doing("making cgroups and network namespaces");
    let estate = Estate::build()?;
    let traffic = Traffic::start(&estate)?;
    let agent = Agent::prepare(program, shipped, &estate.cgroup()?)?;
    let mut story = Story { screen, pictures, agent, traffic, estate, evidence: Evidence::default() };
    story.introduce();
    story.flat()?;
    story.observe()?;
    story.suggest()?;
    story.audit()?;
    story.enforce()?;
    story.revoke()?;
    story.break_glass()?;
    let Story { screen, agent, mut traffic, estate, mut evidence, .. } = story;
    let business = traffic.stop()?;
    for trouble in traffic.troubles() {
        evidence.complain(&format!("the bank's business was disturbed: {trouble}"));
    }
    evidence.close(business, began.elapsed());
    evidence.show(screen);
    if keep {
        look::around(screen, &estate, &agent)?;
    }
    screen.doing("taking everything away again");
    // The programs first, while the cgroups that they are attached to still exist.
    drop(agent);
    drop(estate);
    screen.done();
    Ok(evidence)
}

impl Story<'_> {
    fn introduce(&mut self) {
        let own = PARTIES.iter().filter(|p| p.home == bank::Home::Own).count();
        self.screen.say(&format!(
            "{own} workloads in network namespaces of their own, {} services in the host's, a card network\n\
             outside. TCP and UDP, IPv4 and IPv6. The bank's business goes on through every step.",
            bank::workloads() - own
        ));
    }

    fn flat(&mut self) -> Result<()> {
        self.screen.step("Flat", "nothing is loaded");
        self.screen.doing("sending along every way");
        let ways = bank::ways();
        let before = tries::all(&mut self.estate, &ways, |_| true, None)?;
        let through = through(&before);
        let (pairs, of) = (bank::pairs(&through), bank::pairs(&ways));
        self.screen.say(&format!(
            "{} ordered pairs of parties reach each other: {} of {} ways (TCP, UDP, IPv4, IPv6).",
            in_style(BAD, format!("{pairs} of {of}")),
            through.len(),
            ways.len()
        ));
        let reached = others(through.iter().filter(|w| PARTIES[w.from].name == BROKEN_INTO));
        self.screen.say(&format!(
            "An intruder in {BROKEN_INTO} reaches {} others:\n{}.",
            in_style(BAD, format!("all {}", reached.len())),
            reached.join(", ")
        ));
        if through.len() < ways.len() {
            self.evidence.complain("not everything was reachable before Bulkhead came");
        }
        self.screen.doing("timing connects");
        self.evidence.connect.none = latency::median_connect(&self.estate)?;
        self.evidence.before = before;
        self.meanwhile("flat");
        Ok(())
    }

    fn enforce(&mut self) -> Result<()> {
        self.screen.step("Enforce", "what no rule allows is refused");
        let denials = self.agent.follow(&["observe", "--follow", "--verdict", "denied", "--json"], "denials")?;
        self.screen.command("sed -i 's/mode: audit/mode: enforce/' policies/*");
        self.agent.set_mode("audit", "enforce")?;
        self.screen.command("bulkhead enforce --confirm-within 5m     # turned back unless it is confirmed");
        self.screen.doing("waiting until it is in force");
        let said = self.agent.ask(&["enforce", "--confirm-within", "5m"])?;
        self.screen.say(&in_style(FAINT, said.trim_end()));
        self.agent.wait_for("enforce")?;
        self.batch_job("enforced")?;
        let ways = intrusion();
        let tried = tries::all(&mut self.estate, &ways, |_| false, Some("intruder"))?;
        let refused = |t: &&Tried| !t.received && t.errno == libc::EPERM;
        let intruder = Intruder { attempts: tried.len(), denied: tried.iter().filter(refused).count() };
        self.screen.say(&format!(
            "The intruder tries the same {} ways: {}.",
            tried.len(),
            in_style(GOOD, format!("{} get EPERM, {} get through", intruder.denied, through(&tried).len()))
        ));
        for t in tried.iter().filter(|t| !refused(t)) {
            let how = if t.received { "was received" } else { "wasn't received, but not by EPERM" };
            self.evidence.complain(&format!("the intruder's {} {how} (errno {})", t.way, t.errno));
        }
        self.evidence.intruder = intruder;
        let seen = interrupt::wait("no denial was shown", SHOWN_WITHIN, || {
            Ok(denials.lines()?.into_iter().find(|d| d["comm"] == "intruder"))
        })?;
        self.screen.say(&in_style(FAINT, format!("seen: {}", decision(&seen))));
        for other in denials.lines()?.iter().filter(|d| d["comm"] != "intruder") {
            self.evidence.complain(&format!("somebody else is refused: {}", decision(other)));
        }
        drop(denials);
        self.explain("ledger", "9000")?;
        self.screen.doing("sending along every way again");
        let ways = bank::ways();
        let after = tries::all(&mut self.estate, &ways, Way::intended, None)?;
        self.screen.say(&format!(
            "Along all {} ways again: {} get through, {} of them meant by the bank.",
            ways.len(),
            through(&after).len(),
            through(&after).iter().filter(|w| w.intended()).count()
        ));
        self.evidence.after = after;
        self.screen.doing("timing connects");
        match latency::median_connect(&self.estate) {
            Ok(median) => self.evidence.connect.bulkhead = median,
            Err(e) => self.evidence.complain(&format!("no connect() could be timed: {e:#}")),
        }
        self.screen.command("bulkhead enforce --confirm");
        let said = self.agent.ask(&["enforce", "--confirm"])?;
        self.screen.say(&in_style(FAINT, said.trim_end()));
        self.screen
            .command("bulkhead report --json     # whom each workload can get to, directly and by way of others");
        self.evidence.surface.after = self.surface()?;
        self.screen.say(&format!(
            "The lateral-movement surface: {} of a flat network,\ninstead of {}.",
            in_style(GOOD, self.evidence.surface.after),
            self.evidence.surface.before,
        ));
        self.draw("enforced")?;
        self.meanwhile("enforce");
        Ok(())
    }

    /// Asks why the intruder's host may or may not connect to somebody.
    fn explain(&mut self, to: &str, port: &str) -> Result<()> {
        let (from, to) = (flows::id(BROKEN_INTO), flows::id(to));
        let words = ["explain", "--from", &from, "--to", &to, "--port", port];
        self.screen.command(&format!("bulkhead explain --from {from} \\\n      --to {to} --port {port}"));
        let said = self.agent.ask(&words)?;
        self.screen.say(&said.lines().filter(|l| !l.is_empty()).map(|l| format!("  {l}\n")).collect::<String>());
        Ok(())
    }

    /// Asks for flows until there are enough, or for as long as that may take.
    fn flows(&self, words: &[&str], enough: impl Fn(&[Flow]) -> bool) -> Result<Vec<Flow>> {
        let until = Instant::now() + SHOWN_WITHIN;
        interrupt::wait("bulkhead observe doesn't answer", 2 * SHOWN_WITHIN, || {
            let flows = flows::read(&self.agent.lines(words)?).context("bulkhead observe said something else")?;
            Ok((enough(&flows) || Instant::now() > until).then_some(flows))
        })
    }

    /// How the bank's business goes.
    fn meanwhile(&mut self, step: &str) {
        for trouble in self.traffic.troubles() {
            self.evidence.complain(&format!("the bank's business was disturbed ({step}): {trouble}"));
        }
        let Business { answered, lost, refused } = self.traffic.so_far();
        let style = if lost + refused == 0 { GOOD } else { BAD };
        let bad = in_style(style, format!("{lost} lost, {refused} refused"));
        self.screen.say(&format!("Business: {answered} requests answered, {bad}."));
    }
}

/// One line of `bulkhead observe --follow --json`, in words.
fn decision(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
    format!(
        "{} -> {} {} {} at its {} ({}), process {} ({})",
        flows::name(&line["source"]["id"]),
        flows::name(&line["destination"]["id"]),
        text("destination_address"),
        text("outcome"),
        text("hook"),
        text("reason"),
        line["pid"],
        text("comm"),
    )
}

/// What an intruder tries: everything that the workload isn't there for.
fn intrusion() -> Vec<Way> {
    bank::ways().into_iter().filter(|w| PARTIES[w.from].name == BROKEN_INTO && !w.intended()).collect()
}

fn through(tried: &[Tried]) -> Vec<Way> {
    tried.iter().filter(|t| t.received).map(|t| t.way).collect()
}

/// The names of the receivers.
pub(crate) fn others<'a>(ways: impl Iterator<Item = &'a Way>) -> Vec<&'static str> {
    let mut all: Vec<&str> = Vec::new();
    for way in ways {
        let name = PARTIES[way.to].name;
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}
