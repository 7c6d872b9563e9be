//! The real binary from its first start to its removal, with real traffic; the receiver decides.

use bulkhead_tests::agent::text;
use bulkhead_tests::database::{PORT, reaches};
use bulkhead_tests::{Agent, Estate, Reply, wait_for};
use std::fs;

/// A policy that lets this workload, and nobody else, reach the database.
fn policy(from: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: database}}\nspec:\n  \
         mode: enforce\n  edges:\n    - from: [{{id: spiffe://test/{from}}}]\n      to: [{{id: spiffe://test/database}}]\n      \
         ports: [{{port: {PORT}}}]\n"
    )
}

#[test]
fn enforces_outlives_a_kill_is_adopted_keeps_the_last_good_policy_and_comes_off() {
    let estate = Estate::new(&["web", "database", "intruder"]);
    let mut server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = Agent::over(&estate, "posture: enforce");
    let file = agent.policies().join("database.yaml");
    fs::write(&file, policy("web")).expect("a file");
    assert!(reaches(&estate, "intruder", &mut server), "nothing is in force yet");

    agent.start(&[]);
    assert!(reaches(&estate, "web", &mut server) && !reaches(&estate, "intruder", &mut server));
    let (status, _) = agent.status();
    assert_eq!(status["programs"].as_array().map(Vec::len), Some(9), "{status:#}");
    let features = status["features"].as_array().expect("features");
    assert!(features.iter().any(|f| f["name"] == "ring-buffer" && f["available"] == true), "{features:#?}");
    wait_for("the denial in the table", || {
        let seen = text(&agent.ask("observe", &["--verdict", "denied"]));
        assert!(seen.lines().all(|l| l.chars().count() <= 100), "{seen}");
        seen.contains("/intruder")
    });
    let why = |from: &str| {
        let from = format!("spiffe://test/{from}");
        agent.ask("explain", &["--from", &from, "--to", "spiffe://test/database", "--port", "5432"])
    };
    let (allowed, denied) = (why("web"), why("intruder"));
    assert_eq!((allowed.status.code(), denied.status.code()), (Some(0), Some(1)));
    assert!(text(&allowed).contains("database.yaml:7"), "{}", text(&allowed));
    assert!(text(&denied).contains("no-egress-rule"), "{}", text(&denied));

    agent.kill();
    assert!(!reaches(&estate, "intruder", &mut server), "in force without the agent");
    assert!(reaches(&estate, "web", &mut server), "and what is allowed passes");
    let unanswered = agent.ask("status", &[]);
    assert_eq!(unanswered.status.code(), Some(2));
    assert!(text(&unanswered).contains("no agent listens"), "{}", text(&unanswered));

    agent.start(&[]);
    assert!(agent.log().contains("adopted"), "{}", agent.log());
    assert!(!reaches(&estate, "intruder", &mut server) && reaches(&estate, "web", &mut server));

    fs::write(&file, policy("intruder")).expect("a file");
    wait_for("the changed policy in force", || reaches(&estate, "intruder", &mut server));
    assert!(!reaches(&estate, "web", &mut server), "the rule names somebody else now");

    fs::write(&file, policy("web").replace("ports", "prots")).expect("a file");
    wait_for("a finding", || agent.status().1 == Some(1));
    let (status, _) = agent.status();
    let finding = status["findings"][0]["text"].as_str().unwrap_or_default();
    assert!(finding.contains("database.yaml:9:7: error: `prots` isn't a field here (hint:"), "{finding}");
    assert!(reaches(&estate, "intruder", &mut server) && !reaches(&estate, "web", &mut server), "the last good form");
    agent.kill();
    agent.start(&[]);
    assert!(reaches(&estate, "intruder", &mut server) && !reaches(&estate, "web", &mut server), "also over a restart");

    let refused = agent.ask("uninstall", &[]);
    assert_eq!(refused.status.code(), Some(2), "it runs");
    assert!(text(&refused).contains("stop it first"), "{}", text(&refused));
    agent.kill();
    let off = agent.ask("uninstall", &[]);
    assert_eq!(off.status.code(), Some(0), "{}", text(&off));
    assert!(!agent.bpffs().join("bulkhead").exists(), "a pin stays");
    assert!(reaches(&estate, "web", &mut server) && reaches(&estate, "intruder", &mut server), "nothing is in force");
}

#[test]
fn a_bad_configuration_and_a_claimed_address_change_nothing_that_is_in_force() {
    let estate = Estate::new(&["web", "database"]);
    let mut server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = Agent::over(&estate, "posture: enforce");
    agent.start(&[]);
    let good = fs::read_to_string(agent.config()).expect("the file");
    let claimed = estate.get("database").v4();
    for (bad, words) in [
        (good.replace("posture: enforce", "postur: observe"), "unknown field `postur`"),
        (good.replace("posture: enforce", "posture: observed"), "unknown variant `observed`"),
        (good.replace(&estate.get("web").v4().to_string(), &claimed.to_string()), "both claim"),
        (good.replace("name: web", "name: database"), "second workload"),
        (good.replace("instance: test", "instance: other"), "`instance` differs"),
    ] {
        fs::write(agent.config(), &bad).expect("a file");
        wait_for(words, || {
            agent.status().0["findings"].as_array().is_some_and(|all| {
                all.iter().any(|f| f["error"] == true && f["text"].as_str().is_some_and(|t| t.contains(words)))
            })
        });
        assert_eq!(agent.status().1, Some(1));
        assert!(!reaches(&estate, "web", &mut server), "{words}: the last good posture denies");
    }
    fs::write(agent.config(), good.replace("posture: enforce", "posture: audit")).expect("a file");
    wait_for("the good configuration", || reaches(&estate, "web", &mut server));
    let (status, _) = agent.status();
    assert_eq!(status["findings"].as_array().map(Vec::len), Some(0), "{status:#}");
}
