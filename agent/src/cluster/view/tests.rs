//! What objects come to, on the way to a verdict: each test goes from YAML to the image.

use super::*;
use crate::cluster::peers::Reader;
use crate::cluster::pod;
use crate::cluster::tests::yaml;
use crate::sources::assemble::{Assembled, assemble};
use crate::sources::hierarchy::{Cgroup, Scan, level};
use crate::sources::roster::Roster;
use bulkhead_common::{Flow, Outcome, PeerId, proto, verdict};

const NODE: &str = "n1";
const POD: &str = "6f1c2c3a-0b1d-4e2f-8a9b-0c1d2e3f4a5b";

fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("well-formed")
}

/// Objects as people write them.
#[derive(Default)]
struct Estate(Objects, Given);

impl Estate {
    fn new(documents: &[&str]) -> Self {
        let mut estate = Self::default();
        documents.iter().for_each(|text| estate.add(text));
        estate
    }

    fn add(&mut self, text: &str) {
        let value = yaml(text);
        let kind = value["kind"].as_str().expect("a kind").to_owned();
        let all = &mut self.0;
        match kind.as_str() {
            "Pod" => all.pods.push(Arc::new(Pod::of(&object(value)))),
            "NodeEndpoints" => all.peers.push(Arc::new(Reader::default().read(&object(value)))),
            "Service" => all.services.push(Arc::new(object(value))),
            "EndpointSlice" => all.slices.push(Arc::new(Slice::of(&object(value)))),
            "Namespace" => all.namespaces.push(Arc::new(object(value))),
            "Node" => all.nodes.push(Arc::new(Node::of(&object(value)))),
            "ServiceCIDR" => all.service_cidrs.push(Arc::new(object(value))),
            "ValidatingWebhookConfiguration" | "APIService" | "CustomResourceDefinition" => {
                all.callers.push(Arc::new(Caller::of(object(value))));
            }
            "SegmentationPolicy" | "ClusterSegmentationPolicy" => {
                all.policies.push(Arc::new(Document::of(&object(value))));
            }
            other => panic!("{other}"),
        }
    }

    fn view(&self) -> View {
        let config = crate::config::parse("f", "posture: enforce\n").expect("fine");
        let settings = Cluster::new(NODE, None, Some("t")).expect("fine");
        let pods_at = [Pods::at("/kubepods").expect("pods")];
        let here = Here { pods_at: &pods_at, given: &self.1, postures: &BTreeMap::new() };
        view(&settings, &self.0, &config, here)
    }

    /// The whole way: view, configuration, inventory, policies, image. Each pod has the cgroup that it would have.
    fn image(&self) -> (View, crate::image::Image, Assembled) {
        let mut view = self.view();
        let base = crate::config::parse("f", "posture: enforce\n").expect("fine");
        let mut config = base.clone();
        view.over(&mut config);
        let cgroup = |path: String, id| Cgroup { level: level(&path), path, id };
        let scan = Scan {
            workloads: (0..)
                .zip(&config.workloads)
                .filter_map(|(n, w)| Some((cgroup(w.cgroups.first()?.as_str().to_owned(), n as u64 + 100), n)))
                .collect(),
            attach: vec![cgroup("/kubepods".to_owned(), 1)],
            ..Scan::default()
        };
        let assembled = assemble("f", &config, &scan, &BTreeSet::new(), &mut Roster::new(1)).expect("room");
        let documents = view.texts.iter().flat_map(|(file, text)| crate::policy::read(file, text));
        let (set, findings) = crate::policy::PolicySet::assemble(documents, &Default::default());
        assert_eq!(findings, []);
        let set = set.under(crate::policy::Overrides { lowered: view.lowered.clone(), ..Default::default() });
        let compiled = crate::policy::compile(&set, &assembled.inventory, &mut Default::default());
        (view, compiled.image, assembled)
    }

    /// What becomes of a TCP connection from this service account's pods to an address and port.
    fn outcome(&self, from: &str, to: &str, port: u16) -> Outcome {
        let (_, image, assembled) = self.image();
        let is = |facts: &crate::inventory::IdentityFacts| facts.identity.to_string().ends_with(from);
        let src = assembled.inventory.identities.iter().find(|(_, f)| is(f)).map(|(p, _)| *p).expect("known");
        let at = verdict::resolve(&image, &pod::address(to).expect("an address"), proto::TCP, port);
        verdict::judge(&image, &Flow { src, dst: at.peer, proto: proto::TCP, port }).outcome()
    }
}

