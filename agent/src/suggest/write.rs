//! The suggested policies as files: one per namespace, in a stable order, with the evidence beside each rule.
//!
//! What strangers chose (executables, DNS names) stands in comments only, printable and on lines of its own.

use super::draft::{Draft, Drafts, Half, Named, Opening, Openings, rules};
use super::evidence::Evidence;
use crate::identity::Identity;
use crate::judge::Cast;
use crate::policy::document::API_VERSION;
use crate::policy::model::protocol_name;
use crate::policy::{Mode, PolicySet};
use crate::serve::api::printable;
use bulkhead_common::proto;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One file of policies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PolicyFile {
    /// What it should be called.
    pub file: String,
    /// Whose policies it has; empty on a plain host.
    pub namespace: String,
    /// Its text.
    pub text: String,
}

/// The file for those without a namespace; no namespace can be called so.
const PLAIN: &str = "_host";
/// How wide comments are.
const WIDTH: usize = 100;
/// How many executables are named.
const EXECUTABLES: usize = 3;

/// What the writer needs to know besides the drafts.
pub(super) struct Setting<'a> {
    pub(super) cast: &'a Cast,
    pub(super) existing: &'a PolicySet,
    pub(super) mode: Mode,
    /// For the heads of the files.
    pub(super) about: String,
    /// By which ID a policy selects an identity.
    pub(super) selector: &'a dyn Fn(&Identity) -> String,
    /// Whether a policy that exists leaves this half only what rules allow.
    pub(super) isolated: &'a dyn Fn(&Identity, Half) -> bool,
}

/// Writes all.
pub(super) fn write(drafts: &Drafts, s: &Setting<'_>) -> Vec<PolicyFile> {
    let mut taken: BTreeSet<(String, String)> =
        s.existing.iter().map(|p| (p.name.namespace.clone(), p.name.name.clone())).collect();
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut owners: Vec<(&Identity, &Draft)> =
        drafts.iter().filter_map(|(peer, draft)| Some((&s.cast.facts(*peer)?.identity, draft))).collect();
    owners.sort_by(|a, b| a.0.cmp(b.0));
    for (identity, draft) in owners {
        let written = |half: Half| !draft.half(half).is_empty() || !(s.isolated)(identity, half);
        let halves: Vec<Half> = [Half::Ingress, Half::Egress].into_iter().filter(|h| written(*h)).collect();
        if halves.is_empty() {
            continue;
        }
        let id = (s.selector)(identity);
        let name = name(&id, |n| taken.insert((identity.namespace.clone(), n.to_owned())));
        let text = files.entry(&identity.namespace).or_insert_with(|| head(&s.about, &identity.namespace));
        policy(text, &name, &identity.namespace, &id, s.mode, draft, &halves);
    }
    let file = |(namespace, text): (&str, String)| PolicyFile {
        file: format!("{}.yaml", if namespace.is_empty() { PLAIN } else { namespace }),
        namespace: namespace.to_owned(),
        text,
    };
    files.into_iter().map(file).collect()
}

/// The last part of the ID as far as a name can have it, with a number if that is taken.
fn name(id: &str, mut free: impl FnMut(&str) -> bool) -> String {
    let last = id.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let mapped: String = last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(200).collect();
    let plain = match mapped.trim_matches('-') {
        "" => "workload",
        trimmed => trimmed,
    };
    let plain = format!("learned-{plain}");
    let numbered = (2..).map(|n| format!("{plain}-{n}"));
    std::iter::once(plain.clone()).chain(numbered).find(|n| free(n)).unwrap_or(plain)
}

fn head(about: &str, namespace: &str) -> String {
    let whose = if namespace.is_empty() { "those without a namespace" } else { namespace };
    let mut text = String::new();
    comment(&mut text, 0, &format!("Suggested by `bulkhead policy suggest` for {whose}, from {about}."));
    comment(&mut text, 0, "Beside each rule stands what it rests on; docs/learning.md explains the marks.");
    text
}

