//! What this kernel can do, found out by trying: never by its version, which says little about a distribution's kernel.

use super::{sock_diag, sys};
use aya_obj::btf::{Btf, BtfKind};
use aya_obj::generated::{bpf_attach_type as attach, bpf_func_id as helper, bpf_prog_type as program};
use std::io;
use std::os::fd::AsFd;

/// Something that a kernel may lack.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether this kernel has it, and lets this process use it.
    pub available: bool,
    /// Whether the agent can't do without.
    pub required: bool,
    /// Whether this version does anything with it.
    pub used: bool,
    /// What follows where it is missing.
    pub without: &'static str,
}

/// What is looked for although nothing uses it: so it is known where a later version can.
const NOT_USED_YET: [&str; 4] = ["task-in-packet-hooks", "netns-in-packet-hooks", "sk_lookup-programs", "lsm"];

/// Tries out everything. Takes some hundred milliseconds, leaves nothing behind.
pub fn features() -> Vec<Feature> {
    let feature = |name, required, available, without| {
        let used = !NOT_USED_YET.contains(&name);
        Feature { name, available, required, used, without }
    };
    let skb = |f| has_helper(program::BPF_PROG_TYPE_CGROUP_SKB, attach::BPF_CGROUP_INET_EGRESS, f);
    let create = |f| has_helper(program::BPF_PROG_TYPE_CGROUP_SOCK, attach::BPF_CGROUP_INET_SOCK_CREATE, f);
    let connect = |f| has_helper(program::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach::BPF_CGROUP_INET4_CONNECT, f);
    let takes = |kind, at| sys::try_load(kind as u32, at as u32, 0, &RETURN_1).is_ok();
    let nothing_judged = "the programs don't load";
    vec![
        feature("ring-buffer", true, ring_buffer(), nothing_judged),
        feature("socket-storage", true, skb(helper::BPF_FUNC_sk_storage_get), nothing_judged),
        feature("socket-storage-in-sock_create", true, create(helper::BPF_FUNC_sk_storage_get), nothing_judged),
        feature("socket-cookie-in-sock_create", true, create(helper::BPF_FUNC_get_socket_cookie), nothing_judged),
        feature("packet-ancestor-cgroup", true, skb(helper::BPF_FUNC_skb_ancestor_cgroup_id), nothing_judged),
        feature("task-ancestor-cgroup", true, connect(helper::BPF_FUNC_get_current_ancestor_cgroup_id), nothing_judged),
        feature("socket-lookup", true, skb(helper::BPF_FUNC_sk_lookup_tcp), nothing_judged),
        feature(
            "map-of-maps",
            true,
            super::tables::Grace::new().and_then(|g| g.wait()).is_ok(),
            "no commit can be whole",
        ),
        feature(
            "own-errno",
            false,
            create(helper::BPF_FUNC_set_retval) && connect(helper::BPF_FUNC_set_retval),
            "an MPTCP socket is refused with EPERM, so a program doesn't fall back to TCP by itself",
        ),
        feature(
            "task-in-packet-hooks",
            false,
            skb(helper::BPF_FUNC_get_current_comm),
            "a denial at a packet hook names the process that made the socket, not the one that sends",
        ),
        feature(
            "netns-in-packet-hooks",
            false,
            skb(helper::BPF_FUNC_get_netns_cookie),
            "whether a socket is the host's is known from its making only",
        ),
        feature("map-batches", false, batches(), "commits and counters are read and written one entry at a time"),
        feature(
            "socket-cgroup-listing",
            false,
            socket_cgroups(),
            "sockets that are older than a process's move into its cgroup can't be found",
        ),
        feature("socket-destroy", false, socket_destroy(), "a connection that is denied later hangs instead of ending"),
        feature(
            "sk_lookup-programs",
            false,
            takes(program::BPF_PROG_TYPE_SK_LOOKUP, attach::BPF_SK_LOOKUP),
            "an inbound refusal is silent, never an immediate reset",
        ),
        feature(
            "sock_ops-programs",
            true,
            takes(program::BPF_PROG_TYPE_SOCK_OPS, attach::BPF_CGROUP_SOCK_OPS),
            nothing_judged,
        ),
        feature(
            "sock_release-programs",
            true,
            takes(program::BPF_PROG_TYPE_CGROUP_SOCK, attach::BPF_CGROUP_INET_SOCK_RELEASE),
            nothing_judged,
        ),
        feature("lsm", false, lsm(), "AF_PACKET, AF_VSOCK and sockets made outside the attach points aren't contained"),
    ]
}

