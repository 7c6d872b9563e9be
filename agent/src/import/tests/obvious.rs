//! A second reading of NetworkPolicy, over pods and labels: no identities, no rules that add up, no sharing with the
//! importer. It follows the reference of networking.k8s.io/v1 sentence by sentence and takes its time.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A pod.
#[derive(Clone, Debug)]
pub(in crate::import) struct Pod {
    pub(in crate::import) namespace: String,
    pub(in crate::import) name: String,
    pub(in crate::import) account: String,
    pub(in crate::import) labels: BTreeMap<String, String>,
    pub(in crate::import) address: IpAddr,
    pub(in crate::import) ports: BTreeMap<String, (u8, u16)>,
}

impl Pod {
    pub(in crate::import) fn id(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.account)
    }
}

/// Everything that runs, and namespaces with their labels.
#[derive(Clone, Debug)]
pub(in crate::import) struct World {
    pub(in crate::import) pods: Vec<Pod>,
    pub(in crate::import) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(in crate::import) outside: Vec<IpAddr>,
}

/// An end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::import) enum Who {
    Pod(usize),
    Outside(IpAddr),
}

impl World {
    /// Every ordered pair with a pod at one end at least.
    pub(in crate::import) fn pairs(&self) -> Vec<(Who, Who)> {
        let mut all: Vec<Who> = (0..self.pods.len()).map(Who::Pod).collect();
        all.extend(self.outside.iter().copied().map(Who::Outside));
        let inside = |w: &Who| matches!(w, Who::Pod(_));
        let pairs = all.iter().flat_map(|a| all.iter().map(|b| (*a, *b)));
        pairs.filter(|(a, b)| a != b && (inside(a) || inside(b))).collect()
    }

    pub(in crate::import) fn pod(&self, who: Who) -> Option<&Pod> {
        match who {
            Who::Pod(n) => Some(&self.pods[n]),
            Who::Outside(_) => None,
        }
    }

    pub(in crate::import) fn address(&self, who: Who) -> IpAddr {
        match who {
            Who::Pod(n) => self.pods[n].address,
            Who::Outside(address) => address,
        }
    }
}

/// A label selector.
#[derive(Clone, Debug, Default)]
pub(in crate::import) struct Labels {
    pub(in crate::import) equal: Vec<(String, String)>,
    /// Key, operator, values.
    pub(in crate::import) expressions: Vec<(String, String, Vec<String>)>,
}

impl Labels {
    pub(in crate::import) fn select(&self, labels: &BTreeMap<String, String>) -> bool {
        for (key, value) in &self.equal {
            if labels.get(key) != Some(value) {
                return false;
            }
        }
        for (key, operator, values) in &self.expressions {
            let holds = match operator.as_str() {
                "In" => labels.get(key).is_some_and(|v| values.contains(v)),
                "NotIn" => !labels.get(key).is_some_and(|v| values.contains(v)),
                "Exists" => labels.contains_key(key),
                "DoesNotExist" => !labels.contains_key(key),
                other => panic!("no operator {other}"),
            };
            if !holds {
                return false;
            }
        }
        true
    }

    pub(in crate::import) fn written(&self) -> Value {
        let mut map = Map::new();
        if !self.equal.is_empty() {
            let labels: Map<String, Value> = self.equal.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            map.insert("matchLabels".to_owned(), Value::Object(labels));
        }
        if !self.expressions.is_empty() {
            let all = self.expressions.iter().map(|(key, operator, values)| match values.is_empty() {
                true => json!({"key": key, "operator": operator}),
                false => json!({"key": key, "operator": operator, "values": values}),
            });
            map.insert("matchExpressions".to_owned(), all.collect());
        }
        Value::Object(map)
    }
}

/// A peer.
#[derive(Clone, Debug)]
pub(in crate::import) enum Peer {
    /// podSelector and namespaceSelector, of which one at least is there.
    Selectors(Option<Labels>, Option<Labels>),
    /// cidr and exceptions.
    Block(String, Vec<String>),
}

