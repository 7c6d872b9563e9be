//! bpf(2), as far as aya doesn't wrap it: pinned objects of every kind, cgroup links that are updated in place, batches.
//!
//! Each call passes only the head of the kernel's attribute union that it needs; the kernel takes the rest as zero
//! (include/uapi/linux/bpf.h, `union bpf_attr`). Nothing here knows what Bulkhead's maps mean.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

mod command {
    pub(super) const MAP_CREATE: libc::c_long = 0;
    pub(super) const MAP_LOOKUP_ELEM: libc::c_long = 1;
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const MAP_DELETE_ELEM: libc::c_long = 3;
    pub(super) const PROG_LOAD: libc::c_long = 5;
    pub(super) const OBJ_PIN: libc::c_long = 6;
    pub(super) const OBJ_GET: libc::c_long = 7;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub(super) const PROG_QUERY: libc::c_long = 16;
    pub(super) const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
    pub(super) const MAP_LOOKUP_BATCH: libc::c_long = 24;
    pub(super) const MAP_UPDATE_BATCH: libc::c_long = 26;
    pub(super) const MAP_DELETE_BATCH: libc::c_long = 27;
    pub(super) const LINK_CREATE: libc::c_long = 28;
    pub(super) const LINK_UPDATE: libc::c_long = 29;
    pub(super) const LINK_DETACH: libc::c_long = 34;
}

/// `BPF_MAP_TYPE_HASH`
pub(super) const MAP_TYPE_HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`
pub(super) const MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`
pub(super) const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
/// `BPF_MAP_TYPE_RINGBUF`
pub(super) const MAP_TYPE_RINGBUF: u32 = 27;

/// # Safety
///
/// `attr` must be the head of `union bpf_attr` for this command, and every address in it must be valid for what the
/// command does with it.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise; the kernel reads and writes at most size_of::<T>() bytes of `attr` itself.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
///
/// As [`bpf`], and the command must give a new file descriptor.
unsafe fn bpf_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr)? };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor as the attributes want it.
fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn address<T: ?Sized>(p: *const T) -> u64 {
    p.cast::<()>().addr() as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned map, program or link.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Object { pathname: address(path.as_ptr()), bpf_fd: 0, file_flags: 0 };
    // SAFETY: `path` outlives the call.
    unsafe { bpf_fd(command::OBJ_GET, &mut attr) }
}

/// Pins a map, program or link.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Object { pathname: address(path.as_ptr()), bpf_fd: raw(fd), file_flags: 0 };
    // SAFETY: `path` outlives the call.
    unsafe { bpf(command::OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches a program to a cgroup by a link; it ends with the last reference to the link.
pub(super) fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attr = Attr { prog_fd: raw(program), target_fd: raw(cgroup), attach_type, flags: 0 };
    // SAFETY: no addresses.
    unsafe { bpf_fd(command::LINK_CREATE, &mut attr) }
}

/// Puts another program into a link, without a gap.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    // SAFETY: no addresses.
    unsafe { bpf(command::LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link's program off its cgroup, whoever else holds the link.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link)];
    // SAFETY: no addresses.
    unsafe { bpf(command::LINK_DETACH, &mut attr) }.map(drop)
}

/// The ids of the programs that are attached right here, in the order in which they run.
pub(super) fn attached_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attr {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        pad: u32,
    }
    let mut ids = vec![0u32; 64];
    let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let mut attr = Attr {
        target_fd: raw(cgroup),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: address(ids.as_mut_ptr()),
        prog_cnt: count,
        pad: 0,
    };
    // SAFETY: `ids` has room for `prog_cnt` ids and outlives the call.
    unsafe { bpf(command::PROG_QUERY, &mut attr)? };
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// Reads the head of the kernel's description of an object into `info`.
///
/// # Safety
///
/// `T` must be integers all through, laid out as the head of the `bpf_*_info` of what `fd` is.
unsafe fn describe<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = Attr { bpf_fd: raw(fd), info_len, info: address(std::ptr::from_mut(info)) };
    // SAFETY: the kernel writes at most `info_len` bytes into `info`.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// The head of `struct bpf_map_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// What a map is.
pub(super) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    // SAFETY: MapInfo is the head of struct bpf_map_info.
    unsafe { describe(fd, &mut info)? };
    Ok(info)
}

/// `struct bpf_link_info` of a cgroup link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    pad: u32,
    /// 0: it isn't attached any more.
    pub(super) cgroup: u64,
    pub(super) attach_type: u32,
    tail: u32,
}

