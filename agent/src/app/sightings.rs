//! What events tell beside the counters, gathered until the store takes it: executables.
//!
//! The kernel sends no event of what is allowed unless it is asked to. So where an allowed edge grows of which no event
//! told anything yet, it is asked for a moment ([`Sightings::wants_allowed`]), a few times and no more.
//!
//! Bounded: a flood of events costs a look-up each, and what finds no room is counted. Nothing here is needed for an
//! exact count, so nothing is lost with the agent but detail.

use super::snapshot::Names;
use crate::history::Link;
use crate::store::Sighting;
use bulkhead_common::event::Event;
use bulkhead_common::maps::EdgeKey;
use bulkhead_common::{Direction, PeerId};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many kinds of sighting are gathered between two writes.
const ROOM: usize = 4096;
/// How many processes' executables are remembered, and for how long: a process may become another by exec.
const PROCESSES: usize = 1024;
const FRESH: Duration = Duration::from_secs(1);

/// Sightings gathered by one task for another.
#[derive(Clone, Debug, Default)]
pub struct Sightings(Arc<Mutex<Gathered>>);

#[derive(Debug, Default)]
struct Gathered {
    /// When last.
    all: HashMap<Key, u64>,
    overflow: u64,
    /// How often was asked for events of an edge; [`HEARD`] once one came.
    asked: HashMap<EdgeKey, u8>,
    /// Until when events of what is allowed are wanted, and from when they may be wanted again.
    asking: Option<(Instant, Instant)>,
}

/// How many edges are remembered as asked for.
const EDGES: usize = 1 << 16;
/// How often is asked for events of one edge. Of some there are none.
const TIMES: u8 = 5;
/// Not to be asked for any more.
const HEARD: u8 = u8::MAX;
/// For how long is asked, and how long not after that.
const ASK: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_secs(8);

/// What makes two sightings the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    edge: EdgeKey,
    executable: Arc<str>,
}

impl Sightings {
    /// An allowed edge grew: if no event told anything of it yet, they are wanted for a moment.
    pub fn miss(&self, edge: &EdgeKey, now: Instant) {
        let mut gathered = self.lock();
        let Gathered { asked, asking, .. } = &mut *gathered;
        let room = asked.len() < EDGES;
        let may = asking.is_none_or(|(until, again)| now < until || now >= again);
        let times = match asked.get_mut(edge) {
            Some(times) => times,
            None if room => asked.entry(*edge).or_default(),
            None => return,
        };
        if may && *times < TIMES {
            *times += 1;
            if asking.is_none_or(|(_, again)| now >= again) {
                *asking = Some((now + ASK, now + ASK + REST));
            }
        }
    }

    /// Whether events of what is allowed are wanted.
    pub fn wants_allowed(&self, now: Instant) -> bool {
        self.lock().asking.is_some_and(|(until, _)| now < until)
    }

    /// Takes an event up.
    pub fn note(&self, event: &Event, executable: Option<&Arc<str>>, now: u64) {
        let edge = EdgeKey {
            src: event.src,
            dst: event.dst,
            port: event.dport,
            proto: event.proto,
            direction: event.direction,
            outcome: event.outcome,
            reason: event.reason,
            ..EdgeKey::default()
        };
        let mut gathered = self.lock();
        if let Some(asked) = gathered.asked.get_mut(&edge).filter(|_| executable.is_some()) {
            *asked = HEARD;
        }
        let Some(executable) = executable else { return };
        let key = Key { edge, executable: Arc::clone(executable) };
        if let Some(last) = gathered.all.get_mut(&key) {
            *last = now;
        } else if gathered.all.len() < ROOM {
            gathered.all.insert(key, now);
        } else {
            gathered.overflow += 1;
        }
    }

