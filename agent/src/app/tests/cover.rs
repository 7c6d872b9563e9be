//! The first start on a node: what waits for the pods of other nodes, what doesn't, and what comes after too long.

use super::cluster::{Bench, ENDPOINTS, NAMESPACES, Node, POLICIES, namespace, policy};
use super::*;
use crate::cluster::absent::Absent;
use crate::cluster::tests::yaml;
use crate::config::Cluster;
use crate::serve::orders::{Order, Request};

const NODES: &str = "/api/v1/nodes";
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(300);

fn node(name: &str) -> serde_json::Value {
    yaml(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}, uid: {name}}}}}"))
}

/// What `by` tells of a node: no pods.
fn told(name: &str, by: &str) -> serde_json::Value {
    yaml(&format!(
        "{{apiVersion: bulkhead.dev/v1alpha1, kind: NodeEndpoints, metadata: {{name: {name}}}, \
          spec: {{publishedBy: {by}, workloads: []}}}}"
    ))
}

/// Of a cluster of these nodes. Of n3, which has no pods, somebody has told.
async fn bench(posture: &str, nodes: &[&str], policies: &[serde_json::Value]) -> Bench {
    let nodes = nodes.iter().map(|n| (NODES, node(n)));
    let policies = policies.iter().map(|p| (POLICIES, p.clone()));
    let others = [(ENDPOINTS, told("n3", "n4")), (NAMESPACES, namespace(posture))];
    Bench::with(others.into_iter().chain(nodes).chain(policies)).await
}

async fn enforcing() -> Bench {
    bench("enforce", &["n1", "n2", "n3"], &[policy("db", 1, "db", "web")]).await
}

impl Node {
    fn is_attached(&self) -> bool {
        self.memory.lock().expect("no test panics with it").attached
    }

    async fn until_it_waits(&mut self) -> Arc<Snapshot> {
        let waits = |s: &Snapshot| !s.status.ready && s.status.untold_nodes == ["n2"];
        self.until("it waits for n2", waits).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_in_force_before_every_other_node_is_told_of() {
    let bench = enforcing().await;
    let published = bench.published.clone();
    let mut node = bench.start(LONG).await;
    let snapshot = node.until_it_waits().await;
    let [fault] = &snapshot.status.faults[..] else { panic!("{:?}", snapshot.status.faults) };
    assert!(fault.contains("nothing is in force") && fault.contains("n2") && !fault.contains("n3"), "{fault}");
    let metrics = metrics::render(snapshot).expect("metrics");
    assert!(metrics.contains("bulkhead_ready 0") && metrics.contains("bulkhead_untold_nodes 1"), "{metrics}");
    assert!(!node.is_attached());
    assert_eq!(published.borrow().len(), 2, "others are told of its own pods meanwhile");

    node.server.put(ENDPOINTS, told("n2", "n2"));
    let snapshot = node.until("it is in force", |s| s.status.ready).await;
    assert!(snapshot.status.untold_nodes.is_empty() && snapshot.status.faults.is_empty(), "{:?}", snapshot.status);
    assert!(node.is_attached() && !node.passes(80));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_too_long_it_goes_ahead_and_names_who_is_missing() {
    let mut node = enforcing().await.start(Duration::from_millis(20)).await;
    let snapshot = node.until("it is in force", |s| s.status.ready).await;
    assert!(node.is_attached());
    assert_eq!(snapshot.status.untold_nodes, ["n2"]);
    let [fault] = &snapshot.status.faults[..] else { panic!("{:?}", snapshot.status.faults) };
    assert!(fault.contains("gone ahead without") && fault.contains("n2"), "{fault}");
    node.server.put(ENDPOINTS, told("n2", "n1"));
    node.until("n2 is told of", |s| s.status.untold_nodes.is_empty() && s.status.faults.is_empty()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_the_lease_tells_while_it_waits_itself() {
    let bench = enforcing().await;
    let settings = Cluster::new("n1", None, None).expect("fine");
    let watch = Watch::start(&bench.client, &settings);
    watch.synced().await;
    let mut absent = Absent::begin(&bench.client, &settings, watch.peers());
    let mut node = bench.start(LONG).await;
    node.until_it_waits().await;
    tokio::select! {
        () = absent.go_on() => {}
        _ = node.until("it is in force", |s| s.status.ready) => {}
    }
    assert_eq!(node.server.get(ENDPOINTS, "n2").expect("written")["spec"]["publishedBy"], "n1");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_is_waited_for_no_more_and_neither_is_anybody_once_nothing_is_enforced() {
    let mut node = enforcing().await.start(LONG).await;
    node.until_it_waits().await;
    node.server.delete(NODES, "n2");
    node.until("it is in force", |s| s.status.ready).await;
    node.stop().await;

    let mut node = enforcing().await.start(LONG).await;
    node.until_it_waits().await;
    let mut lowered = namespace("enforce");
    lowered["metadata"]["annotations"] = yaml("{bulkhead.dev/override: observe}");
    node.server.put(NAMESPACES, lowered);
    let snapshot = node.until("it is in force", |s| s.status.ready).await;
    assert!(snapshot.status.untold_nodes.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_ruleset_an_only_node_and_a_cluster_that_only_observes_wait_for_nobody() {
    let mut adopted = enforcing().await;
    adopted.memory.lock().expect("no test panics with it").adopted = true;
    assert!(!adopted.engine.lacks_cover(LONG).expect("a look"));
    let lacks_cover = async |posture, nodes, policies: &[_]| {
        bench(posture, nodes, policies).await.engine.lacks_cover(LONG).expect("a look")
    };
    assert!(!lacks_cover("enforce", &["n1"], &[]).await);
    assert!(!lacks_cover("audit", &["n1", "n2"], &[]).await);
    assert!(lacks_cover("enforce", &["n1", "n2"], &[]).await);
    let isolates = [policy("db", 1, "db", "web")];
    assert!(lacks_cover("audit", &["n1", "n2"], &isolates).await, "a policy is enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_while_it_waits_holds_from_the_first_ruleset_on() {
    let mut node = enforcing().await.start(LONG).await;
    node.until_it_waits().await;
    let id = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an ID");
    let order = Order::Revoke { id, reason: String::new(), dry_run: false, unseen: true };
    let (answer, done) = oneshot::channel();
    node.orders.send(Request { order, answer }).await.expect("it listens");
    let done = done.await.expect("an answer").unwrap_or_else(|e| panic!("{e}"));
    assert!(done.text.contains("revoked"), "{}", done.text);
    let snapshot = node.until_it_waits().await;
    assert_eq!(snapshot.status.overrides.revoked.len(), 1);
    assert!(!node.is_attached());
    node.server.put(ENDPOINTS, told("n2", "n2"));
    let snapshot = node.until("it is in force", |s| s.status.ready).await;
    assert_eq!(snapshot.status.overrides.revoked.len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_ended_while_it_waits() {
    let mut node = enforcing().await.start(LONG).await;
    node.until_it_waits().await;
    let memory = Arc::clone(&node.memory);
    node.stop().await;
    assert!(!memory.lock().expect("no test panics with it").attached);
}
