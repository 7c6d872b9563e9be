//! Why an agent doesn't run. The commands turn each into an exit code of its own.

use crate::policy::Diagnostic;

/// Why an agent didn't start, or ended. Each message is one sentence that says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Not root.
    #[error("bulkhead agent must run as root: start it with sudo, or as a systemd system service")]
    NotRoot,
    /// No cgroup2 hierarchy.
    #[error("{0:#}")]
    NoCgroup2(anyhow::Error),
    /// The kernel carries no type information.
    #[error("the kernel has no BTF at /sys/kernel/btf/vmlinux: use a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf,
    /// A capability is missing; its name.
    #[error(
        "the capability {0} is missing: add it to the service's CapabilityBoundingSet or the container's capabilities"
    )]
    Capability(String),
    /// bpffs isn't there and can't be mounted.
    #[error("{0:#}")]
    Bpffs(anyhow::Error),
    /// Another agent of this name.
    #[error("another agent of instance `{0}` is running: stop it first, or give this one another `instance`")]
    AlreadyRunning(String),
    /// The configuration.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<Diagnostic>),
    /// This binary was built without the kernel programs.
    #[error("this binary was built without its eBPF programs: build it with `cargo xtask build`")]
    NoObject,
    /// The kernel refused the programs or maps.
    #[error("the programs or the ruleset couldn't be loaded: {0:#}")]
    Load(anyhow::Error),
    /// The kernel refused to attach.
    #[error("the programs couldn't be attached: {0:#}")]
    Attach(anyhow::Error),
    /// Anything else.
    #[error("{0:#}")]
    Other(anyhow::Error),
}
