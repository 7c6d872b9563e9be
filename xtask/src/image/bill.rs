//! What the program is made of: a software bill of materials in CycloneDX's JSON.
//!
//! It lists the crates that end up in the program on this target, as cargo's own resolution names them, not all of the
//! lock file. No serial number and no date, so that it is the same for the same sources.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::run;

/// The part of `cargo metadata` that matters here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    description: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// `None` is what is linked in; `build` and `dev` aren't.
    kind: Option<String>,
}

/// The bill of the workspace's package `name`.
pub(super) fn of(name: &str) -> Result<Vec<u8>> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = run::cargo();
    cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &platform]);
    let metadata = serde_json::from_str(&run::output_of(&mut cargo)?).context("cargo's metadata isn't as expected")?;
    Ok(serde_json::to_vec_pretty(&bill(&metadata, name)?)?)
}

fn bill(metadata: &Metadata, name: &str) -> Result<Value> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let root = metadata
        .packages
        .iter()
        .find(|package| package.name == name && package.source.is_none())
        .with_context(|| format!("the workspace has no package {name}"))?;

    let (mut parts, mut todo) = (BTreeSet::new(), vec![root.id.as_str()]);
    let mut links = Vec::new();
    while let Some(id) = todo.pop() {
        if !parts.insert(id) {
            continue;
        }
        let node = nodes.get(id).with_context(|| format!("cargo's metadata doesn't resolve {id}"))?;
        let linked = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        let below: Vec<&str> = node.deps.iter().filter(linked).map(|dependency| dependency.pkg.as_str()).collect();
        todo.extend(&below);
        links.push((id, below));
    }

    let part = |id: &&str| packages.get(id).copied();
    let mut components: Vec<&Package> = parts.iter().filter_map(part).filter(|package| package.id != root.id).collect();
    components.sort_by_key(|package| reference(package));
    let named = |id: &str| packages.get(id).map(|package| reference(package));
    let mut dependencies: Vec<(Option<String>, Vec<String>)> = links
        .into_iter()
        .map(|(id, below)| {
            let below: BTreeSet<String> = below.into_iter().filter_map(named).collect();
            (named(id), below.into_iter().collect())
        })
        .collect();
    dependencies.sort();
    let dependencies: Vec<Value> =
        dependencies.into_iter().map(|(reference, below)| json!({"ref": reference, "dependsOn": below})).collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(root, "application")},
        "components": components.iter().map(|package| component(package, "library")).collect::<Vec<_>>(),
        "dependencies": dependencies,
    }))
}

fn component(package: &Package, kind: &str) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
        "purl": reference(package),
    });
    if let Some(license) = &package.license {
        // Old manifests separate alternatives by a slash.
        component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
    }
    if let Some(description) = &package.description {
        component["description"] = description.trim().into();
    }
    component
}

/// A package's URL, which names it everywhere.
fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_is_linked_in_and_nothing_else() {
        let package = |name: &str, source: Option<&str>| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source});
        let needs = |name: &str, kind: Option<&str>| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("ours", None), package("a", Some("x")), package("b", Some("x")), package("maker", Some("x"))],
            "resolve": {"nodes": [
                {"id": "ours", "deps": [needs("b", None), needs("maker", Some("build"))]},
                {"id": "a", "deps": []},
                {"id": "b", "deps": [needs("a", None), needs("ours", Some("dev"))]},
                {"id": "maker", "deps": []},
            ]},
        });
        let metadata = serde_json::from_value(metadata).expect("it is as cargo writes it");
        let bill = bill(&metadata, "ours").expect("all is there");
        let names: Vec<&str> =
            bill["components"].as_array().into_iter().flatten().filter_map(|part| part["name"].as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["dependencies"][1]["dependsOn"][0], "pkg:cargo/a@1.0.0");
    }
}
