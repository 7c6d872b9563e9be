//! Embeds the kernel programs.
//!
//! `cargo xtask build` compiles them first and leaves the object under `target/`. Without it an empty stub is embedded,
//! so that check, clippy and the tests of pure modules work on a machine without the BPF toolchain; the agent refuses
//! to start on a stub.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=BULKHEAD_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let object =
        env::var_os("BULKHEAD_OBJECT").map_or_else(|| manifest.join("../target/bulkhead-ebpf.o"), PathBuf::from);
    println!("cargo:rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bulkhead-ebpf.o");
    match fs::read(&object) {
        Ok(bytes) => fs::write(&out, bytes).expect("OUT_DIR is writable"),
        Err(_) => fs::write(&out, []).expect("OUT_DIR is writable"),
    }
}
