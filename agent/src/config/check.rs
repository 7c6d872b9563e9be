//! From the low struct to the checked [`Config`]: every complaint with its line, column and a hint, all of them at once.

mod cluster;
mod keeping;
mod scalars;

use super::low::{self, OneOrMany};
use super::{Capacities, CgroupGlob, Config, Log, Peer, Position, Unlisted, Who, Workload};
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{Place, Posture};
use crate::policy::{Diagnostic, Severity};
use bulkhead_common::maps::AddrPort;
use bulkhead_common::{Addr, Class, proto};
use serde_saphyr::Spanned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The name of an agent that was given none.
pub const INSTANCE: &str = "default";
/// Where the control socket is unless the file says otherwise.
pub const SOCKET: &str = "/run/bulkhead/bulkhead.sock";
/// Where state is kept unless the file says otherwise.
pub const STATE: &str = "/var/lib/bulkhead";
/// Where bpffs is unless the file says otherwise.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Reads and checks a configuration. `file` is its name in the diagnostics.
///
/// # Errors
/// Every fault that was found, in the file's order; then nothing of it is in force.
pub fn parse(file: &str, text: &str) -> Result<Config, Vec<Diagnostic>> {
    let low: low::File =
        serde_saphyr::from_str_with_options(text, options()).map_err(|e| vec![unreadable(file, &e)])?;
    let mut check = Check { file, faults: Vec::new(), identities: BTreeSet::new() };
    let config = check.config(low);
    check.faults.sort_by_key(|d| (d.line, d.column));
    if check.faults.is_empty() { Ok(config) } else { Err(check.faults) }
}

/// What the reader takes: as many endpoints as there is room for addresses in the kernel's table, with each field.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: 2_000_000, max_events: 4_000_000 },
    }
}

/// A text that isn't YAML, or isn't of the right shape.
fn unreadable(file: &str, e: &serde_saphyr::Error) -> Diagnostic {
    let whole = e.without_snippet().to_string();
    // The library adds its own position at the end; ours stands in front.
    let message = whole.split(" at line ").next().unwrap_or(&whole).trim().to_owned();
    let hint = if message.contains("unknown field") {
        "check the spelling and the indentation; deploy/bulkhead.example.yaml shows every field"
    } else if message.contains("duplicate") {
        "each key may stand once in its mapping: remove or merge one of them"
    } else {
        "deploy/bulkhead.example.yaml shows what is expected here"
    };
    let (line, column) = e.location().map_or((0, 0), |l| (narrow_u32(l.line()), narrow_u32(l.column())));
    Diagnostic { file: file.into(), line, column, severity: Severity::Error, message, hint: Some(hint.to_owned()) }
}

fn narrow_u32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn position<T>(s: &Spanned<T>) -> Position {
    Position { line: narrow_u32(s.referenced.line()), column: narrow_u32(s.referenced.column()) }
}

struct Check<'a> {
    file: &'a str,
    faults: Vec<Diagnostic>,
    /// Of endpoints: many of them may be one identity's.
    identities: BTreeSet<Arc<Identity>>,
}