/// What a cgroup link is attached to.
pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    // SAFETY: LinkInfo is the head of struct bpf_link_info with the cgroup member of its union.
    unsafe { describe(fd, &mut info)? };
    Ok(info)
}

/// The head of `struct bpf_prog_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(super) struct ProgramInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) tag: [u8; 8],
}

/// What a program is.
pub(super) fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = ProgramInfo::default();
    // SAFETY: ProgramInfo is the head of struct bpf_prog_info.
    unsafe { describe(fd, &mut info)? };
    Ok(info)
}

/// Makes a map without a name. `inner` is a pattern for the maps that a map of maps holds.
pub(super) fn map_create(
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let inner = inner.map_or(0, raw);
    let mut attr = [kind, key_size, value_size, max_entries, 0, inner];
    // SAFETY: no addresses.
    unsafe { bpf_fd(command::MAP_CREATE, &mut attr) }
}

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Sets one element. `K` and `V` must have the sizes that the map was made with.
pub(super) fn map_update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let (key, value) = (address(std::ptr::from_ref(key)), address(std::ptr::from_ref(value)));
    let mut attr = Element { map_fd: raw(map), pad: 0, key, value, flags: 0 };
    // SAFETY: key and value outlive the call; their sizes are the map's, which `open` has compared.
    unsafe { bpf(command::MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// The value of one element; `empty` gives its room.
pub(super) fn map_lookup<K, V: zerocopy::FromBytes>(map: BorrowedFd<'_>, key: &K, mut empty: V) -> io::Result<V> {
    let (key, value) = (address(std::ptr::from_ref(key)), address(std::ptr::from_mut(&mut empty)));
    let mut attr = Element { map_fd: raw(map), pad: 0, key, value, flags: 0 };
    // SAFETY: as in `map_update`; any bytes that the kernel writes are a value.
    unsafe { bpf(command::MAP_LOOKUP_ELEM, &mut attr) }.map(|_| empty)
}

/// Deletes one element.
pub(super) fn map_delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = Element { map_fd: raw(map), pad: 0, key: address(std::ptr::from_ref(key)), value: 0, flags: 0 };
    // SAFETY: as in `map_update`.
    unsafe { bpf(command::MAP_DELETE_ELEM, &mut attr) }.map(drop)
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Whether a batch command failed because this kind of map has none (ENOTSUPP, which libc doesn't know, among others).
fn has_no_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(524 | libc::EOPNOTSUPP | libc::EINVAL))
}

/// Sets many elements, by one system call where the kernel can. When it fails, some of them may be set.
pub(super) fn map_update_all<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    let count = u32::try_from(keys.len().min(values.len())).map_err(io::Error::other)?;
    if count == 0 {
        return Ok(());
    }
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: address(keys.as_ptr()),
        values: address(values.as_ptr()),
        count,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: keys and values hold `count` elements each, of the map's sizes.
    match unsafe { bpf(command::MAP_UPDATE_BATCH, &mut attr) } {
        Err(e) if has_no_batches(&e) => keys.iter().zip(values).try_for_each(|(k, v)| map_update(map, k, v)),
        other => other.map(drop),
    }
}

