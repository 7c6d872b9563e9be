//! From what was found to the compiler's input: identities and instances get their numbers here.
//!
//! Pure. What looks wrong but can be lived with becomes a warning with the place in the configuration.

use super::hierarchy::Scan;
use super::roster::{Full, Roster};
use crate::config::{Backend, Config, Peer, Position, Service, Who, Workload};
use crate::identity::Identity;
use crate::inventory::{self, AttachPoint, Endpoint, IdentityFacts, Inventory, Owner, Place, WorkloadCgroup};
use crate::policy::{Diagnostic, Severity};
use bulkhead_common::addr::V4_PREFIX_BITS;
use bulkhead_common::maps::PrefixKey;
use bulkhead_common::slots::Binding;
use bulkhead_common::{Addr, Class, PeerId};
use foldhash::HashMap;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Addresses of cloud metadata services: AWS, Azure, GCP (IPv4 and IPv6), and Alibaba.
const METADATA: [Addr; 4] = [
    Addr::v4([169, 254, 169, 254]),
    Addr([0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54]),
    Addr([0xfd, 0x20, 0, 0xce, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54]),
    Addr::v4([100, 100, 100, 200]),
];

/// One running instance of a workload, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// The workload's index in the configuration.
    pub workload: usize,
    /// Its cgroup's path.
    pub path: String,
    /// Its number.
    pub number: u32,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assembled {
    /// For the compiler.
    pub inventory: Inventory,
    /// For people.
    pub instances: Vec<Instance>,
    /// What looks wrong.
    pub warnings: Vec<Diagnostic>,
}

