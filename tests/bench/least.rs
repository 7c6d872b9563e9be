//! The least that programs can do which keep a verdict with each socket and count by rule: they make the socket's storage,
//! read one place for the address and one for the rule, at random, add one there, and write to the storage.
//!
//! They decide nothing. What they cost is no fault of Bulkhead's code, but of memory: so much of a figure no better code
//! takes away, only another idea. Handed to the kernel by hand, like the [empty ones](crate::empty), in whose place they
//! stand on two hooks.
#![expect(clippy::cast_possible_truncation, reason = "sizes and lengths of programs of some fifty instructions")]

use crate::empty::{self, bpf, load};
use anyhow::{Context, Result};
use bulkhead_common::maps::SocketState;
use bulkhead_common::places::{self, ADDRESS_WORDS, RULE_WORDS};
use std::ffi::c_long;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Linux: include/uapi/linux/bpf.h.
const MAP_CREATE: c_long = 0;
const BTF_LOAD: c_long = 18;
const ARRAY: u32 = 2;
const SK_STORAGE: u32 = 24;
const NO_PREALLOC: u32 = 1;
const CLONE: u32 = 1 << 9;
const MAP_LOOKUP: i32 = 1;
const SK_STORAGE_GET: i32 = 107;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
    device: u32,
    btf: u32,
    btf_key: u32,
    btf_value: u32,
}

#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    data: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
}

/// How many words a socket's storage has.
const STORAGE_WORDS: u32 = (size_of::<SocketState>() / 8) as u32;

/// The types of the storage's key, an int, and of its value, an array of longs: the kernel wants to know them.
#[rustfmt::skip]
fn types() -> Vec<u8> {
    const NAMES: &[u8] = b"\0int\0long\0";
    let types: [u32; 14] = [
        1, 1 << 24, 4, 1 << 24 | 32,         // 1: int
        5, 1 << 24, 8, 1 << 24 | 64,         // 2: long
        0, 3 << 24, 0, 2, 1, STORAGE_WORDS,  // 3: long[]
    ];
    let length = size_of_val(&types) as u32;
    let header: [u32; 6] = [1 << 16 | 0xeb9f, 24, 0, length, length, NAMES.len() as u32];
    let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
    words.chain(NAMES.iter().copied()).collect()
}

fn map(kind: u32, value_words: u32, entries: u32) -> Result<OwnedFd> {
    let value_size = value_words * 8;
    let mut create = MapCreate { kind, key_size: 4, value_size, entries, ..MapCreate::default() };
    let mut btf = None;
    if kind == SK_STORAGE {
        let data = types();
        let load = BtfLoad { data: data.as_ptr() as u64, size: data.len() as u32, ..BtfLoad::default() };
        let fd = bpf(BTF_LOAD, &load).context("the kernel takes no type information")?;
        (create.flags, create.btf_key, create.btf_value) = (NO_PREALLOC | CLONE, 1, 3);
        create.btf = btf.insert(fd).as_raw_fd().cast_unsigned();
    }
    bpf(MAP_CREATE, &create).context("can't make a map")
}

/// One instruction: operation, registers, offset, constant (Linux: Documentation/bpf/standardization/instruction-set.rst).
const fn op(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> u64 {
    code as u64 | ((from << 4 | to) as u64) << 8 | ((offset as u16) as u64) << 16 | ((constant as u32) as u64) << 32
}

/// A map's address into a register: two instructions.
fn take_map(to: u8, map: &OwnedFd) -> [u64; 2] {
    [op(0x18, to, 1, 0, map.as_raw_fd()), 0]
}

/// Looks up the element whose number is in r1, into r0; without one the program allows at once.
fn element(map: &OwnedFd, to_end: i16) -> Vec<u64> {
    let mut code = vec![op(0x63, 10, 1, -4, 0), op(0xbf, 2, 10, 0, 0), op(0x07, 2, 0, 0, -4)];
    code.extend(take_map(1, map));
    code.extend([op(0x85, 0, 0, 0, MAP_LOOKUP), op(0x15, 0, 0, to_end, 0)]);
    code
}

/// Makes the socket's storage.
fn sock_create(sockets: &OwnedFd) -> Vec<u64> {
    let mut code = vec![op(0xbf, 2, 1, 0, 0), op(0xb7, 3, 0, 0, 0), op(0xb7, 4, 0, 0, 1)];
    code.extend(take_map(1, sockets));
    code.extend([op(0x85, 0, 0, 0, SK_STORAGE_GET), op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)]);
    code
}

