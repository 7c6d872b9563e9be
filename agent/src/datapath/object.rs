//! The embedded kernel object: which programs it has, where they belong, which shapes its maps have, and loading it.

use super::error::OpenError;
use super::pins::Set;
use super::sys::{self, MapInfo};
use super::{Limits, Options};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_attach_type::{
    BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_SOCK_CREATE, BPF_CGROUP_INET_SOCK_RELEASE,
    BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET6_CONNECT, BPF_CGROUP_SOCK_OPS, BPF_CGROUP_UDP4_SENDMSG,
    BPF_CGROUP_UDP6_SENDMSG,
};
use bulkhead_common::{Hook, maps, outside};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The object that `cargo xtask build` made; empty when the agent was built without it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bulkhead-ebpf.o"));

/// A program of the object and where it is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    /// The function's name in the object, and the name of its pins.
    pub(super) program: &'static str,
    /// The hook that it is part of.
    pub(super) hook: Hook,
    /// `enum bpf_attach_type`.
    pub(super) attach_type: u32,
}

/// Every program, in the order in which they are attached: whoever takes a place gives it back, and sockets are stamped
/// before anything judges by a stamp.
pub(super) const MOUNTS: [Mount; 9] = [
    Mount { program: "sock_release", hook: Hook::SockRelease, attach_type: BPF_CGROUP_INET_SOCK_RELEASE as u32 },
    Mount { program: "sock_create", hook: Hook::SockCreate, attach_type: BPF_CGROUP_INET_SOCK_CREATE as u32 },
    Mount { program: "ingress", hook: Hook::Ingress, attach_type: BPF_CGROUP_INET_INGRESS as u32 },
    Mount { program: "egress", hook: Hook::Egress, attach_type: BPF_CGROUP_INET_EGRESS as u32 },
    Mount { program: "connect4", hook: Hook::Connect, attach_type: BPF_CGROUP_INET4_CONNECT as u32 },
    Mount { program: "connect6", hook: Hook::Connect, attach_type: BPF_CGROUP_INET6_CONNECT as u32 },
    Mount { program: "sendmsg4", hook: Hook::Sendmsg, attach_type: BPF_CGROUP_UDP4_SENDMSG as u32 },
    Mount { program: "sendmsg6", hook: Hook::Sendmsg, attach_type: BPF_CGROUP_UDP6_SENDMSG as u32 },
    Mount { program: "sock_ops", hook: Hook::SockOps, attach_type: BPF_CGROUP_SOCK_OPS as u32 },
];

/// The maps that are pinned. Those that the compiler adds (constants) and the kernel's log belong to one load of the
/// programs and aren't.
pub(super) const PINNED_MAPS: [&str; 24] = [
    maps::CONTROL,
    maps::SLOTS,
    maps::BASELINES,
    maps::CGROUPS,
    maps::ADDRESSES,
    maps::ADDRESS_PORTS,
    maps::PREFIXES,
    maps::RULES,
    maps::EDGES,
    maps::RETIRED,
    maps::TRAFFIC,
    outside::OUTSIDE[0],
    outside::OUTSIDE[1],
    outside::SHARES,
    maps::TOTALS,
    maps::FLOWS,
    maps::WORLD_FLOWS,
    maps::EVENTS,
    maps::ANSWERS,
    maps::SOCKETS,
    maps::TAKEN,
    maps::OTHER_SOCKETS,
    maps::MAKERS,
    maps::OLD_SOCKETS,
];

/// The programs' log (aya-log): its ring, which isn't pinned, and the levels that decide what is written to it. A
/// level that is nothing is a constant to the verifier, and what would log is taken out of the programs.
const LOG_MAP: &str = "AYA_LOGS";
const LOG_BYTES: u32 = 1 << 17;
const LOG_EVERYTHING: u8 = 0xff;
const LOG_NOTHING: u8 = 0;

fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(LOG_BYTES)
}

/// What the agent wants a map to be. The id plays no part.
pub(super) type Shapes = BTreeMap<&'static str, MapInfo>;

/// Whether there is an object at all.
pub(super) fn check() -> Result<(), OpenError> {
    if OBJECT.is_empty() { Err(OpenError::NoObject) } else { Ok(()) }
}

/// The shapes of the pinned maps as this object and these limits want them.
pub(super) fn shapes(limits: &Limits) -> Result<Shapes, OpenError> {
    static PARSED: LazyLock<Result<Shapes, String>> = LazyLock::new(|| {
        let object = aya_obj::Object::parse(OBJECT).map_err(|e| e.to_string())?;
        let shape = |name| -> Result<MapInfo, String> {
            let map = object.maps.get(name).ok_or_else(|| format!("it has no map {name}"))?;
            let ring = map.map_type() == sys::MAP_TYPE_RINGBUF;
            Ok(MapInfo {
                kind: map.map_type(),
                id: 0,
                key_size: if ring { 0 } else { map.key_size() },
                value_size: if ring { 0 } else { map.value_size() },
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            })
        };
        for mount in MOUNTS {
            if !object.programs.contains_key(mount.program) {
                return Err(format!("it has no program {}", mount.program));
            }
        }
        PINNED_MAPS.into_iter().map(|name| Ok((name, shape(name)?))).collect()
    });
    let mut shapes = PARSED.clone().map_err(OpenError::BadObject)?;
    for (name, max_entries) in limits.by_map() {
        if let Some(shape) = shapes.get_mut(name) {
            shape.max_entries = max_entries;
        }
    }
    Ok(shapes)
}

/// Loads maps and programs: maps that the set has pinned are used as they are, the others are made and pinned there.
pub(super) fn load(options: &Options, set: &Set) -> Result<Ebpf, OpenError> {
    let mut loader = EbpfLoader::new();
    // No program reads the kernel's own structures, so there is nothing to relocate against.
    loader.btf(None).allow_unsupported_maps();
    for name in PINNED_MAPS {
        loader.map_pin_path(name, set.map(name));
    }
    for (name, max_entries) in options.limits.by_map() {
        loader.map_max_entries(name, max_entries);
    }
    let (level, bytes) =
        if options.verbose_kernel_log { (LOG_EVERYTHING, LOG_BYTES) } else { (LOG_NOTHING, page_size()) };
    loader.override_global(aya_log::LEVEL, &level, true).map_max_entries(LOG_MAP, bytes);
    let mut ebpf = loader.load(OBJECT).map_err(|e| OpenError::Maps(describe(&e)))?;
    for mount in MOUNTS {
        let program = ebpf
            .program_mut(mount.program)
            .ok_or_else(|| OpenError::BadObject(format!("it has no program {}", mount.program)))?;
        let result = match program {
            Program::CgroupSock(p) => p.load(),
            Program::CgroupSockAddr(p) => p.load(),
            Program::CgroupSkb(p) => p.load(),
            Program::SockOps(p) => p.load(),
            _ => return Err(OpenError::BadObject(format!("{} is of an unknown kind", mount.program))),
        };
        result.map_err(|e| refused(mount.program, &e))?;
    }
    Ok(ebpf)
}

/// The verifier says what it doesn't like at the end; the rest is its way there.
fn refused(program: &'static str, error: &ProgramError) -> OpenError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(12)..].join("\n");
            OpenError::Refused { program, error: io_error.to_string(), log: tail }
        }
        other => OpenError::Refused { program, error: describe(other), log: String::new() },
    }
}

/// The error with what caused it.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
