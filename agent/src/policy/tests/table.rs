//! The cases as plain data, with no imports: a test of another package can take this file in by its path and drive the
//! programs in a kernel by the same rows.

/// Number, namespace, SPIFFE ID, posture. The n-th of them has the address 10.0.0.n, counted from 1; the rest of
/// 10.0.0.0/16 is `unknown`, 198.51.100.1:6443 is `kube-apiserver`, and `db` names its port 5432 `postgres`.
pub(super) const WORKLOADS: [(u32, &str, &str, &str); 6] = [
    (256, "shop", "spiffe://example.org/ns/shop/sa/cart", "enforce"),
    (257, "shop", "spiffe://example.org/ns/shop/sa/orders", "enforce"),
    (258, "data", "spiffe://example.org/ns/data/sa/db", "enforce"),
    (259, "billing", "spiffe://example.org/ns/billing/sa/intruder", "enforce"),
    (260, "legacy", "spiffe://example.org/ns/legacy/sa/old", "observe"),
    (261, "trial", "spiffe://example.org/ns/trial/sa/new", "audit"),
];

/// The policies that the cases are about.
pub(super) const POLICIES: &str = r#"
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentationPolicy
metadata: {name: orders, namespace: shop}
spec:
  mode: enforce
  selector: {ids: ["spiffe://example.org/ns/shop/sa/orders"]}
  ingress:
    rules:
      - from: [{id: "spiffe://example.org/ns/shop/sa/cart"}]
        ports: [{port: 8080, endPort: 8090}]
      - from: [{id: "spiffe://example.org/ns/shop/sa/orders"}]
        ports: [{port: 7946}, {protocol: UDP, port: 7946}]
      - from: [{class: host}]
        ports: [{port: 9000}]
  egress:
    rules:
      - to: [{id: "spiffe://example.org/ns/shop/sa/orders"}]
        ports: [{port: 7946}, {protocol: UDP, port: 7946}]
      - to: [{cidr: 203.0.113.0/24, except: [203.0.113.128/25]}]
        ports: [{port: 443}]
---
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentationPolicy
metadata: {name: cart, namespace: shop}
spec:
  mode: enforce
  selector: {ids: ["spiffe://example.org/ns/shop/sa/cart"]}
  egress:
    rules:
      - to: [{id: "spiffe://example.org/ns/shop/**"}]
        ports: [{port: 8080}]
      - to: [{class: kube-apiserver}]
        ports: [{port: 6443}]
---
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: edges}
spec:
  mode: enforce
  edges:
    - from: [{id: "spiffe://example.org/ns/shop/sa/orders"}, {id: "spiffe://example.org/ns/billing/sa/*"}]
      to: [{id: "spiffe://example.org/ns/data/sa/db"}]
      ports: [{port: postgres}]
    - from: [{id: "spiffe://**"}]
      to: [{class: world}]
      ports: [{protocol: UDP, port: 123}]
    - from: [{id: "spiffe://**"}]
      to: [{id: "spiffe://**"}]
      ports: [{protocol: ICMP}]
  denies:
    - from: [{id: "spiffe://example.org/ns/billing/**"}]
      to: [{id: "spiffe://**"}]
      except:
        - to: [{id: "spiffe://example.org/ns/legacy/sa/old"}]
          ports: [{port: 22}]
---
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: next}
spec:
  mode: audit
  selector: {ids: ["spiffe://example.org/ns/legacy/sa/old"]}
  ingress: {}
  edges:
    - from: [{id: "spiffe://example.org/ns/shop/sa/cart"}]
      to: [{id: "spiffe://example.org/ns/data/sa/db"}]
      ports: [{port: 5432}]
  sockets: [RAW]
"#;