fn pod(name: &str, account: &str, uid: &str, ip: &str, more: &str) -> String {
    format!(
        "{{kind: Pod, metadata: {{name: {name}, namespace: shop, uid: {uid}}}, \
         spec: {{nodeName: {NODE}, serviceAccountName: {account}, containers: [{{name: c{more}}}]}}, \
         status: {{phase: Running, podIPs: [{{ip: {ip}}}]}}}}"
    )
}

const SHOP: &str = "{kind: Namespace, metadata: {name: shop, labels: {bulkhead.dev/posture: enforce}}}";

fn allow(from: &str, to: &str, port: u16) -> String {
    format!(
        "{{apiVersion: bulkhead.dev/v1alpha1, kind: ClusterSegmentationPolicy, metadata: {{name: {from}-{to}-{port}}}, \
         spec: {{mode: enforce, edges: [{{from: [{{id: 'spiffe://t/ns/shop/sa/{from}'}}], \
         to: [{{id: 'spiffe://t/ns/shop/sa/{to}'}}], ports: [{{port: {port}}}]}}]}}}}"
    )
}

#[test]
fn a_pod_is_a_workload_with_its_cgroup_and_address() {
    let view =
        Estate::new(&[SHOP, &pod("web-1", "web", POD, "10.0.0.1", ", ports: [{name: http, containerPort: 80}]")])
            .view();
    let [w] = &view.workloads[..] else { panic!("{view:?}") };
    assert_eq!((w.name.as_str(), w.posture), ("shop/web-1", Posture::Enforce));
    assert_eq!(w.identity.to_string(), "spiffe://t/ns/shop/sa/web");
    assert!(w.cgroups.iter().any(|g| g.matches(&format!("/kubepods/burstable/pod{POD}"))));
    assert_eq!(w.ports["http"], (6, 80));
    assert_eq!(view.published[0].addresses, ["10.0.0.1"]);
    assert!(view.warnings.is_empty(), "{:?}", view.warnings);
}

#[test]
fn an_address_that_was_given_counts_until_the_status_tells() {
    let unborn = pod("web-1", "web", POD, "10.0.0.1", "").replace("podIPs: [{ip: 10.0.0.1}]", "podIPs: []");
    let known = pod("web-2", "web", "b", "10.0.0.2", "");
    let hosts = unborn.replace("web-1", "web-3").replace(POD, "c").replace("spec: {", "spec: {hostNetwork: true, ");
    let mut estate = Estate::new(&[SHOP, &unborn, &known, &hosts]);
    let at = |text: &str| pod::address(text).expect("an address");
    estate.1 = [(POD, "10.0.0.9"), ("b", "10.0.0.8"), ("c", "10.0.0.7"), ("elsewhere", "10.0.0.6")]
        .map(|(uid, a)| (uid.to_owned(), vec![at(a)]))
        .into();
    let told: Vec<_> = estate.view().published.into_iter().map(|w| (w.uid, w.addresses)).collect();
    assert_eq!(told, [(POD.to_owned(), vec!["10.0.0.9".to_owned()]), ("b".to_owned(), vec!["10.0.0.2".to_owned()])]);
}

#[test]
fn an_address_with_two_claimants_is_nobodys() {
    let elsewhere = "
kind: NodeEndpoints
apiVersion: bulkhead.dev/v1alpha1
metadata: {name: n2}
spec:
  publishedBy: n2
  workloads:
  - {uid: b, namespace: shop, ids: ['spiffe://t/ns/shop/sa/thief'], addresses: [10.0.0.1, 10.0.1.1]}
  - {uid: c, namespace: shop, ids: ['spiffe://t/ns/shop/sa/web'], addresses: [10.0.0.2]}";
    let estate =
        Estate::new(&[SHOP, &pod("a", "web", "a", "10.0.0.1", ""), &pod("d", "web", "d", "10.0.0.2", ""), elsewhere]);
    let (view, image, _) = estate.image();
    let at = |text: &str| verdict::resolve(&image, &pod::address(text).expect("an address"), proto::TCP, 80).peer;
    assert_eq!(at("10.0.0.1"), Class::Unknown.id());
    assert!(at("10.0.1.1").is_identity());
    assert!(at("10.0.0.2").is_identity(), "one identity twice is that identity");
    assert!(view.warnings.iter().any(|w| w.text.contains("10.0.0.1 is claimed by")), "{:?}", view.warnings);
}

