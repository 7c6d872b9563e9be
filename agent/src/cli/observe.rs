//! `bulkhead observe`

use super::exit::Answer;
use super::fleet::{Fleet, Heard, complain, words};
use super::names::shared_domain;
use super::table::{ago, table, text, verdict};
use super::{Socket, client};
use crate::flows::{self, Count, PeerName};
use crate::graph::escape::{named, shortened};
use crate::identity::SCHEME;
use crate::serve::api::{Decision, EdgeLine, printable};
use anyhow::Context;
use bulkhead_common::{Direction, Outcome};
use clap::builder::PossibleValuesParser;
use http_body_util::BodyExt;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// Show each decision as it is made, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only where either end's SPIFFE ID or class contains this
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// Only where either end is in this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only with this outcome
    #[arg(long, value_parser = PossibleValuesParser::new(Outcome::ALL.iter().map(|o| o.as_str())))]
    verdict: Option<String>,
    /// Only to this port
    #[arg(long)]
    port: Option<u16>,
    /// Only what was seen in the last so many seconds, minutes or hours: 30s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = milliseconds, conflicts_with = "follow")]
    since: Option<u64>,
    /// As JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> super::Result {
    let Args { socket, fleet, follow, id, namespace, verdict, port, since, json } = args;
    let query: Vec<(&str, String)> = [
        ("id", id.clone()),
        ("namespace", namespace.clone()),
        ("verdict", verdict.clone()),
        ("port", port.map(|p| p.to_string())),
    ]
    .into_iter()
    .filter_map(|(k, v)| Some((k, v?)))
    .collect();
    if fleet.cluster {
        return cluster(args, &query);
    }
    if *follow {
        client::block_on(stream(&socket.socket, &query, *json))?;
        return Ok(Answer::Fine);
    }
    let mut edges: Vec<EdgeLine> = client::block_on(client::get(&socket.socket, "/edges", &query))?;
    if let Some(since) = since {
        let earliest = now().saturating_sub(*since);
        edges.retain(|e| e.count.last >= earliest);
    }
    if *json {
        for e in &edges {
            println!("{}", serde_json::to_string(e).context("writing JSON")?);
        }
    } else if edges.is_empty() {
        println!("No flows yet that fit.");
    } else {
        println!("{}", render(&edges, &[], now()));
    }
    Ok(Answer::Fine)
}

/// What all agents saw, each connection at its source's node.
fn cluster(args: &Args, query: &[(&str, String)]) -> super::Result {
    if args.follow {
        return follow_cluster(args, query);
    }
    let mut command = words(&["observe", "--json"]);
    command.extend(query.iter().flat_map(|(key, value)| [format!("--{key}"), value.clone()]));
    command.extend(args.since.into_iter().flat_map(|ms| ["--since".to_owned(), format!("{}s", ms.div_ceil(1000))]));
    let (nodes, failed) = args.fleet.ask(&command, None)?.lines::<EdgeLine>();
    complain(&failed);
    let all = nodes.into_iter().flat_map(|(node, lines)| lines.into_iter().map(move |l| (node.clone(), l)));
    let (nodes, edges): (Vec<String>, Vec<EdgeLine>) = once_each(all.collect()).into_iter().unzip();
    if args.json {
        for (node, edge) in nodes.iter().zip(&edges) {
            let told = At { node, edge };
            println!("{}", serde_json::to_string(&told).context("writing JSON")?);
        }
    } else if edges.is_empty() {
        println!("No flows yet that fit.");
    } else {
        println!("{}", render(&edges, &nodes, now()));
    }
    Ok(if failed.is_empty() { Answer::Fine } else { Answer::Findings })
}

