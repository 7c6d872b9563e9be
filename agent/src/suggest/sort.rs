//! What was seen, sorted: what becomes a rule, and what is set apart for somebody to decide.
//!
//! Nothing that was established and looks regular is set apart, however rare it is; and nothing that looks like a scan,
//! a slip or an accident of counting becomes a rule unasked. docs/learning.md gives the reasons in prose; the numbers
//! stand here.

use super::evidence::{Evidence, Known, Line};
use bulkhead_common::{Class, PeerId, proto};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Why something doesn't become a rule by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apart {
    /// One of many ports or peers that the source tried, most in vain.
    Scan,
    /// Established once or twice within one hour of a long window.
    Once,
    /// Tried, and never established.
    NeverEstablished,
    /// An answer to a datagram, counted as if it had begun something.
    UdpReply,
    /// One of several short-lived high ports of the destination.
    Ephemeral,
    /// An end that wasn't known when it was seen.
    UnknownPeer,
    /// Nothing that a rule can name: another protocol, or no port.
    Unruled,
    /// A deny of an existing policy wins over any rule.
    DenyRule,
}

impl Apart {
    /// The word in JSON, tables and comments.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Once => "once",
            Self::NeverEstablished => "never-established",
            Self::UdpReply => "udp-reply",
            Self::Ephemeral => "ephemeral",
            Self::UnknownPeer => "unknown-peer",
            Self::Unruled => "unruled",
            Self::DenyRule => "deny-rule",
        }
    }

    /// What to do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Scan => "if it is a scanner that you want, write its rule by hand",
            Self::Once => "if it is needed, write the rule by hand or learn for longer; --keep-once takes all of these",
            Self::NeverEstablished => "nothing answered; if the service was only down, write the rule by hand",
            Self::UdpReply => "no rule is needed: replies pass with what they answer",
            Self::Ephemeral => "give the service fixed ports, or write a rule with a range",
            Self::UnknownPeer => "name that end in the configuration, and learn again",
            Self::Unruled => "no rule can name it; see `sockets` in docs/policy.md",
            Self::DenyRule => "remove it, or give the deny an `except`",
        }
    }
}

/// Something about a rule that a reader should know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// It rests on few connections.
    Few,
    /// Seen in few of the hours watched, yet more than once: a job that runs now and then.
    Rare,
    /// Seen in one hour only.
    OneHour,
    /// It lets through to, or from, the whole world.
    World,
    /// It opens the cloud's metadata service, and with it the node's credentials.
    Metadata,
}

impl Mark {
    /// The word in JSON, tables and comments.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Few => "few",
            Self::Rare => "rare",
            Self::OneHour => "one-hour",
            Self::World => "world",
            Self::Metadata => "metadata",
        }
    }
}

/// A rule that rests on fewer connections is marked.
const FEW: u64 = 5;
/// A link seen in a smaller part of the hours watched is marked: one in this many.
const RARE: u64 = 20;
/// From this length of a window on it can be told whether something is regular. Milliseconds.
const LONG: u64 = 24 * 3_600_000;
/// So many targets tried in vain are a scan,
const SCAN_TARGETS: usize = 10;
/// unless they are tried more often a day than this: whoever polls has dead targets, but expects an answer.
const SCANS_A_DAY: u64 = 2;
/// The first port that Linux gives to clients (ip_local_port_range).
const FIRST_EPHEMERAL: u16 = 32_768;
/// So many short-lived high ports at one destination aren't services.
const EPHEMERAL_PORTS: usize = 3;
/// How far an event may lie from the scan's other events. Milliseconds.
const SLACK: u64 = 60_000;
const HOUR: u64 = 3_600_000;

/// How long the window is in which things could have been regular.
#[derive(Clone, Copy, Debug)]
pub(super) struct Length(pub(super) u64);

impl Length {
    /// Whether something that was seen this often may well have been a slip.
    pub(super) fn is_once(self, e: &Evidence) -> bool {
        self.0 >= LONG && is_thin(e)
    }

