//! An API server in this process, for an agent that is a process of its own: lists in pages, watches, versions, and any
//! number of objects. It knows neither schemas nor rights.
//!
//! It serves plain HTTP on a loopback port; [`ApiServer::kubeconfig`] is a file that names it. A list says
//! what there is now; a watch goes on from the version of its list. What is patched is stored as it was sent.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::Channel;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Everything of one kind, in whatever namespace: by namespace and name, as JSON.
type Objects = BTreeMap<(String, String), String>;

#[derive(Default)]
struct Held {
    version: u64,
    /// By the path of the cluster-wide list.
    kinds: BTreeMap<String, Objects>,
    /// What happened to each kind, by version: a line of a watch.
    log: BTreeMap<String, Vec<(u64, Bytes)>>,
    /// Who follows which kind.
    followers: Vec<(String, UnboundedSender<Bytes>)>,
    /// Of all lines to all followers.
    bytes: u64,
    /// Kinds that are answered with 403.
    forbidden: Vec<String>,
}

type Shared = Arc<Mutex<Held>>;

/// The server. It ends when this is dropped.
pub struct ApiServer {
    held: Shared,
    address: SocketAddr,
    _runtime: Runtime,
}

impl ApiServer {
    /// Listens.
    pub fn start() -> Self {
        let held = Shared::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-server")
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).expect("a port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new().fallback(answer).with_state(Arc::clone(&held));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { held, address, _runtime: runtime }
    }

    /// Writes a kubeconfig for it into the folder. As every cluster's it names an authority, though nothing here is
    /// encrypted: without one a client looks for the system's, which a guest has none of.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let authority = folder.join("ca.pem");
        let key = rcgen::generate_simple_self_signed([]).expect("a certificate");
        std::fs::write(&authority, key.cert.pem()).expect("a file");
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             clusters: [{{name: here, cluster: {{server: 'http://{}', certificate-authority: {}}}}}]\n\
             contexts: [{{name: here, context: {{cluster: here, user: me, namespace: bulkhead-system}}}}]\n\
             users: [{{name: me, user: {{}}}}]\n",
            self.address,
            authority.display()
        );
        std::fs::write(&path, text).expect("a file");
        path
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object into the list of its kind, such as `/api/v1/pods`, and tells who follows it.
    pub fn put(&self, kind: &str, object: Value) {
        self.held().put(kind, object);
    }

    /// Takes an object out.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        self.held().remove(kind, namespace, name);
    }

    /// The object of that name.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let held = self.held();
        let text = held.kinds.get(kind)?.get(&(namespace.to_owned(), name.to_owned()))?;
        serde_json::from_str(text).ok()
    }

    /// From now on this kind may not be read.
    pub fn forbid(&self, kind: &str) {
        let mut held = self.held();
        held.forbidden.push(kind.to_owned());
        held.followers.retain(|(k, _)| k != kind);
    }

    /// From now on it may.
    pub fn permit(&self, kind: &str) {
        self.held().forbidden.retain(|k| k != kind);
    }

    /// How many bytes all watches together have sent.
    pub fn bytes_watched(&self) -> u64 {
        self.held().bytes
    }
}

