//! What can't be read keeps everything from being written, with the place; what isn't ours is named.

use super::*;

const HEAD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: ns}\nspec:\n";

fn nobody() -> Estate {
    Estate::unknown(template())
}

fn refused(text: &str) -> String {
    let files = [("f.yaml".to_owned(), text.to_owned())];
    let faults = import(&files, &nobody(), &Wish::default()).expect_err(text);
    faults.iter().map(|f| format!("{f}\n")).collect()
}

#[test]
fn every_fault_has_its_place_and_a_hint() {
    for (spec, place, why) in [
        ("  podSelector: {}\n  news: 1\n", "f.yaml:6:9", "`spec.news` isn't a field that is known"),
        ("  podSelector: 7\n", "f.yaml:5:16", "`spec.podSelector` is a number and should be an object"),
        ("  podSelector: {matchLabels: {a: 1}}\n", "f.yaml:5:34", "should be a text"),
        ("  ingress:\n  - from:\n    - {}\n", "f.yaml:7:7", "`spec.ingress[0].from[0]` is no peer"),
        ("  ingress:\n  - from:\n    - {ipBlock: {cidr: x}}\n", "f.yaml:7:24", "`x` isn't a CIDR"),
        ("  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]\n", "f.yaml:5", "isn't a part"),
        ("  ingress: [{ports: [{port: 90, endPort: 80}]}]\n", "f.yaml:5:22", "the range 90-80 is reversed"),
        ("  ingress: [{ports: [{endPort: 80}]}]\n", "f.yaml:5:32", "`endPort` without `port`"),
        ("  ingress: [{ports: [{port: \"80\"}]}]\n", "f.yaml:5:29", "can't be a port's name"),
        ("  ingress: [{ports: [{protocol: ICMP}]}]\n", "f.yaml:5:33", "`ICMP` is no protocol here"),
        ("  policyTypes: [Inward]\n", "f.yaml:5:17", "`Inward` is no policy type"),
        ("  podSelector: {matchExpressions: [{key: a, operator: In}]}\n", "f.yaml:5:36", "is no requirement"),
        ("  podSelector: {matchLabels: {app: x}}\n", "f.yaml:5:16", "it isn't known which pods there are"),
    ] {
        let said = refused(&format!("{HEAD}{spec}"));
        assert!(said.contains(place) && said.contains(why) && said.contains("(hint: "), "{spec}: {said}");
    }
}

#[test]
fn a_rule_of_a_tier_that_names_a_peer_of_a_later_version_is_refused() {
    let text = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\n\
                spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{moons: {}}]}]}\n";
    let said = refused(text);
    assert!(said.contains("`spec.egress[0].to[0].moons` isn't a field") && said.contains("says nothing that is known"));
    let said = refused(&text.replace("{moons: {}}", "{domainNames: [a.example]}"));
    assert!(said.contains("domainNames can only be accepted"), "{said}");
    let said = refused(&text.replace("tier: Admin", "tier: Middle").replace("moons", "nodes"));
    assert!(said.contains("no such tier"), "{said}");
}

#[test]
fn a_mesh_and_a_network_are_not_added_up() {
    let mesh = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: b, namespace: ns}\n";
    let said = refused(&format!("{HEAD}  podSelector: {{}}\n---\n{mesh}"));
    assert!(said.contains("together they would allow what either allows"), "{said}");
}

#[test]
fn kinds_that_judge_connections_and_are_not_read_are_named() {
    let text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: c, namespace: ns}\nspec: {a: 1}\n\
                ---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: d}\n";
    let files = [("f.yaml".to_owned(), text.to_owned())];
    let imported = import(&files, &nobody(), &Wish::default()).expect("read");
    assert_eq!(imported.others, BTreeMap::from([("ConfigMap".to_owned(), 1)]));
    let said = line(&imported.findings[0]);
    assert!(said.starts_with("f.yaml:1:1: CiliumNetworkPolicy ns/c:") && said.ends_with("(LOOSER)"), "{said}");
}

proptest::proptest! {
    #![proptest_config(cases(300))]

    /// Whatever stands in a file, the answer is one, and an import that goes through can be read.
    #[test]
    fn no_text_brings_it_down(text in proptest::prop_oneof!["(?s).{0,200}", "[a-z{}\\[\\]:,\\-\n &*!|>'\"#0-9]{0,200}"]) {
        let files = [("f.yaml".to_owned(), format!("{HEAD}{text}")), ("g.yaml".to_owned(), text)];
        drop(import(&files, &nobody(), &Wish::default()));
    }
}
