//! Blast radius: whom each identity can reach by the ruleset, in one hop and by way of others, and the sum of that as one
//! number, the lateral-movement surface. docs/blast-radius.md says what it means and what it doesn't.
//!
//! Judged by the verdict itself over the compiled tables, so it is what the kernel does, not what policies seem to say.

use crate::flows::PeerName;
use crate::image::Image;
use crate::inventory::{IdentityFacts, Inventory};
use bulkhead_common::maps::RuleKey;
use bulkhead_common::verdict::{Flow, block_mask, judge};
use bulkhead_common::{Class, PeerId, proto};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The protocols that rules can name.
const PROTOCOLS: [u8; 4] = [proto::TCP, proto::UDP, proto::SCTP, proto::UDPLITE];

/// What can reach what.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// All of it in numbers.
    pub surface: Surface,
    /// Each identity, the one that reaches most first.
    pub identities: Vec<Reach>,
}

/// The lateral-movement surface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Surface {
    /// How many identities run here.
    pub identities: u64,
    /// Ordered pairs of such an identity and another one: what could reach what in a flat network.
    pub pairs: u64,
    /// Pairs of which the first can open a connection to the second, on any port, by the verdict in force.
    pub direct: u64,
    /// Pairs of which the first can get to the second, also by way of others, by the verdict in force.
    pub reachable: u64,
    /// The same as `direct`, if everything that is audited were enforced.
    pub audited_direct: u64,
    /// The same as `reachable`, if everything that is audited were enforced.
    pub audited_reachable: u64,
}

impl Surface {
    /// The one number: the part of all pairs that is reachable, from 0 (nobody can get to anybody) to 1 (flat).
    pub fn now(&self) -> f64 {
        part(self.reachable, self.pairs)
    }

    /// The same, if everything that is audited were enforced.
    pub fn audited(&self) -> f64 {
        part(self.audited_reachable, self.pairs)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share, of far fewer pairs than a double counts exactly")]
fn part(n: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { n as f64 / all as f64 }
}

/// Whom one identity can reach.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reach {
    /// Who.
    pub identity: PeerName,
    /// Whom it can connect to.
    pub direct: Vec<PeerName>,
    /// How many it can get to, also by way of others.
    pub reachable: u64,
    /// How many can connect to it.
    pub exposed_to: u64,
    /// Whom it could connect to, if everything that is audited were enforced.
    #[serde(default)]
    pub audited: Vec<PeerName>,
    /// How many those are.
    pub audited_direct: u64,
    /// How many it could get to then.
    pub audited_reachable: u64,
    /// Peers without an identity that it can connect to, by class.
    pub outside: Vec<String>,
}

/// Whom one identity can connect to, before it is counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Links {
    now: Vec<PeerName>,
    audited: Vec<PeerName>,
    outside: Vec<String>,
}

/// The report of a ruleset: of the identities that run here. Where others do, ways on from those aren't known.
pub fn report(image: &Image, inventory: &Inventory) -> Report {
    let name = |f: &IdentityFacts| PeerName { id: f.identity.to_string(), namespace: f.identity.namespace.clone() };
    let all: Vec<(PeerId, PeerName)> = inventory.identities.iter().map(|(peer, f)| (*peer, name(f))).collect();
    let mut links = BTreeMap::new();
    for (from, name) in all.iter().filter(|(peer, _)| !inventory.elsewhere.contains(peer)) {
        let mut of = Links::default();
        for (to, other) in all.iter().filter(|(to, _)| to != from) {
            let open = open(image, *from, *to);
            of.now.extend(open.now.then(|| other.clone()));
            of.audited.extend(open.audited.then(|| other.clone()));
        }
        // Nobody is reached as that one.
        let classes = Class::ALL.into_iter().filter(|c| *c != Class::SnatIngress);
        let classes = classes.filter(|c| open(image, *from, c.id()).now);
        of.outside = classes.map(|c| c.as_str().to_owned()).collect();
        links.insert(name.clone(), of);
    }
    counted(&links, all.into_iter().map(|(_, name)| name).collect())
}

/// What several nodes report, as one: each tells of the identities that run there.
pub fn merged(reports: impl IntoIterator<Item = Report>) -> Report {
    let mut links: BTreeMap<PeerName, Links> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for reach in reports.into_iter().flat_map(|r| r.identities) {
        let Reach { identity, direct, audited, outside, .. } = reach;
        all.insert(identity.clone());
        all.extend(direct.iter().chain(&audited).cloned());
        let of = links.entry(identity).or_default();
        of.now.extend(direct);
        of.audited.extend(audited);
        of.outside.extend(outside);
    }
    for of in links.values_mut() {
        for list in [&mut of.now, &mut of.audited] {
            list.sort();
            list.dedup();
        }
        of.outside.sort();
        of.outside.dedup();
    }
    counted(&links, all)
}

