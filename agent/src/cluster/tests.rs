//! What the tests of this module share: objects as people write them, and an API server in this process.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use http_body_util::channel::Channel;
use kube::Client;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// An object as people write it.
pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("YAML")
}

/// An API server with lists, watches and versions, and with faults on demand. It knows neither schemas nor rights.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<Held>>,
    news: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Held {
    version: u64,
    /// By collection and name.
    objects: BTreeMap<(String, String), Value>,
    /// Collection and watch event, by version.
    log: Vec<(u64, String, Value)>,
    /// Method and path of every write.
    writes: Vec<String>,
    /// Watches from a version before this are answered with 410.
    compacted: u64,
    /// Watches end after each event.
    cut: bool,
    /// Collections that may not be read.
    forbidden: Vec<String>,
    /// So many writes are answered with 409 although nothing is wrong.
    conflicts: u32,
}

impl Fake {
    /// Listens, and gives a client that knows where.
    pub(crate) async fn start() -> (Self, Client) {
        let fake = Self { state: Arc::default(), news: Arc::new(watch::channel(0).0) };
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new().fallback(answer).with_state(fake.clone());
        // Ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut config = kube::Config::new(format!("http://{address}").parse().expect("a URI"));
        config.default_namespace = "bulkhead-system".to_owned();
        (fake, Client::try_from(config).expect("a client"))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.state.lock().expect("no test panics while it holds this")
    }

    /// Puts an object into a collection, such as `/api/v1/nodes`.
    pub(crate) fn put(&self, collection: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        self.held().put(collection, &name, object);
        self.tell();
    }

    /// Takes an object away.
    pub(crate) fn delete(&self, collection: &str, name: &str) {
        self.held().delete(collection, name);
        self.tell();
    }