/// From, to, protocol/port, outcome, reason, the rule at the source, the rule at the destination.
pub(super) const CASES: &[(&str, &str, &str, &str, &str, &str, &str)] = &[
    // Both sides must allow; a range at one end, a port at the other.
    ("cart", "orders", "TCP/8080", "allowed", "rule", "cart egress[0]", "orders ingress[0]"),
    ("cart", "orders", "TCP/8081", "denied", "no-egress-rule", "", "orders ingress[0]"),
    ("cart", "orders", "UDP/8080", "denied", "no-egress-rule", "", ""),
    ("orders", "cart", "TCP/8080", "denied", "no-egress-rule", "", ""),
    // Replicas of one service need a rule too.
    ("orders", "orders", "TCP/7946", "allowed", "rule", "orders egress[0]", "orders ingress[1]"),
    ("orders", "orders", "UDP/7946", "allowed", "rule", "orders egress[0]", "orders ingress[1]"),
    ("orders", "orders", "TCP/7947", "denied", "no-egress-rule", "", ""),
    ("cart", "cart", "TCP/8080", "denied", "no-ingress-rule", "cart egress[0]", ""),
    // An edge opens both sides, by the name that the destination gives its port.
    ("orders", "db", "TCP/5432", "allowed", "rule", "edges edges[0]", "edges edges[0]"),
    ("orders", "db", "TCP/5433", "denied", "no-egress-rule", "", ""),
    // An audit policy would open it.
    ("cart", "db", "TCP/5432", "would-allow", "no-egress-rule", "", ""),
    // A deny wins over an edge, but for its exception.
    ("intruder", "db", "TCP/5432", "denied", "deny-rule", "edges denies[0]", "edges denies[0]"),
    ("intruder", "orders", "ICMP/0", "denied", "deny-rule", "edges denies[0]", "edges denies[0]"),
    ("intruder", "old", "TCP/22", "denied", "no-egress-rule", "", ""),
    ("intruder", "old", "TCP/23", "denied", "deny-rule", "edges denies[0]", "edges denies[0]"),
    // Any workload to any other.
    ("old", "cart", "ICMP/0", "allowed", "rule", "edges edges[2]", "edges edges[2]"),
    // Postures, and an isolation that is only audited.
    ("old", "new", "TCP/1", "would-deny", "no-ingress-rule", "", ""),
    ("new", "old", "TCP/1", "would-deny", "no-egress-rule", "", ""),
    ("old", "old", "TCP/1", "would-deny", "no-ingress-rule", "", ""),
    ("old", "world", "TCP/1", "allowed", "posture", "", ""),
    ("new", "world", "TCP/1", "would-deny", "no-egress-rule", "", ""),
    ("new", "world", "UDP/123", "allowed", "rule", "edges edges[1]", ""),
    // The world, and parts of it.
    ("orders", "203.0.113.5", "TCP/443", "allowed", "rule", "orders egress[1]", ""),
    ("orders", "203.0.113.5", "UDP/123", "allowed", "rule", "edges edges[1]", ""),
    ("orders", "203.0.113.200", "TCP/443", "denied", "no-egress-rule", "", ""),
    ("orders", "203.0.114.5", "TCP/443", "denied", "no-egress-rule", "", ""),
    ("cart", "203.0.113.5", "UDP/123", "allowed", "rule", "edges edges[1]", ""),
    ("orders", "world", "TCP/443", "denied", "no-egress-rule", "", ""),
    ("203.0.113.5", "orders", "TCP/8080", "denied", "no-ingress-rule", "", ""),
    // Classes, by address or by name.
    ("host", "orders", "TCP/9000", "allowed", "rule", "", "orders ingress[2]"),
    ("host", "orders", "TCP/9001", "denied", "no-ingress-rule", "", ""),
    ("cart", "198.51.100.1", "TCP/6443", "allowed", "rule", "cart egress[1]", ""),
    ("cart", "198.51.100.1", "TCP/443", "denied", "no-egress-rule", "", ""),
    ("orders", "169.254.169.254", "TCP/80", "denied", "no-egress-rule", "", ""),
    ("old", "224.0.0.251", "UDP/5353", "allowed", "posture", "", ""),
    ("cart", "10.0.0.2", "TCP/8080", "allowed", "rule", "cart egress[0]", "orders ingress[0]"),
    ("cart", "10.0.99.9", "TCP/8080", "denied", "unknown-peer", "", ""),
    ("10.0.99.9", "cart", "TCP/8080", "denied", "unknown-peer", "", ""),
    // A process that belongs to nobody takes the strictest default of all.
    ("unknown-workload", "old", "TCP/1", "denied", "unknown-workload", "", ""),
    ("old", "unknown-workload", "TCP/1", "denied", "unknown-workload", "", ""),
];
