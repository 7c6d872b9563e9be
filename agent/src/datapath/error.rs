//! What can go wrong between the agent and the kernel, each with what to do about it.

use crate::plan::Refused;
use std::io;
use std::path::PathBuf;

/// The datapath can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The agent was built without the kernel programs.
    #[error("this agent was built without the kernel programs; run `cargo xtask build` and build it again")]
    NoObject,
    /// The embedded object isn't what this agent expects.
    #[error("the embedded kernel object doesn't fit this agent ({0}); run `cargo xtask build` and build it again")]
    BadObject(String),
    /// The process may not use bpf(2).
    #[error(
        "not allowed to load programs into the kernel; run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and \
         CAP_SYS_ADMIN"
    )]
    NotPermitted,
    /// There is no BPF file system, and it couldn't be mounted.
    #[error("no BPF file system at {path} and mounting one failed ({error}); mount it: mount -t bpf bpf {path}")]
    NoBpffs {
        /// Where it should be.
        path: PathBuf,
        /// What mount(2) said.
        error: io::Error,
    },
    /// The name can't be a folder of the BPF file system.
    #[error("the instance name `{0}` has other characters than letters, digits, '-' and '_', or is empty")]
    BadInstance(String),
    /// Another agent has this instance.
    #[error("another agent already runs as instance `{instance}` (it holds {path}); stop it, or give this one a name")]
    AnotherAgent {
        /// The instance.
        instance: String,
        /// What it holds.
        path: PathBuf,
    },
    /// The maps couldn't be made.
    #[error("the kernel refused the maps or their types: {0}; `bulkhead preflight` shows what this kernel lacks")]
    Maps(String),
    /// A program was refused.
    #[error("the kernel refused the program {program}: {error}; the verifier's last words:\n{log}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What bpf(2) said.
        error: String,
        /// The end of the verifier's log.
        log: String,
    },
    /// Anything with pins, memory or the like.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// A commit failed; what was in force before it still is.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// It doesn't fit.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The kernel didn't take the writes.
    #[error("writing the ruleset failed ({0}); the former one stays in force, and the next commit tries again")]
    Io(#[from] io::Error),
}

/// Programs couldn't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no ruleset yet.
    #[error("nothing has been committed yet, and attaching now would deny everything; commit first")]
    NothingCommitted,
    /// The attach point isn't a cgroup that can be opened.
    #[error("{path} can't be opened as a cgroup ({error}); name a folder below the cgroup2 mount")]
    NoCgroup {
        /// The attach point.
        path: PathBuf,
        /// What open(2) said.
        error: io::Error,
    },
    /// The kernel refused a link.
    #[error("attaching {program} to {path} failed: {error}")]
    Link {
        /// The program.
        program: &'static str,
        /// The attach point.
        path: PathBuf,
        /// What bpf(2) said.
        error: io::Error,
    },
    /// Anything with pins or the sockets that exist already.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Taking everything off failed.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// An agent is running, and would put it back.
    #[error("the agent of instance `{0}` is running and would put everything back; stop it first")]
    AgentRunning(String),
    /// Something couldn't be removed.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Puts what was being done in front of an error.
pub(super) trait During<T> {
    fn opening(self, what: impl FnOnce() -> String) -> Result<T, OpenError>;
    fn attaching(self, what: impl FnOnce() -> String) -> Result<T, AttachError>;
    fn uninstalling(self, what: impl FnOnce() -> String) -> Result<T, UninstallError>;
}

impl<T> During<T> for io::Result<T> {
    fn opening(self, what: impl FnOnce() -> String) -> Result<T, OpenError> {
        self.map_err(|error| OpenError::Io { what: what(), error })
    }
    fn attaching(self, what: impl FnOnce() -> String) -> Result<T, AttachError> {
        self.map_err(|error| AttachError::Io { what: what(), error })
    }
    fn uninstalling(self, what: impl FnOnce() -> String) -> Result<T, UninstallError> {
        self.map_err(|error| UninstallError::Io { what: what(), error })
    }
}
