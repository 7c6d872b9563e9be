//! The programs' own log: lines when they are asked for, nothing otherwise.

use bulkhead_tests::{Agent, Estate, Reply, Via, at, passes, wait_for};

const PORT: u16 = 7001;
const DECISION: &str = "decides: outcome 3";

fn try_once(estate: &Estate) {
    let mut server = estate.get("server").serve(&[PORT], Reply::Nothing).expect("a server");
    let to = at(estate.get("server"), false, PORT);
    assert!(!passes(estate.get("client"), to, Via::Tcp, &mut server).0, "the posture denies");
}

/// The most instructions that the verifier went through for one program; 0 where the kernel doesn't tell.
fn instructions(agent: &Agent) -> u64 {
    let (status, _) = agent.status();
    let programs = status["programs"].as_array().expect("programs").clone();
    programs.iter().filter_map(|p| p["verified_instructions"].as_u64()).max().unwrap_or(0)
}

#[test]
fn the_programs_log_when_asked_to_and_are_silent_otherwise() {
    let estate = Estate::new(&["client", "server"]);
    let mut agent = Agent::over(&estate, "posture: enforce");
    agent.start(&[]);
    try_once(&estate);
    wait_for("the event", || agent.log().contains("no-egress-rule"));
    assert!(!agent.log().contains(DECISION), "{}", agent.log());
    let silent = instructions(&agent);
    agent.kill();

    // The same pins, other programs: swapped through the links.
    agent.start(&["--kernel-log"]);
    try_once(&estate);
    wait_for("a line of the programs", || agent.log().contains(DECISION));
    let verbose = instructions(&agent);
    // Where the kernel tells (5.16 on): what is off isn't even looked at.
    assert!(silent == 0 || silent < 100_000 && silent < verbose, "{silent} and {verbose}");
    agent.kill();

    agent.start(&[]);
    try_once(&estate);
    wait_for("the event", || agent.log().contains("no-egress-rule"));
    assert!(!agent.log().contains(DECISION), "{}", agent.log());
    assert_eq!(instructions(&agent), silent);
}
