//! `bulkhead policy simulate`

use super::files::{self, Source, count};
use crate::cli::client;
use crate::cli::exit::Answer;
use crate::cli::names::Names;
use crate::cli::table::{table, text};
use crate::identity::SpiffeId;
use crate::inventory::Inventory;
use crate::policy::{PolicySet, RuleRef};
use crate::serve::api::{Decision, printable};
use crate::simulate::{self, Comparison, Effect, Simulation, Under, Verdict};
use crate::suggest::{port_words, time};
use anyhow::Context;
use http_body_util::BodyExt;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// The candidate's files, or folders of *.yaml and *.yml
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// The configuration: who there is, and which policies exist; with --cluster the API server knows
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take the files instead of the policies that exist, not beside them
    #[arg(long)]
    instead: bool,
    /// As if everybody were under enforce; without --config it is so anyway
    #[arg(long, conflicts_with = "only")]
    enforce: bool,
    /// As if these were under enforce and the others under observe (again for more)
    #[arg(long = "for", value_name = "ID")]
    only: Vec<SpiffeId>,
    /// Judge what happens from now on, until interrupted
    #[arg(long, conflicts_with_all = ["history", "since", "cluster"])]
    follow: bool,
    /// As JSON; with --follow one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> crate::cli::Result {
    let present = args.source.present(args.config.as_deref())?;
    let given = files::policies(&args.files)?;
    let candidate = if args.instead { given } else { files::replaced(&present.policies, &given) };
    let under = match (args.only.is_empty(), args.enforce || args.config.is_none()) {
        (false, _) => Under::Only(args.only.iter().cloned().collect()),
        (true, true) => Under::Enforce,
        (true, false) => Under::Present,
    };
    if args.follow {
        let sets = (&present.policies, &candidate);
        client::block_on(follow(args, sets, &present.inventory, &under))?;
        return Ok(Answer::Fine);
    }
    let history = args.source.read()?;
    let s = simulate::simulate(&history, &present.policies, &candidate, &present.inventory, &under);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&s).context("writing JSON")?);
    } else {
        println!("{}", report(&s));
    }
    Ok(if s.newly_denied.is_empty() { Answer::Fine } else { Answer::Findings })
}

/// How many rows of a table are shown.
const SHOWN: usize = 40;

fn report(s: &Simulation) -> String {
    let mut out = format!(
        "{} from {} to {}:\n{} newly denied, {} newly allowed, {} denied by both though established\n",
        count(s.links, "link", "links"),
        time(s.window.from),
        time(s.window.to),
        s.newly_denied.len(),
        s.newly_allowed.len(),
        s.still_denied.len()
    );
    if s.unjudged > 0 {
        out.push_str(&format!(
            "{} have an end that no rule can name, and weren't judged\n",
            count(s.unjudged, "record", "records")
        ));
    }
    let all = s.newly_denied.iter().chain(&s.newly_allowed).chain(&s.still_denied);
    let names = Names::of(all.flat_map(|v| [&v.source.id, &v.destination.id]));
    for (title, list) in [
        ("Newly denied", &s.newly_denied),
        ("Newly allowed", &s.newly_allowed),
        ("Denied by both, though it was established", &s.still_denied),
    ] {
        if list.is_empty() {
            continue;
        }
        let mut t = table(&["source", "destination", "port", "tried", "made", "last seen", "because"]);
        for v in list.iter().take(SHOWN) {
            t.add_row([
                names.end(&v.source.id, v.address),
                names.end(&v.destination.id, v.address),
                port_words(v.protocol, v.port),
                v.attempts.to_string(),
                v.established.to_string(),
                time(v.last),
                because(v),
            ]);
        }
        out.push_str(&format!("\n{title}:\n{}\n", text(&t)));
        if list.len() > SHOWN {
            out.push_str(&format!("and {} more (all of them: --json)\n", list.len() - SHOWN));
        }
    }
    if let Some(note) = names.note() {
        out.push_str(&format!("\n{note}"));
    }
    out.trim_end().to_owned()
}

fn because(v: &Verdict) -> String {
    let short = |rule: &RuleRef| {
        let whole = rule.to_string();
        whole.split_once(' ').map_or(whole.clone(), |(_, short)| short.to_owned())
    };
    v.rule.as_ref().map_or_else(|| v.reason.to_owned(), short)
}

/// Judges decisions as they are made, and tells those that the candidate changes.
async fn follow(
    args: &Args,
    (present, candidate): (&PolicySet, &PolicySet),
    inventory: &Inventory,
    under: &Under,
) -> anyhow::Result<()> {
    let query = [("follow", "true".to_owned())];
    let mut body = client::ask(&args.source.socket.socket, "/observe", &query).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| anyhow::anyhow!("the agent ended; what it last put in force stays in force"))?;
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Ok(decision) = serde_json::from_slice::<Decision>(&line) else { continue };
            let record = files::record(&decision);
            let names = [&record.link.source, &record.link.destination];
            // Compiled anew for each: whoever comes may be new, and a person reads no faster.
            let comparison = Comparison::of(present, candidate, inventory, names, under);
            let Some((effect, judgement)) = comparison.judge(&record) else { continue };
            let word = match effect {
                Effect::NewlyDenied => "newly-denied",
                Effect::NewlyAllowed => "newly-allowed",
                Effect::Allowed | Effect::StillDenied => continue,
            };
            if args.json {
                let told = serde_json::json!({ "effect": word, "decision": decision });
                println!("{told}");
            } else {
                let link = &record.link;
                let rule = comparison
                    .rule(&judgement)
                    .map_or_else(|| judgement.reason.as_str().to_owned(), ToString::to_string);
                println!(
                    "{} {word} {} to {} on {} ({rule})",
                    time(decision.time),
                    printable(link.source.id.as_bytes()),
                    printable(link.destination.id.as_bytes()),
                    port_words(link.protocol, link.port)
                );
            }
        }
    }
    Ok(())
}
