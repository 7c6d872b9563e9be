//! The estate of the story: who runs where, and who may talk to whom.
//!
//! The workloads are written down once; the objects for the API server are made from them, and so is the table of pairs
//! that are meant to work, which is deliberately no policy: what the agents make of the policies is held against it.

mod objects;

pub(super) use objects::{endpoints_by_hand, objects, objects_of, policies, webhook};

use std::collections::BTreeSet;

/// The port on which members answer, TCP and UDP.
pub(super) const PORT: u16 = 7000;
/// The ports of the nodes' addresses at which two Services are reached, too.
const NODE_PORT: u16 = 30_700;
const MASQUERADED_PORT: u16 = 30_701;
/// Where one Service is reached from outside.
const EXTERNAL: [&str; 2] = ["10.97.0.7", "fd00:97::7"];
/// The address of the database's Service, which init containers must know before it is there.
pub(super) const DATABASE: &str = "10.96.77.1";
/// The Service whose endpoints nobody selects: whoever runs the estate writes them.
pub(super) const BY_HAND: &str = "cache-by-hand";
/// The keys of attempts that init containers make, and those of the CronJob: beyond any that the grid gives.
pub(super) const FIRST_KEYS: u64 = 2_000_000_000;
pub(super) const NIGHTLY_KEY: u64 = 3_000_000_000;
/// The workload whose pods answer the API server's webhook, the port there, and the Service.
pub(super) const WEBHOOK: (&str, u16, &str) = ("web", 8443, "webhook");
/// Whoever has this label is asked about.
pub(super) const ASKED: &str = "e2e-asked";
/// Where a sidecar listens, and the user under which it runs.
const SIDECAR: (u16, u32) = (15_001, 1337);
/// Where the API server connects from.
const CONTROL_PLANE: [&str; 2] = ["10.246.0.1/32", "fd00:246::1/128"];
/// The folder of every node that members share with it.
pub(super) const TALK: &str = "lib/talk";
/// The label that makes a pod a member, its value being the workload's name.
pub(super) const MEMBER: &str = "e2e-member";

/// What runs the pods of a workload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Deployment,
    /// Members know each other by name and order.
    StatefulSet,
    /// One on every node.
    DaemonSet,
    /// Runs, connects, and ends: no member.
    CronJob,
}

/// How the kubelet looks whether a pod is well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Probe {
    Tcp,
    Http,
    Exec,
}

/// What a workload's Service is besides an address of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Extra {
    No,
    /// At the nodes' addresses, by their own pods, and at addresses from outside; nobody puts another's in its place.
    Local,
    /// At the nodes' addresses, which put their own in the place of whoever asks.
    Masqueraded,
}

/// One service account with the pods that run under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Workload {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    replicas: u8,
    extra: Extra,
    probe: Probe,
    /// Its pods are in their node's network namespace, and have no Service.
    pub(super) host_network: bool,
    /// Before it starts it connects to the database, by an init container.
    pub(super) connects_first: bool,
    /// Its TCP connections are redirected to a sidecar, which makes them.
    meshed: bool,
}

const fn of(kind: Kind, namespace: &'static str, name: &'static str, replicas: u8) -> Workload {
    let (extra, probe) = (Extra::No, Probe::Tcp);
    let (host_network, connects_first, meshed) = (false, false, false);
    Workload { namespace, name, kind, replicas, extra, probe, host_network, connects_first, meshed }
}

pub(super) const WORKLOADS: [Workload; 10] = [
    Workload { probe: Probe::Http, ..of(Kind::Deployment, "shop", "web", 2) },
    Workload { extra: Extra::Local, ..of(Kind::Deployment, "shop", "cart", 2) },
    Workload { probe: Probe::Exec, ..of(Kind::StatefulSet, "data", "db", 3) },
    Workload { extra: Extra::Masqueraded, ..of(Kind::Deployment, "data", "cache", 1) },
    of(Kind::DaemonSet, "data", "shipper", 2),
    Workload { connects_first: true, ..of(Kind::Deployment, "billing", "report", 1) },
    Workload { connects_first: true, ..of(Kind::Deployment, "billing", "intruder", 1) },
    Workload { host_network: true, ..of(Kind::Deployment, "billing", "tool", 1) },
    of(Kind::CronJob, "billing", "nightly", 0),
    Workload { meshed: true, ..of(Kind::Deployment, "shop", "meshed", 1) },
];

