//! `--keep`: everything stays as it is at the end of the story, for a look around.

use crate::agent::Agent;
use crate::bank::{BROKEN_INTO, PARTIES};
use crate::estate::Estate;
use crate::interrupt;
use crate::screen::Screen;
use crate::traffic::Traffic;
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::IsTerminal as _;

/// Says how to look and how to end, and waits for that.
pub(crate) fn around(screen: &mut Screen, estate: &Estate, agent: &Agent) -> Result<()> {
    let mut traffic = Traffic::start(estate)?;
    let ends = if std::io::stdin().is_terminal() { "Enter or Ctrl-C" } else { "Ctrl-C" };
    let party = PARTIES.iter().position(|p| p.name == BROKEN_INTO).context("a party of that name")?;
    let billing = estate.directory(party).context("it has a cgroup")?;
    screen.step("A look around", &format!("all of it goes on running; {ends} takes it away"));
    screen.say("From another terminal, here:");
    let (program, socket) = (agent.program().display().to_string(), agent.socket().display().to_string());
    for rest in ["status", "observe --verdict denied", "observe --follow"] {
        let (command, options) = rest.split_once(' ').unwrap_or((rest, ""));
        screen.command(format!("{program} {command} --socket {socket} {options}").trim_end());
    }
    screen.say(&format!("A shell inside {BROKEN_INTO}, and the policies, which may be changed:"));
    screen.command(&format!(
        "sh -c 'echo $$ >{}/cgroup.procs; exec nsenter --net --target {} sh'",
        billing.display(),
        estate.process(party)
    ));
    screen.command(&format!("ls {}", agent.policies().display()));
    wait_for_the_end()?;
    traffic.stop().map(drop)
}

/// Until Enter, or until somebody interrupts, which here is the usual way to end.
fn wait_for_the_end() -> Result<()> {
    let stdin = std::io::stdin();
    let tick = rustix::time::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    while interrupt::check().is_ok() {
        if stdin.is_terminal() {
            let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
            match poll(&mut fds, Some(&tick)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        } else {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
    Ok(())
}