/// Decisions of all agents as they are made, each with its node.
fn follow_cluster(args: &Args, query: &[(&str, String)]) -> super::Result {
    let mut command = words(&["observe", "--follow", "--json"]);
    command.extend(query.iter().flat_map(|(key, value)| [format!("--{key}"), value.clone()]));
    let mut out = std::io::stdout();
    args.fleet.follow(&command, |node, heard| match heard {
        Heard::Line(line) => writeln!(out, "{}", of_node(node, line, args.json)).and_then(|()| out.flush()).is_ok(),
        Heard::Ended(why) => {
            eprintln!("bulkhead: {node} isn't followed now, and is tried again: {why}");
            true
        }
    })?;
    Ok(Answer::Fine)
}

/// What one node's agent said, with the node.
fn of_node(node: &str, line: &str, json: bool) -> String {
    if json {
        return match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line) {
            Ok(mut all) => {
                all.insert("node".to_owned(), node.into());
                serde_json::Value::Object(all).to_string()
            }
            Err(_) => serde_json::json!({"node": node, "said": line}).to_string(),
        };
    }
    match serde_json::from_str::<Decision>(line) {
        Ok(d) => format!("{node}: {}", one_line(&d)),
        Err(_) => format!("{node}: (some were missed: {})", printable(line.as_bytes())),
    }
}

#[derive(serde::Serialize)]
struct At<'a> {
    node: &'a str,
    #[serde(flatten)]
    edge: &'a EdgeLine,
}

/// Without what destinations' nodes counted of sources that their own nodes tell of.
fn once_each(mut all: Vec<(String, EdgeLine)>) -> Vec<(String, EdgeLine)> {
    let source = |(_, l): &(String, EdgeLine)| (l.edge.source.id.starts_with(SCHEME)).then(|| l.edge.source.clone());
    let from_source = |(_, l): &&(String, EdgeLine)| l.edge.direction == Direction::Egress.as_str();
    let told: BTreeSet<PeerName> = all.iter().filter(from_source).filter_map(source).collect();
    all.retain(|l| from_source(&l) || !source(l).is_some_and(|s| told.contains(&s)));
    all
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let unit = |c| match c {
        's' => Some(1000),
        'm' => Some(60_000),
        'h' => Some(3_600_000),
        _ => None,
    };
    let mut number = text.chars();
    let unit = number.next_back().and_then(unit);
    let product = unit.and_then(|u: u64| number.as_str().parse::<u64>().ok()?.checked_mul(u));
    product.ok_or_else(|| "write a number and s, m or h, such as 10m".to_owned())
}

/// One line for what both ends, or several `nodes` (one for each edge, or none at all), counted alike; where all SPIFFE IDs share a trust domain and the table would be too
/// wide, that stands once below it.
fn render(edges: &[EdgeLine], nodes: &[String], now: u64) -> String {
    let mut rows: BTreeMap<_, BTreeMap<&str, &Count>> = BTreeMap::new();
    for (n, EdgeLine { edge: e, count, .. }) in edges.iter().enumerate() {
        let row = (&e.source.id, &e.destination.id, e.protocol, e.port, &e.outcome, &e.reason);
        rows.entry(row).or_default().insert(nodes.get(n).unwrap_or(&e.direction), count);
    }
    let longest = |ids: &mut dyn Iterator<Item = &String>| ids.map(|id| id.chars().count()).max().unwrap_or(0);
    let ids = longest(&mut rows.keys().map(|r| r.0)) + longest(&mut rows.keys().map(|r| r.1));
    let domain = if ids > ROOM_FOR_IDS { shared_domain(rows.keys().flat_map(|r| [r.0, r.1])) } else { None };
    let short = |id: &str| match &domain {
        Some(domain) => id.replace(domain.as_str(), ""),
        None => id.to_owned(),
    };
    let mut t = table(&["source", "destination", "port", "verdict", "reason", "count", "seen at", "last"]);
    for ((source, destination, protocol, number, outcome, reason), counts) in &rows {
        let mut totals: Vec<u64> = counts.values().map(|c| c.total).collect();
        if !nodes.is_empty() {
            totals = vec![totals.into_iter().fold(0, u64::saturating_add)];
        }
        let alike = totals.windows(2).all(|w| w[0] == w[1]);
        let totals = totals[..if alike { 1 } else { totals.len() }].iter().map(u64::to_string).collect::<Vec<_>>();
        let last = counts.values().map(|c| c.last).max().unwrap_or(0);
        t.add_row([
            short(source).into(),
            short(destination).into(),
            port(*protocol, *number).into(),
            verdict(outcome),
            reason.into(),
            totals.join(", ").into(),
            counts.keys().copied().collect::<Vec<_>>().join(", ").into(),
            ago(last, now).into(),
        ]);
    }
    let mut page = text(&t);
    if let Some(outside) = outside(edges, &short, now) {
        page.push_str(&format!("\n\nOutside, by address:\n{outside}"));
    }
    match domain {
        Some(domain) => format!("{page}\n\nIDs that begin with / are in {domain}."),
        None => page,
    }
}

