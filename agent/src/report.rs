//! Blast radius: whom each identity can reach by the ruleset, in one hop and by way of others, and the sum of that as one
//! number, the lateral-movement surface. docs/blast-radius.md says what it means and what it doesn't.
//!
//! Judged by the verdict itself over the compiled tables, so it is what the kernel does, not what policies seem to say.

use crate::flows::PeerName;
use crate::image::Image;
use crate::inventory::Inventory;
use bulkhead_common::maps::RuleKey;
use bulkhead_common::verdict::{Flow, block_mask, judge};
use bulkhead_common::{Class, PeerId, proto};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

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
    /// How many identities there are.
    pub identities: u64,
    /// Ordered pairs of two identities: what could reach what in a flat network.
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
    /// How many it could connect to, if everything that is audited were enforced.
    pub audited_direct: u64,
    /// How many it could get to then.
    pub audited_reachable: u64,
    /// Peers without an identity that it can connect to, by class.
    pub outside: Vec<String>,
}

/// The report of a ruleset.
pub fn report(image: &Image, inventory: &Inventory) -> Report {
    let peers: Vec<PeerId> = inventory.identities.keys().copied().collect();
    let names: Vec<PeerName> = inventory
        .identities
        .values()
        .map(|f| PeerName { id: f.identity.to_string(), namespace: f.identity.namespace.clone() })
        .collect();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let (mut now, mut audited) = (Matrix::new(peers.len()), Matrix::new(peers.len()));
    for (i, from) in peers.iter().enumerate() {
        for (j, to) in peers.iter().enumerate().filter(|(j, _)| *j != i) {
            let open = open(image, *from, *to);
            now.set(i, j, open.now);
            audited.set(i, j, open.audited);
        }
    }
    let (reach_now, reach_audited) = (now.closure(), audited.closure());
    let mut identities: Vec<Reach> = names
        .iter()
        .enumerate()
        .map(|(i, name)| Reach {
            identity: name.clone(),
            direct: now.row(i).map(|j| names[j].clone()).collect(),
            reachable: count(reach_now.row(i).count()),
            exposed_to: count((0..peers.len()).filter(|j| now.has(*j, i)).count()),
            audited_direct: count(audited.row(i).count()),
            audited_reachable: count(reach_audited.row(i).count()),
            // Nobody is reached as that one.
            outside: Class::ALL
                .into_iter()
                .filter(|c| *c != Class::SnatIngress && open(image, peers[i], c.id()).now)
                .map(|c| c.as_str().to_owned())
                .collect(),
        })
        .collect();
    identities.sort_by(|a, b| b.reachable.cmp(&a.reachable).then_with(|| a.identity.cmp(&b.identity)));
    let n = count(peers.len());
    let surface = Surface {
        identities: n,
        pairs: n.saturating_mul(n.saturating_sub(1)),
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
        for key in image.rules.range(from..=to).map(|(k, _)| k).filter(|k| k.size != RuleKey::HEADER) {
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

    fn set(&mut self, row: usize, column: usize, on: bool) {
        if on {
            self.bits[row * self.width + column / 64] |= 1 << (column % 64);
        }
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