impl Held {
    fn put(&mut self, kind: &str, mut object: Value) -> String {
        self.version += 1;
        let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = (field("namespace"), field("name"));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let text = object.to_string();
        let objects = self.kinds.entry(kind.to_owned()).or_default();
        let event = if objects.insert(key, text.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(kind, event, &text);
        text
    }

    fn remove(&mut self, kind: &str, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(text) = self.kinds.get_mut(kind).and_then(|objects| objects.remove(&key)) {
            self.version += 1;
            let mut object: Value = serde_json::from_str(&text).unwrap_or_default();
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.tell(kind, "DELETED", &object.to_string());
        }
    }

    fn tell(&mut self, kind: &str, event: &str, object: &str) {
        let line = Bytes::from(format!("{{\"type\":\"{event}\",\"object\":{object}}}\n"));
        let (mut sent, length) = (0, line.len() as u64);
        self.followers.retain(|(followed, to)| {
            if followed != kind {
                return true;
            }
            sent += length;
            to.send(line.clone()).is_ok()
        });
        self.bytes += sent;
        self.log.entry(kind.to_owned()).or_default().push((self.version, line));
    }
}

fn refusal(code: StatusCode, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": reason, "code": code.as_u16()});
    (code, status.to_string()).into_response()
}

/// The path of the list of a kind, the namespace if the path names one, and the name if it does.
fn parts(path: &str) -> (String, String, Option<String>) {
    let all: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group = if all.first() == Some(&"apis") { 3 } else { 2 };
    let (group, rest) = all.split_at(group.min(all.len()));
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", rest),
    };
    let kind = format!("/{}/{}", group.join("/"), rest.first().copied().unwrap_or_default());
    (kind, namespace.to_owned(), rest.get(1).map(|name| (*name).to_owned()))
}

fn field<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
}

async fn answer(State(shared): State<Shared>, method: Method, uri: Uri, body: Bytes) -> Response {
    let (kind, namespace, name) = parts(uri.path());
    let query = uri.query().unwrap_or_default();
    let mut held = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if held.forbidden.contains(&kind) {
        return refusal(StatusCode::FORBIDDEN, "Forbidden");
    }
    if method == Method::GET {
        return match name {
            Some(name) => match held.kinds.get(&kind).and_then(|all| all.get(&(namespace, name))) {
                Some(text) => text.clone().into_response(),
                None => refusal(StatusCode::NOT_FOUND, "NotFound"),
            },
            None if field(query, "watch") == Some("true") => follow(&mut held, kind, query),
            None => list(&held, &kind, &namespace, query),
        };
    }
    let mut sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    if let (Some(name), Some(meta)) = (name, sent["metadata"].as_object_mut()) {
        meta.insert("name".to_owned(), json!(name));
    }
    if !namespace.is_empty() {
        sent["metadata"]["namespace"] = json!(namespace);
    }
    held.put(&kind, sent).into_response()
}

/// A page of a list: `continue` is how many came before it.
fn list(held: &Held, kind: &str, namespace: &str, query: &str) -> Response {
    let skip: usize = field(query, "continue").and_then(|n| n.parse().ok()).unwrap_or(0);
    let limit: usize = field(query, "limit").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let empty = Objects::new();
    let all = held.kinds.get(kind).unwrap_or(&empty);
    let fitting = all.iter().filter(|((ns, _), _)| namespace.is_empty() || ns == namespace);
    let page: Vec<&String> = fitting.skip(skip).take(limit).map(|(_, text)| text).collect();
    let more = page.len() == limit && skip + page.len() < all.len();
    let next = if more { (skip + page.len()).to_string() } else { String::new() };
    let mut text = format!(
        "{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"{}\",\"continue\":\"{next}\"}},\
         \"items\":[",
        held.version
    );
    for (n, item) in page.into_iter().enumerate() {
        write!(text, "{}{item}", if n == 0 { "" } else { "," }).expect("memory");
    }
    text.push_str("]}");
    text.into_response()
}

fn follow(held: &mut Held, kind: String, query: &str) -> Response {
    let from: u64 = field(query, "resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
    let (to, mut lines) = unbounded_channel::<Bytes>();
    for (_, line) in held.log.get(&kind).into_iter().flatten().filter(|(version, _)| *version > from) {
        held.bytes += line.len() as u64;
        to.send(line.clone()).expect("its other end is here");
    }
    held.followers.push((kind, to));
    let (mut sender, body) = Channel::<Bytes>::new(64);
    tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            if sender.send_data(line).await.is_err() {
                return;
            }
        }
    });
    Response::new(Body::new(body))
}
