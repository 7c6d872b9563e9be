//! Whether the cluster does what a cluster does: `cargo xtask cluster up --check`.
//!
//! One pod on each node, a Service for each pod. Every pod asks every pod, itself too, over both families and protocols,
//! by the pod's address and by its Service; the answer says who gave it. Then names, logs, node ports, and that a token
//! says on which node it was given out.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::control::PLACE;
use super::images;
use super::network::DNS_SERVICE;
use super::node::POD_IMAGE;
use super::state::State;
use super::wait;
use crate::run::{self, note, step};

const NAMESPACE: &str = "cluster-check";
const PORT: u16 = 8080;

/// Runs all checks, and removes what they made.
pub(super) fn run(state: &State) -> Result<()> {
    step("checking what the cluster does");
    let started = Instant::now();
    let done = checks(state);
    run::run_quietly(state.kubectl().args(["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"]))?;
    done?;
    note(format!("{:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

fn checks(state: &State) -> Result<()> {
    let manifest = state.folder.join("check.json");
    run::write_if_changed(&manifest, &serde_json::to_vec_pretty(&manifests(state))?)?;
    run::run_quietly(state.kubectl().arg("apply").arg("-f").arg(&manifest))?;
    run::run_quietly(kubectl(state).args(["wait", "pod", "--all", "--for=condition=Ready", "--timeout=60s"]))?;
    let pods = pods(state)?;

    let mut asked = 0;
    for from in &pods {
        for to in &pods {
            let ways = to.addresses.iter().map(|address| ("address", address));
            for (way, address) in ways.chain(to.service.iter().map(|address| ("Service", address))) {
                for protocol in ["tcp", "udp"] {
                    ask(state, from, to, protocol, address)
                        .with_context(|| format!("{} -> {} by its {way} over {protocol}", from.name, to.name))?;
                    asked += 1;
                }
            }
        }
    }
    note(format!("{asked} questions between {} pods were answered by the pod that was meant", pods.len()));

    for pod in &pods {
        names(state, pod).with_context(|| format!("names, from {}", pod.name))?;
        logs(state, pod).with_context(|| format!("the log of {}", pod.name))?;
        node_port(state, pod).with_context(|| format!("the node port of {}", pod.name))?;
        token(state, pod).with_context(|| format!("a token for {}", pod.name))?;
    }
    note("names, logs, node ports and tokens are right");
    Ok(())
}

/// A pod of the check.
struct Pod {
    name: String,
    node: String,
    /// Its addresses, and its Service's: IPv4 and IPv6.
    addresses: Vec<String>,
    service: Vec<String>,
    node_port: u64,
    node_address: String,
}

fn manifests(state: &State) -> Value {
    let mut items = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    for node in state.nodes() {
        let name = pod_name(node);
        let ports =
            ["TCP", "UDP"].map(|protocol| json!({"name": protocol.to_lowercase(), "port": PORT, "protocol": protocol}));
        items.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"pod": name}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 2,
                "containers": [{
                    "name": "pod", "image": POD_IMAGE, "imagePullPolicy": "Never",
                    "args": ["serve", PORT.to_string()],
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                }],
            },
        }));
        items.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
                "selector": {"pod": name}, "ports": ports,
            },
        }));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn pod_name(node: &str) -> String {
    format!("on-{node}")
}

fn kubectl(state: &State) -> Command {
    let mut kubectl = state.kubectl();
    kubectl.args(["--namespace", NAMESPACE]);
    kubectl
}

fn get(state: &State, kind: &str, name: &str) -> Result<Value> {
    let text = run::output_of(kubectl(state).args(["get", kind, name, "--output=json"]))?;
    serde_json::from_str(&text).context("kubectl printed JSON that isn't its own")
}