fn policy(text: &mut String, name: &str, namespace: &str, id: &str, mode: Mode, draft: &Draft, halves: &[Half]) {
    let mut line = |indent: usize, what: &str| {
        text.push_str(&" ".repeat(indent));
        text.push_str(what);
        text.push('\n');
    };
    line(0, "---");
    line(0, &format!("apiVersion: {API_VERSION}"));
    line(0, "kind: SegmentationPolicy");
    line(0, "metadata:");
    line(2, &format!("name: {name}"));
    if !namespace.is_empty() {
        // A namespace such as `123` or `on` is a text too.
        line(2, &format!("namespace: \"{namespace}\""));
    }
    line(0, "spec:");
    line(2, &format!("mode: {}", mode.as_str()));
    line(2, "selector:");
    line(4, &format!("ids: [\"{id}\"]"));
    for half in halves {
        let (section, other) = match half {
            Half::Ingress => ("ingress", "from"),
            Half::Egress => ("egress", "to"),
        };
        let peers = draft.half(*half);
        if peers.is_empty() {
            text.push_str(&format!("  {section}: {{}}\n"));
            continue;
        }
        text.push_str(&format!("  {section}:\n    rules:\n"));
        for (ports, peers) in rules(peers) {
            text.push_str(&format!("      - {other}:\n"));
            for (named, openings) in peers {
                peer(text, named, openings);
            }
            text.push_str("        ports:\n");
            for (protocol, number) in ports {
                text.push_str(&format!("          - {}\n", port(protocol, number)));
            }
        }
    }
}

fn peer(text: &mut String, named: &Named, openings: &Openings) {
    for ((protocol, number), opening) in openings {
        comment(text, 10, &told(*protocol, *number, opening));
    }
    let item = match named {
        Named::Id(id) => format!("id: {id}"),
        Named::Class(class) => format!("class: {}", class.as_str()),
        Named::Net(net) => format!("cidr: \"{net}\""),
    };
    text.push_str(&format!("          - {item}\n"));
}

fn port(protocol: u8, number: u16) -> String {
    match protocol {
        proto::TCP => format!("port: {number}"),
        proto::ICMP => "protocol: ICMP".to_owned(),
        other => format!("{{protocol: {}, port: {number}}}", protocol_name(other)),
    }
}

/// A link's port in words.
pub(crate) fn port_words(protocol: u8, number: u16) -> String {
    let name = protocol_name(protocol);
    if number == 0 { name } else { format!("{name}/{number}") }
}

/// The evidence in one line.
fn told(protocol: u8, number: u16, opening: &Opening) -> String {
    let Opening { evidence: e, marks, why } = opening;
    let mut text = format!("{}: {}", port_words(protocol, number), evidence_words(e));
    for (word, names) in [("by", &e.source_executables), ("to", &e.destination_executables)] {
        if !names.is_empty() {
            let shown: Vec<String> = names.iter().take(EXECUTABLES).map(|n| short(n)).collect();
            let more = names.len().saturating_sub(EXECUTABLES);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text.push_str(&format!("; {word} {}{more}", shown.join(", ")));
        }
    }
    if !why.is_empty() {
        text.push_str(&format!("; {why}"));
    }
    if !marks.is_empty() {
        text.push_str(&format!("; marked: {}", marks.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", ")));
    }
    text
}

/// How often and when, in words.
fn evidence_words(e: &Evidence) -> String {
    let plural = |n: u64, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
    let seen = match (e.established, e.attempts) {
        (0, tried) => plural(tried, "attempt"),
        (made, tried) if tried > made => format!("{} of {tried} tried", plural(made, "connection")),
        (made, _) => plural(made, "connection"),
    };
    format!(
        "{seen}, {} to {}, {}, {}",
        time(e.first),
        time(e.last),
        plural(e.days.into(), "day"),
        plural(e.hours.into(), "hour")
    )
}

/// A time in UTC, to the minute.
pub(crate) fn time(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    stamp.map_or_else(|| format!("{ms} ms"), |t| t.strftime("%Y-%m-%d %H:%MZ").to_string())
}

/// A text that a stranger chose, printable and not too long.
pub(super) fn short(name: &str) -> String {
    let clean = printable(name.as_bytes());
    let cut = clean.chars().count() > 60;
    let mut shown: String = clean.chars().take(60).collect();
    if cut {
        shown.push('…');
    }
    shown
}

/// Comment lines, broken between words. What it says must be printable.
fn comment(text: &mut String, indent: usize, what: &str) {
    let mut column = 0;
    for word in what.split(' ') {
        let length = word.chars().count();
        if column == 0 || column + 1 + length > WIDTH {
            if column > 0 {
                text.push('\n');
            }
            text.push_str(&" ".repeat(indent));
            text.push('#');
            column = indent + 1;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + length;
    }
    text.push('\n');
}