fn counted(links: &BTreeMap<PeerName, Links>, all: BTreeSet<PeerName>) -> Report {
    let all: Vec<PeerName> = all.into_iter().collect();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let matrix = |of: fn(&Links) -> &Vec<PeerName>| {
        let mut matrix = Matrix::new(all.len());
        for (name, links) in links {
            let Ok(i) = all.binary_search(name) else { continue };
            of(links).iter().filter_map(|other| all.binary_search(other).ok()).for_each(|j| matrix.set(i, j));
        }
        matrix
    };
    let (now, audited) = (matrix(|l| &l.now), matrix(|l| &l.audited));
    let (reach_now, reach_audited) = (now.closure(), audited.closure());
    let row = |(name, links): (&PeerName, &Links)| {
        let i = all.binary_search(name).ok()?;
        Some(Reach {
            identity: name.clone(),
            direct: links.now.clone(),
            reachable: count(reach_now.row(i).count()),
            exposed_to: count((0..all.len()).filter(|j| now.has(*j, i)).count()),
            audited: links.audited.clone(),
            audited_direct: count(links.audited.len()),
            audited_reachable: count(reach_audited.row(i).count()),
            outside: links.outside.clone(),
        })
    };
    let mut identities: Vec<Reach> = links.iter().filter_map(row).collect();
    identities.sort_by(|a, b| b.reachable.cmp(&a.reachable).then_with(|| a.identity.cmp(&b.identity)));
    let surface = Surface {
        identities: count(identities.len()),
        pairs: count(identities.len()).saturating_mul(count(all.len().saturating_sub(1))),
        direct: now.ones(),
        reachable: reach_now.ones(),
        audited_direct: audited.ones(),
        audited_reachable: reach_audited.ones(),
    };
    Report { surface, identities }
}

/// Whether any port is open from one peer to another.
#[derive(Clone, Copy, Default)]
struct Open {
    now: bool,
    audited: bool,
}

/// Tries one port of each kind that the tables tell apart: of each block that names the pair, or either of them with any
/// workload opposite, and one that no block names.
fn open(image: &Image, src: PeerId, dst: PeerId) -> Open {
    let mut ports: BTreeSet<(u8, u16)> = BTreeSet::new();
    let mut blocks: Vec<(u8, u16, u8)> = Vec::new();
    for (s, d) in [(src, dst), (src, PeerId::ANY_WORKLOAD), (PeerId::ANY_WORKLOAD, dst)] {
        let from = RuleKey { src: s.0, dst: d.0, port: 0, proto: 0, size: 0 };
        let to = RuleKey { port: u16::MAX, proto: u8::MAX, size: u8::MAX, ..from };
        let named = image.rules.as_slice();
        let start = named.partition_point(|(k, _)| *k < from);
        let named = named[start..].iter().map(|(k, _)| k).take_while(|k| **k <= to);
        for key in named.filter(|k| k.size != RuleKey::HEADER) {
            blocks.push((key.proto, key.port, key.size));
            // Port 0 is nobody's; the block's last port is in it, too.
            ports.insert((key.proto, key.port | !block_mask(key.size)));
        }
    }
    for protocol in PROTOCOLS {
        let named = |p: u16| blocks.iter().any(|(of, port, size)| *of == protocol && p & block_mask(*size) == *port);
        ports.extend((1..=u16::MAX).find(|p| !named(*p)).map(|p| (protocol, p)));
    }
    let mut open = Open::default();
    for (proto, port) in ports {
        let judgement = judge(image, &Flow { src, dst, proto, port });
        open.now |= judgement.sides.now();
        open.audited |= judgement.sides.audited();
        if open.now && open.audited {
            break;
        }
    }
    open
}

/// A square of bits.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Matrix {
    size: usize,
    width: usize,
    bits: Vec<u64>,
}

impl Matrix {
    fn new(size: usize) -> Self {
        let width = size.div_ceil(64);
        Self { size, width, bits: vec![0; size * width] }
    }

    fn set(&mut self, row: usize, column: usize) {
        self.bits[row * self.width + column / 64] |= 1 << (column % 64);
    }

    fn has(&self, row: usize, column: usize) -> bool {
        self.bits[row * self.width + column / 64] >> (column % 64) & 1 == 1
    }

    fn row(&self, row: usize) -> impl Iterator<Item = usize> {
        (0..self.size).filter(move |c| self.has(row, *c))
    }

    fn ones(&self) -> u64 {
        self.bits.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whatever can be got to by steps. Nobody reaches itself.
    fn closure(&self) -> Self {
        let mut all = self.clone();
        for through in 0..self.size {
            let step: Vec<u64> = all.bits[through * self.width..(through + 1) * self.width].to_vec();
            for row in (0..self.size).filter(|r| *r != through) {
                if all.has(row, through) {
                    let to = &mut all.bits[row * self.width..(row + 1) * self.width];
                    to.iter_mut().zip(&step).for_each(|(to, step)| *to |= step);
                }
            }
        }
        for i in 0..self.size {
            all.bits[i * self.width + i / 64] &= !(1 << (i % 64));
        }
        all
    }
}

#[cfg(test)]
mod tests;
