//! `bulkhead graph`

use super::exit::Answer;
use super::fleet::{Fleet, complain};
use super::{Socket, client};
use crate::graph::{Filter, Graph, dot, html, mermaid, svg, text};
use crate::history::History;
use anyhow::Context;
use bulkhead_common::Outcome;
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    /// The form of the output
    #[arg(long = "as", value_enum, default_value_t = Form::Text)]
    form: Form,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only where either end's SPIFFE ID or class contains this
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// Only where either end is in this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only with this outcome
    #[arg(long, value_parser = PossibleValuesParser::new(Outcome::ALL.iter().map(|o| o.as_str())))]
    verdict: Option<String>,
}

/// Where a history comes from.
#[derive(clap::Args)]
pub(super) struct Source {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// Take this history (of `bulkhead graph --as history`) instead of asking the agent
    #[arg(long, value_name = "FILE", conflicts_with_all = ["since", "socket", "cluster"])]
    history: Option<PathBuf>,
    /// Only the last so long: 30m, 12h, 7d; default: everything that is kept
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Form {
    /// For the terminal
    Text,
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
    /// A picture
    Svg,
    /// A page with a search, which needs no network
    Html,
    /// For programs
    Json,
    /// What it is made from, for --history
    History,
}

impl Source {
    pub(super) fn read(&self) -> anyhow::Result<History> {
        if let Some(file) = &self.history {
            let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            return serde_json::from_slice(&text).with_context(|| format!("{} isn't a history", file.display()));
        }
        if self.fleet.cluster {
            let (history, failed) = self.fleet.history(self.since)?;
            complain(&failed);
            return Ok(history);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = self.since.map(|s| now.saturating_sub(s).as_millis().to_string());
        let query: Vec<(&str, String)> = since.map(|s| ("since", s)).into_iter().collect();
        client::block_on(client::get(&self.socket.socket, "/history", &query))
    }
}

pub(super) fn run(args: &Args) -> super::Result {
    let Args { source, form, output, id, namespace, verdict } = args;
    let filter = Filter { id: id.clone(), namespace: namespace.clone(), verdict: verdict.clone() };
    let history = source.read()?;
    if *form == Form::History {
        let text = serde_json::to_string(&history).context("writing JSON")? + "\n";
        return write(output.as_deref(), &text);
    }
    let graph = Graph::of(&history.with_lone_backends(), &filter);
    let rendered = match form {
        Form::Text => {
            let colour = output.is_none() && std::io::stdout().is_terminal();
            text::render(&graph, |outcome, shown| if colour { painted(outcome, shown) } else { shown.to_owned() })
        }
        Form::Dot => dot::render(&graph),
        Form::Mermaid => mermaid::render(&graph),
        Form::Svg => svg::render(&graph),
        Form::Html => html::render(&graph),
        Form::Json | Form::History => graph.to_json().context("writing JSON")?,
    };
    write(output.as_deref(), &rendered)
}

fn write(file: Option<&Path>, text: &str) -> super::Result {
    match file {
        Some(file) => std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?,
        None => std::io::stdout().write_all(text.as_bytes()).context("writing the graph")?,
    }
    Ok(Answer::Fine)
}

fn painted(outcome: &str, shown: &str) -> String {
    let colour = match outcome {
        "allowed" => 32,
        "would-deny" | "would-allow" => 33,
        _ => 31,
    };
    format!("\u{1b}[{colour}m{shown}\u{1b}[0m")
}