/// Spreads r1 over the places of a table.
fn spread(places: u32) -> [u64; 3] {
    let mask = places as i32 - 1;
    [op(0x27, 1, 0, 0, 0x61c8_8647), op(0x77, 1, 0, 0, 24), op(0x57, 1, 0, 0, mask)]
}

/// Reads a place for the address, adds one at a place for the rule, and writes to the storage.
fn connect4(sockets: &OwnedFd, addresses: (&OwnedFd, u32), rules: (&OwnedFd, u32)) -> Vec<u64> {
    // Backwards, since what skips the rest has to know how long it is.
    let end = vec![op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)];
    // lock *(u64 *)(r0 + 32) += 1; *(u64 *)(r7 + 56) = 1
    let last = vec![op(0xb7, 1, 0, 0, 1), op(0xdb, 0, 1, 32, 0), op(0x7b, 7, 1, 56, 0)];
    let rule = element(rules.0, last.len() as i16);
    // r1 = what the address's place holds, with the address and the port
    let mut middle = vec![op(0x79, 1, 0, 0, 0), op(0x61, 2, 6, 4, 0), op(0x0f, 1, 2, 0, 0)];
    middle.extend([op(0x61, 2, 6, 24, 0), op(0x27, 2, 0, 0, 40503), op(0x0f, 1, 2, 0, 0)]);
    middle.extend(spread(rules.1));
    let rest = middle.len() + rule.len() + last.len();
    let mut address = vec![op(0x61, 1, 6, 4, 0)];
    address.extend(spread(addresses.1));
    address.extend(element(addresses.0, rest as i16));
    let rest = address.len() + rest;
    // r6 = the context, r2 = its socket, r7 = the socket's storage
    let mut code = vec![op(0xbf, 6, 1, 0, 0), op(0x79, 2, 6, 64, 0)];
    let mut storage = vec![op(0xb7, 3, 0, 0, 0), op(0xb7, 4, 0, 0, 0)];
    storage.extend(take_map(1, sockets));
    storage.extend([op(0x85, 0, 0, 0, SK_STORAGE_GET), op(0x15, 0, 0, rest as i16 + 1, 0), op(0xbf, 7, 0, 0, 0)]);
    code.push(op(0x15, 2, 0, (storage.len() + rest) as i16, 0));
    for part in [storage, address, middle, rule, last, end] {
        code.extend(part);
    }
    code
}

/// What has to live as long as the links do.
pub(crate) struct Least {
    _links: Vec<OwnedFd>,
    _maps: [OwnedFd; 3],
}

/// Puts such programs on the hooks of a cgroup, with tables for so many addresses and rules.
pub(crate) fn attach(cgroup: &Path, addresses: u32, rules: u32) -> Result<Least> {
    let sockets = map(SK_STORAGE, STORAGE_WORDS, 0)?;
    let (address_places, rule_places) = (places::places(addresses), places::places(rules));
    let addresses = map(ARRAY, ADDRESS_WORDS as u32, address_places)?;
    let rules = map(ARRAY, RULE_WORDS as u32, rule_places)?;
    let create = sock_create(&sockets);
    let connect = connect4(&sockets, (&addresses, address_places), (&rules, rule_places));
    let links = empty::attach_with(cgroup, |hook| match hook.name {
        "sock_create" => load(hook, &create),
        "connect4" => load(hook, &connect),
        _ => load(hook, &empty::ALLOW),
    })?;
    Ok(Least { _links: links, _maps: [sockets, addresses, rules] })
}
