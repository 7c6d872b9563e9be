//! The numbers of identities and of workload instances.
//!
//! A number once given keeps its meaning for as long as the kernel's set of maps lives (its *generation*), also over
//! restarts of the agent: the roster is on disk before a number gets into the kernel. With another generation the
//! numbers start anew. Pure; [`super::state`] stores it.

use crate::identity::Identity;
use bulkhead_common::PeerId;
use bulkhead_common::maps::capacity;
use bulkhead_common::slots::Binding;
use foldhash::HashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Who has which number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Roster {
    generation: u64,
    next_instance: u32,
    numbers: HashMap<Identity, PeerId>,
    identities: BTreeMap<PeerId, Identity>,
    instances: BTreeMap<u64, u32>,
}

/// Which numbers a roster has given out: none are given back, so as long as this is the same, what is on disk says enough.
/// That it still has the number of a cgroup that is gone does no harm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    generation: u64,
    identities: usize,
    next_instance: u32,
}

/// There are no numbers left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Full {
    /// Of identities.
    #[error("all {} identities are given out; numbers are never reused, so start anew: bulkhead uninstall, then start", capacity::IDENTITIES - PeerId::FIRST_IDENTITY.0)]
    Identities,
    /// Of instances.
    #[error("all {} instance numbers are given out; start anew: bulkhead uninstall, then start", Binding::MAX_INSTANCE)]
    Instances,
}

impl Roster {
    /// An empty one, for a new set of maps.
    pub fn new(generation: u64) -> Self {
        Self {
            generation,
            next_instance: 1,
            numbers: HashMap::default(),
            identities: BTreeMap::new(),
            instances: BTreeMap::new(),
        }
    }

    /// The set of maps in which these numbers mean something.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// How far it has got.
    pub fn extent(&self) -> Extent {
        let Self { generation, next_instance, identities, numbers: _, instances: _ } = self;
        Extent { generation: *generation, identities: identities.len(), next_instance: *next_instance }
    }

    /// The number of an identity; a new one if it has none.
    ///
    /// # Errors
    /// When there are no numbers left.
    pub fn peer(&mut self, identity: &Identity) -> Result<PeerId, Full> {
        if let Some(n) = self.numbers.get(identity) {
            return Ok(*n);
        }
        let n = self.identities.last_key_value().map_or(PeerId::FIRST_IDENTITY, |(last, _)| PeerId(last.0 + 1));
        if n.0 >= capacity::IDENTITIES {
            return Err(Full::Identities);
        }
        self.numbers.insert(identity.clone(), n);
        self.identities.insert(n, identity.clone());
        Ok(n)
    }

    /// The number of the instance that runs in this cgroup; a new one if it has none.
    ///
    /// # Errors
    /// When there are no numbers left.
    pub fn instance(&mut self, cgroup: u64) -> Result<u32, Full> {
        if let Some(n) = self.instances.get(&cgroup) {
            return Ok(*n);
        }
        let n = self.next_instance;
        if n > Binding::MAX_INSTANCE {
            return Err(Full::Instances);
        }
        self.next_instance += 1;
        self.instances.insert(cgroup, n);
        Ok(n)
    }

    /// Forgets the instances whose cgroups are gone. The kernel never gives a cgroup's id out twice, and the numbers
    /// aren't given out again either.
    pub fn retain(&mut self, living: &BTreeSet<u64>) {
        self.instances.retain(|cgroup, _| living.contains(cgroup));
    }

    /// Who has this number.
    pub fn identity(&self, peer: PeerId) -> Option<&Identity> {
        self.identities.get(&peer)
    }

    /// Every identity that ever had a number, by number.
    pub fn identities(&self) -> impl Iterator<Item = (PeerId, &Identity)> {
        self.identities.iter().map(|(n, i)| (*n, i))
    }
}

/// The roster as it lies on disk.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    generation: u64,
    next_instance: u32,
    identities: Vec<StoredIdentity>,
    instances: BTreeMap<u64, u32>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredIdentity {
    number: u32,
    identity: Identity,
}

impl From<Stored> for Roster {
    fn from(s: Stored) -> Self {
        let Stored { generation, next_instance, identities, instances } = s;
        let identities: BTreeMap<PeerId, Identity> =
            identities.into_iter().map(|i| (PeerId(i.number), i.identity)).collect();
        let numbers = identities.iter().map(|(n, i)| (i.clone(), *n)).collect();
        let past = instances.values().max().map_or(1, |n| n + 1);
        Self { generation, next_instance: next_instance.max(past), numbers, identities, instances }
    }
}

impl From<Roster> for Stored {
    fn from(r: Roster) -> Self {
        let Roster { generation, next_instance, numbers: _, identities, instances } = r;
        let identities = identities.into_iter().map(|(n, identity)| StoredIdentity { number: n.0, identity }).collect();
        Self { generation, next_instance, identities, instances }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(n: u8) -> Identity {
        let id = format!("spiffe://t/{n}").parse().expect("an id");
        Identity { namespace: String::new(), ids: BTreeSet::from([id]) }
    }

    proptest! {
        /// Whatever happens in whatever order, restarts included: no number is given to two, and none changes.
        #[test]
        fn numbers_are_given_once(steps in proptest::collection::vec((0u8..3, 0u8..20), 0..80)) {
            let mut roster = Roster::new(7);
            let (mut peers, mut instances) = (BTreeMap::new(), BTreeMap::new());
            let mut alive = BTreeSet::new();
            for (what, n) in steps {
                match what {
                    0 => {
                        let got = roster.peer(&identity(n)).expect("room");
                        prop_assert!(got.is_identity());
                        prop_assert_eq!(*peers.entry(n).or_insert(got), got);
                        prop_assert_eq!(roster.identity(got), Some(&identity(n)));
                    }
                    1 if alive.contains(&u64::from(n)) => {
                        alive.remove(&u64::from(n));
                        roster.retain(&alive);
                    }
                    1 => {
                        alive.insert(u64::from(n));
                        let got = roster.instance(u64::from(n)).expect("room");
                        prop_assert!(instances.insert(got, n).is_none(), "{} was given before", got);
                        prop_assert_eq!(roster.instance(u64::from(n)), Ok(got));
                    }
                    _ => {
                        let text = serde_json::to_string(&roster).expect("JSON");
                        let back: Roster = serde_json::from_str(&text).expect("back");
                        prop_assert_eq!(&back, &roster);
                        roster = back;
                    }
                }
            }
            let unique: BTreeSet<_> = peers.values().collect();
            prop_assert_eq!(unique.len(), peers.len());
        }
    }

    #[test]
    fn says_when_it_is_full() {
        let mut roster = Roster::new(1);
        roster.next_instance = Binding::MAX_INSTANCE + 1;
        assert_eq!(roster.instance(1), Err(Full::Instances));
        roster.identities.insert(PeerId(capacity::IDENTITIES - 1), identity(1));
        assert_eq!(roster.peer(&identity(2)), Err(Full::Identities));
    }
}
