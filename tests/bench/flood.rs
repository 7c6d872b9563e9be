//! What a workload that is denied as fast as it can try does to the connects of another, and to the agent.
//!
//! One process floods from one processor, one connects legitimately from another, and the real agent runs wherever the
//! kernel lets it. In turns the flood goes to where a rule allows it and to where none does: the same calls at the same
//! pace, from a process that never sleeps. So what differs is what denying costs: the refusal, its event, and what the
//! agent does with it. All are of normal priority.

use crate::Figure;
use crate::agent::{Memory, bytes_in, document, mib, processor_seconds};
use crate::keys::Keys;
use crate::numbers::{median, percentile};
use crate::rounds::{cpus, settle_on};
use crate::work::{listen, nanoseconds, open};
use anyhow::{Context, Result, ensure};
use bulkhead_tests::enforced::id;
use bulkhead_tests::sandbox::{Process, Turn};
use bulkhead_tests::{Agent, Estate};
use rustix::net::{SocketType, accept, connect};
use serde_json::Value;
use std::fs;
use std::hint::spin_loop;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// Flooding connects in a second.
const PACE: u32 = 100_000;
/// Of these, so many are made at once.
const BURST: u32 = 10;
/// How often the other workload connects.
const EVERY: Duration = Duration::from_micros(250);
/// How long a turn takes; there are as many of each kind.
const TURN: Duration = Duration::from_secs(1);
const TURNS: u32 = 10;
const PORT: u16 = 5432;
const ALLOWED: u16 = 2000;
/// What the log may take up: two files of 4 MiB.
const LOG: &str = "maxSize: 4MiB, keep: 2";
/// How long anything else may take.
const SOON: Duration = Duration::from_secs(30);

/// A turn of either kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flood {
    Allowed,
    Denied,
}

/// The legitimate connects' p99, what was counted, and what the log and the agent grew to.
pub(crate) fn take(factor: f64) -> Result<Vec<Figure>> {
    let estate = Estate::new(&["shop", "database", "flooder"]);
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("decisions.jsonl");
    let more = format!("posture: enforce\ndecisionLog: {{path: {}, {LOG}}}", log.display());
    let mut agent = Agent::over(&estate, &more);
    fs::write(agent.policies().join("shop.yaml"), policy())?;
    agent.start(&[]);

    let all = cpus()?;
    let (first, last) = (*all.first().context("no processor")?, *all.last().context("no processor")?);
    let database = estate.get("database").v4();
    let mut server = estate.get("database").spawn(|turn| {
        turn.give_socket(listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT))?)?;
        turn.stay()
    })?;
    let listener = server.take_socket(SOON).context("the server gave no listener")?;
    let mut shop = estate.get("shop").spawn(|turn| connects(turn, last, SocketAddrV4::new(database, PORT)))?;
    shop.hand_over(listener.as_fd())?;
    let mut flooder = estate.get("flooder").spawn(|turn| floods(turn, first, database))?;

    let turns = if factor < 1.0 { 3 } else { TURNS };
    let (mut made, mut kernel_time) = (0, Duration::ZERO);
    // What was made up to here isn't of interest.
    let (mut calm, mut flooded, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    run(&mut shop, &mut flooder, Flood::Allowed, TURN / 2)?;
    let before = Memory::of(agent.pid())?;
    // The peak begins anew (proc(5)).
    fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5")?;
    let mut processor = 0.0;
    for turn in 0..turns {
        let mut order = [Flood::Allowed, Flood::Denied];
        if turn % 2 == 1 {
            order.reverse();
        }
        let mut p99 = [0.0; 2];
        for flood in order {
            let was = processor_seconds(agent.pid())?;
            let (samples, n) = run(&mut shop, &mut flooder, flood, TURN)?;
            p99[flood as usize] = percentile(samples.clone(), 99);
            if flood == Flood::Denied {
                processor += processor_seconds(agent.pid())? - was;
                made += n;
                kernel_time += TURN;
                flooded.extend(samples);
            } else {
                calm.extend(samples);
            }
        }
        ratios.push(p99[1] / p99[0]);
    }
    let counted = counted(&agent, made)?;
    let after = Memory::of(agent.pid())?;
    let status = document(&agent, "status", &["--json"])?;
    let (written, missing) = lines(&status["decision_log"]);
    let seconds = kernel_time.as_secs_f64();
    let growth = after.peak.saturating_sub(before.resident);
    let p99 = |samples: &Vec<f64>| percentile(samples.clone(), 99);
    let half = |samples: &Vec<f64>| percentile(samples.clone(), 50);
    Ok(vec![
        Figure {
            name: "denied-flood",
            unit: "ns",
            none: Some(p99(&calm)),
            bulkhead: p99(&flooded),
            ratio: Some(median(ratios)),
            note: format!(
                "p99 of a legitimate connect beside {:.0} denied connects a second, to that beside as many allowed ones \
                 (half of them within {:.0} and {:.0} ns); the agent takes {:.0} % of a processor",
                made as f64 / seconds,
                half(&flooded),
                half(&calm),
                100.0 * processor / seconds
            ),
            ..Figure::default()
        },
        Figure::alone(
            "flood-counted",
            "missed",
            counted.abs_diff(made) as f64,
            format!("{made} denied connects made, {counted} counted"),
        ),
        Figure::alone(
            "flood-log",
            "MiB",
            mib(bytes_in(folder.path())?),
            format!("{written} lines were written and {missing} decisions are said to be missing"),
        ),
        Figure::alone(
            "flood-memory",
            "MiB",
            mib(growth),
            format!("the agent had {:.1} MiB before and {:.1} at most", mib(before.resident), mib(after.peak)),
        ),
    ])
}

