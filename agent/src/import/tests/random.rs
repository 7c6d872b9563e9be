//! NetworkPolicies at random: imported, and judged by the other reading of the standard.

use super::obvious::{self, Labels, NetworkPolicy, Peer, Pod, Port, Rule, World};
use super::{Tally, cases, compare};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestCaseError, TestRunner};
use std::cell::Cell;
use std::collections::BTreeMap;

pub(in crate::import) const PORTS: [(u8, u16); 7] =
    [(6, 80), (6, 81), (6, 8080), (6, 443), (17, 53), (17, 80), (132, 80)];

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let one = |key: &'static str, values: Vec<&'static str>| {
        prop::option::weighted(0.8, select(values)).prop_map(move |v| v.map(|v| (key.to_owned(), v.to_owned())))
    };
    (one("app", vec!["x", "y"]), one("tier", vec!["f", "b"])).prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

fn named_ports() -> impl Strategy<Value = BTreeMap<String, (u8, u16)>> {
    let web = prop::option::weighted(0.7, select(vec![(6, 80), (6, 8080), (17, 80)]));
    let dns = prop::option::of(Just((17u8, 53u16)));
    (web, dns).prop_map(|(web, dns)| {
        let named = [("web", web), ("dns", dns)];
        named.into_iter().filter_map(|(name, port)| Some((name.to_owned(), port?))).collect()
    })
}

