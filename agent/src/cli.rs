//! The commands.
//!
//! Each is a file: it asks, prints, and says what came of it. What that means as an exit code is decided in one place,
//! [`exit`]. Tables are plain and fit 100 columns; `--json` gives programs the same.

mod agent;
mod bugreport;
mod client;
mod crd;
mod early;
mod exit;
mod explain;
mod fleet;
mod graph;
mod names;
mod observe;
mod orders;
mod policy;
mod preflight;
mod probe;
mod report;
mod status;
mod table;
mod uninstall;

use clap::{Args, Parser, Subcommand};
use exit::Answer;
use std::path::PathBuf;
use std::process::ExitCode;

/// Keeps the workloads of a host apart by who they are.
#[derive(Parser)]
#[command(name = "bulkhead", version, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent: load the programs, attach them, and keep the ruleset up to date
    #[command(after_help = "Examples:\n  bulkhead agent --config /etc/bulkhead/bulkhead.yaml\n\n\
        When it ends, what is in force stays in force; `bulkhead uninstall` takes it off.\n\n\
        Exit codes: 0 asked to end, 1 something failed while it ran, and\n\
        10 not root, 11 no cgroup2, 12 no BTF, 13 a capability is missing, 14 no BPF filesystem,\n\
        15 another agent is there, 16 a bad configuration, 17 built without the eBPF programs,\n\
        18 the kernel refused to load them, 19 they couldn't be attached.")]
    Agent(agent::Args),
    /// Put the last ruleset in force and end: for early boot, before the agent and the network
    #[command(after_help = "Examples:\n  bulkhead early --config /etc/bulkhead/bulkhead.yaml\n\n\
        deploy/bulkhead-early.service runs it. Files that aren't good count in their last good form.\n\n\
        Exit codes: 0 in force, 1 something failed, 10 to 19 as for agent (15: an agent runs, so there is no need).")]
    Early(early::Args),
    /// Show what is in force, what is wrong, and what isn't contained
    #[command(after_help = "Examples:\n  bulkhead status\n  bulkhead status --json | jq .not_contained\n  \
        bulkhead status --cluster --context prod\n\n\
        Exit codes: 0 fine, 1 there are faults, errors or things not contained, 2 the agent couldn't be asked.")]
    Status(status::Args),
    /// Show who talks to whom, and what was decided
    #[command(after_help = "Examples:\n  bulkhead observe\n  bulkhead observe --verdict would-deny --since 10m\n  \
        bulkhead observe --follow --id spiffe://example.org/payments/api --json\n  \
        bulkhead observe --cluster --follow --verdict denied\n\n\
        Exit codes: 0 shown, 1 some nodes couldn't be asked, 2 the agent couldn't be asked.")]
    Observe(observe::Args),
    /// Draw who talked to whom, over all the time that is kept
    #[command(after_help = "Examples:\n  bulkhead graph\n  bulkhead graph --since 24h --namespace payments\n  \
        bulkhead graph --as svg -o graph.svg\n  bulkhead graph --as html --verdict would-deny -o graph.html\n  \
        bulkhead graph --cluster --as svg -o cluster.svg\n\n\
        Exit codes: 0 drawn, 2 the agent or the file couldn't be asked.")]
    Graph(graph::Args),
    /// Tell whether a connection is allowed, and by which rule
    #[command(after_help = "Examples:\n  \
        bulkhead explain --from spiffe://example.org/web --to spiffe://example.org/db --port 5432\n  \
        bulkhead explain --from spiffe://example.org/web --to world --port 443 --offline --config FILE\n  \
        bulkhead explain --cluster --from spiffe://t/ns/a/sa/web --to spiffe://t/ns/b/sa/db --port 80\n\n\
        Exit codes: 0 let through now, 1 denied now, 2 couldn't be asked.")]
    Explain(explain::Args),
    /// Withdraw an identity: it is denied both ways, and its live connections end
    #[command(after_help = "Examples:\n  bulkhead revoke spiffe://example.org/payments/api --dry-run\n  \
        bulkhead revoke spiffe://example.org/payments/api --reason 'key leaked, INC-1234'\n  \
        bulkhead revoke --cluster spiffe://t/ns/shop/sa/web --reason 'INC-1234'    # again does no harm\n\n\
        It stays revoked, over restarts too, until `bulkhead restore`; under break-glass as well.\n\n\
        Exit codes: 0 revoked, or a dry run that would cut nothing, 1 a dry run that would cut something, or\n\
        no node knows the ID, 2 not done: no such ID here, or an agent couldn't be asked (it is named).")]
    Revoke(orders::Revoke),
    /// Give a revoked identity back what its rules allow
    #[command(after_help = "Examples:\n  bulkhead restore spiffe://example.org/payments/api\n  \
        bulkhead restore --cluster spiffe://t/ns/shop/sa/web\n\n\
        Exit codes: 0 restored, 2 not done: it isn't revoked, or an agent couldn't be asked (it is named).")]
    Restore(orders::Restore),
    /// Turn enforcement to audit for a while; also with the agent dead
    #[command(after_help = "Examples:\n  \
        bulkhead break-glass --scope node --for 1h --reason 'checkout is down, INC-1234'\n  \
        bulkhead break-glass --scope workload=spiffe://example.org/db --for 10m --reason test\n  \
        bulkhead break-glass --cluster --scope namespace=shop --for 30m --reason 'INC-1234'\n  \
        bulkhead break-glass --end\n\n\
        It ends by itself. Without an agent only `--scope node` can be done, on what is pinned.\n\
        Without this program: docs/operations.md.\n\n\
        Exit codes: 0 done, 2 not done.")]
    BreakGlass(orders::Glass),
    /// Turn a posture or a policy to enforce, and back again unless that is confirmed
    #[command(after_help = "Examples:\n  bulkhead enforce --confirm-within 10m --namespace payments --dry-run\n  \
        bulkhead enforce --confirm-within 10m --policy payments/ledger\n  \
        bulkhead enforce --confirm\n  bulkhead enforce --revert\n  \
        bulkhead enforce --cluster --confirm-within 10m --namespace shop\n\n\
        Exit codes: 0 done, or a dry run that would cut nothing, 1 a dry run that would cut something, 2 not done.")]
    Enforce(orders::Enforce),
    /// Work with policy files
    #[command(subcommand)]
    Policy(policy::Command),
    /// Look at this host before anything is installed
    #[command(after_help = "Examples:\n  bulkhead preflight\n  bulkhead preflight --config bulkhead.yaml\n  \
        bulkhead preflight --cluster\n\n\
        Exit codes: 0 everything is there, 1 something is missing or won't be contained, 2 couldn't look.")]
    Preflight(preflight::Args),
    /// Try every known trick to get data through, from throw-away workloads, on this kernel
    #[command(after_help = "Examples:\n  bulkhead probe\n  bulkhead probe --each-hook\n  \
        bulkhead probe --json --expect expectations.json\n\n\
        It makes cgroups and network namespaces of its own, and touches no other agent.\n\n\
        Exit codes: 0 what should be contained is, 1 something isn't, 2 it couldn't be tried; 10 to 13 as for agent.")]
    Probe(probe::Args),
    /// Show whom each identity can reach, and the lateral-movement surface; or look a decision log over
    #[command(after_help = "Examples:\n  bulkhead report\n  bulkhead report --json | jq .surface\n  \
        bulkhead report verify /var/log/bulkhead/decisions.jsonl\n  bulkhead report --cluster\n\n\
        docs/blast-radius.md says what the numbers mean.\n\n\
        Exit codes: 0 shown, 1 some nodes couldn't be asked, 2 the agent couldn't be asked.")]
    Report(report::Args),
    /// Gather what somebody who helps needs to see, in a folder
    #[command(after_help = "Examples:\n  bulkhead bugreport --output report/\n  \
        bulkhead bugreport --cluster\n\n\
        A folder per node, with what status, observe, report and preflight say as JSON. It holds no secret, but the\n\
        names of identities, addresses and executables.\n\n\
        Exit codes: 0 gathered, 1 somebody or something couldn't be asked, 2 nothing was gathered.")]
    Bugreport(bugreport::Args),
    /// Print the custom resources' definitions
    #[command(after_help = "Examples:\n  bulkhead crd | kubectl apply --server-side -f -\n\n\
        deploy/ holds the same.\n\n\
        Exit codes: 0 printed.")]
    Crd(crd::Args),
    /// Take everything off: programs, links and maps; nothing is contained afterwards
    #[command(after_help = "Examples:\n  systemctl disable --now bulkhead && bulkhead uninstall\n  \
        bulkhead uninstall --config /etc/bulkhead/bulkhead.yaml\n  \
        bulkhead uninstall --check    # is anything pinned?\n  \
        bulkhead uninstall --cluster    # every node, each looked at afterwards; then the DaemonSet, and what it told\n\n\
        Exit codes: 0 it is off, or wasn't there, 1 with --check: something is pinned, 2 it couldn't be taken off\n\
        (stop the agent first), or not on every node.")]
    Uninstall(uninstall::Args),
}

