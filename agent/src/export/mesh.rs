//! As Istio's AuthorizationPolicies: who is connected to decides there, about TCP alone.

use super::Out;
use super::targets;
use crate::import::Errs;
use crate::policy::diagnostic::At;
use crate::policy::model::{Deny, Peer, PortRange, PortSpec, Ports, Rule};
use crate::policy::{IdPattern, Policy};
use bulkhead_common::proto;
use serde_json::{Value, json};

/// A range is written port by port up to so many.
const LONGEST: u16 = 64;

/// Those who connect.
#[derive(Default)]
struct Sources {
    principals: Vec<String>,
    blocks: Vec<String>,
    anybody: bool,
}

impl Out<'_> {
    /// Writes one policy.
    pub(super) fn mesh(&mut self, policy: &Policy) {
        if policy.egress.is_some() {
            let reason = "a mesh judges who is connected to and not who connects: what leaves isn't restricted there";
            self.find(policy, &policy.name, "spec.egress", Errs::Looser, reason);
        }
        if let Some(list) = &policy.ingress {
            let whose: Vec<IdPattern> = policy.selector.iter().map(|p| p.value.clone()).collect();
            let rules = list.iter().enumerate();
            let rules: Vec<Value> = rules
                .filter_map(|(n, r)| self.mesh_rule(policy, r, &whose, &format!("spec.ingress.rules[{n}]")))
                .collect();
            self.place(policy, &whose, policy.namespace(), "ALLOW", &rules, "spec.selector");
        }
        for (n, deny) in policy.denies.iter().enumerate() {
            self.mesh_deny(policy, deny, &format!("spec.denies[{n}]"));
        }
    }

    /// The same rules for everybody whom the patterns stand for.
    fn place(
        &mut self,
        policy: &Policy,
        whose: &[IdPattern],
        only: Option<&str>,
        action: &str,
        rules: &[Value],
        field: &str,
    ) {
        let targets = targets::of(self.estate, whose, only);
        for (id, why) in &targets.lost {
            let reason = format!("{id}: {why}; nobody holds this for it there");
            self.find(policy, &policy.name, field, Errs::Looser, reason);
        }
        let places: Vec<(String, Value, String)> = match targets.everybody {
            true => vec![(self.root.to_owned(), json!({}), String::new())],
            false => targets.targets.iter().map(|t| (t.namespace.clone(), t.labels(), t.suffix())).collect(),
        };
        let several = places.len() > 1;
        for (namespace, labels, suffix) in places {
            let mut spec = json!({"action": action});
            // An ALLOW without rules allows nothing, which is meant.
            if !rules.is_empty() {
                spec["rules"] = Value::Array(rules.to_vec());
            }
            if labels != json!({}) {
                spec["selector"] = labels;
            }
            let name = match (several, suffix.is_empty()) {
                (true, false) => format!("{}-{suffix}", policy.name.name),
                _ => policy.name.name.clone(),
            };
            let object = json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {}, "spec": spec,
            });
            self.push(&namespace, &name, object);
        }
    }

    fn mesh_rule(&mut self, policy: &Policy, rule: &At<Rule>, whose: &[IdPattern], field: &str) -> Option<Value> {
        if rule.expires.is_some() {
            let reason = "nothing ends by itself there, so nothing is allowed by it";
            self.find(policy, rule, field, Errs::Stricter, reason);
            return None;
        }
        let sources = self.sources(policy, &rule.peers, &format!("{field}.from"), Errs::Stricter);
        let ports = self.mesh_ports(policy, &rule.ports, whose, &format!("{field}.ports"), Errs::Stricter)?;
        let mut from = Vec::new();
        for (key, list) in [("principals", &sources.principals), ("ipBlocks", &sources.blocks)] {
            if !list.is_empty() {
                from.push(json!({"source": {key: list}}));
            }
        }
        if from.is_empty() && !sources.anybody {
            return None;
        }
        let mut written = json!({});
        if !sources.anybody {
            written["from"] = Value::Array(from);
        }
        if let Some(ports) = ports {
            written["to"] = json!([{"operation": {"ports": ports}}]);
        }
        Some(written)
    }

    /// Peers as sources; what can't be one errs on that side.
    fn sources(&mut self, policy: &Policy, peers: &[At<Peer>], field: &str, errs: Errs) -> Sources {
        let mut sources = Sources::default();
        let any_id = peers.iter().any(|p| matches!(&p.value, Peer::Id(id) if id.is_any()));
        let classes = peers.iter().filter(|p| matches!(p.value, Peer::Class(_))).count();
        if any_id && classes == bulkhead_common::Class::ALL.len() {
            return Sources { anybody: true, ..Sources::default() };
        }
        for peer in peers {
            match &peer.value {
                Peer::Id(pattern) => match principal(pattern) {
                    Some(text) => sources.principals.push(text),
                    None => {
                        let ids = self.estate.ids(|_, id| pattern.matches(id));
                        let plain =
                            |id: &crate::identity::SpiffeId| id.as_str().trim_start_matches("spiffe://").to_owned();
                        sources.principals.extend(ids.iter().map(plain));
                        let reason = format!("{pattern} can't be said there: it stands for who there is at present");
                        self.find(policy, peer, field, errs, reason);
                    }
                },
                Peer::Cidr { net, except } => {
                    let inside = !self.estate.inside(net, except).is_empty() || self.estate.nodes_inside(net, except);
                    if errs == Errs::Stricter && (inside || !except.is_empty()) {
                        let reason = format!("{net} would be more there: nothing is allowed by it");
                        self.find(policy, peer, field, errs, reason);
                    } else {
                        sources.blocks.push(net.to_string());
                    }
                }
                Peer::Class(class) => {
                    let reason = format!("`{}` can't be said there, so it is left out", class.as_str());
                    self.find(policy, peer, field, errs, reason);
                }
            }
        }
        sources
    }

    /// `None`: nothing is left.
    fn mesh_ports(
        &mut self,
        policy: &Policy,
        ports: &Ports,
        whose: &[IdPattern],
        field: &str,
        errs: Errs,
    ) -> Option<Option<Vec<String>>> {
        let Some(list) = ports else { return Some(None) };
        let mut all = Vec::new();
        for spec in list {
            let PortSpec { proto, ports } = &spec.value;
            if *proto != proto::TCP {
                let reason = "a mesh judges TCP alone, so this is left out";
                self.find(policy, spec, field, Errs::Looser, reason);
                continue;
            }
            match ports {
                PortRange::All => return Some(None),
                PortRange::Range(a, b) if b - a < LONGEST => all.extend((*a..=*b).map(|n| n.to_string())),
                PortRange::Range(..) => {
                    let reason = format!("ranges are written port by port there, and more than {LONGEST} are left out");
                    self.find(policy, spec, field, errs, reason);
                }
                PortRange::Named(name) => {
                    let meaning = self.estate.meaning(name, Some(whose));
                    let tcp = meaning.ports.iter().filter(|(p, _)| *p == proto::TCP).map(|(_, n)| n.to_string());
                    if meaning.unclear.is_empty() && meaning.ports.len() <= 1 {
                        all.extend(tcp);
                    } else {
                        let reason = format!("`{name}` means several ports, and there is no name for ports there");
                        self.find(policy, spec, field, errs, reason);
                        if errs == Errs::Looser {
                            all.extend(tcp);
                        }
                    }
                }
            }
        }
        (!all.is_empty()).then_some(Some(all))
    }

    fn mesh_deny(&mut self, policy: &Policy, deny: &At<Deny>, field: &str) {
        let ids = |peers: &[At<Peer>]| -> Vec<IdPattern> {
            let id = |p: &At<Peer>| match &p.value {
                Peer::Id(id) => Some(id.clone()),
                _ => None,
            };
            peers.iter().filter_map(id).collect()
        };
        let to = ids(&deny.to);
        if to.len() < deny.to.len() {
            let reason = "a mesh judges at workloads alone: what isn't one can be reached";
            self.find(policy, deny, format!("{field}.to"), Errs::Looser, reason);
        }
        let sources = self.sources(policy, &deny.from, &format!("{field}.from"), Errs::Looser);
        let Some(ports) = self.mesh_ports(policy, &deny.ports, &to, &format!("{field}.ports"), Errs::Looser) else {
            return;
        };
        let mut not = Vec::new();
        for except in &deny.except {
            let from = except.from.as_deref().filter(|_| except.to.is_none() && except.ports.is_none());
            let said: Option<Vec<String>> = from.and_then(|list| {
                list.iter()
                    .map(|p| match &p.value {
                        Peer::Id(id) => principal(id),
                        _ => None,
                    })
                    .collect()
            });
            match said {
                Some(list) => not.extend(list),
                None => {
                    let reason = "this exception can't be said there, so the deny has none of it";
                    self.find(policy, except, format!("{field}.except"), Errs::Stricter, reason);
                }
            }
        }
        let mut from = Vec::new();
        for (key, list) in [("principals", &sources.principals), ("ipBlocks", &sources.blocks)] {
            if !list.is_empty() {
                from.push(json!({"source": {key: list}}));
            }
        }
        if sources.anybody {
            from.push(json!({"source": {}}));
        }
        if from.is_empty() || to.is_empty() {
            return;
        }
        for source in from.iter_mut().filter(|_| !not.is_empty()) {
            source["source"]["notPrincipals"] = json!(not);
        }
        let mut rule = json!({});
        if !from.contains(&json!({"source": {}})) {
            rule["from"] = Value::Array(from);
        }
        if let Some(ports) = ports {
            rule["to"] = json!([{"operation": {"ports": ports}}]);
        }
        self.place(policy, &to, None, "DENY", &[rule], field);
    }
}

/// A pattern as a principal; `None` where a mesh has no pattern for it.
fn principal(pattern: &IdPattern) -> Option<String> {
    let text = pattern.as_str().trim_start_matches("spiffe://");
    if pattern.is_any() {
        return Some("*".to_owned());
    }
    if pattern.is_exact() {
        return Some(text.to_owned());
    }
    // The IDs of a mesh have no more segments than a namespace and an account.
    let prefix = text
        .strip_suffix("/*/**")
        .or_else(|| text.strip_suffix("/**"))
        .or_else(|| text.strip_suffix("/sa/*").filter(|t| !t.contains('*')).map(|_| &text[..text.len() - 2]));
    if let Some(prefix) = prefix.filter(|p| !p.contains('*')) {
        return Some(format!("{prefix}/*"));
    }
    let suffix = text.strip_prefix("*/**/").or_else(|| text.strip_prefix("*/"));
    suffix.filter(|s| !s.contains('*')).map(|s| format!("*/{s}"))
}