/// Numbers and gathers everything.
///
/// # Errors
/// When there are no numbers left; the last inventory should stay in force.
pub fn assemble(
    file: &str,
    config: &Config,
    scan: &Scan,
    host: &BTreeSet<Addr>,
    roster: &mut Roster,
) -> Result<Assembled, Full> {
    let mut out = Assembled::default();
    let mut warn = |at: Position, message: String, hint: &str| {
        out.warnings.push(Diagnostic {
            file: file.into(),
            line: at.line,
            column: at.column,
            severity: Severity::Warning,
            message,
            hint: Some(hint.to_owned()),
        });
    };
    let inventory = &mut out.inventory;
    inventory.built_ins = config.built_ins;
    inventory.attach_points = scan.attach.iter().map(|c| AttachPoint { id: c.id, level: c.level }).collect();

    if config.workloads.is_empty() {
        let hint = "name them under `workloads`";
        warn(Position::default(), "there are no workloads, so nothing is kept apart".to_owned(), hint);
    }
    let living = scan.workloads.iter().map(|(c, _)| c).chain(&scan.unlisted);
    let living: BTreeSet<u64> = living.map(|c| c.id).collect();
    roster.retain(&living);

    let mut running: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    let mut numbered: Vec<PeerId> = Vec::new();
    for w in &config.workloads {
        let peer = roster.peer(&w.identity)?;
        numbered.push(peer);
        let facts = inventory.identities.entry(peer).or_insert_with(|| IdentityFacts {
            identity: w.identity.clone(),
            posture: w.posture,
            ports: BTreeMap::new(),
        });
        facts.ports.extend(w.ports.clone());
    }
    for (cgroup, index) in &scan.workloads {
        let Some(peer) = numbered.get(*index).copied() else { continue };
        let instance = roster.instance(cgroup.id)?;
        running.entry(*index).or_default().push(instance);
        let flags = if config.workloads[*index].young { Binding::YOUNG } else { 0 };
        inventory.cgroups.push(WorkloadCgroup { id: cgroup.id, level: cgroup.level, peer, instance, flags });
        out.instances.push(Instance { workload: *index, path: cgroup.path.clone(), number: instance });
    }
    let host_cgroup = |c: &super::hierarchy::Cgroup| WorkloadCgroup {
        id: c.id,
        level: c.level,
        peer: Class::Host.id(),
        instance: 0,
        flags: 0,
    };
    inventory.cgroups.extend(scan.unlisted.iter().map(host_cgroup));

    let number = config.endpoints.len()
        + config.ranges.len()
        + config.workloads.iter().map(|w| w.addresses.len()).sum::<usize>()
        + config.services.iter().map(|s| s.places.len()).sum::<usize>();
    // And a few that are always there, so that it never has to grow.
    inventory.endpoints.reserve_exact(number + host.len() + METADATA.len() + 2);
    let mut endpoint = |place, owner| inventory.endpoints.push(Endpoint { place, owner });
    for (index, w) in config.workloads.iter().enumerate() {
        let Workload { addresses, at, name, .. } = w;
        let mine = running.get(&index).map_or(&[][..], Vec::as_slice);
        let instance = if let [one] = mine { *one } else { 0 };
        if mine.len() > 1 && !addresses.is_empty() {
            warn(
                *at,
                format!("`{name}` has addresses and {} cgroups, so it isn't known which of them is there", mine.len()),
                "give each its own entry with its own address",
            );
        }
        for a in addresses {
            endpoint(Place::Addr(*a), Owner::Workload { peer: numbered[index], instance });
        }
        // A pod's patterns stand for every place where its cgroup may be; only a file's must match something.
        for glob in w.cgroups.iter().filter(|g| g.at != Position::default()) {
            if !scan.workloads.iter().any(|(c, i)| *i == index && glob.matches(&c.path)) {
                warn(
                    glob.at,
                    format!("`{}` matches no cgroup at present", glob.as_str()),
                    "start the service, or compare with /proc/PID/cgroup of one of its processes",
                );
            }
        }
    }
    for (path, index) in &scan.contested {
        let w = &config.workloads[*index];
        warn(
            w.at,
            format!("`{path}` also matches an earlier workload, and is that one, not `{}`", w.name),
            "make the patterns exclude each other",
        );
    }
    for path in &scan.missing {
        warn(
            Position::default(),
            format!("the attach point `{path}` doesn't exist"),
            "attach to a slice that is always there, such as /system.slice",
        );
    }

    let mut peers = Vec::new();
    // Most endpoints share their identity with others.
    let mut shared: HashMap<*const Identity, PeerId> = HashMap::default();
    for Peer { place, who } in &config.endpoints {
        let owner = match who {
            Who::Class(c) => Owner::Class(*c),
            Who::Identity { identity, posture, ports } => {
                let peer = match shared.entry(Arc::as_ptr(identity)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        let peer = roster.peer(identity)?;
                        peers.push((peer, identity, *posture, ports));
                        *new.insert(peer)
                    }
                };
                Owner::Workload { peer, instance: 0 }
            }
        };
        endpoint(*place, owner);
    }
    for r in &config.ranges {
        endpoint(Place::Prefix(*r), Owner::Class(Class::Unknown));
    }
    for a in host {
        endpoint(Place::Addr(*a), Owner::Class(Class::Host));
    }
    for a in METADATA {
        endpoint(Place::Addr(a), Owner::Class(Class::Metadata));
    }
    // Where a loopback address has no socket behind it, it is still this host and not the world.
    let loopback = PrefixKey { bits: V4_PREFIX_BITS + 8, addr: Addr::v4([127, 0, 0, 0]) };
    endpoint(Place::Prefix(loopback), Owner::Class(Class::Host));
    endpoint(Place::Addr(Addr(std::net::Ipv6Addr::LOCALHOST.octets())), Owner::Class(Class::Host));
    for (peer, identity, posture, ports) in peers {
        let facts = inventory.identities.entry(peer).or_insert_with(|| IdentityFacts {
            identity: Identity::clone(identity),
            posture,
            ports: BTreeMap::new(),
        });
        for (name, port) in ports.iter() {
            facts.ports.entry(name.clone()).or_insert(*port);
        }
    }
    if config.cluster.is_some() {
        let own: BTreeSet<PeerId> = numbered.iter().copied().collect();
        inventory.elsewhere = inventory.identities.keys().filter(|peer| !own.contains(peer)).copied().collect();
    }
    for service in &config.services {
        self::service(service, inventory, roster)?;
    }
    Ok(out)
}

