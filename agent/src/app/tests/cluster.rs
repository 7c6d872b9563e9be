//! Bad input of a cluster, from the API server's watch to status and metric: it is told with the object's name, and what
//! was good before holds.

use super::*;
use crate::app::engine::{self, Engine};
use crate::cluster::tests::{Fake as Server, yaml};
use crate::cluster::watch::Watch;
use crate::sources::hierarchy::level;
use bulkhead_common::Addr;
use tokio::sync::broadcast;

const PODS: &str = "/api/v1/pods";
pub(super) const NAMESPACES: &str = "/api/v1/namespaces";
pub(super) const ENDPOINTS: &str = "/apis/bulkhead.dev/v1alpha1/nodeendpoints";
pub(super) const POLICIES: &str = "/apis/bulkhead.dev/v1alpha1/namespaces/shop/segmentationpolicies";
const WEB: &str = "00000000-0000-4000-8000-000000000001";
const DB: &str = "00000000-0000-4000-8000-000000000002";

/// An engine for a node of a cluster with two pods under a policy that lets one connect to the other; it doesn't run yet.
pub(super) struct Bench {
    pub(super) server: Server,
    pub(super) client: kube::Client,
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) engine: Engine<Fake>,
    pub(super) published: watch::Receiver<Arc<Vec<crate::cluster::crd::NodeWorkload>>>,
    folder: tempfile::TempDir,
}

/// The same, running.
pub(super) struct Node {
    pub(super) server: Server,
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) orders: mpsc::Sender<crate::serve::orders::Request>,
    _folder: tempfile::TempDir,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    _published: watch::Receiver<Arc<Vec<crate::cluster::crd::NodeWorkload>>>,
}

fn pod(name: &str, account: &str, uid: &str, status: &str) -> serde_json::Value {
    yaml(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: {uid}}}, \
          spec: {{nodeName: n1, serviceAccountName: {account}, containers: [{{name: c}}]}}, status: {status}}}"
    ))
}

fn at(address: &str) -> String {
    format!("{{phase: Running, podIPs: [{{ip: {address}}}]}}")
}

pub(super) fn namespace(posture: &str) -> serde_json::Value {
    yaml(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{bulkhead.dev/posture: '{posture}'}}}}}}"
    ))
}

pub(super) fn policy(name: &str, generation: u32, selects: &str, from: &str) -> serde_json::Value {
    yaml(&format!(
        "{{apiVersion: bulkhead.dev/v1alpha1, kind: SegmentationPolicy, \
          metadata: {{name: {name}, namespace: shop, uid: {name}, generation: {generation}}}, \
          spec: {{mode: enforce, selector: {{ids: ['spiffe://cluster.local/ns/shop/sa/{selects}']}}, \
            ingress: {{rules: [{{from: [{{id: 'spiffe://cluster.local/ns/shop/sa/{from}'}}], ports: [{{port: 5432}}]}}]}}}}}}"
    ))
}

impl Bench {
    /// Before an API server that has these objects, too, each with its collection.
    pub(super) async fn with(others: impl IntoIterator<Item = (&'static str, serde_json::Value)>) -> Self {
        let (server, client) = Server::start().await;
        server.put(PODS, pod("web", "web", WEB, &at("10.0.0.1")));
        server.put(PODS, pod("db", "db", DB, &at("10.0.0.2")));
        others.into_iter().for_each(|(collection, object)| server.put(collection, object));
        let folder = tempfile::tempdir().expect("a folder");
        for uid in [WEB, DB] {
            std::fs::create_dir_all(folder.path().join(format!("cgroup/kubepods/pod{uid}"))).expect("a folder");
        }
        let f = folder.path().display();
        let text = format!(
            "cluster: {{node: n1}}\nattach: [/kubepods]\nposture: observe\nsocket: {f}/sock\nstate: {f}/state\n"
        );
        let file = folder.path().join("bulkhead.yaml");
        std::fs::write(&file, &text).expect("written");
        let config = crate::config::parse("bulkhead.yaml", &text).unwrap_or_else(|e| panic!("{}", e[0]));
        let hierarchy = Hierarchy { mount: folder.path().join("cgroup"), hybrid: false };
        assert_eq!(level("/kubepods"), 1);
        let watch = Watch::start(&client, config.cluster.as_ref().expect("a cluster's"));
        watch.synced().await;
        let kernel = Fake::with(Vec::new());
        let memory = Arc::clone(&kernel.memory);
        let state = State::open(&config.state, "n1").expect("a state");
        let (publish, published) = watch::channel(Arc::default());
        let attach = config.attach.clone();
        let engine = Engine::new(file, config, hierarchy, state, kernel)
            .expect("an engine")
            .in_cluster(engine::Cluster::new(watch, &attach, publish));
        Self { server, client, memory, engine, published, folder }
    }

    /// Starts it; where it lacks cover, it waits so long at most.
    pub(super) async fn start(self, limit: Duration) -> Node {
        let Self { server, client: _, memory, mut engine, published, folder } = self;
        let waits = engine.lacks_cover(limit).expect("a look");
        if !waits {
            engine.first().await.unwrap_or_else(|e| panic!("{e}"));
        }
        let (publish, snapshots) = watch::channel(Arc::new(engine.snapshot()));
        let (stop, stopped) = watch::channel(false);
        let (give, mut orders) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut stop = stopped.clone();
            if waits && !engine.await_cover(limit, &publish, &mut orders, &mut stop).await? {
                return Ok(());
            }
            engine.run(publish, broadcast::channel(1).0, orders, stopped).await
        });
        Node { server, memory, snapshots, orders: give, _folder: folder, stop, task, _published: published }
    }
}

