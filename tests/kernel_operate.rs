//! The real binary under orders: revoke, enforcement on trial, what expires, and what it finds after a boot.

use bulkhead::datapath::Drift;
use bulkhead::inventory::Posture;
use bulkhead_common::slots::{Baseline, Sides};
use bulkhead_common::{maps, places};
use bulkhead_tests::agent::{fine, text};
use bulkhead_tests::database::{POLICY, PORT, enforcing, reaches};
use bulkhead_tests::talk::{client, tcp_server};
use bulkhead_tests::vandal::Array;
use bulkhead_tests::{Agent, Enforced, Estate, NEVER, Reply, SOON, Via, at, passes, slowness, wait_for};
use socket2::Type;
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn a_revoked_identity_is_cut_at_once_and_stays_out_until_restored() {
    let estate = Estate::new(&["web", "reports", "database"]);
    let mut agent = enforcing(&estate);
    let database = estate.get("database");
    let mut server = tcp_server(database, PORT);
    let mut web = client(estate.get("web"), Type::STREAM, at(database, false, PORT));
    assert!(server.receives(b"hello", SOON));
    let mut reports = client(estate.get("reports"), Type::STREAM, at(database, false, PORT));

    let nobody = agent.ask("revoke", &["spiffe://test/nobody"]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(text(&nobody).contains("no workload and no endpoint here has the ID"), "{}", text(&nobody));
    let dry = agent.ask("revoke", &["spiffe://test/web", "--dry-run"]);
    assert_eq!(dry.status.code(), Some(1), "it would cut something");
    assert!(text(&dry).contains("2 live sockets would be cut"), "{}", text(&dry));
    assert!(!web.receives(b"errno", NEVER), "{:?}", web.received());

    let begun = Instant::now();
    let said = fine(&agent.ask("revoke", &["spiffe://test/web", "--reason", "key leaked"]));
    assert!(web.receives(b"errno", SOON) && server.receives(b"errno", SOON), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(2) * slowness(), "{:?}", begun.elapsed());
    assert!(said.contains("spiffe://test/web is revoked"), "{said}");
    assert!(agent.log().contains("live connections were cut"), "{}", agent.log());
    let mut fresh = estate.get("database").serve(&[PORT + 1], Reply::Nothing).expect("a server");
    wait_for("the other's turn", || server.received().iter().filter(|b| **b == b"hello").count() == 2);
    assert!(!reports.receives(b"errno", NEVER), "{:?}", reports.received());

    agent.kill();
    agent.start(&[]);
    let (status, code) = agent.status();
    assert_eq!(status["overrides"]["revoked"][0]["reason"], "key leaked", "{status:#}");
    assert_eq!(code, Some(0), "revoking is nothing out of order");
    let to = at(database, false, PORT);
    assert!(passes(estate.get("web"), to, Via::Tcp, &mut fresh).1.is_err(), "still out");
    assert!(
        text(
            &agent.ask("explain", &["--from", "spiffe://test/web", "--to", "spiffe://test/database", "--port", "5432"])
        )
        .contains("is revoked")
    );
    fine(&agent.ask("restore", &["spiffe://test/web"]));
    let _again = client(estate.get("web"), Type::STREAM, to);
}

#[test]
fn a_posture_is_enforced_on_trial_and_turned_back_by_the_next_agent_if_need_be() {
    let estate = Estate::new(&["web", "intruder", "database"]);
    let mut server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = Agent::over(&estate, "posture: audit");
    fs::write(agent.policies().join("database.yaml"), POLICY).expect("a file");
    agent.start(&[]);
    assert!(reaches(&estate, "intruder", &mut server), "only audited");
    fine(&agent.ask("enforce", &["--confirm-within", "1h"]));
    assert!(!reaches(&estate, "intruder", &mut server) && reaches(&estate, "web", &mut server));
    assert!(text(&agent.ask("status", &[])).contains("ON TRIAL: node is enforced"));
    fine(&agent.ask("enforce", &["--revert"]));
    assert!(reaches(&estate, "intruder", &mut server));

    fine(&agent.ask("enforce", &["--confirm-within", "3s"]));
    assert!(!reaches(&estate, "intruder", &mut server));
    agent.kill();
    assert!(!reaches(&estate, "intruder", &mut server), "nobody is there to turn it back");
    wait_for("the trial's end", || {
        let text = fs::read_to_string(agent.folder().join("state/test/overrides.json")).expect("the file");
        let stored: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let until = stored["enforced"]["node"]["confirmBy"]["until"].as_u64().expect("a time");
        bulkhead::app::clock::now() > until
    });
    agent.start(&[]);
    assert!(reaches(&estate, "intruder", &mut server), "turned back at the start");

    fine(&agent.ask("enforce", &["--confirm-within", "1h", "--policy", "database"]));
    fine(&agent.ask("enforce", &["--confirm"]));
    agent.kill();
    agent.start(&[]);
    assert_eq!(agent.status().0["overrides"]["enforced"][0]["what"], "policy=database");
}

#[test]
fn what_expires_is_cut() {
    let estate = Estate::new(&["web", "reports", "database"]);
    let mut agent = Agent::over(&estate, "posture: enforce");
    let ends = bulkhead::time::rfc3339(bulkhead::app::clock::now() + 3_600_000);
    let edge = |from: &str, more: &str| {
        format!(
            "    - {{from: [{{id: spiffe://test/{from}}}], to: [{{id: spiffe://test/database}}], ports: [{{port: {PORT}}}]{more}}}\n"
        )
    };
    let (head, _) = POLICY.split_once("    - from").expect("edges");
    let policy =
        |ends: &str| format!("{head}{}{}", edge("web", &format!(", expiresAt: \"{ends}\"")), edge("reports", ""));
    let file = agent.policies().join("database.yaml");
    fs::write(&file, policy(&ends)).expect("a file");
    agent.start(&[]);
    let (status, code) = agent.status();
    assert_eq!(code, Some(0), "a warning is no error");
    let warning = status["findings"][0]["text"].as_str().unwrap_or_default();
    assert!(warning.contains("database.yaml:7:") && warning.contains("expires within a day"), "{status:#}");

    let to = at(estate.get("database"), false, PORT);
    let mut server = tcp_server(estate.get("database"), PORT);
    let mut web = client(estate.get("web"), Type::STREAM, to);
    assert!(server.receives(b"hello", SOON));
    let mut reports = client(estate.get("reports"), Type::STREAM, to);
    let soon = bulkhead::time::rfc3339(bulkhead::app::clock::now() + 2_000 * u64::from(slowness()));
    fs::write(&file, policy(&soon)).expect("a file");
    assert!(web.receives(b"errno", SOON) && server.receives(b"errno", SOON), "{}", agent.log());
    assert!(!reports.receives(b"errno", NEVER), "{:?}", reports.received());
    assert!(agent.log().contains("has expired"), "{}", agent.log());
}

#[test]
fn what_somebody_else_wrote_into_the_tables_is_found_and_put_right() {
    let estate = Estate::new(&["web", "intruder", "database"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, &POLICY.replace(", {id: spiffe://test/reports}", ""));
    let image = enforced.compile(&POLICY.replace(", {id: spiffe://test/reports}", ""));
    let mut server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    enforced.datapath().settle().expect("settled");
    let drift = |enforced: &mut Enforced| enforced.datapath().verify(&image).expect("read").expect("settled");
    assert_eq!(drift(&mut enforced), Drift::default());

    // Defaults that allow everything.
    let open = Baseline { sides: Sides::ALL, sockets_now: 7, sockets_audited: 7 }.encode();
    let baselines = Array::pinned(enforced.instance(), maps::BASELINES);
    for who in ["intruder", "database"] {
        assert!(baselines.write(enforced.peer(who).0, &[open, open]));
    }
    assert!(reaches(&estate, "intruder", &mut server), "the tables were really written to");
    assert_eq!(drift(&mut enforced), Drift { changed: 2, ..Drift::default() });
    enforced.datapath().realign(&image).expect("put right");
    assert!(!reaches(&estate, "intruder", &mut server));

    // No rules at all any more.
    let rules = Array::pinned(enforced.instance(), maps::RULES);
    let nothing = [0; places::RULE_WORDS];
    assert!((0..).take_while(|n| rules.write(*n, &nothing)).count() > 0);
    assert!(!reaches(&estate, "web", &mut server), "the tables were really written to");
    enforced.datapath().settle().expect("settled");
    let lost = drift(&mut enforced);
    assert!(lost.missing > 0 && lost.changed == 0 && lost.foreign == 0, "{lost:?}");
    enforced.datapath().realign(&image).expect("put right");
    assert!(reaches(&estate, "web", &mut server) && !reaches(&estate, "intruder", &mut server));
    enforced.datapath().settle().expect("settled");
    assert_eq!(drift(&mut enforced), Drift::default());
}

#[test]
fn after_a_boot_the_last_ruleset_is_in_force_before_an_agent_is() {
    let estate = Estate::new(&["web", "intruder", "database"]);
    let mut server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = enforcing(&estate);
    let (status, _) = agent.status();
    assert!(status["open_since_boot_ms"].as_u64().is_some_and(|ms| ms > 0), "{status:#}");
    agent.kill();
    fine(&agent.ask("uninstall", &[]));
    assert!(reaches(&estate, "intruder", &mut server), "as after a boot");

    // Neither of the files is good any more.
    let policy = agent.policies().join("database.yaml");
    fs::write(&policy, "kind: nonsense\n").expect("a file");
    let good = fs::read_to_string(agent.config()).expect("the file");
    fs::write(agent.config(), "posture: nonsense\n").expect("a file");
    let state = agent.folder().join("state");
    let early = agent.ask("early", &["--state", state.to_str().expect("a path"), "--instance", "test"]);
    let said = fine(&early);
    assert!(said.contains("the last good configuration is taken") && said.contains("in force until an agent comes"));
    assert!(!reaches(&estate, "intruder", &mut server), "in force without an agent");
    assert!(reaches(&estate, "web", &mut server), "the last good policy");

    fs::write(agent.config(), good).expect("a file");
    fs::write(&policy, POLICY).expect("a file");
    agent.start(&[]);
    assert!(agent.log().contains("adopted"), "{}", agent.log());
    let (after, _) = agent.status();
    assert!(after["open_since_boot_ms"].as_u64() > status["open_since_boot_ms"].as_u64(), "{after:#}");
    assert!(!reaches(&estate, "intruder", &mut server) && reaches(&estate, "web", &mut server));
    let again = agent.ask("early", &[]);
    assert_eq!(again.status.code(), Some(15), "{}", text(&again));
}
