//! The names that workloads have asked for, for as long as they may use the addresses.

use super::Answer;
use bulkhead_common::PeerId;
use bulkhead_common::outside::has_room;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many addresses are remembered for all workloads together.
const CAPACITY: u32 = 1 << 13;
/// An answer holds at least and at most so long ...
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(86_400);
/// ... and then so long more: programs keep addresses for longer than they were told to.
const GRACE: Duration = Duration::from_secs(3600);

/// By which name each workload last asked for an address.
///
/// Who asks for much keeps no more than there is still room for; of what it has, the first to expire goes.
#[derive(Debug, Default)]
pub struct Resolved {
    of: HashMap<PeerId, HashMap<IpAddr, Named>>,
    held: u32,
}

#[derive(Debug)]
struct Named {
    name: Arc<str>,
    until: Instant,
}

impl Resolved {
    /// Takes up what a workload was answered.
    pub fn remember(&mut self, workload: PeerId, answer: &Answer, now: Instant) {
        let name: Arc<str> = answer.name.as_str().into();
        for (address, ttl) in &answer.addresses {
            let holds = Duration::from_secs((*ttl).into()).clamp(SHORTEST, LONGEST) + GRACE;
            let named = Named { name: Arc::clone(&name), until: now + holds };
            let own = self.of.entry(workload).or_default();
            let address = address.to_canonical();
            if !own.contains_key(&address) {
                let size = u32::try_from(own.len()).unwrap_or(u32::MAX);
                if has_room(size, self.held, CAPACITY) {
                    self.held += 1;
                } else if let Some(first) = own.iter().min_by_key(|(_, n)| n.until).map(|(a, _)| *a) {
                    own.remove(&first);
                } else {
                    continue;
                }
            }
            own.insert(address, named);
        }
    }

    /// The name by which the workload asked for this address, if the answer may still be in use.
    pub fn name(&self, workload: PeerId, address: IpAddr, now: Instant) -> Option<Arc<str>> {
        let named = self.of.get(&workload)?.get(&address.to_canonical())?;
        (now <= named.until).then(|| Arc::clone(&named.name))
    }

    /// Forgets what doesn't hold any more.
    pub fn tidy(&mut self, now: Instant) {
        for own in self.of.values_mut() {
            own.retain(|_, named| now <= named.until);
        }
        self.of.retain(|_, own| !own.is_empty());
        self.held = self.of.values().map(|own| u32::try_from(own.len()).unwrap_or(u32::MAX)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &str, address: u32, ttl: u32) -> Answer {
        let address = std::net::Ipv4Addr::from(address).into();
        Answer { name: name.to_owned(), addresses: vec![(address, ttl)] }
    }

    fn at(address: u32) -> IpAddr {
        std::net::Ipv4Addr::from(address).into()
    }

    #[test]
    fn a_name_is_its_workloads_and_ends() {
        let (mut all, now) = (Resolved::default(), Instant::now());
        let (web, other) = (PeerId(256), PeerId(257));
        all.remember(web, &answer("api.example", 1, 300), now);
        assert_eq!(all.name(web, at(1), now).as_deref(), Some("api.example"));
        assert_eq!(all.name(other, at(1), now), None);
        let end = Duration::from_secs(300) + GRACE;
        assert!(all.name(web, at(1), now + end).is_some());
        assert_eq!(all.name(web, at(1), now + end + SHORTEST), None);
        all.remember(web, &answer("later.example", 1, 0), now);
        assert_eq!(all.name(web, at(1), now + SHORTEST).as_deref(), Some("later.example"));
        all.tidy(now + end);
        assert_eq!((all.of.len(), all.held), (0, 0));
    }

    #[test]
    fn who_asks_for_everything_leaves_room_for_others() {
        let (mut all, now) = (Resolved::default(), Instant::now());
        let (hostile, web) = (PeerId(256), PeerId(257));
        for n in 0..3 * CAPACITY {
            all.remember(hostile, &answer("x.example", n, 300 + n), now);
        }
        assert_eq!(all.held, CAPACITY / 2);
        for n in 0..100 {
            all.remember(web, &answer("api.example", n, 60), now);
        }
        assert!((0..100).all(|n| all.name(web, at(n), now).is_some()));
        assert!(all.name(hostile, at(3 * CAPACITY - 1), now).is_some(), "the latest stay");
    }
}
