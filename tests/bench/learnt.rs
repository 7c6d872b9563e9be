//! How long a suggestion and a graph take over two weeks of what was seen, and what those weeks take up on disk.
//!
//! The history is written by the store itself, an hour at a time, as an agent would have done: each link is counted at
//! both of its ends, in each hour of the days that are kept by the hour, and in two of each day before. Then the real agent takes it over, and the real commands are asked.

use crate::Figure;
use crate::agent::mib;
use crate::numbers::median;
use anyhow::{Context, Result, bail, ensure};
use bulkhead::flows::PeerName;
use bulkhead::history::Counts;
use bulkhead::store::{Batch, Bounds, Reading, Sqlite, Store};
use bulkhead_common::maps::EdgeKey;
use bulkhead_common::{Direction, Outcome, PeerId, Reason, proto};
use bulkhead_tests::enforced::id;
use bulkhead_tests::{Agent, Estate};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const DAYS: u64 = 14;
const HOUR: u64 = 3_600_000;
const IDENTITIES: u32 = 300;
/// Whom each identity connects to.
const PEERS: u32 = 20;
const LINKS: u32 = IDENTITIES * PEERS;
const NAMESPACES: u32 = 20;
/// Each form that a graph can take.
const FORMS: [&str; 6] = ["text", "dot", "mermaid", "svg", "html", "json"];

/// The commands' own time, from their start to their end, and the store's size.
pub(crate) fn take(factor: f64) -> Result<Vec<Figure>> {
    let estate = Estate::new(&["web"]);
    let mut more = "posture: observe\nendpoints:\n".to_owned();
    for n in 0..IDENTITIES {
        let (address, PeerName { id, namespace }) = (Ipv4Addr::from(0x0a50_0001 + n), name(n));
        writeln!(more, "- {{address: {address}, id: {id}, namespace: {namespace}}}")?;
    }
    let mut agent = Agent::over(&estate, &more);
    // Where an agent of the harness keeps its history.
    let state = agent.folder().join("state/test");
    fs::create_dir_all(&state)?;
    let file = state.join("history.db");
    let started = Instant::now();
    let rows = write(&file)?;
    eprintln!("    {DAYS} days of {LINKS} links written in {:.1} s", started.elapsed().as_secs_f64());
    agent.start(&[]);
    ensure!(agent.log().contains("ready") && file.exists(), "the agent keeps its history elsewhere");

    let times = if factor < 1.0 { 3 } else { 7 };
    let config = agent.config().display().to_string();
    let mut suggested = Value::Null;
    let suggest = timed(times, || {
        let text = said(&agent, "policy suggest", &["--config", &config, "--json"])?;
        suggested = serde_json::from_slice(&text)?;
        Ok(())
    })?;
    let links = suggested["proof"]["links"].as_u64().context("a suggestion has a proof")?;
    ensure!(links == u64::from(LINKS), "the suggestion is over {links} links");
    let denied = suggested["proof"]["falseDenies"].as_array().context("a proof tells of false denies")?;
    ensure!(denied.is_empty(), "{} links that were seen would be denied", denied.len());
    let rules = suggested["rules"].as_array().map_or(0, Vec::len);

    let mut slowest = (f64::NEG_INFINITY, "");
    let mut each = Vec::new();
    for form in FORMS {
        let took = timed(times, || said(&agent, "graph", &["--as", form]).map(drop))?;
        each.push(format!("{form} {took:.0}"));
        if took > slowest.0 {
            slowest = (took, form);
        }
    }
    Ok(vec![
        Figure::alone("suggest", "ms", suggest, format!("{rules} rules from {links} links of {DAYS} days")),
        Figure::alone("graph", "ms", slowest.0, format!("as {}; each in ms: {}", slowest.1, each.join(", "))),
        Figure::alone("history-store", "MiB", mib(size(&file)?), format!("{rows} rows of counts")),
    ])
}

/// The median of what so many goes take, in milliseconds.
fn timed(times: u32, mut go: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut all = Vec::new();
    for _ in 0..times {
        let started = Instant::now();
        go()?;
        all.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(all))
}

