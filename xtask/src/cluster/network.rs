//! The cluster's network: one segment that all places are on, and routes from everywhere to every node's pods.
//!
//! ```text
//!  control 10.246.0.1   node1 10.246.0.11       node2 10.246.0.12
//!     └──── bridge ───────┴───────────────────────┘
//!                     pods 10.244.1.0/24      pods 10.244.2.0/24
//! ```
//! Nobody rewrites a source address on the way, and there is no way out: the host isn't connected to it.

use anyhow::Result;

use super::place::Place;

/// All pods, and all Services.
pub(super) const PODS: &str = "10.244.0.0/16,fd00:244::/48";
pub(super) const SERVICES: &str = "10.96.0.0/16,fd00:96::/112";
/// The API server's Service is the first of them; this is kubelets' name server, the tenth.
pub(super) const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
pub(super) const DNS_SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::a"];
/// The control plane's addresses.
pub(super) const CONTROL: [&str; 2] = ["10.246.0.1", "fd00:246::1"];

/// What belongs to a node, by its number from 1 on.
#[derive(Clone, Copy)]
pub(super) struct Node(pub(super) u8);

impl Node {
    pub(super) fn name(self) -> String {
        format!("node{}", self.0)
    }

    pub(super) fn addresses(self) -> [String; 2] {
        [format!("10.246.0.{}", 10 + self.0), format!("fd00:246::{}", 10 + self.0)]
    }

    pub(super) fn pods(self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.0), format!("fd00:244:0:{}::/64", self.0)]
    }
}

/// Lays the segment, in the control plane's namespace.
pub(super) fn lay(control: &Place) -> Result<()> {
    control.run(&["ip", "link", "add", "nodes", "type", "bridge"])?;
    address(control, "nodes", &CONTROL)?;
    control.run(&["ip", "link", "set", "nodes", "up"])
}

/// Plugs a node in.
pub(super) fn plug(control: &Place, place: &Place, node: Node) -> Result<()> {
    let (name, pid) = (node.name(), place.anchor.pid.to_string());
    control.run(&["ip", "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    control.run(&["ip", "link", "set", &name, "master", "nodes", "up"])?;
    let addresses = node.addresses();
    address(place, "eth0", &[&addresses[0], &addresses[1]])?;
    place.run(&["ip", "link", "set", "eth0", "up"])?;
    for via in CONTROL {
        place.run(&["ip", family(via), "route", "add", "default", "via", via])?;
    }
    Ok(())
}

/// Tells `place` the way to the pods of `node`.
pub(super) fn route(place: &Place, node: Node) -> Result<()> {
    for (pods, via) in node.pods().iter().zip(&node.addresses()) {
        place.run(&["ip", family(via), "route", "add", pods, "via", via])?;
    }
    Ok(())
}

/// Lets `place` forward, and lets its nft tables see what its bridges carry: without that, a Service's answer from a pod
/// on the same bridge would go back by a shortcut, from the wrong address.
pub(super) fn forward(place: &Place) -> Result<()> {
    for (setting, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("bridge/bridge-nf-call-iptables", "1"),
        ("bridge/bridge-nf-call-ip6tables", "1"),
    ] {
        place.run(&["sh", "-c", &format!("echo {value} > /proc/sys/net/{setting}")])?;
    }
    Ok(())
}

/// IPv6 addresses are there at once: nobody else could have them.
fn address(place: &Place, link: &str, [v4, v6]: &[&str; 2]) -> Result<()> {
    place.run(&["ip", "address", "add", &format!("{v4}/24"), "dev", link])?;
    place.run(&["ip", "address", "add", &format!("{v6}/64"), "dev", link, "nodad"])
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "-6" } else { "-4" }
}
