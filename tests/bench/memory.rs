//! What the agent takes up with many endpoints, identities and rules.

use crate::Figure;
use crate::agent::{Memory, fill, map_memory, mib, status_when};
use anyhow::{Context, Result, ensure};
use bulkhead_tests::enforced::id;
use bulkhead_tests::{Agent, Estate};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

const ENDPOINTS: u32 = 50_000;
const IDENTITIES: u32 = 1000;
/// Rules of each identity.
const RULES: u32 = 10;
/// Policies of one file.
const IN_A_FILE: u32 = 50;
/// How long the start and the last commit are left behind.
const SETTLE: Duration = Duration::from_secs(6);
/// How long it is watched: more than one of the looks that the agent takes at everything by itself.
const WATCH: Duration = Duration::from_secs(13);

/// The greatest that it has over a while in which nothing happens, after a start and a commit.
pub(crate) fn take(_: f64) -> Result<Vec<Figure>> {
    let estate = Estate::new(&["web", "database"]);
    let mut more = "posture: enforce\nranges: [10.0.0.0/8]\nendpoints:\n".to_owned();
    // The workloads are two of the identities, with an endpoint for each of their addresses.
    for n in 0..ENDPOINTS - 4 {
        let a = std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(10, 80, 0, 1)) + n);
        writeln!(more, "- {{address: {a}, id: {}}}", name(n % (IDENTITIES - 2))).context("memory")?;
    }
    let mut agent = Agent::over(&estate, &more);
    for (file, text) in policies(&agent) {
        fs::write(file, text)?;
    }
    agent.start(&[]);
    let pid = agent.pid();
    let first = status_when(&agent, "the rules aren't in force", |s| {
        fill(s, "ADDRESSES") >= u64::from(ENDPOINTS) && fill(s, "RULES") >= u64::from(IDENTITIES * RULES)
    })?;
    ensure!(first["faults"].as_array().is_some_and(Vec::is_empty), "{}", first["faults"]);
    let started = Memory::of(pid)?;

    // One rule changes, as it would in use.
    let (file, text) = policies(&agent).into_iter().next().context("a file")?;
    fs::write(file, text.replace("port: 2000}", "port: 1999}"))?;
    let commits = &first["commits"];
    let status = status_when(&agent, "the changed rule isn't in force", |s| s["commits"] != *commits)?;
    sleep(SETTLE);

    let (mut most, until) = (Memory::default(), Instant::now() + WATCH);
    while Instant::now() < until {
        let now = Memory::of(pid)?;
        if now.resident > most.resident {
            most = now;
        }
        sleep(Duration::from_millis(50));
    }
    let note = format!(
        "{} endpoints, {} rules: {:.1} MiB of it anonymous; {:.1} MiB when it had started, {:.1} MiB at most; \
         maps {:.1} MiB beside it",
        fill(&status, "ADDRESSES"),
        fill(&status, "RULES"),
        mib(most.anonymous),
        mib(started.resident),
        mib(most.peak),
        mib(map_memory(pid)?)
    );
    Ok(vec![Figure::alone("agent-memory", "MiB", mib(most.resident), note)])
}

fn name(n: u32) -> String {
    id(&format!("team-{}/service-{n}", n % 40))
}

/// Each identity may reach ten others, each on a port of its own.
fn policies(agent: &Agent) -> Vec<(PathBuf, String)> {
    let all: Vec<u32> = (0..IDENTITIES).collect();
    let others = IDENTITIES - 2;
    let files = all.chunks(IN_A_FILE as usize).enumerate();
    let policy = |n: u32| {
        let edge = |k: u32| {
            let to = name((n + 1 + 37 * k) % others);
            let port = 2000 + 2 * ((n + k) % 500);
            format!("    - {{from: [{{id: {}}}], to: [{{id: {to}}}], ports: [{{port: {port}}}]}}\n", name(n % others))
        };
        format!(
            "---\napiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: service-{n}}}\n\
             spec:\n  mode: enforce\n  edges:\n{}",
            (0..RULES).map(edge).collect::<String>()
        )
    };
    files
        .map(|(n, chunk)| {
            let text: String = chunk.iter().map(|n| policy(*n)).collect();
            (agent.policies().join(format!("services-{n}.yaml")), text)
        })
        .collect()
}
