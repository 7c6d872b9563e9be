//! Who claims which address, and what the named ports of an identity are, gathered from all that have it.

use super::super::peers::Ports;
use crate::identity::Identity;
use bulkhead_common::Addr;
use foldhash::HashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who claims an address. There may be a hundred thousand.
#[derive(Clone, Debug)]
pub(super) struct Claim<'a> {
    pub(super) addr: Addr,
    pub(super) identity: &'a Arc<Identity>,
    pub(super) by: By,
}

/// Whose claim it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    /// This pod's of the node's own.
    Own(u32),
    /// That of a pod of this one among the other nodes.
    Node(u32),
}

/// All claims, in the order of addresses.
pub(super) struct Claims<'a>(Vec<Claim<'a>>);

impl<'a> Claims<'a> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those of one address together, one address after the other.
    pub(super) fn by_address(&self) -> impl Iterator<Item = &[Claim<'a>]> {
        self.0.chunk_by(|a, b| a.addr == b.addr)
    }

    pub(super) fn of(mut all: Vec<Claim<'a>>) -> Self {
        // Stable: this node's pods stay first.
        all.sort_by_key(|c| u128::from_be_bytes(c.addr.0));
        Self(all)
    }

    /// The first claim to this address.
    pub(super) fn first(&self, addr: &Addr) -> Option<&Claim<'a>> {
        let start = self.0.partition_point(|c| c.addr < *addr);
        self.0.get(start).filter(|c| c.addr == *addr)
    }
}

/// Named ports by identity, gathered from all that have it. A name that means two things means nothing.
#[derive(Default)]
pub(super) struct Named<'a> {
    /// By identity, which is shared by all that have it here.
    by_identity: HashMap<*const Identity, Gathered<'a>>,
    none: Arc<Ports>,
}

struct Gathered<'a> {
    /// Of one of them; mostly of all.
    first: &'a Ports,
    /// Where they differ: what each name means, if it is one thing.
    merged: Option<BTreeMap<String, Option<(u8, u16)>>>,
    settled: Option<Arc<Ports>>,
}

impl<'a> Named<'a> {
    /// One that has this identity has these ports.
    pub(super) fn add(&mut self, identity: &Arc<Identity>, ports: &'a Ports) {
        let new = || Gathered { first: ports, merged: None, settled: None };
        let all = self.by_identity.entry(Arc::as_ptr(identity)).or_insert_with(new);
        if all.merged.is_none() && (std::ptr::eq(all.first, ports) || all.first == ports) {
            return;
        }
        let first = all.first;
        let once = |ports: &Ports| ports.iter().map(|(name, port)| (name.clone(), Some(*port))).collect();
        let merged = all.merged.get_or_insert_with(|| once(first));
        for (name, port) in ports {
            let kept = merged.entry(name.clone()).or_insert(Some(*port));
            if *kept != Some(*port) {
                *kept = None;
            }
        }
    }

    /// From here on the ports of an identity are shared.
    pub(super) fn settle(&mut self) {
        self.by_identity.values_mut().filter(|all| !all.is_empty()).for_each(|all| all.settled = Some(all.clear()));
    }

    /// What its named ports are.
    pub(super) fn of(&self, identity: &Arc<Identity>) -> Arc<Ports> {
        match self.by_identity.get(&Arc::as_ptr(identity)) {
            Some(Gathered { settled: Some(ports), .. }) => Arc::clone(ports),
            Some(all) if !all.is_empty() => all.clear(),
            _ => Arc::clone(&self.none),
        }
    }
}

impl Gathered<'_> {
    fn is_empty(&self) -> bool {
        self.merged.is_none() && self.first.is_empty()
    }

    fn clear(&self) -> Arc<Ports> {
        match &self.merged {
            None => Arc::new(self.first.clone()),
            Some(merged) => Arc::new(merged.iter().filter_map(|(name, port)| Some((name.clone(), (*port)?))).collect()),
        }
    }
}
