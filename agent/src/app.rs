//! The agent's life.
//!
//! Start order: configuration, load, sources, first full sync, first ruleset, attach, ready. (At the first start on a node of
//! a cluster the first ruleset may wait for other nodes, while the rest runs already.) From then on events only say where to
//! look; one task ([`engine::Engine`]) looks, compiles, and commits what differs. Every task is in one
//! set, and one that ends early ends the process. At the end nothing is taken off: what is in force stays pinned, unless
//! Bulkhead is being taken off the cluster.

mod aside;
pub mod clock;
pub mod engine;
pub mod events;
pub mod failure;
pub mod heap;
pub mod keep;
pub mod kernel;
mod lifeline;
pub mod log;
pub mod naming;
pub mod node_report;
pub mod overrides;
pub mod sightings;
pub mod snapshot;
pub mod surface;
pub mod text;

pub use failure::Failure;
pub use snapshot::{Accounts, Names, Snapshot};

use crate::cluster::watch::Watch;
use crate::cluster::{cgroup, denials, publish, summary, taint};
use crate::config::Config;
use crate::datapath;
use crate::serve::api::Status;
use crate::serve::{control, metrics};
use crate::sources::hierarchy::Hierarchy;
use crate::sources::state::State;
use crate::store::{Sqlite, Store};
use anyhow::{Context, anyhow};
use engine::Engine;
use keep::Keep;
use kernel::Kernel;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

/// How long the tasks have to finish once the end was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How many decisions a follower may be behind before it misses some.
const FOLLOWER_BACKLOG: usize = 4096;
/// How many orders may wait.
const ORDERS: usize = 16;

/// The file of the history in the state folder.
const HISTORY: &str = "history.db";

/// What an agent starts from.
pub struct Start {
    /// Where the configuration is read again when it changes.
    pub file: PathBuf,
    /// The configuration, as it was at the start.
    pub config: Config,
    /// Where cgroup2 is.
    pub hierarchy: Hierarchy,
}

