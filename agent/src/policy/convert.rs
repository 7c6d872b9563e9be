//! From documents to the checked model, all or nothing: either every part of a document has a meaning, or none of it
//! is taken and each fault is named. Each input struct is taken apart completely, so a new field can't be forgotten.

mod outline;

pub use outline::{isolated, outlined_name};

use super::diagnostic::{At, Diagnostic, Severity};
use super::document::{
    self as doc, API_VERSION, ClusterSegmentationPolicySpec, Metadata, Object, SegmentationPolicySpec,
};
use super::model::{
    Deny, Edge, Except, Kind, Peer, Policy, PolicyName, PortRange, PortSpec, Ports, Rule, listed, ports_listed,
};
use super::pattern::IdPattern;
use crate::time::{parse_rfc3339, rfc3339};
use bulkhead_common::slots::Baseline;
use bulkhead_common::{Class, proto};
use ipnet::{IpNet, Ipv4Net};
use std::sync::Arc;

/// Checks a `SegmentationPolicy`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn namespaced(file: &Arc<str>, object: Object<SegmentationPolicySpec>) -> Result<Policy, Vec<Diagnostic>> {
    let Object { api_version, kind, metadata, spec } = object;
    let SegmentationPolicySpec { mode, description, selector, ingress, egress, sockets, expires_at } = spec;
    let mut c = Checker::new(file);
    c.head(&api_version, &kind, Kind::SegmentationPolicy);
    let policy = Policy {
        name: c.name(Kind::SegmentationPolicy, metadata),
        file: Arc::clone(file),
        mode,
        description,
        selector: c.selector(selector),
        ingress: c.ingress(ingress),
        egress: c.egress(egress),
        edges: Vec::new(),
        denies: Vec::new(),
        sockets: c.sockets(sockets),
        expires: c.time(expires_at),
    };
    c.finish(policy)
}

/// Checks a `ClusterSegmentationPolicy`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn cluster(file: &Arc<str>, object: Object<ClusterSegmentationPolicySpec>) -> Result<Policy, Vec<Diagnostic>> {
    let Object { api_version, kind, metadata, spec } = object;
    let ClusterSegmentationPolicySpec {
        mode,
        description,
        selector,
        ingress,
        egress,
        edges,
        denies,
        sockets,
        expires_at,
    } = spec;
    let mut c = Checker::new(file);
    c.head(&api_version, &kind, Kind::ClusterSegmentationPolicy);
    if selector.is_none() && (ingress.is_some() || egress.is_some() || sockets.is_some()) {
        c.error(&metadata.name, "`ingress`, `egress` and `sockets` need a `selector`", "add `selector: {ids: [...]}`");
    }
    let policy = Policy {
        name: c.name(Kind::ClusterSegmentationPolicy, metadata),
        file: Arc::clone(file),
        mode,
        description,
        selector: selector.map(|s| c.selector(s)).unwrap_or_default(),
        ingress: c.ingress(ingress),
        egress: c.egress(egress),
        edges: edges.map(|list| c.full(list, "edges", Checker::edge)).unwrap_or_default(),
        denies: denies.map(|list| c.full(list, "denies", Checker::deny)).unwrap_or_default(),
        sockets: c.sockets(sockets),
        expires: c.time(expires_at),
    };
    c.finish(policy)
}

/// Gathers faults, so that one run shows them all.
struct Checker {
    file: Arc<str>,
    faults: Vec<Diagnostic>,
}

impl Checker {
    fn new(file: &Arc<str>) -> Self {
        Self { file: Arc::clone(file), faults: Vec::new() }
    }

    fn finish<T>(self, value: T) -> Result<T, Vec<Diagnostic>> {
        if self.faults.is_empty() { Ok(value) } else { Err(self.faults) }
    }

    fn error<T>(&mut self, at: &At<T>, message: impl Into<String>, hint: impl Into<String>) {
        self.faults.push(at.diagnose(&self.file, Severity::Error, message, hint));
    }

    fn head(&mut self, api_version: &At<String>, kind: &At<String>, expected: Kind) {
        if **api_version != API_VERSION {
            self.error(
                api_version,
                format!("apiVersion `{}` isn't known", **api_version),
                format!("write `apiVersion: {API_VERSION}`"),
            );
        }
        if **kind != expected.as_str() {
            let message = format!("`{}` was read as a {}", **kind, expected.as_str());
            self.error(kind, message, format!("write `kind: {}`", expected.as_str()));
        }
    }

