//! Break-glass by the real binary, with the agent alive, dead, and crashing again and again.
//!
//! Not among what the guests run: it promises seconds, which an emulated processor doesn't keep.

use bulkhead_tests::agent::{fine, text};
use bulkhead_tests::database::{PORT, enforcing, reaches};
use bulkhead_tests::{Agent, Estate, Reply, wait_at_most, wait_for};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn break_glass_works_with_the_agent_alive_and_dead_and_ends() {
    let estate = Estate::new(&["web", "reports", "intruder", "database"]);
    let mut server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = enforcing(&estate);
    assert!(!reaches(&estate, "intruder", &mut server) && reaches(&estate, "web", &mut server));

    let glass = |agent: &Agent, scope: &str| {
        let config = agent.config();
        let config = config.to_str().expect("a path");
        agent.ask("break-glass", &["--config", config, "--scope", scope, "--for", "1h", "--reason", "a test"])
    };
    let end =
        |agent: &Agent| agent.ask("break-glass", &["--config", agent.config().to_str().expect("a path"), "--end"]);
    let begun = Instant::now();
    fine(&glass(&agent, "workload=spiffe://test/intruder"));
    assert!(reaches(&estate, "intruder", &mut server), "open");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let status = agent.ask("status", &[]);
    assert_eq!(status.status.code(), Some(1));
    assert!(text(&status).contains("BREAK-GLASS: nothing is enforced for workload=spiffe://test/intruder"));
    fine(&end(&agent));
    assert!(!reaches(&estate, "intruder", &mut server), "shut again");

    // Dead.
    fine(&agent.ask("revoke", &["spiffe://test/web"]));
    agent.kill();
    assert!(!reaches(&estate, "intruder", &mut server));
    let narrow = glass(&agent, "workload=spiffe://test/intruder");
    assert_eq!(narrow.status.code(), Some(2), "{}", text(&narrow));
    let said = fine(&glass(&agent, "node"));
    assert!(said.contains("no agent runs"), "{said}");
    assert!(reaches(&estate, "intruder", &mut server) && reaches(&estate, "reports", &mut server), "open");
    assert!(!reaches(&estate, "web", &mut server), "what was revoked stays so");
    agent.start(&[]);
    assert!(reaches(&estate, "intruder", &mut server), "the agent keeps to it");
    assert_eq!(agent.status().0["overrides"]["break_glass"][0]["what"], "node");
    fine(&end(&agent));
    assert!(!reaches(&estate, "intruder", &mut server) && reaches(&estate, "reports", &mut server), "enforcing again");

    // Dead, and without the program: a file for the next start, and the links taken off by hand.
    agent.kill();
    let state = agent.folder().join("state/test");
    fs::write(state.join("break-glass"), "checkout is down\n").expect("a file");
    for set in fs::read_dir(agent.bpffs().join("bulkhead/test")).expect("the pins") {
        for point in fs::read_dir(set.expect("a set").path().join("links")).expect("links") {
            for link in fs::read_dir(point.expect("an attach point").path()).expect("its links") {
                fs::remove_file(link.expect("a link").path()).expect("removed");
            }
        }
    }
    wait_for("everything passes", || reaches(&estate, "intruder", &mut server));
    agent.start(&[]);
    assert!(reaches(&estate, "intruder", &mut server), "by the file");
    let (status, _) = agent.status();
    assert_eq!(status["overrides"]["break_glass"][0]["reason"], "by file: checkout is down", "{status:#}");
    assert!(status["faults"].as_array().is_some_and(Vec::is_empty), "{status:#}");
    fine(&end(&agent));
    assert!(!reaches(&estate, "intruder", &mut server));
}

#[test]
fn break_glass_works_while_the_agent_crashes_again_and_again() {
    let estate = Estate::new(&["web", "intruder", "database"]);
    let mut server = estate.get("database").serve(&[PORT], Reply::Nothing).expect("a server");
    let mut agent = enforcing(&estate);
    agent.kill();
    let config = agent.config().to_str().expect("a path").to_owned();
    let order = |more: &[&str]| {
        let begun = Instant::now();
        fine(&agent.ask("break-glass", &[&["--config", &config], more].concat()));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{more:?} took {took:?}");
    };
    let over = AtomicBool::new(false);
    let crashes = std::thread::scope(|scope| {
        let crashing = scope.spawn(|| {
            let mut crashes = 0_u64;
            // Nothing of the below takes so long; if it fails, this ends too.
            let last = Instant::now() + Duration::from_secs(180);
            while !over.load(Ordering::Relaxed) && Instant::now() < last {
                let mut child = agent.spawn_quietly();
                // Before it listens, while it takes things over, and afterwards.
                std::thread::sleep(Duration::from_millis(crashes * 137 % 2000));
                child.kill().and_then(|()| child.wait()).expect("ours");
                crashes += 1;
            }
            crashes
        });
        for _ in 0..3 {
            assert!(!reaches(&estate, "intruder", &mut server), "shut");
            order(&["--scope", "node", "--for", "1h", "--reason", "it crashes"]);
            for _ in 0..20 {
                assert!(reaches(&estate, "intruder", &mut server), "open, whoever starts");
            }
            order(&["--end"]);
            wait_at_most(Duration::from_secs(60), "somebody who enforces again", || {
                !reaches(&estate, "intruder", &mut server)
            });
        }
        over.store(true, Ordering::Relaxed);
        crashing.join().expect("it counts")
    });
    assert!(crashes > 3, "{crashes} crashes");
    agent.start(&[]);
    assert!(!reaches(&estate, "intruder", &mut server) && reaches(&estate, "web", &mut server));
}
