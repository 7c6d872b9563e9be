//! `bulkhead policy suggest`

use super::files::{Source, count};
use crate::app::overrides::Target;
use crate::cli::exit::Answer;
use crate::cli::names::Names;
use crate::cli::orders::render;
use crate::cli::table::{table, text};
use crate::cli::{Socket, client};
use crate::identity::SpiffeId;
use crate::policy::Mode;
use crate::serve::api::printable;
use crate::serve::orders::{Done, Order};
use crate::suggest::{self, Apart, LinkName, PolicyFile, SetApart, Suggestion, Wish, port_words, time};
use anyhow::{Context, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    source: Source,
    /// The configuration: who there is, and which policies exist; with --cluster the API server knows
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only policies for these, each a complete boundary (again for more)
    #[arg(long = "for", value_name = "ID", num_args = 1..)]
    only: Vec<SpiffeId>,
    /// The mode of the policies
    #[arg(long, value_enum, default_value_t = Word::Audit)]
    mode: Word,
    /// Write the files into this folder; none that is there already is touched
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Make rules for what was seen only once or twice, too
    #[arg(long)]
    keep_once: bool,
    /// Go on, with a warning, when counts were lost
    #[arg(long)]
    despite_losses: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// [`Mode`], as clap wants it.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum Word {
    /// They say what they would deny
    Audit,
    /// They deny
    Enforce,
}

impl From<Word> for Mode {
    fn from(word: Word) -> Self {
        match word {
            Word::Audit => Self::Audit,
            Word::Enforce => Self::Enforce,
        }
    }
}

pub(super) fn run(args: &Args) -> crate::cli::Result {
    let present = args.source.present(args.config.as_deref())?;
    let history = args.source.read()?;
    let mode = Mode::from(args.mode);
    let wish = Wish {
        only: args.only.iter().cloned().collect(),
        mode,
        despite_losses: args.despite_losses,
        keep_once: args.keep_once,
    };
    let suggestion = match suggest::suggest(&history, &present.policies, &present.inventory, &wish) {
        Ok(suggestion) => suggestion,
        Err(refusal) => {
            eprintln!("bulkhead: {refusal}");
            return Ok(Answer::Findings);
        }
    };
    if let Some(folder) = &args.output {
        store(folder, &suggestion.files)?;
    }
    let live = match args.source.agent() {
        Some(agent) => {
            let wish = Wish { mode: Mode::Enforce, ..wish };
            let enforced = suggest::suggest(&history, &present.policies, &present.inventory, &wish);
            enforced.ok().map(|s| live(agent, present.texts, s.files, wish.only.is_empty()))
        }
        None => None,
    };
    let report = |s: &Suggestion| match &live {
        Some(Ok(done)) => format!("{}\n\nLive connections, if that were enforced now:\n{}", report(s), render(done)),
        Some(Err(e)) => {
            format!("{}\n\nwarning   which live connections it would cut couldn't be asked: {e:#}", report(s))
        }
        None => report(s),
    };
    if args.json {
        let told = Told { suggestion: &suggestion, live: live.as_ref().and_then(|l| l.as_ref().ok()) };
        println!("{}", serde_json::to_string_pretty(&told).context("writing JSON")?);
    } else if let Some(folder) = &args.output {
        println!("{}", report(&suggestion));
        let folder = printable(folder.as_os_str().as_encoded_bytes());
        println!("\nWritten to {folder}. See what they would change: bulkhead policy simulate {folder}");
    } else {
        suggestion.files.iter().for_each(|f| print!("{}", f.text));
        eprintln!("{}", report(&suggestion));
    }
    let fine = suggestion.proof.false_denies.is_empty();
    Ok(if fine { Answer::Fine } else { Answer::Findings })
}

/// What is written as JSON.
#[derive(serde::Serialize)]
struct Told<'s> {
    #[serde(flatten)]
    suggestion: &'s Suggestion,
    /// The live connections that it would cut if it were enforced now; null without an agent to ask.
    live: Option<&'s Done>,
}

/// Asks the agent which live connections these policies would cut beside the present ones, under enforcement: of
/// everybody, or only of those that the policies select.
fn live(agent: &Socket, present: BTreeMap<String, String>, files: Vec<PolicyFile>, all: bool) -> anyhow::Result<Done> {
    let mut policies = present;
    policies.extend(files.into_iter().map(|f| (format!("suggested/{}", f.file), f.text)));
    let order = Order::Live { policies, enforce: all.then_some(Target::Node) };
    client::block_on(client::post(&agent.socket, "/orders", &order))
}

