//! The two ways to compile for the kernel, and which of them this machine has.
//!
//! Rust's stable toolchain carries no `core` for BPF. Either a rustup nightly builds one from `rust-src`, or Debian's
//! `rustc-web` brings one that is already built. Both link with `bpf-linker`. This file only looks; what is missing
//! is installed by [`crate::setup`].

use std::env::consts::ARCH;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run::{self, cargo_home, find_program, root};

/// The kernel's target triple (little endian; every machine that we build for is).
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Debian's clippy for that compiler.
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// A way to compile for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// A rustup nightly that builds `core` itself.
    Nightly,
    /// Debian's `rustc-web`, with its prebuilt `core`.
    Debian,
}

impl Toolchain {
    /// The way whose compiler is installed here, if any; the nightly first.
    pub(crate) fn find() -> Option<Self> {
        [Self::Nightly, Self::Debian].into_iter().find(|way| way.has_core())
    }

    /// Whether its compiler is here, with the sources or the build of `core` that it needs.
    fn has_core(self) -> bool {
        let (mut rustc, core) = match self {
            Self::Nightly => (nightly_rustc(), "lib/rustlib/src/rust/library/core/src/lib.rs".to_owned()),
            Self::Debian => (Command::new(DEBIAN_RUSTC), format!("lib/rustlib/{TARGET}/lib")),
        };
        run::output_of(rustc.args(["--print", "sysroot"]))
            .is_ok_and(|sysroot| PathBuf::from(sysroot.trim()).join(core).exists())
    }

    /// Its name for the reader.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nightly => "rustup's nightly with rust-src",
            Self::Debian => "Debian's rustc-web with its core for BPF",
        }
    }

    /// `cargo SUBCOMMAND` for the kernel crate, compiled for the kernel. `flags` go to the compiler after our own.
    pub(crate) fn cargo(self, subcommand: &str, flags: &[&str]) -> Result<Command> {
        let mut command = match self {
            Self::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "cargo", subcommand, "-Zbuild-std=core"]);
                rustup.env_remove("RUSTC").env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
                rustup
            }
            Self::Debian => {
                // Clippy must come from where the compiler comes from; it calls cargo itself.
                let mut cargo = if subcommand == "clippy" { Command::new(DEBIAN_CLIPPY) } else { run::cargo() };
                // The kernel crates use unstable features, which a stable compiler refuses without the second variable.
                cargo.arg(subcommand).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        command.current_dir(root().join("ebpf"));
        command.args(["--release", "--target", TARGET, "--target-dir"]).arg(run::target().join("ebpf"));
        let all = own_flags().into_iter().chain(flags.iter().map(|&flag| flag.to_owned()));
        command.env("CARGO_ENCODED_RUSTFLAGS", all.collect::<Vec<_>>().join("\u{1f}"));
        command.env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER");
        Ok(command)
    }
}

/// Compiler flags of every build for the kernel: BTF, the machine's registers, and no path of this machine.
fn own_flags() -> Vec<String> {
    let linker = linker().unwrap_or_else(|| "bpf-linker".into());
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        format!("--check-cfg=cfg(bpf_target_arch,values(\"{ARCH}\"))"),
        format!("--remap-path-prefix={}=.", root().display()),
    ];
    flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    flags
}

/// Where `bpf-linker` is.
pub(crate) fn linker() -> Option<PathBuf> {
    find_program("bpf-linker")
}

/// The nightly's compiler, whichever toolchain runs xtask.
fn nightly_rustc() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc"]).env_remove("RUSTUP_TOOLCHAIN");
    command
}
