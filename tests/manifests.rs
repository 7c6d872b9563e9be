//! deploy/: all three forms say the same, and ask for no more than they use.
//!
//! The chart is rendered here, without Helm: its templates keep to a few actions, and one that isn't known is a failure.

use serde_json::{Value, json};
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

/// What `helm template --include-crds --namespace bulkhead-system` makes of the chart with these values. Known are `if` over
/// whole lines, and fields of `.Values`, `.Release.Namespace` and `.Chart.AppVersion` with `default`, `indent` and `toJson`.
fn rendered(values: &Value) -> Vec<Value> {
    let chart: Value = serde_saphyr::from_str(&deploy("helm/bulkhead/Chart.yaml")).expect("YAML");
    let context = json!({"Values": values, "Chart": {"AppVersion": chart["appVersion"]},
        "Release": {"Namespace": "bulkhead-system"}});
    let mut all = documents(&deploy("helm/bulkhead/crds/crds.yaml"));
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/bulkhead/templates");
    for entry in fs::read_dir(folder).expect("templates") {
        let text = fs::read_to_string(entry.expect("a file").path()).expect("text");
        let (mut out, mut shown) = (String::new(), true);
        for line in text.lines() {
            if let Some(field) = line.strip_prefix("{{- if ").and_then(|l| l.strip_suffix(" }}")) {
                shown = evaluated(field, &context) == json!(true);
            } else if line == "{{- end }}" {
                shown = true;
            } else if shown {
                out.push_str(&line_of(line, &context));
                out.push('\n');
            }
        }
        all.extend(documents(&out).into_iter().filter(|d| !d.is_null()));
    }
    all
}

fn line_of(line: &str, context: &Value) -> String {
    let mut parts = line.split("{{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (action, rest) = part.split_once("}}").expect("an action on one line");
        match evaluated(action, context) {
            Value::String(text) => out.push_str(&text),
            other => panic!("`{action}` gives {other}"),
        }
        out.push_str(rest);
    }
    out
}

fn evaluated(pipeline: &str, context: &Value) -> Value {
    let mut steps = pipeline.split('|').map(str::trim);
    let field = |path: &str| {
        let path = path.strip_prefix('.').unwrap_or_else(|| panic!("`{path}` isn't known"));
        let found = path.split('.').fold(context, |at, key| at.get(key).unwrap_or_else(|| panic!("no {path}")));
        found.clone()
    };
    let first = field(steps.next().expect("a field"));
    steps.fold(first, |value, step| match step.split_once(' ') {
        None if step == "toJson" => json!(value.to_string()),
        Some(("default", other)) => {
            if value == json!("") {
                field(other)
            } else {
                value
            }
        }
        Some(("indent", n)) => {
            let spaces = " ".repeat(n.parse().expect("a number"));
            let text = value.as_str().expect("a text");
            json!(text.split('\n').map(|l| format!("{spaces}{l}")).collect::<Vec<_>>().join("\n"))
        }
        _ => panic!("`{step}` isn't known"),
    })
}

fn values() -> Value {
    serde_saphyr::from_str(&deploy("helm/bulkhead/values.yaml")).expect("YAML")
}

fn sorted(mut all: Vec<Value>) -> Vec<Value> {
    let key = |o: &Value| [&o["kind"], &o["metadata"]["namespace"], &o["metadata"]["name"]].map(Value::to_string);
    all.sort_by_key(key);
    all
}

#[test]
fn the_chart_says_what_the_manifests_say() {
    let mut values = values();
    values["namespace"]["create"] = json!(true);
    let (chart, plain) = (sorted(rendered(&values)), sorted(documents(&deploy("daemonset.yaml"))));
    assert_eq!(chart.len(), plain.len());
    for (from_chart, object) in chart.iter().zip(&plain) {
        assert_eq!(from_chart, object, "run `cargo xtask manifests`");
    }
}

#[test]
fn a_value_of_the_chart_arrives() {
    let mut values = values();
    values["image"] = json!({"repository": "registry.example/b", "tag": "9", "pullPolicy": "Always"});
    values["config"] = json!("posture: audit\n");
    values["tolerations"] = json!([]);
    values["resources"]["limits"] = json!({"memory": "1Gi"});
    let all = rendered(&values);
    assert!(!all.iter().any(|o| o["kind"] == "Namespace"), "Helm makes it");
    let set = all.iter().find(|o| o["kind"] == "DaemonSet").expect("a DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    let agent = &pod["containers"][0];
    assert_eq!((&agent["image"], &agent["imagePullPolicy"]), (&json!("registry.example/b:9"), &json!("Always")));
    assert_eq!((&pod["tolerations"], &agent["resources"]["limits"]["memory"]), (&json!([]), &json!("1Gi")));
    let map = all.iter().find(|o| o["kind"] == "ConfigMap").expect("a configuration");
    assert_eq!(map["data"]["bulkhead.yaml"].as_str().map(str::trim), Some("posture: audit"));
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