/// Runs an agent until `end` or until something in it fails.
///
/// # Errors
/// Why it couldn't start, or what ended it.
pub async fn run<K: Kernel>(
    start: Start,
    open: impl FnOnce(&Config, &Hierarchy) -> Result<K, Failure>,
    end: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let Start { file, config, hierarchy } = start;
    let (state, _lock) = claim(&config, &hierarchy)?;
    // Bound before anything is in force, so that a bad address is found while it is still harmless.
    let control = control::bind(&config.socket).map_err(Failure::Other)?;
    let scrape = match config.metrics {
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("metrics.listen: {address} can't be used"))
                .map_err(Failure::Other)?,
        ),
        None => None,
    };
    let mut kernel = open(&config, &hierarchy)?;
    if config.cluster.is_some()
        && let Some(own) = cgroup::own(&hierarchy, &config.attach)
    {
        lifeline::hold(&mut kernel, &own).map_err(Failure::Load)?;
    }
    let (events, answers, kernel_log) = (kernel.take_events(), kernel.take_answers(), kernel.take_log());
    let (decisions, _) = broadcast::channel(FOLLOWER_BACKLOG);
    let history = Sqlite::new(&state.path(HISTORY), config.history);
    let (healthy, health) = watch::channel(history.health());
    let (logged, log_health) = watch::channel(None);
    let decision_log = config.decision_log.clone();
    let (measured, surface) = watch::channel(None);
    let accounts = Accounts { history: health, log: log_health, surface, ..Accounts::default() };
    let cluster = config.cluster.clone();
    let in_cluster = cluster.is_some();
    let (instance, bpffs) = (config.instance.clone(), config.bpffs.clone());
    let attach = config.attach.clone();
    let folder = state.clone();
    let mut engine =
        Engine::new(file, config, hierarchy, state, kernel).map_err(Failure::Other)?.with(accounts.clone());
    let mut end = std::pin::pin!(end);
    let (mut published, mut leave) = (None, None);
    if let Some(settings) = cluster {
        let client = kube::Client::try_default()
            .await
            .context("the API server's address isn't known (is there a service account or KUBECONFIG?)")
            .map_err(Failure::Other)?;
        let watch = Watch::start(&client, &settings);
        let peers = watch.peers();
        leave = (!settings.keep_when_deleted).then(|| watch.leave(&client));
        let (publish, workloads) = watch::channel(Arc::default());
        engine = engine.in_cluster(engine::Cluster::new(watch, &attach, publish));
        // Until everything was listed once, what is in force stays in force.
        tokio::select! {
            () = &mut end => return Ok(()),
            done = engine.await_lists() => done?,
        }
        published = Some((client, settings, peers, workloads));
    }
    let waits = engine.lacks_cover(engine::LIMIT).map_err(Failure::Other)?;
    if !waits {
        engine.first().await?;
    }

    let (publish, snapshots) = watch::channel(Arc::new(engine.snapshot()));
    let (stop, stopped) = watch::channel(false);
    let mut tasks: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
    let stored = history.last();
    let keep = Keep::new(Box::new(history), stored, snapshots.clone(), &accounts);
    let task = keep.clone().run(healthy, stopped.clone());
    tasks.spawn(async move { ("the history", task.await) });
    let task = surface::run(snapshots.clone(), measured, stopped.clone());
    tasks.spawn(async move { ("the surface", task.await) });
    let log = decision_log.map(|config| {
        let (way, ear) = log::way();
        let task = log::run(config, ear, snapshots.clone(), logged, stopped.clone());
        tasks.spawn(async move { ("the decision log", task.await) });
        way
    });
    let tells = published.as_ref().is_some_and(|(_, settings, ..)| settings.denial_events);
    let (denials, told) = if tells { Some(mpsc::channel(denials::QUEUE)).unzip() } else { (None, None) };
    if let Some(events) = events {
        let Accounts { sightings, naming, .. } = accounts.clone();
        let listeners = events::Listeners { decisions: decisions.clone(), sightings, naming, log, denials };
        let task = events::run(events, snapshots.clone(), listeners, stopped.clone());
        tasks.spawn(async move { ("events", task.await) });
    }
    if let Some(answers) = answers {
        let task = naming::run(answers, accounts.naming, stopped.clone());
        tasks.spawn(async move { ("the DNS answers", task.await) });
    }
    if let Some(log) = kernel_log {
        let mut stopped = stopped.clone();
        tasks.spawn(async move {
            let broken = tokio::select! {
                _ = stopped.changed() => return ("the kernel's log", Ok(())),
                e = log => e,
            };
            ("the kernel's log", Err(broken))
        });
    }
    if let Some((client, settings, peers, workloads)) = published {
        let node = settings.node.clone();
        if let Some(told) = told {
            let task = denials::run(client.clone(), node.clone(), told, stopped.clone());
            tasks.spawn(async move { ("the Events of denials", task.await) });
        }
        if let Some(key) = settings.startup_taint.clone() {
            let task = taint::run(client.clone(), node.clone(), key, stopped.clone());
            let (mut snapshots, mut stopped) = (snapshots.clone(), stopped.clone());
            tasks.spawn(async move {
                tokio::select! {
                    _ = stopped.changed() => return ("the start-up taint", Ok(())),
                    () = in_force(&mut snapshots) => {}
                }
                ("the start-up taint", task.await)
            });
        }
        let task = publish::run(client.clone(), node.clone(), peers.clone(), workloads, stopped.clone());
        tasks.spawn(async move { ("the node's endpoints", task.await) });
        let task = node_report::run(client.clone(), node, peers.clone(), snapshots.clone(), stopped.clone());
        tasks.spawn(async move { ("the node's report", task.await) });
        let task = summary::run(client, settings, peers, stopped.clone());
        tasks.spawn(async move { ("the status of policies", task.await) });
    }
    let (give_orders, mut orders) = mpsc::channel(ORDERS);
    let (take_off, mut asked_off) = watch::channel(false);
    let obeying = control::Obeying { orders: give_orders, take_off: in_cluster.then_some(take_off) };
    let task = control::serve(control, snapshots.clone(), decisions.clone(), keep, obeying, stopped.clone());
    tasks.spawn(async move { ("the control socket", task.await) });
    if let Some(listener) = scrape {
        let task = metrics::serve(listener, snapshots.clone(), stopped.clone());
        tasks.spawn(async move { ("metrics", task.await) });
    }
    let mut asked_to_stop = stopped.clone();
    let task = async move {
        if waits && !engine.await_cover(engine::LIMIT, &publish, &mut orders, &mut asked_to_stop).await? {
            return Ok(());
        }
        notify("READY=1");
        tracing::info!(epoch = publish.borrow().status.epoch, "ready");
        engine.run(publish, decisions, orders, stopped).await
    };
    tasks.spawn(async move { ("the ruleset", task.await) });

    let (mut outcome, mut last, mut waits) = (Ok(()), false, false);
    tokio::select! {
        () = asked(&mut asked_off) => {
            tracing::warn!("asked to take everything off");
            (last, waits) = (true, true);
        }
        () = &mut end => {
            if let Some(leave) = leave {
                last = leave.is_final().await;
            }
            tracing::info!("ending; what is in force {}", if last { "ends with the agent" } else { "stays in force" });
        }
        Some(done) = tasks.join_next() => outcome = Err(early(done)),
    }
    notify("STOPPING=1");
    stop.send_replace(true);
    let drain = async {
        while let Some(done) = tasks.join_next().await {
            if let Ok((name, Err(e))) = done {
                tracing::warn!("{name} ended with: {e:#}");
            }
        }
    };
    if tokio::time::timeout(DRAIN, drain).await.is_err() {
        tracing::warn!("some tasks didn't end within {} s and are dropped", DRAIN.as_secs());
        tasks.shutdown().await;
    }
    if last {
        folder.drop_text(engine::LEFT).map_err(Failure::Other)?;
        let off =
            datapath::uninstall(&instance, &bpffs).context("taking off what is in force").map_err(Failure::Other)?;
        tracing::info!(pins = off.removed.len(), "nothing is contained on this node any more");
    }
    if waits {
        // Whoever asked takes the DaemonSet away next. If this process ended first, it would be started again.
        end.await;
    }
    outcome
}

