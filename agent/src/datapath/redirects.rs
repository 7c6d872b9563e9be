//! Whether a network namespace sends connections elsewhere than to where they go: by nf_tables, or by the older iptables.
//!
//! Looked for are the two ways of sidecar meshes, REDIRECT and TPROXY, by whatever program they were written. Everything
//! here is about the calling thread's namespace.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;

/// Linux: include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h, include/uapi/linux/netlink.h.
const GET_RULE: u16 = 10 << 8 | 7;
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const KIND: u16 = 0x3fff;
const RULE_EXPRESSIONS: u16 = 4;
const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const TARGET_NAME: u16 = 1;
/// What comes before the attributes: struct nlmsghdr, and struct nfgenmsg.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// Linux: include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// struct ipt_getinfo: the table's name, and at the end the number and the size of its entries.
const INFO: usize = 84;
const SIZE_AT: usize = 80;
/// struct ipt_get_entries: the table's name, the size, and padding.
const BEFORE_ENTRIES: usize = 40;
const NAME: usize = 32;
/// Larger than any table of a pod.
const LARGEST: usize = 16 << 20;

/// Whether there is any such rule.
///
/// # Errors
/// When the kernel doesn't answer as it should. That it has no nf_tables or no iptables isn't one.
pub fn any() -> io::Result<bool> {
    Ok(by_nf_tables()? || by_iptables()?)
}

fn by_nf_tables() -> io::Result<bool> {
    let socket = match Socket::new(NETLINK_NETFILTER) {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        other => other?,
    };
    socket.connect(&SocketAddr::new(0, 0))?;
    let length = u32::try_from(HEADER + FAMILY).unwrap_or_default();
    let request = [&length.to_ne_bytes()[..], &GET_RULE.to_ne_bytes(), &REQUEST_DUMP.to_ne_bytes(), &[0; 12]].concat();
    socket.send(&request, 0)?;
    let mut found = false;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = &answer[..];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                DONE => return Ok(found),
                ERROR => {
                    let error = body.first_chunk().map_or(-libc::EIO, |e| i32::from_ne_bytes(*e));
                    // It has no nf_tables.
                    let none = matches!(-error, libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT);
                    return if none { Ok(false) } else { Err(io::Error::from_raw_os_error(-error)) };
                }
                _ => found |= redirects(body.get(FAMILY..).unwrap_or_default()),
            }
            rest = next;
        }
    }
}

