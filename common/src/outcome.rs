//! The words for what was decided, and why: the same in code, metrics, logs, CLI and docs.
//!
//! Each enum crosses the kernel boundary as one byte and is read back by a fallible `from_u8`.

macro_rules! byte_enum {
    ($(#[$m:meta])* $name:ident { $($(#[$vm:meta])* $v:ident = $n:literal => $s:literal,)+ }) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vm])* $v = $n,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$v,)+];

            /// The value that this byte stands for, if any.
            pub const fn from_u8(n: u8) -> Option<Self> {
                Some(match n { $($n => Self::$v,)+ _ => return None })
            }

            /// The stable name in metrics, logs and on the command line.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$v => $s,)+ }
            }

            /// The value of that name, if any.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str() == name)
            }
        }
    };
}

byte_enum! {
    /// What two verdicts, the one in force (`now`) and the audited one, say together.
    Outcome {
        /// Both allow.
        Allowed = 0 => "allowed",
        /// Let through now; the audited verdict denies.
        WouldDeny = 1 => "would-deny",
        /// Denied now; the audited verdict allows.
        WouldAllow = 2 => "would-allow",
        /// Both deny.
        Denied = 3 => "denied",
    }
}

impl Outcome {
    /// The outcome of a pair of verdicts; `true` allows.
    #[inline(always)]
    pub const fn of(now: bool, audited: bool) -> Self {
        match (now, audited) {
            (true, true) => Self::Allowed,
            (true, false) => Self::WouldDeny,
            (false, true) => Self::WouldAllow,
            (false, false) => Self::Denied,
        }
    }

    /// Whether the connection is let through.
    #[inline(always)]
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Allowed | Self::WouldDeny)
    }
}

byte_enum! {
    /// Which way a connection was opened, seen from the workload whose hook judged it.
    Direction {
        /// The workload opened it.
        Egress = 0 => "egress",
        /// The peer opened it.
        Ingress = 1 => "ingress",
    }
}

byte_enum! {
    /// A kernel hook. Each but the last two decides.
    Hook {
        /// cgroup/sock_create
        SockCreate = 0 => "sock_create",
        /// cgroup/connect4 and connect6
        Connect = 1 => "connect",
        /// cgroup/sendmsg4 and sendmsg6
        Sendmsg = 2 => "sendmsg",
        /// cgroup_skb/egress
        Egress = 3 => "egress",
        /// cgroup_skb/ingress
        Ingress = 4 => "ingress",
        /// cgroup/sock_ops: it only counts what becomes of TCP connections.
        SockOps = 5 => "sock_ops",
        /// cgroup/sock_release: it only notes that a socket is over.
        SockRelease = 6 => "sock_release",
    }
}

impl Hook {
    /// Whether it may refuse anything.
    pub const fn decides(self) -> bool {
        !matches!(self, Self::SockOps | Self::SockRelease)
    }
}

byte_enum! {
    /// Why. If either verdict denies, this says why that one does (the one in force first).
    Reason {
        /// A rule on each side that needs one allows it.
        Rule = 0 => "rule",
        /// No rule speaks of it, and the posture of the sides concerned allows.
        Posture = 1 => "posture",
        /// The workload talks to itself within its own network namespace.
        SelfTraffic = 2 => "self",
        /// A named built-in lets it pass: neighbour discovery, ICMP errors and the like.
        BuiltIn = 3 => "built-in",

        /// No rule of the source allows it, and the source's default is deny.
        NoEgressRule = 16 => "no-egress-rule",
        /// No rule of the destination allows it, and the destination's default is deny.
        NoIngressRule = 17 => "no-ingress-rule",
        /// A deny rule matches.
        DenyRule = 18 => "deny-rule",
        /// The caller's cgroup belongs to no workload that the agent knows (yet).
        UnknownWorkload = 19 => "unknown-workload",
        /// The peer lies inside the workloads' ranges, and its owner isn't known (yet); no rule names `unknown`.
        UnknownPeer = 20 => "unknown-peer",
        /// The socket was made by another workload than the one using it.
        ForeignSocket = 21 => "foreign-socket",
        /// A raw or packet socket, which no rule can judge.
        RawSocket = 22 => "raw-socket",
        /// An SCTP socket, and the workload has no leave to make one.
        SctpSocket = 23 => "sctp-socket",
        /// An MPTCP socket, and the workload has no leave to make one.
        MptcpSocket = 24 => "mptcp-socket",
        /// A protocol that no rule can judge.
        Protocol = 25 => "protocol",
        /// The packet ends before its headers do, or isn't IP.
        Malformed = 26 => "malformed",
        /// It can't be told which end opened the connection.
        NoDirection = 27 => "no-direction",
        /// The kernel had no room to remember who made the socket or what was decided.
        NoRoom = 28 => "no-room",
        /// A neighbour advertisement's kin that no workload may send: router advertisement, redirect.
        ForgedControl = 29 => "forged-control",
        /// An entry that must exist is missing from the tables.
        Incomplete = 30 => "incomplete",
    }
}

/// The number of reason values that fit the overflow totals; every [`Reason`] is below it.
pub const REASONS: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_leads_back_or_nowhere() {
        for n in 0..=u8::MAX {
            if let Some(r) = Reason::from_u8(n) {
                assert_eq!(r as u8, n);
                assert_eq!(Reason::from_name(r.as_str()), Some(r));
                assert!(u32::from(n) < REASONS);
            }
        }
        assert_eq!(Outcome::from_u8(4), None);
    }

    #[test]
    fn only_the_verdict_in_force_lets_through() {
        for now in [false, true] {
            for audited in [false, true] {
                assert_eq!(Outcome::of(now, audited).passes(), now);
            }
        }
    }
}
