//! What the policy commands read: the configuration with everybody there is, policy files, and a history.

use super::cluster;
use crate::cli::fleet::{Fleet, complain};
use crate::cli::{Socket, client};
use crate::config::{self, Config};
use crate::history::{History, Record};
use crate::inventory::Inventory;
use crate::policy::{self, Diagnostic, PolicySet};
use crate::serve::api::printable;
use crate::sources::policies::read;
use crate::sources::roster::Roster;
use crate::sources::{addresses, assemble, hierarchy};
use crate::suggest::port_words;
use anyhow::{Context, bail, ensure};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where what was seen comes from.
#[derive(clap::Args)]
pub(super) struct Source {
    #[command(flatten)]
    pub(super) socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// Read what was seen from a file instead of asking the agent ("-": standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "cluster")]
    history: Option<PathBuf>,
    /// Only what was seen in the last so many minutes, hours or days: 30m, 12h, 14d
    #[arg(long, value_name = "TIME", value_parser = milliseconds, conflicts_with = "history")]
    since: Option<u64>,
}

impl Source {
    /// Who there is and which policies exist: what the configuration says, or the cluster's API server.
    pub(super) fn present(&self, config: Option<&Path>) -> anyhow::Result<Present> {
        if self.fleet.cluster && config.is_none() { cluster::present(&self.fleet) } else { present(config) }
    }

    /// The agent that is asked, unless it is a file.
    pub(super) fn agent(&self) -> Option<&Socket> {
        (self.history.is_none() && !self.fleet.cluster).then_some(&self.socket)
    }

    /// What was seen, with Services as those who answer for them: rules name these.
    pub(super) fn read(&self) -> anyhow::Result<History> {
        Ok(self.read_raw()?.with_all_backends())
    }

    fn read_raw(&self) -> anyhow::Result<History> {
        if self.fleet.cluster {
            let (history, failed) = self.fleet.history(self.since.map(Duration::from_millis))?;
            complain(&failed);
            ensure!(
                failed.is_empty(),
                "rules that are made without some nodes deny what those saw: ask again when all answer"
            );
            return Ok(history);
        }
        let Some(file) = &self.history else {
            let since = self.since.map(|ms| ("since", now().saturating_sub(ms).to_string()));
            let query: Vec<(&str, String)> = since.into_iter().collect();
            return client::block_on(client::get(&self.socket.socket, "/history", &query));
        };
        let name = printable(file.as_os_str().as_encoded_bytes());
        let text = match file.as_os_str() == "-" {
            true => std::io::read_to_string(std::io::stdin()),
            false => std::fs::read_to_string(file),
        };
        let text = text.with_context(|| format!("reading {name}"))?;
        let history = serde_json::from_str(&text);
        history.map_err(|e| anyhow::anyhow!("{name}:{}:{}: this isn't a history: {e}", e.line(), e.column()))
    }
}

/// Now, in milliseconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let unit = |c| match c {
        's' => Some(1000),
        'm' => Some(60_000),
        'h' => Some(3_600_000),
        'd' => Some(86_400_000),
        _ => None,
    };
    let mut number = text.chars();
    let unit = number.next_back().and_then(unit);
    let product = unit.and_then(|u: u64| number.as_str().parse::<u64>().ok()?.checked_mul(u));
    product.ok_or_else(|| "write a number and s, m, h or d, such as 14d".to_owned())
}

/// The configuration, with what is wrong with it added to the findings.
pub(super) fn configuration(file: &Path, findings: &mut Vec<Diagnostic>) -> anyhow::Result<Option<Config>> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
    Ok(config::parse(&name, &text).map_err(|faults| findings.extend(faults)).ok())
}

/// Who there is by the file alone: what runs at present plays no part.
pub(super) fn inventory(file: &Path, config: &Config) -> anyhow::Result<Inventory> {
    let host = addresses::host().unwrap_or_default();
    let mut roster = Roster::new(0);
    let name = file.display().to_string();
    Ok(assemble::assemble(&name, config, &hierarchy::Scan::default(), &host, &mut roster)?.inventory)
}