/// A port: protocol, value, end.
#[derive(Clone, Debug)]
pub(in crate::import) struct Port {
    pub(in crate::import) protocol: Option<u8>,
    pub(in crate::import) port: Option<Result<u16, String>>,
    pub(in crate::import) end: Option<u16>,
}

/// A rule: `None` is a field that isn't there.
#[derive(Clone, Debug)]
pub(in crate::import) struct Rule {
    pub(in crate::import) peers: Option<Vec<Peer>>,
    pub(in crate::import) ports: Option<Vec<Port>>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug)]
pub(in crate::import) struct NetworkPolicy {
    pub(in crate::import) namespace: String,
    pub(in crate::import) name: String,
    pub(in crate::import) pods: Labels,
    pub(in crate::import) types: Option<Vec<&'static str>>,
    pub(in crate::import) ingress: Option<Vec<Rule>>,
    pub(in crate::import) egress: Option<Vec<Rule>>,
}

/// Whether an address lies in a CIDR, bit by bit.
pub(in crate::import) fn lies_in(address: IpAddr, cidr: &str) -> bool {
    let (net, length) = cidr.split_once('/').expect("a CIDR");
    let (net, length): (IpAddr, usize) = (net.parse().expect("an address"), length.parse().expect("a length"));
    let bits = |a: IpAddr| -> Vec<u8> {
        let octets = match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        octets.iter().flat_map(|o| (0..8).rev().map(move |b| o >> b & 1)).collect()
    };
    let (a, b) = (bits(address), bits(net));
    a.len() == b.len() && a[..length] == b[..length]
}

impl NetworkPolicy {
    /// "The array of ingress rules is applied to any pods selected by this field", in the policy's own namespace.
    pub(in crate::import) fn selects(&self, pod: &Pod) -> bool {
        pod.namespace == self.namespace && self.pods.select(&pod.labels)
    }

    /// "If this field is not specified, it will default based on the existence of ingress or egress rules; policies that
    /// contain an egress section are assumed to affect egress, and all policies are assumed to affect ingress."
    fn affects(&self, direction: &str) -> bool {
        match &self.types {
            Some(types) if !types.is_empty() => types.contains(&direction),
            _ => direction == "Ingress" || self.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        }
    }

    fn peer_fits(&self, world: &World, peer: &Peer, other: Who) -> bool {
        match peer {
            Peer::Block(cidr, except) => {
                let address = world.address(other);
                lies_in(address, cidr) && !except.iter().any(|e| lies_in(address, e))
            }
            Peer::Selectors(pods, namespaces) => {
                let Some(pod) = world.pod(other) else { return false };
                let namespace = match namespaces {
                    Some(selector) => selector.select(&world.namespaces[&pod.namespace]),
                    None => pod.namespace == self.namespace,
                };
                namespace && pods.as_ref().is_none_or(|selector| selector.select(&pod.labels))
            }
        }
    }

    fn rule_fits(&self, world: &World, rule: &Rule, other: Who, target: Who, protocol: u8, port: u16) -> bool {
        let peers = match &rule.peers {
            Some(peers) if !peers.is_empty() => peers.iter().any(|p| self.peer_fits(world, p, other)),
            _ => true,
        };
        let ports = match &rule.ports {
            Some(ports) if !ports.is_empty() => ports.iter().any(|p| port_fits(world.pod(target), p, protocol, port)),
            _ => true,
        };
        peers && ports
    }
}

fn port_fits(target: Option<&Pod>, wanted: &Port, protocol: u8, port: u16) -> bool {
    if wanted.protocol.unwrap_or(6) != protocol {
        return false;
    }
    match (&wanted.port, wanted.end) {
        (None, _) => true,
        (Some(Ok(first)), None) => *first == port,
        (Some(Ok(first)), Some(last)) => *first <= port && port <= last,
        (Some(Err(name)), _) => target.is_some_and(|pod| pod.ports.get(name) == Some(&(protocol, port))),
    }
}

