//! What `check` warns about.

use super::super::*;
use super::cases::{estate, policies};
use crate::inventory::Inventory;

/// The warnings about a cluster policy whose spec begins in line 5, and about another one in a file of its own.
fn warnings(spec: &str, other: &str, inventory: Option<&Inventory>) -> String {
    let document = |file, name, spec: &str| {
        let text = format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: {name}}}\nspec:\n{spec}"
        );
        read(file, &text)
    };
    let mut documents = document("a", "a", spec);
    if !other.is_empty() {
        documents.extend(document("b", "b", other));
    }
    let (set, findings) = PolicySet::assemble(documents, &PolicySet::default());
    assert_eq!(findings, [], "{spec}");
    check(&set, inventory).iter().map(|d| d.to_string() + "\n").collect()
}

#[test]
fn good_policies_raise_nothing_but_what_they_mean() {
    let said: Vec<String> = check(&policies(), Some(&estate())).iter().map(ToString::to_string).collect();
    assert_eq!(said, Vec::<String>::new());
}

#[test]
fn each_doubtful_rule_is_named_with_its_place() {
    let estate = estate();
    const A: &str = "spiffe://example.org/ns/shop/sa/cart";
    const B: &str = "spiffe://example.org/ns/data/sa/db";
    let edge = |from: &str, to: &str, rest: &str| {
        format!("  mode: enforce\n  edges:\n    - {{from: [{{{from}}}], to: [{{{to}}}]{rest}}}\n")
    };
    let (a, b) = (&format!("id: \"{A}\""), &format!("id: \"{B}\""));
    let any = "id: \"spiffe://**\"";
    let ports = ", ports: [{port: 80}]";
    for (spec, other, expected) in [
        ("  mode: audit\n".to_owned(), "", "a:3:18: warning: ClusterSegmentationPolicy a says nothing"),
        (
            "  mode: audit\n  selector: {ids: [\"spiffe://**\"]}\n  ingress: {}\n".to_owned(),
            "",
            "a:6:20: warning: this selects every workload",
        ),
        (
            "  mode: audit\n  selector: {ids: [\"spiffe://example.org/**\"]}\n  ingress: {}\n".to_owned(),
            "",
            "selects every workload known here",
        ),
        (
            "  mode: audit\n  selector: {ids: [\"spiffe://example.com/**\"]}\n  ingress: {}\n".to_owned(),
            "",
            "a:6:20: warning: `spiffe://example.com/**` matches no workload known here",
        ),
        (edge(a, b, ""), "", "a:7:7: warning: without `ports`, this is every port"),
        (edge("class: snat-ingress", b, ports), "", "a:7:7: warning: `snat-ingress` is blind to identity"),
        (edge(a, "class: snat-ingress", ports), "", "a:7:7: warning: nobody is reached as `snat-ingress`"),
        (edge(any, b, ""), "", "a:7:7: warning: this lets any workload connect on every port"),
        (edge(any, any, ports), "", "this lets every workload connect to every other"),
        (edge(a, "class: world", ""), "", "this lets connections to the whole world through on every port"),
        (edge(a, "cidr: 0.0.0.0/0", ""), "", "this lets connections to the whole world through on every port"),
        (edge("class: host", "class: world", ports), "", "neither end is a workload"),
        (edge(a, "id: \"spiffe://example.org/ns/data/sa/bd\"", ports), "", "matches no workload known here"),
        (edge(a, "cidr: 10.0.3.0/24", ports), "", "10.0.3.0/24 lies inside the range of unknown"),
        (edge(a, b, ", ports: [{port: http}]"), "", "no destination of this rule has a port named `http`"),
        (
            edge(a, b, ", ports: [{port: postgres, protocol: UDP}]"),
            "",
            "no destination of this rule has a port named `postgres`",
        ),
        (
            edge(a, b, ports),
            &edge(a, b, ports),
            "b:7:7: warning: this says the same as ClusterSegmentationPolicy a edges[0] (a:7)",
        ),
        (
            edge(a, b, ports),
            &edge("id: \"spiffe://example.org/ns/*/sa/cart\"", b, ", ports: [{port: 1, endPort: 99}]"),
            "a:7:7: warning: this adds nothing to ClusterSegmentationPolicy b edges[0] (b:7)",
        ),
        (
            edge(a, b, ports),
            &edge(any, b, "").replace("edges", "denies"),
            "a:7:7: warning: this never allows anything: ClusterSegmentationPolicy b denies[0] (b:7) denies",
        ),
        (edge(a, "cidr: 192.0.2.0/24", ports), &edge(a, "class: world", ports), "a:7:7: warning: this adds nothing to"),
        (
            format!(
                "  mode: audit\n  selector: {{ids: [\"{A}\"]}}\n  egress: {{rules: [{{to: [{{{b}}}], ports: [{{port: 80}}]}}]}}\n"
            ),
            &edge(a, b, ports),
            "a:7:20: warning: this adds nothing to ClusterSegmentationPolicy b edges[0]",
        ),
    ] {
        let said = warnings(&spec, other, Some(&estate));
        assert!(said.contains(expected), "{spec}\n{other}\n  said     {said}\n  expected {expected}");
    }
}

#[test]
fn what_decides_something_is_not_called_shadowed() {
    let edge = |mode: &str, to: &str, rest: &str| {
        format!(
            "  mode: {mode}\n  edges:\n    - {{from: [{{id: \"spiffe://a/b\"}}], to: [{{{to}}}], ports: [{{port: 80}}]{rest}}}\n"
        )
    };
    let c = "id: \"spiffe://a/c\"";
    for (spec, other) in [
        (edge("enforce", c, ""), edge("audit", c, "").replace("80", "81")),
        (edge("enforce", c, ""), edge("enforce", "id: \"spiffe://a/d\"", "")),
        // An audit policy can't make one in force superfluous.
        (edge("enforce", c, ""), edge("audit", "id: \"spiffe://a/*\"", "")),
        // A deny with an exception leaves something.
        (edge("enforce", c, ""), edge("enforce", c, ", except: [{ports: [{port: 80}]}]").replace("edges", "denies")),
        (edge("enforce", "cidr: 192.0.2.0/24", ""), edge("enforce", "cidr: 192.0.0.0/16, except: [192.0.2.0/25]", "")),
    ] {
        let said = warnings(&spec, &other, None);
        let about_a = said.lines().find(|l| l.starts_with("a:") && !l.contains("every port"));
        assert_eq!(about_a, None, "{spec}\n{other}");
    }
}