/// One instruction: opcode, destination register, source register, offset 0, immediate.
const fn instruction(opcode: u8, dst: u8, src: u8, immediate: u32) -> u64 {
    opcode as u64 | ((src << 4 | dst) as u64) << 8 | (immediate as u64) << 32
}

const MOVE: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u64 = instruction(0x95, 0, 0, 0);
const RETURN_1: [u64; 2] = [instruction(MOVE, 0, 0, 1), EXIT];
const RETURN_0: [u64; 2] = [instruction(MOVE, 0, 0, 0), EXIT];

/// Whether a program of this kind may call the helper. It is called without arguments: the verifier complains about
/// those only after it has found that the helper is allowed.
fn has_helper(kind: program, at: attach, function: helper) -> bool {
    let instructions = [instruction(CALL, 0, 0, function as u32), RETURN_1[0], EXIT];
    match sys::try_load(kind as u32, at as u32, 0, &instructions) {
        Ok(_) => true,
        Err((_, log)) => {
            !log.is_empty() && !["unknown func", "invalid func", "cannot use helper"].iter().any(|w| log.contains(w))
        }
    }
}

fn ring_buffer() -> bool {
    let size = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    sys::map_create(sys::MAP_TYPE_RINGBUF, 0, 0, size, None).is_ok()
}

fn batches() -> bool {
    let Ok(map) = sys::map_create(sys::MAP_TYPE_HASH, 4, 4, 4, None) else { return false };
    sys::map_update_all(map.as_fd(), &[1u32, 2], &[1u32, 2]).is_ok()
        && sys::map_read_all::<u32, u32>(map.as_fd()).is_ok_and(|all| all.len() == 2)
}

fn socket_cgroups() -> bool {
    let Ok(_one) = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)) else { return false };
    sock_diag::sockets().is_ok_and(|all| all.iter().any(|s| s.cgroup.is_some()))
}

/// Asks for a socket to be destroyed that doesn't exist.
fn socket_destroy() -> bool {
    let nobody = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 1));
    let socket = sock_diag::Socket {
        protocol: bulkhead_common::proto::TCP,
        state: sock_diag::state::ESTABLISHED,
        local: nobody,
        remote: nobody,
        cookie: 1,
        inode: 0,
        cgroup: None,
        kept: Vec::new(),
    };
    match sock_diag::destroy(&socket) {
        Ok(()) => true,
        Err(e) => matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)),
    }
}

/// Loads a program that allows everything, and attaches it for a moment.
fn lsm() -> bool {
    let attempt = || -> io::Result<()> {
        let types = Btf::from_sys_fs().map_err(io::Error::other)?;
        let id = types.id_by_type_name_kind("bpf_lsm_socket_connect", BtfKind::Func).map_err(io::Error::other)?;
        let kind = program::BPF_PROG_TYPE_LSM as u32;
        let program = sys::try_load(kind, attach::BPF_LSM_MAC as u32, id, &RETURN_0).map_err(|(e, _)| e)?;
        sys::lsm_attach(program.as_fd()).map(drop)
    };
    attempt().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_needs_is_found_and_what_cannot_be_is_not() {
        let all = features();
        for feature in all.iter().filter(|f| f.required) {
            assert!(feature.available, "{feature:?}: run the tests as root");
        }
        // A packet hook has no socket address to rewrite the answer of: the helper exists, but not there.
        assert!(!has_helper(
            program::BPF_PROG_TYPE_CGROUP_SKB,
            attach::BPF_CGROUP_INET_EGRESS,
            helper::BPF_FUNC_override_return
        ));
        let unknown = [instruction(CALL, 0, 0, 100_000), RETURN_1[0], EXIT];
        let refused = sys::try_load(program::BPF_PROG_TYPE_CGROUP_SKB as u32, 1, 0, &unknown);
        assert!(refused.is_err_and(|(_, log)| log.contains("func")));
    }
}
