//! A connection to somebody who isn't known yet: held back, and tried again as soon as it may be known; and one from
//! somebody whom its peer's side doesn't know yet.

use bulkhead::inventory::{Endpoint, Place, Posture};
use bulkhead_common::slots::Binding;
use bulkhead_tests::enforced::widened;
use bulkhead_tests::{Enforced, Estate, Reply, SOON, at};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The kernel itself tries again after a second.
const BEFORE_THE_KERNEL: Duration = Duration::from_millis(900);

const ALLOW: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: app-late}
spec: {mode: enforce, edges: [{from: [{id: spiffe://test/app}], to: [{id: spiffe://test/late}], ports: [{port: 80}]}]}";

/// How long a connect takes of which one end is named only after a while. The flags are those of the one who connects.
fn connect_takes(late: &str, flags: u8, named_after: Duration) -> Duration {
    let estate = Estate::new(&["app", "late"]);
    let _server = estate.get("late").serve(&[80], Reply::Nothing).expect("a server");
    let mut enforced = Enforced::over(&estate, Posture::Enforce, ALLOW);
    let address = widened(estate.get(late).v4().into());
    enforced.inventory().cgroups[0].flags = flags;
    let is_late = |e: &Endpoint| e.place == Place::Addr(address);
    let late: Vec<Endpoint> = enforced.inventory().endpoints.extract_if(.., |e| is_late(e)).collect();
    assert_eq!(late.len(), 1);
    enforced.apply(Posture::Enforce, ALLOW);

    let to = at(estate.get("late"), false, 80);
    let mut app = estate
        .get("app")
        .spawn(move |turn| {
            turn.ready()?;
            turn.doing("connecting");
            let started = Instant::now();
            let stream = TcpStream::connect_timeout(&to, SOON)?;
            let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            turn.received(&took.to_ne_bytes())?;
            drop(stream);
            Ok(())
        })
        .expect("a process");
    app.wait_ready(SOON).expect("it begins");
    let begun = Instant::now();
    app.go(&[]).expect("it goes on");
    std::thread::sleep(named_after.saturating_sub(begun.elapsed()));
    enforced.inventory().endpoints.extend(late);
    enforced.apply(Posture::Enforce, ALLOW);
    app.finish(SOON).expect("an answer").expect("connected");
    let bytes: [u8; 8] = app.received().concat().try_into().expect("how long it took");
    Duration::from_micros(u64::from_ne_bytes(bytes))
}

#[test]
fn a_peer_that_becomes_known_is_reached_soon() {
    let took = connect_takes("late", 0, Duration::from_millis(300));
    assert!(took >= Duration::from_millis(200), "it was open before: {took:?}");
    assert!(took < BEFORE_THE_KERNEL, "{took:?}");
}

#[test]
fn who_may_not_be_known_yet_tries_again_soon() {
    let took = connect_takes("app", Binding::YOUNG, Duration::from_millis(300));
    assert!(took >= Duration::from_millis(200), "it was open before: {took:?}");
    assert!(took < BEFORE_THE_KERNEL, "{took:?}");
    let took = connect_takes("app", 0, Duration::from_millis(300));
    assert!(took >= BEFORE_THE_KERNEL, "who has been there for long is left to the kernel: {took:?}");
}

#[test]
fn who_tries_again_soon_gives_up_no_sooner() {
    let estate = Estate::new(&["app", "late"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, ALLOW);
    let address = widened(estate.get("app").v4().into());
    let inventory = enforced.inventory();
    inventory.cgroups[0].flags = Binding::YOUNG;
    inventory.endpoints.retain(|e| e.place != Place::Addr(address));
    let _server = estate.get("late").serve(&[80], Reply::Nothing).expect("a server");
    enforced.apply(Posture::Enforce, ALLOW);
    let to = at(estate.get("late"), false, 80);
    // With as many tries as usual this would be over after 127 times the first wait.
    let patience = Duration::from_secs(12);
    let mut app = estate
        .get("app")
        .spawn(move |turn| {
            turn.doing("connecting");
            match TcpStream::connect_timeout(&to, patience) {
                Err(e) if e.raw_os_error().is_none() => turn.received(b"still trying"),
                other => other.map(drop),
            }
        })
        .expect("a process");
    app.finish(SOON).expect("an answer").expect("it hadn't given up");
    assert_eq!(app.received().concat(), b"still trying");
}
