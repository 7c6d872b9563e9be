//! From objects and reports to conditions.

use super::super::crd::{NodeEndpoints, NodeEndpointsSpec, NodePolicy, NodeWorkload};
use super::super::peers::Reader;
use super::super::view::Revision;
use super::*;
use proptest::prelude::*;

const TITLE: &str = "SegmentationPolicy/shop/web";

fn policy(generation: i64, spec: &str) -> Document {
    let spec = crate::cluster::tests::yaml(spec);
    let text = serde_json::json!({
        "apiVersion": "bulkhead.dev/v1alpha1", "kind": "SegmentationPolicy",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
    });
    let revision = Revision { uid: "u1".into(), generation };
    Document { title: TITLE.into(), text: text.to_string().into(), revision }
}

fn good(generation: i64) -> Document {
    policy(generation, "{mode: enforce, selector: {ids: ['spiffe://t/ns/shop/sa/web']}, ingress: {rules: []}}")
}

/// What one node says: generation in force, workloads, error.
fn report(node: &str, generation: i64, workloads: i64, error: Option<&str>) -> Arc<SegmentationNode> {
    let told = NodePolicy {
        policy: TITLE.to_owned(),
        uid: "u1".to_owned(),
        generation,
        workloads,
        would_deny: 10,
        error: error.map(str::to_owned),
        ..NodePolicy::default()
    };
    let spec = SegmentationNodeSpec { ready: true, policies: vec![told], ..SegmentationNodeSpec::default() };
    Arc::new(SegmentationNode::new(node, spec))
}

/// A node with a pod of this service account.
fn home(node: &str, account: &str) -> Arc<NodePeers> {
    let workload = NodeWorkload {
        namespace: "shop".to_owned(),
        ids: vec![format!("spiffe://t/ns/shop/sa/{account}")],
        ..NodeWorkload::default()
    };
    let spec = NodeEndpointsSpec { published_by: node.to_owned(), workloads: vec![workload] };
    Arc::new(Reader::default().read(&NodeEndpoints::new(node, spec)))
}

