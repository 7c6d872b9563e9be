//! The tiers around NetworkPolicies: an evaluator that walks them in their order, and random policies in both forms.

use super::obvious::{self, Labels, NetworkPolicy, Pod, Who, World, file, lies_in};
use super::random::{PORTS, namespace_selector, pod_selector, policies, selects, world};
use super::{Tally, cases, compare};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestCaseError, TestRunner};
use serde_json::{Value, json};
use std::cell::Cell;

#[derive(Clone, Debug)]
enum Peer {
    Namespaces(Labels),
    Pods(Labels, Labels),
    Networks(Vec<String>),
}

#[derive(Clone, Debug)]
enum Port {
    Number(u8, u16),
    Range(u8, u16, u16),
    Named(String),
}

#[derive(Clone, Debug)]
struct Rule {
    /// In the words of v1alpha2.
    action: &'static str,
    peers: Vec<Peer>,
    ports: Option<Vec<Port>>,
}

/// A policy of either form.
#[derive(Clone, Debug)]
struct Tiered {
    name: String,
    old: bool,
    admin: bool,
    priority: i64,
    subject: Peer,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

fn fits(world: &World, peer: &Peer, who: Who) -> bool {
    let inside = |namespaces: &Labels, pods: Option<&Labels>| {
        world.pod(who).is_some_and(|pod| {
            namespaces.select(&world.namespaces[&pod.namespace]) && pods.is_none_or(|p| p.select(&pod.labels))
        })
    };
    match peer {
        Peer::Namespaces(namespaces) => inside(namespaces, None),
        Peer::Pods(namespaces, pods) => inside(namespaces, Some(pods)),
        Peer::Networks(nets) => nets.iter().any(|net| lies_in(world.address(who), net)),
    }
}

impl Rule {
    fn fits(&self, world: &World, other: Who, target: Who, protocol: u8, port: u16) -> bool {
        let on = |p: &Port| match p {
            Port::Number(proto, n) => (*proto, *n) == (protocol, port),
            Port::Range(proto, first, last) => *proto == protocol && (*first..=*last).contains(&port),
            Port::Named(name) => world.pod(target).is_some_and(|pod| pod.ports.get(name) == Some(&(protocol, port))),
        };
        self.peers.iter().any(|p| fits(world, p, other)) && self.ports.as_ref().is_none_or(|all| all.iter().any(on))
    }
}

/// The first rule that fits, of the policies of a tier in the order of their priorities.
fn first<'t>(
    world: &World,
    tiers: &'t [Tiered],
    admin: bool,
    (from, to): (Who, Who),
    (protocol, port): (u8, u16),
    ingress: bool,
) -> Option<&'t str> {
    let mut ordered: Vec<&Tiered> = tiers.iter().filter(|t| t.admin == admin).collect();
    ordered.sort_by_key(|t| t.priority);
    let (own, other) = if ingress { (to, from) } else { (from, to) };
    for policy in ordered {
        if fits(world, &policy.subject, own) {
            for rule in if ingress { &policy.ingress } else { &policy.egress } {
                if rule.fits(world, other, to, protocol, port) {
                    return Some(rule.action);
                }
            }
        }
    }
    None
}

/// One side: the admin tier, then NetworkPolicies, then the baseline, then everything is allowed.
fn side(
    world: &World,
    tiers: &[Tiered],
    policies: &[NetworkPolicy],
    ends: (Who, Who),
    at: (u8, u16),
    ingress: bool,
) -> bool {
    match first(world, tiers, true, ends, at, ingress) {
        Some("Accept") => return true,
        Some("Deny") => return false,
        _ => {}
    }
    let direction = if ingress { "Ingress" } else { "Egress" };
    if let Some(allowed) = obvious::side(world, policies, ends, at.0, at.1, direction) {
        return allowed;
    }
    first(world, tiers, false, ends, at, ingress) != Some("Deny")
}

fn allowed(world: &World, tiers: &[Tiered], policies: &[NetworkPolicy], from: Who, to: Who, at: (u8, u16)) -> bool {
    let says = |own: Who, ingress| world.pod(own).is_none() || side(world, tiers, policies, (from, to), at, ingress);
    says(from, false) && says(to, true)
}

fn port_written(port: &Port, old: bool) -> Value {
    let (upper, lower) = match port {
        Port::Number(6, _) | Port::Range(6, ..) => ("TCP", "tcp"),
        _ => ("UDP", "udp"),
    };
    match (port, old) {
        (Port::Number(_, n), true) => json!({"portNumber": {"protocol": upper, "port": n}}),
        (Port::Range(_, a, b), true) => json!({"portRange": {"protocol": upper, "start": a, "end": b}}),
        (Port::Named(name), true) => json!({"namedPort": name}),
        (Port::Number(_, n), false) => json!({lower: {"destinationPort": {"number": n}}}),
        (Port::Range(_, a, b), false) => json!({lower: {"destinationPort": {"range": {"start": a, "end": b}}}}),
        (Port::Named(name), false) => json!({"destinationNamedPort": name}),
    }
}

