//! How good a suggestion is, judged by what is known of the estate and by the reference evaluator: nothing that suggest
//! says of itself counts, except that what it doesn't cover must be named by it or by simulate.

use crate::estate::Estate;
use anyhow::{Context, Result, bail};
use bulkhead::flows::PeerName;
use bulkhead::history::{History, Link, Record};
use bulkhead::inventory::{Inventory, Posture};
use bulkhead::judge::name_of;
use bulkhead::policy::model::PortRange;
use bulkhead::policy::reference::{self, Connection, End};
use bulkhead::policy::{Policy, PolicySet, parse};
use bulkhead::simulate::{Under, simulate};
use bulkhead::suggest::{Suggestion, Wish, suggest};
use bulkhead_common::{Addr, Class, Outcome, proto};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The greatest share of what is allowed that nobody was seen to use.
const MOST_SURPLUS: f64 = 0.05;

/// What came of one estate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Score {
    /// Its name.
    pub(crate) estate: String,
    /// How many dependencies it has.
    pub(crate) edges: usize,
    /// Of what is allowed, the share that is a dependency.
    pub(crate) precision: f64,
    /// Of the dependencies, the share that is allowed.
    pub(crate) recall: f64,
    /// Dependencies that were seen and are denied, without being set apart by name.
    pub(crate) false_denies: usize,
    /// Of what is allowed, the share that was never seen.
    pub(crate) surplus: f64,
    /// Dependencies that are denied and named: set apart, or found by simulating what came later.
    pub(crate) uncovered: Vec<String>,
    /// Dependencies that are denied and that nobody names.
    #[serde(skip)]
    pub(crate) unnamed: Vec<String>,
}

impl Score {
    /// Whether it is as it must be.
    pub(crate) fn is_good(&self) -> bool {
        self.false_denies == 0 && self.surplus <= MOST_SURPLUS && self.unnamed.is_empty()
    }
}

/// Suggests from what was seen, and scores it.
pub(crate) fn score(estate: &Estate) -> Result<Score> {
    let inventory = estate.inventory(Posture::Observe);
    let none = PolicySet::default();
    let suggestion = suggest(&estate.seen, &none, &inventory, &Wish::default())
        .with_context(|| format!("nothing is suggested for {}", estate.name))?;
    let policies = read_back(&suggestion)?;
    let everybody = estate.inventory(Posture::Enforce);
    let judge = Judge { policies: &policies, everybody: &everybody };
    let later = simulate(&estate.outside, &none, &policies, &inventory, &Under::Enforce);
    let named_later: BTreeSet<Link> = later
        .newly_denied
        .iter()
        .map(|v| {
            let (source, destination) = (v.source.clone(), v.destination.clone());
            Link { source, destination, protocol: v.protocol, port: v.port }
        })
        .collect();

    let (mut allowed_edges, mut false_denies) = (0, 0);
    let (mut uncovered, mut unnamed) = (Vec::new(), Vec::new());
    for dependency in &estate.dependencies {
        let link = estate.link(dependency)?;
        let seen = sightings(&estate.seen, &link);
        let denied: Vec<&&Record> = seen.iter().filter(|r| !judge.allows(r)).collect();
        let outside = sightings(&estate.outside, &link);
        if denied.is_empty() && outside.iter().all(|r| judge.allows(r)) && !(seen.is_empty() && outside.is_empty()) {
            allowed_edges += 1;
            continue;
        }
        let apart = denied.iter().all(|r| is_set_apart(&suggestion, r));
        if !apart {
            false_denies += 1;
        }
        let words = dependency.to_string();
        if named_later.contains(&link) || !denied.is_empty() && apart {
            uncovered.push(words);
        } else {
            unnamed.push(words);
        }
    }

    let (mut allowed, mut true_ones, mut never_seen) = (0u64, 0u64, 0u64);
    let truth: BTreeSet<Link> = estate.dependencies.iter().map(|d| estate.link(d)).collect::<Result<_>>()?;
    let used: BTreeSet<&Link> =
        estate.seen.records.iter().filter(|r| r.counts.established > 0).map(|r| &r.link).collect();
    for (link, ports) in judge.permissions(&addresses(estate)) {
        allowed += ports;
        // A range of several ports is as good as never seen: suggest writes none.
        true_ones += u64::from(truth.contains(&link));
        never_seen += ports - u64::from(used.contains(&link));
    }
    Ok(Score {
        estate: estate.name.clone(),
        edges: estate.dependencies.len(),
        precision: share(true_ones, allowed),
        recall: share(allowed_edges, u64::try_from(estate.dependencies.len())?),
        false_denies,
        surplus: if allowed == 0 { 0.0 } else { share(never_seen, allowed) },
        uncovered,
        unnamed,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a share of small numbers")]
fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 1.0 } else { part as f64 / of as f64 }
}

/// The policies, from the text that a user would get.
fn read_back(suggestion: &Suggestion) -> Result<PolicySet> {
    let mut all: Vec<Policy> = Vec::new();
    for file in &suggestion.files {
        match parse(&file.file, &file.text) {
            Ok(policies) => all.extend(policies),
            Err(faults) => bail!("{} isn't a good policy file: {}", file.file, faults[0]),
        }
    }
    if let Some(policy) = all.iter().find(|p| !p.edges.is_empty() || !p.denies.is_empty()) {
        bail!("{} has edges or denies, which suggest never writes", *policy.name);
    }
    let set: PolicySet = all.into_iter().collect();
    let findings = bulkhead::policy::check(&set, None);
    if let Some(finding) = findings.first() {
        bail!("`policy check` would complain: {finding}");
    }
    Ok(set)
}

/// What was established of a link.
fn sightings<'a>(history: &'a History, link: &Link) -> Vec<&'a Record> {
    history.records.iter().filter(|r| r.link == *link && r.counts.established > 0).collect()
}

