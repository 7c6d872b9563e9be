//! The bank, written down by hand: who there is, who listens where, and who is meant to reach whom.
//!
//! Nothing here is derived from the policy under `deploy/demo/`: [`INTENDED`] is what the story is measured against.

use std::fmt;

/// Where a party lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Home {
    /// A cgroup and a network namespace of its own.
    Own,
    /// A cgroup of its own in the host's network namespace, over loopback.
    Host,
    /// Outside: a network namespace without any cgroup that Bulkhead looks after.
    Outside,
}

/// Somebody who sends and receives.
#[derive(Debug)]
pub(crate) struct Party {
    /// What people call it.
    pub(crate) name: &'static str,
    /// What Bulkhead knows it as: a SPIFFE ID, or a class.
    pub(crate) id: &'static str,
    /// The port of its service, for TCP and for UDP.
    pub(crate) port: u16,
    /// Where it lives.
    pub(crate) home: Home,
}

const fn party(name: &'static str, id: &'static str, port: u16, home: Home) -> Party {
    Party { name, id, port, home }
}

/// Everybody. Those with a namespace of their own get the addresses `10.77.0.N` and `fd00:77::N` in this order.
pub(crate) const PARTIES: [Party; 13] = [
    party("web", "spiffe://bank.example/app/web", 8443, Home::Own),
    party("payments", "spiffe://bank.example/app/payments", 8080, Home::Own),
    party("ledger", "spiffe://bank.example/app/ledger", 9000, Home::Own),
    party("billing", "spiffe://bank.example/app/billing", 8081, Home::Own),
    party("fraud", "spiffe://bank.example/app/fraud", 7000, Home::Own),
    party("notify", "spiffe://bank.example/app/notify", 5140, Home::Own),
    party("reports", "spiffe://bank.example/app/reports", 8082, Home::Own),
    party("database", "spiffe://bank.example/data/database", 5432, Home::Own),
    party("dns", "spiffe://bank.example/infra/dns", 53, Home::Own),
    party("legacy", "spiffe://bank.example/old/legacy", 2121, Home::Own),
    party("collector", "spiffe://bank.example/host/collector", 19125, Home::Host),
    party("shipper", "spiffe://bank.example/host/shipper", 19126, Home::Host),
    party("card-network", "world", 443, Home::Outside),
];

/// The workload that is broken into.
pub(crate) const BROKEN_INTO: &str = "billing";

/// The workload that runs a job now and then, and is silent in between.
pub(crate) const BATCH: &str = "reports";

/// The workload that was never seen to do anything.
pub(crate) const SILENT: &str = "legacy";

/// A party's index in [`PARTIES`].
pub(crate) fn index(name: &str) -> usize {
    PARTIES.iter().position(|p| p.name == name).unwrap_or(PARTIES.len())
}

/// A transport protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Proto {
    Tcp,
    Udp,
}

impl Proto {
    /// Its number in IP headers.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Who is meant to reach whom, by what, on the port of the other's service.
const INTENDED: [(&str, &str, &[Proto]); 18] = [
    ("card-network", "web", &[Proto::Tcp]),
    ("web", "payments", &[Proto::Tcp]),
    ("web", "dns", &[Proto::Tcp, Proto::Udp]),
    ("payments", "ledger", &[Proto::Tcp]),
    ("payments", "fraud", &[Proto::Udp]),
    ("payments", "card-network", &[Proto::Tcp]),
    ("payments", "dns", &[Proto::Tcp, Proto::Udp]),
    ("ledger", "database", &[Proto::Tcp]),
    ("ledger", "dns", &[Proto::Tcp, Proto::Udp]),
    ("billing", "database", &[Proto::Tcp]),
    ("billing", "notify", &[Proto::Udp]),
    ("billing", "dns", &[Proto::Tcp, Proto::Udp]),
    ("fraud", "dns", &[Proto::Tcp, Proto::Udp]),
    ("notify", "card-network", &[Proto::Tcp]),
    ("notify", "dns", &[Proto::Tcp, Proto::Udp]),
    ("reports", "database", &[Proto::Tcp]),
    ("reports", "dns", &[Proto::Tcp, Proto::Udp]),
    ("shipper", "collector", &[Proto::Udp]),
];

/// One way from one party to another: the port is always that of the other's service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Way {
    /// The sender, as an index of [`PARTIES`].
    pub(crate) from: usize,
    /// The receiver, the same.
    pub(crate) to: usize,
    /// By what.
    pub(crate) proto: Proto,
    /// Over IPv6, else IPv4.
    pub v6: bool,
}

impl Way {
    /// Whether it is one that the bank needs.
    pub(crate) fn intended(self) -> bool {
        let (from, to) = (PARTIES[self.from].name, PARTIES[self.to].name);
        INTENDED.iter().any(|(f, t, by)| (*f, *t) == (from, to) && by.contains(&self.proto))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (PARTIES[self.from].name, &PARTIES[self.to]);
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        write!(f, "{from} to {} {}/{} over {family}", to.name, self.proto, to.port)
    }
}

/// Every way between two parties that a network connects: the host's two have only each other, over loopback.
pub(crate) fn ways() -> Vec<Way> {
    let mut all = Vec::new();
    for (from, sender) in PARTIES.iter().enumerate() {
        for (to, receiver) in PARTIES.iter().enumerate() {
            if from == to || (sender.home == Home::Host) != (receiver.home == Home::Host) {
                continue;
            }
            for proto in [Proto::Tcp, Proto::Udp] {
                all.extend([false, true].map(|v6| Way { from, to, proto, v6 }));
            }
        }
    }
    all
}

/// How many workloads there are; whoever is outside isn't one.
pub(crate) fn workloads() -> usize {
    PARTIES.iter().filter(|p| p.home != Home::Outside).count()
}

/// The ordered pairs among these ways.
pub(crate) fn pairs<'a>(ways: impl IntoIterator<Item = &'a Way>) -> usize {
    let pairs: std::collections::BTreeSet<_> = ways.into_iter().map(|w| (w.from, w.to)).collect();
    pairs.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_in_the_table_of_intentions_exists_and_is_connected() {
        let ways = ways();
        assert_eq!(pairs(&ways), 11 * 10 + 2);
        assert_eq!(ways.len(), 4 * pairs(&ways));
        let meant: Vec<Way> = ways.into_iter().filter(|w| w.intended()).collect();
        assert_eq!(pairs(&meant), INTENDED.len());
        let by: usize = INTENDED.iter().map(|(.., by)| by.len()).sum();
        assert_eq!(meant.len(), 2 * by);
    }
}
