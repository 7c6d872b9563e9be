//! Whether as many connects are counted as were made, while two threads make them as fast as they can.

use crate::Figure;
use crate::keys::{Keys, Protocol};
use crate::lane::{Kind, Lane};
use crate::work::open;
use anyhow::{Context, Result};
use bulkhead_common::{Direction, Outcome};
use bulkhead_tests::sandbox::Turn;
use rustix::net::{SocketType, connect};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long they connect.
const RUN: Duration = Duration::from_secs(4);
/// Connects of one socket, one after the other.
const IN_A_ROW: u32 = 64;

/// The difference of what both say. Both make allowed and denied ones, to the same few destinations.
pub(crate) fn take(factor: f64) -> Result<Vec<Figure>> {
    let keys = Keys { endpoints: 10, ports: 1, protocol: Protocol::Udp };
    let mut lane = Lane::new(Kind::Bulkhead(keys))?;
    let run = RUN.mul_f64(factor);
    let mut client = lane.client.spawn(|turn| two_threads(turn, keys, run))?;
    client.finish(run + Duration::from_secs(30)).context("the client doesn't end")??;
    let said = client.received().first().context("the client says nothing")?;
    let made = Made::decode(said).context("the client says something else")?;
    let counted = |outcome: Outcome, edges: &[(bulkhead_common::maps::EdgeKey, u64)]| -> u64 {
        let by_source = edges.iter().filter(|(k, _)| k.direction == Direction::Egress as u8);
        by_source.filter(|(k, _)| k.outcome == outcome as u8).map(|(_, n)| n).sum()
    };
    let edges = lane.datapath().context("a lane with programs")?.edges()?;
    let (allowed, denied) = (counted(Outcome::Allowed, &edges), counted(Outcome::Denied, &edges));
    let difference = allowed.abs_diff(made.allowed) + denied.abs_diff(made.denied);
    let note = format!(
        "{} allowed and {} denied connects made, {allowed} and {denied} counted; {:.0} in a second by two threads",
        made.allowed,
        made.denied,
        (made.allowed + made.denied) as f64 / run.as_secs_f64(),
    );
    Ok(vec![Figure::alone("counted", "missed", difference as f64, note)])
}

/// What the clients themselves counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Made {
    allowed: u64,
    denied: u64,
}

impl Made {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.allowed.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.denied.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (allowed, denied) = bytes.split_first_chunk()?;
        Some(Self { allowed: u64::from_ne_bytes(*allowed), denied: u64::from_ne_bytes(denied.try_into().ok()?) })
    }
}

fn two_threads(turn: &mut Turn, keys: Keys, run: Duration) -> io::Result<()> {
    turn.doing("connecting from two threads");
    let made = thread::scope(|scope| {
        let one = || thread::Builder::new().spawn_scoped(scope, move || connects(keys, run));
        let both = [one()?, one()?];
        let mut made = Made::default();
        for thread in both {
            let mine = thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
            made = Made { allowed: made.allowed + mine.allowed, denied: made.denied + mine.denied };
        }
        Ok::<_, io::Error>(made)
    })?;
    turn.received(&made.encode())
}

/// Connects until the time is over; every eighth time to where no rule lets it.
fn connects(keys: Keys, run: Duration) -> io::Result<Made> {
    let (mut made, end) = (Made::default(), Instant::now() + run);
    while Instant::now() < end {
        let socket = open(SocketType::DGRAM)?;
        for n in 0..IN_A_ROW {
            if n % 8 == 7 {
                match connect(&socket, &keys.denied()) {
                    Err(rustix::io::Errno::PERM) => made.denied += 1,
                    Err(e) => return Err(e.into()),
                    Ok(()) => return Err(io::ErrorKind::AlreadyExists.into()),
                }
            } else {
                connect(&socket, &keys.destination(n % keys.rules()))?;
                made.allowed += 1;
            }
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_told_as_it_is() {
        let made = Made { allowed: 1 << 40, denied: 7 };
        assert_eq!(Made::decode(&made.encode()), Some(made));
        assert_eq!(Made::decode(&made.encode()[..15]), None);
    }
}
