//! `bulkhead explain`

use super::exit::Answer;
use super::fleet::{Fleet, complain, words};
use super::{Socket, client};
use crate::config;
use crate::policy::{self, Party};
use crate::serve::api::{Explained, Status};
use crate::sources::policies::{Policies, read};
use crate::sources::roster::Roster;
use crate::sources::state::State;
use crate::sources::{addresses, assemble, hierarchy};
use anyhow::Context;
use bulkhead_common::proto;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    fleet: Fleet,
    /// Who opens it: a SPIFFE ID, an address or a class
    #[arg(long, value_name = "WHO")]
    from: Party,
    /// Who is connected to: a SPIFFE ID, an address or a class
    #[arg(long, value_name = "WHO")]
    to: Party,
    /// The destination's port; 0 for protocols without ports
    #[arg(long)]
    port: u16,
    /// tcp, udp, sctp, udplite, icmp, or a number
    #[arg(long, value_name = "P", default_value = "tcp", value_parser = protocol)]
    proto: u8,
    /// Ask the files, not a running agent
    #[arg(long, requires = "config", conflicts_with = "cluster")]
    offline: bool,
    /// The configuration to ask
    #[arg(long, value_name = "FILE", requires = "offline")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn protocol(text: &str) -> Result<u8, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "icmp" => proto::ICMP,
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "sctp" => proto::SCTP,
        "udplite" => proto::UDPLITE,
        n => n.parse().map_err(|_| "use tcp, udp, sctp, udplite, icmp, or a number".to_owned())?,
    })
}

pub(super) fn run(args: &Args) -> super::Result {
    if args.fleet.cluster {
        return cluster(args);
    }
    let told = match &args.config {
        Some(file) => offline(file, args)?,
        None => {
            let query = [
                ("from", args.from.to_string()),
                ("to", args.to.to_string()),
                ("port", args.port.to_string()),
                ("protocol", args.proto.to_string()),
            ];
            client::block_on(client::get(&args.socket.socket, "/explain", &query))?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&told.explanation).context("writing JSON")?);
    } else {
        println!("{}", told.text.trim_end());
    }
    Ok(if told.passes { Answer::Fine } else { Answer::Findings })
}

/// By the node where the target lives, which has the last word; else the source's, else any.
fn cluster(args: &Args) -> super::Result {
    let Args { fleet, from, to, port, proto, json, .. } = args;
    let (nodes, failed) = fleet.ask(&words(&["status", "--json"]), None)?.json::<Status>();
    complain(&failed);
    let node = home(&nodes, &to.to_string(), &from.to_string()).context("no agent could be asked")?;
    let mut command = words(&["explain", "--from", &from.to_string(), "--to", &to.to_string()]);
    command.extend(words(&["--port", &port.to_string(), "--proto", &proto.to_string()]));
    command.extend(json.then(|| "--json".to_owned()));
    let mut answers = fleet.ask(&command, Some(node))?;
    complain(&answers.failed);
    let said = answers.said.remove(node).with_context(|| format!("{node} didn't answer"))?;
    eprint!("{}", said.err);
    print!("{}", String::from_utf8_lossy(&said.out));
    if !json {
        println!("(by the agent of {node})");
    }
    match said.code {
        0 => Ok(Answer::Fine),
        1 => Ok(Answer::Findings),
        code => Err(anyhow::anyhow!("the agent of {node} says no more than exit code {code}").into()),
    }
}

/// Where the first of these runs that runs anywhere.
fn home<'n>(nodes: &'n BTreeMap<String, Status>, to: &str, from: &str) -> Option<&'n String> {
    let runs = |s: &Status, id: &str| s.workloads.iter().any(|w| w.identity.id == id && !w.cgroups.is_empty());
    let of = |id: &str| nodes.iter().find(|(_, s)| runs(s, id)).map(|(node, _)| node);
    of(to).or_else(|| of(from)).or_else(|| nodes.keys().next())
}

/// From files alone: nothing needs to run, nor even to exist on this host.
fn offline(file: &Path, args: &Args) -> anyhow::Result<Explained> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
    let config = config::parse(&name, &text)
        .map_err(|all| anyhow::anyhow!("{}", all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    // What an agent last took as good holds for a file that isn't good any more.
    let last = Policies::stored(&State::left_behind(&config.state, &config.instance)).unwrap_or_else(|e| {
        eprintln!("the last good policies can't be read, so files alone are asked (ask with sudo): {e:#}");
        Policies::default()
    });
    let policies = last.after(&read(&config.policies, |_| {}));
    for finding in &policies.findings {
        eprintln!("{finding}");
    }
    let host = addresses::host().unwrap_or_default();
    let mut roster = Roster::new(0);
    let known = assemble::assemble(&name, &config, &hierarchy::Scan::default(), &host, &mut roster)?;
    let now = policy::expiry::at(policies.set, crate::app::clock::now());
    let mut told = policy::explain(&now, &known.inventory, &args.from, &args.to, args.proto, args.port);
    told.notes.extend(config.cluster.is_some().then(|| policy::BESIDE_CNI.to_owned()));
    Explained::of(&told).context("writing the explanation")
}
