//! What was woven as files of policies: one per namespace and one for the whole cluster, in the order of the names.

use super::resolve::Ports;
use super::weave::{Deny, Except, Rule, Woven};
use crate::policy::document::API_VERSION;
use crate::policy::model::{Kind, Peer, PortRange, PortSpec, protocol_name};
use crate::policy::{IdPattern, Mode};
use std::collections::{BTreeMap, BTreeSet};

/// One file of policies.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct File {
    /// What it should be called.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// The file for the whole cluster; no namespace can be called so.
const CLUSTER: &str = "_cluster";
/// How many items a list may have in a cluster.
const LONGEST: usize = 256;

/// Writes all.
pub(super) fn write(woven: Vec<Woven>, mode: Mode) -> Vec<File> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut taken: BTreeSet<(Kind, String, String)> = BTreeSet::new();
    for policy in woven.into_iter().flat_map(parts) {
        let numbered = (2..).map(|n| format!("{}-{n}", policy.name));
        let mut names = std::iter::once(policy.name.clone()).chain(numbered);
        let free = |n: &String| taken.insert((policy.kind, policy.namespace.clone(), n.clone()));
        let name = names.find(free).unwrap_or_else(|| policy.name.clone());
        let file = if policy.namespace.is_empty() { CLUSTER } else { &policy.namespace };
        let text = files.entry(file.to_owned()).or_insert_with(|| HEAD.to_owned());
        one(text, &policy, &name, mode);
    }
    files.into_iter().map(|(file, text)| File { file: format!("{file}.yaml"), text }).collect()
}

const HEAD: &str = "# Written by `bulkhead policy import`: labels stand for who there was then. docs/importing.md tells what\n\
                    # isn't carried.\n";

/// The same in pieces that a cluster takes.
fn parts(policy: Woven) -> Vec<Woven> {
    if policy.selector.len() <= LONGEST {
        return vec![policy];
    }
    let part = |ids: &[IdPattern]| Woven { selector: ids.to_vec(), ..policy.clone() };
    policy.selector.chunks(LONGEST).map(part).collect()
}

fn line(text: &mut String, indent: usize, what: &str) {
    text.push_str(&" ".repeat(indent));
    text.push_str(what);
    text.push('\n');
}

fn one(text: &mut String, policy: &Woven, name: &str, mode: Mode) {
    let Woven { kind, namespace, name: _, description, selector, ingress, egress, denies } = policy;
    line(text, 0, "---");
    line(text, 0, &format!("apiVersion: {API_VERSION}"));
    line(text, 0, &format!("kind: {}", kind.as_str()));
    line(text, 0, "metadata:");
    // A name such as `123` or `on` is a text, too.
    line(text, 2, &format!("name: \"{name}\""));
    if !namespace.is_empty() {
        line(text, 2, &format!("namespace: \"{namespace}\""));
    }
    line(text, 0, "spec:");
    line(text, 2, &format!("mode: {}", mode.as_str()));
    line(text, 2, &format!("description: \"{description}\""));
    if !selector.is_empty() {
        line(text, 2, "selector:");
        line(text, 4, "ids:");
        for id in selector {
            line(text, 6, &format!("- \"{id}\""));
        }
    }
    for (section, ends, list) in [("ingress", "from", ingress), ("egress", "to", egress)] {
        match list.as_deref() {
            None => {}
            Some([]) => {
                line(text, 2, &format!("{section}: {{}}"));
            }
            Some(list) => rules(text, section, ends, list),
        }
    }
    if !denies.is_empty() {
        text.push_str("  denies:\n");
        for deny in denies {
            write_deny(text, deny);
        }
    }
}

fn rules(text: &mut String, section: &str, ends: &str, list: &[Rule]) {
    line(text, 2, &format!("{section}:"));
    line(text, 4, "rules:");
    for rule in list {
        for peers in rule.peers.chunks(LONGEST) {
            line(text, 6, &format!("- {ends}:"));
            write_peers(text, 10, peers);
            write_ports(text, 8, &rule.ports);
        }
    }
}

fn write_deny(text: &mut String, deny: &Deny) {
    for from in deny.from.chunks(LONGEST) {
        for to in deny.to.chunks(LONGEST) {
            text.push_str("    - from:\n");
            write_peers(text, 8, from);
            text.push_str("      to:\n");
            write_peers(text, 8, to);
            write_ports(text, 6, &deny.ports);
            if !deny.except.is_empty() {
                text.push_str("      except:\n");
            }
            for Except { from, to, ports } in &deny.except {
                let mut sign = "- ";
                for (word, peers) in [("from", from), ("to", to)] {
                    if let Some(peers) = peers {
                        line(text, 8, &format!("{sign}{word}:"));
                        write_peers(text, 12, peers);
                        sign = "  ";
                    }
                }
                if ports.is_some() {
                    let mut part = String::new();
                    write_ports(&mut part, 10, ports);
                    if sign == "- " {
                        part.replace_range(8..9, "-");
                    }
                    text.push_str(&part);
                }
            }
        }
    }
}

fn write_peers(text: &mut String, indent: usize, peers: &[Peer]) {
    for peer in peers {
        let what = match peer {
            Peer::Id(id) => format!("id: \"{id}\""),
            Peer::Class(class) => format!("class: {}", class.as_str()),
            Peer::Cidr { net, except } if except.is_empty() => format!("cidr: \"{net}\""),
            Peer::Cidr { net, except } => {
                let except: Vec<String> = except.iter().map(|e| format!("\"{e}\"")).collect();
                format!("{{cidr: \"{net}\", except: [{}]}}", except.join(", "))
            }
        };
        line(text, indent, &format!("- {what}"));
    }
}

fn write_ports(text: &mut String, indent: usize, ports: &Ports) {
    let Some(ports) = ports else { return };
    line(text, indent, "ports:");
    for PortSpec { proto, ports } in ports {
        let protocol = protocol_name(*proto);
        let what = match ports {
            PortRange::All => format!("{{protocol: {protocol}}}"),
            PortRange::Range(first, last) if first == last => format!("{{protocol: {protocol}, port: {first}}}"),
            PortRange::Range(first, last) => format!("{{protocol: {protocol}, port: {first}, endPort: {last}}}"),
            PortRange::Named(name) => format!("{{protocol: {protocol}, port: \"{name}\"}}"),
        };
        line(text, indent + 2, &format!("- {what}"));
    }
}