/// Waits until a ruleset is in force; for ever if none ever is.
async fn in_force(snapshots: &mut watch::Receiver<Arc<Snapshot>>) {
    if snapshots.wait_for(|s| s.status.ready).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until somebody asks; for ever if nobody can.
async fn asked(off: &mut watch::Receiver<bool>) {
    while !*off.borrow_and_update() {
        if off.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Puts in force what the files, or their last good forms, say now, and ends: for a machine that has just been started,
/// before there is a network. The agent that comes later adopts it.
///
/// # Errors
/// Why it couldn't be.
pub async fn once<K: Kernel>(
    start: Start,
    open: impl FnOnce(&Config, &Hierarchy) -> Result<K, Failure>,
) -> Result<Status, Failure> {
    let Start { file, config, hierarchy } = start;
    let (state, _lock) = claim(&config, &hierarchy)?;
    let kernel = open(&config, &hierarchy)?;
    let mut engine = Engine::new(file, config, hierarchy, state, kernel).map_err(Failure::Other)?;
    engine.first().await?;
    Ok(engine.snapshot().status)
}

/// Takes the state folder for this process, and makes sure of the attach points.
fn claim(config: &Config, hierarchy: &Hierarchy) -> Result<(State, std::fs::File), Failure> {
    let state = State::open(&config.state, &config.instance).map_err(Failure::Other)?;
    let Some(lock) = state.lock().map_err(Failure::Other)? else {
        return Err(Failure::AlreadyRunning(config.instance.clone()));
    };
    for path in &config.attach {
        let directory = hierarchy.directory(path);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("the attach point {} doesn't exist and can't be made", directory.display()))
            .map_err(Failure::Attach)?;
    }
    Ok((state, lock))
}

/// What to say of a task that ended although nobody asked it to.
fn early(done: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> Failure {
    Failure::Other(match done {
        Ok((name, Ok(()))) => anyhow!("{name} ended early"),
        // A start that had waited failed as any other.
        Ok((name, Err(e))) => match e.downcast::<Failure>() {
            Ok(failure) => return failure,
            Err(e) => e.context(format!("{name} failed")),
        },
        Err(e) => anyhow!("a task was lost: {e}"),
    })
}

/// Tells systemd, if it started us (sd_notify(3)). Nothing depends on whether that works.
fn notify(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> std::io::Result<()> {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(e) = send() {
        tracing::debug!("systemd couldn't be told {state}: {e}");
    }
}

#[cfg(test)]
mod tests;
