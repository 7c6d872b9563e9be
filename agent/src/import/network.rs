//! NetworkPolicy (networking.k8s.io/v1), and what its peers and ports share with the kinds of the tiers.

use super::estate::Scope;
use super::model::{Action, Clause, Everything, Isolation, Peer, Pods, Port, Source};
use super::selector::Selector;
use super::tree::{Fields, Node, Reader, Spot, Value};
use crate::policy::convert::is_port_name;
use bulkhead_common::proto;
use ipnet::IpNet;

/// Reads a NetworkPolicy's spec.
pub(super) fn read(reader: &mut Reader, source: Source, mut spec: Fields, all: &mut Everything) {
    let own = Scope::Own(source.namespace.clone());
    let subject = match spec.take("podSelector") {
        Some(v) => Pods { spot: v.spot.clone(), scope: own, pods: Selector::read(reader, v) },
        None => Pods { spot: spec.spot.clone(), scope: own, pods: Selector::default() },
    };
    let types = spec.take("policyTypes").map(|v| reader.texts(v)).unwrap_or_default();
    let ingress = rules(reader, &source, &mut spec, "ingress", "from");
    let egress = rules(reader, &source, &mut spec, "egress", "to");
    reader.finish(spec);
    for (spot, word) in &types {
        if !matches!(word.as_str(), "Ingress" | "Egress") {
            reader.fault(spot, format!("`{word}` is no policy type"), "Ingress or Egress");
        }
    }
    // As the API server fills it in: ingress always, egress if there are rules for it.
    let has = |word: &str| types.iter().any(|(_, t)| t == word);
    let (isolates_ingress, isolates_egress) =
        if types.is_empty() { (true, !egress.is_empty()) } else { (has("Ingress"), has("Egress")) };
    all.isolations.push(Isolation {
        source,
        subject,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
    });
}

fn rules(reader: &mut Reader, source: &Source, spec: &mut Fields, section: &str, ends: &str) -> Vec<Clause> {
    let list = spec.take(section).map(|v| reader.list(v)).unwrap_or_default();
    let mut clauses = Vec::new();
    for item in list {
        let mut rule = reader.map(item);
        let spot = rule.spot.clone();
        let peers = rule.take(ends).map(|v| reader.list(v)).unwrap_or_default();
        let ports = rule.take("ports").map(|v| reader.list(v)).unwrap_or_default();
        reader.finish(rule);
        let peers = match peers.is_empty() {
            true => vec![(spot.clone(), Peer::Anybody)],
            false => peers.into_iter().filter_map(|v| peer(reader, source, v)).collect(),
        };
        let ports = match ports.is_empty() {
            true => None,
            false => Some(ports.into_iter().filter_map(|v| port(reader, v)).collect()),
        };
        clauses.push(Clause { spot, action: Action::Accept, peers, ports, unless: Vec::new() });
    }
    clauses
}

fn peer(reader: &mut Reader, source: &Source, value: Value) -> Option<(Spot, Peer)> {
    let mut fields = reader.map(value);
    let spot = fields.spot.clone();
    let pods = fields.take("podSelector").map(|v| Selector::read(reader, v));
    let namespaces = fields.take("namespaceSelector").map(|v| Selector::read(reader, v));
    let block = fields.take("ipBlock");
    reader.finish(fields);
    let peer = match (pods, namespaces, block) {
        (None, None, Some(v)) => {
            let mut fields = reader.map(v);
            let block = fields.take("cidr");
            let except = fields.take("except").map(|v| reader.list(v)).unwrap_or_default();
            let except: Vec<(Spot, IpNet)> =
                except.into_iter().filter_map(|v| Some((v.spot.clone(), net(reader, v)?))).collect();
            let at = fields.spot.clone();
            reader.finish(fields);
            let Some(block) = block else {
                reader.fault(&at, "an ipBlock without a cidr", "name the `cidr`");
                return None;
            };
            let block = net(reader, block)?;
            for (spot, e) in &except {
                if !block.contains(e) || *e == block {
                    reader.fault(spot, format!("{e} isn't a part of {block}"), "an exception lies inside its `cidr`");
                }
            }
            Peer::Block { net: block, except: except.into_iter().map(|(_, e)| e).collect() }
        }
        (pods, namespaces, None) if pods.is_some() || namespaces.is_some() => Peer::Pods(Pods {
            spot: spot.clone(),
            scope: namespaces.map_or_else(|| Scope::Own(source.namespace.clone()), Scope::Matching),
            pods: pods.unwrap_or_default(),
        }),
        _ => {
            let hint = "a peer is an ipBlock, or a podSelector, a namespaceSelector or both";
            reader.fault(&spot, format!("`{}` is no peer", spot.path), hint);
            return None;
        }
    };
    Some((spot, peer))
}

