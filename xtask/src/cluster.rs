//! `cargo xtask cluster`: a real Kubernetes cluster on this machine, without a container engine.
//!
//! Everything in it is what runs elsewhere: etcd, API server, controllers, scheduler and CoreDNS, and on each node
//! containerd, runc, kubelet, kube-proxy and the CNI bridge. A node is a set of namespaces ([`place`]) rather than a
//! machine, so the host's network, mounts and nft tables are never touched, and `down` leaves nothing ([`residue`]).

mod check;
mod control;
mod door;
mod groups;
mod images;
mod keys;
mod network;
mod node;
mod place;
mod process;
mod programs;
mod residue;
mod state;
mod status;
mod wait;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::{self, note, root, step};
use crate::setup::{self, Purpose};
use crate::test;
use groups::Hierarchies;
use network::Node;
pub(crate) use node::POD_IMAGE;
use place::Place;
pub(crate) use programs::are_built;
use residue::{Inventory, Residue};
pub(crate) use state::State;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask cluster up --nodes 2         bring it up (the first time some 15 min: it builds Kubernetes)
  export KUBECONFIG=target/cluster/kubeconfig
  cargo xtask cluster status               is everything well? exit code 1 if not
  cargo xtask cluster stop kubelet@node2   a fault; `start` ends it
  cargo xtask cluster down                 take it down; nothing is left")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Bring a cluster up
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Then try what a cluster does: pods, Services, names, logs, tokens
        #[arg(long)]
        check: bool,
    },
    /// Take it down, and make sure that nothing is left
    Down,
    /// Say what runs; exit code 1 if something isn't well
    Status,
    /// Build the cluster's programs, and start nothing
    Build {
        /// SPIRE as well
        #[arg(long)]
        spire: bool,
    },
    /// Give an image to every node
    Import {
        /// An OCI or docker archive
        archive: PathBuf,
    },
    /// End a daemon: what it started goes on
    Stop {
        /// As `status` names it: etcd, kubelet@node1…
        daemon: String,
        /// By SIGKILL
        #[arg(long)]
        kill: bool,
    },
    /// Start a daemon that was stopped
    Start {
        /// As `status` names it
        daemon: String,
    },
    /// Hand on connections to the API server (`up` starts it)
    #[command(hide = true)]
    Door {
        /// Where to
        address: String,
    },
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        if let What::Door { address } = &self.what {
            return door::serve(address);
        }
        if let What::Build { spire } = self.what {
            note(programs::build(spire)?.display().to_string());
            return Ok(());
        }
        test::require_root()?;
        match self.what {
            What::Up { nodes, check } => up(nodes, check),
            What::Down => down(),
            What::Status => status::tell(&State::require()?),
            What::Import { archive } => State::require()?.import(&std::path::absolute(archive)?),
            What::Stop { daemon, kill } => {
                State::require()?.stop(&daemon, if kill { Duration::ZERO } else { Duration::from_secs(20) })
            }
            What::Start { daemon } => State::require()?.start(&daemon),
            What::Door { .. } | What::Build { .. } => Ok(()),
        }
    }
}

/// Brings one up.
pub(crate) fn up(nodes: u8, check: bool) -> Result<()> {
    let hierarchies = Hierarchies::find()?;
    if let Some(state) = State::load()?
        && hierarchies.starter().is_some_and(|folder| folder == state.folder)
    {
        bail!(
            "a cluster with {} nodes is up: `cargo xtask cluster status` looks at it, `down` ends it",
            state.nodes().count()
        );
    }
    hierarchies.require_free()?;
    setup::ensure(Purpose::Cluster)?;
    let programs = programs::build(false)?;
    let folder = State::home();
    for path in [&folder, &programs] {
        if ["/var", "/run"].iter().any(|taken| path.starts_with(taken)) {
            bail!("{} is below a folder of which every node has its own: use another place", path.display());
        }
    }
    clear_folder(&folder, false)?;
    fs::create_dir_all(folder.join("log")).with_context(|| format!("can't make {}", folder.display()))?;
    let images = images::build(&programs, &folder)?;

    let mut state =
        State { folder, programs, places: Vec::new(), daemons: Vec::new(), door: None, before: Inventory::take()? };
    let started = Instant::now();
    step(format!("starting a cluster with {nodes} node{}", if nodes == 1 { "" } else { "s" }));
    let nodes: Vec<Node> = (1..=nodes).map(Node).collect();
    if let Err(error) = start(&mut state, &nodes, &hierarchies, &images) {
        note("that failed; clearing up (the logs stay in target/cluster/log)");
        down()?;
        return Err(error);
    }
    note(format!("up in {:.1} s", started.elapsed().as_secs_f64()));
    note(format!("export KUBECONFIG={}", state.kubeconfig().display()));
    note(format!("kubectl is {}", state.programs.join("kubectl").display()));
    if check {
        check::run(&state)?;
    }
    Ok(())
}

