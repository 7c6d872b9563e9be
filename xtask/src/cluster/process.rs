//! A process that outlives the xtask that started it, recognised again by its pid and the moment at which it started.
//!
//! A pid alone names whoever has it now: nothing here looks at, or ends, a process whose start differs.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// In clock ticks since the machine started: field 22 of proc_pid_stat(5).
    start: u64,
}

impl Process {
    /// The process that has `pid` now.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let Some((_, start)) = stat(pid) else { bail!("process {pid} is gone") };
        Ok(Self { pid, start })
    }

    /// Whether it still runs: one that only waits to be buried doesn't.
    pub(super) fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }

    /// Whether nothing reminds of it: it has ended, and its parent knows.
    pub(super) fn is_buried(self) -> bool {
        stat(self.pid).is_none_or(|(_, start)| start != self.start)
    }

    /// A handle that stays this process's.
    pub(super) fn handle(self) -> Result<OwnedFd> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("that is no pid")?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("process {} is gone", self.pid))?;
        // Only now: the pid can't be given away while the handle is open.
        if !self.is_alive() {
            bail!("process {} is gone", self.pid);
        }
        Ok(handle)
    }

    /// Asks it to end, and makes it end after `patience`. Fine if it has ended already.
    pub(super) fn end(self, patience: Duration) -> Result<()> {
        let Ok(handle) = self.handle() else { return Ok(()) };
        for (signal, wait) in [(Signal::TERM, patience), (Signal::KILL, Duration::from_secs(10))] {
            // Fails only if it has just ended.
            pidfd_send_signal(&handle, signal).ok();
            let until = Instant::now() + wait;
            while Instant::now() < until {
                if !self.is_alive() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("process {} doesn't end", self.pid)
    }
}

/// State and start of a process; `None` if there is none.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses too.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Pids of all processes.
pub(super) fn all() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("can't read /proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_pid_with_another_start_is_somebody_else() {
        let me = Process::of(std::process::id()).expect("we are here");
        assert!(me.is_alive());
        let other = Process { start: me.start + 1, ..me };
        assert!(!other.is_alive());
        assert!(other.handle().is_err());
    }

    #[test]
    fn ends_what_it_knows_and_is_content_when_it_is_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep is everywhere");
        let process = Process::of(child.id()).expect("it has just started");
        process.end(Duration::from_secs(5)).expect("it obeys");
        assert!(!process.is_alive());
        assert!(!process.is_buried());
        child.wait().expect("it is ours");
        assert!(process.is_buried());
        process.end(Duration::ZERO).expect("nothing to do");
    }
}