/// A CIDR; what stands behind the prefix counts for nothing.
pub(super) fn net(reader: &mut Reader, value: Value) -> Option<IpNet> {
    let spot = value.spot.clone();
    let text = reader.text(value)?;
    match text.parse::<IpNet>() {
        Ok(IpNet::V6(v6)) if v6.addr().to_ipv4_mapped().is_some() && v6.prefix_len() >= 96 => {
            reader.fault(&spot, format!("`{text}` is an IPv4 prefix in disguise"), "write it as an IPv4 prefix");
            None
        }
        Ok(net) => Some(net.trunc()),
        Err(_) => {
            reader.fault(&spot, format!("`{text}` isn't a CIDR"), "for example 192.0.2.0/24 or 2001:db8::/32");
            None
        }
    }
}

/// The protocol of that name.
pub(super) fn protocol(reader: &mut Reader, value: Option<Value>) -> Option<u8> {
    let Some(value) = value else { return Some(proto::TCP) };
    let spot = value.spot.clone();
    match reader.text(value)?.as_str() {
        "TCP" => Some(proto::TCP),
        "UDP" => Some(proto::UDP),
        "SCTP" => Some(proto::SCTP),
        other => {
            reader.fault(&spot, format!("`{other}` is no protocol here"), "TCP, UDP or SCTP");
            None
        }
    }
}

/// The number of a port.
pub(super) fn number(reader: &mut Reader, value: Value) -> Option<u16> {
    let spot = value.spot.clone();
    let n = reader.number(value)?;
    let port = u16::try_from(n).ok().filter(|p| *p > 0);
    if port.is_none() {
        reader.fault(&spot, format!("{n} isn't a port"), "ports are 1 to 65535");
    }
    port
}

/// From the first to the last.
pub(super) fn range(reader: &mut Reader, spot: &Spot, proto: u8, first: u16, last: u16) -> Option<Port> {
    if last < first {
        reader.fault(spot, format!("the range {first}-{last} is reversed"), "the lower number comes first");
        return None;
    }
    Some(Port::Range(proto, first, last))
}

/// The name of a port.
pub(super) fn name(reader: &mut Reader, value: Value) -> Option<String> {
    let spot = value.spot.clone();
    let name = reader.text(value)?;
    if is_port_name(&name) {
        return Some(name);
    }
    reader.fault(&spot, format!("`{name}` can't be a port's name"), "a number stands without quotes");
    None
}

fn port(reader: &mut Reader, value: Value) -> Option<(Spot, Port)> {
    let mut fields = reader.map(value);
    let spot = fields.spot.clone();
    let proto = fields.take("protocol");
    let proto = protocol(reader, proto);
    let (port, end) = (fields.take("port"), fields.take("endPort"));
    reader.finish(fields);
    let proto = proto?;
    let port = match (port, end) {
        (None, None) => Port::All(proto),
        (Some(v), None) if matches!(v.node, Node::Text(_)) => Port::Named(vec![proto], name(reader, v)?),
        (Some(v), end) => {
            let first = number(reader, v)?;
            let last = match end {
                Some(v) => number(reader, v)?,
                None => first,
            };
            range(reader, &spot, proto, first, last)?
        }
        (None, Some(end)) => {
            reader.fault(&end.spot, "`endPort` without `port`", "name the `port` that the range begins with");
            return None;
        }
    };
    Some((spot, port))
}
