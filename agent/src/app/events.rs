//! Events made readable: numbers become names, and followers and the log get them.
//!
//! The log is bounded in rate, and says how much it left out; counters have everything.

use super::kernel::Records;
use super::log::{Heard, Way};
use super::naming::Naming;
use super::sightings::{Executables, Sightings};
use super::snapshot::{Names, Snapshot};
use crate::cluster::denials::Pairs;
use crate::config::narrow;
use crate::flows::{self, Edge};
use crate::policy::Overrides;
use crate::serve::api::{Decision, printable};
use bulkhead_common::event::Event;
use bulkhead_common::{Addr, Direction, Hook, Outcome, PeerId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, watch};

/// Denials logged in a burst, and then per second.
const LOG_RATE: u32 = 20;
/// Decisions written to the decision log in a burst, and then per second: whoever is refused as fast as it can try
/// mustn't fill the disk and keep a processor busy. What is left out is counted there, and in the counters all the same.
const WRITE_RATE: u32 = 2000;

/// Who hears of events.
pub struct Listeners {
    /// Whoever follows.
    pub decisions: broadcast::Sender<Arc<Decision>>,
    /// The history's details.
    pub sightings: Sightings,
    /// Names of addresses.
    pub naming: Naming,
    /// The decision log.
    pub log: Option<Way>,
    /// Whoever writes Events of what was denied, of each pair now and then.
    pub denials: Option<mpsc::Sender<Arc<Decision>>>,
}

/// Passes events on until told to stop.
///
/// # Errors
/// When the stream breaks.
pub async fn run<E: Records<Event>>(
    mut events: E,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    listeners: Listeners,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let Listeners { decisions, sightings, naming, log: way, denials } = listeners;
    let mut pairs = Pairs::default();
    let mut executables = Executables::default();
    let mut rate = Rate::new(LOG_RATE, Instant::now());
    let mut writing = Rate::new(WRITE_RATE, Instant::now());
    loop {
        let batch = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            batch = events.next() => batch?,
        };
        let snapshot = Arc::clone(&snapshots.borrow());
        for event in &batch {
            let refused = Outcome::from_u8(event.outcome) != Some(Outcome::Allowed);
            let followed = decisions.receiver_count() > 0;
            let (instant, time) = (Instant::now(), super::clock::now());
            let executable = executables.of(event, instant);
            sightings.note(event, executable.as_ref(), time);
            if let Some(way) = way.as_ref().filter(|_| refused) {
                if writing.take(instant) {
                    way.tell(Heard { event: *event, executable: executable.clone(), time });
                } else {
                    way.leave_out();
                }
            }
            let denied = Outcome::from_u8(event.outcome) == Some(Outcome::Denied);
            let told = denials.as_ref().filter(|_| denied && pairs.take(PeerId(event.src), PeerId(event.dst), instant));
            let logged = refused && rate.take(instant);
            if !followed && !logged && told.is_none() {
                continue;
            }
            let above = snapshot.policies.overrides();
            let mut decision = decision(event, &snapshot.names, above, executable, time);
            decision.name = name(event, &naming, instant);
            let decision = Arc::new(decision);
            if let Some(denials) = told
                && denials.try_send(Arc::clone(&decision)).is_err()
            {
                tracing::debug!("an Event of a denied connection found no room");
            }
            if logged {
                log(&decision, rate.left_out());
            }
            if followed && decisions.send(decision).is_err() {
                // The last follower went away meanwhile.
            }
        }
    }
}

/// An event with names.
pub fn decision(event: &Event, names: &Names, above: &Overrides, executable: Option<Arc<str>>, time: u64) -> Decision {
    let Event {
        time: _,
        epoch,
        src,
        dst,
        egress_rule,
        ingress_rule,
        pid,
        saddr,
        daddr,
        sport,
        dport,
        proto,
        direction,
        outcome,
        reason,
        hook,
        pad: _,
        comm,
    } = *event;
    let edge = Edge {
        source: names.peer(PeerId(src)),
        destination: names.peer(PeerId(dst)),
        port: dport,
        protocol: proto,
        direction: flows::direction(direction),
        outcome: flows::outcome(outcome),
        reason: flows::reason(reason),
    };
    let end = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
    Decision {
        time,
        epoch,
        edge,
        hook: Hook::from_u8(hook).map_or_else(|| format!("hook-{hook}"), |h| h.as_str().to_owned()),
        source_address: address(&saddr, sport),
        destination_address: address(&daddr, dport),
        pid,
        comm: printable(&comm[..end]),
        executable: executable.map(|e| e.to_string()),
        name: None,
        egress_rule: names.rule(egress_rule),
        ingress_rule: names.rule(ingress_rule),
        break_glass: above.open_everywhere()
            || [src, dst].iter().filter_map(|p| names.identities.get(&PeerId(*p))).any(|i| above.breaks(i)),
    }
}