/// How many addresses are shown.
const ADDRESSES: usize = 20;

/// The addresses that were connected to most, or from, with the names by which the workloads had asked for them.
fn outside(edges: &[EdgeLine], short: &dyn Fn(&str) -> String, now: u64) -> Option<String> {
    let mut all: Vec<_> = edges.iter().flat_map(|e| e.addresses.iter().map(move |a| (&e.edge, a))).collect();
    let more: u64 = edges.iter().map(|e| e.more_addresses).sum();
    let left = u64::try_from(all.len().saturating_sub(ADDRESSES)).unwrap_or(u64::MAX).saturating_add(more);
    all.sort_by_key(|(e, a)| (std::cmp::Reverse(a.count.total), *e, a.address));
    all.truncate(ADDRESSES);
    if all.is_empty() {
        return None;
    }
    let mut t = table(&["workload", "", "address", "port", "verdict", "count", "last"]);
    for (e, a) in all {
        let (workload, way) = if e.direction == "egress" { (&e.source.id, "to") } else { (&e.destination.id, "from") };
        t.add_row([
            short(workload).into(),
            way.into(),
            shortened(&named(a.address, a.name.as_deref()), WIDEST).into(),
            port(e.protocol, e.port).into(),
            verdict(&e.outcome),
            a.count.total.to_string().into(),
            ago(a.count.last, now).into(),
        ]);
    }
    let more = if left > 0 { format!("\nand {left} more.") } else { String::new() };
    Some(text(&t) + &more)
}

/// How wide an address with its name may be.
const WIDEST: usize = 60;

/// The columns that are left for two IDs.
const ROOM_FOR_IDS: usize = 36;

fn port(protocol: u8, port: u16) -> String {
    let name = flows::protocol(protocol);
    if port == 0 { name } else { format!("{name}/{port}") }
}