/// Who there is, and the policies that the configuration names, under what is said above them.
pub(super) struct Present {
    pub(super) inventory: Inventory,
    pub(super) policies: PolicySet,
    /// The texts of the policies' files, by name.
    pub(super) texts: BTreeMap<String, String>,
}

/// What a configuration says; nothing without one.
pub(super) fn present(file: Option<&Path>) -> anyhow::Result<Present> {
    let Some(file) = file else {
        return Ok(Present { inventory: Inventory::default(), policies: PolicySet::default(), texts: BTreeMap::new() });
    };
    let mut findings = Vec::new();
    let Some(config) = configuration(file, &mut findings)? else { return refuse(&findings) };
    let (policies, texts) = with_texts(&config.policies)?;
    Ok(Present { inventory: inventory(file, &config)?, policies, texts })
}

/// The policies of these files and folders, all of them good.
pub(super) fn policies(files: &[PathBuf]) -> anyhow::Result<PolicySet> {
    Ok(with_texts(files)?.0)
}

fn with_texts(files: &[PathBuf]) -> anyhow::Result<(PolicySet, BTreeMap<String, String>)> {
    let reading = read(files, |_| {});
    if let Some((file, why)) = reading.unreadable.first_key_value() {
        bail!("{file} can't be read: {why}");
    }
    let documents = reading.texts.iter().flat_map(|(file, text)| policy::read(file, text));
    let (set, findings) = PolicySet::assemble(documents, &PolicySet::default());
    if findings.iter().any(Diagnostic::is_error) {
        return refuse(&findings);
    }
    let texts = reading.texts.iter().map(|(file, text)| (file.to_string(), text.to_string())).collect();
    Ok((set, texts))
}

pub(super) fn refuse<T>(findings: &[Diagnostic]) -> anyhow::Result<T> {
    for finding in findings {
        eprintln!("{finding}");
    }
    bail!("nothing is judged by files that have errors: {}", count(findings.len(), "finding", "findings"))
}

/// The first set with the policies of the second added, which replace those of their name.
pub(super) fn replaced(present: &PolicySet, by: &PolicySet) -> PolicySet {
    present.iter().chain(by.iter()).cloned().collect()
}

/// A number with its noun.
pub(super) fn count(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// A port, or several: `TCP/80`, `TCP/80-90`, `TCP` for all.
pub(super) fn ports(protocol: u8, first: u16, last: u16) -> String {
    match (first, last) {
        (a, b) if a == b => port_words(protocol, a),
        (0, u16::MAX) => port_words(protocol, 0),
        (a, b) => format!("{}-{b}", port_words(protocol, a)),
    }
}

/// A record of a single decision, for judging it.
pub(super) fn record(d: &crate::serve::api::Decision) -> Record {
    let edge = &d.edge;
    let address = |end: &str, text: &str| -> Option<IpAddr> {
        let socket: Option<SocketAddr> = text.parse().ok();
        (end == "world").then(|| socket.map(|s| s.ip()).or_else(|| text.parse().ok()))?
    };
    Record {
        link: crate::history::Link {
            source: edge.source.clone(),
            destination: edge.destination.clone(),
            protocol: edge.protocol,
            port: edge.port,
        },
        outcome: edge.outcome.clone(),
        reason: edge.reason.clone(),
        address: address(&edge.source.id, &d.source_address)
            .or_else(|| address(&edge.destination.id, &d.destination_address)),
        name: None,
        counts: crate::history::Counts { attempts: 1, ..Default::default() },
        first: d.time,
        last: d.time,
        hours: 1,
        days: 1,
        by_destination: false,
        source_executables: Default::default(),
        destination_executables: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(milliseconds("14d"), Ok(14 * 86_400_000));
        assert!(milliseconds("14").is_err() && milliseconds("d").is_err() && milliseconds("").is_err());
    }

    #[test]
    fn ports_are_told_as_short_as_can_be() {
        assert_eq!(
            [ports(6, 80, 80), ports(17, 1, 9), ports(6, 0, 65_535), ports(1, 0, 0)],
            ["TCP/80", "UDP/1-9", "TCP", "ICMP"]
        );
    }
}
