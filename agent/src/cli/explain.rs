//! `bulkhead explain`

use super::exit::Answer;
use super::{Socket, client};
use crate::config;
use crate::policy::{self, Party};
use crate::serve::api::Explained;
use crate::sources::policies::{Policies, read};
use crate::sources::roster::Roster;
use crate::sources::state::State;
use crate::sources::{addresses, assemble, hierarchy};
use anyhow::Context;
use bulkhead_common::proto;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
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
    #[arg(long, requires = "config")]
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
    let told = policy::explain(&now, &known.inventory, &args.from, &args.to, args.proto, args.port);
    Explained::of(&told).context("writing the explanation")
}
