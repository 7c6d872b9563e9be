//! Round trips: what was exported says, read by the standards' evaluators or imported again, no more than the policies.

use super::*;
use crate::config::Template;
use crate::import::{Pod, Wish, import};
use crate::policy::parse;
use std::collections::BTreeMap;

const POLICIES: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentationPolicy
metadata: {name: web, namespace: shop}
spec:
  mode: enforce
  selector: {ids: [spiffe://cluster.local/ns/shop/sa/web]}
  ingress:
    rules:
      - from: [{id: spiffe://cluster.local/ns/shop/sa/cart}, {id: spiffe://cluster.local/ns/edge/**}]
        ports: [{port: 80}, {port: 8000, endPort: 8002}]
      - from: [{cidr: 203.0.113.0/24, except: [203.0.113.8/32]}]
        ports: [{port: http}, {protocol: ICMP}]
  egress:
    rules:
      - to: [{class: node-dns}, {id: \"spiffe://**\"}]
        ports: [{protocol: UDP, port: 53}]
---
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentationPolicy
metadata: {name: nobody, namespace: edge}
spec:
  mode: audit
  selector: {ids: [spiffe://cluster.local/ns/edge/sa/*]}
  ingress: {}
---
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: guard}
spec:
  mode: enforce
  denies:
    - from: [{id: spiffe://cluster.local/ns/edge/**}]
      to: [{id: spiffe://cluster.local/ns/shop/**}]
      ports: [{port: 80}]
      except: [{from: [{id: spiffe://cluster.local/ns/edge/sa/proxy}]}]
";

fn estate() -> Estate {
    let template = Template::new("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}", "cluster.local");
    let pod = |namespace: &str, account: &str, labels: &[(&str, &str)]| Pod {
        namespace: namespace.to_owned(),
        name: format!("{account}-1"),
        id: format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().expect("an ID"),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        addresses: Vec::new(),
        node_addresses: Vec::new(),
        host_network: false,
        ports: BTreeMap::from([("http".to_owned(), BTreeSet::from([(6, 80)]))]),
    };
    let pods = vec![
        pod("shop", "web", &[("app", "web"), ("pod-template-hash", "1")]),
        pod("shop", "cart", &[("app", "cart"), ("tier", "front")]),
        pod("shop", "twin", &[("tier", "front"), ("app", "twins")]),
        pod("edge", "proxy", &[]),
    ];
    let namespaces = ["shop", "edge"].map(|n| (n.to_owned(), BTreeMap::new()));
    Estate::new(template.expect("a template"), pods, namespaces.into()).expect("an estate")
}

fn set() -> PolicySet {
    parse("p.yaml", POLICIES).expect("policies").into_iter().collect()
}

fn said(exported: &Exported) -> Vec<String> {
    exported.findings.iter().map(|f| format!("{} {} {}", f.object, f.field, f.errs.as_str())).collect()
}

#[test]
fn identities_become_labels_that_nobody_else_has() {
    let exported = export(&set(), &estate(), Form::NetworkPolicy, "istio-system");
    let text = |file: &str| exported.files.iter().find(|f| f.file == file).map(|f| f.text.as_str()).expect("a file");
    let shop: Value =
        serde_saphyr::from_str(text("shop.yaml").split_once("---\n").expect("a document").1).expect("YAML");
    assert_eq!(shop["spec"]["podSelector"], serde_json::json!({"matchLabels": {"app": "web"}}));
    assert_eq!(
        shop["spec"]["ingress"][0]["from"],
        serde_json::json!([
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
             "podSelector": {"matchLabels": {"app": "cart"}}},
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}}},
        ])
    );
    assert_eq!(shop["spec"]["egress"][0]["to"], serde_json::json!([{"namespaceSelector": {}}]));
    assert!(text("edge.yaml").contains("policyTypes") && !text("edge.yaml").contains("ingress:"));
    assert_eq!(
        said(&exported),
        [
            "SegmentationPolicy shop/web spec.ingress.rules[1].ports stricter",
            "SegmentationPolicy shop/web spec.egress.rules[0].to stricter",
            "SegmentationPolicy edge/nobody spec.mode stricter",
            "ClusterSegmentationPolicy guard spec.denies[0] LOOSER",
        ]
    );
}

#[test]
fn in_a_mesh_identities_are_principals() {
    let exported = export(&set(), &estate(), Form::AuthorizationPolicy, "istio-system");
    let all: String = exported.files.iter().map(|f| f.text.as_str()).collect();
    for part in ["cluster.local/ns/shop/sa/cart", "cluster.local/ns/edge/*", "8002", "notPrincipals", "DENY"] {
        assert!(all.contains(part), "{part} is missing:\n{all}");
    }
    let said = said(&exported);
    assert!(said.contains(&"SegmentationPolicy shop/web spec.egress LOOSER".to_owned()), "{said:?}");
    assert!(said.contains(&"SegmentationPolicy shop/web spec.ingress.rules[1].from stricter".to_owned()), "{said:?}");
}

#[test]
fn what_was_exported_is_imported_as_it_was() {
    for form in [Form::NetworkPolicy, Form::AuthorizationPolicy] {
        let exported = export(&set(), &estate(), form, "istio-system");
        let texts: Vec<(String, String)> = exported.files.iter().map(|f| (f.file.clone(), f.text.clone())).collect();
        let imported = import(&texts, &estate(), &Wish::default()).expect("imported");
        assert_eq!(imported.findings, [], "{form:?}");
        let all: String = imported.files.iter().map(|f| f.text.as_str()).collect();
        assert!(all.contains("id: \"spiffe://cluster.local/ns/shop/sa/cart\""), "{all}");
    }
}

#[test]
fn without_pods_labels_are_not_made_up() {
    let template = Template::new("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}", "cluster.local");
    let nobody = Estate::unknown(template.expect("a template"));
    let exported = export(&set(), &nobody, Form::NetworkPolicy, "istio-system");
    assert_eq!(exported.objects, 1, "the whole namespace needs none");
    let lost = exported.findings.iter().find(|f| f.field == "spec.selector").expect("a finding");
    assert!(lost.errs == Errs::Looser && lost.reason.contains("--pods"), "{}", lost.reason);
}
