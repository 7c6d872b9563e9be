//! What the agent's file may say, and what is said about one that may not be used.

use super::*;
use serde::de::{Deserialize, Deserializer, Visitor, value::Error};

const EXAMPLE: &str = include_str!("../../../deploy/bulkhead.example.yaml");

fn faults(text: &str) -> Vec<String> {
    parse("f.yaml", text).expect_err(text).iter().map(ToString::to_string).collect()
}

#[test]
fn the_example_parses() {
    let c = parse("bulkhead.example.yaml", EXAMPLE).unwrap_or_else(|e| panic!("{}", e[0]));
    assert_eq!(c.attach, ["/jobs.slice", "/system.slice"]);
    assert_eq!(c.workloads[0].ports["dns"], (17, 53));
    assert_eq!(c.workloads[0].posture, Posture::Audit);
    assert_eq!(c.workloads[1].identity.ids.len(), 2);
    assert_eq!(c.built_ins, maps::Control::PASS_ALL);
    assert_eq!(c.history, Bounds::default());
    let log = c.decision_log.expect("there is one");
    assert_eq!((log.max_size, log.keep, log.interval.as_secs()), (64 << 20, 5, 60));
}

/// The example with its last part, which is for a cluster's node, switched on.
fn with_cluster() -> String {
    let (host, cluster) = EXAMPLE.split_once("# cluster:\n").expect("the example has it");
    let cluster: String = cluster.lines().map(|l| format!("{}\n", l.strip_prefix("# ").expect("a comment"))).collect();
    format!("{host}cluster:\n{cluster}")
}

#[test]
fn the_example_for_a_cluster_parses() {
    let c = parse("bulkhead.example.yaml", &with_cluster()).unwrap_or_else(|e| panic!("{}", e[0]));
    let mut usual = Cluster::new("worker-1", None, Some("example.org")).expect("fine");
    // The one field without a default that says something.
    usual.startup_taint = Some("bulkhead.dev/agent-not-ready".to_owned());
    assert_eq!(c.cluster, Some(usual));
    assert_eq!(c.instance, "default", "the file names it");
}

#[test]
fn a_cluster_that_cannot_be_read_is_a_fault() {
    let c = parse("f", "cluster: {node: a.b}\n").expect("fine");
    assert_eq!((c.instance.as_str(), c.unlisted), ("a_b", Unlisted::Unknown));
    for (text, place, word) in [
        ("cluster: {node: a, id: 'spiffe://x/{serviceAccount}'}\n", "1:24", "one identity"),
        ("cluster: {node: a, trustDomain: UPPER}\n", "1:33", "trust domain"),
        ("cluster: {node: a, builtIns: {dns: false}}\n", "1:36", "no built-in `dns`"),
        ("cluster: {node: a, startupTaint: 'a b'}\n", "1:34", "no taint's key"),
        ("cluster: {nodes: a}\n", "1:11", "unknown field"),
    ] {
        let all = faults(text);
        assert!(all[0].starts_with(&format!("f.yaml:{place}: error: ")) && all[0].contains(word), "{text}: {all:?}");
    }
}

/// A deserializer that only asks a struct for its fields.
struct Fields<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Error;
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("only structs"))
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0.extend(fields);
        Err(serde::de::Error::custom("that's all"))
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<'de, T: Deserialize<'de>>() -> Vec<&'static str> {
    let mut all = Vec::new();
    assert!(T::deserialize(Fields(&mut all)).is_err());
    assert!(!all.is_empty());
    all
}

#[test]
fn the_example_has_and_explains_every_field() {
    let example = with_cluster();
    let lines: Vec<&str> = example.lines().collect();
    let sections = [
        fields::<low::File>(),
        fields::<low::Workload>(),
        fields::<low::Endpoint>(),
        fields::<low::Metrics>(),
        fields::<low::Log>(),
        fields::<low::Limits>(),
        fields::<low::History>(),
        fields::<low::DecisionLog>(),
        fields::<low::Cluster>(),
    ];
    for field in sections.iter().flatten() {
        let is_field = |l: &str| l.trim_start().trim_start_matches("- ").starts_with(&format!("{field}:"));
        let explained = lines.windows(2).any(|w| is_field(w[1]) && w[0].trim_start().starts_with('#'));
        let group = lines.iter().any(|l| l.starts_with(&format!("{field}:")) && l.ends_with(':'));
        assert!(explained || group, "{field} isn't in the example, or has no comment above it");
    }
}

#[test]
fn attach_points_are_found_and_none_lies_in_another() {
    let c =
        parse("f", "workloads:\n- {id: spiffe://a/b, cgroup: [/a/x.service, /a/b/c/*, /z.slice/y]}\n").expect("fine");
    assert_eq!(c.attach, ["/a", "/z.slice"]);
    assert_eq!(c.workloads[0].name, "b");
    assert_eq!(c.instance, "default");
}

