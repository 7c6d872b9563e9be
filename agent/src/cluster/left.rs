//! What a node knew of itself, kept on disk: for an agent that comes when nothing is in force, after a reboot or because
//! somebody emptied bpffs, and before the API server has told it anything. Pure.
//!
//! A pod's cgroup bears its UID, and a pod that is started again after a reboot keeps it; so who a cgroup is still holds.
//! An address may be another's by now. So addresses of pods aren't kept: until the API server tells, every pod but
//! oneself is `unknown`, which nothing allows where anything is enforced. Nodes and the API server keep their places.

use crate::config::{Backend, CgroupGlob, Config, Peer, Position, Service, Who, Workload, narrow, widen, widen_prefix};
use crate::identity::{Identity, SpiffeId};
use crate::inventory::{Place, Posture};
use crate::policy::Lowered;
use bulkhead_common::Class;
use bulkhead_common::maps::{AddrPort, PrefixKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything that is kept.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Left {
    pods: Vec<LeftPod>,
    classes: Vec<LeftClass>,
    services: Vec<LeftService>,
    ranges: BTreeSet<String>,
    /// Namespaces where nothing is enforced.
    pub lowered: BTreeMap<String, Lowered>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftPod {
    name: String,
    namespace: String,
    ids: BTreeSet<SpiffeId>,
    owner: String,
    posture: Posture,
    ports: BTreeMap<String, (u8, u16)>,
    cgroups: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftClass {
    class: String,
    at: LeftPlace,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftService {
    title: String,
    at: Vec<LeftPlace>,
    /// Class and port of each backend.
    backends: Vec<(String, u16)>,
}

/// An address, and where the owner has but one port of it, the IP protocol and the port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftPlace {
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<(u8, u16)>,
}

impl LeftPlace {
    /// Prefixes aren't kept by class: the ranges are.
    fn of(place: &Place) -> Option<Self> {
        match place {
            Place::Addr(a) => Some(Self { address: narrow(a), port: None }),
            Place::Port(p) => Some(Self::at(p)),
            Place::Prefix(_) => None,
        }
    }

    fn at(p: &AddrPort) -> Self {
        Self { address: narrow(&p.addr), port: Some((p.proto, p.port)) }
    }

    fn port(&self) -> Option<AddrPort> {
        self.port.map(|(proto, port)| AddrPort { addr: widen(self.address), port, proto, pad: 0 })
    }

    fn place(&self) -> Place {
        self.port().map_or(Place::Addr(widen(self.address)), Place::Port)
    }
}

impl Left {
    /// What is to be kept of a configuration with what the cluster adds to it; `base` is the file's own.
    pub fn of(config: &Config, base: &Config, lowered: &BTreeMap<String, Lowered>) -> Self {
        let pods = config.workloads.iter().skip(base.workloads.len()).map(|w| LeftPod {
            name: w.name.clone(),
            namespace: w.identity.namespace.clone(),
            ids: w.identity.ids.clone(),
            owner: w.owner.clone(),
            posture: w.posture,
            ports: w.ports.clone(),
            cgroups: w.cgroups.iter().map(|g| g.as_str().to_owned()).collect(),
        });
        let classes = config.endpoints.iter().skip(base.endpoints.len()).filter_map(|p| match &p.who {
            Who::Class(class) if *class != Class::Unknown => {
                Some(LeftClass { class: class.as_str().to_owned(), at: LeftPlace::of(&p.place)? })
            }
            _ => None,
        });
        let backend = |(who, port): &(Backend, u16)| match who {
            Backend::Class(class) if *class != Class::Unknown => Some((class.as_str().to_owned(), *port)),
            _ => None,
        };
        let services = config.services.iter().skip(base.services.len()).filter_map(|s| {
            let backends = s.backends.iter().map(backend).collect::<Option<Vec<_>>>()?;
            let at = s.places.iter().map(LeftPlace::at).collect();
            (!backends.is_empty()).then(|| LeftService { title: s.title.clone(), at, backends })
        });
        Self {
            pods: pods.collect(),
            classes: classes.collect(),
            services: services.collect(),
            ranges: config.ranges.iter().skip(base.ranges.len()).map(written).collect(),
            lowered: lowered.clone(),
        }
    }

    /// The configuration with what was known.
    ///
    /// # Errors
    /// When anything of it can't be read: half of it would be somebody else's rules.
    pub fn over(&self, base: &Config) -> Result<Config, String> {
        let mut config = base.clone();
        for pod in &self.pods {
            let glob = |path: &String| {
                CgroupGlob::fixed(path, Position::default()).ok_or_else(|| format!("`{path}` isn't a cgroup's path"))
            };
            if pod.ids.is_empty() {
                return Err(format!("{} has no SPIFFE ID", pod.name));
            }
            config.workloads.push(Workload {
                name: pod.name.clone(),
                identity: Identity { namespace: pod.namespace.clone(), ids: pod.ids.clone() },
                cgroups: pod.cgroups.iter().map(glob).collect::<Result<_, _>>()?,
                posture: pod.posture,
                ports: pod.ports.clone(),
                addresses: Vec::new(),
                at: Position::default(),
                young: false,
                owner: pod.owner.clone(),
            });
        }
        for LeftClass { class: name, at } in &self.classes {
            config.endpoints.push(Peer { place: at.place(), who: Who::Class(class(name)?) });
        }
        for LeftService { title, at, backends } in &self.services {
            let port = |p: &LeftPlace| p.port().ok_or_else(|| format!("{title} is at {} without a port", p.address));
            let backend = |(name, port): &(String, u16)| Ok((Backend::Class(class(name)?), *port));
            config.services.push(Service {
                title: title.clone(),
                places: at.iter().map(port).collect::<Result<_, _>>()?,
                backends: backends.iter().map(backend).collect::<Result<_, String>>()?,
            });
        }
        for text in &self.ranges {
            let range = text.parse().map_err(|_| format!("`{text}` isn't a range of addresses"))?;
            config.ranges.push(widen_prefix(range));
        }
        Ok(config)
    }
}

fn class(name: &str) -> Result<Class, String> {
    Class::from_name(name).ok_or_else(|| format!("`{name}` is no class"))
}

fn written(range: &PrefixKey) -> String {
    let address = narrow(&range.addr);
    let bits = if address.is_ipv4() { range.bits.saturating_sub(96) } else { range.bits };
    format!("{address}/{bits}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use bulkhead_common::Addr;
    use std::sync::Arc;

    fn base() -> Config {
        let text = "cluster: {node: n1}\nattach: [/kubepods]\nendpoints: [{address: 192.0.2.1, class: node-dns}]\n";
        config::parse("bulkhead.yaml", text).unwrap_or_else(|e| panic!("{}", e[0]))
    }

    fn identity() -> Identity {
        let id = "spiffe://t/ns/shop/sa/web".parse().expect("an ID");
        Identity { namespace: "shop".to_owned(), ids: BTreeSet::from([id]) }
    }

    /// As a cluster makes it: a pod with an address, a pod elsewhere, a node, the API server, and Services of both.
    fn known(base: &Config) -> Config {
        let mut config = base.clone();
        let path = "/kubepods/burstable/pod8";
        config.workloads.push(Workload {
            name: "shop/web-1".to_owned(),
            identity: identity(),
            cgroups: vec![CgroupGlob::fixed(path, Position::default()).expect("a path")],
            posture: Posture::Enforce,
            ports: BTreeMap::from([("http".to_owned(), (6, 8080))]),
            addresses: vec![Addr::v4([10, 0, 1, 2])],
            at: Position::default(),
            young: false,
            owner: "shop/Deployment/web".to_owned(),
        });
        let pod = Who::Identity { identity: Arc::new(identity()), posture: Posture::Enforce, ports: Arc::default() };
        let at = |last: u8, port: u16| AddrPort { addr: Addr::v4([10, 96, 0, last]), port, proto: 6, pad: 0 };
        config.endpoints.extend([
            Peer { place: Place::Addr(Addr::v4([10, 0, 2, 2])), who: pod },
            Peer { place: Place::Addr(Addr::v4([192, 0, 2, 7])), who: Who::Class(Class::RemoteNode) },
            Peer { place: Place::Port(at(1, 443)), who: Who::Class(Class::KubeApiserver) },
            Peer { place: Place::Addr(Addr::v4([10, 0, 2, 9])), who: Who::Class(Class::Unknown) },
        ]);
        let service = |title: &str, last, who| Service {
            title: title.to_owned(),
            places: vec![at(last, 443)],
            backends: vec![(who, 6443)],
        };
        config.services.extend([
            service("default/kubernetes:https", 1, Backend::Class(Class::KubeApiserver)),
            service("shop/web:http", 2, Backend::Identity(Arc::new(identity()))),
        ]);
        let range = |text: &str| widen_prefix(text.parse().expect("a range"));
        config.ranges.extend([range("10.0.0.0/16"), range("fd00:244::/48")]);
        config
    }

    #[test]
    fn pods_keep_who_they_are_and_lose_their_addresses() {
        let base = base();
        let left = Left::of(&known(&base), &base, &BTreeMap::from([("shop".to_owned(), Lowered::Audit)]));
        let text = serde_json::to_string(&left).expect("JSON");
        let back: Left = serde_json::from_str(&text).expect("read back");
        assert_eq!(back, left);
        let config = back.over(&base).expect("good");
        assert_eq!(config.workloads.len(), 1);
        let [pod] = &config.workloads[..] else { panic!("{:?}", config.workloads) };
        assert_eq!((pod.posture, pod.cgroups[0].as_str()), (Posture::Enforce, "/kubepods/burstable/pod8"));
        assert!(pod.addresses.is_empty(), "by now it may be another's");
        let added = &config.endpoints[base.endpoints.len()..];
        assert!(added.iter().all(|p| matches!(p.who, Who::Class(Class::RemoteNode | Class::KubeApiserver))));
        assert_eq!(added.len(), 2);
        let titles: Vec<&str> = config.services.iter().map(|s| s.title.as_str()).collect();
        assert_eq!(titles, ["default/kubernetes:https"]);
        assert_eq!(config.ranges, known(&base).ranges);
    }

    #[test]
    fn what_cannot_be_read_is_refused_whole() {
        let base = base();
        let good = serde_json::to_string(&Left::of(&known(&base), &base, &BTreeMap::new())).expect("JSON");
        for (from, to) in [
            ("remote-node", "remote"),
            ("10.0.0.0/16", "10.0.0.0/160"),
            ("/kubepods/burstable/pod8", "kubepods"),
            ("\"ids\":[\"spiffe://t/ns/shop/sa/web\"]", "\"ids\":[]"),
        ] {
            assert!(good.contains(from), "{from} in {good}");
            let left: Left = serde_json::from_str(&good.replace(from, to)).expect("still JSON of that form");
            assert!(left.over(&base).is_err(), "{to}");
        }
        assert!(serde_json::from_str::<Left>(&good.replace("\"pods\"", "\"pod\"")).is_err());
    }
}
