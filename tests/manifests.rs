//! deploy/: both forms say the same, and ask for no more than they use.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn deploy(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|e| panic!("{e}"))
}

fn named() -> Vec<Value> {
    let kustomization: Value = serde_saphyr::from_str(&deploy("kustomization.yaml")).expect("YAML");
    let resources = kustomization["resources"].as_array().expect("a list");
    resources.iter().flat_map(|name| documents(&deploy(name.as_str().expect("a name")))).collect()
}

#[test]
fn one_file_holds_what_the_kustomization_names() {
    assert_eq!(documents(&deploy("daemonset.yaml")), named(), "run `cargo xtask manifests`");
}

#[test]
fn the_definitions_are_what_the_agent_prints() {
    let printed = serde_json::to_value(bulkhead::cluster::crd::all()).expect("JSON");
    assert_eq!(Value::Array(documents(&deploy("kubernetes/crds.yaml"))), printed, "run `cargo xtask manifests`");
}

#[test]
fn each_object_is_there_once() {
    let mut seen = BTreeSet::new();
    for o in named() {
        let metadata = &o["metadata"];
        let name = [&o["apiVersion"], &o["kind"], &metadata["namespace"], &metadata["name"]].map(Value::to_string);
        assert!(seen.insert(name), "the second of two would undo the first: {metadata}");
    }
}

#[test]
fn nobody_may_read_secrets_or_everything() {
    for object in named().iter().filter(|o| o["kind"] == "ClusterRole" || o["kind"] == "Role") {
        for rule in object["rules"].as_array().expect("rules") {
            let list = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
            assert!(!list("resources").iter().any(|r| r == "secrets" || r == "*"), "{object}");
            assert!(!list("verbs").iter().any(|v| v == "*"), "{object}");
        }
    }
}

#[test]
fn the_shipped_configuration_is_one() {
    let all = named();
    let map = all.iter().find(|o| o["kind"] == "ConfigMap").expect("a configuration");
    let text = map["data"]["bulkhead.yaml"].as_str().expect("a text");
    // What the DaemonSet sets from spec.nodeName.
    let text = text.replace("cluster:\n", "cluster:\n  node: n1\n");
    let config = bulkhead::config::parse("bulkhead.yaml", &text).unwrap_or_else(|e| panic!("{}", e[0]));
    assert_eq!(config.posture.as_str(), "observe");
    assert!(config.cluster.is_some_and(|c| c.exempt.contains("kube-system")));
}
