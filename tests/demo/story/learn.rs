//! From what is seen to rules: observe, suggest, audit.

use super::{SHOWN_WITHIN, Story, intrusion, through};
use crate::bank::{self, BATCH, BROKEN_INTO, PARTIES, SILENT, Way};
use crate::evidence::{Share, Suggested};
use crate::flows::{self, Flow};
use crate::screen::{BAD, GOOD, WARNING, in_style};
use crate::{traffic, tries};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// How often each of the bank's flows should be seen before they are learned from; the batch job runs only once.
const SEEN: u64 = 10;

impl Story<'_> {
    pub(super) fn observe(&mut self) -> Result<()> {
        self.screen.step("Observe", "who talks to whom; nothing is refused");
        self.screen.command("bulkhead agent --config bulkhead.yaml     # posture: observe");
        self.screen.doing("loading the programs");
        let took = self.agent.start()?;
        self.screen.say(&format!("Its programs are loaded and attached after {:.1} s.", took.as_secs_f64()));
        self.batch_job("observed")?;
        self.screen.doing("waiting for the counters");
        let wanted: Vec<Way> = bank::ways().into_iter().filter(|w| w.intended()).collect();
        let asked = ["observe", "--verdict", "allowed", "--json"];
        let often = |w: &Way| if PARTIES[w.from].name == BATCH { 1 } else { SEEN };
        let seen = |flows: &[Flow], w: &Way| flows.iter().any(|f| f.is_of(*w) && f.count >= often(w));
        let flows = self.flows(&asked, |flows| wanted.iter().all(|w| seen(flows, w)))?;
        for way in wanted.iter().filter(|w| !w.v6 && !flows.iter().any(|f| f.is_of(**w))) {
            self.evidence.complain(&format!("observe doesn't show {way}"));
        }
        self.screen.command("bulkhead graph");
        let graph = self.agent.ask(&["graph"])?;
        self.screen.say(&graph.lines().map(|l| format!("  {l}\n")).collect::<String>());
        self.draw("observed")?;
        self.screen.command("bulkhead report --json     # whom each workload can get to");
        self.evidence.surface.before = self.surface()?;
        let surface = in_style(BAD, self.evidence.surface.before);
        self.screen.say(&format!("The lateral-movement surface: {surface} of a flat network."));
        self.meanwhile("observe");
        Ok(())
    }

    pub(super) fn suggest(&mut self) -> Result<()> {
        self.screen.step("Suggest", "rules for what was seen, with the proof");
        self.screen.command("bulkhead policy suggest --config bulkhead.yaml --output suggested/");
        self.screen.doing("waiting for the history");
        let links: BTreeSet<_> =
            bank::ways().iter().filter(|w| w.intended()).map(|w| (w.from, w.to, w.proto)).collect();
        let links = u64::try_from(links.len())?;
        let enough = |said: &Value| said["proof"]["links"].as_u64() >= Some(links);
        let (said, report) = self.agent.suggest(enough, SHOWN_WITHIN)?;
        self.screen.say(&report.lines().map(|l| format!("  {l}\n")).collect::<String>());
        let count = |value: &Value| value.as_array().map(Vec::len).context("a suggestion has lists");
        let suggested = Suggested {
            rules: count(&said["rules"])?,
            false_denies: count(&said["proof"]["falseDenies"])?,
            surplus: said["proof"]["surplus"]["neverSeen"].as_u64().context("a suggestion counts its surplus")?,
        };
        self.evidence.suggested = suggested;
        if suggested.false_denies > 0 {
            self.evidence.complain("the suggestion would deny what was seen");
        }
        let silent = flows::id(SILENT);
        if !said["unseen"].as_array().is_some_and(|all| all.iter().any(|name| name["id"] == silent)) {
            self.evidence.complain(&format!("the suggestion doesn't name {SILENT} as uncovered"));
        }
        // What the kernel knows by itself to be a reply is set apart too, and rightly.
        let needed = |apart: &Value| {
            let (from, to) = (flows::name(&apart["source"]["id"]), flows::name(&apart["destination"]["id"]));
            let intended = bank::ways().into_iter().filter(|w| w.intended());
            let mut ends = intended.map(|w| (PARTIES[w.from].name, &PARTIES[w.to], w.proto.number()));
            ends.any(|(f, t, n)| (f, t.name) == (&*from, &*to) && apart["port"] == t.port && apart["protocol"] == n)
        };
        for apart in said["apart"].as_array().into_iter().flatten().filter(|apart| needed(apart)) {
            let end = |key: &str| flows::name(&apart[key]["id"]);
            self.evidence.complain(&format!(
                "no rule is suggested for {} to {} on port {} ({})",
                end("source"),
                end("destination"),
                apart["port"],
                apart["why"]
            ));
        }
        self.meanwhile("suggest");
        Ok(())
    }

    pub(super) fn audit(&mut self) -> Result<()> {
        self.screen.step("Audit", "the suggestion as it is; still nothing is refused");
        let files = self.agent.adopt()?;
        self.screen.command(&format!("cp suggested/* policies/     # {}", files.join(", ")));
        self.screen.command("sed -i 's/^posture: .*/posture: audit/' bulkhead.yaml");
        self.screen.doing("waiting until it is in force");
        self.agent.set_posture("audit")?;
        self.agent.wait_for("audit")?;
        self.batch_job("audited")?;
        let ways = intrusion();
        let tried = tries::all(&mut self.estate, &ways, |_| true, Some("intruder"))?;
        let through = through(&tried).len();
        self.screen.say(&format!(
            "The intruder tries {} ways that {BROKEN_INTO} has no use for: {} get through, and are told:",
            ways.len(),
            in_style(WARNING, through)
        ));
        if through < ways.len() {
            self.evidence.complain("audit refused something");
        }
        self.screen.command("bulkhead observe --verdict would-deny");
        self.screen.doing("waiting for the counters");
        let asked = ["observe", "--verdict", "would-deny", "--json"];
        let flows = self.flows(&asked, |flows| ways.iter().all(|w| flows.iter().any(|f| f.is_of(*w))))?;
        for way in ways.iter().filter(|w| !w.v6 && !flows.iter().any(|f| f.is_of(**w))) {
            self.evidence.complain(&format!("would-deny doesn't show {way}"));
        }
        let legitimate = flows.iter().filter(|f| f.source != BROKEN_INTO);
        legitimate.for_each(|flow| self.evidence.complain(&format!("the suggestion forgets {flow}")));
        self.screen.table(&flows::by_destination(&flows));
        if flows.iter().all(|f| f.source == BROKEN_INTO) {
            self.screen.say(&in_style(GOOD, "Nothing that the bank needs is among it."));
        }
        self.meanwhile("audit");
        Ok(())
    }

    /// Lets the batch job run, which should work under every step.
    pub(super) fn batch_job(&mut self, step: &str) -> Result<()> {
        self.screen.doing("running the batch job");
        let (answered, troubles) = traffic::job(&self.estate)?;
        let of = answered + troubles.len();
        let style = if troubles.is_empty() { GOOD } else { BAD };
        self.screen.say(&format!(
            "The batch job of {BATCH}, which runs now and then, runs: {}.",
            in_style(style, format!("{answered} of {of} requests answered"))
        ));
        for trouble in troubles {
            self.evidence.complain(&format!("the batch job was disturbed ({step}): {trouble}"));
        }
        Ok(())
    }

    /// Draws what was seen until now, as a picture and as a page.
    pub(super) fn draw(&mut self, name: &str) -> Result<()> {
        for form in ["svg", "html"] {
            let file = self.pictures.join(format!("{name}.{form}")).display().to_string();
            self.agent.ask(&["graph", "--as", form, "--output", &file])?;
        }
        // Where it lies isn't part of the story, and too long for a line.
        self.screen.say(&format!("Drawn in target/demo/: {name}.svg, {name}.html."));
        Ok(())
    }

    /// The lateral-movement surface, as the report has it.
    pub(super) fn surface(&self) -> Result<Share> {
        let report = self.agent.document(&["report", "--json"])?;
        let number = |key: &str| report["surface"][key].as_u64().with_context(|| format!("a report has `{key}`"));
        Ok(Share { part: number("reachable")?, of: number("pairs")? })
    }
}
