//! What every other kernel test takes for granted, so that a machine that lacks it is told so in one line.
//!
//! It names no kernel version: it looks.

use std::fs;

/// The first two bytes of BTF data, in this machine's byte order (`BTF_MAGIC` in linux/btf.h).
const BTF_MAGIC: u16 = 0xeb9f;

fn file_systems(kind: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").expect("/proc is mounted");
    known.lines().any(|line| line.split_whitespace().last() == Some(kind))
}

#[test]
fn cgroup2_is_mounted_somewhere() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let kinds = mounts.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').next());
    assert!(kinds.into_iter().any(|kind| kind == "cgroup2"), "mount cgroup2 first; mounted is:\n{mounts}");
}

#[test]
fn the_kernel_can_pin_what_it_loads() {
    assert!(file_systems("bpf"), "this kernel has no bpffs (CONFIG_BPF_SYSCALL)");
}

#[test]
fn the_kernel_describes_its_types() {
    let types = fs::read("/sys/kernel/btf/vmlinux").expect("this kernel has BTF (CONFIG_DEBUG_INFO_BTF)");
    assert_eq!(types.get(..2), Some(&BTF_MAGIC.to_ne_bytes()[..]));
}

#[test]
fn the_tests_run_as_root() {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next());
    assert_eq!(uid, Some("0"), "kernel tests load programs and make namespaces: run them as root");
}