    /// What to say about a rule with this evidence.
    pub(super) fn marks(self, e: &Evidence) -> BTreeSet<Mark> {
        let mut marks = BTreeSet::new();
        if e.established < FEW {
            marks.insert(Mark::Few);
        }
        if self.0 >= LONG {
            if e.hours <= 1 {
                marks.insert(Mark::OneHour);
            } else if u64::from(e.hours) * RARE <= self.0 / HOUR {
                marks.insert(Mark::Rare);
            }
        }
        marks
    }
}

fn is_thin(e: &Evidence) -> bool {
    e.established <= 2 && e.hours <= 1
}

/// Whether it was tried in vain. Nobody says whether a datagram was taken, so one without an answer counts if it stayed
/// with one or two.
fn in_vain(line: &Line, e: &Evidence) -> bool {
    let unanswered = line.protocol != proto::TCP && e.packets.0 > 0 && e.packets.1 == 0;
    e.established == 0 || unanswered && e.attempts <= 2
}

/// Sorts: for each link the reason to set it apart, if there is one. Links without a workload at either end need no
/// rule and aren't among them.
pub(super) fn sort(
    lines: &BTreeMap<Line, Known<'_>>,
    length: Length,
    denied: impl Fn(&Line) -> bool,
) -> BTreeMap<Line, Option<Apart>> {
    let scans = scans(lines);
    let ephemeral = ephemeral(lines, length);
    let replies = replies(lines);
    let reason = |line: &Line, known: &Known<'_>| {
        let e = &known.evidence;
        let strange = |p: PeerId| p == PeerId::UNKNOWN_WORKLOAD || p.class() == Some(Class::Unknown);
        let unruled = match line.protocol {
            proto::ICMP => false,
            proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE => line.port == 0,
            _ => true,
        };
        Some(if unruled {
            Apart::Unruled
        } else if scans.get(&line.from).is_some_and(|scan| scan.holds(line, e)) {
            Apart::Scan
        } else if e.established == 0 {
            Apart::NeverEstablished
        } else if strange(line.from) || strange(line.to) {
            Apart::UnknownPeer
        } else if denied(line) {
            Apart::DenyRule
        } else if replies.contains(line) {
            Apart::UdpReply
        } else if ephemeral.contains(line) {
            Apart::Ephemeral
        } else if length.is_once(e) {
            Apart::Once
        } else {
            return None;
        })
    };
    let concerned = lines.iter().filter(|(line, _)| {
        let workload = |p: PeerId| p.is_identity() || p == PeerId::UNKNOWN_WORKLOAD;
        workload(line.from) || workload(line.to)
    });
    concerned.map(|(line, known)| (*line, reason(line, known))).collect()
}

/// What a source tried in vain.
struct Scan {
    attempts: u64,
    hours: u32,
    first: (u64, u64),
    last: (u64, u64),
}

impl Scan {
    /// Whether this link is a part of it: tried in vain, or established no oftener and in no more hours than the others
    /// were tried, and begun and ended when they were. A service that the source also uses in earnest is neither.
    fn holds(&self, line: &Line, e: &Evidence) -> bool {
        let near = |time: u64, (from, to): (u64, u64)| (from.saturating_sub(SLACK)..=to + SLACK).contains(&time);
        in_vain(line, e)
            || e.established <= (2 * self.attempts).max(2)
                && e.hours <= 2 * self.hours
                && near(e.first, self.first)
                && near(e.last, self.last)
    }
}

