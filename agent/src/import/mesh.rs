//! Istio's AuthorizationPolicy (security.istio.io/v1): what of it is about connections.
//!
//! A mesh judges requests, Bulkhead connections. Where a rule has a condition on requests, the safe side is taken: what
//! allows isn't carried, what denies is carried without the condition and so denies more.

use super::estate::{Estate, Scope};
use super::model::{Action, Clause, Errs, Everything, Findings, Isolation, Ordered, Peer, Pods, Port, Source, Tier};
use super::network::net;
use super::selector::Selector;
use super::tree::{Fields, Reader, Spot, Value};
use crate::policy::{ANY_ID, IdPattern};
use bulkhead_common::proto;

/// Conditions on requests, in operations.
const REQUESTS: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
/// Conditions on requests, in sources.
const REQUESTERS: [&str; 4] = ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"];
/// Who connects.
const WHO: [&str; 4] = ["principals", "namespaces", "serviceAccounts", "ipBlocks"];
/// Who doesn't.
const WHO_NOT: [&str; 4] = ["notPrincipals", "notNamespaces", "notServiceAccounts", "notIpBlocks"];

/// Who there is, where the mesh's root is, and what isn't carried.
pub(super) struct Mesh<'a> {
    pub(super) estate: &'a Estate,
    pub(super) root: &'a str,
    pub(super) findings: &'a mut Findings,
}

/// Reads an AuthorizationPolicy's spec; without one it allows nothing.
pub(super) fn read(
    reader: &mut Reader,
    source: Source,
    mut spec: Fields,
    mesh: &mut Mesh<'_>,
    dry: bool,
    all: &mut Everything,
) {
    let selector = spec.take("selector");
    let targets = (spec.take("targetRef"), spec.take("targetRefs"));
    let action = spec.take("action").map(|v| (v.spot.clone(), reader.text(v).unwrap_or_default()));
    // Which authorizer is asked.
    drop(spec.take("provider"));
    let rules = spec.take("rules").map(|v| reader.list(v)).unwrap_or_default();
    let spot = spec.spot.clone();
    reader.finish(spec);
    let (action_spot, action) = action.unwrap_or_else(|| (spot.clone(), "ALLOW".to_owned()));
    if dry {
        mesh.findings.add(&source, &spot, Errs::Neither, "a dry run decides nothing, so it isn't carried");
        return;
    }
    if let Some(target) = targets.0.or(targets.1) {
        let reason = "it is about a gateway, a waypoint or a Service and not about workloads, so it isn't carried; \
                      the mesh has to go on judging by it";
        let errs = if action == "AUDIT" { Errs::Neither } else { Errs::Looser };
        mesh.findings.add(&source, &target.spot, errs, reason);
        return;
    }
    let pods = selector.map(|v| {
        let mut fields = reader.map(v);
        let labels = fields.take("matchLabels").map(|v| reader.map(v).rest()).unwrap_or_default();
        reader.finish(fields);
        labels.into_iter().filter_map(|(key, v)| Some((key, reader.text(v)?))).collect()
    });
    let everywhere = source.namespace == mesh.root;
    let scope = if everywhere { Scope::Matching(Selector::default()) } else { Scope::Own(source.namespace.clone()) };
    let subject = Pods { spot: spot.clone(), scope, pods: Selector::of(pods.unwrap_or_default()) };
    let action = match action.as_str() {
        "AUDIT" => {
            mesh.findings.add(&source, &action_spot, Errs::Neither, "AUDIT decides nothing, so it isn't carried");
            return;
        }
        "CUSTOM" => {
            let reason = "what the authorizer would decide isn't known, so whatever it is asked about is denied";
            mesh.findings.add(&source, &action_spot, Errs::Stricter, reason);
            Action::Deny
        }
        "DENY" => Action::Deny,
        "ALLOW" => Action::Accept,
        other => {
            reader.fault(&action_spot, format!("`{other}` is no action"), "ALLOW, DENY, CUSTOM or AUDIT");
            return;
        }
    };
    let mut clauses = Vec::new();
    for item in rules {
        Rule { source: &source, action, mesh }.read(reader, item, &mut clauses);
    }
    match action {
        Action::Accept => all.isolations.push(Isolation { source, subject, ingress: Some(clauses), egress: None }),
        _ => all.ordered.push(Ordered {
            source,
            tier: Tier::Admin,
            priority: None,
            subject,
            ingress: clauses,
            egress: Vec::new(),
        }),
    }
}

