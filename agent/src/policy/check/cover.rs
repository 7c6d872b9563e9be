//! Whether one rule says everything that another says, told from the texts alone.
//!
//! It errs to one side only: where it says yes it is so, whatever workloads there are. Several rules that cover
//! another only together aren't found.

use super::super::diagnostic::At;
use super::super::model::{Peer, Policy, PortRange, PortSpec, Ports};
use super::Statement;
use bulkhead_common::Class;
use ipnet::IpNet;
use std::collections::HashMap;

/// An end of a rule: those whom its policy selects, or the peers that it names.
#[derive(Clone, Copy)]
pub(super) enum Ends<'a> {
    Selected(&'a Policy),
    Named(&'a [At<Peer>]),
}

impl<'a> Ends<'a> {
    /// The peers, one by one.
    pub(super) fn peers(self) -> impl Iterator<Item = Peer> + use<'a> {
        let (patterns, peers) = match self {
            Self::Selected(policy) => (Some(&policy.selector), None),
            Self::Named(peers) => (None, Some(peers)),
        };
        let selected = patterns.into_iter().flatten().map(|p| Peer::Id(p.value.clone()));
        selected.chain(peers.into_iter().flatten().map(|p| p.value.clone()))
    }

    fn namespace(self) -> Option<&'a str> {
        match self {
            Self::Selected(policy) => policy.namespace(),
            Self::Named(_) => None,
        }
    }

    fn covers(self, other: Self) -> bool {
        let here = self.namespace().is_none_or(|ns| other.namespace() == Some(ns));
        here && other.peers().all(|theirs| self.peers().any(|ours| peer_covers(&ours, &theirs)))
    }
}

fn peer_covers(a: &Peer, b: &Peer) -> bool {
    match (a, b) {
        (Peer::Id(a), Peer::Id(b)) => a.covers(b),
        (Peer::Class(a), Peer::Class(b)) => a == b,
        (Peer::Class(class), Peer::Cidr { .. }) => *class == Class::World,
        (Peer::Cidr { net, except }, Peer::Cidr { net: other, except: others }) => {
            let left_out = |hole: &IpNet| {
                let elsewhere = !other.contains(hole) && !hole.contains(other);
                elsewhere || others.iter().any(|o| o.contains(hole))
            };
            net.contains(other) && except.iter().all(left_out)
        }
        _ => false,
    }
}

fn ports_cover(a: &Ports, b: &Ports) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() };
    let covers = |a: &PortSpec, b: &PortSpec| {
        a.proto == b.proto
            && match (&a.ports, &b.ports) {
                (PortRange::All, _) => true,
                (PortRange::Range(first, last), PortRange::Range(f, l)) => first <= f && l <= last,
                (PortRange::Named(a), PortRange::Named(b)) => a == b,
                _ => false,
            }
    };
    b.iter().all(|theirs| a.iter().any(|ours| covers(ours, theirs)))
}

impl Statement<'_> {
    /// Whether this decides, in every verdict that the other one reaches, every connection that the other speaks of.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.bits & other.bits == other.bits
            && self.except.is_empty()
            && ports_cover(self.ports, other.ports)
            && self.from.covers(other.from)
            && self.to.covers(other.to)
    }
}

/// Finds the statements that may cover another without comparing all with all.
pub(super) struct Index {
    from: Side,
    to: Side,
}

#[derive(Default)]
struct Side {
    /// By a peer that covers itself only.
    exact: HashMap<String, Vec<usize>>,
    /// With a peer that may cover others.
    broad: Vec<usize>,
}

impl Side {
    fn of<'a>(ends: impl Iterator<Item = Ends<'a>>) -> Self {
        let mut side = Self::default();
        for (n, ends) in ends.enumerate() {
            for peer in ends.peers() {
                let list = match &peer {
                    Peer::Id(p) if p.is_exact() => side.exact.entry(peer.to_string()).or_default(),
                    _ => &mut side.broad,
                };
                if list.last() != Some(&n) {
                    list.push(n);
                }
            }
        }
        side
    }

    /// What may cover these ends: it must cover the first of their peers.
    fn near(&self, ends: Ends<'_>) -> (&[usize], &[usize]) {
        let first = ends.peers().next().map(|p| p.to_string()).unwrap_or_default();
        (self.exact.get(&first).map_or(&[], Vec::as_slice), &self.broad)
    }
}

impl Index {
    pub(super) fn of(statements: &[Statement<'_>]) -> Self {
        Self { from: Side::of(statements.iter().map(|s| s.from)), to: Side::of(statements.iter().map(|s| s.to)) }
    }

    /// The numbers of those that may cover this one, the lowest first.
    pub(super) fn near(&self, statement: &Statement<'_>) -> Vec<usize> {
        let (from, to) = (self.from.near(statement.from), self.to.near(statement.to));
        let (exact, broad) = if from.0.len() + from.1.len() <= to.0.len() + to.1.len() { from } else { to };
        let mut near: Vec<usize> = exact.iter().chain(broad).copied().collect();
        near.sort_unstable();
        near.dedup();
        near
    }
}
