//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2), and what it was called before: AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy (v1alpha1).

use super::estate::Scope;
use super::model::{Action, Clause, Everything, Ordered, Peer, Pods, Port, Source, Tier};
use super::network::{name, net, number, protocol, range};
use super::selector::Selector;
use super::tree::{Fields, Reader, Spot, Value};
use bulkhead_common::proto;

/// Which of the kinds it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Cluster,
    Admin,
    Baseline,
}

/// Reads the spec of any of them.
pub(super) fn read(reader: &mut Reader, source: Source, form: Form, mut spec: Fields, all: &mut Everything) {
    let tier = match form {
        Form::Admin => Some(Tier::Admin),
        Form::Baseline => Some(Tier::Baseline),
        Form::Cluster => match spec.take("tier") {
            Some(v) => {
                let spot = v.spot.clone();
                match reader.text(v).as_deref() {
                    Some("Admin") => Some(Tier::Admin),
                    Some("Baseline") => Some(Tier::Baseline),
                    _ => {
                        reader.fault(&spot, "no such tier", "Admin or Baseline");
                        None
                    }
                }
            }
            None => missing(reader, &spec.spot, "tier"),
        },
    };
    let priority = match (form, spec.take("priority")) {
        (Form::Baseline, None) => None,
        (_, Some(v)) => reader.number(v),
        (_, None) => missing(reader, &spec.spot, "priority"),
    };
    let subject = match spec.take("subject") {
        Some(v) => pods(reader, v),
        None => missing(reader, &spec.spot, "subject"),
    };
    let ingress = rules(reader, form, &mut spec, "ingress", "from");
    let egress = rules(reader, form, &mut spec, "egress", "to");
    reader.finish(spec);
    if let (Some(tier), Some(subject)) = (tier, subject) {
        all.ordered.push(Ordered { source, tier, priority, subject, ingress, egress });
    }
}

fn missing<T>(reader: &mut Reader, spot: &Spot, name: &str) -> Option<T> {
    reader.fault(spot, format!("`{}` has no `{name}`", spot.path), format!("add `{name}`"));
    None
}

/// `namespaces` or `pods`: exactly one.
fn pods(reader: &mut Reader, value: Value) -> Option<Pods> {
    let mut fields = reader.map(value);
    let spot = fields.spot.clone();
    let both = (fields.take("namespaces"), fields.take("pods"));
    reader.finish(fields);
    match both {
        (Some(v), None) => {
            Some(Pods { spot, scope: Scope::Matching(Selector::read(reader, v)), pods: Selector::default() })
        }
        (None, Some(v)) => Some(namespaced(reader, spot, v)),
        _ => {
            reader.fault(
                &spot,
                format!("`{}` says nothing that is known", spot.path),
                "exactly one of namespaces and pods",
            );
            None
        }
    }
}

fn namespaced(reader: &mut Reader, spot: Spot, value: Value) -> Pods {
    let mut fields = reader.map(value);
    let scope = fields.take("namespaceSelector").map(|v| Selector::read(reader, v)).unwrap_or_default();
    let pods = fields.take("podSelector").map(|v| Selector::read(reader, v)).unwrap_or_default();
    reader.finish(fields);
    Pods { spot, scope: Scope::Matching(scope), pods }
}

fn rules(reader: &mut Reader, form: Form, spec: &mut Fields, section: &str, ends: &str) -> Vec<Clause> {
    let list = spec.take(section).map(|v| reader.list(v)).unwrap_or_default();
    list.into_iter().filter_map(|item| rule(reader, form, item, ends)).collect()
}

fn rule(reader: &mut Reader, form: Form, item: Value, ends: &str) -> Option<Clause> {
    let mut rule = reader.map(item);
    let spot = rule.spot.clone();
    // For people.
    drop(rule.take("name"));
    let action = rule.take("action");
    let peers = rule.take(ends);
    let ports = rule.take(if form == Form::Cluster { "protocols" } else { "ports" });
    reader.finish(rule);
    let action = match action.map(|v| (v.spot.clone(), reader.text(v).unwrap_or_default())) {
        None => return missing(reader, &spot, "action"),
        Some((at, word)) => match (word.as_str(), form) {
            ("Accept", Form::Cluster) => Action::Accept,
            ("Allow", Form::Admin | Form::Baseline) => Action::Accept,
            ("Deny", _) => Action::Deny,
            ("Pass", Form::Cluster | Form::Admin) => Action::Pass,
            _ => {
                reader.fault(&at, format!("`{word}` is no action of this kind"), "see the kind's reference");
                return None;
            }
        },
    };
    let peers = match peers.map(|v| reader.list(v)) {
        Some(list) if !list.is_empty() => list.into_iter().flat_map(|v| peer(reader, v, ends == "to")).collect(),
        _ => {
            let hint = "name at least one peer: none would mean nobody, and not \"any\"";
            reader.fault(&spot, format!("`{}.{ends}` names nobody", spot.path), hint);
            return None;
        }
    };
    let ports = match ports.map(|v| reader.list(v)) {
        Some(list) if !list.is_empty() => {
            let read = if form == Form::Cluster { protocols } else { port };
            Some(list.into_iter().filter_map(|v| Some((v.spot.clone(), read(reader, v)?))).collect())
        }
        _ => None,
    };
    let peers: Vec<(Spot, Peer)> = peers;
    for (at, _) in peers.iter().filter(|(_, p)| action != Action::Accept && *p == Peer::Domains) {
        reader.fault(at, "domainNames can only be accepted", "name networks instead");
    }
    Some(Clause { spot, action, peers, ports, unless: Vec::new() })
}