fn said(agent: &Agent, command: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let out = agent.ask(command, arguments);
    if !out.status.success() || out.stdout.is_empty() {
        bail!("bulkhead {command}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}

fn name(n: u32) -> PeerName {
    let namespace = format!("team-{}", n % NAMESPACES);
    PeerName { id: id(&format!("{namespace}/service-{n}")), namespace }
}

/// Writes the history, and says how many rows of counts it came to.
fn write(file: &Path) -> Result<u64> {
    let mut store = Sqlite::new(file, Bounds::default());
    let names: Vec<Arc<PeerName>> = (0..IDENTITIES).map(|n| Arc::new(name(n))).collect();
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let first = now - DAYS * 24 * HOUR;
    let mut random = fastrand::Rng::with_seed(14);
    let mut readings: Vec<Reading> =
        (0..LINKS).flat_map(|link| [Direction::Egress, Direction::Ingress].map(|d| begin(&names, link, d))).collect();
    let mut before = None;
    let hourly = (Bounds::default().hourly_days + 1) * 24;
    for hour in (1..=DAYS * 24).filter(|h| h % 12 == 0 || h + hourly > DAYS * 24) {
        let at = first + hour * HOUR;
        for both in readings.as_chunks_mut::<2>().0 {
            let more = random.u64(1..100);
            for r in both {
                r.first = first + HOUR;
                r.last = at;
                r.counts.attempts += more;
                r.counts.established += more;
                r.counts.bytes_sent += 900 * more;
                r.counts.bytes_received += 20_000 * more;
                r.counts.packets_sent += 9 * more;
                r.counts.packets_received += 20 * more;
            }
        }
        let watched = before.map(|before| at - before);
        before = Some(at);
        store.record(&Batch { generation: 1, at, watched, readings: readings.clone(), ..Batch::default() })?;
        if hour % 24 == 0 {
            store.tidy(at, true)?;
        }
    }
    let health = store.health();
    ensure!(health.faults.is_empty(), "{:?}", health.faults);
    Ok(health.rows)
}

/// One end's counter of a link, at nothing.
fn begin(names: &[Arc<PeerName>], link: u32, direction: Direction) -> Reading {
    let (source, destination, port) = ends(link);
    let number = |n: u32| PeerId::FIRST_IDENTITY.0 + n;
    let key = EdgeKey {
        src: number(source),
        dst: number(destination),
        port,
        proto: proto::TCP,
        direction: direction as u8,
        outcome: Outcome::Allowed as u8,
        reason: Reason::Posture as u8,
        ..EdgeKey::default()
    };
    let name = |n: u32| Arc::clone(&names[n as usize]);
    let (source, destination) = (name(source), name(destination));
    Reading { key, address: None, source, destination, counts: Counts::default(), first: 0, last: 0, era: 0 }
}

/// Who connects to whom, and on which port: no two links are the same.
fn ends(link: u32) -> (u32, u32, u16) {
    let (source, nth) = (link / PEERS, link % PEERS);
    let destination = (source + 1 + nth * 13) % IDENTITIES;
    (source, destination, 8000 + u16::try_from(destination % 50).unwrap_or(0))
}

/// The file with what belongs to it.
fn size(file: &Path) -> Result<u64> {
    let mut sum = 0;
    for part in ["", "-wal", "-shm"] {
        let mut path = file.as_os_str().to_owned();
        path.push(part);
        sum += match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !part.is_empty() => 0,
            Err(e) => return Err(e).context("the history's file"),
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_as_many_links_as_it_says() {
        let all: BTreeSet<_> = (0..LINKS).map(ends).collect();
        assert_eq!(all.len(), LINKS as usize);
        assert!(all.iter().all(|(from, to, _)| from != to));
    }

    #[test]
    fn a_figure_is_the_middle_of_its_goes() {
        let mut n = 0;
        let took = timed(3, || {
            n += 1;
            Ok(())
        });
        assert!(took.expect("three goes") >= 0.0 && n == 3);
    }
}
