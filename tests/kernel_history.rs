//! What the real agent writes down of real traffic, also when it is killed again and again.

use bulkhead_tests::agent::text;
use bulkhead_tests::{Agent, Estate, Process, Reply, at, wait_at_most, wait_for};
use serde_json::Value;
use std::fs;
use std::net::TcpStream;
use std::time::Duration;

const PORT: u16 = 5432;
const SOON: Duration = Duration::from_secs(20);

/// Connects so many times, and gives how many connections there were. The process lives on: its executable can be seen.
fn connect(estate: &Estate, from: &str, times: u32, living: &mut Vec<Process>) -> u64 {
    let to = at(estate.get("database"), false, PORT);
    let mut client = estate
        .get(from)
        .spawn(move |turn| {
            turn.ready()?;
            let made = (0..times).filter(|_| TcpStream::connect(to).is_ok()).count();
            turn.received(made.to_string().as_bytes())?;
            turn.stay()
        })
        .expect("a process");
    client.wait_ready(SOON).expect("it is there");
    client.go(&[]).expect("it goes");
    client.wait_ready(SOON).expect("it tried them all");
    let said = client.received().first().map(|s| String::from_utf8_lossy(s).into_owned());
    living.push(client);
    said.and_then(|s| s.parse().ok()).expect("it says how many")
}

/// Attempts from one workload to the database, by outcome, in all the history.
fn attempts(agent: &Agent, from: &str, outcome: &str) -> u64 {
    let graph = agent.ask("graph", &["--as", "json"]);
    let graph: Value = serde_json::from_slice(&graph.stdout).unwrap_or_else(|_| panic!("{}", text(&graph)));
    let nodes = graph["nodes"].as_array().expect("nodes");
    let is = |i: &Value, name: &str| {
        let i = i.as_u64().and_then(|i| usize::try_from(i).ok()).expect("an index");
        nodes[i]["id"] == format!("spiffe://test/{name}")
    };
    let edges = graph["edges"].as_array().expect("edges").iter();
    let ours = edges.filter(|e| is(&e["source"], from) && is(&e["destination"], "database") && e["outcome"] == outcome);
    ours.filter_map(|e| e["attempts"].as_u64()).sum()
}

#[test]
fn connections_are_counted_once_however_often_the_agent_is_killed() {
    let estate = Estate::new(&["web", "database"]);
    let _server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = Agent::over(&estate, "posture: observe");
    let (mut made, mut living) = (0, Vec::new());
    agent.start(&[]);
    for round in 0..6 {
        made += connect(&estate, "web", 20 + round, &mut living);
        // Sometimes right after the traffic, sometimes once it is stored, sometimes with traffic while it is gone.
        if round % 3 == 1 {
            wait_for("the counts are stored", || attempts(&agent, "web", "allowed") == made);
        }
        agent.kill();
        if round % 3 == 2 {
            made += connect(&estate, "web", 7, &mut living);
        }
        agent.start(&[]);
    }
    wait_for("everything is counted", || attempts(&agent, "web", "allowed") >= made);
    assert_eq!(attempts(&agent, "web", "allowed"), made);
    let tree = text(&agent.ask("graph", &[]));
    assert!(tree.contains("database") && tree.lines().all(|l| l.chars().count() <= 100), "{tree}");
}

#[test]
fn executables_of_what_is_allowed_are_learnt() {
    let estate = Estate::new(&["web", "database"]);
    let mut agent = Agent::over(&estate, "posture: observe");
    agent.start(&[]);
    // Of a socket that is older than the programs, nobody knows the maker.
    let _server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut living = Vec::new();
    let us = std::env::current_exe().expect("an executable").display().to_string();
    wait_at_most(Duration::from_secs(40), "both ends' executables", || {
        connect(&estate, "web", 1, &mut living);
        let graph: Value = serde_json::from_slice(&agent.ask("graph", &["--as", "json"]).stdout).unwrap_or_default();
        let seen = |end: &str| graph["edges"][0][end].as_array().is_some_and(|all| all.contains(&us.as_str().into()));
        seen("source_executables") && seen("destination_executables")
    });
}

#[test]
fn denials_are_written_down_and_the_log_is_whole_after_a_kill() {
    let estate = Estate::new(&["web", "database", "intruder"]);
    let _server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = Agent::over(&estate, "posture: enforce");
    let file = agent.folder().join("log/decisions.jsonl");
    let config = fs::read_to_string(agent.config()).expect("there");
    let log = format!("decisionLog: {{path: {}, interval: 1s}}\n", file.display());
    fs::write(agent.config(), log + &config).expect("written");
    let policy = "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {name: database}\nspec:\n  \
        mode: enforce\n  edges:\n    - from: [{id: spiffe://test/web}]\n      to: [{id: spiffe://test/database}]\n";
    fs::write(agent.policies().join("database.yaml"), policy).expect("written");
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    };
    let denied = || lines().iter().filter(|l| l["kind"] == "decision" && l["outcome"] == "denied").count();
    agent.start(&[]);
    let mut living = Vec::new();
    let mut connect = |from: &str, times| connect(&estate, from, times, &mut living);
    assert_eq!((connect("intruder", 30), connect("web", 5)), (0, 5));
    wait_for("each denial has a line", || denied() == 30);
    // One for each interval in which there was any.
    wait_for("what is allowed is told with its rule", || {
        let rule = "ClusterSegmentationPolicy database edges[0]";
        let told = lines();
        let by_rule = told.iter().filter(|l| l["kind"] == "allowed" && l["egress_rule"] == rule);
        by_rule.filter_map(|l| l["count"].as_u64()).sum::<u64>() == 5
    });
    agent.kill();
    agent.start(&[]);
    assert_eq!(connect("intruder", 3), 0);
    wait_for("so have those after a kill", || denied() == 33);
    let executable = lines().iter().find(|l| l["kind"] == "decision").map(|l| l["executable"].clone());
    assert!(executable.as_ref().and_then(Value::as_str).is_some_and(|e| e.starts_with('/')), "{executable:?}");

    let report: Value = serde_json::from_slice(&agent.ask("report", &["--json"]).stdout).expect("JSON");
    assert_eq!((&report["surface"]["pairs"], &report["surface"]["reachable"]), (&6.into(), &1.into()), "{report:#}");
    agent.kill();
    let verify = || {
        let binary = bulkhead_tests::agent::binary();
        std::process::Command::new(binary).args(["report", "verify"]).arg(&file).output().expect("it runs")
    };
    let whole = verify();
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole));
    let written = fs::read_to_string(&file).expect("there");
    let without: String = written.lines().enumerate().filter(|(n, _)| *n != 7).map(|(_, l)| format!("{l}\n")).collect();
    fs::write(&file, without).expect("written");
    let cut = verify();
    assert_eq!(cut.status.code(), Some(1));
    assert!(text(&cut).contains("decisions.jsonl:8: ") && text(&cut).contains("missing"), "{}", text(&cut));
}