#[test]
fn who_tells_of_another_node_is_believed_if_there_is_such_a_node() {
    let told = "
kind: NodeEndpoints
apiVersion: bulkhead.dev/v1alpha1
metadata: {name: n2}
spec:
  publishedBy: n3
  workloads: [{uid: b, namespace: shop, ids: ['spiffe://t/ns/shop/sa/web'], addresses: [10.0.1.1]}]";
    let at = |objects: &[&str]| {
        let (view, image, _) = Estate::new(objects).image();
        let addr = pod::address("10.0.1.1").expect("an address");
        (verdict::resolve(&image, &addr, proto::TCP, 80).peer.is_identity(), view.warnings.len())
    };
    assert_eq!(at(&[SHOP, told]), (false, 1));
    assert_eq!(at(&[SHOP, told, "{kind: Node, metadata: {name: n2}}"]), (true, 0));
}

#[test]
fn two_pods_of_one_uid_are_both_unknown() {
    let (a, b) = (pod("a", "web", POD, "10.0.0.1", ""), pod("b", "db", POD, "10.0.0.2", ""));
    let view = Estate::new(&[SHOP, &a, &b]).view();
    assert!(view.workloads.is_empty());
    assert!(view.warnings[0].text.contains("neither is known"), "{:?}", view.warnings);
}

#[test]
fn an_ended_pod_holds_no_address() {
    let done = pod("job", "job", "j", "10.0.0.1", "").replace("Running", "Succeeded");
    let view = Estate::new(&[SHOP, &done, &pod("web", "web", "w", "10.0.0.1", "")]).view();
    assert_eq!(view.workloads.len(), 1);
    assert!(view.warnings.is_empty(), "{:?}", view.warnings);
}

#[test]
fn postures_come_from_labels_and_an_annotation_only_lowers() {
    let of = |labels: &str, annotations: &str, name: &str| {
        let text = format!(
            "{{kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}, annotations: {{{annotations}}}}}}}"
        );
        let view = Estate::new(&[&text]).view();
        (view.posture(name), view.warnings.len())
    };
    assert_eq!(of("", "", "a"), (Posture::Enforce, 0), "the default of the file");
    assert_eq!(of("", "", "kube-system"), (Posture::Observe, 0));
    assert_eq!(of("bulkhead.dev/posture: audit", "", "kube-system"), (Posture::Audit, 0));
    assert_eq!(of("bulkhead.dev/posture: enforce", "bulkhead.dev/override: observe", "a"), (Posture::Observe, 0));
    assert_eq!(of("bulkhead.dev/posture: audit", "bulkhead.dev/override: enforce", "a"), (Posture::Audit, 1));
    assert_eq!(of("bulkhead.dev/posture: enforce", "bulkhead.dev/override: audit", "a"), (Posture::Audit, 0));
    assert_eq!(of("bulkhead.dev/posture: observe", "bulkhead.dev/override: audit", "a"), (Posture::Observe, 0));
    assert_eq!(of("bulkhead.dev/posture: 'off'", "", "a"), (Posture::Enforce, 1));
}

#[test]
fn the_annotation_turns_off_what_policies_enforce_too() {
    let closed = "{apiVersion: bulkhead.dev/v1alpha1, kind: SegmentationPolicy, metadata: {name: db, namespace: shop}, \
        spec: {mode: enforce, selector: {ids: ['spiffe://t/ns/shop/sa/db']}, ingress: {rules: []}}}";
    let of = |annotations: &str| {
        let shop = format!(
            "{{kind: Namespace, metadata: {{name: shop, labels: {{bulkhead.dev/posture: enforce}}, \
             annotations: {{{annotations}}}}}}}"
        );
        let elsewhere = "
kind: NodeEndpoints
apiVersion: bulkhead.dev/v1alpha1
metadata: {name: n2}
spec:
  publishedBy: n2
  workloads: [{uid: b, namespace: other, ids: ['spiffe://t/ns/other/sa/stranger'], addresses: [10.0.1.1]}]";
        let (web, db) = (pod("a", "web", "a", "10.0.0.1", ""), pod("b", "db", "b", "10.0.0.2", ""));
        let estate = Estate::new(&[&shop, closed, elsewhere, &web, &db]);
        [estate.outcome("web", "10.0.0.2", 5432), estate.outcome("stranger", "10.0.0.2", 5432)]
    };
    assert_eq!(of(""), [Outcome::Denied; 2]);
    assert_eq!(of("bulkhead.dev/override: audit"), [Outcome::WouldDeny; 2]);
    assert_eq!(of("bulkhead.dev/override: observe"), [Outcome::Allowed; 2]);
    assert_eq!(of("bulkhead.dev/override: 'off'"), [Outcome::Denied; 2]);
}

