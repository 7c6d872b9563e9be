//! What was seen over time: the records that a store keeps, and that graph, suggest, simulate and report read.
//!
//! A record is about one link (who opened a connection to whom, for which port), one outcome and one reason, summed over
//! the time that a history covers. Both ends' hooks count; a record has the source's count where the source's hook saw
//! it, else the destination's, so that nothing stands there twice.
//!
//! Pure data, and the form in which a history goes into a file (JSON) and over the control socket.

mod merge;

use crate::flows::PeerName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What a rule can speak of: who opens a connection to whom, for which port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Who opened it.
    pub source: PeerName,
    /// Who was connected to.
    pub destination: PeerName,
    /// The IP protocol.
    pub protocol: u8,
    /// The destination's port; 0 for protocols without ports.
    pub port: u16,
}

/// How often.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Connections tried, or datagram flows begun.
    pub attempts: u64,
    /// Of them: TCP handshakes that were completed; of datagrams, flows that were let through.
    pub established: u64,
    /// Answered by a reset.
    pub refused: u64,
    /// Never answered.
    pub timed_out: u64,
    /// Payload from the source to the destination, in bytes.
    pub bytes_sent: u64,
    /// Payload from the destination to the source, in bytes.
    pub bytes_received: u64,
    /// Packets from the source to the destination.
    pub packets_sent: u64,
    /// Packets from the destination to the source.
    pub packets_received: u64,
}

/// One link with one outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Between whom.
    #[serde(flatten)]
    pub link: Link,
    /// `allowed`, `would-deny`, `would-allow` or `denied`: [`bulkhead_common::Outcome::as_str`].
    pub outcome: String,
    /// Why: [`bulkhead_common::Reason::as_str`].
    pub reason: String,
    /// The address of the end that has no identity, where it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The DNS name by which the workload had asked for that address. Chosen by strangers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether only the destination's side told of it: the source is another node's, or nobody's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_destination: bool,
    /// How often.
    #[serde(flatten)]
    pub counts: Counts,
    /// When it was first seen, milliseconds since 1970.
    pub first: u64,
    /// When it was last seen, milliseconds since 1970.
    pub last: u64,
    /// In how many different hours it was seen.
    pub hours: u32,
    /// On how many different days (UTC) it was seen.
    pub days: u32,
    /// Executables that opened it, as far as seen. Any text that a process chose.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub source_executables: BTreeSet<String>,
    /// Executables that answered, as far as seen.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub destination_executables: BTreeSet<String>,
}

/// The time that a history is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Window {
    /// Its begin, milliseconds since 1970.
    pub from: u64,
    /// Its end.
    pub to: u64,
    /// How much of it an agent was counting, milliseconds.
    pub watched: u64,
    /// Connections in it that were counted without the ends (a full map): rules from such a history may lack some.
    pub unattributed: u64,
}

/// What was seen in a window.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// Which time it is about.
    pub window: Window,
    /// What was seen, in the order of link, outcome, reason, address.
    pub records: Vec<Record>,
    /// Who answers now where the records name a Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// What runs the workloads of each identity now, on a cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<Owned>,
}

/// What runs an identity's workloads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Owned {
    /// The identity.
    pub peer: PeerName,
    /// As `namespace/Kind/name`.
    pub owners: BTreeSet<String>,
}

/// How many owners are named.
const NAMED: usize = 4;

/// What to say of an identity that several owners' workloads share, as those without a service account of their own do.
pub fn shared_by(peer: &PeerName, owners: &BTreeSet<String>) -> Option<String> {
    if owners.len() < 2 {
        return None;
    }
    let mut named = owners.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if owners.len() > NAMED {
        named.push_str(&format!(" and {} more", owners.len() - NAMED));
    }
    Some(format!(
        "{} is shared by {named}: a rule for one opens for all; give each a service account of its own \
         (kubectl set serviceaccount)",
        peer.id
    ))
}

/// One port of a Service at whose address others answer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Service {
    /// As it stands in links.
    pub name: PeerName,
    /// The IP protocol.
    pub protocol: u8,
    /// The port.
    pub port: u16,
    /// Who answers, and at which port.
    pub backends: BTreeSet<Backend>,
}

/// One that answers for a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// Who.
    pub peer: PeerName,
    /// At which port.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_reads_what_it_writes() {
        let name = |id: &str| PeerName { id: id.to_owned(), namespace: "shop".to_owned() };
        let link = Link { source: name("spiffe://t/a"), destination: name("spiffe://t/b"), protocol: 6, port: 80 };
        let record = Record {
            link,
            outcome: "allowed".to_owned(),
            reason: "posture".to_owned(),
            address: None,
            name: None,
            by_destination: false,
            counts: Counts { attempts: 3, established: 2, refused: 1, ..Counts::default() },
            first: 1,
            last: 2,
            hours: 1,
            days: 1,
            source_executables: BTreeSet::from(["/bin/a".to_owned()]),
            destination_executables: BTreeSet::new(),
        };
        let history = History {
            window: Window { from: 1, to: 5, watched: 4, unattributed: 0 },
            records: vec![record],
            ..History::default()
        };
        let text = serde_json::to_string(&history).expect("plain data");
        assert_eq!(serde_json::from_str::<History>(&text).expect("what was written"), history);
    }
}