/// Deletes many elements; those that aren't there are no error.
pub(super) fn map_delete_all<K>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut rest = keys;
    while !rest.is_empty() {
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: address(rest.as_ptr()),
            values: 0,
            count: u32::try_from(rest.len()).map_err(io::Error::other)?,
            map_fd: raw(map),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `rest` holds `count` keys of the map's size.
        match unsafe { bpf(command::MAP_DELETE_BATCH, &mut attr) } {
            Ok(_) => return Ok(()),
            // `count` says how many are deleted; the next one isn't there.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                rest = rest.get(attr.count as usize + 1..).unwrap_or_default();
            }
            Err(e) if has_no_batches(&e) => {
                for key in rest {
                    match map_delete(map, key) {
                        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                        _ => {}
                    }
                }
                return Ok(());
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads a hash or trie whole, by batches.
///
/// An element that is added or deleted meanwhile may be there or not; one that stays is there exactly once, since the
/// kernel walks whole buckets. `K` and `V` must be valid for any bytes.
pub(super) fn map_read_all<K, V>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>>
where
    K: zerocopy::FromBytes + Clone,
    V: zerocopy::FromBytes + Clone,
{
    // The position is a bucket's number for a hash and a key for a trie.
    let mut position = vec![0u8; size_of::<K>().max(4)];
    let mut started = false;
    let mut size = 4096usize;
    let mut all = Vec::new();
    loop {
        let mut keys: Vec<K> = (0..size).map(|_| K::new_zeroed()).collect();
        let mut values: Vec<V> = (0..size).map(|_| V::new_zeroed()).collect();
        let mut attr = Batch {
            in_batch: if started { address(position.as_ptr()) } else { 0 },
            out_batch: address(position.as_mut_ptr()),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: u32::try_from(size).map_err(io::Error::other)?,
            map_fd: raw(map),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: keys and values have room for `count` elements of the map's sizes; the position fits either meaning.
        let result = unsafe { bpf(command::MAP_LOOKUP_BATCH, &mut attr) };
        let ended = match result {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket holds more than we have room for.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                size *= 2;
                continue;
            }
            Err(e) => return Err(e),
        };
        keys.truncate(attr.count as usize);
        all.extend(keys.into_iter().zip(values));
        if ended {
            return Ok(all);
        }
        started = true;
    }
}

/// Loads a program given as instructions, to see whether the kernel takes it. The error carries the verifier's words.
pub(super) fn try_load(
    kind: u32,
    attach_type: u32,
    attach_btf_id: u32,
    instructions: &[u64],
) -> Result<OwnedFd, (io::Error, String)> {
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
        btf: [u32; 2],
        func_info: u64,
        func_info_cnt: u32,
        line_info_rec_size: u32,
        line_info: u64,
        line_info_cnt: u32,
        attach_btf_id: u32,
    }
    let mut log = vec![0u8; 1 << 16];
    let mut attr = Attr {
        prog_type: kind,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or(0),
        insns: address(instructions.as_ptr()),
        license: address(c"GPL".as_ptr()),
        log_level: 1,
        log_size: 1 << 16,
        log_buf: address(log.as_mut_ptr()),
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type: attach_type,
        btf: [0; 2],
        func_info: 0,
        func_info_cnt: 0,
        line_info_rec_size: 0,
        line_info: 0,
        line_info_cnt: 0,
        attach_btf_id,
    };
    // SAFETY: instructions, licence and log outlive the call and have the lengths given.
    unsafe { bpf_fd(command::PROG_LOAD, &mut attr) }.map_err(|e| {
        let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
        (e, String::from_utf8_lossy(&log[..end]).into_owned())
    })
}

/// Attaches an LSM program; it is off again when the descriptor is closed.
pub(super) fn lsm_attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        name: u64,
        prog_fd: u32,
        pad: u32,
    }
    let mut attr = Attr { name: 0, prog_fd: raw(program), pad: 0 };
    // SAFETY: no addresses.
    unsafe { bpf_fd(command::RAW_TRACEPOINT_OPEN, &mut attr) }
}

/// A second descriptor for the same object.
pub(super) fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// Reads a per-CPU array of `u64` whole, each element summed over all CPUs.
pub(super) fn per_cpu_read_all(map: BorrowedFd<'_>, len: u32) -> io::Result<Vec<u64>> {
    let cpus = aya::util::nr_cpus().map_err(|(path, e)| io::Error::other(format!("{path}: {e}")))?;
    let mut values = vec![0u64; cpus];
    let mut sums = Vec::with_capacity(len as usize);
    for index in 0..len {
        let (key, value) = (address(std::ptr::from_ref(&index)), address(values.as_mut_ptr()));
        let mut attr = Element { map_fd: raw(map), pad: 0, key, value, flags: 0 };
        // SAFETY: the kernel writes one u64 for each possible CPU, and `values` has room for them.
        unsafe { bpf(command::MAP_LOOKUP_ELEM, &mut attr)? };
        sums.push(values.iter().fold(0, |sum, v| u64::wrapping_add(sum, *v)));
    }
    Ok(sums)
}