#[test]
fn a_closer_posture_wins() {
    let c = parse(
        "f",
        "posture: audit\npostures: {n: enforce}\nworkloads:\n\
         - {name: x, id: spiffe://a/x, cgroup: /s/x}\n\
         - {name: y, id: spiffe://a/y, cgroup: /s/y, namespace: n}\n\
         - {name: z, id: spiffe://a/z, cgroup: /s/z, namespace: n, posture: observe}\n",
    )
    .expect("fine");
    let postures: Vec<_> = c.workloads.iter().map(|w| w.posture).collect();
    assert_eq!(postures, [Posture::Audit, Posture::Enforce, Posture::Observe]);
}

#[test]
fn each_fault_has_its_place_and_a_hint() {
    for (text, place, word) in [
        ("posture: enforced\n", "1:10", "enforce"),
        ("a: 1\n", "1:1", "unknown field"),
        ("workloads:\n- {id: http://x, cgroup: /a/b}\n", "2:8", "SPIFFE ID"),
        ("workloads:\n- {cgroup: /a/b}\n", "2:3", "without a SPIFFE ID"),
        ("workloads:\n- {id: spiffe://a/b, cgroup: /*}\n", "2:30", "everything"),
        ("workloads:\n- {id: spiffe://a/b, cgroup: []}\n", "2:30", "matches nothing"),
        ("workloads:\n- {id: spiffe://a/b, cgroup: /top}\n", "2:30", "at the top"),
        ("attach: [/x]\nworkloads:\n- {id: spiffe://a/b, cgroup: /a/b}\n", "3:30", "below an attach point"),
        ("attach: [/x, /x/y]\n", "1:14", "in one another"),
        (
            "workloads:\n- {name: n, id: spiffe://a/b, cgroup: /a/b}\n- {name: n, id: spiffe://a/c, cgroup: /a/c}\n",
            "3:3",
            "second workload",
        ),
        (
            "workloads:\n- {id: spiffe://a/b, cgroup: /a/b, addresses: [10.0.0.1]}\n\
             - {id: spiffe://a/c, cgroup: /a/c, addresses: [10.0.0.1]}\n",
            "3:48",
            "both claim",
        ),
        (
            "workloads:\n- {id: spiffe://a/b, cgroup: /a/b}\n- {id: spiffe://a/c, cgroup: [/a/c, /a/b]}\n",
            "3:37",
            "already is the cgroup",
        ),
        ("workloads:\n- {id: spiffe://a/b, cgroup: /a/b, ports: {x: 70000}}\n", "2:47", "isn't a port"),
        ("endpoints:\n- {address: 10.0.0.300, class: host}\n", "2:13", "IP address"),
        ("endpoints:\n- {prefix: 10.0.0.1/24, class: host}\n", "2:12", "beyond its length"),
        ("endpoints:\n- {address: 10.0.0.1, class: moon}\n", "2:30", "no class"),
        ("endpoints:\n- {address: 10.0.0.1}\n", "2:3", "one peer"),
        ("ranges: [10.0.0.9-10.0.0.1]\n", "1:10", "isn't a prefix"),
        ("builtIns: {nd: true}\n", "1:16", "no built-in"),
        ("metrics: {listen: here}\n", "1:19", "address and port"),
        ("policies: [p]\n", "1:12", "absolute"),
        ("instance: a/b\n", "1:11", "folder"),
        ("limits: {rules: 1}\n", "1:17", "out of range"),
        ("history: {keep: forever}\n", "1:17", "length of time"),
        ("history: {keep: 2h}\n", "1:17", "less than a day"),
        ("history: {keep: 2d, hourly: 3d}\n", "1:29", "3 days"),
        ("history: {maxSize: 3}\n", "1:20", "too small"),
        ("history: {maxRows: 3}\n", "1:20", "too few"),
        ("decisionLog: {path: x}\n", "1:21", "absolute"),
        ("decisionLog: {path: /x, keep: 0}\n", "1:31", "current file"),
        ("decisionLog: {path: /x, format: xml}\n", "1:33", "xml"),
        ("decisionLog: {path: /x, interval: 1ms}\n", "1:35", "too often"),
        ("posture: audit\nposture: audit\n", "2:1", "duplicate"),
    ] {
        let got = faults(text);
        let first = &got[0];
        assert!(first.starts_with(&format!("f.yaml:{place}: error: ")), "{text}\n{first}");
        assert!(first.contains(word) && first.contains("hint: "), "{text}\n{first}");
        assert!(!first.contains('\n'), "{first}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let got = faults("instance: a b\nranges: [x]\nendpoints:\n- {address: y, class: host}\n");
    assert_eq!(got.len(), 3, "{got:?}");
}
