//! `bulkhead preflight`: what this host has and lacks. Looks only; installs, mounts and loads nothing that stays.

mod host;
mod programs;

pub(super) use host::missing;

use super::exit::Answer;
use super::fleet::{Fleet, complain, words};
use super::table::{table, text, verdict};
use crate::config::{self, Config};
use crate::sources::hierarchy::{Hierarchy, Scan};
use crate::sources::strays::{self, Strays};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    fleet: Fleet,
    /// Also look at what this configuration names
    #[arg(long, value_name = "FILE", conflicts_with = "cluster")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Fine.
    Ok,
    /// Works, but somebody should know.
    Warning,
    /// The agent won't start, or something won't be contained.
    Error,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One check.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
struct Check {
    what: String,
    state: State,
    note: String,
}

fn check(what: impl Into<String>, state: State, note: impl Into<String>) -> Check {
    Check { what: what.into(), state, note: note.into() }
}

pub(super) fn run(args: &Args) -> super::Result {
    if args.fleet.cluster {
        return cluster(args);
    }
    let mut checks = host::checks();
    let config = match &args.config {
        Some(file) => configuration(file, &mut checks)?,
        None => None,
    };
    checks.push(host::bpffs(config.as_ref().map_or(Path::new(config::BPFFS), |c| &c.bpffs)));
    features(&mut checks);
    if let Ok(hierarchy) = Hierarchy::find() {
        let scan = config.as_ref().map(|c| hierarchy.scan(c, |_| {})).unwrap_or_default();
        let attach = config.as_ref().map(|c| c.attach.clone()).unwrap_or_default();
        foreign(&hierarchy, &attach, &mut checks);
        if let Some(config) = &config {
            workloads(&hierarchy, config, &scan, &mut checks);
        }
    }
    checks.extend(host::never_contained());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks).context("writing JSON")?);
    } else {
        println!("{}", render(&checks));
    }
    let fine = checks.iter().all(|c| c.state != State::Error);
    Ok(if fine { Answer::Fine } else { Answer::Findings })
}

/// Every node's, as the agents' pods see them.
fn cluster(args: &Args) -> super::Result {
    let (nodes, failed) = args.fleet.ask(&words(&["preflight", "--json"]), None)?.json::<Vec<Check>>();
    if args.json {
        let told = serde_json::json!({"nodes": nodes, "failed": failed});
        println!("{}", serde_json::to_string_pretty(&told).context("writing JSON")?);
    } else {
        println!("{}", render_nodes(&nodes));
    }
    complain(&failed);
    let fine = failed.is_empty() && nodes.values().flatten().all(|c| c.state != State::Error);
    Ok(if fine { Answer::Fine } else { Answer::Findings })
}

/// Each finding once, with where it is so; what is fine is only counted.
fn render_nodes(nodes: &BTreeMap<String, Vec<Check>>) -> String {
    let mut by_check: BTreeMap<&Check, Vec<&str>> = BTreeMap::new();
    let mut fine = 0_u64;
    for (node, checks) in nodes {
        for c in checks {
            match c.state {
                State::Ok => fine += 1,
                _ => by_check.entry(c).or_default().push(node),
            }
        }
    }
    let mut t = table(&["what", "", "where", "note"]);
    for (c, at) in by_check {
        let at = if at.len() == nodes.len() { "all nodes".to_owned() } else { at.join(", ") };
        t.add_row([(&c.what).into(), verdict(c.state.as_str()), at.into(), (&c.note).into()]);
    }
    let count = nodes.len();
    format!("{}\n\n{fine} checks on {count} {} are fine.", text(&t), if count == 1 { "node" } else { "nodes" })
}

fn render(checks: &[Check]) -> String {
    let mut t = table(&["what", "", "note"]);
    for c in checks {
        t.add_row([(&c.what).into(), verdict(c.state.as_str()), (&c.note).into()]);
    }
    text(&t)
}

fn configuration(file: &Path, checks: &mut Vec<Check>) -> anyhow::Result<Option<Config>> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
    match config::parse(&name, &text) {
        Ok(c) => {
            checks.push(check("configuration", State::Ok, format!("{} workloads", c.workloads.len())));
            Ok(Some(c))
        }
        Err(faults) => {
            checks.extend(faults.iter().map(|f| check("configuration", State::Error, f.to_string())));
            Ok(None)
        }
    }
}

/// What the kernel can do, by trying. Nothing that is tried stays.
fn features(checks: &mut Vec<Check>) {
    if missing().is_err() {
        checks.push(check("kernel features", State::Warning, "not tried: that needs what is missing above"));
        return;
    }
    let all = crate::app::kernel::features();
    for f in all.iter().filter(|f| !f.available) {
        let state = if f.required { State::Error } else { State::Warning };
        checks.push(check(format!("no {}", f.name), state, &f.note));
    }
    let there = all.iter().filter(|f| f.available).count();
    checks.push(check("kernel features", State::Ok, format!("{there} of {} are there (found by trying)", all.len())));
}

/// Programs of others at the attach points and above them: they run beside ours, and may rewrite addresses.
fn foreign(hierarchy: &Hierarchy, attach: &[String], checks: &mut Vec<Check>) {
    let mut places: Vec<String> = vec!["/".to_owned()];
    for path in attach {
        let mut at = String::new();
        for segment in path.split('/').filter(|s| !s.is_empty()) {
            at = format!("{at}/{segment}");
            places.push(at.clone());
        }
    }
    places.sort();
    places.dedup();
    let mut found = false;
    for place in places {
        match programs::at(&hierarchy.directory(&place)) {
            Ok(all) => {
                for p in all {
                    found = true;
                    checks.push(check(
                        format!("program at cgroup {place}"),
                        State::Warning,
                        format!(
                            "{p}: runs beside Bulkhead's; if it rewrites addresses, only packets show the real peer"
                        ),
                    ));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                checks.push(check(format!("programs at cgroup {place}"), State::Warning, format!("not known: {e}")))
            }
        }
    }
    if !found {
        checks.push(check("other cgroup programs", State::Ok, "none at or above the attach points"));
    }
}

fn workloads(hierarchy: &Hierarchy, config: &Config, scan: &Scan, checks: &mut Vec<Check>) {
    for path in &scan.missing {
        checks.push(check(
            format!("attach point {path}"),
            State::Warning,
            "doesn't exist; the agent makes it: better attach to a slice that is always there",
        ));
    }
    let open = strays::open_sockets(hierarchy, scan);
    for (index, w) in config.workloads.iter().enumerate() {
        let mine: Vec<&str> =
            scan.workloads.iter().filter(|(_, i)| *i == index).map(|(c, _)| c.path.as_str()).collect();
        let what = format!("workload {}", w.name);
        if mine.is_empty() {
            let globs: Vec<&str> = w.cgroups.iter().map(config::CgroupGlob::as_str).collect();
            checks.push(check(what, State::Warning, format!("{} matches no cgroup at present", globs.join(", "))));
            continue;
        }
        let older: usize = mine.iter().filter_map(|p| open.get(*p)).sum();
        let note = format!(
            "{} ({}); {older} sockets are open and older than the programs: they are judged by packets",
            mine.join(", "),
            w.posture.as_str()
        );
        checks.push(check(what, State::Ok, note));
    }
    for n in Strays::default().look(hierarchy, config, scan, usize::MAX) {
        checks.push(check(n.what, State::Error, n.why));
    }
}