/// Writes all files or says which one is in the way before any is written.
fn store(folder: &Path, files: &[PolicyFile]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let path = |f: &PolicyFile| folder.join(&f.file);
    if let Some(there) = files.iter().map(path).find(|p| p.exists()) {
        bail!("{} is there already, and a suggestion never replaces a file: give another folder", there.display());
    }
    for file in files {
        let path = path(file);
        let mut opened = OpenOptions::new().write(true).create_new(true).open(&path);
        let written = opened
            .as_mut()
            .map_err(|e| std::io::Error::from(e.kind()))
            .and_then(|f| f.write_all(file.text.as_bytes()).and_then(|()| f.sync_all()));
        written.with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// How many lines of a list are shown.
const SHOWN: usize = 20;
/// How many ports of one pair are shown.
const PORTS: usize = 6;

/// Milliseconds as people say them: to the second below an hour, else to the minute.
fn length(ms: u64) -> String {
    let unit = if ms < 3_600_000 { 1 } else { 60 };
    humantime::format_duration(Duration::from_secs(ms / 1000 / unit * unit)).to_string()
}

fn report(s: &Suggestion) -> String {
    let mut lines: Vec<String> = Vec::new();
    let w = s.window;
    lines.push(format!(
        "window    {} to {}: {}, of which {} were watched",
        time(w.from),
        time(w.to),
        length(w.to.saturating_sub(w.from)),
        length(w.watched)
    ));
    let p = &s.proof;
    lines.push(format!(
        "policies  {}; {}, {} resting on few connections",
        count(s.files.len(), "file", "files"),
        count(s.rules.len(), "rule", "rules"),
        p.few
    ));
    lines.push(format!(
        "replay    {} with {} connections, {} of them allowed before: {} would be denied",
        count(p.links, "link", "links"),
        p.connections,
        p.allowed_before,
        p.false_denies.len()
    ));
    lines.push(format!(
        "surplus   {} of {} newly allowed pairs and ports were never seen ({:.1} %)",
        p.surplus.never_seen,
        p.surplus.allowed,
        p.surplus.share * 100.0
    ));
    let ids = s.apart.iter().map(|a| &a.link).chain(&p.false_denies).flat_map(|l| [&l.source.id, &l.destination.id]);
    let names = Names::of(ids.chain(s.unseen.iter().map(|n| &n.id)));
    for link in p.false_denies.iter().take(SHOWN) {
        let (from, to) = ends(link, &names);
        lines.push(format!("DENIED    {from} to {to} on {}", port_words(link.protocol, link.port)));
    }
    lines.extend(s.notes.iter().map(|n| format!("warning   {n}")));
    if !s.unseen.is_empty() {
        lines.push(String::new());
        lines.push("Nothing was seen of these. They get no policy; what they need isn't covered:".to_owned());
        lines.extend(shown(s.unseen.iter().map(|n| format!("  {}", names.end(&n.id, None)))));
    }
    lines.extend(apart(&s.apart, &names));
    if !s.unused.is_empty() {
        lines.push(String::new());
        lines.push("Allowed by existing policies, and not used in this window:".to_owned());
        let line = |u: &suggest::Unused| {
            let file = printable(u.file.as_bytes());
            format!("  {file}:{}: {}: {}", u.line, u.rule, u.what)
        };
        lines.extend(shown(s.unused.iter().map(line)));
    }
    if let Some(note) = names.note() {
        lines.extend([String::new(), note]);
    }
    lines.join("\n")
}

fn shown(all: impl ExactSizeIterator<Item = String>) -> Vec<String> {
    let more = all.len().saturating_sub(SHOWN);
    let mut lines: Vec<String> = all.take(SHOWN).collect();
    if more > 0 {
        lines.push(format!("  and {more} more (all of them: --json)"));
    }
    lines
}

/// Both ends of a link.
fn ends(link: &LinkName, names: &Names) -> (String, String) {
    let end = |id: &str| names.named_end(id, link.address, link.name.as_deref());
    (end(&link.source.id), end(&link.destination.id))
}

/// What is to be decided, by reason, one row for each pair; or for a source, if it has many destinations.
fn apart(all: &[SetApart], names: &Names) -> Vec<String> {
    let mut reasons: BTreeMap<Apart, BTreeMap<String, BTreeMap<String, Vec<&SetApart>>>> = BTreeMap::new();
    for a in all {
        let (from, to) = ends(&a.link, names);
        reasons.entry(a.why).or_default().entry(from).or_default().entry(to).or_default().push(a);
    }
    let mut lines = Vec::new();
    if !reasons.is_empty() {
        lines.push(String::new());
        lines.push("For you to decide; no rule was made for these:".to_owned());
    }
    for (why, sources) in reasons {
        lines.push(String::new());
        lines.push(format!("{}: {}", why.as_str(), why.advice()));
        let mut t = table(&["source", "destination", "ports", "tried", "made", "last seen"]);
        let mut rows = Vec::new();
        for (from, destinations) in sources {
            let number = destinations.len();
            if number > PORTS {
                let first = destinations.keys().next().cloned().unwrap_or_default();
                let to = format!("{first} and {} more", number - 1);
                rows.push((from, to, destinations.into_values().flatten().collect()));
            } else {
                rows.extend(destinations.into_iter().map(|(to, links)| (from.clone(), to, links)));
            }
        }
        let more = rows.len().saturating_sub(SHOWN);
        for (from, to, links) in rows.into_iter().take(SHOWN) {
            let sum = |of: fn(&SetApart) -> u64| links.iter().map(|a| of(a)).fold(0, u64::saturating_add).to_string();
            let last = links.iter().map(|a| a.evidence.last).max().unwrap_or(0);
            let allowed = if links.iter().any(|a| a.allowed) { " (let through by other rules)" } else { "" };
            t.add_row([
                from,
                to,
                format!("{}{allowed}", ports(&links)),
                sum(|a| a.evidence.attempts),
                sum(|a| a.evidence.established),
                time(last),
            ]);
        }
        lines.push(text(&t));
        if more > 0 {
            lines.push(format!("and {more} more rows (all of them: --json)"));
        }
    }
    lines
}

/// The ports of some links, each once.
fn ports(links: &[&SetApart]) -> String {
    let all: BTreeSet<(u8, u16)> = links.iter().map(|a| (a.link.protocol, a.link.port)).collect();
    let mut words: Vec<String> = all.iter().take(PORTS).map(|(protocol, port)| port_words(*protocol, *port)).collect();
    if all.len() > PORTS {
        words.push(format!("and {} more", all.len() - PORTS));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::PeerName;
    use crate::history::{Counts, History, Link, Record, Window};
    use crate::inventory::Inventory;
    use crate::policy::PolicySet;

    fn suggestion() -> Suggestion {
        let name = |id: &str| PeerName { id: id.to_owned(), namespace: String::new() };
        let record = |to: &str, port, established| Record {
            link: Link { source: name("spiffe://t/a"), destination: name(to), protocol: 6, port },
            outcome: "allowed".to_owned(),
            reason: "posture".to_owned(),
            address: None,
            name: None,
            counts: Counts { attempts: 9, established, ..Counts::default() },
            first: 0,
            last: 7_200_000,
            hours: 2,
            days: 1,
            by_destination: false,
            source_executables: ["a\u{1b}[2J".to_owned()].into(),
            destination_executables: Default::default(),
        };
        let mut records: Vec<Record> = (1..60).map(|port| record("spiffe://t/b", port, 0)).collect();
        records.iter_mut().for_each(|r| r.counts.attempts = 1);
        records.push(record("spiffe://t/c", 80, 9));
        records.push(record("evil\u{1b}[2J", 80, 9));
        let window = Window { from: 0, to: 86_400_000, watched: 86_400_000, unattributed: 0 };
        suggest::suggest(
            &History { window, records, ..History::default() },
            &PolicySet::default(),
            &Inventory::default(),
            &Wish::default(),
        )
        .expect("a suggestion")
    }

    #[test]
    fn the_report_is_narrow_and_clean() {
        let told = report(&suggestion());
        assert!(told.lines().all(|l| l.chars().count() <= 100), "{told}");
        assert!(!told.contains('\u{1b}'), "{told}");
        assert!(told.contains("scan: ") && told.contains("TCP/1, TCP/2") && told.contains("53 more"), "{told}");
        assert!(told.contains("0 would be denied"), "{told}");
    }

    #[test]
    fn files_that_are_there_stay_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = suggestion().files;
        store(folder.path(), &files).expect("written");
        let there = folder.path().join(&files[0].file);
        assert_eq!(std::fs::read_to_string(&there).expect("the file"), files[0].text);
        std::fs::write(&there, "mine").expect("written");
        let said = store(folder.path(), &files).expect_err("in the way").to_string();
        assert!(said.contains("_host.yaml is there already"), "{said}");
        assert_eq!(std::fs::read_to_string(&there).expect("the file"), "mine");
    }

    #[test]
    fn a_window_is_as_long_as_people_say_it() {
        assert_eq!(length(8_250), "8s");
        assert_eq!(length(2 * 86_400_000 + 3_600_000 + 61_000), "2days 1h 1m");
    }
}
