//! The programs that are attached to a cgroup, whoever attached them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `BPF_PROG_QUERY` of linux/bpf.h.
const PROG_QUERY: libc::c_int = 16;
/// How many programs of one kind are asked for; the kernel allows 64 at a cgroup.
const MOST: usize = 64;
/// The attach types of linux/bpf.h that concern sockets.
const TYPES: [(u32, &str); 13] = [
    (0, "cgroup_skb/ingress"),
    (1, "cgroup_skb/egress"),
    (2, "sock_create"),
    (3, "sock_ops"),
    (10, "connect4"),
    (11, "connect6"),
    (14, "sendmsg4"),
    (15, "sendmsg6"),
    (19, "recvmsg4"),
    (20, "recvmsg6"),
    (8, "bind4"),
    (9, "bind6"),
    (34, "sock_release"),
];

/// The head of `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

/// Programs attached to this cgroup itself (not to its ancestors), each with its name and hook.
pub(super) fn at(directory: &Path) -> io::Result<Vec<String>> {
    let cgroup = File::open(directory)?;
    let mut names: Option<BTreeMap<u32, String>> = None;
    let mut all = Vec::new();
    for (attach_type, hook) in TYPES {
        let mut ids = [0_u32; MOST];
        let mut query = Query {
            target: u32::try_from(cgroup.as_raw_fd()).unwrap_or_default(),
            attach_type,
            ids: ids.as_mut_ptr() as u64,
            count: u32::try_from(MOST).unwrap_or(u32::MAX),
            ..Query::default()
        };
        // SAFETY: `query` is laid out as the kernel reads it and of the length that is given; `ids` has room for
        // `count` numbers and outlives the call.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, std::ptr::from_mut(&mut query), size_of::<Query>()) };
        if done != 0 {
            let e = io::Error::last_os_error();
            // This kernel doesn't know the attach type.
            if e.raw_os_error() == Some(libc::EINVAL) {
                continue;
            }
            return Err(e);
        }
        let count = usize::try_from(query.count).unwrap_or(MOST).min(MOST);
        for id in &ids[..count] {
            let names = names.get_or_insert_with(loaded);
            let name = names.get(id).map_or("?", String::as_str);
            all.push(format!("{hook} `{name}` (id {id})"));
        }
    }
    Ok(all)
}

/// The names of all loaded programs.
fn loaded() -> BTreeMap<u32, String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .map(|p| (p.id(), p.name_as_str().unwrap_or("?").to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::sources::hierarchy::Hierarchy;

    #[test]
    fn the_root_can_be_asked() {
        let root = Hierarchy::find().expect("cgroup2").mount;
        super::at(&root).expect("an answer (needs CAP_NET_ADMIN or CAP_SYS_ADMIN)");
        super::at(&root.join("nonexistent")).expect_err("nothing there");
    }
}
