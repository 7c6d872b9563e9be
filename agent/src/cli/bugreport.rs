//! `bulkhead bugreport`: what somebody who helps needs to see, as files in one folder.

use super::Socket;
use super::exit::Answer;
use super::fleet::{Answers, Fleet, Said, complain, words};
use anyhow::Context;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each file, and the command whose output it is.
const QUESTIONS: [(&str, &[&str]); 4] = [
    ("status.json", &["status", "--json"]),
    ("observe.jsonl", &["observe", "--json"]),
    ("report.json", &["report", "--json"]),
    ("preflight.json", &["preflight", "--json"]),
];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// The folder to make
    #[arg(long, short, value_name = "FOLDER", default_value = "bulkhead-bugreport")]
    output: PathBuf,
}

pub(super) fn run(args: &Args) -> super::Result {
    let Args { socket, fleet, output } = args;
    let folder = |path: &Path| DirBuilder::new().mode(0o700).create(path);
    folder(output).with_context(|| format!("making {} (give another one with --output)", output.display()))?;
    let (mut written, mut failed) = (0_usize, false);
    for (file, command) in QUESTIONS {
        let answers = if fleet.cluster {
            fleet.ask(&words(command), None)?
        } else {
            let mut answers = Answers::default();
            answers.said.insert("this-host".to_owned(), here(command, socket)?);
            answers
        };
        complain(&answers.failed);
        failed |= !answers.failed.is_empty();
        for (node, said) in answers.said {
            let at = output.join(plain(&node)?);
            if !at.is_dir() {
                folder(&at).with_context(|| format!("making {}", at.display()))?;
            }
            failed |= said.code > 1;
            put(&at.join(file), &said.out)?;
            if !said.err.is_empty() {
                put(&at.join(format!("{file}.err")), said.err.as_bytes())?;
            }
            written += 1;
        }
    }
    if written == 0 {
        return Err(anyhow::anyhow!("nobody could be asked").into());
    }
    println!("{written} files are in {}.", output.display());
    println!(
        "They name identities, addresses, DNS names and executables, and hold no secret: look before you send them."
    );
    Ok(if failed { Answer::Findings } else { Answer::Fine })
}

/// The same command on this host.
fn here(command: &[&str], socket: &Socket) -> anyhow::Result<Said> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(program);
    child.args(command);
    if command[0] != "preflight" {
        child.arg("--socket").arg(&socket.socket);
    }
    let done = child.output().context("running this program again")?;
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    Ok(Said { code: done.status.code().unwrap_or(i32::MAX), out: done.stdout, err })
}

/// A node's name as that of a folder.
fn plain(node: &str) -> anyhow::Result<&str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    let good = node.bytes().all(fine) && node.bytes().next().is_some_and(|b| b != b'.');
    good.then_some(node).with_context(|| format!("{node:?} isn't the name of a node"))
}

fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.and_then(|mut f| f.write_all(content)).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        assert_eq!(plain("ip-10-0-0-1.ec2.internal").expect("a name"), "ip-10-0-0-1.ec2.internal");
        for bad in ["", "..", ".ssh", "a/b", "a b"] {
            assert!(plain(bad).is_err(), "{bad}");
        }
    }
}
