//! Samples as people write them, and what becomes of them word by word.

use super::*;

/// Pods of two namespaces; `default` is shared by two owners.
fn shop() -> Estate {
    let pod = |namespace: &str, account: &str, name: &str, app: &str, host: bool| Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        id: format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().expect("an ID"),
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        addresses: Vec::new(),
        node_addresses: Vec::new(),
        host_network: host,
        ports: BTreeMap::from([("http".to_owned(), BTreeSet::from([(6, 8080)]))]),
    };
    let pods = vec![
        pod("shop", "db", "db-0", "db", false),
        pod("shop", "web", "web-a", "web", false),
        pod("shop", "web", "web-b", "web", false),
        pod("shop", "default", "cart-1", "cart", false),
        pod("shop", "default", "mail-1", "mail", false),
        pod("monitoring", "scraper", "scraper-1", "scraper", false),
        pod("monitoring", "node", "exporter-1", "exporter", true),
    ];
    let labels = |team: &str| BTreeMap::from([("team".to_owned(), team.to_owned())]);
    let namespaces = [("shop", "shop"), ("monitoring", "ops")].map(|(n, team)| (n.to_owned(), labels(team)));
    Estate::new(template(), pods, namespaces.into()).expect("an estate")
}

fn imported(text: &str) -> (String, Vec<String>) {
    let files = [("f.yaml".to_owned(), text.to_owned())];
    let imported = import(&files, &shop(), &Wish::default()).unwrap_or_else(|e| panic!("{e:#?}"));
    let files = imported.files.iter().map(|f| format!("== {}\n{}", f.file, f.text));
    (files.collect(), imported.findings.iter().map(line).collect())
}

/// The body of the only policy written, behind its head.
fn body(text: &str) -> String {
    text.split_once("spec:\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

#[test]
fn deny_all_of_a_namespace_is_about_pods_to_come_too() {
    let (written, findings) = imported(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: default-deny, namespace: shop}\n\
         spec:\n  podSelector: {}\n  policyTypes: [Ingress, Egress]\n",
    );
    assert!(findings.is_empty(), "{findings:?}");
    assert!(written.starts_with("== shop.yaml\n# Written by"), "{written}");
    assert_eq!(
        body(&written),
        "  mode: audit\n  description: \"imported from NetworkPolicy shop/default-deny\"\n  selector:\n    ids:\n      \
         - \"spiffe://cluster.local/ns/shop/sa/*\"\n  ingress: {}\n  egress: {}\n"
    );
}

#[test]
fn the_documentations_example_becomes_identities() {
    let (written, findings) = imported(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {team: ops}}
    - podSelector: {matchLabels: {app: web}}
    ports:
    - {protocol: TCP, port: 6379}
    - {port: http}
  egress:
  - to: [{ipBlock: {cidr: 10.0.0.0/24}}]
    ports: [{protocol: TCP, port: 32000, endPort: 32768}]
",
    );
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(
        body(&written),
        r#"  mode: audit
  description: "imported from NetworkPolicy shop/db"
  selector:
    ids:
      - "spiffe://cluster.local/ns/shop/sa/db"
  ingress:
    rules:
      - from:
          - {cidr: "172.17.0.0/16", except: ["172.17.1.0/24"]}
          - id: "spiffe://cluster.local/ns/monitoring/sa/*"
          - id: "spiffe://cluster.local/ns/shop/sa/web"
        ports:
          - {protocol: TCP, port: 6379}
          - {protocol: TCP, port: "http"}
  egress:
    rules:
      - to:
          - cidr: "10.0.0.0/24"
        ports:
          - {protocol: TCP, port: 32000, endPort: 32768}
"#
    );
}

#[test]
fn pods_of_one_identity_that_are_treated_differently_are_named() {
    let policy = |name: &str, app: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             podSelector: {{matchLabels: {{app: {app}}}}}\n  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: mail}}}}}}]}}]\n"
        )
    };
    let (written, findings) = imported(&policy("cart", "cart"));
    // Nothing else isolates mail-1, so what the rule allows is allowed to both; mail alone isn't a peer.
    assert!(written.contains("ns/shop/sa/default") && written.contains("ingress: {}"), "{written}");
    assert_eq!(findings.len(), 2);
    assert!(findings[0].contains("shop/cart-1 are selected and shop/mail-1 aren't"), "{findings:?}");
    assert!(findings[1].contains("spec.ingress[0].from[0]") && findings[1].ends_with("(stricter)"), "{findings:?}");
    // Two policies, one for each of them: neither's rules can be allowed to both.
    let both = format!("{}---\n{}", policy("cart", "cart"), policy("mail", "mail"));
    let (written, _) = imported(&both);
    assert_eq!(written.matches("-shared\"").count(), 2, "{written}");
}