fn pods(state: &State) -> Result<Vec<Pod>> {
    let pod = |node: &str| -> Result<Pod> {
        let name = pod_name(node);
        let (pod, service) = (get(state, "pod", &name)?, get(state, "service", &name)?);
        let addresses = strings(&pod["status"]["podIPs"], |address| &address["ip"]);
        let service_addresses = strings(&service["spec"]["clusterIPs"], |address| address);
        ensure!(addresses.len() == 2 && service_addresses.len() == 2, "{name} doesn't have addresses of both families");
        Ok(Pod {
            node: node.to_owned(),
            addresses,
            service: service_addresses,
            node_port: service["spec"]["ports"][0]["nodePort"].as_u64().context("the Service has no node port")?,
            node_address: pod["status"]["hostIP"].as_str().context("the pod has no node")?.to_owned(),
            name,
        })
    };
    state.nodes().map(pod).collect()
}

fn strings(list: &Value, text: fn(&Value) -> &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|entry| text(entry).as_str().map(str::to_owned)).collect()
}

/// What `pod WORDS` prints inside `from`.
fn exec(state: &State, from: &Pod, words: &[&str]) -> Result<String> {
    run::output_of(kubectl(state).args(["exec", &from.name, "--", "/pod"]).args(words))
}

fn ask(state: &State, from: &Pod, to: &Pod, protocol: &str, address: &str) -> Result<()> {
    let address = if address.contains(':') { format!("[{address}]:{PORT}") } else { format!("{address}:{PORT}") };
    // A Service that is a moment old may not be known on every node yet.
    let mut last = String::new();
    let answered =
        wait::until("the answer", Duration::from_secs(10), || match exec(state, from, &["ask", protocol, &address]) {
            Ok(answer) => {
                ensure!(answer.starts_with(&format!("{} saw {protocol} ", to.name)), "{address} answers: {answer}");
                Ok(true)
            }
            Err(error) => {
                last = format!("{error:#}");
                Ok(false)
            }
        });
    answered.with_context(|| format!("{address}: {last}"))
}

/// The cluster's DNS knows every Service, by both of its own addresses.
fn names(state: &State, pod: &Pod) -> Result<()> {
    for server in DNS_SERVICE {
        let server = if server.contains(':') { format!("[{server}]:53") } else { format!("{server}:53") };
        let name = format!("{}.{NAMESPACE}.svc.cluster.local", pod.name);
        let found = exec(state, pod, &["resolve", &server, &name])?;
        ensure!(found.lines().eq(pod.service.iter().map(String::as_str)), "{server} says that {name} is {found}");
    }
    Ok(())
}

fn logs(state: &State, pod: &Pod) -> Result<()> {
    let log = run::output_of(kubectl(state).args(["logs", &pod.name]))?;
    for protocol in ["tcp", "udp"] {
        ensure!(log.contains(&format!("saw {protocol}")), "no question over {protocol} in it:\n{log}");
    }
    Ok(())
}

/// From outside of the nodes: the control plane's place has no kube-proxy.
fn node_port(state: &State, pod: &Pod) -> Result<()> {
    let address = format!("{}:{}", pod.node_address, pod.node_port);
    let program = state.folder.join(images::POD_PROGRAM);
    let answer = run::output_of(state.place(PLACE)?.command(program)?.args(["ask", "tcp", &address]))?;
    ensure!(answer.starts_with(&format!("{} saw tcp ", pod.name)), "{address} answers: {answer}");
    Ok(())
}

/// A token that is bound to a pod names the pod's node: admission policies can hold a writer to its own node.
fn token(state: &State, pod: &Pod) -> Result<()> {
    use base64::Engine;
    let words = ["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name", &pod.name];
    let token = run::output_of(kubectl(state).args(words))?;
    let claims = token.split('.').nth(1).context("that is no token")?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).context("that is no token")?;
    let claims: Value = serde_json::from_slice(&claims).context("that is no token")?;
    let node = &claims["kubernetes.io"]["node"]["name"];
    ensure!(node == pod.node.as_str(), "it says that the pod is on {node}");
    Ok(())
}
