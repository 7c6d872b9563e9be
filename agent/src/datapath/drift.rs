//! Whether the kernel's tables still say what was compiled, and putting them right.
//!
//! What is compared is what stands in the tables, read back whole, with the image; what the agent remembers of them plays
//! no part. Nobody but root could have changed them, by mistake or not.

use super::{CommitError, Committed, Datapath};
use crate::image::Image;
use crate::plan::{Found, Key, payloads};
use bulkhead_common::PeerId;
use bulkhead_common::slots::ABSENT;
use std::collections::BTreeMap;
use std::io;

/// How the tables differ from an image, in entries and defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Drift {
    /// What should be there and isn't.
    pub missing: u64,
    /// What says something else.
    pub changed: u64,
    /// What should not be there.
    pub foreign: u64,
    /// Whether other levels are looked at, or other built-ins are on.
    pub words: bool,
}

impl Drift {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// From what was read.
    fn of(image: &Image, found: &Found) -> Self {
        let mut drift =
            Self { words: (found.levels, found.built_ins) != (image.levels, image.built_ins), ..Self::default() };
        let entries: BTreeMap<Key, u64> =
            found.entries.iter().map(|(k, e)| (*k, e.payload)).filter(|(_, p)| *p != ABSENT).collect();
        drift.compare(payloads(image).collect(), entries);
        let baselines: BTreeMap<PeerId, u64> = image.baselines.iter().map(|(peer, b)| (*peer, b.encode())).collect();
        drift.compare(baselines, found.baselines.clone());
        drift
    }

    fn compare<K: Ord>(&mut self, expected: BTreeMap<K, u64>, mut found: BTreeMap<K, u64>) {
        for (key, payload) in expected {
            match found.remove(&key) {
                None => self.missing += 1,
                Some(other) if other != payload => self.changed += 1,
                Some(_) => {}
            }
        }
        self.foreign += u64::try_from(found.len()).unwrap_or(u64::MAX);
    }
}

impl Datapath {
    /// Compares; `None` while a commit isn't settled yet.
    pub fn verify(&self, image: &Image) -> io::Result<Option<Drift>> {
        if !self.is_settled() {
            return Ok(None);
        }
        Ok(Some(Drift::of(image, &self.tables.read()?)))
    }

    /// Puts an image into force, going by what stands in the tables.
    pub fn realign(&mut self, image: &Image) -> Result<Committed, CommitError> {
        self.settle()?;
        self.state = self.tables.restore().map_err(io::Error::other)?;
        self.commit(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Entry;
    use bulkhead_common::slots::{Baseline, Binding, Sides};

    #[test]
    fn each_kind_of_difference_is_counted() {
        let mut image = Image { levels: 4, ..Image::default() };
        for (id, peer) in [(1, 256), (2, 257), (3, 258)] {
            image.cgroups.insert(id, Binding::of(PeerId(peer)));
        }
        image.baselines.insert(PeerId(256), Baseline { sides: Sides::NONE, sockets_now: 0, sockets_audited: 0 });
        let entry = |payload| Entry { index: 1, payload };
        let mut found = Found { levels: 4, ..Found::default() };
        found.entries = payloads(&image).map(|(k, p)| (k, entry(p))).collect();
        found.baselines = image.baselines.iter().map(|(k, b)| (*k, b.encode())).collect();
        assert!(Drift::of(&image, &found).is_none());
        found.entries.insert(Key::Cgroup(2), entry(Binding::of(PeerId(256)).encode()));
        found.entries.insert(Key::Cgroup(3), entry(ABSENT));
        found.entries.insert(Key::Cgroup(4), entry(Binding::of(PeerId(256)).encode()));
        let open = Baseline { sides: Sides::ALL, sockets_now: 0, sockets_audited: 0 };
        found.baselines.insert(PeerId(256), open.encode());
        found.levels = 5;
        assert_eq!(Drift::of(&image, &found), Drift { missing: 1, changed: 2, foreign: 1, words: true });
    }
}