/// Mostly all pods of an account are alike; some aren't.
pub(in crate::import) fn world() -> impl Strategy<Value = World> {
    let accounts = prop::collection::vec((labels(), named_ports()), 4);
    let own = prop::option::weighted(0.12, (labels(), named_ports()));
    let pods = prop::collection::vec((0usize..2, 0usize..2, own), 2..6);
    let namespaces = prop::collection::vec(select(vec!["dev", "prod"]), 2);
    (accounts, pods, namespaces).prop_map(|(accounts, pods, stages)| {
        let pods = pods.into_iter().enumerate().map(|(n, (namespace, account, own))| {
            let (labels, ports) = own.unwrap_or_else(|| accounts[namespace * 2 + account].clone());
            Pod {
                namespace: format!("n{namespace}"),
                name: format!("pod-{n}"),
                account: format!("s{account}"),
                labels,
                address: format!("10.0.{namespace}.{}", n + 1).parse().expect("an address"),
                ports,
            }
        });
        let namespaces = stages.into_iter().enumerate().map(|(n, stage)| {
            let name = format!("n{n}");
            let labels = [("kubernetes.io/metadata.name", name.as_str()), ("stage", stage)];
            (name.clone(), labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
        });
        let outside = ["198.51.100.7", "203.0.113.9"].map(|a| a.parse().expect("an address"));
        World { pods: pods.collect(), namespaces: namespaces.collect(), outside: outside.to_vec() }
    })
}

fn expression(key: &'static str, values: Vec<&'static str>) -> impl Strategy<Value = (String, String, Vec<String>)> {
    (select(vec!["In", "NotIn", "Exists", "DoesNotExist"]), prop::collection::vec(select(values), 1..3)).prop_map(
        move |(operator, values)| {
            let values = if operator.ends_with("In") { values } else { Vec::new() };
            (key.to_owned(), operator.to_owned(), values.into_iter().map(str::to_owned).collect())
        },
    )
}

pub(in crate::import) fn pod_selector() -> impl Strategy<Value = Labels> {
    let equal = |key: &'static str, values: Vec<&'static str>| {
        select(values)
            .prop_map(move |v| Labels { equal: vec![(key.to_owned(), v.to_owned())], expressions: Vec::new() })
    };
    let by_expression =
        expression("app", vec!["x", "y", "z"]).prop_map(|e| Labels { equal: Vec::new(), expressions: vec![e] });
    let both = (equal("app", vec!["x", "y"]), expression("tier", vec!["f", "b"]))
        .prop_map(|(a, e)| Labels { expressions: vec![e], ..a });
    prop_oneof![3 => Just(Labels::default()), 3 => equal("app", vec!["x", "y"]), 1 => equal("tier", vec!["f", "b"]),
                2 => by_expression, 1 => both]
}

pub(in crate::import) fn namespace_selector() -> impl Strategy<Value = Labels> {
    let equal = |key: &'static str, value: &'static str| Labels {
        equal: vec![(key.to_owned(), value.to_owned())],
        expressions: Vec::new(),
    };
    let by_expression =
        expression("stage", vec!["dev", "prod"]).prop_map(|e| Labels { equal: Vec::new(), expressions: vec![e] });
    prop_oneof![
        2 => Just(Labels::default()),
        2 => select(vec!["n0", "n1", "n9"]).prop_map(move |n| equal("kubernetes.io/metadata.name", n)),
        2 => select(vec!["dev", "prod"]).prop_map(move |n| equal("stage", n)),
        1 => by_expression,
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    let blocks = vec![
        ("198.51.100.0/24", vec![]),
        ("203.0.113.0/24", vec!["203.0.113.8/30"]),
        ("203.0.113.8/29", vec![]),
        ("0.0.0.0/0", vec!["10.0.0.0/8", "169.254.0.0/16", "192.0.2.0/24"]),
        ("0.0.0.0/0", vec![]),
        ("10.0.1.0/24", vec![]),
        ("2001:db8::/32", vec![]),
    ];
    let block = select(blocks)
        .prop_map(|(cidr, except)| Peer::Block(cidr.to_owned(), except.into_iter().map(str::to_owned).collect()));
    prop_oneof![
        3 => pod_selector().prop_map(|p| Peer::Selectors(Some(p), None)),
        2 => namespace_selector().prop_map(|n| Peer::Selectors(None, Some(n))),
        2 => (pod_selector(), namespace_selector()).prop_map(|(p, n)| Peer::Selectors(Some(p), Some(n))),
        2 => block,
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = prop_oneof![2 => Just(None), 2 => Just(Some(6u8)), 1 => Just(Some(17)), 1 => Just(Some(132))];
    let value = prop_oneof![
        1 => Just((None, None)),
        3 => select(vec![80u16, 81, 443, 53]).prop_map(|p| (Some(Ok(p)), None)),
        2 => (79u16..82, 0u16..3).prop_map(|(p, n)| (Some(Ok(p)), Some(p + n))),
        2 => select(vec!["web", "dns", "nobodys"]).prop_map(|n| (Some(Err(n.to_owned())), None)),
    ];
    (protocol, value).prop_map(|(protocol, (port, end))| Port { protocol, port, end })
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let peers = prop::option::weighted(0.85, prop::collection::vec(peer(), 0..3));
    let ports = prop::option::weighted(0.6, prop::collection::vec(port(), 0..3));
    let rule = (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports });
    prop::option::weighted(0.8, prop::collection::vec(rule, 0..3))
}

pub(in crate::import) fn policies(most: usize) -> impl Strategy<Value = Vec<NetworkPolicy>> {
    let types = prop::option::weighted(
        0.6,
        select(vec![vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"], vec!["Egress", "Ingress"], vec![]]),
    );
    let policy = (select(vec!["n0", "n1"]), pod_selector(), types, rules(), rules());
    prop::collection::vec(policy, 0..most).prop_map(|all| {
        let named = all.into_iter().enumerate().map(|(n, (namespace, pods, types, ingress, egress))| NetworkPolicy {
            namespace: namespace.to_owned(),
            name: format!("policy-{n}"),
            pods,
            types,
            ingress,
            egress,
        });
        named.collect()
    })
}

/// Whether the policy that a finding names selects this pod.
pub(in crate::import) fn selects(policies: &[NetworkPolicy], object: &str, pod: &Pod) -> bool {
    policies.iter().any(|p| object == format!("NetworkPolicy {}/{}", p.namespace, p.name) && p.selects(pod))
}

#[test]
fn an_imported_networkpolicy_says_what_the_standard_says_and_never_more() {
    let tally = Cell::new(Tally::default());
    let mut runner = TestRunner::new(cases(600));
    let ran = runner.run(&(world(), policies(4)), |(world, policies)| {
        let text = obvious::file(&policies.iter().map(obvious::written).collect::<Vec<_>>());
        let selects = |object: &str, pod: &Pod| selects(&policies, object, pod);
        let standard = |from, to, proto, port| obvious::allowed(&world, &policies, from, to, proto, port);
        let more = compare(&world, &text, &PORTS, selects, standard).map_err(TestCaseError::fail)?;
        let mut sum = tally.get();
        sum += more;
        tally.set(sum);
        Ok(())
    });
    if let Err(e) = ran {
        panic!("{e}");
    }
    let Tally { exact, all, denied } = tally.get();
    println!("{exact} of {all} connections claimed to be exact, {denied} of them denied");
    assert!(exact * 2 > all && denied * 10 > exact, "the cases say little: {:?}", tally.get());
}
