//! Imports against evaluators that read the standards for themselves; and samples as people write them.

mod golden;
mod mesh;
mod obvious;
mod random;
mod refusals;
mod tiers;

use super::*;
use crate::config::Template;
use crate::identity::Identity;
use crate::inventory::{IdentityFacts, Inventory, Posture};
use crate::policy::PolicySet;
use crate::policy::reference::{self, Connection, End};
use bulkhead_common::PeerId;
use obvious::{Who, World};
use std::collections::{BTreeMap, BTreeSet};

/// At least this many cases; more by the environment's PROPTEST_CASES: 10000 take some minutes.
pub(super) fn cases(least: u32) -> proptest::test_runner::Config {
    let config = proptest::test_runner::Config::default();
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    proptest::test_runner::Config {
        cases: least.max(asked),
        max_shrink_iters: 4000,
        failure_persistence: None,
        ..config
    }
}

/// A finding in one line.
fn line(f: &Finding) -> String {
    format!("{}:{}:{}: {}: {}: {} ({})", f.file, f.line, f.column, f.object, f.field, f.reason, f.errs.as_str())
}

pub(super) fn template() -> Template {
    Template::new("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}", "cluster.local").expect("a template")
}

/// What the importer is told of a world.
pub(super) fn estate(world: &World) -> Estate {
    let pods = world.pods.iter().map(|p| Pod {
        namespace: p.namespace.clone(),
        name: p.name.clone(),
        id: p.id().parse().expect("an ID"),
        labels: p.labels.clone(),
        addresses: vec![p.address],
        node_addresses: vec!["192.0.2.1".parse().expect("an address")],
        host_network: false,
        ports: p.ports.iter().map(|(name, port)| (name.clone(), BTreeSet::from([*port]))).collect(),
    });
    let estate = Estate::new(template(), pods.collect(), world.namespaces.clone()).expect("all namespaces");
    estate.with_api_servers(vec!["192.0.2.1".parse().expect("an address")])
}

/// The same as an agent would know it: identities with what their pods agree on.
pub(super) fn inventory(world: &World) -> Inventory {
    let mut ports: BTreeMap<String, BTreeMap<String, Option<(u8, u16)>>> = BTreeMap::new();
    let mut namespaces = BTreeMap::new();
    for pod in &world.pods {
        namespaces.insert(pod.id(), pod.namespace.clone());
        let own = ports.entry(pod.id()).or_default();
        for (name, port) in &pod.ports {
            let kept = own.entry(name.clone()).or_insert(Some(*port));
            if *kept != Some(*port) {
                *kept = None;
            }
        }
    }
    let facts = ports.into_iter().map(|(id, ports)| IdentityFacts {
        identity: Identity { namespace: namespaces[&id].clone(), ids: BTreeSet::from([id.parse().expect("an ID")]) },
        posture: Posture::Observe,
        ports: ports.into_iter().filter_map(|(name, port)| Some((name, port?))).collect(),
    });
    Inventory { identities: (PeerId::FIRST_IDENTITY.0..).map(PeerId).zip(facts).collect(), ..Inventory::default() }
}

/// The imported policies, enforced.
pub(super) fn policies(imported: &Imported) -> PolicySet {
    imported.files.iter().flat_map(|f| parse(&f.file, &f.text).expect("what was written is good")).collect()
}

/// Whether they let this connection through.
pub(super) fn allows(set: &PolicySet, inventory: &Inventory, world: &World, c: (Who, Who, u8, u16)) -> bool {
    let end = |who: Who| match who {
        Who::Pod(n) => {
            let id = world.pods[n].id().parse().expect("an ID");
            let facts = inventory.identities.values().find(|f| f.identity.ids.contains(&id));
            End::Workload(facts.expect("everybody is in the inventory"))
        }
        Who::Outside(address) => End::World(address),
    };
    let (from, to, proto, port) = c;
    let judged = reference::judge(set, inventory, &Connection { from: end(from), to: end(to), proto, port });
    judged.egress.now.allows && judged.ingress.now.allows
}

/// How an import compares with the standard, over all connections of a world.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Connections for which the import claims to be exact.
    pub(super) exact: u64,
    /// All of them.
    pub(super) all: u64,
    /// Of the exact ones, those that are denied.
    pub(super) denied: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.exact += more.exact;
        self.all += more.all;
        self.denied += more.denied;
    }
}

/// Compares: never more than the standard allows; and the same for pods whose identities no finding is about.
pub(super) fn compare(
    world: &World,
    text: &str,
    ports: &[(u8, u16)],
    selects: impl Fn(&str, &obvious::Pod) -> bool,
    standard: impl Fn(Who, Who, u8, u16) -> bool,
) -> Result<Tally, String> {
    let wish = Wish { mode: Mode::Enforce, ..Wish::default() };
    let files = [("policies.yaml".to_owned(), text.to_owned())];
    let imported = import(&files, &estate(world), &wish).map_err(|faults| format!("{faults:#?}\n{text}"))?;
    let (set, inventory) = (policies(&imported), inventory(world));
    let about: BTreeSet<&str> =
        imported.findings.iter().filter(|f| f.errs != Errs::Neither).map(|f| f.object.as_str()).collect();
    let touched: BTreeSet<String> =
        world.pods.iter().filter(|p| about.iter().any(|object| selects(object, p))).map(obvious::Pod::id).collect();
    let exact = |who: Who| match who {
        Who::Pod(n) => !touched.contains(&world.pods[n].id()),
        Who::Outside(_) => true,
    };
    let mut tally = Tally::default();
    for (from, to) in world.pairs() {
        for &(proto, port) in ports {
            let (ours, theirs) =
                (allows(&set, &inventory, world, (from, to, proto, port)), standard(from, to, proto, port));
            tally.all += 1;
            let exact = exact(from) && exact(to);
            if exact {
                tally.exact += 1;
                tally.denied += u64::from(!theirs);
            }
            if ours && !theirs || exact && ours != theirs {
                let written: String = imported.files.iter().map(|f| f.text.as_str()).collect();
                return Err(format!(
                    "{from:?} to {to:?} {proto}/{port}: imported {ours}, standard {theirs}\n{:#?}\n{text}\n{written}\n{:#?}",
                    world, imported.findings
                ));
            }
        }
    }
    Ok(tally)
}
