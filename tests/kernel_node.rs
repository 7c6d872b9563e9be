//! An agent of a cluster's node that finds nothing in force, as after a reboot, while the API server isn't there yet.

use bulkhead_tests::sandbox::{Cgroup, Plug, Turn};
use bulkhead_tests::{Agent, ApiServer, Process, SOON, Sandbox, wait_for};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use serde_json::json;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Child;

const NODE: &str = "n0";
const PODS: &str = "/api/v1/pods";
/// Outside of every range of pods; what the policy names, and what it doesn't.
const ALLOWED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const DENIED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Another pod's, on another node.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 64, 1, 9);
const UIDS: [&str; 2] = ["00000001-0000-4000-8000-000000000001", "00000001-0000-4000-8000-000000000002"];

/// What an agent lists.
const KINDS: [&str; 9] = [
    PODS,
    "/api/v1/namespaces",
    "/api/v1/nodes",
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/networking.k8s.io/v1/servicecidrs",
    "/apis/bulkhead.dev/v1alpha1/nodeendpoints",
    "/apis/bulkhead.dev/v1alpha1/segmentationpolicies",
    "/apis/bulkhead.dev/v1alpha1/clustersegmentationpolicies",
];

/// Answers for each address that it is sent whether connect() is let through to there.
fn tries(turn: &mut Turn) -> io::Result<()> {
    loop {
        let message = turn.ready()?;
        let Ok(to) = <[u8; 4]>::try_from(message) else { return Ok(()) };
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        turn.doing("connect");
        let told = connect(&socket, &SocketAddrV4::new(to.into(), 7000));
        turn.received(&[u8::from(told != Err(rustix::io::Errno::PERM))])?;
    }
}

/// A process in a pod's cgroup.
struct Pod(Process);

impl Pod {
    fn new(cgroup: &Cgroup, plug: &Plug) -> Self {
        let mut process = Process::spawn(Some(cgroup), Some(plug.netns()), tries).expect("a process");
        process.wait_ready(SOON).expect("it waits to be asked");
        Self(process)
    }

    fn passes(&mut self, to: Ipv4Addr) -> bool {
        let before = self.0.received().len();
        self.0.go(&to.octets()).expect("it can be asked");
        self.0.wait_ready(SOON).expect("it answers");
        self.0.received()[before] == [1]
    }
}

/// A pod of the node, and the policy that lets it connect to one address outside and to one pod.
fn objects(server: &ApiServer) {
    let labels = json!({"bulkhead.dev/posture": "enforce"});
    server.put("/api/v1/namespaces", json!({"metadata": {"name": "shop", "labels": labels}}));
    server.put(
        "/api/v1/nodes",
        json!({"metadata": {"name": NODE, "uid": NODE}, "spec": {"podCIDRs": ["10.64.0.0/16"]}, "status": {}}),
    );
    server.put(
        PODS,
        json!({"metadata": {"name": "web", "namespace": "shop", "uid": UIDS[0]},
            "spec": {"nodeName": NODE, "serviceAccountName": "web", "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.64.0.1"}]}}),
    );
    let id = |name: &str| format!("spiffe://test/ns/shop/sa/{name}");
    server.put(
        "/apis/bulkhead.dev/v1alpha1/nodeendpoints",
        json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "NodeEndpoints", "metadata": {"name": "n1", "uid": "n1"},
            "spec": {"publishedBy": "n1", "workloads": [
                {"uid": "b", "namespace": "shop", "ids": [id("db")], "addresses": [PEER.to_string()], "ports": {}}]}}),
    );
    let ports = json!([{"protocol": "UDP", "port": 7000}]);
    let to = json!([{"cidr": format!("{ALLOWED}/32")}, {"id": id("db")}]);
    server.put(
        "/apis/bulkhead.dev/v1alpha1/segmentationpolicies",
        json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "SegmentationPolicy",
            "metadata": {"name": "web", "namespace": "shop", "uid": "p", "generation": 1},
            "spec": {"mode": "enforce", "selector": {"ids": [id("web")]}, "egress": {"rules": [{"to": to, "ports": ports}]}}}),
    );
    server.put(
        "/apis/bulkhead.dev/v1alpha1/clustersegmentationpolicies",
        json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "ClusterSegmentationPolicy",
            "metadata": {"name": "db", "uid": "q", "generation": 1},
            "spec": {"mode": "enforce", "edges": [{"from": [{"id": id("web")}], "to": [{"id": id("db")}], "ports": ports}]}}),
    );
}

/// A pod that the API server knows of, and what it runs in. Taken apart in this order, it goes the other way round: the
/// process before its cgroup.
struct Shop {
    /// Below this one is the pod's.
    pods: Cgroup,
    _known: Cgroup,
    _plug: Plug,
    web: Pod,
    server: ApiServer,
}