/// What NetworkPolicies say of one side: `None` if the pod is not isolated on it.
pub(in crate::import) fn side(
    world: &World,
    policies: &[NetworkPolicy],
    (from, to): (Who, Who),
    protocol: u8,
    port: u16,
    direction: &str,
) -> Option<bool> {
    let (own, other) = if direction == "Ingress" { (to, from) } else { (from, to) };
    let pod = world.pod(own)?;
    let about: Vec<&NetworkPolicy> = policies.iter().filter(|p| p.selects(pod) && p.affects(direction)).collect();
    if about.is_empty() {
        return None;
    }
    Some(about.iter().any(|policy| {
        let rules = if direction == "Ingress" { &policy.ingress } else { &policy.egress };
        rules.iter().flatten().any(|rule| policy.rule_fits(world, rule, other, to, protocol, port))
    }))
}

/// "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source pod and
/// the ingress policy on the destination pod need to allow the connection."
pub(in crate::import) fn allowed(
    world: &World,
    policies: &[NetworkPolicy],
    from: Who,
    to: Who,
    protocol: u8,
    port: u16,
) -> bool {
    let says = |direction| side(world, policies, (from, to), protocol, port, direction).unwrap_or(true);
    says("Egress") && says("Ingress")
}

fn protocol_word(number: u8) -> &'static str {
    match number {
        6 => "TCP",
        17 => "UDP",
        132 => "SCTP",
        other => panic!("no protocol {other}"),
    }
}

/// The policy as an object of the API.
pub(in crate::import) fn written(policy: &NetworkPolicy) -> Value {
    let port = |p: &Port| {
        let mut map = Map::new();
        p.protocol.map(|n| map.insert("protocol".to_owned(), json!(protocol_word(n))));
        match &p.port {
            Some(Ok(n)) => drop(map.insert("port".to_owned(), json!(n))),
            Some(Err(name)) => drop(map.insert("port".to_owned(), json!(name))),
            None => {}
        }
        p.end.map(|n| map.insert("endPort".to_owned(), json!(n)));
        Value::Object(map)
    };
    let peer = |p: &Peer| match p {
        Peer::Block(cidr, except) if except.is_empty() => json!({"ipBlock": {"cidr": cidr}}),
        Peer::Block(cidr, except) => json!({"ipBlock": {"cidr": cidr, "except": except}}),
        Peer::Selectors(pods, namespaces) => {
            let mut map = Map::new();
            pods.as_ref().map(|s| map.insert("podSelector".to_owned(), s.written()));
            namespaces.as_ref().map(|s| map.insert("namespaceSelector".to_owned(), s.written()));
            Value::Object(map)
        }
    };
    let rules = |rules: &Vec<Rule>, ends: &str| -> Value {
        let rule = |r: &Rule| {
            let mut map = Map::new();
            r.peers.as_ref().map(|all| map.insert(ends.to_owned(), all.iter().map(peer).collect()));
            r.ports.as_ref().map(|all| map.insert("ports".to_owned(), all.iter().map(port).collect()));
            Value::Object(map)
        };
        rules.iter().map(rule).collect()
    };
    let mut spec = Map::new();
    spec.insert("podSelector".to_owned(), policy.pods.written());
    policy.types.as_ref().map(|t| spec.insert("policyTypes".to_owned(), json!(t)));
    policy.ingress.as_ref().map(|all| spec.insert("ingress".to_owned(), rules(all, "from")));
    policy.egress.as_ref().map(|all| spec.insert("egress".to_owned(), rules(all, "to")));
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": policy.name, "namespace": policy.namespace},
        "spec": spec,
    })
}

/// Objects as one file.
pub(in crate::import) fn file(objects: &[Value]) -> String {
    serde_json::to_string_pretty(&json!({"apiVersion": "v1", "kind": "List", "items": objects})).expect("plain data")
}