    /// A list that must have something in it, each item converted.
    fn full<T, U>(
        &mut self,
        list: At<Vec<At<T>>>,
        name: &str,
        each: fn(&mut Self, At<T>) -> Option<At<U>>,
    ) -> Vec<At<U>> {
        if list.is_empty() {
            let message = format!("`{name}` is an empty list, which would mean nothing and not \"any\"");
            self.error(&list, message, format!("write at least one item, or leave `{name}` out"));
        }
        let mut all = Vec::with_capacity(list.len());
        // Not `collect`, which would keep the room of what was read: that is several times as large.
        all.extend(list.value.into_iter().filter_map(|item| each(self, item)));
        all
    }

    fn name(&mut self, kind: Kind, metadata: Metadata) -> At<Arc<PolicyName>> {
        let Metadata { name, namespace, labels: _, annotations: _ } = metadata;
        self.named(kind, name, namespace)
    }

    fn named(&mut self, kind: Kind, name: At<String>, namespace: Option<At<String>>) -> At<Arc<PolicyName>> {
        if !is_object_name(&name) {
            let message = format!("`{}` can't be a name", *name);
            self.error(&name, message, "use a-z, 0-9, '-' and '.', starting and ending with a letter or digit");
        }
        if let Some(ns) = &namespace {
            if kind == Kind::ClusterSegmentationPolicy {
                self.error(ns, "a ClusterSegmentationPolicy has no namespace", "remove `namespace:`");
            } else if !ns.is_empty() && (!is_object_name(ns) || ns.contains('.')) {
                let message = format!("`{}` can't be a namespace", **ns);
                self.error(ns, message, "use a-z, 0-9 and '-', starting and ending with a letter or digit");
            }
        }
        let namespace = namespace.map(|ns| ns.value).unwrap_or_default();
        let place = name.with(());
        place.with(Arc::new(PolicyName { kind, namespace, name: name.value }))
    }

    fn selector(&mut self, selector: At<doc::Selector>) -> Vec<At<IdPattern>> {
        let doc::Selector { ids } = selector.value;
        self.patterns(ids)
    }

    fn patterns(&mut self, ids: At<Vec<At<String>>>) -> Vec<At<IdPattern>> {
        self.full(ids, "ids", |c, id| c.pattern(&id).map(|p| id.with(p)))
    }

    fn pattern(&mut self, text: &At<String>) -> Option<IdPattern> {
        match text.parse() {
            Ok(pattern) => Some(pattern),
            Err(e) => {
                let e: crate::identity::BadSpiffeId = e;
                let message = format!("`{}` is neither a SPIFFE ID nor a pattern: {}", e.text, e.why);
                self.error(
                    text,
                    message,
                    "for example spiffe://example.org/ns/shop/sa/cart or spiffe://example.org/ns/shop/**",
                );
                None
            }
        }
    }

    fn ingress(&mut self, ingress: Option<doc::Ingress>) -> Option<Vec<At<Rule>>> {
        let doc::Ingress { rules } = ingress?;
        let each = |rule: At<doc::IngressRule>| {
            let place = rule.with(());
            let doc::IngressRule { from, ports, expires_at } = rule.value;
            let (peers, ports) = (self.full(from, "from", Self::peer), self.ports(ports));
            let expires = self.time(expires_at);
            let text = format!("from {} on {}{}", listed(&peers), ports_listed(&ports), until(&expires)).into();
            place.with(Rule { peers, ports, text, expires })
        };
        let mut all = Vec::with_capacity(rules.len());
        all.extend(rules.into_iter().map(each));
        Some(all)
    }

    fn egress(&mut self, egress: Option<doc::Egress>) -> Option<Vec<At<Rule>>> {
        let doc::Egress { rules } = egress?;
        let each = |rule: At<doc::EgressRule>| {
            let place = rule.with(());
            let doc::EgressRule { to, ports, expires_at } = rule.value;
            let (peers, ports) = (self.full(to, "to", Self::peer), self.ports(ports));
            let expires = self.time(expires_at);
            let text = format!("to {} on {}{}", listed(&peers), ports_listed(&ports), until(&expires)).into();
            place.with(Rule { peers, ports, text, expires })
        };
        let mut all = Vec::with_capacity(rules.len());
        all.extend(rules.into_iter().map(each));
        Some(all)
    }