/// A Service's places. Where one peer alone answers, and at the very port, the place is that peer's.
fn service(service: &Service, inventory: &mut Inventory, roster: &mut Roster) -> Result<(), Full> {
    let mut backends = BTreeSet::new();
    for (backend, port) in &service.backends {
        let peer = match backend {
            Backend::Identity(identity) => roster.peer(identity)?,
            Backend::Class(class) => class.id(),
        };
        backends.insert((peer, *port));
    }
    let mut shared = BTreeSet::new();
    for place in &service.places {
        let owner = match (backends.first(), backends.len()) {
            // Nobody answers now: whoever will isn't known yet.
            (None, _) => Owner::Class(Class::Unknown),
            (Some((peer, port)), 1) if *port == place.port => match Class::from_number(peer.0) {
                Some(class) => Owner::Class(class),
                None => Owner::Workload { peer: *peer, instance: 0 },
            },
            _ => {
                shared.insert((place.proto, place.port));
                Owner::Workload { peer: roster.peer(&Identity::service(&service.title))?, instance: 0 }
            }
        };
        inventory.endpoints.push(Endpoint { place: Place::Port(*place), owner });
    }
    if !shared.is_empty() {
        let peer = roster.peer(&Identity::service(&service.title))?;
        inventory.services.push(inventory::Service { peer, ports: shared, backends });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::Cgroup;
    use super::*;

    const FILE: &str = "posture: audit\nworkloads:\n\
        - {name: web, id: spiffe://t/web, cgroup: /s/web-*, addresses: [10.0.0.1], ports: {http: 80}}\n\
        - {name: db, id: spiffe://t/db, cgroup: /s/db, addresses: [10.0.0.2], posture: enforce}\n\
        endpoints:\n- {address: 192.0.2.1, id: spiffe://t/ext}\n- {address: 192.0.2.2, class: node-dns}\n\
        ranges: [10.0.0.0/8]\n";

    fn cgroup(path: &str, id: u64) -> Cgroup {
        Cgroup { path: path.to_owned(), id, level: super::super::hierarchy::level(path) }
    }

    fn run(scan: &Scan, roster: &mut Roster) -> Assembled {
        let config = crate::config::parse("f", FILE).expect("fine");
        let host = BTreeSet::from([Addr::v4([203, 0, 113, 1])]);
        assemble("f", &config, scan, &host, roster).expect("room")
    }

    #[test]
    fn one_instance_owns_its_address_and_two_do_not() {
        let mut roster = Roster::new(1);
        let mut scan = Scan {
            workloads: vec![(cgroup("/s/web-1", 11), 0), (cgroup("/s/db", 12), 1)],
            attach: vec![cgroup("/s", 10)],
            ..Scan::default()
        };
        let one = run(&scan, &mut roster);
        let owner = |a: &Assembled, last: u8| {
            let place = Place::Addr(Addr::v4([10, 0, 0, last]));
            a.inventory.endpoints.iter().find(|e| e.place == place).map(|e| e.owner)
        };
        let web = PeerId(256);
        assert_eq!(owner(&one, 1), Some(Owner::Workload { peer: web, instance: 1 }));
        assert_eq!(one.warnings, []);
        assert_eq!(one.inventory.identities[&web].ports["http"], (6, 80));

        scan.workloads.push((cgroup("/s/web-2", 13), 0));
        let two = run(&scan, &mut roster);
        assert_eq!(owner(&two, 1), Some(Owner::Workload { peer: web, instance: 0 }));
        assert!(two.warnings[0].to_string().starts_with("f:3:3: warning: `web` has addresses and 2 cgroups"));
        // The first keeps its number, and db's endpoint its instance.
        assert_eq!(two.inventory.cgroups[0].instance, 1);
        assert_eq!(owner(&two, 2), owner(&one, 2));
    }

    #[test]
    fn everything_has_a_class() {
        let mut roster = Roster::new(1);
        let a = run(&Scan { unlisted: vec![cgroup("/s/sshd", 9)], ..Scan::default() }, &mut roster);
        let class = |place| {
            a.inventory.endpoints.iter().find(|e| e.place == place).map(|e| match e.owner {
                Owner::Class(c) => c.as_str(),
                Owner::Workload { .. } => "workload",
            })
        };
        assert_eq!(class(Place::Addr(Addr::v4([203, 0, 113, 1]))), Some("host"));
        assert_eq!(class(Place::Addr(Addr::v4([169, 254, 169, 254]))), Some("metadata"));
        assert_eq!(class(Place::Addr(Addr::v4([192, 0, 2, 1]))), Some("workload"));
        assert_eq!(class(Place::Addr(Addr::v4([192, 0, 2, 2]))), Some("node-dns"));
        assert_eq!(class(Place::Prefix(PrefixKey { bits: 104, addr: Addr::v4([10, 0, 0, 0]) })), Some("unknown"));
        assert_eq!(class(Place::Prefix(PrefixKey { bits: 104, addr: Addr::v4([127, 0, 0, 0]) })), Some("host"));
        assert_eq!(a.inventory.cgroups[0].peer, Class::Host.id());
        // Neither pattern has a cgroup now: two warnings, at the patterns.
        assert_eq!(a.warnings.len(), 2);
        assert!(a.warnings[0].message.contains("matches no cgroup"));
        assert_eq!(a.warnings[0].line, 3);
    }
}
