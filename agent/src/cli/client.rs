//! Asking the running agent: one HTTP request over its control socket.

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

/// How long an answer may take to begin.
const PATIENCE: Duration = Duration::from_secs(15);
/// Why there may be none. The socket is there from the agent's first instruction on.
const BUSY: &str =
    "the agent may be waiting for the API server's lists (its log says so); what was in force stays in force";

/// Runs a question to its end.
pub(super) fn block_on<T>(question: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?.block_on(question)
}

/// Asks for a path with a query, and gives the answer as it begins.
pub(super) async fn ask(socket: &Path, path: &str, query: &[(&str, String)]) -> anyhow::Result<Response<Incoming>> {
    send(socket, Request::get(target(path, query)).body(Full::default())?).await
}

/// Tells something, and reads the whole answer.
pub(super) async fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
    let _deaf = Deaf::new();
    let body = Full::from(serde_json::to_vec(body).context("writing JSON")?);
    read(send(socket, Request::post(path).header("content-type", "application/json").body(body)?).await?).await
}

/// While it lives, an agent that hangs up in the midst of what it is told is an error like any other, which says so,
/// and not the end of this process.
pub(super) struct Deaf;

impl Deaf {
    pub(super) fn new() -> Self {
        hear_pipes(libc::SIG_IGN);
        Self
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        hear_pipes(libc::SIG_DFL);
    }
}

fn hear_pipes(action: libc::sighandler_t) {
    // SAFETY: sets a disposition, not a handler.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

async fn send(socket: &Path, mut request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
    let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(socket, e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("talking to the agent")?;
    // Ends with the answer; whatever goes wrong with it shows there.
    tokio::spawn(connection);
    request.headers_mut().insert("host", HeaderValue::from_static("bulkhead"));
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request));
    let response = answer
        .await
        .map_err(|_| Away(format!("no answer within {} s: {BUSY}", PATIENCE.as_secs())))?
        .context("the agent closed the connection: the control socket is for root only, so ask with sudo")?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let why = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let why = String::from_utf8_lossy(&why);
    // The agent understood, and says in a sentence why not.
    if status == StatusCode::UNPROCESSABLE_ENTITY {
        bail!("{why}");
    }
    bail!("the agent answered {status}: {why}")
}

/// Asks, and reads the whole answer.
pub(super) async fn get<T: DeserializeOwned>(socket: &Path, path: &str, query: &[(&str, String)]) -> anyhow::Result<T> {
    read(ask(socket, path, query).await?).await
}

async fn read<T: DeserializeOwned>(answer: Response<Incoming>) -> anyhow::Result<T> {
    let body = answer.into_body().collect().await.context("reading the answer")?.to_bytes();
    serde_json::from_slice(&body).context("the agent's answer isn't understood: is it of another version?")
}

/// Nobody is there to ask, in a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Away(String);

/// Whether the agent went away, rather than said no.
pub(super) fn hung_up(e: &anyhow::Error) -> bool {
    e.chain().any(|cause| cause.is::<Away>() || cause.is::<hyper::Error>() || cause.is::<io::Error>())
}

fn unreachable(socket: &Path, e: io::Error) -> anyhow::Error {
    let socket = socket.display();
    match e.kind() {
        io::ErrorKind::NotFound => {
            Away(format!("no agent's socket at {socket}: start `bulkhead agent`, or name another with --socket")).into()
        }
        io::ErrorKind::ConnectionRefused => Away(format!(
            "no agent listens at {socket}: start `bulkhead agent`; what it last put in force stays in force"
        ))
        .into(),
        io::ErrorKind::PermissionDenied => anyhow::anyhow!("{socket} is for root only: ask with sudo"),
        _ => anyhow::Error::new(e).context(format!("connecting to {socket}")),
    }
}

fn target(path: &str, query: &[(&str, String)]) -> String {
    let mut target = path.to_owned();
    for (i, (key, value)) in query.iter().enumerate() {
        target.push(if i == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        for b in value.bytes() {
            if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_') {
                target.push(char::from(b));
            } else {
                target.push_str(&format!("%{b:02X}"));
            }
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        let query = [("id", "spiffe://t/a b".to_owned()), ("port", "80".to_owned())];
        assert_eq!(target("/edges", &query), "/edges?id=spiffe%3A%2F%2Ft%2Fa%20b&port=80");
    }
}
