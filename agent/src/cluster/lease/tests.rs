//! Two agents, one lease, and an API server that says no.

use super::*;
use crate::cluster::tests::Fake;
use serde_json::json;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/bulkhead-system/leases";

async fn two() -> (Fake, Seat, Seat) {
    let (fake, client) = Fake::start().await;
    fake.put(LEASES, json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME}}));
    (fake.clone(), Seat::new(&client, "n1"), Seat::new(&client, "n2"))
}

fn holder(fake: &Fake) -> String {
    fake.get(LEASES, NAME).expect("there")["spec"]["holderIdentity"].as_str().expect("a holder").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_holds_and_the_other_waits_until_it_is_over() {
    let (fake, mut a, mut b) = two().await;
    assert_eq!((a.hold().await, b.hold().await), (Hold::Ours, Hold::NotOurs));
    let writes = fake.writes().len();
    assert_eq!(a.hold().await, Hold::Ours);
    assert_eq!(fake.writes().len(), writes, "it isn't renewed before that is due");

    // It was renewed, so what b saw isn't what there is.
    a.renewed = a.renewed.and_then(|at| at.checked_sub(RENEW));
    b.seen = b.seen.map(|(v, since)| (v, since.checked_sub(LASTS).expect("long after the boot")));
    assert_eq!((a.hold().await, b.hold().await), (Hold::Ours, Hold::NotOurs));
    b.seen = b.seen.map(|(v, since)| (v, since.checked_sub(LASTS).expect("long after the boot")));
    assert_eq!((b.hold().await, holder(&fake).as_str()), (Hold::Ours, "n2"));
    a.renewed = a.renewed.and_then(|at| at.checked_sub(RENEW));
    assert_eq!(a.hold().await, Hold::NotOurs);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_back_is_free_at_once() {
    let (fake, mut a, mut b) = two().await;
    assert_eq!(a.hold().await, Hold::Ours);
    a.release().await;
    assert_eq!((holder(&fake).as_str(), b.hold().await), ("", Hold::Ours));
    a.release().await;
    assert_eq!(holder(&fake), "n2", "only its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_no_or_nothing_stops_in_time() {
    let (fake, mut a, _) = two().await;
    fake.conflict(1);
    assert_eq!(a.hold().await, Hold::NotOurs, "somebody else wrote first");
    assert_eq!(a.hold().await, Hold::Ours);
    // No API server any more: it goes on for a while, and then no longer.
    let gone = kube::Config::new("http://127.0.0.1:1".parse().expect("a URI"));
    a.api = Api::namespaced(Client::try_from(gone).expect("a client"), "bulkhead-system");
    let asked = Instant::now();
    a.renewed = asked.checked_sub(RENEW);
    assert_eq!(a.hold().await, Hold::Ours);
    a.renewed = asked.checked_sub(STOP);
    assert_eq!(a.hold().await, Hold::NotOurs);
    assert!(STOP + REQUEST < LASTS, "it has stopped before another may begin");
}