/// The sources that tried many targets in vain.
fn scans(lines: &BTreeMap<Line, Known<'_>>) -> BTreeMap<PeerId, Scan> {
    let mut tries: BTreeMap<PeerId, Vec<&Evidence>> = BTreeMap::new();
    for (line, known) in lines {
        let vain = known.sights.iter().map(|s| &s.evidence).filter(|e| in_vain(line, e));
        tries.entry(line.from).or_default().extend(vain);
    }
    tries.retain(|_, vain| vain.len() >= SCAN_TARGETS);
    let scan = |vain: Vec<&Evidence>| {
        let median = |mut all: Vec<u64>| {
            all.sort_unstable();
            all[all.len() / 2]
        };
        let range = |time: fn(&Evidence) -> u64| {
            let times = || vain.iter().map(|e| time(e));
            (times().min().unwrap_or(0), times().max().unwrap_or(0))
        };
        let hours = median(vain.iter().map(|e| e.hours.into()).collect());
        Scan {
            attempts: median(vain.iter().map(|e| e.attempts).collect()),
            hours: u32::try_from(hours).unwrap_or(u32::MAX).max(1),
            first: range(|e| e.first),
            last: range(|e| e.last),
        }
    };
    let mut scans: BTreeMap<PeerId, Scan> = BTreeMap::new();
    for (from, vain) in tries {
        let (targets, days) = (vain.len(), vain.iter().map(|e| e.days).max().unwrap_or(0));
        let scan = scan(vain);
        // Most of it is in vain, or it is somebody's daily round with a few hosts that are gone.
        let own = lines.range(Line::first_of(from)..).take_while(|(line, _)| line.from == from);
        let hits = own.filter(|(line, k)| !in_vain(line, &k.evidence) && scan.holds(line, &k.evidence)).count();
        if scan.attempts <= SCANS_A_DAY * u64::from(days) && hits <= targets {
            scans.insert(from, scan);
        }
    }
    scans
}

/// High TCP ports that a destination opened for a short while, if there are several; or one, that one client used once.
fn ephemeral(lines: &BTreeMap<Line, Known<'_>>, length: Length) -> BTreeSet<Line> {
    let mut ports: BTreeMap<(PeerId, u16), Vec<(&Line, &Evidence)>> = BTreeMap::new();
    for (line, known) in lines {
        if line.protocol == proto::TCP && line.port >= FIRST_EPHEMERAL && known.evidence.established > 0 {
            ports.entry((line.to, line.port)).or_default().push((line, &known.evidence));
        }
    }
    let brief = |users: &[(&Line, &Evidence)]| {
        let established: u64 = users.iter().map(|(_, e)| e.established).sum();
        let days = users.iter().map(|(_, e)| e.days).max().unwrap_or(0);
        established <= 3 || length.0 >= 2 * LONG && days <= 1
    };
    ports.retain(|_, users| brief(users));
    let mut of: BTreeMap<PeerId, usize> = BTreeMap::new();
    for (to, _) in ports.keys() {
        *of.entry(*to).or_default() += 1;
    }
    let many = |to: &PeerId| of.get(to).is_some_and(|n| *n >= EPHEMERAL_PORTS);
    let once = |users: &[(&Line, &Evidence)]| matches!(users, [(_, e)] if is_thin(e));
    let chosen = ports.into_iter().filter(|((to, _), users)| many(to) || once(users));
    chosen.flat_map(|(_, users)| users.into_iter().map(|(line, _)| *line)).collect()
}

/// Datagrams to a high port of somebody who sends datagrams the other way: replies, unless they look like a service of
/// its own, with a fixed port and about as many flows, or with the same port at both ends.
fn replies(lines: &BTreeMap<Line, Known<'_>>) -> BTreeSet<Line> {
    let mut pairs: BTreeMap<(PeerId, PeerId), Vec<(&Line, &Evidence)>> = BTreeMap::new();
    for (line, known) in lines {
        if matches!(line.protocol, proto::UDP | proto::UDPLITE) && known.evidence.established > 0 {
            pairs.entry((line.from, line.to)).or_default().push((line, &known.evidence));
        }
    }
    let mut replies = BTreeSet::new();
    for ((from, to), there) in &pairs {
        let Some(back) = pairs.get(&(*to, *from)) else { continue };
        let high: Vec<_> = there.iter().filter(|(line, _)| line.port >= FIRST_EPHEMERAL).collect();
        for (line, e) in &high {
            let requests = back.iter().filter(|(b, _)| b.protocol == line.protocol);
            if from != to && requests.clone().any(|(b, _)| b.port == line.port) {
                continue;
            }
            // Requests are what could have been answered: to a service's port, or at least to one used more often.
            let flows = requests.filter(|(b, o)| b.port < FIRST_EPHEMERAL || o.established > e.established);
            let asked: u64 = flows.map(|(_, o)| o.established).sum();
            if asked > 0 && (high.len() >= EPHEMERAL_PORTS || is_thin(e) || e.established * 10 <= asked) {
                replies.insert(**line);
            }
        }
    }
    replies
}
