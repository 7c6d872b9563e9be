//! A connection to somebody who isn't known yet: held back, and tried again as soon as it may be known.

use bulkhead::inventory::{Endpoint, Place, Posture};
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

/// How long a connect takes whose destination is named only after a while.
fn connect_takes(named_after: Duration) -> Duration {
    let estate = Estate::new(&["app", "late"]);
    let _server = estate.get("late").serve(&[80], Reply::Nothing).expect("a server");
    let mut enforced = Enforced::over(&estate, Posture::Enforce, ALLOW);
    let address = widened(estate.get("late").v4().into());
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
    let took = connect_takes(Duration::from_millis(300));
    assert!(took >= Duration::from_millis(200), "it was open before: {took:?}");
    assert!(took < BEFORE_THE_KERNEL, "{took:?}");
}
