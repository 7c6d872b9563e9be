//! `bulkhead uninstall`

mod cluster;

use super::client;
use super::exit::Answer;
use super::fleet::Fleet;
use crate::config::{self, BPFFS, SOCKET};
use crate::datapath;
use crate::serve::orders::{Done, Order};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an agent may take to take itself off.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    fleet: Fleet,
    /// Which agent's, by the configuration that it ran with
    #[arg(long, value_name = "FILE", conflicts_with_all = ["instance", "bpffs"])]
    config: Option<PathBuf>,
    /// Which agent's, by its name
    #[arg(long, value_name = "NAME", default_value = config::INSTANCE)]
    instance: String,
    /// Where the BPF filesystem is
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    bpffs: PathBuf,
    /// Only look whether anything is pinned
    #[arg(long, conflicts_with_all = ["through_agent", "cluster"])]
    check: bool,
    /// If the agent runs, have it take itself off; afterwards it waits to be ended. Only a cluster's agent does so
    #[arg(long, requires = "config")]
    through_agent: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Where an agent keeps its things.
struct Place {
    instance: String,
    bpffs: PathBuf,
    state: PathBuf,
    socket: PathBuf,
}

impl Place {
    fn of(args: &Args) -> anyhow::Result<Self> {
        let Some(file) = &args.config else {
            let (instance, bpffs) = (args.instance.clone(), args.bpffs.clone());
            return Ok(Self { instance, bpffs, state: config::STATE.into(), socket: SOCKET.into() });
        };
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
        let c = config::parse(&name, &text)
            .map_err(|all| anyhow::anyhow!("{}", all.first().map(ToString::to_string).unwrap_or_default()))?;
        Ok(Self { instance: c.instance, bpffs: c.bpffs, state: c.state, socket: c.socket })
    }

    fn pinned(&self) -> anyhow::Result<Vec<PathBuf>> {
        datapath::pinned(&self.instance, &self.bpffs).map_err(anyhow::Error::new)
    }
}

pub(super) fn run(args: &Args) -> super::Result {
    if args.fleet.cluster {
        return cluster::run(&args.fleet, args.json);
    }
    let place = Place::of(args)?;
    if args.check {
        return check(&place, args.json);
    }
    let removed = if args.through_agent { through_agent(&place)? } else { off(&place)? };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&removed).context("writing JSON")?);
    } else if removed.is_empty() {
        println!("Nothing of instance `{}` was there.", place.instance);
    } else {
        println!(
            "Instance `{}` is off: {} pins removed, nothing is contained any more.",
            place.instance,
            removed.len()
        );
        let folder = place.state.join(&place.instance);
        println!("Left: {} (the last good policies); remove it if you won't come back.", folder.display());
    }
    Ok(Answer::Fine)
}

fn off(place: &Place) -> anyhow::Result<Vec<PathBuf>> {
    Ok(datapath::uninstall(&place.instance, &place.bpffs).map_err(anyhow::Error::new)?.removed)
}

fn check(place: &Place, json: bool) -> super::Result {
    let pinned = place.pinned()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&pinned).context("writing JSON")?);
    } else if pinned.is_empty() {
        println!("Nothing of instance `{}` is pinned.", place.instance);
    } else {
        pinned.iter().for_each(|p| println!("{}", p.display()));
    }
    Ok(if pinned.is_empty() { Answer::Fine } else { Answer::Findings })
}

/// By the agent, or by this process if there is none. Gives what is pinned no more.
fn through_agent(place: &Place) -> anyhow::Result<Vec<PathBuf>> {
    let pinned = place.pinned()?;
    let asked: anyhow::Result<Done> = client::block_on(client::post(&place.socket, "/orders", &Order::TakeOff));
    match asked {
        Ok(_) => {}
        Err(e) if client::hung_up(&e) => return off(place),
        Err(e) => return Err(e),
    }
    wait_until_off(place)?;
    Ok(pinned)
}

fn wait_until_off(place: &Place) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = place.pinned()?;
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("{} pins are still there after {} s, such as {}", left.len(), PATIENCE.as_secs(), shown(first));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
