//! `bulkhead report` and `bulkhead report verify`

use super::exit::Answer;
use super::fleet::{Fleet, complain, words};
use super::table::{table, text};
use super::{Socket, client};
use crate::declog::verify::{Finding, Verified};
use crate::report::{self, Report};
use anyhow::Context;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// Show every identity, not only those that reach most
    #[arg(long)]
    all: bool,
    /// As JSON, with whom each identity can connect to
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Look a decision log over: is each line as it was written, and none missing?
    #[command(after_help = "Examples:\n  bulkhead report verify /var/log/bulkhead/decisions.jsonl\n  \
        bulkhead report verify decisions.jsonl.2 decisions.jsonl.1 decisions.jsonl\n  \
        bulkhead report verify decisions.jsonl --contains HASH\n\n\
        Files are given oldest first; `-` is standard input. That nothing was cut off at the end, or computed all\n\
        anew, shows only if a hash was kept elsewhere (`bulkhead status --json | jq -r .decision_log.hash`).\n\n\
        Exit codes: 0 whole, 1 something is changed, missing or out of order, 2 a file couldn't be read.")]
    Verify(VerifyArgs),
}

#[derive(clap::Args)]
struct VerifyArgs {
    /// The files, oldest first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A hash that was kept elsewhere: the log must have the line with it
    #[arg(long, value_name = "HASH")]
    contains: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> super::Result {
    if let Some(Command::Verify(args)) = &args.command {
        return verify(args);
    }
    let (report, failed) = if args.fleet.cluster {
        let (nodes, failed) = args.fleet.ask(&words(&["report", "--json"]), None)?.json::<Report>();
        complain(&failed);
        if nodes.is_empty() {
            return Err(anyhow::anyhow!("no agent could be asked").into());
        }
        (report::merged(nodes.into_values()), failed)
    } else {
        let report = client::block_on(client::get(&args.socket.socket, "/report", &[]))?;
        (report, BTreeMap::new())
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("writing JSON")?);
    } else {
        print!("{}", render(&report, args.all));
    }
    // Without a node, what its identities can reach is missing.
    Ok(if failed.is_empty() { Answer::Fine } else { Answer::Findings })
}

/// How many identities are shown.
const SHOWN: usize = 20;

fn render(report: &Report, all: bool) -> String {
    let s = report.surface;
    let mut out = format!(
        "Lateral-movement surface: {} of a flat network ({} of {} pairs of identities).\n",
        percent(s.now()),
        s.reachable,
        s.pairs
    );
    if (s.audited_direct, s.audited_reachable) != (s.direct, s.reachable) {
        out.push_str(&format!(
            "If what is audited were enforced: {} ({} pairs).\n",
            percent(s.audited()),
            s.audited_reachable
        ));
    }
    out.push('\n');
    let mut t = table(&["identity", "namespace", "direct", "reaches", "if enforced", "exposed to", "outside"]);
    let shown = if all { report.identities.len() } else { SHOWN };
    for r in report.identities.iter().take(shown) {
        t.add_row([
            r.identity.id.clone(),
            r.identity.namespace.clone(),
            r.direct.len().to_string(),
            r.reachable.to_string(),
            r.audited_reachable.to_string(),
            r.exposed_to.to_string(),
            r.outside.join(", "),
        ]);
    }
    out.push_str(&text(&t));
    out.push('\n');
    if report.identities.len() > shown {
        out.push_str(&format!(
            "\n{} more reach no more than these: --all shows them.\n",
            report.identities.len() - shown
        ));
    }
    out
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn verify(args: &VerifyArgs) -> super::Result {
    let mut verified = Verified { wanted: args.contains.clone(), ..Verified::default() };
    for file in &args.files {
        let name = file.display().to_string();
        let reader: Box<dyn BufRead> = if name == "-" {
            Box::new(std::io::stdin().lock())
        } else {
            Box::new(BufReader::new(File::open(file).with_context(|| format!("opening {name}"))?))
        };
        verified.read(&name, reader).with_context(|| format!("reading {name}"))?;
    }
    verified.end();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&verified).context("writing JSON")?);
    } else {
        for Finding { file, line, what } in &verified.findings {
            println!("{file}:{line}: {what}");
        }
        let numbers = verified.first.zip(verified.last).map(|(a, b)| format!(" (numbers {a} to {b})"));
        println!(
            "{} lines{}: {}",
            verified.lines,
            numbers.unwrap_or_default(),
            if verified.findings.is_empty() {
                "whole".to_owned()
            } else {
                format!("{} findings", verified.findings.len())
            }
        );
        if let Some(hash) = &verified.hash {
            println!("last hash: {hash}");
        }
    }
    Ok(if verified.findings.is_empty() { Answer::Fine } else { Answer::Findings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::PeerName;
    use crate::report::{Reach, Surface};

    #[test]
    fn the_page_fits_and_says_the_number() {
        let name = |n: usize| PeerName {
            id: format!("spiffe://example.org/ns/team/sa/a-service-{n}"),
            namespace: "team".to_owned(),
        };
        let reach = |n| Reach {
            identity: name(n),
            direct: vec![name(1)],
            reachable: 3,
            exposed_to: 1,
            audited: vec![name(1)],
            audited_direct: 1,
            audited_reachable: 1,
            outside: vec!["world".to_owned(), "node-dns".to_owned()],
        };
        let surface =
            Surface { identities: 30, pairs: 870, direct: 90, reachable: 87, audited_direct: 9, audited_reachable: 9 };
        let report = Report { surface, identities: (0..30).map(reach).collect() };
        let page = render(&report, false);
        assert!(page.contains("10.0 % of a flat network") && page.contains("10 more"), "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
        assert!(!render(&report, true).contains("more reach"));
    }
}
