//! Services that are judged by whoever may answer: which of them will isn't known when a connection is opened.
//!
//! The source's side allows only if it allows each of them, at the port at which that one answers: else the connection
//! might reach whom it must not. The destinations' side allows if any does, since one that refuses does so itself, at its
//! own ingress, where it sees who comes. Made from the finished entries of the pairs, so it can't say otherwise than they.

use crate::image::{Image, join};
use crate::inventory::{Inventory, Service, WorkloadCgroup};
use bulkhead_common::maps::{AddrPort, RuleKey};
use bulkhead_common::slots::{ABSENT, Baseline, Permit, Sides};
use bulkhead_common::{Addr, Flow, PeerId, Tables, verdict};
use foldhash::{HashMap, HashSet};
use std::collections::BTreeSet;

/// Adds the entries of all Services, as seen from this node's workloads. Most are as they came of `former`, an inventory and
/// the image of it: those where neither the source nor the Service nor one of its backends was touched since.
pub(super) fn fill(image: &mut Image, inventory: &Inventory, former: Option<(&Inventory, &Image)>) {
    if inventory.services.is_empty() {
        return;
    }
    let sources = sources(&inventory.cgroups);
    let (mut old_sources, mut old_services, mut entries) = (BTreeSet::new(), HashSet::default(), Vec::new());
    if let Some((was, made)) = former {
        let touched = touched(image, made, was);
        old_sources = self::sources(&was.cgroups);
        old_sources.retain(|src| sources.contains(src) && !touched.contains(src));
        let were = by_peer(&was.services);
        let untouched = |s: &&Service| s.backends.iter().all(|(dst, _)| !touched.contains(dst));
        let same = by_peer(&inventory.services).into_iter();
        let same = same.filter(|(peer, all)| were.get(peer) == Some(all) && all.iter().all(untouched));
        old_services.extend(same.map(|(peer, _)| peer));
        let kept = |(key, _): &(&RuleKey, &u64)| {
            old_services.contains(&PeerId(key.dst)) && old_sources.contains(&PeerId(key.src))
        };
        entries.extend(made.rules.iter().filter(kept).map(|(key, permit)| (*key, *permit)));
    }
    let tables = Quick {
        rules: image.rules.iter().map(|(key, slot)| (*key, *slot)).collect(),
        baselines: image.baselines.iter().map(|(peer, baseline)| (*peer, baseline.encode())).collect(),
        image,
    };
    for src in &sources {
        let is_old = old_sources.contains(src);
        for service in inventory.services.iter().filter(|s| !is_old || !old_services.contains(&s.peer)) {
            for (proto, port) in &service.ports {
                let answers =
                    service.backends.iter().map(|(dst, at)| Flow { src: *src, dst: *dst, proto: *proto, port: *at });
                let permit =
                    answers.map(|flow| verdict::judge(&tables, &flow)).map(|j| (j.sides.0, j)).reduce(|a, b| {
                        let egress = a.0 & b.0 & (Sides::EGRESS);
                        let ingress = (a.0 | b.0) & Sides::INGRESS;
                        // The rules named are those of whoever is denied first.
                        let told = if a.1.outcome() as u8 >= b.1.outcome() as u8 { a.1 } else { b.1 };
                        (egress | ingress, told)
                    });
                let Some((sides, told)) = permit else { continue };
                let key = RuleKey { src: src.0, dst: service.peer.0, port: *port, proto: *proto, size: 16 };
                let permit =
                    Permit { sides: Sides(sides), egress_rule: told.egress_rule, ingress_rule: told.ingress_rule };
                entries.push((key, permit.encode()));
            }
        }
    }
    image.rules.extend(entries);
    // For sources that aren't this node's, of which there are none at its hooks: as strict as anything here, and where nothing
    // is refused they don't say that something were.
    let closed = Baseline { sides: Sides::NONE, sockets_now: 0, sockets_audited: 0 };
    let strictest = image.baselines.get(&PeerId::UNKNOWN_WORKLOAD).copied().unwrap_or(closed);
    image.baselines.extend(inventory.services.iter().map(|s| (s.peer, strictest)));
}

/// What stands at different ports of one address may be answered by different backends.
fn by_peer(services: &[Service]) -> HashMap<PeerId, Vec<&Service>> {
    let mut all: HashMap<PeerId, Vec<&Service>> = HashMap::default();
    for service in services {
        all.entry(service.peer).or_default().push(service);
    }
    all
}

/// At whose ends something is judged otherwise now than in a former image, Services aside: one of their entries or their
/// default differs.
fn touched(now: &Image, made: &Image, was: &Inventory) -> HashSet<PeerId> {
    let services: HashSet<PeerId> = was.services.iter().map(|s| s.peer).collect();
    let made_rules = made.rules.iter().filter(|(key, _)| !services.contains(&PeerId(key.dst)));
    let rules = join(now.rules.iter().map(|(k, v)| (*k, *v)), made_rules.map(|(k, v)| (*k, *v)));
    let rules = rules.filter(|(_, now, made)| now != made).flat_map(|(key, ..)| [PeerId(key.src), PeerId(key.dst)]);
    let made_baselines = made.baselines.iter().filter(|(peer, _)| !services.contains(peer));
    let baselines = join(now.baselines.iter().map(|(k, v)| (*k, *v)), made_baselines.map(|(k, v)| (*k, *v)));
    rules.chain(baselines.filter(|(_, now, made)| now != made).map(|(peer, ..)| peer)).collect()
}

/// An image, and what judging a flow looks for where it is found quickly.
struct Quick<'a> {
    rules: HashMap<RuleKey, u64>,
    baselines: HashMap<PeerId, u64>,
    image: &'a Image,
}

impl Tables for Quick<'_> {
    fn rule(&self, key: &RuleKey) -> u64 {
        self.rules.get(key).copied().unwrap_or(ABSENT)
    }
    fn baseline(&self, id: PeerId) -> u64 {
        self.baselines.get(&id).copied().unwrap_or(ABSENT)
    }
    fn address(&self, addr: &Addr) -> u64 {
        self.image.address(addr)
    }
    fn address_port(&self, key: &AddrPort) -> u64 {
        self.image.address_port(key)
    }
    fn prefix(&self, addr: &Addr) -> u64 {
        self.image.prefix(addr)
    }
}

/// Who of this node may connect to one.
pub(super) fn sources(cgroups: &[WorkloadCgroup]) -> BTreeSet<PeerId> {
    cgroups.iter().map(|c| c.peer).chain([PeerId::UNKNOWN_WORKLOAD]).collect()
}
