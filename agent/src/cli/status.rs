//! `bulkhead status`

use super::exit::Answer;
use super::fleet::{Fleet, words};
use super::orders::counted;
use super::table::{table, text, verdict};
use super::{Socket, client};
use crate::datapath::Drift;
use crate::inventory::Posture;
use crate::policy::Lowered;
use crate::serve::api::{Overridden, Override, Status};
use crate::time::rfc3339;
use anyhow::Context;
use std::collections::BTreeMap;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> super::Result {
    if args.fleet.cluster {
        return cluster(args);
    }
    let status: Status = client::block_on(client::get(&args.socket.socket, "/status", &[]))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status).context("writing JSON")?);
    } else {
        print!("{}", render(&status));
    }
    Ok(if is_fine(&status) { Answer::Fine } else { Answer::Findings })
}

fn is_fine(status: &Status) -> bool {
    let errors = status.findings.iter().any(|f| f.error);
    let detached = status.programs.iter().any(|p| !p.attached);
    let o = &status.overrides;
    let by_the_files = o.break_glass.is_empty() && o.enforced.iter().all(|e| e.until.is_none());
    let whole = status.faults.is_empty() && status.not_contained.is_empty();
    status.ready && !errors && !detached && whole && by_the_files
}

/// Every node's.
fn cluster(args: &Args) -> super::Result {
    let (nodes, failed) = args.fleet.ask(&words(&["status", "--json"]), None)?.json::<Status>();
    if args.json {
        let told = serde_json::json!({"nodes": nodes, "failed": failed});
        println!("{}", serde_json::to_string_pretty(&told).context("writing JSON")?);
    } else {
        print!("{}", render_nodes(&nodes, &failed));
    }
    let fine = failed.is_empty() && nodes.values().all(is_fine);
    Ok(if fine { Answer::Fine } else { Answer::Findings })
}

fn lowered(namespace: &str, to: Lowered) -> String {
    let told = match to {
        Lowered::Audit => "nothing is enforced there",
        Lowered::Observe => "nothing is enforced there, nor told as would-deny",
    };
    format!("LOWERED: namespace {namespace} to {}: {told}", to.as_str())
}

/// A line for each node, and below them what is wrong, each once with the nodes where it is so.
fn render_nodes(nodes: &BTreeMap<String, Status>, failed: &BTreeMap<String, String>) -> String {
    let mut t = table(&["node", "state", "epoch", "workloads", "enforced", "policies", "errors", "faults", "version"]);
    let mut wrong: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (node, s) in nodes {
        let running: Vec<_> = s.workloads.iter().filter(|w| !w.cgroups.is_empty()).collect();
        let enforced =
            running.iter().filter(|w| w.posture == Posture::Enforce && !w.break_glass && w.lowered.is_none());
        let errors: Vec<_> = s.findings.iter().filter(|f| f.error).collect();
        let glass = !s.overrides.break_glass.is_empty();
        let state = match (s.ready, glass) {
            (false, _) => "not ready",
            (true, true) => "break-glass",
            (true, false) => "ready",
        };
        t.add_row([
            node.clone(),
            state.to_owned(),
            s.epoch.to_string(),
            running.len().to_string(),
            enforced.count().to_string(),
            s.policies.len().to_string(),
            errors.len().to_string(),
            s.faults.len().to_string(),
            s.version.clone(),
        ]);
        let mut note = |text: String| wrong.entry(text).or_default().push(node);
        errors.iter().for_each(|f| note(f.text.clone()));
        s.faults.iter().for_each(|f| note(format!("FAULT: {f}")));
        s.not_contained.iter().for_each(|n| note(format!("not contained: {}: {}", n.what, n.why)));
        let until = |b: &Override| b.until.map(rfc3339).unwrap_or_default();
        for b in &s.overrides.break_glass {
            note(format!("BREAK-GLASS: nothing is enforced for {} until {} ({})", b.what, until(b), b.reason));
        }
        for (namespace, to) in &s.overrides.lowered {
            note(lowered(namespace, *to));
        }
        for r in &s.overrides.revoked {
            note(format!("REVOKED: {} since {} ({})", r.what, rfc3339(r.since), r.reason));
        }
    }
    for (node, why) in failed {
        t.add_row([node.clone(), "not asked".to_owned()]);
        wrong.entry(format!("couldn't be asked: {why}")).or_default().push(node);
    }
    let mut page = text(&t) + "\n";
    if !wrong.is_empty() {
        let mut t = table(&["where", "what is wrong, or commanded"]);
        t.add_rows(wrong.iter().map(|(what, at)| [at.join(", "), what.clone()]));
        page.push_str(&format!("\n{}\n", text(&t)));
    }
    page
}