fn peer(reader: &mut Reader, value: Value, outward: bool) -> Vec<(Spot, Peer)> {
    let mut fields = reader.map(value);
    let spot = fields.spot.clone();
    let one = (fields.take("namespaces"), fields.take("pods"));
    let out = match outward {
        true => (fields.take("nodes"), fields.take("networks"), fields.take("domainNames")),
        false => (None, None, None),
    };
    reader.finish(fields);
    let peer = match (one, out) {
        ((Some(v), None), (None, None, None)) => {
            let scope = Scope::Matching(Selector::read(reader, v));
            Peer::Pods(Pods { spot: spot.clone(), scope, pods: Selector::default() })
        }
        ((None, Some(v)), (None, None, None)) => Peer::Pods(namespaced(reader, spot.clone(), v)),
        ((None, None), (Some(v), None, None)) => Peer::Nodes(Selector::read(reader, v)),
        ((None, None), (None, Some(v), None)) => {
            let nets = reader.list(v);
            let block = |v: Value| Some((v.spot.clone(), Peer::Block { net: net(reader, v)?, except: Vec::new() }));
            return nets.into_iter().filter_map(block).collect();
        }
        ((None, None), (None, None, Some(v))) => {
            drop(reader.texts(v));
            Peer::Domains
        }
        _ => {
            reader.fault(&spot, format!("`{}` says nothing that is known", spot.path), "exactly one kind of peer");
            return Vec::new();
        }
    };
    vec![(spot, peer)]
}

/// v1alpha1.
fn port(reader: &mut Reader, value: Value) -> Option<Port> {
    let mut fields = reader.map(value);
    let spot = fields.spot.clone();
    let one = (fields.take("portNumber"), fields.take("portRange"), fields.take("namedPort"));
    reader.finish(fields);
    match one {
        (Some(v), None, None) => {
            let mut fields = reader.map(v);
            let proto = fields.take("protocol");
            let (proto, port) = (protocol(reader, proto), fields.take("port").and_then(|v| number(reader, v)));
            reader.finish(fields);
            let Some(port) = port else { return missing(reader, &spot, "port") };
            Some(Port::Range(proto?, port, port))
        }
        (None, Some(v), None) => {
            let mut fields = reader.map(v);
            let proto = fields.take("protocol");
            let proto = protocol(reader, proto);
            let ends = ends(reader, &mut fields);
            reader.finish(fields);
            let (first, last) = ends?;
            range(reader, &spot, proto?, first, last)
        }
        (None, None, Some(v)) => Some(Port::Named(NAMED.to_vec(), name(reader, v)?)),
        _ => {
            let hint = "exactly one of portNumber, portRange and namedPort";
            reader.fault(&spot, format!("`{}` is no port", spot.path), hint);
            None
        }
    }
}

/// A name alone says no protocol.
const NAMED: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];

fn ends(reader: &mut Reader, fields: &mut Fields) -> Option<(u16, u16)> {
    let (start, end) = (fields.take("start"), fields.take("end"));
    match (start, end) {
        (Some(start), Some(end)) => Some((number(reader, start)?, number(reader, end)?)),
        _ => missing(reader, &fields.spot, "start` and `end"),
    }
}

/// v1alpha2.
fn protocols(reader: &mut Reader, value: Value) -> Option<Port> {
    let mut fields = reader.map(value);
    let spot = fields.spot.clone();
    let protocols = [("tcp", proto::TCP), ("udp", proto::UDP), ("sctp", proto::SCTP)];
    let given: Vec<(u8, Value)> = protocols.into_iter().filter_map(|(w, n)| Some((n, fields.take(w)?))).collect();
    let named = fields.take("destinationNamedPort");
    reader.finish(fields);
    let (several, first) = (given.len() > 1, given.into_iter().next());
    match (first, named) {
        (Some((proto, v)), None) if !several => {
            let mut fields = reader.map(v);
            let port = fields.take("destinationPort");
            reader.finish(fields);
            let Some(port) = port else { return Some(Port::All(proto)) };
            let mut fields = reader.map(port);
            let spot = fields.spot.clone();
            let one = (fields.take("number"), fields.take("range"));
            reader.finish(fields);
            match one {
                (Some(v), None) => number(reader, v).map(|n| Port::Range(proto, n, n)),
                (None, Some(v)) => {
                    let mut fields = reader.map(v);
                    let ends = ends(reader, &mut fields);
                    reader.finish(fields);
                    let (first, last) = ends?;
                    range(reader, &spot, proto, first, last)
                }
                _ => {
                    reader.fault(&spot, format!("`{}` is no port", spot.path), "exactly one of number and range");
                    None
                }
            }
        }
        (None, Some(v)) => Some(Port::Named(NAMED.to_vec(), name(reader, v)?)),
        _ => {
            let hint = "exactly one of tcp, udp, sctp and destinationNamedPort";
            reader.fault(&spot, format!("`{}` is no protocol", spot.path), hint);
            None
        }
    }
}