fn fleet(reports: &[Arc<SegmentationNode>], homes: &[Arc<NodePeers>]) -> Fleet {
    Fleet::new(&["n1", "n2", "n3"].map(str::to_owned).into(), reports, homes)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn of(s: &PolicyStatus, kind: &str) -> (String, String) {
    let c = s.conditions.iter().find(|c| c.type_ == kind).expect("there");
    (c.status.clone(), c.reason.clone())
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn in_force_where_it_is_needed_is_enforced() {
    let homes = [home("n1", "web"), home("n2", "web"), home("n3", "db")];
    let both = fleet(&[report("n1", 4, 2, None), report("n2", 4, 1, None)], &homes);
    let s = status(&good(4), &both, &PolicyStatus::default(), at(9));
    assert_eq!((s.nodes, s.nodes_in_step, s.workloads, s.would_deny, s.rules), (2, 2, 3, 20, 0));
    assert_eq!((of(&s, "Accepted"), of(&s, "Enforced")), (is("True", "Accepted"), is("True", "Enforced")));
    assert_eq!(of(&s, "Degraded"), is("False", "AsExpected"));
    assert!(s.observed_generation == 4 && s.conditions.iter().all(|c| c.observed_generation == Some(4)));

    // A node that has the pod and hasn't said anything yet is behind, and named.
    let one = fleet(&[report("n1", 4, 2, None)], &homes);
    let s = status(&good(4), &one, &s, at(10));
    assert_eq!((s.nodes, s.nodes_in_step), (2, 1));
    assert_eq!((of(&s, "Enforced"), of(&s, "Degraded")), (is("False", "NodesBehind"), is("True", "NodesBehind")));
    assert!(s.conditions[1].message.ends_with("1 of 2 nodes don't have this form in force yet: n2"), "{s:?}");
    assert_eq!(s.conditions[1].last_transition_time, Time(at(10)));
    assert_eq!(s.conditions[0].last_transition_time, Time(at(9)), "that one hasn't changed");

    // So is one with the form before this one.
    let late = fleet(&[report("n1", 4, 2, None), report("n2", 3, 1, None)], &homes);
    assert_eq!(of(&status(&good(4), &late, &s, at(11)), "Enforced"), is("False", "NodesBehind"));
}

#[test]
fn what_a_node_that_is_gone_left_behind_doesnt_count() {
    let gone = [report("n9", 1, 5, None)];
    let s = status(&good(2), &fleet(&gone, &[home("n9", "web")]), &PolicyStatus::default(), at(1));
    assert_eq!((s.nodes, s.workloads), (0, 0));
    assert_eq!(of(&s, "Enforced"), is("False", "NothingConcerned"));
    let mut other = report("n1", 2, 5, None);
    Arc::make_mut(&mut other).spec.policies[0].uid = "of a policy deleted before".to_owned();
    assert_eq!(status(&good(2), &fleet(&[other], &[]), &PolicyStatus::default(), at(1)).workloads, 0);
}

#[test]
fn an_error_is_told_with_its_field_and_once() {
    let homes = [home("n1", "web")];
    let bad = policy(5, "{mode: strict, selector: {ids: ['spiffe://t/ns/shop/sa/web']}, ingress: {rules: []}}");
    let last = status(&good(4), &fleet(&[report("n1", 4, 1, None)], &homes), &PolicyStatus::default(), at(1));
    let now = fleet(&[report("n1", 0, 1, Some("mode"))], &homes);
    let s = status(&bad, &now, &last, at(2));
    assert_eq!(of(&s, "Accepted"), is("False", "Invalid"));
    assert!(s.conditions[0].message.starts_with("spec.mode: `strict` isn't a value"), "{s:?}");
    assert_eq!((of(&s, "Enforced"), of(&s, "Degraded")), (is("False", "Invalid"), is("True", "Invalid")));
    assert!(newly_refused(&last, &s).is_some_and(|why| why.contains("strict")));
    assert_eq!(newly_refused(&s, &s), None, "one Event for each form");
    let next = status(&policy(6, "{mode: loose}"), &now, &s, at(3));
    assert!(newly_refused(&s, &next).is_some());
    assert_eq!(newly_refused(&next, &status(&good(7), &now, &next, at(4))), None);
}

#[test]
fn a_field_is_named_by_its_whole_path() {
    let spec = "{mode: enforce, selector: {ids: ['spiffe://t/a']}, ingress: {rules: [{from: [{class: world}]}, \
        {from: [{id: 'spiffe://t/b'}], ports: [{port: 80}, {port: 99999}]}]}}";
    let s = status(&policy(1, spec), &Fleet::default(), &PolicyStatus::default(), at(1));
    let message = &s.conditions[0].message;
    assert!(message.starts_with("spec.ingress.rules[1].ports[1]"), "{message}");
    let text = serde_json::to_string_pretty(&crate::cluster::tests::yaml("{a: {b: [x, {c: 1}]}}")).expect("JSON");
    let all: Vec<_> = (1..=10).map(|n| field(&text, n).unwrap_or_default()).collect();
    assert_eq!(all, ["", "a", "a.b", "a.b[0]", "a.b[1]", "a.b[1].c", "a.b[1]", "a.b", "a", ""], "{text}");
}

#[test]
fn a_node_that_cannot_take_what_others_take_is_named() {
    let homes = [home("n1", "web"), home("n2", "web")];
    let one = fleet(&[report("n1", 4, 1, None), report("n2", 0, 1, Some("unknown field `x`"))], &homes);
    let s = status(&good(4), &one, &PolicyStatus::default(), at(1));
    assert_eq!((of(&s, "Accepted"), of(&s, "Degraded")), (is("True", "Accepted"), is("True", "RefusedByNodes")));
    assert_eq!(s.conditions[2].message, "n2: unknown field `x`");
}

#[test]
fn audit_break_glass_a_lowered_namespace_and_expiry_arent_enforced() {
    let homes = [home("n1", "web")];
    let reason = |document: &Document, reports: &[Arc<SegmentationNode>]| {
        of(&status(document, &fleet(reports, &homes), &PolicyStatus::default(), at(100)), "Enforced").1
    };
    let spec = "selector: {ids: ['spiffe://t/ns/shop/sa/web']}, ingress: {rules: []}";
    assert_eq!(reason(&policy(1, &format!("{{mode: audit, {spec}}}")), &[report("n1", 1, 1, None)]), "AuditMode");
    let over = format!("{{mode: enforce, expiresAt: '1970-01-01T00:01:00Z', {spec}}}");
    assert_eq!(reason(&policy(1, &over), &[report("n1", 1, 1, None)]), "Expired");
    let mut open = report("n1", 1, 1, None);
    Arc::make_mut(&mut open).spec.policies[0].break_glass = 1;
    assert_eq!(reason(&good(1), &[open]), "BreakGlass");
    let mut lowered = report("n1", 1, 1, None);
    Arc::make_mut(&mut lowered).spec.policies[0].lowered = 1;
    assert_eq!(reason(&good(1), &[lowered]), "Lowered");
}

#[test]
fn counts_alone_can_wait() {
    let homes = [home("n1", "web")];
    let a = status(&good(1), &fleet(&[report("n1", 1, 1, None)], &homes), &PolicyStatus::default(), at(1));
    let b = status(&good(1), &fleet(&[report("n1", 1, 9, None)], &homes), &a, at(2));
    let c = status(&good(2), &fleet(&[report("n1", 2, 9, None)], &homes), &b, at(3));
    assert!(is_only_counts(&a, &b) && !is_only_counts(&b, &c));
}

proptest! {
    /// Whatever the nodes say: the numbers fit each other, enforced means everywhere, and a status that was written is
    /// not written again.
    #[test]
    fn every_status_agrees_with_itself(
        told in proptest::collection::vec((0usize..4, 0i64..4, 0i64..3, any::<bool>()), 0..6),
        homes in proptest::collection::vec((0usize..4, 0usize..2), 0..5),
        generation in 1i64..4,
        bad in any::<bool>(),
    ) {
        let node = |n: usize| ["n1", "n2", "n3", "gone"][n];
        let reports: Vec<_> =
            told.iter().map(|(n, g, w, e)| report(node(*n), *g, *w, e.then_some("no"))).collect();
        let homes: Vec<_> = homes.iter().map(|(n, who)| home(node(*n), ["web", "db"][*who])).collect();
        let fleet = fleet(&reports, &homes);
        let document = if bad { policy(generation, "{mode: odd}") } else { good(generation) };
        let first = status(&document, &fleet, &PolicyStatus::default(), at(50));
        prop_assert!(0 <= first.nodes_in_step && first.nodes_in_step <= first.nodes && first.nodes <= 3);
        let is_true = |kind: &str| of(&first, kind).0 == "True";
        prop_assert_eq!(is_true("Accepted"), !bad);
        if is_true("Enforced") {
            prop_assert!(is_true("Accepted") && first.nodes > 0 && first.nodes == first.nodes_in_step);
        }
        prop_assert!(is_true("Enforced") || is_true("Degraded") || first.nodes == 0);
        prop_assert_eq!(status(&document, &fleet, &first, at(60)), first);
    }
}