/// How to reach the agent.
#[derive(Args)]
struct Socket {
    /// The agent's control socket
    #[arg(long, value_name = "PATH", default_value = crate::config::SOCKET)]
    socket: PathBuf,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Agent(_)) {
        // A reader that has seen enough (`bulkhead status | head`) ends a query quietly. The agent outlives its readers.
        // SAFETY: no other thread runs yet, and the default action is always valid.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    let answer = match command {
        Command::Agent(args) => agent::run(args),
        Command::Early(args) => early::run(args),
        Command::Status(args) => status::run(&args),
        Command::Observe(args) => observe::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Revoke(args) => orders::revoke(args),
        Command::Restore(args) => orders::restore(args),
        Command::BreakGlass(args) => orders::break_glass(&args),
        Command::Enforce(args) => orders::enforce(args),
        Command::Policy(command) => policy::run(&command),
        Command::Preflight(args) => preflight::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Bugreport(args) => bugreport::run(&args),
        Command::Crd(args) => crd::run(&args),
        Command::Uninstall(args) => uninstall::run(&args),
    };
    exit::code(answer)
}

/// What goes wrong on the way to an answer is the same for all: it couldn't be asked.
type Result = std::result::Result<Answer, exit::Problem>;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_well_formed_and_every_command_has_examples() {
        Cli::command().debug_assert();
        let mut all: Vec<clap::Command> = Cli::command().get_subcommands().cloned().collect();
        let below: Vec<clap::Command> = all.iter().flat_map(|c| c.get_subcommands().cloned()).collect();
        all.retain(|c| c.get_subcommands().next().is_none());
        all.extend(below);
        for mut c in all {
            let help = c.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{} has no examples", c.get_name());
            assert!(help.contains("Exit codes:"), "{} doesn't tell its exit codes", c.get_name());
        }
    }
}
