//! As NetworkPolicies: one for each namespace or identity that a policy selects.

use super::Out;
use super::targets::{self, Target};
use crate::import::Errs;
use crate::policy::Policy;
use crate::policy::diagnostic::At;
use crate::policy::model::{Peer, PortRange, PortSpec, Ports, Rule, protocol_name};
use bulkhead_common::proto;
use serde_json::{Value, json};

/// The label with a namespace's name.
const NAME: &str = "kubernetes.io/metadata.name";

impl Out<'_> {
    /// Writes one policy.
    pub(super) fn network(&mut self, policy: &Policy) {
        for (n, deny) in policy.denies.iter().enumerate() {
            let reason = "NetworkPolicies deny nothing by itself: whatever a rule allows there is allowed";
            self.find(policy, deny, format!("spec.denies[{n}]"), Errs::Looser, reason);
        }
        if policy.ingress.is_none() && policy.egress.is_none() {
            return;
        }
        let mut spec = json!({"policyTypes": []});
        for (section, word, list) in [("ingress", "from", &policy.ingress), ("egress", "to", &policy.egress)] {
            if let Some(list) = list {
                let kind = if section == "ingress" { "Ingress" } else { "Egress" };
                if let Value::Array(types) = &mut spec["policyTypes"] {
                    types.push(json!(kind));
                }
                let rules = list.iter().enumerate();
                let rules: Vec<Value> = rules
                    .filter_map(|(n, r)| self.network_rule(policy, r, &format!("spec.{section}.rules[{n}]"), word))
                    .collect();
                if !rules.is_empty() {
                    spec[section] = Value::Array(rules);
                }
            }
        }
        let targets = self.selected(policy).targets;
        for target in &targets {
            let mut spec = spec.clone();
            spec["podSelector"] = target.labels();
            let name = match (targets.len(), target.suffix()) {
                (1, _) => policy.name.name.clone(),
                (_, suffix) if suffix.is_empty() => policy.name.name.clone(),
                (_, suffix) => format!("{}-{suffix}", policy.name.name),
            };
            let object =
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {}, "spec": spec});
            self.push(&target.namespace, &name, object);
        }
    }

    fn network_rule(&mut self, policy: &Policy, rule: &At<Rule>, field: &str, word: &str) -> Option<Value> {
        if rule.expires.is_some() {
            let reason = "nothing ends by itself there, so nothing is allowed by it";
            self.find(policy, rule, field, Errs::Stricter, reason);
            return None;
        }
        let peers: Vec<Value> =
            rule.peers.iter().flat_map(|p| self.network_peer(policy, p, &format!("{field}.{word}"))).collect();
        let ports = self.network_ports(policy, &rule.ports, &format!("{field}.ports"))?;
        if peers.is_empty() {
            return None;
        }
        let mut written = json!({word: peers});
        if let Some(ports) = ports {
            written["ports"] = Value::Array(ports);
        }
        Some(written)
    }

    fn network_peer(&mut self, policy: &Policy, peer: &At<Peer>, field: &str) -> Vec<Value> {
        match &peer.value {
            Peer::Id(pattern) => {
                let targets = targets::of(self.estate, std::slice::from_ref(pattern), None);
                for (id, why) in &targets.lost {
                    self.find(policy, peer, field, Errs::Stricter, format!("{id}: {why}; nothing is allowed by it"));
                }
                if targets.everybody {
                    return vec![json!({"namespaceSelector": {}})];
                }
                let one = |t: &Target| {
                    let namespace = json!({"matchLabels": {NAME: t.namespace}});
                    match t.labels.is_empty() {
                        true => json!({"namespaceSelector": namespace}),
                        false => json!({"namespaceSelector": namespace, "podSelector": t.labels()}),
                    }
                };
                targets.targets.iter().map(one).collect()
            }
            Peer::Class(class) => {
                let reason = format!("`{}` can't be said there: nothing is allowed by it", class.as_str());
                self.find(policy, peer, field, Errs::Stricter, reason);
                Vec::new()
            }
            Peer::Cidr { net, except } => {
                if !self.estate.inside(net, except).is_empty() || self.estate.nodes_inside(net, except) {
                    let reason =
                        format!("{net} would be pods and nodes there, too: nothing is allowed by it; except them");
                    self.find(policy, peer, field, Errs::Stricter, reason);
                    return Vec::new();
                }
                match except.is_empty() {
                    true => vec![json!({"ipBlock": {"cidr": net.to_string()}})],
                    false => {
                        let except: Vec<String> = except.iter().map(ToString::to_string).collect();
                        vec![json!({"ipBlock": {"cidr": net.to_string(), "except": except}})]
                    }
                }
            }
        }
    }

    /// `None`: nothing is left.
    fn network_ports(&mut self, policy: &Policy, ports: &Ports, field: &str) -> Option<Option<Vec<Value>>> {
        let Some(list) = ports else { return Some(None) };
        let mut all = Vec::new();
        for spec in list {
            let PortSpec { proto, ports } = &spec.value;
            let protocol = protocol_name(*proto);
            if !matches!(*proto, proto::TCP | proto::UDP | proto::SCTP) {
                let reason = format!("{protocol} can't be said there: nothing is allowed by it");
                self.find(policy, spec, field, Errs::Stricter, reason);
                continue;
            }
            all.push(match ports {
                PortRange::All => json!({"protocol": protocol}),
                PortRange::Range(a, b) if a == b => json!({"protocol": protocol, "port": a}),
                PortRange::Range(a, b) => json!({"protocol": protocol, "port": a, "endPort": b}),
                PortRange::Named(name) => json!({"protocol": protocol, "port": &**name}),
            });
        }
        (!all.is_empty()).then_some(Some(all))
    }
}