impl Shop {
    fn new(sandbox: &Sandbox) -> Self {
        let pods = sandbox.cgroup().child("kubepods").expect("a cgroup");
        let known = pods.child(&format!("pod{}", UIDS[0])).expect("a cgroup");
        let plug = sandbox.switch().plug().expect("a network");
        let (web, server) = (Pod::new(&known, &plug), ApiServer::start());
        objects(&server);
        Self { pods, _known: known, _plug: plug, web, server }
    }
}

/// Ends an agent that has begun to start.
fn end(mut starting: Child) {
    starting.kill().and_then(|()| starting.wait().map(drop)).expect("it runs");
}

#[test]
fn a_node_that_starts_anew_is_closed_before_the_api_server_has_told_anything() {
    let sandbox = Sandbox::new("node").expect("tests on the real kernel run as root");
    let pods = sandbox.cgroup().child("kubepods").expect("a cgroup");
    let [known, new] = UIDS.map(|uid| pods.child(&format!("pod{uid}")).expect("a cgroup"));
    let plug = sandbox.switch().plug().expect("a network");
    let (mut web, mut later) = (Pod::new(&known, &plug), Pod::new(&new, &plug));
    let server = ApiServer::start();
    objects(&server);
    let mut agent = Agent::of_node(NODE, pods.path(), &server, "posture: observe");
    agent.start(&[]);
    assert!(web.passes(ALLOWED) && web.passes(PEER) && !web.passes(DENIED));

    agent.kill();
    assert_eq!(agent.ask("uninstall", &[]).status.code(), Some(0));
    assert!(web.passes(DENIED), "nothing is in force");
    KINDS.iter().for_each(|kind| server.forbid(kind));
    let starting = agent.spawn_quietly();
    wait_for("what the node knew of itself in force", || !web.passes(DENIED));
    assert!(web.passes(ALLOWED), "by the last good policy, going by its cgroup");
    assert!(!later.passes(ALLOWED) && !later.passes(DENIED), "nobody knew this one");
    end(starting);

    KINDS.iter().for_each(|kind| server.permit(kind));
    agent.start(&[]);
    assert!(web.passes(ALLOWED) && web.passes(PEER) && !web.passes(DENIED));
    assert!(!later.passes(ALLOWED), "it still has no object");
}

#[test]
fn a_first_start_waits_for_the_other_nodes_and_no_other_start_does() {
    let sandbox = Sandbox::new("node").expect("tests on the real kernel run as root");
    let Shop { pods, _known, _plug, mut web, server } = Shop::new(&sandbox);
    let another = |name: &str| server.put("/api/v1/nodes", json!({"metadata": {"name": name, "uid": name}}));
    another("n2");
    let mut agent = Agent::of_node(NODE, pods.path(), &server, "posture: observe");
    let waits = |agent: &Agent| {
        let said = agent.ask("status", &[]);
        let page = String::from_utf8_lossy(&said.stdout).into_owned();
        said.status.code() == Some(1) && page.contains("nothing is in force here yet") && page.contains("n2")
    };
    // One that is ended meanwhile leaves tables, and nothing that is attached.
    for _ in 0..2 {
        let starting = agent.spawn_quietly();
        wait_for("it says whom it waits for", || waits(&agent));
        assert!(web.passes(DENIED), "nothing is in force");
        end(starting);
    }
    let starting = agent.spawn_quietly();
    wait_for("it says whom it waits for", || waits(&agent));
    server.put(
        "/apis/bulkhead.dev/v1alpha1/nodeendpoints",
        json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "NodeEndpoints", "metadata": {"name": "n2", "uid": "n2"},
            "spec": {"publishedBy": NODE, "workloads": []}}),
    );
    wait_for("it is in force once somebody has told of n2", || !web.passes(DENIED));
    assert!(web.passes(ALLOWED) && web.passes(PEER));
    end(starting);

    another("n3");
    agent.start(&[]);
    assert!(web.passes(ALLOWED) && !web.passes(DENIED), "what was in force stays");
}

#[test]
fn what_a_node_knew_of_itself_is_not_half_believed() {
    let sandbox = Sandbox::new("node").expect("tests on the real kernel run as root");
    let Shop { pods, _known, _plug, mut web, server } = Shop::new(&sandbox);
    let mut agent = Agent::of_node(NODE, pods.path(), &server, "posture: observe");
    agent.start(&[]);
    agent.kill();
    assert_eq!(agent.ask("uninstall", &[]).status.code(), Some(0));
    let file = agent.folder().join("state/test/node.json");
    let text = std::fs::read_to_string(&file).expect("written down at the start");
    std::fs::write(&file, text.replace("enforce", "enforced")).expect("a file");
    agent.start(&[]);
    assert!(agent.log().contains("node.json in the state folder is damaged"), "{}", agent.log());
    assert!(!web.passes(DENIED), "by what the API server told");
    let mended = std::fs::read_to_string(&file).expect("written anew");
    assert!(!mended.contains("enforced"), "{mended}");
}