#[test]
fn a_label_that_cant_be_read_keeps_the_posture_that_was_labelled_not_the_lowered_one() {
    let of = |label: &str, annotations: &str, last: &BTreeMap<String, Posture>| {
        let text = format!(
            "{{kind: Namespace, metadata: {{name: a, labels: {{bulkhead.dev/posture: '{label}'}}, \
             annotations: {{{annotations}}}}}}}"
        );
        let config = crate::config::parse("f", "posture: observe\n").expect("fine");
        let settings = Cluster::new(NODE, None, Some("t")).expect("fine");
        let here = Here { pods_at: &[], given: &Given::new(), postures: last };
        view(&settings, &Estate::new(&[&text]).0, &config, here)
    };
    let lowered = of("enforce", "bulkhead.dev/override: observe", &BTreeMap::new());
    assert_eq!(lowered.posture("a"), Posture::Observe);
    let broken = of("enfocre", "bulkhead.dev/override: observe", &lowered.postures);
    assert_eq!(of("enfocre", "", &broken.postures).posture("a"), Posture::Enforce);
}

const SERVICE: &str = "
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIPs: [10.96.0.5], ports: [{port: 5432}]}";

fn slice(port: u16, addresses: &str) -> String {
    format!(
        "{{kind: EndpointSlice, addressType: IPv4, \
         metadata: {{name: db-1, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}, \
         ports: [{{name: '', port: {port}}}], endpoints: [{{addresses: [{addresses}]}}]}}"
    )
}

#[test]
fn a_service_is_judged_by_who_answers() {
    let pods = [
        pod("web", "web", "a", "10.0.0.1", ""),
        pod("db", "db", "b", "10.0.0.2", ""),
        pod("x", "other", "c", "10.0.0.3", ""),
    ];
    let with = |slice: &str, rules: &[String]| {
        let mut e = Estate::new(&[SHOP, SERVICE, slice]);
        pods.iter().chain(rules).for_each(|t| e.add(t));
        e.outcome("web", "10.96.0.5", 5432)
    };
    let (same, other_port) = (slice(5432, "10.0.0.2"), slice(15432, "10.0.0.2"));
    assert_eq!(with(&same, &[]), Outcome::Denied);
    assert_eq!(with(&same, &[allow("web", "db", 5432)]), Outcome::Allowed);
    // The rule names the port at which the pod listens.
    assert_eq!(with(&other_port, &[allow("web", "db", 5432)]), Outcome::Denied);
    assert_eq!(with(&other_port, &[allow("web", "db", 15432)]), Outcome::Allowed);
    // One of the backends isn't allowed: the connection might reach it.
    let mixed = slice(5432, "10.0.0.2, 10.0.0.3");
    assert_eq!(with(&mixed, &[allow("web", "db", 5432)]), Outcome::Denied);
    assert_eq!(with(&mixed, &[allow("web", "db", 5432), allow("web", "other", 5432)]), Outcome::Allowed);
    // Nobody answers, or nobody known.
    assert_eq!(with(&slice(5432, ""), &[allow("web", "db", 5432)]), Outcome::Denied);
}

#[test]
fn a_backend_that_refuses_itself_stops_nobody_else() {
    // web may go anywhere; db takes it, other doesn't and says so at its own ingress.
    let egress = "
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentationPolicy
metadata: {name: web, namespace: shop}
spec: {mode: enforce, selector: {ids: ['spiffe://t/ns/shop/sa/web']}, egress: {rules: [{to: [{id: 'spiffe://**'}]}]}}";
    let mut e = Estate::new(&[SHOP, SERVICE, &slice(5432, "10.0.0.2, 10.0.0.3"), egress, &allow("web", "db", 5432)]);
    for t in [
        pod("web", "web", "a", "10.0.0.1", ""),
        pod("db", "db", "b", "10.0.0.2", ""),
        pod("x", "other", "c", "10.0.0.3", ""),
    ] {
        e.add(&t);
    }
    assert_eq!(e.outcome("web", "10.96.0.5", 5432), Outcome::Allowed);
    assert_eq!(e.outcome("web", "10.0.0.3", 5432), Outcome::Denied);
}

