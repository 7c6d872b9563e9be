//! `bulkhead revoke`, `restore`, `break-glass` and `enforce`: telling the agent what to do.

mod cluster;
mod glass;

pub(super) use glass::{Glass, break_glass};

use super::exit::Answer;
use super::fleet::{Fleet, words};
use super::names::Names;
use super::table::{table, text};
use super::{Socket, client};
use crate::app::overrides::Target;
use crate::flows::protocol;
use crate::identity::SpiffeId;
use crate::serve::orders::{CutLine, Cutting, Done, Order};
use anyhow::Context;
use cluster::Deed;
use std::time::Duration;

#[derive(clap::Args)]
pub(super) struct Revoke {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// The SPIFFE ID to withdraw
    id: SpiffeId,
    /// Why: it is kept, logged and shown
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Only list the live connections that it would cut
    #[arg(long)]
    dry_run: bool,
    /// Also if nothing here has the ID, or not yet; so it always is with --cluster
    #[arg(long)]
    unseen: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct Restore {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// The SPIFFE ID to give back what its rules allow
    id: SpiffeId,
    /// No error if it isn't revoked; so it always is with --cluster
    #[arg(long)]
    again: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["confirm_within", "confirm", "revert"])))]
pub(super) struct Enforce {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// Turn it to enforce, and back after this time unless confirmed; at most 24h
    #[arg(long, value_name = "TIME", value_parser = length)]
    confirm_within: Option<Duration>,
    /// Keep what is on trial
    #[arg(long, conflicts_with_all = ["namespace", "policy", "dry_run"])]
    confirm: bool,
    /// Turn back what is on trial, or what is named
    #[arg(long, conflicts_with = "dry_run")]
    revert: bool,
    /// The posture of this namespace's workloads; without it, that of all
    #[arg(long, value_name = "NS")]
    namespace: Option<String>,
    /// The mode of this policy: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME", conflicts_with = "namespace")]
    policy: Option<String>,
    /// Only list the live connections that it would cut
    #[arg(long)]
    dry_run: bool,
    /// No error if there is no such thing here, or it is so already; so it always is with --cluster
    #[arg(long)]
    again: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A time as people write it: 90s, 10m, 1h 30m.
pub(super) fn length(text: &str) -> Result<Duration, String> {
    let length = text.parse::<jiff::SignedDuration>().map_err(|e| format!("write a time such as 10m or 1h: {e}"))?;
    Duration::try_from(length).map_err(|_| "a time can't be negative".to_owned())
}

pub(super) fn revoke(args: Revoke) -> super::Result {
    let Revoke { socket, fleet, id, reason, dry_run, unseen, json } = args;
    if fleet.cluster {
        let mut command = words(&["revoke", id.as_str(), "--unseen", "--json"]);
        command.push(format!("--reason={reason}"));
        command.extend(dry_run.then(|| "--dry-run".to_owned()));
        let otherwise = "there the ID isn't revoked, so its pods go on and pods there take its connections".to_owned();
        let later = (!dry_run).then(|| {
            format!("a ClusterSegmentationPolicy that denies {id} holds there, too (docs/kubernetes.md, An ID that stays denied)")
        });
        return cluster::tell(&fleet, &Deed { command, otherwise, named: id.to_string(), later }, json);
    }
    tell(&socket, &Order::Revoke { id, reason, dry_run, unseen }, json)
}

pub(super) fn restore(args: Restore) -> super::Result {
    let Restore { socket, fleet, id, again, json } = args;
    if fleet.cluster {
        let command = words(&["restore", id.as_str(), "--again", "--json"]);
        let otherwise = "there the ID stays revoked".to_owned();
        return cluster::tell(&fleet, &Deed { command, otherwise, named: id.to_string(), later: None }, json);
    }
    tell(&socket, &Order::Restore { id, again }, json)
}

pub(super) fn enforce(args: Enforce) -> super::Result {
    let Enforce { socket, fleet, confirm_within, confirm, revert, namespace, policy, dry_run, again, json } = args;
    if fleet.cluster {
        let mut command = words(&["enforce", "--again", "--json"]);
        command.extend(confirm_within.map(|d| format!("--confirm-within={}s", d.as_secs())));
        command.extend(namespace.as_ref().map(|ns| format!("--namespace={ns}")));
        command.extend(policy.as_ref().map(|name| format!("--policy={name}")));
        for (flag, given) in [("--confirm", confirm), ("--revert", revert), ("--dry-run", dry_run)] {
            command.extend(given.then(|| flag.to_owned()));
        }
        let otherwise = match (confirm, revert) {
            (true, _) => "there it is turned back when its time is over",
            (_, true) => "there it stays enforced",
            _ => "there it isn't enforced; `bulkhead enforce --revert --cluster` turns the others back",
        };
        let named = policy.map(|p| format!("the policy {p}")).or(namespace.map(|n| format!("the namespace {n}")));
        let named = named.unwrap_or_else(|| "any workload".to_owned());
        return cluster::tell(&fleet, &Deed { command, otherwise: otherwise.to_owned(), named, later: None }, json);
    }
    let target = policy.map(Target::Policy).or(namespace.map(Target::Namespace));
    let order = match confirm_within {
        _ if confirm => Order::Confirm { again },
        _ if revert => Order::Revert { target, again },
        within => {
            let seconds = within.unwrap_or_default().as_secs();
            Order::Enforce { target: target.unwrap_or(Target::Node), seconds, dry_run, unseen: again }
        }
    };
    tell(&socket, &order, json)
}

fn tell(socket: &Socket, order: &Order, json: bool) -> super::Result {
    let done: Done = client::block_on(client::post(&socket.socket, "/orders", order))?;
    show(&done, json)?;
    let would_cut = done.cut.as_ref().is_some_and(|c| c.dry_run && c.sockets > 0);
    Ok(if would_cut { Answer::Findings } else { Answer::Fine })
}

fn show(done: &Done, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(done).context("writing JSON")?);
    } else {
        print!("{}", render(done));
    }
    Ok(())
}