async fn stream(socket: &std::path::Path, query: &[(&str, String)], json: bool) -> anyhow::Result<()> {
    let mut body = client::ask(socket, "/observe", query).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    let mut out = std::io::stdout();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame
            .map_err(|_| anyhow::anyhow!("the agent ended; what it last put in force stays in force"))?
            .into_data()
        else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if line == b"\n" {
                // Nothing may be written for hours, and whoever read us has gone: over a cluster, nobody tells us.
                if has_gone(&out) {
                    return Ok(());
                }
                continue;
            }
            let shown = if json {
                out.write_all(&line)
            } else {
                match serde_json::from_slice::<Decision>(&line) {
                    Ok(d) => writeln!(out, "{}", one_line(&d)),
                    Err(_) => writeln!(out, "(some were missed: {})", String::from_utf8_lossy(&line).trim()),
                }
            };
            // Who reads us may have had enough.
            if shown.and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether nobody reads what is written there any more.
fn has_gone(out: &impl AsFd) -> bool {
    let mut ends = [PollFd::new(out, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ends, Some(&now)).is_ok() && ends[0].revents().intersects(PollFlags::ERR)
}

fn one_line(d: &Decision) -> String {
    let mut text = format!(
        "{} {} -> {} {} ({}, {})",
        d.edge.outcome,
        d.edge.source.id,
        d.edge.destination.id,
        port(d.edge.protocol, d.edge.port),
        d.edge.direction,
        d.edge.reason
    );
    if d.pid != 0 {
        text.push_str(&format!(" pid {} {}", d.pid, d.comm));
    }
    if let Some(exe) = &d.executable {
        text.push_str(&format!(" {exe}"));
    }
    if let Some(name) = &d.name {
        text.push_str(&format!(" asked for as {}", printable(name.as_bytes())));
    }
    for rule in [&d.egress_rule, &d.ingress_rule].into_iter().flatten() {
        text.push_str(&format!(" by {rule}"));
    }
    text
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Edge;
    use crate::serve::api::AddressLine;

    fn line(from: &str, to: &str, direction: &str, total: u64) -> EdgeLine {
        let name = |id: &str| PeerName { id: id.to_owned(), namespace: String::new() };
        let edge = Edge {
            source: name(from),
            destination: name(to),
            port: 5432,
            protocol: 6,
            direction: direction.to_owned(),
            outcome: "would-deny".to_owned(),
            reason: "no-ingress-rule".to_owned(),
        };
        EdgeLine { edge, count: Count { total, first: 0, last: 0 }, ..EdgeLine::default() }
    }

    #[test]
    fn a_cluster_counts_a_connection_where_it_begins() {
        let (web, db, far) = ("spiffe://t/web", "spiffe://t/db", "spiffe://t/not-asked");
        let at = |node: &str, l: EdgeLine| (node.to_owned(), l);
        let all = once_each(vec![
            at("n1", line(web, db, "egress", 3)),
            at("n2", line(web, db, "egress", 4)),
            at("n2", line(web, db, "ingress", 7)),
            at("n2", line(far, db, "ingress", 5)),
            at("n2", line("world", db, "ingress", 1)),
        ]);
        let left: Vec<u64> = all.iter().map(|(_, l)| l.count.total).collect();
        assert_eq!(left, [3, 4, 5, 1]);
        let (nodes, edges): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let page = render(&edges, &nodes, 0);
        let of_web: Vec<&str> = page.lines().filter(|l| l.contains(web)).collect();
        assert!(of_web.len() == 1 && of_web[0].contains(" 7 ") && of_web[0].contains("n1, n2"), "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    }

    #[test]
    fn what_is_followed_says_its_node() {
        let decision = serde_json::json!({"missed": 3}).to_string();
        assert_eq!(of_node("n1", &decision, true), r#"{"missed":3,"node":"n1"}"#);
        assert_eq!(of_node("n1", &decision, false), r#"n1: (some were missed: {"missed":3})"#);
        assert_eq!(of_node("n1", "no JSON", true), r#"{"node":"n1","said":"no JSON"}"#);
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(milliseconds("10m"), Ok(600_000));
        for bad in ["", "10", "m", "-1s", "99999999999999999999h"] {
            assert!(milliseconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn both_ends_share_a_line_and_one_trust_domain_is_said_once() {
        let (web, db) = ("spiffe://example.org/service/web", "spiffe://example.org/service/db");
        let lines = [line(web, db, "egress", 3), line(web, db, "ingress", 3), line("host", db, "egress", 1)];
        let page = render(&lines, &[], 0);
        assert!(
            page.contains("egress, ingress") && page.contains("IDs that begin with / are in spiffe://example.org.")
        );
        assert_eq!(page.lines().filter(|l| l.contains("would-deny")).count(), 2, "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
        let mut out = line(web, "world", "egress", 7);
        out.addresses = vec![AddressLine {
            address: [203, 0, 113, 7].into(),
            name: Some("api.stripe.example".to_owned()),
            count: out.count,
        }];
        out.more_addresses = 3;
        let page = render(&[out], &[], 0);
        assert!(page.contains("api.stripe.example (203.0.113.7)") && page.contains("and 3 more."), "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
        let other = "spiffe://another.example.org/service/with/a/long/path/db";
        let page = render(&[line(web, other, "egress", 3), line(web, other, "ingress", 2)], &[], 0);
        assert!(page.contains("3, 2") && !page.contains("begin with /"), "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    }
}