/// The whole page.
fn render(s: &Status) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let state = if s.ready { "ready" } else { "not ready" };
    line(format!(
        "bulkhead {} (instance {}, pid {}) on Linux {}: {state}, epoch {}",
        s.version, s.instance, s.pid, s.kernel, s.epoch
    ));
    if let Some(c) = s.last_commit {
        line(format!(
            "commits: {}; the last: {} inserts, {} writes, {} removals, in force after {} us; {} events lost",
            s.commits, c.inserts, c.writes, c.removals, c.in_force_after_us, s.lost_events
        ));
    }
    if let Some(log) = &s.decision_log {
        let d = log.dropped;
        line(format!("decision log: {}, line {}, missing: {}", log.path, log.sequence, d.kernel + d.queue + d.disk));
        line(format!("policies: {}, log's last hash: {:.16}", log.policy.hash, log.hash));
    }
    if s.without_address > 0 {
        let most = s.workloads.iter().max_by_key(|w| w.outside);
        let most = most.map(|w| format!("; most addresses has {}: {}", w.name, w.outside)).unwrap_or_default();
        line(format!("outside: {} connections were counted without their address{most}", s.without_address));
    }
    if s.lost_answers > 0 {
        line(format!("DNS answers that weren't read: {}", s.lost_answers));
    }
    for fault in &s.faults {
        line(format!("FAULT: {fault}"));
    }
    let time = |t: Option<u64>| t.map(rfc3339).unwrap_or_default();
    let Overridden { revoked, break_glass, enforced, lowered: namespaces } = &s.overrides;
    for b in break_glass {
        line(format!("BREAK-GLASS: nothing is enforced for {} until {} ({})", b.what, time(b.until), b.reason));
    }
    for (namespace, to) in namespaces {
        line(lowered(namespace, *to));
    }
    for e in enforced {
        line(match e.until {
            Some(by) => {
                format!("ON TRIAL: {} is enforced, and turned back at {} unless confirmed", e.what, rfc3339(by))
            }
            None => format!("{} is enforced by command since {}", e.what, rfc3339(e.since)),
        });
    }
    for r in revoked {
        line(format!("REVOKED: {} since {} ({})", r.what, rfc3339(r.since), r.reason));
    }
    if let Some(ms) = s.open_since_boot_ms {
        line(format!("open since boot: {}.{:03} s, until the programs were attached", ms / 1000, ms % 1000));
    }
    let d = &s.drift;
    if let Some(Drift { missing, changed, foreign, .. }) = d.last {
        let times = format!("{} times, put right {} times", d.found, d.repaired);
        line(format!("DRIFT: {times}; the last: {missing} entries missing, {changed} changed, {foreign} foreign"));
    }
    if let Some(c) = &s.last_cut {
        let sockets = counted(c.sockets, "socket");
        let total = s.cut_sockets;
        line(format!("cut last: {sockets} at {} (epoch {}); {total} since the start", rfc3339(c.time), c.epoch));
    }

    line(String::new());
    let mut t = table(&["workload", "identity", "namespace", "posture", "running in"]);
    for w in &s.workloads {
        let cgroups = if w.cgroups.is_empty() { "(not running)".to_owned() } else { w.cgroups.join("\n") };
        t.add_row([
            (&w.name).into(),
            (&w.identity.id).into(),
            (&w.identity.namespace).into(),
            match (w.revoked, w.break_glass, w.lowered) {
                (true, _, _) => verdict("revoked"),
                (_, true, _) => verdict("break-glass"),
                (_, _, Some(_)) => verdict("lowered"),
                _ => verdict(w.posture.as_str()),
            },
            cgroups.into(),
        ]);
    }
    line(text(&t));

    line(String::new());
    if s.policies.is_empty() {
        line("No policies: only the postures hold.".to_owned());
    } else {
        let mut t = table(&["policy", "mode", "selects", "from"]);
        for p in s.policies.iter() {
            let selects = if p.selects.is_empty() { "-".to_owned() } else { p.selects.join(", ") };
            t.add_row([(&p.name).into(), verdict(&p.mode), selects.into(), (&p.file).into()]);
        }
        line(text(&t));
    }
    for f in &s.findings {
        line(f.text.clone());
    }

    line(String::new());
    let mut t = table(&["program", "hook", "attached to", "id", "verified insns", "attached"]);
    for p in &s.programs {
        let verified = p.verified_instructions.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let attached = verdict(if p.attached { "yes" } else { "no" });
        t.add_row([
            (&p.name).into(),
            (&p.hook).into(),
            (&p.attach_point).into(),
            p.id.to_string().into(),
            verified.into(),
            attached,
        ]);
    }
    line(text(&t));

    line(String::new());
    let mut t = table(&["map", "used", "of", "full"]);
    for m in &s.maps {
        let percent = m.used.saturating_mul(100).checked_div(m.capacity).unwrap_or(0);
        t.add_row([m.name.clone(), m.used.to_string(), m.capacity.to_string(), format!("{percent} %")]);
    }
    line(text(&t));

    line(String::new());
    let mut t = table(&["kernel feature", "there", "what follows"]);
    for f in &s.features {
        t.add_row([(&f.name).into(), verdict(if f.available { "yes" } else { "no" }), (&f.note).into()]);
    }
    line(text(&t));

    line(String::new());
    if s.not_contained.is_empty() {
        line("Nothing was found that isn't contained.".to_owned());
    } else {
        let mut t = table(&["not contained", "why"]);
        t.add_rows(s.not_contained.iter().map(|n| [&n.what, &n.why]));
        line(text(&t));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::PeerName;
    use crate::serve::api::*;

    #[test]
    fn what_several_nodes_say_stands_once() {
        let bad = Status { faults: vec!["nodes can't be watched".to_owned()], ..Status::default() };
        let nodes = [
            ("n1", Status { ready: true, ..bad.clone() }),
            ("n2", bad),
            ("n3", Status { ready: true, ..Status::default() }),
        ]
        .map(|(n, s)| (n.to_owned(), s));
        let failed = BTreeMap::from([("n4".to_owned(), "its pod x is Pending ".repeat(9))]);
        let page = render_nodes(&nodes.into(), &failed);
        assert_eq!(page.matches("nodes can't be watched").count(), 1, "{page}");
        assert!(page.contains("n1, n2") && page.contains("not asked"), "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
        assert!(is_fine(&Status { ready: true, ..Status::default() }));
    }

    #[test]
    fn the_page_shows_what_matters_and_fits() {
        let s = Status {
            version: "1".to_owned(),
            ready: true,
            faults: vec!["the link of `egress` at /s is gone; put right".to_owned()],
            workloads: vec![WorkloadStatus {
                name: "payments-api".to_owned(),
                identity: PeerName {
                    id: "spiffe://example.org/payments/api".to_owned(),
                    namespace: "payments".to_owned(),
                },
                posture: Posture::Audit,
                revoked: false,
                break_glass: false,
                lowered: None,
                outside: 0,
                owner: String::new(),
                cgroups: vec!["/system.slice/payments-api.service".to_owned()],
            }],
            not_contained: vec![NotContained { what: "x: a packet socket".to_owned(), why: "word ".repeat(40) }],
            maps: vec![MapFill { name: "RULES".to_owned(), used: 1, capacity: 4 }],
            ..Status::default()
        };
        let page = render(&s);
        for word in ["FAULT: the link", "payments-api", "audit", "25 %", "a packet socket", "No policies"] {
            assert!(page.contains(word), "{word} isn't in\n{page}");
        }
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    }
}