/// One rule: every pair of a source and an operation.
struct Rule<'r, 'm> {
    source: &'r Source,
    action: Action,
    mesh: &'r mut Mesh<'m>,
}

/// Who connects, and who doesn't.
type Who = (Vec<(Spot, Peer)>, Vec<Vec<(Spot, Peer)>>);

impl Rule<'_, '_> {
    /// Says what becomes of a condition on requests. Gives whether the rule goes on without it.
    fn request(&mut self, spot: &Spot) -> bool {
        let (goes_on, what) = match self.action {
            Action::Accept => (false, "so nothing is allowed by this item"),
            _ => (true, "so this item denies every connection that may carry such a request"),
        };
        let reason = format!("Bulkhead judges connections and not what is asked in them, {what}");
        self.mesh.findings.add(self.source, spot, Errs::Stricter, reason);
        goes_on
    }

    fn read(mut self, reader: &mut Reader, item: Value, clauses: &mut Vec<Clause>) {
        let mut rule = reader.map(item);
        let spot = rule.spot.clone();
        let from = rule.take("from").map(|v| reader.list(v)).unwrap_or_default();
        let to = rule.take("to").map(|v| reader.list(v)).unwrap_or_default();
        let when = rule.take("when").map(|v| reader.list(v)).unwrap_or_default();
        reader.finish(rule);
        let mut carried = true;
        for condition in when {
            carried &= self.request(&condition.spot);
        }
        let anywhere = from.is_empty();
        let mut whos: Vec<Who> = from.into_iter().filter_map(|v| self.source(reader, v)).collect();
        if anywhere {
            whos.push((vec![(spot.clone(), Peer::Anybody)], Vec::new()));
        }
        let ports = self.operations(reader, to);
        if !carried {
            return;
        }
        let Some(ports) = ports else { return };
        for (peers, unless) in whos {
            clauses.push(Clause { spot: spot.clone(), action: self.action, peers, ports: ports.clone(), unless });
        }
    }

    /// The fields of the only field that it has.
    fn inner(&mut self, reader: &mut Reader, value: Value, name: &str) -> Option<Fields> {
        let mut outer = reader.map(value);
        let inner = outer.take(name);
        let spot = outer.spot.clone();
        reader.finish(outer);
        match inner {
            Some(v) => Some(reader.map(v)),
            None => {
                reader.fault(&spot, format!("`{}` has no `{name}`", spot.path), format!("write `{name}:`"));
                None
            }
        }
    }

    fn source(&mut self, reader: &mut Reader, value: Value) -> Option<Who> {
        let mut fields = self.inner(reader, value, "source")?;
        let spot = fields.spot.clone();
        let mut carried = true;
        for name in REQUESTERS {
            if let Some(v) = fields.take(name) {
                carried &= self.request(&v.spot);
            }
        }
        let mut who: Vec<Vec<(Spot, Peer)>> = Vec::new();
        for name in WHO {
            if let Some(v) = fields.take(name) {
                who.push(self.peers(reader, name, v));
            }
        }
        let mut unless = Vec::new();
        for (name, plain) in WHO_NOT.into_iter().zip(WHO) {
            if let Some(v) = fields.take(name) {
                let at = v.spot.clone();
                unless.push(self.peers(reader, plain, v));
                if self.action == Action::Accept {
                    let reason = "a rule can't allow everybody but some, so nothing is allowed by this item: name those \
                                  who may";
                    self.mesh.findings.add(self.source, &at, Errs::Stricter, reason);
                    carried = false;
                }
            }
        }
        reader.finish(fields);
        if who.len() > 1 {
            let reason = match self.action {
                Action::Accept => {
                    carried = false;
                    "a peer is named in one way only, so nothing is allowed by this item: use principals alone"
                }
                _ => "a peer is named in one way only, so whoever fits the first of these is denied",
            };
            self.mesh.findings.add(self.source, &spot, Errs::Stricter, reason);
        }
        let peers = who.into_iter().next().unwrap_or_else(|| vec![(spot, Peer::Anybody)]);
        carried.then_some((peers, unless))
    }

