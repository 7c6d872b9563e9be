//! Pods that others may not know yet: their address is new, or they have none so far.
//!
//! What such a pod sends first may be dropped at its peer's node, until that node has heard of the address; the programs
//! then have it sent again soon. Pure; the time is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long after a pod has its address all nodes are taken to know it.
const TOLD: Duration = Duration::from_secs(5);

/// Since when each pod has an address, by its UID; `None`: it has none.
#[derive(Debug, Default)]
pub struct Newcomers {
    since: BTreeMap<String, Option<Instant>>,
    /// Whether it was looked before: whoever was there at the first look is no newcomer.
    begun: bool,
}

impl Newcomers {
    /// The UIDs of those among these pods, given with whether they have an address.
    pub fn among<'p>(&mut self, pods: impl Iterator<Item = (&'p str, bool)>, now: Instant) -> BTreeSet<String> {
        let former = std::mem::take(&mut self.since);
        let long_ago = now.checked_sub(TOLD);
        for (uid, has_address) in pods {
            let since = match former.get(uid) {
                Some(Some(since)) if has_address => Some(*since),
                None if has_address && !self.begun => long_ago,
                _ => has_address.then_some(now),
            };
            self.since.insert(uid.to_owned(), since);
        }
        self.begun = true;
        self.young(now)
    }

    /// The same among the pods that were told last.
    pub fn young(&self, now: Instant) -> BTreeSet<String> {
        let young = |since: &Option<Instant>| since.is_none_or(|since| now.duration_since(since) < TOLD);
        self.since.iter().filter(|(_, since)| young(since)).map(|(uid, _)| uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_new_until_its_address_is_old() {
        let mut all = Newcomers::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut among = |pods: &[(&str, bool)], seconds| {
            let young = all.among(pods.iter().copied(), at(seconds));
            young.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(among(&[("a", true), ("b", false)], 0), "b", "a was there before us");
        assert_eq!(among(&[("a", true), ("b", false), ("c", true)], 60), "b c");
        assert_eq!(among(&[("a", true), ("b", true), ("c", true)], 64), "b c");
        assert_eq!(among(&[("a", true), ("b", true), ("c", true)], 66), "b");
        assert_eq!(among(&[("a", true), ("b", true), ("c", false)], 70), "c", "another sandbox");
        assert_eq!(among(&[("b", true), ("c", true)], 71), "c");
        assert_eq!(among(&[("b", true), ("c", true)], 90), "");
    }
}
