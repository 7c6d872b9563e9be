//! What the host itself must have.

use super::{Check, State, check};
use crate::app::Failure;
use crate::sources::hierarchy::Hierarchy;
use caps::{CapSet, Capability};
use std::path::Path;

/// Where the kernel keeps its own type information.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// What the agent needs.
const NEEDED: [Capability; 5] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
];

/// What an agent can't start without, the first that is missing.
///
/// # Errors
/// That.
pub(in crate::cli) fn missing() -> Result<Hierarchy, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::NotRoot);
    }
    let hierarchy = Hierarchy::find().map_err(Failure::NoCgroup2)?;
    if !Path::new(BTF).exists() {
        return Err(Failure::NoBtf);
    }
    match lacking().first() {
        Some(c) => Err(Failure::Capability(c.to_string())),
        None => Ok(hierarchy),
    }
}

fn lacking() -> Vec<Capability> {
    let have = |c: &Capability| caps::has_cap(None, CapSet::Effective, *c).unwrap_or(false);
    NEEDED.iter().filter(|c| !have(c)).copied().collect()
}

/// Everything that can be said without a configuration.
pub(super) fn checks() -> Vec<Check> {
    let mut all = Vec::new();
    let uname = rustix::system::uname();
    all.push(check(
        "kernel",
        State::Ok,
        format!("{} on {}", uname.release().to_string_lossy(), uname.machine().to_string_lossy()),
    ));
    all.push(if rustix::process::geteuid().is_root() {
        check("root", State::Ok, "yes")
    } else {
        check("root", State::Error, Failure::NotRoot.to_string())
    });
    all.push(match Hierarchy::find() {
        Ok(h) if h.hybrid => check(
            "cgroup2",
            State::Warning,
            format!(
                "at {}, with cgroup v1 beside it: name cgroups by their path in cgroup2 (`0::`)",
                h.mount.display()
            ),
        ),
        Ok(h) => check("cgroup2", State::Ok, format!("at {}", h.mount.display())),
        Err(e) => check("cgroup2", State::Error, format!("{e:#}")),
    });
    all.push(if Path::new(BTF).exists() {
        check("BTF", State::Ok, BTF)
    } else {
        check("BTF", State::Error, Failure::NoBtf.to_string())
    });
    let lacking = lacking();
    all.push(if lacking.is_empty() {
        check("capabilities", State::Ok, NEEDED.map(|c| c.to_string()).join(", "))
    } else {
        let names: Vec<String> = lacking.iter().map(ToString::to_string).collect();
        check("capabilities", State::Error, format!("missing: {}", names.join(", ")))
    });
    all.push(nat());
    all
}

/// Whether there is one where it shall be.
pub(super) fn bpffs(at: &Path) -> Check {
    let mounted = procfs::process::Process::myself()
        .and_then(|p| p.mountinfo())
        .is_ok_and(|m| m.0.iter().any(|m| m.fs_type == "bpf" && at.starts_with(&m.mount_point)));
    match mounted {
        true => check("BPF filesystem", State::Ok, format!("at {}", at.display())),
        false => {
            let known =
                std::fs::read_to_string("/proc/filesystems").is_ok_and(|t| t.lines().any(|l| l.ends_with("\tbpf")));
            let (state, note) = if known {
                let note = "the agent mounts it (a container can't: mount it on the host)";
                (State::Warning, format!("not mounted at {}; {note}", at.display()))
            } else {
                (State::Error, "this kernel has none: use one built with CONFIG_BPF_SYSCALL=y".to_owned())
            };
            check("BPF filesystem", state, note)
        }
    }
}

/// Whether connections may be rewritten on their way.
fn nat() -> Check {
    if !Path::new("/proc/sys/net/netfilter/nf_conntrack_count").exists() {
        return check("NAT", State::Ok, "no connection tracking in this network namespace");
    }
    let legacy: Vec<&str> = [("/proc/net/ip_tables_names", "IPv4"), ("/proc/net/ip6_tables_names", "IPv6")]
        .iter()
        .filter(|(file, _)| std::fs::read_to_string(file).is_ok_and(|t| t.lines().any(|l| l == "nat")))
        .map(|(_, family)| *family)
        .collect();
    let tables = if legacy.is_empty() {
        "no iptables nat table; nftables weren't looked into (nft list ruleset)".to_owned()
    } else {
        format!("iptables has nat tables for {}", legacy.join(" and "))
    };
    let tracked = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default();
    check(
        "NAT",
        State::Warning,
        format!(
            "connection tracking is on ({} connections), so there may be NAT: {tables}. A connection is judged by the \
             destination that connect() named; an inbound one by the address that it arrives with",
            tracked.trim()
        ),
    )
}

/// What no cgroup program sees, whatever the configuration.
pub(super) fn never_contained() -> Vec<Check> {
    let mut all = vec![
        check(
            "AF_PACKET sockets",
            State::Warning,
            "pass no cgroup hook: take CAP_NET_RAW from workloads (CapabilityBoundingSet=~CAP_NET_RAW)",
        ),
        check(
            "abstract unix sockets",
            State::Warning,
            "reach across workloads of one network namespace: give each its own (PrivateNetwork=yes) or none",
        ),
        check(
            "socket activation",
            State::Warning,
            "sockets that systemd makes for a unit aren't the unit's: `status` lists them once the unit has them",
        ),
    ];
    let vsock =
        std::fs::read_to_string("/proc/net/protocols").is_ok_and(|t| t.lines().any(|l| l.starts_with("AF_VSOCK")));
    if vsock {
        all.push(check(
            "AF_VSOCK sockets",
            State::Warning,
            "pass no cgroup hook: deny them to workloads (RestrictAddressFamilies=~AF_VSOCK)",
        ));
    }
    all
}
