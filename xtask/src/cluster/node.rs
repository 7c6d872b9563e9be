//! A node: containerd with Debian's runc and CNI plugins, kubelet, kube-proxy, each with its usual paths and ports.
//!
//! The first node's pods are in cgroups where a kubelet puts them by default; the other nodes', which share the kernel
//! with it, are below a root of their own, as inside kind or k3s.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::control::{API, option};
use super::groups::{Hierarchies, OURS};
use super::keys::{Authority, User};
use super::network::{self, DNS_SERVICE, Node, PODS};
use super::place::Place;
use super::state::State;
use super::wait;
use crate::run;

/// The image of pods' sandboxes and of test pods.
pub(crate) const POD_IMAGE: &str = "bulkhead.test/pod:1";

/// Debian's folder of CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Where a node's containerd listens, and looks for networks.
pub(super) const CONTAINERD: &str = "/run/containerd/containerd.sock";
const NETWORKS: &str = "/var/lib/cni/net.d";

/// Starts a node's containerd and gives it `images`. The place exists and is plugged in.
pub(super) fn prepare(state: &mut State, node: Node, images: &[PathBuf]) -> Result<()> {
    let name = node.name();
    let place = state.place(&name)?.clone();
    network::forward(&place)?;
    place.write("var/lib/cni/net.d/10-pods.conflist", &pods_network(node)?)?;
    let config = place.write("containerd.toml", &containerd())?;
    let daemon = format!("containerd@{name}");
    state.run(&daemon, &name, "containerd", vec![option("--config", config)])?;
    let ctr = state.programs.join("ctr");
    wait::until(&daemon, Duration::from_secs(60), || {
        state.require_alive(&[&daemon])?;
        Ok(run::collect(place.command(&ctr)?.args(["-a", CONTAINERD, "version"]))?.status.success())
    })?;
    images.iter().try_for_each(|image| import(state, &place, image))
}

/// Starts a node's kubelet, which registers it, and kube-proxy.
pub(super) fn join(state: &mut State, node: Node, authority: &Authority, hierarchies: &Hierarchies) -> Result<()> {
    let name = node.name();
    let place = state.place(&name)?.clone();
    let root = if node.0 == 1 { None } else { Some(format!("{OURS}/{name}")) };
    if let Some(root) = &root {
        hierarchies.make_for_pods(root)?;
    }
    place.write("resolv.conf", "")?;
    let config = place.write("kubelet.yaml", &kubelet(&state.folder, &place, root.as_deref())?)?;
    let user = format!("system:node:{name}");
    let user = User { name: &user, group: Some("system:nodes") };
    let kubeconfig = place.write("kubelet.kubeconfig", &authority.kubeconfig(API, &user)?)?;
    let arguments = vec![
        option("--config", config),
        option("--kubeconfig", kubeconfig),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", node.addresses().join(",")),
    ];
    state.run(&format!("kubelet@{name}"), &name, "kubelet", arguments)?;

    let kubeconfig = authority.kubeconfig(API, &User::new("system:kube-proxy"))?;
    let kubeconfig = place.write("kube-proxy.kubeconfig", &kubeconfig)?;
    let config = place.write("kube-proxy.yaml", &proxy(&name, &kubeconfig)?)?;
    state.run(&format!("kube-proxy@{name}"), &name, "kube-proxy", vec![option("--config", config)])
}

/// Imports an image archive into a node's containerd.
pub(super) fn import(state: &State, place: &Place, archive: &Path) -> Result<()> {
    let mut command = place.command(state.programs.join("ctr"))?;
    command.args(["-a", CONTAINERD, "-n", "k8s.io", "images", "import", "--local"]).arg(archive);
    run::run_quietly(&mut command).with_context(|| format!("{} doesn't take {}", place.name, archive.display()))
}

/// Tells the API server which addresses the node's pods have, and waits for the node to be ready.
pub(super) fn settle(state: &State, node: Node) -> Result<()> {
    let name = node.name();
    wait::until(&format!("{name} to register"), Duration::from_secs(60), || {
        state.require_alive(&[&format!("kubelet@{name}")])?;
        Ok(run::collect(state.kubectl().args(["get", "node", &name]))?.status.success())
    })?;
    let [v4, v6] = node.pods();
    let patch = json!({"spec": {"podCIDR": v4, "podCIDRs": [v4, v6]}}).to_string();
    run::run_quietly(state.kubectl().args(["patch", "node", &name, "--patch", &patch]))?;
    run::run_quietly(state.kubectl().args(["wait", "--for=condition=Ready", "--timeout=60s", "node", &name]))
}

fn pods_network(node: Node) -> Result<String> {
    let ranges: Vec<_> = node.pods().iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
            },
            // For hostPort.
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    Ok(serde_json::to_string_pretty(&config)?)
}

/// `restrict_oom_score_adj`: runc may have no right to lower a score, as in a locked-down machine, and says so badly.
fn containerd() -> String {
    format!(
        "version = 3\n\
        [grpc]\n\
        address = \"{CONTAINERD}\"\n\
        [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n\
        sandbox = \"{POD_IMAGE}\"\n\
        [plugins.\"io.containerd.cri.v1.runtime\"]\n\
        restrict_oom_score_adj = true\n\
        [plugins.\"io.containerd.cri.v1.runtime\".cni]\n\
        bin_dirs = [\"{CNI_PLUGINS}\"]\n\
        conf_dir = \"{NETWORKS}\"\n"
    )
}

fn kubelet(cluster: &Path, place: &Place, root: Option<&str>) -> Result<String> {
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": cluster.join("keys/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "cgroupDriver": "cgroupfs",
        // A machine may still mount version 1 beside version 2, and have swap.
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDomain": "cluster.local",
        "clusterDNS": DNS_SERVICE,
        "resolvConf": place.folder.join("resolv.conf"),
        // What the programs that run here don't need, and a small machine may lack.
        "makeIPTablesUtilChains": false,
        "readOnlyPort": 0,
        "evictionHard": {
            "imagefs.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "memory.available": "10Mi",
        },
    });
    if let Some(root) = root {
        config["cgroupRoot"] = format!("/{root}").into();
    }
    Ok(serde_json::to_string_pretty(&config)?)
}

fn proxy(name: &str, kubeconfig: &Path) -> Result<String> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": PODS,
        "hostnameOverride": name,
        // The machine's limits stay as they are.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    Ok(serde_json::to_string_pretty(&config)?)
}