/// The first message's kind and what is in it, and what comes behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let [a, b, c, d, e, f, ..] = *bytes else { return None };
    let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
    let body = bytes.get(HEADER..length)?;
    Some((u16::from_ne_bytes([e, f]), body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Attributes: the kind and the value of each.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else { return None };
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & KIND);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Whether a rule, given by its attributes, has an expression that redirects: of nf_tables' own, or of iptables within it.
fn redirects(rule: &[u8]) -> bool {
    let value = |of: &[u8], wanted: u16| -> Option<Vec<u8>> {
        attributes(of).find(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec())
    };
    let lists = attributes(rule).filter(|(kind, _)| *kind == RULE_EXPRESSIONS);
    let mut elements = lists.flat_map(|(_, list)| attributes(list)).filter(|(kind, _)| *kind == ELEMENT);
    elements.any(|(_, element)| match value(element, EXPRESSION_NAME).as_deref() {
        Some(b"redir\0" | b"tproxy\0") => true,
        Some(b"target\0") => {
            let target = value(element, EXPRESSION_DATA).and_then(|data| value(&data, TARGET_NAME));
            matches!(target.as_deref(), Some(b"REDIRECT\0" | b"TPROXY\0"))
        }
        _ => false,
    })
}

fn by_iptables() -> io::Result<bool> {
    for (names, domain, level) in [
        ("/proc/thread-self/net/ip_tables_names", libc::AF_INET, libc::SOL_IP),
        ("/proc/thread-self/net/ip6_tables_names", libc::AF_INET6, libc::SOL_IPV6),
    ] {
        // Only tables that are there already: asking for another one would make it.
        let Ok(names) = fs::read_to_string(names) else { continue };
        for table in names.lines().filter(|t| matches!(*t, "nat" | "mangle")) {
            let entries = entries(domain, level, table)?;
            if holds(&entries, b"REDIRECT\0") || holds(&entries, b"TPROXY\0") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether a target of that name is among the entries. A chain of that name counts as well: nobody else has one.
fn holds(entries: &[u8], name: &[u8]) -> bool {
    entries.windows(name.len()).any(|window| window == name)
}

/// The entries of a table, as the kernel keeps them.
fn entries(domain: libc::c_int, level: libc::c_int, table: &str) -> io::Result<Vec<u8>> {
    // Any socket of the family will do; a raw one would take another capability.
    let socket = socket2::Socket::new(domain.into(), socket2::Type::DGRAM, None)?;
    let mut info = vec![0; INFO];
    info[..table.len()].copy_from_slice(table.as_bytes());
    ask(&socket, level, GET_INFO, &mut info)?;
    let size = info.get(SIZE_AT..).and_then(|s| s.first_chunk()).map_or(0, |s| u32::from_ne_bytes(*s));
    let length = usize::try_from(size).map_err(io::Error::other)?;
    if length > LARGEST {
        return Err(io::Error::other(format!("the table {table} has {length} bytes, which is too many to look at")));
    }
    let mut all = vec![0; BEFORE_ENTRIES + length];
    all[..table.len()].copy_from_slice(table.as_bytes());
    all[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    ask(&socket, level, GET_ENTRIES, &mut all)?;
    Ok(all.split_off(BEFORE_ENTRIES))
}

fn ask(socket: &socket2::Socket, level: libc::c_int, option: libc::c_int, into: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(into.len()).map_err(io::Error::other)?;
    // SAFETY: `into` has room for `length` bytes.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, into.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).expect("small");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// The attributes of a rule with these expressions.
    fn rule(expressions: &[(&str, &[u8])]) -> Vec<u8> {
        let one = |(name, data): &(&str, &[u8])| {
            let name = [name.as_bytes(), &[0]].concat();
            let inside = [attribute(EXPRESSION_NAME, &name), attribute(EXPRESSION_DATA | 0x8000, data)].concat();
            attribute(ELEMENT | 0x8000, &inside)
        };
        let list: Vec<u8> = expressions.iter().flat_map(one).collect();
        [attribute(1, b"mesh\0"), attribute(2, b"in\0"), attribute(RULE_EXPRESSIONS | 0x8000, &list)].concat()
    }

    #[test]
    fn a_rule_that_redirects_is_known_by_its_expressions() {
        let target = |name: &[u8]| attribute(TARGET_NAME, name);
        let (redirect, accept) = (target(b"REDIRECT\0"), target(b"ACCEPT\0"));
        for (expressions, expected) in [
            (&[("payload", &[][..]), ("cmp", &[]), ("redir", &[])][..], true),
            (&[("tproxy", &[])], true),
            (&[("match", &redirect), ("target", &redirect)], true),
            (&[("match", &redirect), ("target", &accept)], false),
            (&[("counter", &[]), ("nat", &[])], false),
            (&[], false),
        ] {
            assert_eq!(redirects(&rule(expressions)), expected, "{expressions:?}");
        }
        let whole = rule(&[("redir", &[])]);
        for cut in 0..whole.len() {
            redirects(&whole[..cut]);
        }
    }

    #[test]
    fn a_target_is_known_by_its_whole_name() {
        assert!(holds(b"\x28\0REDIRECT\0\0\0", b"REDIRECT\0") && !holds(b"REDIRECTED\0", b"REDIRECT\0"));
    }

    /// A chain for what comes in, with one rule that redirects all of it.
    fn redirect() -> io::Result<()> {
        let message = |kind: u16, flags: u16, family: u8, framed: u16, attributes: &[u8]| {
            let length = u32::try_from(HEADER + FAMILY + attributes.len()).expect("small");
            let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags | 1).to_ne_bytes(), &[0; 8]].concat();
            [header, vec![family, 0], framed.to_be_bytes().to_vec(), attributes.to_vec()].concat()
        };
        let number = |kind, n: i32| attribute(kind, &n.to_be_bytes());
        // NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST.
        let hook = attribute(4 | 0x8000, &[number(1, 0), number(2, -100)].concat());
        let chain = [attribute(1, b"mesh\0"), attribute(3, b"in\0"), hook, attribute(7, b"nat\0")].concat();
        // NLM_F_ACK | NLM_F_CREATE; the last one also NLM_F_APPEND.
        let batch = [
            message(0x10, 0, 0, 10, &[]),
            message(10 << 8, 0x404, 2, 0, &attribute(1, b"mesh\0")),
            message(10 << 8 | 3, 0x404, 2, 0, &chain),
            message(10 << 8 | 6, 0xc04, 2, 0, &rule(&[("redir", &[])])),
            message(0x11, 0, 0, 10, &[]),
        ];
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&batch.concat(), 0)?;
        for _ in 0..3 {
            let (answer, _) = socket.recv_from_full()?;
            let (_, body, _) = super::message(&answer).expect("a message");
            let error = body.first_chunk().map_or(-libc::EIO, |e| i32::from_ne_bytes(*e));
            if error != 0 {
                return Err(io::Error::from_raw_os_error(-error));
            }
        }
        Ok(())
    }

    #[test]
    fn the_kernels_own_rules_are_found_in_their_namespace_alone() {
        let (meshed, other) = (
            crate::probe::sandbox::Netns::new().expect("tests on the real kernel run as root"),
            crate::probe::sandbox::Netns::new().expect("a namespace"),
        );
        let found = |netns: &crate::probe::sandbox::Netns| netns.run(any).expect("a thread").expect("an answer");
        assert!(!found(&meshed));
        meshed.run(redirect).expect("a thread").expect("a rule");
        assert!(found(&meshed) && !found(&other));
    }
}