fn is_set_apart(suggestion: &Suggestion, record: &Record) -> bool {
    suggestion.apart.iter().any(|a| {
        (&a.link.source, &a.link.destination) == (&record.link.source, &record.link.destination)
            && (a.link.protocol, a.link.port) == (proto::judged(record.link.protocol), record.link.port)
            && a.link.address.is_none_or(|address| Some(address) == record.address)
    })
}

/// Every address of the world that is seen at any time, and two that never are.
fn addresses(estate: &Estate) -> BTreeSet<IpAddr> {
    let records = estate.seen.records.iter().chain(&estate.outside.records);
    let never = ["192.0.2.254", "2001:db8:ffff::1"].map(|a| a.parse().expect("an address"));
    records.filter_map(|r| r.address).chain(never).collect()
}

struct Judge<'a> {
    policies: &'a PolicySet,
    everybody: &'a Inventory,
}

impl<'a> Judge<'a> {
    fn end(&self, name: &PeerName, address: Option<IpAddr>) -> Option<End<'a>> {
        if let Some(class) = Class::from_name(&name.id) {
            return match (class, address) {
                (Class::World, Some(a)) => reference::at_address(self.everybody, &widened(a), proto::TCP, 0),
                _ => Some(End::Class(class)),
            };
        }
        let has_name = |f: &&bulkhead::inventory::IdentityFacts| name_of(&f.identity) == *name;
        self.everybody.identities.values().find(has_name).map(End::Workload)
    }

    fn allows(&self, record: &Record) -> bool {
        let Link { source, destination, protocol, port } = &record.link;
        let (Some(from), Some(to)) = (self.end(source, record.address), self.end(destination, record.address)) else {
            return false;
        };
        self.passes(&Connection { from, to, proto: proto::judged(*protocol), port: *port })
    }

    fn passes(&self, c: &Connection<'_>) -> bool {
        // The suggested policies are in audit: what they say is the audited verdict.
        matches!(reference::judge(self.policies, self.everybody, c).outcome, Outcome::Allowed | Outcome::WouldAllow)
    }

    /// Everything that is allowed, as links with the number of ports from that port on. The world is one peer: allowed
    /// if any of its addresses is.
    fn permissions(&self, addresses: &BTreeSet<IpAddr>) -> Vec<(Link, u64)> {
        let workloads = self.everybody.identities.values().map(|f| (name_of(&f.identity), vec![End::Workload(f)]));
        let class = |c: Class| (PeerName { id: c.as_str().to_owned(), namespace: String::new() }, vec![End::Class(c)]);
        let mut ends: Vec<(PeerName, Vec<End<'_>>)> = workloads.collect();
        ends.extend(Class::ALL.into_iter().filter(|c| *c != Class::World).map(class));
        let world = addresses.iter().filter_map(|a| reference::at_address(self.everybody, &widened(*a), 6, 0));
        ends.push((PeerName { id: "world".to_owned(), namespace: String::new() }, world.collect()));
        let selecting: Vec<Vec<&Policy>> = ends.iter().map(|(_, e)| self.selecting(e)).collect();
        let mut all = Vec::new();
        for ((source, from), theirs) in ends.iter().zip(&selecting) {
            for ((destination, to), others) in ends.iter().zip(&selecting) {
                // Suggested policies have rules only, so one that selects neither end has no say.
                let policies: PolicySet = theirs.iter().chain(others).map(|p| (*p).clone()).collect();
                let judge = Judge { policies: &policies, everybody: self.everybody };
                for (protocol, first, last) in judge.ranges() {
                    let any = from.iter().flat_map(|f| to.iter().map(move |t| (*f, *t)));
                    let mut any = any.map(|(from, to)| Connection { from, to, proto: protocol, port: first });
                    if any.any(|c| judge.passes(&c)) {
                        let (source, destination) = (source.clone(), destination.clone());
                        let link = Link { source, destination, protocol, port: first };
                        all.push((link, u64::from(last - first) + 1));
                    }
                }
            }
        }
        all
    }

    /// The policies that select this end.
    fn selecting(&self, end: &[End<'_>]) -> Vec<&'a Policy> {
        self.policies.iter().filter(|p| end.iter().any(|e| reference::selects(p, e))).collect()
    }

    /// All ports of all protocols, cut wherever a policy names a port: within a range, all are judged alike. Without
    /// policies there is nothing to judge: neither end is a workload.
    fn ranges(&self) -> Vec<(u8, u16, u16)> {
        let mut ranges = Vec::new();
        if self.policies.is_empty() {
            return ranges;
        }
        for protocol in [proto::ICMP, proto::TCP, proto::UDP, proto::SCTP, proto::UDPLITE] {
            let mut cuts: BTreeSet<u32> = BTreeSet::from([0]);
            for policy in self.policies.iter() {
                let rules = policy.ingress.iter().chain(&policy.egress).flatten();
                for spec in rules.flat_map(|r| r.ports.iter().flatten()).filter(|s| s.proto == protocol) {
                    if let PortRange::Range(first, last) = spec.ports {
                        cuts.extend([u32::from(first), u32::from(last) + 1]);
                    }
                }
            }
            let end = if protocol == proto::ICMP { 1 } else { 65_536 };
            cuts.retain(|c| *c < end);
            let starts: Vec<u32> = cuts.into_iter().collect();
            let ends = starts.iter().skip(1).copied().chain([end]);
            for (first, end) in starts.iter().copied().zip(ends) {
                if let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(end - 1)) {
                    ranges.push((protocol, first, last));
                }
            }
        }
        ranges
    }
}

fn widened(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr(a.octets()),
    }
}