    pub(crate) fn get(&self, collection: &str, name: &str) -> Option<Value> {
        self.held().objects.get(&(collection.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn writes(&self) -> Vec<String> {
        self.held().writes.clone()
    }

    /// From now on every watch ends after each event.
    pub(crate) fn cut(&self) {
        self.held().cut = true;
        self.tell();
    }

    /// Forgets what was; whoever watches from then on has to list anew.
    pub(crate) fn compact(&self) {
        let mut held = self.held();
        held.compacted = held.version + 1;
        held.version += 1;
    }

    /// From now on this collection may not be read.
    pub(crate) fn forbid(&self, collection: &str) {
        self.held().forbidden.push(collection.to_owned());
        self.compact();
        self.tell();
    }

    /// And from now on it may again.
    pub(crate) fn permit(&self, collection: &str) {
        self.held().forbidden.retain(|c| c != collection);
    }

    pub(crate) fn conflict(&self, times: u32) {
        self.held().conflicts = times;
    }

    fn tell(&self) {
        self.news.send_modify(|n| *n += 1);
    }
}

impl Held {
    fn put(&mut self, collection: &str, name: &str, mut object: Value) -> Value {
        self.version += 1;
        let key = (collection.to_owned(), name.to_owned());
        let before = self.objects.get(&key);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.log.push((self.version, key.0.clone(), json!({"type": kind, "object": object})));
        self.objects.insert(key, object.clone());
        object
    }

    fn delete(&mut self, collection: &str, name: &str) -> Option<Value> {
        let key = (collection.to_owned(), name.to_owned());
        let mut object = self.objects.remove(&key)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, key.0, json!({"type": "DELETED", "object": object})));
        Some(object)
    }
}

fn refusal(code: StatusCode, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": reason, "code": code.as_u16()});
    (code, Json(status)).into_response()
}

/// What is written over what is there, as RFC 7386 says.
fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

async fn answer(State(fake): State<Fake>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().trim_end_matches("/status").to_owned();
    let query = uri.query().unwrap_or_default().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    let parent = path.strip_suffix(&format!("/{last}")).unwrap_or_default().to_owned();
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    if method == Method::GET {
        if fake.held().forbidden.contains(&path) {
            return refusal(StatusCode::FORBIDDEN, "Forbidden");
        }
        if query.contains("watch=true") {
            return follow(fake, path, &query);
        }
        let held = fake.held();
        if let Some(object) = held.objects.get(&(parent, last.clone())) {
            return Json(object.clone()).into_response();
        }
        // Cluster-wide lists hold what lies in namespaces.
        let of = |collection: &str| collection == path || within(collection, &path);
        let items: Vec<&Value> = held.objects.iter().filter(|((c, _), _)| of(c)).map(|(_, o)| o).collect();
        if items.is_empty() && last.contains("bulkhead-") {
            return refusal(StatusCode::NOT_FOUND, "NotFound");
        }
        let list = json!({"kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": held.version.to_string()}});
        return Json(list).into_response();
    }
    let mut held = fake.held();
    held.writes.push(format!("{method} {}", uri.path()));
    if method == Method::DELETE {
        if held.forbidden.contains(&path) || held.forbidden.contains(&parent) {
            return refusal(StatusCode::FORBIDDEN, "Forbidden");
        }
        // One, or a whole collection.
        let gone = |(c, n): &(String, String)| *c == path || (*c == parent && *n == last);
        let gone: Vec<_> = held.objects.keys().filter(|k| gone(k)).cloned().collect();
        gone.iter().for_each(|(collection, name)| drop(held.delete(collection, name)));
        drop(held);
        fake.tell();
        return Json(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})).into_response();
    }
    if held.conflicts > 0 {
        held.conflicts -= 1;
        return refusal(StatusCode::CONFLICT, "Conflict");
    }
    let (collection, name) = match method {
        Method::POST => (path, sent["metadata"]["name"].as_str().unwrap_or_default().to_owned()),
        _ => (parent, last),
    };
    let there = held.objects.get(&(collection.clone(), name.clone())).cloned();
    if method == Method::POST && there.is_some() {
        return refusal(StatusCode::CONFLICT, "AlreadyExists");
    }
    let wanted = &sent["metadata"]["resourceVersion"];
    if let Some(there) = &there
        && !wanted.is_null()
        && *wanted != there["metadata"]["resourceVersion"]
    {
        return refusal(StatusCode::CONFLICT, "Conflict");
    }
    let object = match (&method, there) {
        (&Method::PATCH, Some(mut there)) => {
            merge(&mut there, &sent);
            there
        }
        _ => sent,
    };
    let stored = held.put(&collection, &name, object);
    drop(held);
    fake.tell();
    Json(stored).into_response()
}

/// Whether this collection of one namespace is part of the cluster-wide one.
fn within(collection: &str, all: &str) -> bool {
    let Some((group, plural)) = all.rsplit_once('/') else { return false };
    collection
        .strip_prefix(&format!("{group}/namespaces/"))
        .is_some_and(|rest| rest.split_once('/').is_some_and(|(_, p)| p == plural))
}

fn follow(fake: Fake, path: String, query: &str) -> Response {
    let mut from: u64 =
        query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")?.parse().ok()).unwrap_or_default();
    let (mut sender, body) = Channel::<Bytes>::new(16);
    tokio::spawn(async move {
        let mut news = fake.news.subscribe();
        loop {
            let (gone, events, cut) = {
                let held = fake.held();
                let events: Vec<(u64, Value)> = held
                    .log
                    .iter()
                    .filter(|(v, c, _)| *v > from && (*c == path || within(c, &path)))
                    .map(|(v, _, e)| (*v, e.clone()))
                    .collect();
                (from < held.compacted, events, held.cut)
            };
            if gone {
                let error = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1",
                    "status": "Failure", "reason": "Expired", "message": "too old", "code": 410}});
                // Whoever listens lists anew, or has gone.
                drop(sender.send_data(Bytes::from(format!("{error}\n"))).await);
                return;
            }
            for (version, event) in events {
                from = version;
                if sender.send_data(Bytes::from(format!("{event}\n"))).await.is_err() || cut {
                    return;
                }
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    });
    Response::new(Body::new(body))
}