    fn edge(&mut self, edge: At<doc::Edge>) -> Option<At<Edge>> {
        let place = edge.with(());
        let doc::Edge { from, to, ports, expires_at } = edge.value;
        let (from, to) = (self.full(from, "from", Self::peer), self.full(to, "to", Self::peer));
        let (ports, expires) = (self.ports(ports), self.time(expires_at));
        let on = ports_listed(&ports);
        let text = format!("from {} to {} on {on}{}", listed(&from), listed(&to), until(&expires)).into();
        Some(place.with(Edge { from, to, ports, text, expires }))
    }

    fn deny(&mut self, deny: At<doc::Deny>) -> Option<At<Deny>> {
        let place = deny.with(());
        let doc::Deny { from, to, ports, except, expires_at } = deny.value;
        let (from, to) = (self.full(from, "from", Self::peer), self.full(to, "to", Self::peer));
        let ports = self.ports(ports);
        let except = except.map(|list| self.full(list, "except", Self::except)).unwrap_or_default();
        let mut text = format!("from {} to {} on {}", listed(&from), listed(&to), ports_listed(&ports));
        for Except { from, to, ports } in except.iter().map(|e| &e.value) {
            text.push_str("; except");
            if let Some(from) = from {
                text.push_str(&format!(" from {}", listed(from)));
            }
            if let Some(to) = to {
                text.push_str(&format!(" to {}", listed(to)));
            }
            if ports.is_some() {
                text.push_str(&format!(" on {}", ports_listed(ports)));
            }
        }
        let expires = self.time(expires_at);
        text.push_str(&until(&expires));
        Some(place.with(Deny { from, to, ports, except, text: text.into(), expires }))
    }

    fn except(&mut self, except: At<doc::Except>) -> Option<At<Except>> {
        let place = except.with(());
        let doc::Except { from, to, ports } = except.value;
        if from.is_none() && to.is_none() && ports.is_none() {
            self.error(&place, "this exception would take back the whole deny", "name `from`, `to` or `ports`");
        }
        let from = from.map(|list| self.full(list, "from", Self::peer));
        let to = to.map(|list| self.full(list, "to", Self::peer));
        Some(place.with(Except { from, to, ports: self.ports(ports) }))
    }

    fn peer(&mut self, peer: At<doc::Peer>) -> Option<At<Peer>> {
        let place = peer.with(());
        let doc::Peer { id, class, cidr, except } = peer.value;
        if let (Some(except), None) = (&except, &cidr) {
            self.error(except, "`except` belongs to a `cidr`", "name the `cidr` that it is taken from");
            return None;
        }
        let peer = match (id, class, cidr) {
            (Some(id), None, None) => Peer::Id(self.pattern(&id)?),
            (None, Some(class), None) => match Class::from_name(&class) {
                Some(known) => Peer::Class(known),
                None => {
                    let known: Vec<_> = Class::ALL.iter().map(|c| c.as_str()).collect();
                    let message = format!("`{}` isn't a class", *class);
                    self.error(&class, message, format!("one of {}", known.join(", ")));
                    return None;
                }
            },
            (None, None, Some(cidr)) => {
                let net = self.net(&cidr)?;
                let except = except.map(|list| self.full(list, "except", |c, n| c.net(&n).map(|net| n.with(net))));
                let except = except.unwrap_or_default();
                for e in &except {
                    if !net.contains(&e.value) || net == e.value {
                        let message = format!("`{}` isn't a part of {net}", e.value);
                        self.error(e, message, "an exception lies inside its `cidr` and is smaller");
                    }
                }
                Peer::Cidr { net, except: except.into_iter().map(|e| e.value).collect() }
            }
            _ => {
                self.error(&place, "a peer is exactly one of `id`, `class` and `cidr`", "write one list item for each");
                return None;
            }
        };
        Some(place.with(peer))
    }