/// A number with its noun.
pub(super) fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// What an order came to, for people.
pub(super) fn render(done: &Done) -> String {
    let mut out = match done.text.as_str() {
        "" => String::new(),
        text => format!("{text}.\n"),
    };
    let Some(Cutting { dry_run, namespaces, looked_at, sockets, took_us, connections, faults, .. }) = &done.cut else {
        out.push_str("No live connection can be concerned.\n");
        return out;
    };
    let verb = if *dry_run { "would be cut" } else { "cut" };
    let ms = took_us / 1000;
    out.push_str(&format!(
        "{} {verb}, of {looked_at} looked at in {} ({ms} ms).\n",
        counted(*sockets, "live socket"),
        counted(*namespaces, "network namespace"),
    ));
    for fault in faults {
        out.push_str(&format!("FAULT: {fault}\n"));
    }
    if !connections.is_empty() {
        let names = Names::of(connections.iter().flat_map(|c| [&c.source.id, &c.destination.id]));
        let mut t = table(&["from", "to", "on", "sockets", "because"]);
        for CutLine { source, destination, protocol: number, port, reason, rule, sockets } in connections {
            let because = rule.as_ref().map_or_else(|| reason.clone(), |rule| format!("{reason}: {rule}"));
            let on = format!("{}/{port}", protocol(*number));
            let (from, to) = (names.end(&source.id, None), names.end(&destination.id, None));
            t.add_row([from, to, on, sockets.to_string(), names.within(&because)]);
        }
        out.push_str(&text(&t));
        out.push('\n');
        if let Some(note) = names.note() {
            out.push_str(&format!("\n{note}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::PeerName;

    #[test]
    fn what_was_cut_is_shown_within_the_page() {
        let name = |id: &str| PeerName { id: format!("spiffe://example.org/{id}"), namespace: String::new() };
        let line = CutLine {
            source: name("payments/api"),
            destination: name("ledger/database"),
            protocol: 6,
            port: 5432,
            reason: "deny-rule".to_owned(),
            rule: Some("spiffe://example.org/payments/api is revoked".to_owned()),
            sockets: 2,
        };
        let cut = Cutting { sockets: 2, namespaces: 1, took_us: 12_345, connections: vec![line], ..Cutting::default() };
        let page = render(&Done { text: "done".to_owned(), epoch: 3, cut: Some(cut), ..Done::default() });
        for words in ["2 live sockets cut", "1 network namespace (12 ms)", "revoked", "tcp/5432"] {
            assert!(page.contains(words), "{words} isn't in\n{page}");
        }
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(length("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(length("10m"), Ok(Duration::from_secs(600)));
        assert!(length("soon").expect_err("no time").contains("10m"));
        assert!(length("-1h").is_err());
    }
}
