//! `cargo xtask cluster status`: daemons, nodes, pods, and whether all of them are well.

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use serde_json::Value;

use super::control;
use super::state::State;
use crate::run;

/// Prints what runs, and fails if something isn't well.
pub(super) fn tell(state: &State) -> Result<()> {
    let mut ills = Vec::new();
    let mut table = new_table(&["DAEMON", "PID", "STATE"]);
    for daemon in &state.daemons {
        let pid = daemon.process.map_or_else(|| "-".to_owned(), |process| process.pid.to_string());
        let (word, ill) = match (daemon.process, daemon.is_alive()) {
            (_, true) => ("runs", false),
            (None, false) => ("stopped", true),
            (Some(_), false) => ("ended", true),
        };
        table.add_row([daemon.name.clone(), pid, word.to_owned()]);
        if ill {
            ills.push(format!("{} ({})", daemon.name, state.log(&daemon.name).display()));
        }
    }
    println!("{table}\n");

    if !control::is_ready(state)? {
        ills.push("the API server isn't ready".to_owned());
    } else {
        ills.extend(nodes(state)?);
        ills.extend(pods(state)?);
    }
    if !ills.is_empty() {
        bail!("not well: {}", ills.join(", "));
    }
    Ok(())
}

/// Prints the nodes, and answers which aren't ready.
fn nodes(state: &State) -> Result<Vec<String>> {
    let mut ills = Vec::new();
    let mut table = new_table(&["NODE", "READY", "ADDRESSES", "PODS' ADDRESSES"]);
    for node in list(state, &["nodes"])? {
        let name = text(&node["metadata"]["name"]);
        let ready = condition(&node, "Ready");
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        let addresses: Vec<String> = addresses
            .filter(|address| address["type"] == "InternalIP")
            .map(|address| text(&address["address"]))
            .collect();
        let pods = node["spec"]["podCIDRs"].as_array().into_iter().flatten().map(text);
        table.add_row([name.clone(), ready.clone(), addresses.join(" "), pods.collect::<Vec<_>>().join(" ")]);
        if ready != "True" {
            ills.push(name);
        }
    }
    println!("{table}\n");
    Ok(ills)
}

/// Prints the pods, and answers which should be ready and aren't.
fn pods(state: &State) -> Result<Vec<String>> {
    let mut ills = Vec::new();
    let mut table = new_table(&["POD", "NODE", "STATE"]);
    for pod in list(state, &["pods", "--all-namespaces"])? {
        let name = format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let ready = condition(&pod, "Ready") == "True";
        let word = match text(&pod["status"]["phase"]).as_str() {
            _ if pod["metadata"]["deletionTimestamp"].is_string() => "terminating".to_owned(),
            "Running" if ready => "ready".to_owned(),
            "Running" => "not ready".to_owned(),
            other => other.to_lowercase(),
        };
        if !["ready", "succeeded", "terminating"].contains(&word.as_str()) {
            ills.push(name.clone());
        }
        table.add_row([name, text(&pod["spec"]["nodeName"]), word]);
    }
    println!("{table}\n");
    Ok(ills)
}

fn list(state: &State, what: &[&str]) -> Result<Vec<Value>> {
    let said = run::output_of(state.kubectl().arg("get").args(what).arg("--output=json"))?;
    let mut said: Value = serde_json::from_str(&said).context("kubectl printed JSON that isn't its own")?;
    match said["items"].take() {
        Value::Array(items) => Ok(items),
        _ => bail!("kubectl printed no list"),
    }
}

/// The status of a condition, or nothing.
fn condition(object: &Value, kind: &str) -> String {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == kind).map_or_else(String::new, |found| text(&found["status"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table
}