#[test]
fn what_a_cluster_needs_is_open_and_named() {
    let dns = "{kind: Pod, metadata: {name: dns, namespace: kube-system, uid: d}, \
        spec: {nodeName: n1, serviceAccountName: coredns, containers: []}, status: {podIPs: [{ip: 10.0.0.9}]}}";
    let service = "
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIPs: [10.96.0.10], ports: [{name: dns-tcp, port: 53}]}";
    let behind = "
kind: EndpointSlice
addressType: IPv4
metadata: {name: d, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
ports: [{name: dns-tcp, port: 53}]
endpoints: [{addresses: [10.0.0.9]}]";
    let api = "
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIPs: [10.96.0.1], ports: [{name: https, port: 443}]}";
    let servers = "
kind: EndpointSlice
addressType: IPv4
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
ports: [{name: https, port: 6443}]
endpoints: [{addresses: [192.0.2.1]}]";
    let node = "{kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.0.0.0/24]}, \
        status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n1}]}}";
    let system = "{kind: Namespace, metadata: {name: kube-system}}";
    let mut e = Estate::new(&[SHOP, system, dns, service, behind, api, servers, node]);
    e.add(&pod("web", "web", "a", "10.0.0.1", ", readinessProbe: {tcpSocket: {port: 8080}}"));
    e.add(&pod("op", "operator", "b", "10.0.0.2", "").replace(
        "containers:",
        "volumes: [{name: t, projected: {sources: [{serviceAccountToken: {path: t}}]}}], containers:",
    ));
    assert_eq!(e.outcome("web", "10.96.0.10", 53), Outcome::Allowed);
    assert_eq!(e.outcome("web", "10.0.0.9", 9153), Outcome::Denied, "its metrics aren't DNS");
    assert_eq!(e.outcome("operator", "10.96.0.1", 443), Outcome::Allowed);
    assert_eq!(e.outcome("operator", "192.0.2.1", 6443), Outcome::Allowed);
    assert_eq!(e.outcome("operator", "192.0.2.1", 22), Outcome::Denied, "the rest of that node");
    assert_eq!(e.outcome("web", "10.96.0.1", 443), Outcome::Denied, "it has no token");
    let (_, image, assembled) = e.image();
    let web = |f: &crate::inventory::IdentityFacts| f.identity.to_string().ends_with("/web");
    let web: PeerId = assembled.inventory.identities.iter().find(|(_, f)| web(f)).map(|(p, _)| *p).expect("known");
    let probe =
        |port| verdict::judge(&image, &Flow { src: Class::Host.id(), dst: web, proto: proto::TCP, port }).outcome();
    assert_eq!((probe(8080), probe(8081)), (Outcome::Allowed, Outcome::Denied));
    let unknown = pod::address("10.0.0.77").expect("an address");
    assert_eq!(verdict::resolve(&image, &unknown, proto::TCP, 80).peer, Class::Unknown.id(), "a pod not known yet");
}

#[test]
fn whom_the_api_server_calls_is_open_to_it_alone_at_that_port_alone() {
    let api = "
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIPs: [10.96.0.1], ports: [{name: https, port: 443}]}";
    let servers = "
kind: EndpointSlice
addressType: IPv4
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
ports: [{name: https, port: 6443}]
endpoints: [{addresses: [192.0.2.2]}]";
    let service = "
kind: Service
metadata: {name: hook, namespace: shop}
spec: {clusterIPs: [10.96.0.7], ports: [{name: https, port: 443}, {name: metrics, port: 9090}]}";
    let behind = "
kind: EndpointSlice
addressType: IPv4
metadata: {name: hook, namespace: shop, labels: {kubernetes.io/service-name: hook}}
ports: [{name: https, port: 8443}, {name: metrics, port: 9090}]
endpoints: [{addresses: [10.0.0.1]}]";
    let hook = "
