//! The control socket: HTTP and JSON over a unix socket that only root can use.
//!
//! Two locks: the socket's mode (0600 in a folder of 0700), and the peer's uid as the kernel vouches for it
//! (SO_PEERCRED), asked for each connection before a byte is read.

use super::api::{Decision, Explained, Filter};
use super::orders::{Done, Order, Refusal, Request};
use crate::app::Snapshot;
use crate::app::keep::Keep;
use crate::history::{History, Owned};
use crate::policy::{self, Party};
use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use http_body_util::channel::Channel;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How often a follower without decisions is looked after.
const ALIVE: Duration = Duration::from_secs(1);
/// Bytes of an order: one may bring all policies with it.
const LONGEST_ORDER: usize = 64 << 20;

/// Binds the socket. The caller holds the instance's lock, so whatever lies there is a dead agent's.
///
/// # Errors
/// When it can't be made.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let make = || -> io::Result<UnixListener> {
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Nobody can use it between bind and chmod: the folder is ours, and each peer's uid is asked anyway.
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    make().with_context(|| format!("the control socket {} can't be made (set `socket:` elsewhere?)", path.display()))
}

/// Accepts root only.
struct RootOnly(UnixListener);

impl Listener for RootOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "the control socket is for root only"),
                Err(e) => tracing::warn!("a peer of the control socket can't be told: {e}"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[derive(Clone)]
struct Shared {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    decisions: broadcast::Sender<Arc<Decision>>,
    keep: Keep,
    orders: mpsc::Sender<Request>,
    take_off: Option<watch::Sender<bool>>,
    stopped: watch::Receiver<bool>,
}

/// Where orders go.
pub struct Obeying {
    /// To the one task that may follow them.
    pub orders: mpsc::Sender<Request>,
    /// That everything is to be taken off; `None`: this agent is only stopped by whoever started it.
    pub take_off: Option<watch::Sender<bool>>,
}

/// Serves until told to stop.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: UnixListener,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    decisions: broadcast::Sender<Arc<Decision>>,
    keep: Keep,
    obeying: Obeying,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let Obeying { orders, take_off } = obeying;
    let shared = Shared { snapshots, decisions, keep, orders, take_off, stopped: stopped.clone() };
    let router = Router::new()
        .route("/status", get(|State(s): State<Shared>| async move { Json(s.now().status.clone()).into_response() }))
        .route("/edges", get(|State(s): State<Shared>, Query(f): Query<Filter>| async move { Json(s.now().edges(&f)) }))
        .route("/observe", get(observe))
        .route("/explain", get(explain))
        .route("/history", get(history))
        .route("/report", get(report))
        .route("/orders", post(order).layer(DefaultBodyLimit::max(LONGEST_ORDER)))
        .with_state(shared);
    let end = async move { while !*stopped.borrow_and_update() && stopped.changed().await.is_ok() {} };
    Ok(axum::serve(RootOnly(listener), router).with_graceful_shutdown(end).await?)
}

impl Shared {
    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }
}

/// Decisions as they are made, one JSON object a line, until the client goes or the agent ends. A client that is too
/// slow misses some: then a line `{"missed": N}` says so. An empty line now and then finds out whether it is still there.
async fn observe(State(shared): State<Shared>, Query(filter): Query<Filter>) -> Response {
    let mut decisions = shared.decisions.subscribe();
    let mut stopped = shared.stopped.clone();
    let (mut sender, body) = Channel::<Bytes>::new(64);
    // Ends with its client or with the agent, and nothing depends on it.
    tokio::spawn(async move {
        let mut alive = tokio::time::interval(ALIVE);
        loop {
            let line = tokio::select! {
                _ = stopped.changed() => return,
                _ = alive.tick() => Ok(Vec::new()),
                d = decisions.recv() => match d {
                    Ok(d) if filter.fits(&d.edge) => serde_json::to_vec(&*d),
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Lagged(n)) => serde_json::to_vec(&serde_json::json!({"missed": n})),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            };
            let Ok(mut line) = line else { return };
            line.push(b'\n');
            if sender.send_data(Bytes::from(line)).await.is_err() {
                return;
            }
        }
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::new(body)).into_response()
}

#[derive(serde::Deserialize)]
struct Question {
    from: String,
    to: String,
    port: u16,
    protocol: u8,
}

async fn explain(State(shared): State<Shared>, Query(q): Query<Question>) -> Response {
    let now = shared.now();
    let parties = q.from.parse::<Party>().and_then(|f| Ok((f, q.to.parse::<Party>()?)));
    match parties {
        Ok((from, to)) => {
            let mut told = policy::explain(&now.policies, &now.inventory, &from, &to, q.protocol, q.port);
            told.notes.extend(now.on_cluster.then(|| policy::BESIDE_CNI.to_owned()));
            match Explained::of(&told) {
                Ok(e) => Json(e).into_response(),
                Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
            }
        }
        Err(e) => (StatusCode::BAD_REQUEST, e.to_string()).into_response(),
    }
}

/// Hands an order to the one task that may follow it. What it says no to comes back as one sentence.
async fn order(State(shared): State<Shared>, Json(order): Json<Order>) -> Response {
    if let (Order::TakeOff, Some(take_off)) = (&order, &shared.take_off) {
        take_off.send_replace(true);
        return Json(Done { text: "everything is being taken off".to_owned(), ..Done::default() }).into_response();
    }
    let (answer, done) = oneshot::channel();
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending").into_response();
    if shared.orders.send(Request { order, answer }).await.is_err() {
        return gone();
    }
    match done.await {
        Ok(Ok(done)) => Json(done).into_response(),
        Ok(Err(e @ Refusal::Bad(_))) => (StatusCode::UNPROCESSABLE_ENTITY, e.to_string()).into_response(),
        Ok(Err(e @ Refusal::Failed(_))) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
        Err(_) => gone(),
    }
}

/// Which time is asked about, milliseconds since 1970.
#[derive(serde::Deserialize)]
struct Span {
    since: Option<u64>,
    until: Option<u64>,
}

/// What was seen in that time: a [`crate::history::History`].
async fn history(State(shared): State<Shared>, Query(span): Query<Span>) -> Response {
    let Span { since, until } = span;
    let keep = shared.keep.clone();
    let read = move || keep.history(since.unwrap_or(0), until.unwrap_or(u64::MAX));
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(history)) => {
            let now = shared.now();
            let owners = now.owners.iter().map(|(peer, owners)| Owned { peer: peer.clone(), owners: owners.clone() });
            Json(History { services: now.services(), owners: owners.collect(), ..history }).into_response()
        }
        Ok(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("the history couldn't be read: {e}")).into_response(),
    }
}

/// What can reach what by the ruleset in force: a [`crate::report::Report`].
async fn report(State(shared): State<Shared>) -> Response {
    let now = shared.now();
    match tokio::task::spawn_blocking(move || crate::app::surface::of(&now)).await {
        Ok(report) => Json(report).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("the report couldn't be made: {e}")).into_response(),
    }
}