#[test]
fn an_egress_to_everywhere_says_what_it_leaves_out() {
    let (written, findings) = imported(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: monitoring}\nspec:\n  \
         podSelector: {}\n  policyTypes: [Egress]\n  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}, {}]\n",
    );
    assert!(written.contains("cidr: \"0.0.0.0/0\"") && written.contains("class: node-dns"), "{written}");
    assert!(findings.iter().any(|f| f.contains("the metadata service at 169.254.169.254")), "{findings:?}");
    assert!(findings.iter().any(|f| f.contains("monitoring/exporter-1 are in the node's own network")), "{findings:?}");
}

#[test]
fn a_policy_that_selects_nobody_is_told() {
    let (written, findings) = imported(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: gone, namespace: shop}\nspec:\n  \
         podSelector: {matchLabels: {app: gone}}\n",
    );
    assert_eq!(written, "");
    assert!(findings[0].contains("selects no pod at present") && findings[0].ends_with("(neither)"), "{findings:?}");
}

#[test]
fn an_admin_policy_denies_except_for_what_it_accepted_before() {
    let (written, findings) = imported(
        "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: fence}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {team: shop}}}
  ingress:
  - name: scraping
    action: Accept
    from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: scraper}}}}]
    protocols: [{tcp: {destinationPort: {number: 9090}}}]
  - action: Deny
    from: [{namespaces: {matchExpressions: [{key: team, operator: NotIn, values: [shop]}]}}]
",
    );
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(
        body(&written),
        r#"  mode: audit
  description: "imported from ClusterNetworkPolicy fence"
  denies:
    - from:
        - id: "spiffe://cluster.local/ns/monitoring/sa/*"
      to:
        - id: "spiffe://cluster.local/ns/shop/sa/*"
      except:
        - from:
            - id: "spiffe://cluster.local/ns/monitoring/sa/scraper"
          to:
            - id: "spiffe://cluster.local/ns/shop/sa/*"
          ports:
            - {protocol: TCP, port: 9090}
"#
    );
}

#[test]
fn a_meshs_conditions_on_requests_err_to_the_stricter_side() {
    let (written, findings) = imported(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: db, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web], namespaces: []}}]
    to: [{operation: {ports: ['5432']}}]
  - from: [{source: {namespaces: [monitoring]}}]
    to: [{operation: {methods: [GET], ports: ['9090']}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules: [{to: [{operation: {methods: [DELETE], ports: ['80']}}], from: [{source: {notNamespaces: [shop]}}]}]
"
        .replace(", namespaces: []", "")
        .as_str(),
    );
    assert!(written.contains("spiffe://cluster.local/ns/shop/sa/web") && !written.contains("9090"), "{written}");
    let denies = written.split_once("denies:").expect("denies").1;
    assert!(denies.contains("id: \"spiffe://**\"") && denies.contains("port: 80"), "{written}");
    assert!(denies.contains("except:\n        - from:\n            - id: \"spiffe://*/ns/shop/*/**\""), "{written}");
    assert!(
        findings.iter().any(|f| f.contains("rules[1].to[0].operation.methods") && f.contains("nothing is allowed"))
    );
    assert!(findings.iter().any(|f| f.contains("no-delete") && f.contains("denies every connection")), "{findings:?}");
}

#[test]
fn what_decides_nothing_or_elsewhere_is_told() {
    let policy = |name: &str, more: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop{more}\n---\n"
        )
    };
    let text = policy("audit", "}\nspec: {action: AUDIT, rules: [{}]}")
        + &policy("dry", ", annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, rules: [{}]}")
        + &policy("waypoint", "}\nspec: {targetRefs: [{kind: Gateway, name: w}], action: DENY, rules: [{}]}")
        + &policy("nothing", "}\nspec: {}");
    let (written, findings) = imported(&text);
    assert!(body(&written).ends_with("ingress: {}\n"), "an ALLOW without rules allows nothing: {written}");
    let ends: Vec<&str> = findings.iter().filter_map(|f| f.rsplit_once(' ').map(|(_, end)| end)).collect();
    assert_eq!(ends, ["(neither)", "(neither)", "(LOOSER)"], "{findings:?}");
}
