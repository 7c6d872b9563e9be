//! What files may say, and what is said about those that may not.

use super::super::*;
use crate::policy::model::{PortRange, PortSpec};
use bulkhead_common::proto;

fn one(spec: &str) -> Document {
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: p}}\nspec:\n  mode: enforce\n{spec}"
    );
    let mut documents = read("p.yaml", &text);
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

/// What is said about a spec whose first line is the file's sixth.
fn fault(spec: &str) -> String {
    let rejected = one(spec).expect_err(spec);
    rejected.diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

const WHOLE: &str = r#"
# A comment, then two documents.
---
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentationPolicy
metadata:
  name: orders
  namespace: shop
  labels: {team: shop}
spec:
  mode: enforce
  description: who may talk to orders
  selector:
    ids: ["spiffe://example.org/ns/shop/sa/orders"]
  ingress:
    rules:
      - from:
          - id: spiffe://example.org/ns/shop/sa/cart
          - class: host
        ports:
          - port: 8080
          - {protocol: UDP, port: 5000, endPort: 5010}
          - port: metrics
          - protocol: ICMP
  egress:
    rules: []
  sockets: [RAW, MPTCP]
--- # the second
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: guardrails}
spec:
  mode: audit
  edges:
    - from: [{id: "spiffe://**"}]
      to: [{class: node-dns}]
      ports: [{protocol: UDP, port: 53}]
  denies:
    - from: [{id: "spiffe://example.org/ns/billing/**"}]
      to: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
      except:
        - ports: [{port: 443}]
...
"#;

#[test]
fn a_whole_file_is_read() {
    let documents = parse("whole.yaml", WHOLE).expect("a good file");
    let [orders, guardrails] = &documents[..] else { panic!("{documents:?}") };
    assert_eq!(orders.name.to_string(), "SegmentationPolicy shop/orders");
    assert_eq!((orders.name.line, orders.name.column), (7, 9));
    let rule = &orders.ingress.as_ref().expect("ingress")[0];
    assert_eq!((rule.line, rule.column), (17, 9));
    let ports: Vec<PortSpec> = rule.ports.iter().flatten().map(|p| p.value.clone()).collect();
    let spec = |proto, ports| PortSpec { proto, ports };
    assert_eq!(
        ports,
        [
            spec(proto::TCP, PortRange::Range(8080, 8080)),
            spec(proto::UDP, PortRange::Range(5000, 5010)),
            spec(proto::TCP, PortRange::Named("metrics".into())),
            spec(proto::ICMP, PortRange::All),
        ]
    );
    assert_eq!(
        &*rule.text,
        "from spiffe://example.org/ns/shop/sa/cart, host on TCP/8080, UDP/5000-5010, TCP/metrics, ICMP"
    );
    assert_eq!(orders.egress, Some(Vec::new()));
    assert_eq!(guardrails.name.to_string(), "ClusterSegmentationPolicy guardrails");
    assert_eq!(guardrails.name.line, 31);
    assert_eq!(
        &*guardrails.denies[0].text,
        "from spiffe://example.org/ns/billing/** to 10.0.0.0/8 except 10.1.0.0/16 on any port; except on TCP/443"
    );
}

