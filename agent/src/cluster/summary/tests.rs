//! Rounds against an API server in this process.

use super::*;
use crate::cluster::crd::{NodePolicy, SegmentationNodeSpec};
use crate::cluster::tests::{Fake, yaml};
use crate::cluster::watch::Watch;
use serde_json::Value;

const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/bulkhead-system/leases";
const POLICIES: &str = "/apis/bulkhead.dev/v1alpha1/namespaces/shop/segmentationpolicies";
const REPORTS: &str = "/apis/bulkhead.dev/v1alpha1/segmentationnodes";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";

fn policy(name: &str, mode: &str, generation: i64) -> Value {
    yaml(&format!(
        "{{apiVersion: bulkhead.dev/v1alpha1, kind: SegmentationPolicy, \
          metadata: {{name: {name}, namespace: shop, uid: {name}, generation: {generation}}}, \
          spec: {{mode: {mode}, selector: {{ids: ['spiffe://t/web']}}, ingress: {{rules: []}}}}}}"
    ))
}

fn report(node: &str, policy: &str, generation: i64, workloads: i64) -> Value {
    let told = NodePolicy {
        policy: format!("SegmentationPolicy/shop/{policy}"),
        uid: policy.to_owned(),
        generation,
        workloads,
        ..NodePolicy::default()
    };
    let spec = SegmentationNodeSpec { ready: true, policies: vec![told], ..SegmentationNodeSpec::default() };
    serde_json::to_value(SegmentationNode::new(node, spec)).expect("plain data")
}

struct Bench {
    fake: Fake,
    _watch: Watch,
    sums: Sums,
    seat: Seat,
}

impl Bench {
    async fn new(objects: &[(&str, Value)]) -> Self {
        let (fake, client) = Fake::start().await;
        fake.put(NODES, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "n1"}}));
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": lease::NAME}});
        fake.put(LEASES, lease);
        objects.iter().for_each(|(collection, object)| fake.put(collection, object.clone()));
        let settings = Cluster::new("n1", None, None).expect("fine");
        let watch = Watch::start(&client, &settings);
        watch.synced().await;
        let seat = Seat::new(&client, "n1");
        let sums = Sums::begin(&client, "n1", watch.peers());
        while !sums.kinds.missing().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        Self { fake, _watch: watch, sums, seat }
    }

    async fn round(&mut self) {
        assert_eq!(self.sums.round(&mut self.seat).await, Hold::Ours);
    }

    /// Rounds until this is so: what a watch tells comes when it comes.
    async fn until(&mut self, what: &str, is: impl Fn(&Fake) -> bool) {
        for _ in 0..1000 {
            self.round().await;
            if is(&self.fake) {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}");
    }

    fn status_writes(&self) -> usize {
        self.fake.writes().iter().filter(|w| w.ends_with("/status")).count()
    }
}

fn condition(fake: &Fake, policy: &str, kind: &str) -> String {
    let object = fake.get(POLICIES, policy).expect("there");
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["type"] == kind);
    found.map_or_else(String::new, |c| format!("{}/{}", c["status"], c["reason"]).replace('"', ""))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_written_once() {
    let mut b = Bench::new(&[
        (POLICIES, policy("web", "enforce", 3)),
        (POLICIES, policy("odd", "strict", 1)),
        (REPORTS, report("n1", "web", 3, 2)),
    ])
    .await;
    b.round().await;
    assert_eq!(condition(&b.fake, "web", "Enforced"), "True/Enforced");
    assert_eq!(condition(&b.fake, "odd", "Accepted"), "False/Invalid");
    let status = b.fake.get(POLICIES, "web").expect("there")["status"].clone();
    assert_eq!((&status["workloads"], &status["nodes"], &status["nodesInStep"]), (&json!(2), &json!(1), &json!(1)));
    let events: Vec<String> = b.fake.writes().into_iter().filter(|w| w.contains("/events")).collect();
    assert_eq!(events, [format!("POST {EVENTS}")], "one for the refused one");

    let in_step = |fake: &Fake| {
        let has = |name| fake.get(POLICIES, name).is_some_and(|p| p["status"]["conditions"].is_array());
        has("web") && has("odd")
    };
    for _ in 0..20 {
        b.until("both have a status", in_step).await;
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(b.status_writes(), 2, "{:?}", b.fake.writes());

    // More workloads alone can wait; another form in force can't.
    b.fake.put(REPORTS, report("n1", "web", 3, 9));
    sleep(Duration::from_millis(100)).await;
    b.round().await;
    assert_eq!(b.status_writes(), 2, "{:?}", b.fake.writes());
    b.fake.put(REPORTS, report("n1", "web", 2, 9));
    b.until("the node is behind", |f| condition(f, "web", "Degraded") == "True/NodesBehind").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_cut_streams_and_lost_versions_do_no_harm() {
    let mut b = Bench::new(&[(POLICIES, policy("web", "enforce", 1)), (REPORTS, report("n1", "web", 1, 1))]).await;
    assert_eq!(b.seat.hold().await, Hold::Ours);
    b.fake.conflict(1);
    b.round().await;
    assert_eq!(condition(&b.fake, "web", "Enforced"), "", "told no, it waits for the next round");
    b.until("the next round", |f| condition(f, "web", "Enforced") == "True/Enforced").await;

    b.fake.cut();
    b.fake.put(POLICIES, {
        let mut next = policy("web", "audit", 2);
        next["status"] = b.fake.get(POLICIES, "web").expect("there")["status"].clone();
        next
    });
    b.fake.put(REPORTS, report("n1", "web", 2, 1));
    b.until("over cut streams", |f| condition(f, "web", "Enforced") == "False/AuditMode").await;

    b.fake.compact();
    b.fake.put(REPORTS, report("n1", "web", 1, 1));
    b.until("after 410", |f| condition(f, "web", "Degraded") == "True/NodesBehind").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_lease_nothing_is_written() {
    let mut b = Bench::new(&[(POLICIES, policy("web", "enforce", 1))]).await;
    let theirs = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": lease::NAME},
        "spec": {"holderIdentity": "n2", "leaseDurationSeconds": 30}});
    b.fake.put(LEASES, theirs);
    assert_eq!(b.sums.round(&mut b.seat).await, Hold::NotOurs);
    assert_eq!(b.fake.writes(), Vec::<String>::new());
}

#[test]
fn the_line_is_short_and_the_whole_cluster_asks_seldom() {
    let nodes: BTreeSet<String> = (0..5000).map(|n| format!("node-{n}")).collect();
    let places: BTreeSet<usize> = nodes.iter().take(60).map(|n| before(n, &nodes)).collect();
    assert_eq!(places.len(), 60, "no two at once");
    let per_second: f64 = (1..=5000).map(|n| 1.0 / (lease::RENEW.as_secs_f64() * f64::from(n))).sum();
    assert!(per_second < 1.0, "{per_second}");
    assert_eq!(before("n1", &BTreeSet::new()), 0, "the first agent of all");
}