    /// Those whom one list of a source names.
    fn peers(&mut self, reader: &mut Reader, name: &str, value: Value) -> Vec<(Spot, Peer)> {
        let mut all = Vec::new();
        for item in reader.list(value) {
            let spot = item.spot.clone();
            if name == "ipBlocks" {
                // An address alone is a block of one.
                if let super::tree::Node::Text(text) = &item.node
                    && let Ok(address) = text.parse::<std::net::IpAddr>()
                {
                    all.push((spot, Peer::Block { net: address.into(), except: Vec::new() }));
                } else if let Some(net) = net(reader, item) {
                    all.push((spot, Peer::Block { net, except: Vec::new() }));
                }
                continue;
            }
            let Some(text) = reader.text(item) else { continue };
            let ids = match name {
                "principals" => self.principal(&text),
                "namespaces" => self.namespace(&text),
                _ => self.service_account(&text),
            };
            match ids {
                Ok(ids) => all.push((spot, Peer::Ids(ids))),
                Err((message, hint)) => reader.fault(&spot, message, hint),
            }
        }
        all
    }

    fn known(&self, text: &str) -> Result<&Estate, (String, String)> {
        match self.mesh.estate.is_given() {
            true => Ok(self.mesh.estate),
            false => Err((format!("who `{text}` is depends on who there is"), super::GIVE_PODS.to_owned())),
        }
    }

    fn principal(&self, text: &str) -> Result<Vec<IdPattern>, (String, String)> {
        let bad = |e: crate::identity::BadSpiffeId| {
            let hint = "for example cluster.local/ns/shop/sa/web".to_owned();
            (format!("`{text}` is no principal: {}", e.why), hint)
        };
        let pattern = |text: String| text.parse::<IdPattern>().map(|p| vec![p]).map_err(bad);
        let plain = |id: &crate::identity::SpiffeId| id.as_str().trim_start_matches("spiffe://").to_owned();
        let exactly = |ids: std::collections::BTreeSet<crate::identity::SpiffeId>| {
            ids.into_iter().filter_map(|id| id.as_str().parse().ok()).collect()
        };
        if text == "*" {
            return pattern(ANY_ID.to_owned());
        }
        if let Some(prefix) = text.strip_suffix('*') {
            if prefix.ends_with('/') && !prefix.contains('*') {
                return pattern(format!("spiffe://{prefix}*/**"));
            }
            return Ok(exactly(self.known(text)?.ids(|_, id| plain(id).starts_with(prefix))));
        }
        if let Some(suffix) = text.strip_prefix('*') {
            if suffix.starts_with('/') && !suffix.contains('*') {
                return pattern(format!("spiffe://*/**{suffix}"));
            }
            return Ok(exactly(self.known(text)?.ids(|_, id| plain(id).ends_with(suffix))));
        }
        pattern(format!("spiffe://{text}"))
    }

    fn namespace(&self, text: &str) -> Result<Vec<IdPattern>, (String, String)> {
        let names = match (text.strip_suffix('*'), text.strip_prefix('*')) {
            _ if text == "*" => vec!["*".to_owned()],
            (Some(prefix), _) => self.known(text)?.namespaces(|n| n.starts_with(prefix)),
            (_, Some(suffix)) => self.known(text)?.namespaces(|n| n.ends_with(suffix)),
            (None, None) => vec![text.to_owned()],
        };
        let pattern = |name: &String| {
            format!("spiffe://*/ns/{name}/*/**").parse::<IdPattern>().map_err(|e| {
                (
                    format!("`{name}` is no namespace: {}", e.why),
                    "the name of a namespace, with * at one end".to_owned(),
                )
            })
        };
        names.iter().map(pattern).collect()
    }