#[test]
fn every_fault_is_named_with_its_place_and_a_hint() {
    let mut wrong = String::new();
    for (spec, expected) in [
        ("  egres: {}", "p.yaml:6:3: error: `egres` isn't a field here (hint: known here: mode, description, selector"),
        ("  denies: []", "p.yaml:6:11: error: `denies` is an empty list"),
        ("  denies:", "p.yaml:6:"),
        ("  edges: [{from: [], to: [{class: world}]}]", "p.yaml:6:18: error: `from` is an empty list"),
        ("  edges: [{to: [{class: world}]}]", "the field `from` is missing"),
        (
            "  edges: [{from: [{class: moon}], to: [{class: world}]}]",
            "p.yaml:6:27: error: `moon` isn't a class (hint: one of kube",
        ),
        (
            "  edges: [{from: [{class: host, cidr: 10.0.0.0/8}], to: [{class: world}]}]",
            "p.yaml:6:19: error: a peer is exactly one",
        ),
        ("  edges: [{from: [{}], to: [{class: world}]}]", "p.yaml:6:19: error: a peer is exactly one"),
        (
            "  edges: [{from: [{id: spiffe://a*/b}], to: [{class: world}]}]",
            "p.yaml:6:24: error: `spiffe://a*/b` is neither",
        ),
        (
            "  edges: [{from: [{cidr: 10.0.0.1/8}], to: [{class: world}]}]",
            "10.0.0.1/8 has bits set behind its prefix (hint: write 10.0.0.0/8)",
        ),
        ("  edges: [{from: [{cidr: 10.0.0.1}], to: [{class: world}]}]", "`10.0.0.1` isn't a CIDR"),
        ("  edges: [{from: [{cidr: \"::ffff:10.0.0.0/104\"}], to: [{class: world}]}]", "(hint: write 10.0.0.0/8)"),
        (
            "  edges: [{from: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}], to: [{class: world}]}]",
            "`11.0.0.0/16` isn't a part of 10.0.0.0/8",
        ),
        (
            "  edges: [{from: [{class: host, except: [11.0.0.0/16]}], to: [{class: world}]}]",
            "`except` belongs to a `cidr`",
        ),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{port: 0}]}]",
            "p.yaml:6:72: error: 0 isn't a port",
        ),
        ("  edges: [{from: [{class: host}], to: [{class: world}], ports: [{port: 70000}]}]", "70000 isn't a port"),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{port: 9, endPort: 8}]}]",
            "the range 9-8 is reversed (hint: write `port: 8` and `endPort: 9`)",
        ),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{port: http, endPort: 8}]}]",
            "`endPort` with a named port",
        ),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{endPort: 8, protocol: TCP}]}]",
            "`endPort` without `port`",
        ),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{protocol: ICMP, port: 8}]}]",
            "ICMP has no ports",
        ),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{}]}]",
            "neither `protocol` nor `port` is given",
        ),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{port: \"80\"}]}]",
            "`80` can't be a port's name",
        ),
        (
            "  edges: [{from: [{class: host}], to: [{class: world}], ports: [{protocol: QUIC}]}]",
            "`QUIC` isn't a value here (hint: one of TCP, UDP",
        ),
        ("  edges: [{from: [{class: host}], to: [{class: world}], ports: []}]", "`ports` is an empty list"),
        ("  edges: [{from: [{class: host}], to: [{class: world}], ports:}]", "p.yaml:6:"),
        ("  ingress: {}", "p.yaml:3:18: error: `ingress`, `egress` and `sockets` need a `selector`"),
        ("  selector: {ids: []}\n  ingress: {}", "p.yaml:6:19: error: `ids` is an empty list"),
        ("  selector: {ids: [\"spiffe://a/b\"]}\n  ingress:", "p.yaml:7:"),
        ("  selector: {ids: [\"spiffe://a/b\"]}\n  sockets: []", "`sockets` is an empty list"),
        (
            "  denies: [{from: [{class: host}], to: [{id: \"spiffe://**\"}], except: [{}]}]",
            "would take back the whole deny",
        ),
        ("  mode: audit", "p.yaml:6:3: error: "),
        ("  edges: [", "p.yaml:"),
    ] {
        let said = fault(spec);
        if !said.contains(expected) || !said.contains("(hint: ") {
            wrong.push_str(&format!("{spec}\n  said     {said}\n  expected {expected}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_head_of_a_document_is_checked() {
    for (text, expected) in [
        ("kind: SegmentationPolicy", "the field `apiVersion` is missing"),
        ("apiVersion: v1\nkind: Pod", "f:1:13: error: apiVersion `v1` isn't known"),
        ("apiVersion: bulkhead.dev/v1alpha1\nkind: Pod", "f:2:7: error: kind `Pod` isn't known"),
        (
            "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {name: A, namespace: x}\nspec: {mode: audit}",
            "f:3:18: error: `A` can't be a name",
        ),
        (
            "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {name: a, namespace: x}\nspec: {mode: audit}",
            "f:3:32: error: a ClusterSegmentationPolicy has no namespace",
        ),
        (
            "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {name: a}\nspec: {}",
            "the field `mode` is missing",
        ),
        ("- a list", "f:1:"),
    ] {
        let said = parse("f", text).expect_err(text)[0].to_string();
        assert!(said.contains(expected), "{said}\n{expected}");
    }
    assert_eq!(parse("f", "# nothing\n---\n\n---\n").expect("an empty file"), []);
}

#[test]
fn a_fault_in_one_document_leaves_the_others() {
    let text = WHOLE.replace("port: 8080", "port: 80800");
    let documents = read("whole.yaml", &text);
    let [Err(rejected), Ok(_)] = &documents[..] else { panic!("{documents:?}") };
    assert_eq!(
        rejected.diagnostics[0].to_string().split(" (").next(),
        Some("whole.yaml:21:19: error: 80800 isn't a port")
    );
    let isolated = rejected.isolated.as_ref().expect("mode and selector are good");
    assert_eq!((isolated.ingress.clone(), isolated.egress.clone()), (Some(Vec::new()), Some(Vec::new())));
    assert_eq!(isolated.selector[0].as_str(), "spiffe://example.org/ns/shop/sa/orders");
}

#[test]
fn a_policy_that_is_not_taken_keeps_its_last_good_form_or_isolates() {
    let empty = PolicySet::default();
    let (good, findings) = PolicySet::assemble(read("w", WHOLE), &empty);
    assert_eq!((good.len(), findings.len()), (2, 0));
    let broken = WHOLE.replace("mode: enforce", "mode: enforce\n  colour: red").replace("port: 443", "port: -1");

    let (kept, findings) = PolicySet::assemble(read("w", &broken), &good);
    assert_eq!((&kept, findings.len()), (&good, 2));

    let (isolated, _) = PolicySet::assemble(read("w", &broken), &empty);
    let policies: Vec<_> = isolated.iter().collect();
    assert_eq!(policies.len(), 1, "the guardrails select nobody, so nothing stands in for them");
    assert_eq!(policies[0].ingress, Some(Vec::new()));

    let (kept, findings) = PolicySet::assemble(read("w", "apiVersion: ["), &good);
    assert_eq!((&kept, findings.len()), (&good, 1));
    let (gone, findings) = PolicySet::assemble(read("w", ""), &good);
    assert_eq!((gone.len(), findings.len()), (0, 0));
}

#[test]
fn of_two_documents_of_one_name_the_form_in_force_stays() {
    let (good, _) = PolicySet::assemble(read("w", WHOLE), &PolicySet::default());
    let other = WHOLE.replace("mode: enforce", "mode: audit");
    let both = || read("v", &other).into_iter().chain(read("w", WHOLE));
    let (set, findings) = PolicySet::assemble(both(), &good);
    assert_eq!(set, good);
    assert_eq!(findings.len(), 2);
    assert!(
        findings[0].to_string().starts_with("w:7:9: error: SegmentationPolicy shop/orders is already defined at v:7:9")
    );
    let (set, _) = PolicySet::assemble(both(), &PolicySet::default());
    assert!(set.iter().all(|p| p.mode == Mode::Audit), "the first of the two");
}

#[test]
fn the_shipped_examples_and_those_in_the_docs_are_good() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = |path: std::path::PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut policies: Vec<(String, String)> = std::fs::read_dir(root.join("deploy/examples"))
        .expect("deploy/examples")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| (path.display().to_string(), text(path)))
        .filter(|(_, text)| {
            text.contains("kind: SegmentationPolicy") || text.contains("kind: ClusterSegmentationPolicy")
        })
        .collect();
    let docs = text(root.join("docs/policy.md"));
    let blocks = docs.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    policies.extend(blocks.map(|block| ("docs/policy.md".to_owned(), block.to_owned())));
    assert!(policies.len() >= 4, "two examples and two in the docs");
    for (name, text) in policies {
        let policies = parse(&name, &text).unwrap_or_else(|faults| panic!("{}", faults[0]));
        let doubts = check(&policies.into_iter().collect(), None);
        assert_eq!(doubts, [], "{name}");
    }
}