    /// Takes out what was gathered, by name, and how many events found no room.
    pub fn take(&self, names: &Names) -> (Vec<Sighting>, u64) {
        let (all, overflow) = {
            let mut gathered = self.lock();
            (std::mem::take(&mut gathered.all), std::mem::take(&mut gathered.overflow))
        };
        let named = all.into_iter().filter_map(|(key, last)| {
            let Key { edge, executable } = key;
            Some(Sighting {
                link: Link {
                    source: names.peer(PeerId(edge.src)),
                    destination: names.peer(PeerId(edge.dst)),
                    protocol: edge.proto,
                    port: edge.port,
                },
                direction: Direction::from_u8(edge.direction)?,
                executable: executable.to_string(),
                last,
            })
        });
        (named.collect(), overflow)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Gathered> {
        // Whole after each statement, so also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which executable a process is, looked up once in a while: in a flood, the same few processes come again and again.
#[derive(Debug, Default)]
pub struct Executables(HashMap<u32, Process>);

#[derive(Debug)]
struct Process {
    comm: [u8; 16],
    at: Instant,
    executable: Option<Arc<str>>,
}

impl Executables {
    /// The executable, best effort: the process may be gone, or have become another.
    pub fn of(&mut self, event: &Event, now: Instant) -> Option<Arc<str>> {
        if event.pid == 0 {
            return None;
        }
        if let Some(p) = self.0.get(&event.pid)
            && p.comm == event.comm
            && now.saturating_duration_since(p.at) < FRESH
        {
            return p.executable.clone();
        }
        if self.0.len() >= PROCESSES {
            self.0.clear();
        }
        let link = std::fs::read_link(format!("/proc/{}/exe", event.pid)).ok();
        let executable: Option<Arc<str>> =
            link.map(|exe| crate::serve::api::printable(exe.as_os_str().as_bytes()).into());
        self.0.insert(event.pid, Process { comm: event.comm, at: now, executable: executable.clone() });
        executable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_gathered_and_what_finds_no_room_is_counted() {
        let sightings = Sightings::default();
        let event = Event { src: 256, dst: 7, dport: 443, proto: 6, ..Event::default() };
        let exe: Arc<str> = "/bin/a".into();
        for now in 0..3 {
            sightings.note(&event, Some(&exe), now);
        }
        // Nothing to tell beside the counter.
        sightings.note(&Event { dst: 257, ..event }, None, 3);
        let (all, overflow) = sightings.take(&Names::default());
        assert_eq!((all.len(), overflow), (1, 0));
        assert_eq!((all[0].last, all[0].executable.as_str()), (2, "/bin/a"));
        for n in 0..=u16::try_from(ROOM).expect("small") {
            sightings.note(&Event { dport: n, ..event }, Some(&exe), 0);
        }
        let (all, overflow) = sightings.take(&Names::default());
        assert_eq!((all.len(), overflow), (ROOM, 1));
        assert_eq!(sightings.take(&Names::default()).0.len(), 0);
    }

    #[test]
    fn events_of_what_is_allowed_are_asked_for_until_one_came() {
        let sightings = Sightings::default();
        let event = Event { src: 256, dst: 257, dport: 80, proto: 6, ..Event::default() };
        let edge = EdgeKey { src: 256, dst: 257, port: 80, proto: 6, ..EdgeKey::default() };
        let start = Instant::now();
        assert!(!sightings.wants_allowed(start));
        sightings.miss(&edge, start);
        assert!(sightings.wants_allowed(start) && !sightings.wants_allowed(start + ASK));
        // Not again at once; and not for ever.
        sightings.miss(&edge, start + ASK);
        assert!(!sightings.wants_allowed(start + ASK));
        for round in 1..20 {
            sightings.miss(&edge, start + (ASK + REST) * round);
        }
        assert!(!sightings.wants_allowed(start + (ASK + REST) * 19));
        // Another edge, of which an event comes.
        let (edge, event) = (EdgeKey { port: 81, ..edge }, Event { dport: 81, ..event });
        let later = start + (ASK + REST) * 100;
        sightings.miss(&edge, later);
        assert!(sightings.wants_allowed(later));
        sightings.note(&event, Some(&"/bin/a".into()), 0);
        sightings.miss(&edge, later + ASK + REST);
        assert!(!sightings.wants_allowed(later + ASK + REST));
    }

    #[test]
    fn an_executable_is_looked_up_again_after_a_while() {
        let mut all = Executables::default();
        let event = Event { pid: std::process::id(), ..Event::default() };
        let start = Instant::now();
        let first = all.of(&event, start).expect("ours");
        assert!(Arc::ptr_eq(&first, &all.of(&event, start).expect("ours")));
        assert!(!Arc::ptr_eq(&first, &all.of(&event, start + FRESH).expect("ours")));
        assert_eq!(all.of(&Event::default(), start), None);
    }
}
