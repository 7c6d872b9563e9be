//! What was seen, kept: counters of the kernel summed up over time, across restarts of the agent.
//!
//! A store is given *readings*: what the kernel's counters stood at. They only grow within one generation of the maps,
//! so what happened is the difference to the reading that is stored. A store writes both, the difference and the
//! reading, in one transaction: whenever the agent is killed, the next one finds either neither or both, so nothing is
//! lost and nothing stands there twice. A write that fails changes nothing, and the next one carries it too.
//!
//! [`Store`] is what the agent needs of it; [`Sqlite`] is the store of one host. A larger one can come later.

mod clock;
mod sqlite;

pub use clock::Clock;
pub use sqlite::{Sqlite, StoreError};

use crate::flows::PeerName;
use crate::history::{Counts, History, Link};
use bulkhead_common::Direction;
use bulkhead_common::maps::EdgeKey;
use std::net::IpAddr;
use std::sync::Arc;

/// Keeps what was seen.
pub trait Store: Send {
    /// Takes what was read since the last batch that was taken: all of it, or nothing.
    ///
    /// # Errors
    /// When it couldn't be written. Nothing is lost: readings are totals, so the next batch carries what this one did.
    fn record(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// What was seen from `since` to `until`, milliseconds since 1970. Where only sums over an hour or a day are kept
    /// any more, one that reaches into the window is in it as a whole.
    ///
    /// # Errors
    /// When it can't be read.
    fn history(&mut self, since: u64, until: u64) -> Result<History, StoreError>;

    /// Thins out and removes what is too old (unless the clock can't be trusted now) and what is too much.
    ///
    /// # Errors
    /// When it couldn't be written.
    fn tidy(&mut self, now: u64, trusted: bool) -> Result<(), StoreError>;

    /// How it is.
    fn health(&self) -> Health;
}

/// One reading of all counters that grew, and what events told beside.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Of which maps; counters of other maps begin at nothing.
    pub generation: u64,
    /// When it was read, milliseconds since 1970.
    pub at: u64,
    /// How long the agent has been counting since the batch before, by a clock that doesn't jump, milliseconds;
    /// `None`: it has just started.
    pub watched: Option<u64>,
    /// The counters. Those that didn't grow may be left out.
    pub readings: Vec<Reading>,
    /// Connections that the kernel counted without the ends, in this generation so far.
    pub unattributed: u64,
    /// What events told.
    pub sightings: Vec<Sighting>,
    /// Names by which workloads asked for addresses.
    pub names: Vec<Named>,
    /// The era of the counts by address. Of those before the one before it, there will be no more readings.
    pub era: u32,
}

/// What one counter stood at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The kernel's key.
    pub key: EdgeKey,
    /// The address of the end that has no identity, if the counter is about that address alone. What it counts is
    /// then also counted by the one without an address.
    pub address: Option<IpAddr>,
    /// Such counters begin anew in each era ([`bulkhead_common::outside`]); 0 of those without an address.
    pub era: u32,
    /// Who opened it.
    pub source: Arc<PeerName>,
    /// Who was connected to.
    pub destination: Arc<PeerName>,
    /// What it stands at.
    pub counts: Counts,
    /// When it was first read with anything in it.
    pub first: u64,
    /// When it last grew.
    pub last: u64,
}

/// What events told of one link: details that counters don't have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// Between whom.
    pub link: Link,
    /// Which end's hook told it.
    pub direction: Direction,
    /// The executable at that end.
    pub executable: String,
    /// When last, milliseconds since 1970.
    pub last: u64,
}

/// By which name a workload asked for an address. Chosen by strangers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Named {
    /// Who asked.
    pub workload: Arc<PeerName>,
    /// The address that it was answered.
    pub address: IpAddr,
    /// The name.
    pub name: Arc<str>,
}

/// What a store may take up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// How long anything is kept, days.
    pub days: u64,
    /// How long it is kept by the hour; then by the day.
    pub hourly_days: u64,
    /// Rows of counts.
    pub rows: u64,
    /// Bytes on disk: an eighth more while it is thinned out, and the write-ahead log, which is cut back to 4 MiB.
    pub bytes: u64,
    /// Edges to peers outside that are kept by address. A workload gets as many as there is still room for.
    pub addresses: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { days: 90, hourly_days: 2, rows: 1_000_000, bytes: 100 << 20, addresses: 16_384 }
    }
}

/// How a store is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// What is out of order.
    pub faults: Vec<String>,
    /// When it was last written, milliseconds since 1970; 0: never by this agent.
    pub written: u64,
    /// Rows of counts, when they were last counted.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Batches that couldn't be written (what they held came with a later one).
    pub failures: u64,
    /// Damaged stores that were kept aside and still lie there.
    pub aside: u64,
    /// Addresses, executables and names that found no room. Their connections are counted, without that detail.
    pub overflow: u64,
}

/// Adds up, and stays at the greatest number instead of beginning anew.
pub fn sum(a: Counts, b: Counts) -> Counts {
    zip(a, b, u64::saturating_add)
}

/// What happened from one reading to the next. A counter that shrank has begun anew: then all of it happened.
fn grown(now: Counts, before: Counts) -> Counts {
    let shrank = parts(now).iter().zip(parts(before)).any(|(now, before)| *now < before);
    if shrank { now } else { zip(now, before, u64::saturating_sub) }
}

/// What is left when a part is taken away.
fn rest(all: Counts, part: Counts) -> Counts {
    zip(all, part, u64::saturating_sub)
}

fn zip(a: Counts, b: Counts, f: impl Fn(u64, u64) -> u64) -> Counts {
    let (mut a, b) = (parts(a), parts(b));
    for (a, b) in a.iter_mut().zip(b) {
        *a = f(*a, b);
    }
    whole(a)
}

/// How many numbers there are in [`Counts`].
const PARTS: usize = 8;

/// The numbers, in the order of the store's columns.
const fn parts(c: Counts) -> [u64; PARTS] {
    let Counts {
        attempts,
        established,
        refused,
        timed_out,
        bytes_sent,
        bytes_received,
        packets_sent,
        packets_received,
    } = c;
    [attempts, established, refused, timed_out, bytes_sent, bytes_received, packets_sent, packets_received]
}

const fn whole(parts: [u64; PARTS]) -> Counts {
    let [attempts, established, refused, timed_out, bytes_sent, bytes_received, packets_sent, packets_received] = parts;
    Counts { attempts, established, refused, timed_out, bytes_sent, bytes_received, packets_sent, packets_received }
}
