//! The sandbox itself: everything gets through as long as nothing is enforced, and nothing is left afterwards.

use bulkhead_tests::{Estate, Reply, SOON, Via, at, passes, wait_for};
use std::path::PathBuf;

#[test]
fn any_two_workloads_reach_each_other_by_tcp_and_udp() {
    let mut estate = Estate::new(&["web", "database"]);
    estate.add_beside("metrics", "database");
    let mut server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    for from in ["web", "metrics"] {
        for v6 in [false, true] {
            for via in Via::ALL {
                let to = at(estate.get("database"), v6, 5432);
                let (got, told) = passes(estate.get(from), to, via, &mut server);
                assert_eq!((got, told), (true, Ok(())), "{from} to {to} by {via:?}");
            }
        }
    }
}

/// What can be seen of an estate from outside.
fn traces(estate: &Estate) -> (PathBuf, Vec<u32>) {
    let cgroups = estate.workloads().iter().map(bulkhead_tests::Workload::cgroup);
    let pids = cgroups.flat_map(|c| c.processes().expect("the list")).collect();
    (estate.sandbox().cgroup().path().to_owned(), pids)
}

fn assert_gone((cgroup, pids): (PathBuf, Vec<u32>)) {
    assert!(!cgroup.exists(), "{} is left", cgroup.display());
    for pid in pids {
        wait_for("the process ends", || !PathBuf::from(format!("/proc/{pid}")).exists());
    }
}

#[test]
fn nothing_is_left_after_drop() {
    let estate = Estate::new(&["web"]);
    let server = estate.get("web").serve(&[80], Reply::Nothing).expect("a server");
    let traces = traces(&estate);
    assert_eq!(traces.1, [server.pid()]);
    drop((server, estate));
    assert_gone(traces);
}

#[test]
fn nothing_is_left_after_a_panic() {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let estate = Estate::new(&["web"]);
        let _server = estate.get("web").serve(&[80], Reply::Nothing).expect("a server");
        send.send(traces(&estate)).expect("the receiver waits");
        panic!("on purpose");
    });
    let traces = receive.recv_timeout(SOON).expect("set up");
    assert!(thread.join().is_err());
    assert_gone(traces);
}