fn written(policy: &Tiered) -> Value {
    let peer = |p: &Peer| match p {
        Peer::Namespaces(n) => json!({"namespaces": n.written()}),
        Peer::Pods(n, p) => json!({"pods": {"namespaceSelector": n.written(), "podSelector": p.written()}}),
        Peer::Networks(nets) => json!({"networks": nets}),
    };
    let rules = |rules: &[Rule], ends: &str| -> Value {
        let rule = |r: &Rule| {
            let action = if r.action == "Accept" && policy.old { "Allow" } else { r.action };
            let mut map = json!({"name": "a rule", "action": action});
            map[ends] = r.peers.iter().map(peer).collect();
            if let Some(ports) = &r.ports {
                let field = if policy.old { "ports" } else { "protocols" };
                map[field] = ports.iter().map(|p| port_written(p, policy.old)).collect();
            }
            map
        };
        rules.iter().map(rule).collect()
    };
    let (kind, version) = match (policy.old, policy.admin) {
        (false, _) => ("ClusterNetworkPolicy", "v1alpha2"),
        (true, true) => ("AdminNetworkPolicy", "v1alpha1"),
        (true, false) => ("BaselineAdminNetworkPolicy", "v1alpha1"),
    };
    let mut spec = json!({
        "subject": peer(&policy.subject),
        "ingress": rules(&policy.ingress, "from"),
        "egress": rules(&policy.egress, "to"),
    });
    if !policy.old {
        spec["tier"] = json!(if policy.admin { "Admin" } else { "Baseline" });
    }
    if !policy.old || policy.admin {
        spec["priority"] = json!(policy.priority);
    }
    let version = format!("policy.networking.k8s.io/{version}");
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": policy.name}, "spec": spec})
}

fn peer(networks: bool) -> impl Strategy<Value = Peer> {
    let nets = select(vec!["198.51.100.0/24", "203.0.113.8/29", "10.0.1.0/24", "0.0.0.0/0"]);
    let nets = prop::collection::vec(nets.prop_map(str::to_owned), 1..3).prop_map(Peer::Networks);
    prop_oneof![
        3 => namespace_selector().prop_map(Peer::Namespaces),
        3 => (namespace_selector(), pod_selector()).prop_map(|(n, p)| Peer::Pods(n, p)),
        u32::from(networks) => nets,
    ]
}

fn rules(networks: bool) -> impl Strategy<Value = Vec<Rule>> {
    let port = prop_oneof![
        3 => (select(vec![6u8, 17]), select(vec![80u16, 81, 443, 53])).prop_map(|(p, n)| Port::Number(p, n)),
        1 => (select(vec![6u8, 17]), 79u16..82, 0u16..3).prop_map(|(p, n, more)| Port::Range(p, n, n + more)),
        1 => select(vec!["web", "dns"]).prop_map(|n| Port::Named(n.to_owned())),
    ];
    let ports = prop::option::weighted(0.5, prop::collection::vec(port, 1..3));
    let peers = prop::collection::vec(peer(networks), 1..3);
    let rule = (select(vec!["Accept", "Deny", "Deny", "Pass"]), peers, ports).prop_map(|(action, peers, ports)| Rule {
        action,
        peers,
        ports,
    });
    prop::collection::vec(rule, 0..3)
}

fn tiers() -> impl Strategy<Value = Vec<Tiered>> {
    let one = (any::<bool>(), any::<bool>(), peer(false), rules(false), rules(true));
    (prop::collection::vec(one, 1..4), Just([3i64, 1, 2]).prop_shuffle()).prop_map(|(all, priorities)| {
        let mut baseline = false;
        type Parts = (bool, bool, Peer, Vec<Rule>, Vec<Rule>);
        let policy = |(n, (old, admin, subject, mut ingress, mut egress)): (usize, Parts)| {
            // There is only one of the old baseline, nothing beside it, and it passes nothing on.
            let admin = admin || baseline;
            let old = old && (admin || n == 0);
            baseline |= !admin && old;
            if old && !admin {
                ingress.retain(|r: &Rule| r.action != "Pass");
                egress.retain(|r: &Rule| r.action != "Pass");
            }
            Tiered { name: format!("tier-{n}"), old, admin, priority: priorities[n], subject, ingress, egress }
        };
        all.into_iter().enumerate().map(policy).collect()
    })
}

#[test]
fn imported_tiers_say_what_the_standard_says_and_never_more() {
    let tally = Cell::new(Tally::default());
    let mut runner = TestRunner::new(cases(500));
    let ran = runner.run(&(world(), tiers(), policies(3)), |(world, tiers, policies)| {
        let mut objects: Vec<Value> = policies.iter().map(obvious::written).collect();
        objects.extend(tiers.iter().map(written));
        let about = |object: &str, pod: &Pod| {
            let who = world.pods.iter().position(|p| p.name == pod.name).map(Who::Pod).expect("a pod of this world");
            let of = |t: &Tiered| object.ends_with(&format!(" {}", t.name)) && fits(&world, &t.subject, who);
            selects(&policies, object, pod) || tiers.iter().any(of)
        };
        let standard = |from, to, proto, port| allowed(&world, &tiers, &policies, from, to, (proto, port));
        let more = compare(&world, &file(&objects), &PORTS, about, standard).map_err(TestCaseError::fail)?;
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
    assert!(exact * 3 > all && denied * 10 > exact, "the cases say little: {:?}", tally.get());
}