    fn net(&mut self, text: &At<String>) -> Option<IpNet> {
        let net = match text.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => {
                let message = format!("`{}` isn't a CIDR", **text);
                self.error(text, message, "for example 10.0.0.0/8, 192.0.2.7/32 or 2001:db8::/32");
                return None;
            }
        };
        if net.trunc() != net {
            let message = format!("{net} has bits set behind its prefix");
            self.error(text, message, format!("write {}", net.trunc()));
            return None;
        }
        if let IpNet::V6(v6) = net
            && let Some(v4) = v6.addr().to_ipv4_mapped()
            && v6.prefix_len() >= 96
        {
            let plain = Ipv4Net::new(v4, v6.prefix_len() - 96).map_or_else(|_| v4.to_string(), |n| n.to_string());
            self.error(text, format!("{net} is an IPv4 prefix in disguise"), format!("write {plain}"));
            return None;
        }
        Some(net)
    }

    fn ports(&mut self, ports: Option<At<Vec<At<doc::Port>>>>) -> Ports {
        ports.map(|list| self.full(list, "ports", Self::port))
    }

    fn port(&mut self, port: At<doc::Port>) -> Option<At<PortSpec>> {
        let place = port.with(());
        let doc::Port { protocol, port, end_port } = port.value;
        let Some(proto) = protocol.or(port.as_ref().map(|_| doc::Protocol::TCP)).map(number) else {
            self.error(
                &place,
                "neither `protocol` nor `port` is given",
                "for every port of a protocol write `protocol: TCP`",
            );
            return None;
        };
        let ports = match (port, end_port) {
            (None, None) => PortRange::All,
            (None, Some(end)) => {
                self.error(&end, "`endPort` without `port`", "add the `port` that the range begins with");
                return None;
            }
            (Some(port), _) if proto == proto::ICMP => {
                self.error(&port, "ICMP has no ports", "remove `port`");
                return None;
            }
            (Some(At { value: doc::PortValue::Name(name), line, column }), end) => {
                let at = At { value: (), line, column };
                if let Some(end) = end {
                    self.error(&end, "`endPort` with a named port", "a range is between numbers");
                    return None;
                }
                if !is_port_name(&name) {
                    let hint = "a number stands without quotes, a range is `port: 80` with `endPort: 90`, and a name has at \
                                most 15 of a-z, 0-9 and '-', with a letter among them";
                    self.error(&at, format!("`{name}` can't be a port's name"), hint);
                    return None;
                }
                PortRange::Named(name.into())
            }
            (Some(At { value: doc::PortValue::Number(n), line, column }), end) => {
                let first = self.port_number(&At { value: n, line, column })?;
                let last = end.as_ref().map_or(Some(first), |end| self.port_number(end))?;
                if last < first {
                    let message = format!("the range {first}-{last} is reversed");
                    let at = end.map_or(At { value: (), line, column }, |e| e.with(()));
                    self.error(&at, message, format!("write `port: {last}` and `endPort: {first}`"));
                    return None;
                }
                PortRange::Range(first, last)
            }
        };
        Some(place.with(PortSpec { proto, ports }))
    }

    fn port_number(&mut self, n: &At<i64>) -> Option<u16> {
        match u16::try_from(n.value) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.error(
                    n,
                    format!("{} isn't a port", n.value),
                    "ports are 1 to 65535; for all of them leave `port` out",
                );
                None
            }
        }
    }

    /// A time in the past is a time, too: whoever knows the clock says so.
    fn time(&mut self, text: Option<At<String>>) -> Option<At<u64>> {
        let text = text?;
        match parse_rfc3339(&text) {
            Ok(time) => Some(text.with(time)),
            Err(e) => {
                self.error(&text, e, "write a date, a time and a zone, as in 2026-12-31T18:00:00Z");
                None
            }
        }
    }

    fn sockets(&mut self, sockets: Option<At<Vec<doc::SocketKind>>>) -> u8 {
        let Some(kinds) = sockets else { return 0 };
        if kinds.is_empty() {
            self.error(&kinds, "`sockets` is an empty list", "name RAW, SCTP or MPTCP, or leave `sockets` out");
        }
        let bit = |kind: &doc::SocketKind| match kind {
            doc::SocketKind::RAW => Baseline::RAW,
            doc::SocketKind::SCTP => Baseline::SCTP,
            doc::SocketKind::MPTCP => Baseline::MPTCP,
        };
        kinds.iter().map(bit).fold(0, |all, b| all | b)
    }
}

/// The end of a rule's line.
fn until(expires: &Option<At<u64>>) -> String {
    expires.as_ref().map(|t| format!(" until {}", rfc3339(t.value))).unwrap_or_default()
}

const fn number(protocol: doc::Protocol) -> u8 {
    match protocol {
        doc::Protocol::TCP => proto::TCP,
        doc::Protocol::UDP => proto::UDP,
        doc::Protocol::SCTP => proto::SCTP,
        doc::Protocol::UDPLite => proto::UDPLITE,
        doc::Protocol::ICMP => proto::ICMP,
    }
}

/// RFC 1123, as Kubernetes takes it for the names of objects.
pub(crate) fn is_object_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253 && name.bytes().all(inner) && outer(name.bytes().next()) && outer(name.bytes().last())
}

/// RFC 6335, 5.1, as Kubernetes takes it for the names of ports.
pub(crate) fn is_port_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.len() <= 15
        && name.bytes().all(known)
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