    fn service_account(&self, text: &str) -> Result<Vec<IdPattern>, (String, String)> {
        let (namespace, name) = text.split_once('/').unwrap_or((&self.source.namespace, text));
        if namespace.contains('*') || name.contains('*') {
            return Err((format!("`{text}` is no service account"), "namespace/name, without *".to_owned()));
        }
        let pattern = format!("spiffe://*/ns/{namespace}/sa/{name}").parse::<IdPattern>();
        let pattern = pattern.map_err(|e| {
            (format!("`{text}` is no service account: {}", e.why), "namespace/name, or the name alone".to_owned())
        });
        Ok(vec![pattern?])
    }

    /// On which ports; `None`: no operation is carried.
    fn operations(&mut self, reader: &mut Reader, to: Vec<Value>) -> Option<Option<Vec<(Spot, Port)>>> {
        // The mesh says nothing about other protocols, so a deny doesn't either.
        let whole = |spot: Spot, action| match action {
            Action::Accept => None,
            _ => Some(vec![(spot, Port::All(proto::TCP))]),
        };
        if to.is_empty() {
            return Some(whole(Spot::default(), self.action));
        }
        let (mut ports, mut any, mut all) = (Vec::new(), false, false);
        for item in to {
            let Some(mut fields) = self.inner(reader, item, "operation") else { continue };
            let spot = fields.spot.clone();
            let mut carried = true;
            for name in REQUESTS {
                if let Some(v) = fields.take(name) {
                    carried &= self.request(&v.spot);
                }
            }
            let (named, not) = (fields.take("ports"), fields.take("notPorts"));
            reader.finish(fields);
            let mut numbers = |v: Option<Value>| v.map(|v| numbers(reader, v)).unwrap_or_default();
            let everything = named.is_none() && not.is_none();
            let every = named.is_none();
            let (named, not) = (numbers(named), numbers(not));
            if !carried {
                continue;
            }
            any = true;
            if everything {
                all = true;
            } else if every {
                ports.extend(without(&not).map(|(first, last)| (spot.clone(), Port::Range(proto::TCP, first, last))));
            } else {
                let kept = named.into_iter().filter(|n| !not.contains(n));
                ports.extend(kept.map(|n| (spot.clone(), Port::Range(proto::TCP, n, n))));
            }
        }
        match (any, all) {
            (false, _) => None,
            (true, true) => Some(whole(Spot::default(), self.action)),
            (true, false) => Some(Some(ports)),
        }
    }
}

/// Ports are texts here.
fn numbers(reader: &mut Reader, value: Value) -> Vec<u16> {
    let mut all = Vec::new();
    for (spot, text) in reader.texts(value) {
        match text.parse::<u16>() {
            Ok(port) if port > 0 => all.push(port),
            _ => reader.fault(&spot, format!("`{text}` isn't a port"), "ports are \"1\" to \"65535\""),
        }
    }
    all
}

/// The ranges that are left without these ports.
fn without(not: &[u16]) -> impl Iterator<Item = (u16, u16)> {
    let mut sorted = not.to_vec();
    sorted.sort_unstable();
    let (mut ranges, mut first) = (Vec::new(), 1);
    // One behind the last port ends the last range.
    for port in sorted.into_iter().map(u32::from).chain([65_536]) {
        ranges.extend((port > first).then_some((first, port - 1)));
        first = first.max(port + 1);
    }
    ranges.into_iter().filter_map(|(a, b)| Some((u16::try_from(a).ok()?, u16::try_from(b).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_not_meant_leave_ranges() {
        let left = |not: &[u16]| without(not).collect::<Vec<_>>();
        assert_eq!(left(&[]), [(1, 65_535)]);
        assert_eq!(left(&[80, 22, 80, 81]), [(1, 21), (23, 79), (82, 65_535)]);
        assert_eq!(left(&[1, 65_535]), [(2, 65_534)]);
    }
}