/// The name by which our workload asked for its peer's address.
fn name(event: &Event, naming: &Naming, now: Instant) -> Option<String> {
    let (own, peer, address) = match Direction::from_u8(event.direction)? {
        Direction::Egress => (event.src, event.dst, &event.daddr),
        Direction::Ingress => (event.dst, event.src, &event.saddr),
    };
    let name = PeerId(peer).is_outside().then(|| naming.name(PeerId(own), narrow(address), now))??;
    Some(name.to_string())
}

fn address(addr: &Addr, port: u16) -> String {
    if *addr == Addr::UNSPECIFIED {
        return String::new();
    }
    SocketAddr::new(narrow(addr), port).to_string()
}

fn log(d: &Decision, left_out: u64) {
    tracing::warn!(
        outcome = d.edge.outcome,
        reason = d.edge.reason,
        direction = d.edge.direction,
        source = d.edge.source.id,
        destination = d.edge.destination.id,
        protocol = flows::protocol(d.edge.protocol),
        port = d.edge.port,
        hook = d.hook,
        from = d.source_address,
        to = d.destination_address,
        name = d.name.as_deref().unwrap_or_default(),
        pid = d.pid,
        comm = d.comm,
        executable = d.executable.as_deref().unwrap_or_default(),
        egress_rule = d.egress_rule.as_deref().unwrap_or_default(),
        ingress_rule = d.ingress_rule.as_deref().unwrap_or_default(),
        break_glass = d.break_glass,
        left_out,
        "{}",
        d.edge.outcome
    );
}

/// So many at once, then so many a second.
struct Rate {
    per_second: u32,
    tokens: f64,
    at: Instant,
    left_out: u64,
}

impl Rate {
    fn new(per_second: u32, at: Instant) -> Self {
        Self { per_second, tokens: f64::from(per_second), at, left_out: 0 }
    }

    /// Whether one more may pass now.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(1));
        self.at = now;
        let most = f64::from(self.per_second);
        self.tokens = (self.tokens + passed.as_secs_f64() * most).min(most);
        if self.tokens < 1.0 {
            self.left_out += 1;
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// How many didn't pass since this was last asked.
    fn left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_what_is_left_out_is_counted() {
        let start = Instant::now();
        let mut rate = Rate::new(20, start);
        let passed = (0..1000).filter(|_| rate.take(start)).count();
        assert_eq!(passed, 20);
        assert_eq!(rate.left_out(), 980);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..1000).filter(|_| rate.take(later)).count(), 10);
    }

    #[test]
    fn an_event_gets_names_and_its_command_cannot_write_to_the_terminal() {
        let mut event = Event {
            src: 3,
            dst: 7,
            dport: 443,
            proto: 6,
            outcome: 3,
            reason: 16,
            hook: 1,
            pid: std::process::id(),
            daddr: Addr::v4([192, 0, 2, 1]),
            ..Event::default()
        };
        event.comm[..5].copy_from_slice(b"a\x1b[2J");
        let exe = Executables::default().of(&event, Instant::now());
        let d = decision(&event, &Names::default(), &Overrides::default(), exe, 5);
        assert_eq!((d.edge.source.id.as_str(), d.edge.destination.id.as_str()), ("remote-node", "world"));
        assert_eq!((d.hook.as_str(), d.edge.reason.as_str()), ("connect", "no-egress-rule"));
        assert_eq!((d.source_address.as_str(), d.destination_address.as_str()), ("", "192.0.2.1:443"));
        assert_eq!(d.comm, "a\\u{1b}[2J");
        let exe = std::env::current_exe().expect("an executable");
        assert_eq!(d.executable.as_deref(), exe.to_str());
    }
}