impl Check<'_> {
    fn fault(&mut self, at: Position, message: String, hint: &str) {
        self.faults.push(Diagnostic {
            file: self.file.into(),
            line: at.line,
            column: at.column,
            severity: Severity::Error,
            message,
            hint: Some(hint.to_owned()),
        });
    }

    fn config(&mut self, low: low::File) -> Config {
        let low::File {
            instance,
            workloads,
            attach,
            unlisted,
            endpoints,
            ranges,
            posture,
            postures,
            policies,
            metrics,
            socket,
            state,
            bpffs,
            log,
            dns,
            built_ins,
            limits,
            history,
            decision_log,
            cluster,
        } = low;
        let default = posture.unwrap_or(Posture::Observe);
        let resolve =
            |own: Option<Posture>, namespace: &str| own.or_else(|| postures.get(namespace).copied()).unwrap_or(default);
        let workloads = self.workloads(workloads, &resolve);
        let attach = self.attach(attach, &workloads);
        let ranges = ranges.iter().filter_map(|r| self.prefix(r)).collect();
        let endpoints = self.endpoints(endpoints, &workloads, &resolve);
        let low::Limits { addresses, rules, edges, flows, outside } = limits;
        let in_cluster = cluster.is_some();
        let cluster = cluster.and_then(|c| self.cluster(c));
        Config {
            instance: match (&instance, &cluster) {
                (None, Some(cluster)) => cluster.instance(),
                _ => self.instance(instance),
            },
            attach,
            // Below the pods' cgroup there is nothing of the host's.
            unlisted: unlisted.unwrap_or(if in_cluster { Unlisted::Unknown } else { Unlisted::Host }),
            endpoints,
            ranges,
            posture: default,
            policies: policies.iter().filter_map(|p| self.path(p)).collect(),
            metrics: metrics.and_then(|m| {
                let at = position(&m.listen);
                m.listen
                    .value
                    .parse()
                    .map_err(|_| {
                        self.fault(
                            at,
                            format!("`{}` isn't an address and port", m.listen.value),
                            "for example 127.0.0.1:9464",
                        );
                    })
                    .ok()
            }),
            socket: socket.and_then(|s| self.path(&s)).unwrap_or_else(|| SOCKET.into()),
            state: state.and_then(|s| self.path(&s)).unwrap_or_else(|| STATE.into()),
            bpffs: bpffs.and_then(|s| self.path(&s)).unwrap_or_else(|| BPFFS.into()),
            log: Log {
                json: log.as_ref().and_then(|l| l.format) == Some(low::LogFormat::Json),
                level: log.and_then(|l| l.level).map_or_else(|| "info".to_owned(), |l| self.level(&l)),
            },
            dns: dns.unwrap_or(true),
            built_ins: self.built_ins(&built_ins),
            limits: Capacities {
                addresses: self.limit(addresses),
                rules: self.limit(rules),
                edges: self.limit(edges),
                flows: self.limit(flows),
                outside: self.limit(outside),
            },
            history: self.history(history.unwrap_or_default()),
            decision_log: decision_log.and_then(|l| self.decision_log(l)),
            postures,
            workloads,
            services: Vec::new(),
            cluster,
        }
    }

    fn workloads(
        &mut self,
        given: Vec<Spanned<low::Workload>>,
        posture: &impl Fn(Option<Posture>, &str) -> Posture,
    ) -> Vec<Workload> {
        let mut all: Vec<Workload> = Vec::new();
        let mut names: BTreeMap<String, Position> = BTreeMap::new();
        let mut addresses: BTreeMap<Addr, (String, Position)> = BTreeMap::new();
        for entry in given {
            let at = position(&entry);
            let Some(w) = self.workload(entry, posture, &mut addresses) else { continue };
            if let Some(first) = names.insert(w.name.clone(), at) {
                self.fault(
                    at,
                    format!("a second workload is named `{}` (the first is on line {})", w.name, first.line),
                    "give each workload a `name` of its own",
                );
            }
            for other in all.iter().filter(|o| o.identity == w.identity) {
                let (mine, theirs) = (&w, other);
                if mine.posture != theirs.posture {
                    self.fault(
                        at,
                        format!("`{}` and `{}` are one identity with two postures", theirs.name, mine.name),
                        "give both the same posture, or different IDs",
                    );
                }
                if let Some((port, _)) = mine.ports.iter().find(|(n, p)| theirs.ports.get(*n).is_some_and(|q| q != *p))
                {
                    self.fault(
                        at,
                        format!(
                            "`{}` and `{}` are one identity, and port `{port}` means two things",
                            theirs.name, mine.name
                        ),
                        "give the named port the same number in both",
                    );
                }
            }
            for glob in &w.cgroups {
                if let Some(first) = all.iter().find(|o| o.cgroups.contains(glob)) {
                    self.fault(
                        glob.at,
                        format!("`{}` already is the cgroup of `{}`", glob.as_str(), first.name),
                        "a cgroup is one workload: remove one of the two",
                    );
                }
            }
            all.push(w);
        }
        all
    }

    fn workload(
        &mut self,
        entry: Spanned<low::Workload>,
        posture: &impl Fn(Option<Posture>, &str) -> Posture,
        addresses: &mut BTreeMap<Addr, (String, Position)>,
    ) -> Option<Workload> {
        let at = position(&entry);
        let low::Workload { name, id, ids, cgroup, namespace, posture: own, ports, addresses: mine } = entry.value;
        let before = self.faults.len();
        let written: Vec<Spanned<String>> = id.into_iter().chain(ids.into_iter().flatten()).collect();
        if written.is_empty() {
            self.fault(at, "a workload without a SPIFFE ID".to_owned(), "add `id: spiffe://trust-domain/path`");
        }
        let ids: BTreeSet<SpiffeId> = written.iter().filter_map(|id| self.id(id)).collect();

        let cgroup_at = position(&cgroup);
        let globs: Vec<(String, Position)> = match cgroup.value {
            OneOrMany::One(text) => vec![(text, cgroup_at)],
            OneOrMany::Many(all) => all.into_iter().map(|g| (g.value.clone(), position(&g))).collect(),
        };
        if globs.is_empty() {
            self.fault(cgroup_at, "a workload without a cgroup matches nothing".to_owned(), "name its cgroup");
        }
        let mut cgroups = Vec::new();
        for (text, at) in globs {
            match CgroupGlob::new(&text, at) {
                Ok(g) => cgroups.push(g),
                Err(e) => self.fault(at, e.message, &e.hint),
            }
        }

        let name = match name {
            Some(n) => n.value,
            None => ids.first().map(|id| id.segments().collect::<Vec<_>>().join("/"))?,
        };
        let ports = ports.iter().filter_map(|(n, p)| Some((n.clone(), self.port(p)?))).collect();
        let mut own_addresses = Vec::new();
        for a in &mine {
            let Some(addr) = self.address(a) else { continue };
            if let Some((other, first)) = addresses.get(&addr) {
                let (other, first) = (other.clone(), *first);
                self.fault(
                    position(a),
                    format!("`{other}` (line {}) and `{name}` both claim {}", first.line, a.value),
                    "an address belongs to one workload: remove it from one of the two",
                );
            } else {
                addresses.insert(addr, (name.clone(), position(a)));
                own_addresses.push(addr);
            }
        }
        if self.faults.len() > before {
            return None;
        }
        let namespace = namespace.unwrap_or_default();
        let posture = posture(own, &namespace);
        Some(Workload {
            name,
            identity: Identity { namespace, ids },
            cgroups,
            posture,
            ports,
            addresses: own_addresses,
            young: false,
            owner: String::new(),
            at,
        })
    }

    fn attach(&mut self, given: Option<Vec<Spanned<String>>>, workloads: &[Workload]) -> Vec<String> {
        let mut paths: Vec<String> = Vec::new();
        match given {
            Some(given) => {
                for p in given {
                    let at = position(&p);
                    let path = if p.value == "/" { "/" } else { p.value.trim_end_matches('/') };
                    if !path.starts_with('/') || path.contains("//") || path.contains(['*', '?']) {
                        self.fault(
                            at,
                            format!("`{}` isn't a cgroup's path", p.value),
                            "one fixed path from the root of the hierarchy, such as /system.slice",
                        );
                        continue;
                    }
                    if let Some(other) = paths.iter().find(|o| inside(path, o) || inside(o, path)) {
                        let other = other.clone();
                        self.fault(
                            at,
                            format!("`{path}` and `{other}` lie in one another, so the programs would run twice"),
                            "keep the outer one",
                        );
                    }
                    paths.push(path.to_owned());
                }
                for glob in workloads.iter().flat_map(|w| &w.cgroups) {
                    if !paths.iter().any(|p| glob.lies_below(p)) {
                        self.fault(
                            glob.at,
                            format!("`{}` doesn't lie below an attach point", glob.as_str()),
                            "add the folder above it to `attach`, or leave `attach` out to have it found",
                        );
                    }
                }
            }
            None => {
                for glob in workloads.iter().flat_map(|w| &w.cgroups) {
                    match glob.parent() {
                        Some(p) => paths.push(p),
                        None => self.fault(
                            glob.at,
                            format!("`{}` lies at the top, so there is no cgroup above it to attach to", glob.as_str()),
                            "put the workload into a slice, or say `attach: [\"/\"]` to watch the whole host",
                        ),
                    }
                }
            }
        }
        paths.sort();
        paths.dedup();
        let all = paths.clone();
        paths.retain(|p| !all.iter().any(|o| o != p && inside(p, o)));
        paths
    }

    fn endpoints(
        &mut self,
        given: Vec<Spanned<low::Endpoint>>,
        workloads: &[Workload],
        posture: &impl Fn(Option<Posture>, &str) -> Posture,
    ) -> Vec<Peer> {
        let mut seen: BTreeMap<Place, Position> = BTreeMap::new();
        for w in workloads {
            seen.extend(w.addresses.iter().map(|a| (Place::Addr(*a), w.at)));
        }
        let mut all = Vec::with_capacity(given.len());
        for entry in given {
            let at = position(&entry);
            let Some(peer) = self.endpoint(entry, workloads, posture) else { continue };
            if let Some(first) = seen.insert(peer.place, at) {
                self.fault(
                    at,
                    format!("this place is already given on line {}", first.line),
                    "an address belongs to one peer: remove one of the two",
                );
            }
            all.push(peer);
        }
        all
    }

    fn endpoint(
        &mut self,
        entry: Spanned<low::Endpoint>,
        workloads: &[Workload],
        posture: &impl Fn(Option<Posture>, &str) -> Posture,
    ) -> Option<Peer> {
        let at = position(&entry);
        let low::Endpoint { address, prefix, port, protocol, id, namespace, class } = entry.value;
        let place = match (&address, &prefix, &port) {
            (Some(a), None, None) => Place::Addr(self.address(a)?),
            (Some(a), None, Some(p)) => {
                let proto = match &protocol {
                    Some(name) => self.protocol(name)?,
                    None => proto::TCP,
                };
                if p.value == 0 {
                    self.fault(position(p), "port 0 is no port".to_owned(), "leave `port` out to mean all ports");
                    return None;
                }
                Place::Port(AddrPort { addr: self.address(a)?, port: p.value, proto, pad: 0 })
            }
            (None, Some(p), None) => Place::Prefix(self.prefix(p)?),
            (None, Some(_), Some(p)) => {
                self.fault(position(p), "a prefix can't have a port".to_owned(), "name single addresses instead");
                return None;
            }
            _ => {
                self.fault(at, "an endpoint is at one place".to_owned(), "give `address` or `prefix`, one of them");
                return None;
            }
        };
        if let (Some(p), None) = (&protocol, &port) {
            self.fault(position(p), "`protocol` without `port`".to_owned(), "add `port`, or remove `protocol`");
            return None;
        }
        let who = match (&id, &class) {
            (Some(id), None) => {
                let ids = BTreeSet::from([self.id(id)?]);
                let namespace = namespace.unwrap_or_default();
                let known = workloads.iter().find(|w| w.identity.ids == ids && w.identity.namespace == namespace);
                let posture = known.map_or_else(|| posture(None, &namespace), |w| w.posture);
                Who::Identity { identity: self.once(Identity { namespace, ids }), posture, ports: Arc::default() }
            }
            (None, Some(c)) => match Class::from_name(&c.value) {
                Some(c) if c != Class::SnatIngress => Who::Class(c),
                _ => {
                    let known = Class::ALL.iter().filter(|c| **c != Class::SnatIngress);
                    let known: Vec<_> = known.map(|c| c.as_str()).collect();
                    self.fault(
                        position(c),
                        format!("there is no class `{}` for an address", c.value),
                        &format!("the classes are {}", known.join(", ")),
                    );
                    return None;
                }
            },
            _ => {
                self.fault(at, "an endpoint is one peer".to_owned(), "give `id` or `class`, one of them");
                return None;
            }
        };
        Some(Peer { place, who })
    }
}

impl Check<'_> {
    /// The identity, held once for all who have it.
    fn once(&mut self, identity: Identity) -> Arc<Identity> {
        if let Some(known) = self.identities.get(&identity) {
            return Arc::clone(known);
        }
        let new = Arc::new(identity);
        self.identities.insert(Arc::clone(&new));
        new
    }
}

/// Whether `path` is `outer` or lies below it.
pub(super) fn inside(path: &str, outer: &str) -> bool {
    let outer = outer.trim_end_matches('/');
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