impl Node {
    async fn start() -> Self {
        let shop = [(NAMESPACES, namespace("audit")), (POLICIES, policy("db", 1, "db", "web"))];
        Bench::with(shop).await.start(Duration::ZERO).await
    }

    /// What a TCP connection of web to db comes to, by their addresses.
    pub(super) fn passes(&self, port: u16) -> bool {
        let memory = self.memory.lock().expect("no test panics with it");
        let image = memory.images.last().expect("one is in force");
        let at = |last: u8| verdict::resolve(image, &Addr::v4([10, 0, 0, last]), 6, port).peer;
        verdict::judge(image, &Flow { src: at(1), dst: at(2), proto: 6, port }).outcome().passes()
    }

    pub(super) async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let found = tokio::time::timeout(Duration::from_secs(20), self.snapshots.wait_for(|s| wanted(s))).await;
        Arc::clone(&found.unwrap_or_else(|_| panic!("it never came to: {what}")).expect("it runs"))
    }

    /// Waits until the status names the object with these words, and the metric as well.
    async fn told(&mut self, object: &str, words: &str) {
        let fits = |s: &Snapshot| s.status.object_faults.iter().any(|f| f.object == object && f.text.contains(words));
        let snapshot = self.until(&format!("{object}: {words}"), fits).await;
        assert!(snapshot.status.faults.iter().any(|f| f.contains(words)), "{:?}", snapshot.status.faults);
        let metrics = metrics::render(Arc::clone(&snapshot)).expect("metrics");
        assert!(metrics.contains(&format!("bulkhead_object_fault{{object=\"{object}\"}} 1")), "{metrics}");
    }

    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.expect("no panic").unwrap_or_else(|e| panic!("{e:#}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passed_an_older_schema_is_refused_by_name_and_its_last_good_form_holds() {
    let mut node = Node::start().await;
    assert!(node.passes(5432) && !node.passes(80));
    let mut bad = policy("db", 2, "db", "web");
    bad["spec"]["ingres"] = bad["spec"]["ingress"].take();
    node.server.put(POLICIES, bad);
    let file = "SegmentationPolicy/shop/db";
    let refused = |s: &Snapshot| s.status.findings.iter().any(|f| f.error && f.file == file);
    let snapshot = node.until("it is refused", refused).await;
    let object = snapshot.status.objects.iter().find(|o| o.name == file).expect("told");
    assert_eq!((object.generation, object.in_force), (2, false));
    let metrics = metrics::render(Arc::clone(&snapshot)).expect("metrics");
    assert!(metrics.contains(&format!("bulkhead_file_refused{{file=\"{file}\"}} 1")), "{metrics}");
    assert!(node.passes(5432) && !node.passes(80), "the last good form");
    node.server.put(POLICIES, policy("db", 3, "db", "web"));
    node.until("it is taken again", |s| s.status.objects.iter().any(|o| o.generation == 3 && o.in_force)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_exist_yet_is_waited_for() {
    let mut node = Node::start().await;
    // A service account that nobody has yet, as selected and as peer.
    node.server.put(POLICIES, policy("later", 1, "later", "web"));
    node.server.put(POLICIES, policy("db", 2, "db", "later"));
    let nobody = |s: &Snapshot| {
        let of_it = s.status.findings.iter().filter(|f| !f.error && f.file == "SegmentationPolicy/shop/later");
        of_it.filter(|f| f.text.contains("selects no pod")).count() == 1
    };
    node.until("it is said", nobody).await;
    assert!(!node.passes(5432), "web isn't named any more");
    let uid = "00000000-0000-4000-8000-000000000003";
    node.server.put(PODS, pod("later", "later", uid, &at("10.0.0.1")));
    node.server.put(PODS, pod("web", "web", WEB, &at("10.0.0.3")));
    node.until("the pod came", |s| !nobody(s) && s.status.workloads.len() == 3).await;
    assert!(node.passes(5432), "what waited for it holds");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_an_address_and_an_address_of_two_are_told() {
    let mut node = Node::start().await;
    let uid = "00000000-0000-4000-8000-000000000004";
    node.server.put(PODS, pod("lost", "web", uid, "{phase: Running}"));
    node.told("Pod/shop/lost", "has no address").await;
    let thief = yaml(
        "{apiVersion: bulkhead.dev/v1alpha1, kind: NodeEndpoints, metadata: {name: n2}, spec: {publishedBy: n2, workloads: [
          {uid: pod-1, namespace: shop, ids: ['spiffe://cluster.local/ns/shop/sa/thief'], addresses: [10.0.0.1]},
          {uid: pod-2, namespace: shop, ids: ['spiffe:bad'], addresses: [10.0.0.9]}]}}",
    );
    node.server.put(ENDPOINTS, thief);
    node.told("Address/10.0.0.1", "is claimed by").await;
    node.told("NodeEndpoints/n2", "isn't a SPIFFE ID").await;
    assert!(!node.passes(5432), "nobody gets what two claim");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_posture_leaves_the_one_before() {
    let mut node = Node::start().await;
    node.server.put(NAMESPACES, namespace("enforced"));
    node.told("Namespace/shop", "isn't a posture").await;
    let snapshot = Arc::clone(&node.snapshots.borrow());
    assert!(snapshot.status.workloads.iter().all(|w| w.posture.as_str() == "audit"), "{:?}", snapshot.status.workloads);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_for_one_kind_the_rest_goes_on() {
    let mut node = Node::start().await;
    node.server.forbid(ENDPOINTS);
    node.told("nodeendpoints", "can't be watched").await;
    // Other kinds are followed all the same.
    node.server.put(POLICIES, policy("db", 2, "db", "nobody"));
    node.until("the policy came", |s| s.status.objects.iter().any(|o| o.generation == 2 && o.in_force)).await;
    assert!(!node.passes(5432));
    node.stop().await;
}
