//! Which live sockets a ruleset doesn't let pass any more.
//!
//! Pure: it is given the sockets of one network namespace and the tables, and judges each by the function that the
//! kernel judges packets by. Who is at each end is found as the kernel's hooks find it: one's own end by the cgroup that
//! the socket was made in, a peer in the same network namespace by the socket there, any other by its address.
//!
//! Listeners and unconnected datagram sockets are never among them: each packet there is judged by itself, and a server
//! that serves others too must live on. The verdict in force alone counts, so in `observe` and `audit` there are none.

mod reach;

pub use reach::{Reach, moved};

use bulkhead_common::slots::Binding;
use bulkhead_common::verdict::{Flow, Judgement, judge, resolve};
use bulkhead_common::{Addr, Class, Tables, proto};
use std::collections::BTreeMap;

/// A socket's role in its connection, where the kernel programs have noted it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It opened the connection.
    Client,
    /// The peer did.
    Server,
}

/// What a socket is doing, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It accepts connections, or takes datagrams from anybody.
    Open,
    /// It is connected or connecting.
    Connected,
    /// It is nobody's any more, or leads nowhere.
    Idle,
}

/// One socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// The IP protocol.
    pub proto: u8,
    /// What it is doing.
    pub phase: Phase,
    /// Its own end.
    pub local: (Addr, u16),
    /// The other end; unspecified without one.
    pub remote: (Addr, u16),
    /// The cgroup that it was made in, where the kernel tells.
    pub cgroup: Option<u64>,
    /// Its role, where it is noted.
    pub role: Option<Role>,
}

/// The sockets of one network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// All of them.
    pub sockets: &'a [Socket],
    /// Whether it is the host's.
    pub host: bool,
}

/// Who the cgroups below the attach points belong to: each cgroup's id, its workload or [`PeerId::UNKNOWN_WORKLOAD`].
pub type Owners = BTreeMap<u64, Binding>;

/// A live connection that doesn't pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failing {
    /// Which of the sockets.
    pub socket: usize,
    /// The connection.
    pub flow: Flow,
    /// Why.
    pub judgement: Judgement,
}

/// Who stands opposite.
enum Opposite {
    /// The workload itself, in its own network namespace.
    Oneself,
    /// Somebody.
    Peer(Binding),
    /// It can't be told: its socket has left its cgroup, as one does that is closed, or came since the cgroups were
    /// looked at. Each packet is judged all the same.
    Untold,
}

/// Finds them.
pub fn failing<T: Tables>(tables: &T, owners: &Owners, namespace: Namespace<'_>) -> Vec<Failing> {
    let known = Known::of(namespace.sockets);
    let sockets = namespace.sockets.iter().enumerate();
    sockets
        .filter(|(_, s)| s.phase == Phase::Connected)
        .filter_map(|(index, s)| {
            // What lies below no attach point isn't ours to judge, and of a cgroup that is gone it can't be told.
            let own = owners.get(&s.cgroup?)?;
            let server = known.role(s) == Role::Server;
            let port = if server { s.local.1 } else { s.remote.1 };
            let lookup = if server { 0 } else { port };
            let peer = match known.opposite(tables, owners, namespace, s, own, lookup) {
                Opposite::Oneself | Opposite::Untold => return None,
                Opposite::Peer(b) => b.peer,
            };
            let (src, dst) = if server { (peer, own.peer) } else { (own.peer, peer) };
            let flow = Flow { src, dst, proto: proto::judged(s.proto), port };
            let judgement = judge(tables, &flow);
            if judgement.outcome().passes() {
                return None;
            }
            // Whether the node is at the other end or somebody whom it masquerades, the programs know; here either may.
            let either = server && !namespace.host && peer == Class::Host.id() && own.flags & Binding::KNOWS_NODE != 0;
            if either && judge(tables, &Flow { src: Class::SnatIngress.id(), ..flow }).outcome().passes() {
                return None;
            }
            Some(Failing { socket: index, flow, judgement })
        })
        .collect()
}

fn oneself_or(own: &Binding, b: Binding) -> Opposite {
    if b.instance != 0 && b.instance == own.instance { Opposite::Oneself } else { Opposite::Peer(b) }
}

/// One end of a socket, with its protocol.
type End = (u8, Addr, u16);

/// What the sockets of a namespace say about each other.
struct Known<'a> {
    open: BTreeMap<(u8, u16), Vec<&'a Socket>>,
    connected: BTreeMap<(End, (Addr, u16)), &'a Socket>,
    /// Connected sockets by their own end alone.
    at: BTreeMap<End, &'a Socket>,
}

impl<'a> Known<'a> {
    fn of(sockets: &'a [Socket]) -> Self {
        let (mut open, mut connected, mut at) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::new(), BTreeMap::new());
        for s in sockets {
            match s.phase {
                Phase::Open => open.entry((s.proto, s.local.1)).or_default().push(s),
                Phase::Connected => {
                    let end = (s.proto, s.local.0, s.local.1);
                    connected.insert((end, s.remote), s);
                    at.insert(end, s);
                }
                Phase::Idle => {}
            }
        }
        Self { open, connected, at }
    }

    /// Where nothing is noted: a port on which somebody listens is a server's. Of two connected datagram sockets at one
    /// port nothing can be told apart, so there too.
    fn role(&self, s: &Socket) -> Role {
        s.role.unwrap_or_else(|| match self.open.contains_key(&(s.proto, s.local.1)) {
            true => Role::Server,
            false => Role::Client,
        })
    }

    /// Finds the peer as the hooks do.
    fn opposite<T: Tables>(
        &self,
        tables: &T,
        owners: &Owners,
        namespace: Namespace<'_>,
        s: &Socket,
        own: &Binding,
        lookup: u16,
    ) -> Opposite {
        let here = self.other_end(s);
        let inside = here.is_some() || s.remote.0.is_loopback() || s.remote.0 == s.local.0;
        if !inside {
            return oneself_or(own, resolve(tables, &s.remote.0, proto::judged(s.proto), lookup));
        }
        let host = Opposite::Peer(Binding::of(Class::Host.id()));
        let Some(other) = here else {
            return if namespace.host { host } else { Opposite::Oneself };
        };
        let Some(cgroup) = other.cgroup else { return Opposite::Untold };
        match owners.get(&cgroup) {
            Some(b) => oneself_or(own, *b),
            None if namespace.host => host,
            None => Opposite::Untold,
        }
    }

    /// The socket in this namespace to which what this one sends goes.
    fn other_end(&self, s: &Socket) -> Option<&'a Socket> {
        let ((addr, port), end) = (s.remote, (s.proto, s.remote.0, s.remote.1));
        if let Some(other) = self.connected.get(&(end, s.local)) {
            return Some(other);
        }
        // Redirected to another port of this namespace, as to a mesh's sidecar: it believes to be connected elsewhere.
        if let Some(other) = self.at.get(&end) {
            return Some(other);
        }
        // Whoever is bound to the very address shows that it is one of this namespace's; whoever takes any address only
        // counts where the peer is known to be inside.
        let inside = addr.is_loopback() || addr == s.local.0;
        let unspecified = |a: &Addr| *a == Addr::UNSPECIFIED || *a == Addr::v4([0; 4]);
        let takers = self.open.get(&(s.proto, port)).into_iter().flatten();
        takers.copied().find(|o| o.local.0 == addr || inside && unspecified(&o.local.0))
    }
}

#[cfg(test)]
mod tests;