/// One turn: the times of the legitimate connects in nanoseconds, and how many flooding ones were made.
fn run(shop: &mut Process, flooder: &mut Process, flood: Flood, length: Duration) -> Result<(Vec<f64>, u64)> {
    for process in [&mut *shop, &mut *flooder] {
        process.wait_ready(SOON)?;
    }
    let word = [&[flood as u8][..], &nanoseconds(length).to_ne_bytes()].concat();
    flooder.go(&word)?;
    shop.go(&word)?;
    flooder.wait_ready(length + SOON)?;
    shop.wait_ready(length + SOON)?;
    let made = flooder.received().last().and_then(|b| b.as_slice().try_into().ok()).map(u64::from_ne_bytes);
    let samples = shop.received().last().context("no samples")?;
    let samples: Vec<f64> = samples.as_chunks::<4>().0.iter().map(|b| f64::from(u32::from_ne_bytes(*b))).collect();
    ensure!(!samples.is_empty(), "nobody connected");
    Ok((samples, made.context("the flooder says nothing")?))
}

fn word(bytes: &[u8]) -> io::Result<(bool, Duration)> {
    let (flood, length) = bytes.split_first().ok_or(io::ErrorKind::InvalidData)?;
    let length = length.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((*flood == Flood::Denied as u8, Duration::from_nanos(u64::from_ne_bytes(length))))
}

/// Connects now and then, and tells how long each took.
fn connects(turn: &mut Turn, cpu: usize, to: SocketAddrV4) -> io::Result<()> {
    settle_on(cpu)?;
    turn.doing("taking the listener");
    let listener = turn.take_socket()?;
    loop {
        let (_, length) = word(&turn.ready()?)?;
        turn.doing("connecting");
        let (mut samples, begun) = (Vec::new(), Instant::now());
        let mut due = begun;
        while begun.elapsed() < length {
            let socket = open(SocketType::STREAM)?;
            let started = Instant::now();
            connect(&socket, &to)?;
            let took = nanoseconds(started.elapsed());
            samples.extend(u32::try_from(took).unwrap_or(u32::MAX).to_ne_bytes());
            drop(accept(&listener)?);
            due += EVERY;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        turn.received(&samples)?;
    }
}

/// Connects at the pace, never sleeping, and tells how often it did.
fn floods(turn: &mut Turn, cpu: usize, database: Ipv4Addr) -> io::Result<()> {
    settle_on(cpu)?;
    let socket = open(SocketType::DGRAM)?;
    loop {
        let (denied, length) = word(&turn.ready()?)?;
        turn.doing("flooding");
        let to = SocketAddrV4::new(database, if denied { Keys::DENIED_PORT } else { ALLOWED });
        let (mut made, begun) = (0_u64, Instant::now());
        loop {
            let passed = begun.elapsed();
            if passed >= length {
                break;
            }
            if (made as f64) > passed.as_secs_f64() * f64::from(PACE) {
                spin_loop();
                continue;
            }
            for _ in 0..BURST {
                match connect(&socket, &to) {
                    Ok(()) if !denied => {}
                    Err(rustix::io::Errno::PERM) if denied => {}
                    Ok(()) => return Err(io::Error::other("a connect passed that no rule allows")),
                    Err(e) => return Err(e.into()),
                }
            }
            made += u64::from(BURST);
        }
        turn.received(&made.to_ne_bytes())?;
    }
}

fn policy() -> String {
    let edge = |from: &str, port: String| {
        format!("    - {{from: [{{id: {}}}], to: [{{id: {}}}], ports: [{port}]}}\n", id(from), id("database"))
    };
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: shop}}\nspec:\n  \
         mode: enforce\n  edges:\n{}{}",
        edge("shop", format!("{{port: {PORT}}}")),
        edge("flooder", format!("{{protocol: UDP, port: {ALLOWED}}}"))
    )
}

/// How many denied connects of the flooder the agent has counted, as soon as that is as many as were made; else what it
/// says in the end.
fn counted(agent: &Agent, made: u64) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let out = agent.ask("observe", &["--verdict", "denied", "--id", &id("flooder"), "--json"]);
        let lines = out.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        let edges = lines.map(serde_json::from_slice::<Value>).collect::<Result<Vec<_>, _>>()?;
        let by_source = edges.iter().filter(|e| e["direction"] == "egress");
        let counted = by_source.filter_map(|e| e["total"].as_u64()).sum();
        if counted == made || Instant::now() > deadline {
            return Ok(counted);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Lines that the decision log has, and decisions that it says aren't there.
fn lines(log: &Value) -> (u64, u64) {
    let number = |v: &Value| v.as_u64().unwrap_or(0);
    let dropped = &log["dropped"];
    (number(&log["written"]), ["kernel", "queue", "disk"].iter().map(|k| number(&dropped[k])).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_told_as_it_is() {
        let bytes = [&[Flood::Denied as u8][..], &1_500_000_000_u64.to_ne_bytes()].concat();
        assert_eq!(word(&bytes).expect("whole"), (true, Duration::from_millis(1500)));
        assert!(word(&bytes[..8]).is_err());
    }

    #[test]
    fn what_is_missing_is_added_up() {
        let log = serde_json::json!({"written": 5, "dropped": {"kernel": 1, "queue": 2, "disk": 4}});
        assert_eq!(lines(&log), (5, 7));
        assert_eq!(lines(&Value::Null), (0, 0));
    }
}