kind: ValidatingWebhookConfiguration
metadata: {name: hook}
webhooks: [{name: a.example.org, clientConfig: {service: {namespace: shop, name: hook}}}]";
    let nodes = [("n1", "192.0.2.1"), ("n2", "192.0.2.2"), ("n3", "192.0.2.3")].map(|(name, a)| {
        format!(
            "{{kind: Node, metadata: {{name: {name}}}, status: {{addresses: [{{type: InternalIP, address: {a}}}]}}}}"
        )
    });
    let pod = pod("hook", "hook", "a", "10.0.0.1", "");
    let all = [SHOP, api, servers, service, behind, &pod, &nodes[0], &nodes[1], &nodes[2]];
    let outcomes = |hooks: &[&str], server: &str| {
        let texts: Vec<String> = all.iter().chain(hooks).map(|t| t.replace("[192.0.2.2]", server)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (_, image, assembled) = Estate::new(&texts).image();
        let dst = *assembled.inventory.identities.keys().next().expect("the hook");
        let from = |address: &str, port| {
            let src = verdict::resolve(&image, &pod::address(address).expect("an address"), proto::TCP, 0).peer;
            verdict::judge(&image, &Flow { src, dst, proto: proto::TCP, port }).outcome().passes()
        };
        [from("192.0.2.2", 8443), from("192.0.2.2", 9090), from("192.0.2.3", 8443), from("192.0.2.1", 8443)]
    };
    assert_eq!(outcomes(&[], "[192.0.2.2]"), [false; 4]);
    assert_eq!(outcomes(&[hook], "[192.0.2.2]"), [true, false, false, false]);
    assert_eq!(outcomes(&[hook], "[192.0.2.1]"), [false, false, false, true], "from here it is the node's");
    let image = Estate::new(&all).image().1;
    let node = pod::address("192.0.2.1").expect("an address");
    assert_eq!(verdict::resolve(&image, &node, proto::TCP, 0).peer, Class::Host.id(), "the kubelet stays the node's");
}

#[test]
fn a_policy_that_is_no_policy_keeps_its_name() {
    let old = "{apiVersion: bulkhead.dev/v1alpha1, kind: SegmentationPolicy, metadata: {name: p, namespace: shop, labels: {a: b}}, spec: {mode: strict}}";
    let view = Estate::new(&[old]).view();
    let text = &view.texts["SegmentationPolicy/shop/p"];
    let read = crate::policy::read("SegmentationPolicy/shop/p", text);
    assert!(read[0].as_ref().expect_err("not a policy").name.is_some());
}

/// The quick way and the plain one come to the same, whatever the policies were before.
#[test]
fn where_only_policies_differ_the_view_is_the_one_made_anew() {
    let mut estate =
        Estate::new(&[SHOP, &pod("web", "web", POD, "10.0.0.1", ", readinessProbe: {tcpSocket: {port: 80}}")]);
    let texts = [allow("web", "db", 80), allow("web", "db", 81), allow("db", "web", 80)];
    let all: Vec<_> = texts.iter().map(|text| Arc::new(Document::of(&object(yaml(text))))).collect();
    let some =
        |mask: usize| all.iter().enumerate().filter(move |(n, _)| mask >> n & 1 == 1).map(|(_, p)| Arc::clone(p));
    for (before, after) in (0..8).flat_map(|before| (0..8).map(move |after| (before, after))) {
        estate.0.policies = some(before).collect();
        let (mut quick, former) = (estate.view(), estate.0.clone());
        assert!(quick.texts.keys().any(|name| name.starts_with(builtin::PREFIX)), "something is built in");
        estate.0.policies = some(after).collect();
        let difference = if before == after { Difference::None } else { Difference::Policies };
        assert_eq!(former.difference(&estate.0), difference);
        quick.read_policies_again(&estate.0);
        assert_eq!(quick, estate.view(), "{before} {after}");
    }
    let former = estate.0.clone();
    estate.add(&pod("other", "web", "0f1c2c3a-0b1d-4e2f-8a9b-0c1d2e3f4a5b", "10.0.0.2", ""));
    assert_eq!(former.difference(&estate.0), Difference::Others);
    let mut renewed = former.clone();
    renewed.pods = former.pods.iter().map(|pod| Arc::new(Option::clone(pod))).collect();
    let difference = former.difference(&renewed);
    assert_eq!(difference, Difference::Others, "another form of an object, even if it says the same");
}