/// From nothing to nodes that are ready, and names.
fn start(state: &mut State, nodes: &[Node], hierarchies: &Hierarchies, images: &[PathBuf]) -> Result<()> {
    state.save()?;
    let names = nodes.iter().map(|node| node.name());
    for name in std::iter::once(control::PLACE.to_owned()).chain(names) {
        let place = Place::make(&name, &state.folder, hierarchies)?;
        state.places.push(place);
        state.save()?;
    }
    connect(state, nodes)?;
    let authority = control::start(state)?;
    for node in nodes {
        node::prepare(state, *node, images)?;
    }
    control::finish(state, &authority)?;
    for node in nodes {
        node::join(state, *node, &authority, hierarchies)?;
    }
    for node in nodes {
        node::settle(state, *node)?;
    }
    let coredns = root().join("tests/cluster/coredns.yaml");
    run::run_quietly(state.kubectl().arg("apply").arg("-f").arg(coredns))?;
    let rollout = ["rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=90s"];
    run::run_quietly(state.kubectl().args(rollout))
}

fn connect(state: &State, nodes: &[Node]) -> Result<()> {
    let control = state.place(control::PLACE)?;
    network::lay(control)?;
    for node in nodes {
        network::plug(control, state.place(&node.name())?, *node)?;
    }
    for (at, node) in nodes.iter().enumerate() {
        network::route(control, *node)?;
        for (other, _) in nodes.iter().enumerate().filter(|(other, _)| *other != at) {
            network::route(state.place(&nodes[other].name())?, *node)?;
        }
    }
    Ok(())
}

/// Takes it down, and makes sure that nothing is left.
pub(crate) fn down() -> Result<()> {
    let hierarchies = Hierarchies::find()?;
    let folder = State::home();
    if let Some(other) = hierarchies.starter().filter(|other| *other != folder) {
        bail!("the cluster that is up was started in {}: end it there", other.display());
    }
    // A state that can't be read tells nothing, and stops nobody.
    let state = State::load().unwrap_or_default();
    if state.is_none() && hierarchies.starter().is_none() {
        note("no cluster of this checkout is up");
        return clear_folder(&folder, true);
    }
    step("taking the cluster down");
    let started = Instant::now();
    let processes = hierarchies.clear()?;
    let (namespaces, before): (BTreeSet<String>, _) = state.map_or_else(Default::default, |state| {
        (state.places.into_iter().flat_map(|place| place.namespaces).collect(), Some(state.before))
    });
    let mut residue = Residue::default();
    wait::until("the last traces to go", Duration::from_secs(10), || {
        residue = Residue::find(&folder, &namespaces, &hierarchies, before.as_ref())?;
        Ok(residue.ours.is_empty())
    })
    .with_context(|| format!("still there:\n{}", residue.ours.join("\n")))?;
    // Those that have ended wait for the machine's first process to take note. Not all machines have one that does.
    let buried = || Ok(processes.iter().all(|process| process.is_buried()));
    wait::until("the ended processes to be buried", Duration::from_secs(2), buried).ok();
    clear_folder(&folder, true)?;
    for new in &residue.new {
        note(format!("{new} wasn't there before, and isn't the cluster's"));
    }
    note(format!("nothing is left; {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Empties the cluster's folder, of which only the logs may be wanted.
fn clear_folder(folder: &Path, keep_logs: bool) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry.with_context(|| format!("can't read {}", folder.display()))?;
        if keep_logs && entry.file_name() == "log" {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("can't remove {}", path.display()))?;
    }
    Ok(())
}
