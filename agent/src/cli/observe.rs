//! `bulkhead observe`

use super::exit::Answer;
use super::table::{ago, table, text, verdict};
use super::{Socket, client};
use crate::flows;
use crate::serve::api::{Decision, EdgeLine};
use anyhow::Context;
use bulkhead_common::Outcome;
use clap::builder::PossibleValuesParser;
use http_body_util::BodyExt;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Show each decision as it is made, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only where either end's SPIFFE ID or class contains this
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// Only where either end is in this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only with this outcome
    #[arg(long, value_parser = PossibleValuesParser::new(Outcome::ALL.iter().map(|o| o.as_str())))]
    verdict: Option<String>,
    /// Only to this port
    #[arg(long)]
    port: Option<u16>,
    /// As JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> super::Result {
    let Args { socket, follow, id, namespace, verdict, port, json } = args;
    let query: Vec<(&str, String)> = [
        ("id", id.clone()),
        ("namespace", namespace.clone()),
        ("verdict", verdict.clone()),
        ("port", port.map(|p| p.to_string())),
    ]
    .into_iter()
    .filter_map(|(k, v)| Some((k, v?)))
    .collect();
    if *follow {
        client::block_on(stream(&socket.socket, &query, *json))?;
        return Ok(Answer::Fine);
    }
    let edges: Vec<EdgeLine> = client::block_on(client::get(&socket.socket, "/edges", &query))?;
    if *json {
        for e in &edges {
            println!("{}", serde_json::to_string(e).context("writing JSON")?);
        }
    } else if edges.is_empty() {
        println!("No flows yet that fit.");
    } else {
        println!("{}", render(&edges, now()));
    }
    Ok(Answer::Fine)
}

fn render(edges: &[EdgeLine], now: u64) -> String {
    let mut t = table(&["source", "destination", "port", "seen at", "verdict", "reason", "count", "last"]);
    for EdgeLine { edge, count } in edges {
        t.add_row([
            (&edge.source.id).into(),
            (&edge.destination.id).into(),
            port(edge.protocol, edge.port).into(),
            (&edge.direction).into(),
            verdict(&edge.outcome),
            (&edge.reason).into(),
            count.total.to_string().into(),
            ago(count.last, now).into(),
        ]);
    }
    text(&t)
}

fn port(protocol: u8, port: u16) -> String {
    let name = flows::protocol(protocol);
    if port == 0 { name } else { format!("{name}/{port}") }
}

async fn stream(socket: &std::path::Path, query: &[(&str, String)], json: bool) -> anyhow::Result<()> {
    let mut body = client::ask(socket, "/observe", query).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    let mut out = std::io::stdout();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the agent went away")?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if line == b"\n" {
                continue;
            }
            let shown = if json {
                out.write_all(&line)
            } else {
                match serde_json::from_slice::<Decision>(&line) {
                    Ok(d) => writeln!(out, "{}", one_line(&d)),
                    Err(_) => writeln!(out, "(some were missed: {})", String::from_utf8_lossy(&line).trim()),
                }
            };
            // Who reads us may have had enough.
            if shown.and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn one_line(d: &Decision) -> String {
    let mut text = format!(
        "{} {} -> {} {} ({}, {})",
        d.edge.outcome,
        d.edge.source.id,
        d.edge.destination.id,
        port(d.edge.protocol, d.edge.port),
        d.edge.direction,
        d.edge.reason
    );
    if d.pid != 0 {
        text.push_str(&format!(" pid {} {}", d.pid, d.comm));
    }
    if let Some(exe) = &d.executable {
        text.push_str(&format!(" {exe}"));
    }
    for rule in [&d.egress_rule, &d.ingress_rule].into_iter().flatten() {
        text.push_str(&format!(" by {rule}"));
    }
    text
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
