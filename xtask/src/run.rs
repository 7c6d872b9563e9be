//! Running other programs, and telling the person at the terminal about it.
//!
//! Everything that xtask starts goes through here, so that a failure always names the command line and its exit code,
//! and progress always looks the same: `==>` opens a step, four spaces belong to it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::{env, fs};

use anyhow::{Context, Result, bail};

/// The repository's top folder.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        // `cargo run` says where the package is now; the path of the build is for the binary started by hand.
        let package =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
    })
}

/// Where builds leave their results, and where xtask keeps what it fetched.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Opens a step.
pub(crate) fn step(text: impl AsRef<str>) {
    println!("==> {}", text.as_ref());
}

/// Says something that belongs to the step.
pub(crate) fn note(text: impl AsRef<str>) {
    for line in text.as_ref().lines() {
        println!("    {line}");
    }
}

/// The cargo that runs xtask, started at the top of the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A command line as one would type it.
pub(crate) fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words: Vec<_> = std::iter::once(program).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// Runs `command` with the terminal's output, and fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| unstartable(command))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line_of(command));
    }
    Ok(())
}

/// Runs `command` silently. Its whole output becomes part of the error if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let output = collect(command)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("`{}` failed: {}\n{}", line_of(command), output.status, String::from_utf8_lossy(&said).trim_end());
    }
    Ok(())
}

/// What `command` prints on its standard output; fails unless it exits with 0.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let output = collect(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", line_of(command), output.status, said.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that isn't text", line_of(command)))
}

/// Runs `command` to its end, whatever that is.
pub(crate) fn collect(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| unstartable(command))
}

/// Where `program` lies on the PATH (or in cargo's folder of installed programs).
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.extend(cargo_home().map(|home| home.join("bin")));
    folders.extend(["/usr/sbin".into(), "/sbin".into()]);
    folders.into_iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Cargo's home: what it installed, and the sources of the crates.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
}

/// Puts `bytes` into `file` unless they are there already, so that nothing that depends on it is built again.
/// True if something was written.
pub(crate) fn write_if_changed(file: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(file).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    }
    // Written beside and renamed: a build that reads it at this moment sees all of the old or all of the new.
    let beside = file.with_extension("new");
    fs::write(&beside, bytes)
        .and_then(|()| fs::rename(&beside, file))
        .with_context(|| format!("can't write {}", file.display()))?;
    Ok(true)
}

fn unstartable(command: &Command) -> String {
    format!("can't start `{}`", line_of(command))
}