/// The namespaces, in the order in which they begin to enforce.
pub(super) const NAMESPACES: [&str; 3] = ["shop", "data", "billing"];

/// Who is meant to reach whom once everything is enforced.
const INTENDED: [(&str, &str); 10] = [
    ("web", "cart"),
    ("cart", "db"),
    ("cart", "cache"),
    ("db", "db"),
    ("db", "shipper"),
    ("report", "db"),
    ("report", "web"),
    ("nightly", "db"),
    ("meshed", "cart"),
    ("web", "meshed"),
];

impl Workload {
    pub(super) fn id(&self) -> String {
        id(self.namespace, self.name)
    }

    /// What its init containers write with their attempts.
    pub(super) fn first_key(&self) -> u64 {
        FIRST_KEYS + WORKLOADS.iter().position(|w| w == self).map_or(0, |at| at as u64)
    }

    /// Whether it has a Service.
    pub(super) fn is_served(&self) -> bool {
        !self.host_network && self.kind != Kind::CronJob
    }

    /// How many pods it has.
    pub(super) fn members(&self) -> usize {
        usize::from(self.replicas)
    }
}

/// The SPIFFE ID that the shipped template gives.
fn id(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

/// The workload of that name.
pub(super) fn workload(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|w| w.name == name)
}

/// Which pairs of workloads may talk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Truth {
    /// Everybody with everybody.
    All,
    /// These, source first.
    Only(BTreeSet<(&'static str, &'static str)>),
}

impl Truth {
    /// What is meant to work under enforcement.
    pub(super) fn intended() -> Self {
        Self::Only(INTENDED.into())
    }

    /// The same without what `gone` says of source and destination.
    pub(super) fn without(&self, gone: impl Fn(&str, &str) -> bool) -> Self {
        match self {
            Self::All => Self::All,
            Self::Only(pairs) => Self::Only(pairs.iter().copied().filter(|(from, to)| !gone(from, to)).collect()),
        }
    }

    /// The same with these, too.
    pub(super) fn with(&self, more: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        match self {
            Self::All => Self::All,
            Self::Only(pairs) => Self::Only(pairs.iter().copied().chain(more).collect()),
        }
    }

    /// Pairs of workloads with pods about which the other says otherwise, each with what this one says.
    pub(super) fn differs(&self, other: &Self) -> Vec<(&'static str, &'static str, bool)> {
        let all = || WORKLOADS.iter().filter(|w| w.members() > 0).map(|w| w.name);
        let pairs = all().flat_map(|from| all().map(move |to| (from, to, self.allows(from, to))));
        pairs.filter(|(from, to, allows)| other.allows(from, to) != *allows).collect()
    }

    pub(super) fn allows(&self, from: &str, to: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(pairs) => pairs.iter().any(|(f, t)| *f == from && *t == to),
        }
    }
}

/// Pairs that the two namespaces open each on its own side.
fn own_sides(pair: &(&str, &str)) -> bool {
    matches!(pair, ("cart" | "db" | "nightly", "db"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_intended_is_between_workloads_that_are_there_and_in_one_policy_each() {
        for (from, to) in INTENDED {
            assert!(workload(from).is_some() && workload(to).is_some(), "{from} {to}");
        }
        let text = policies("enforce").to_string();
        assert!(!text.contains("null"), "{text}");
        let edges = INTENDED.iter().filter(|p| !own_sides(p)).count();
        assert_eq!(
            text.matches("\"from\":").count(),
            edges + 4,
            "edges, the webhook's, and who may reach the database"
        );
        assert!(!text.contains("intruder"), "nobody is meant to talk to it");
    }
}
