//! Events of denied connections, for those who look with kubectl: off unless the configuration says otherwise, and at most
//! one per pair of identities in ten minutes, over all nodes: the Event's name is made from pair and time, so a second one
//! is refused. Counters, the log and `bulkhead observe` have everything.

use super::summary::place;
use crate::identity::SCHEME;
use crate::serve::api::Decision;
use bulkhead_common::PeerId;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How long a pair isn't told again.
const QUIET: Duration = Duration::from_secs(600);
/// How many pairs are remembered. Beyond, none is told until some are forgotten.
const PAIRS: usize = 4096;
/// How many Events may wait.
pub const QUEUE: usize = 256;

/// Which pairs were told lately.
#[derive(Default)]
pub struct Pairs(HashMap<(PeerId, PeerId), Instant>);

impl Pairs {
    /// Whether this one is to be told now.
    pub fn take(&mut self, source: PeerId, destination: PeerId, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < QUIET;
        if self.0.get(&(source, destination)).is_some_and(recent) {
            return false;
        }
        if self.0.len() >= PAIRS {
            self.0.retain(|_, at| recent(at));
            if self.0.len() >= PAIRS {
                return false;
            }
        }
        self.0.insert((source, destination), now);
        true
    }
}

/// Writes an Event of each until `stopped`.
///
/// # Errors
/// Never: nothing depends on them.
pub async fn run(
    client: Client,
    node: String,
    mut denials: mpsc::Receiver<Arc<Decision>>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        let decision = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            decision = denials.recv() => match decision {
                Some(decision) => decision,
                None => return Ok(()),
            },
        };
        let Some(event) = event(&node, &decision) else { continue };
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let parameters = PostParams::default();
        let written = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            written = api.create(&parameters, &event) => written,
        };
        match written {
            Ok(_) => {}
            // Another node told of it.
            Err(kube::Error::Api(e)) if e.code == 409 => {}
            Err(e) => tracing::warn!("no Event of a denied connection can be written: {e}"),
        }
    }
}

/// In the namespace of whoever was denied, or of whom it wanted to reach; `None` if neither has one.
fn event(node: &str, decision: &Decision) -> Option<Event> {
    let edge = &decision.edge;
    let workload = |end: &&crate::flows::PeerName| end.id.starts_with(SCHEME) && !end.namespace.is_empty();
    let about = [&edge.source, &edge.destination].into_iter().find(workload)?;
    let window = decision.time / u64::try_from(QUIET.as_millis()).unwrap_or(1);
    let pair = place(&format!("{} {} {window}", edge.source.id, edge.destination.id));
    // The usual template names a service account; another names whatever it likes.
    let account = about.id.split_once("/sa/").map(|(_, name)| name).filter(|name| !name.contains('/'));
    let (kind, name) = account.map_or(("Namespace", about.namespace.as_str()), |name| ("ServiceAccount", name));
    let rules = [&decision.egress_rule, &decision.ingress_rule].into_iter().flatten();
    let by: String = rules.map(|rule| format!(", by {rule}")).collect();
    let note = format!(
        "denied: {} to {} on {}/{} ({}{by}); not told again for ten minutes",
        edge.source.id,
        edge.destination.id,
        crate::flows::protocol(edge.protocol),
        edge.port,
        edge.reason,
    );
    Some(Event {
        metadata: ObjectMeta {
            name: Some(format!("bulkhead-denied.{pair:016x}")),
            namespace: Some(about.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        type_: Some("Warning".to_owned()),
        reason: Some("Denied".to_owned()),
        action: Some("Connect".to_owned()),
        note: Some(note.chars().take(1000).collect()),
        reporting_controller: Some("bulkhead.dev/agent".to_owned()),
        reporting_instance: Some(node.chars().take(128).collect()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            namespace: Some(about.namespace.clone()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::Fake;
    use crate::flows::{Edge, PeerName};

    fn decision(from: &str, to: &str, time: u64) -> Decision {
        let name = |id: &str, namespace: &str| PeerName { id: id.to_owned(), namespace: namespace.to_owned() };
        let edge = Edge {
            source: name(from, "shop"),
            destination: name(to, "bank"),
            port: 5432,
            protocol: 6,
            direction: "egress".to_owned(),
            outcome: "denied".to_owned(),
            reason: "no-ingress-rule".to_owned(),
        };
        Decision { time, edge, ..Decision::default() }
    }

    #[test]
    fn a_pair_is_told_once_in_ten_minutes_and_a_scan_is_bounded() {
        let (start, mut pairs) = (Instant::now(), Pairs::default());
        assert!(pairs.take(PeerId(256), PeerId(257), start) && !pairs.take(PeerId(256), PeerId(257), start));
        assert!(pairs.take(PeerId(257), PeerId(256), start), "the other way is another pair");
        let told = (0..10_000).filter(|n| pairs.take(PeerId(256), PeerId(1000 + n), start)).count();
        assert_eq!(told, PAIRS - 2);
        assert!(pairs.take(PeerId(256), PeerId(257), start + QUIET));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_nodes_that_see_the_same_denial_write_one_event() {
        const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";
        let (fake, client) = Fake::start().await;
        let (_stop, stopped) = watch::channel(false);
        for node in ["n1", "n2"] {
            let (tell, told) = mpsc::channel(QUEUE);
            let (web, db) = ("spiffe://t/ns/shop/sa/web", "spiffe://t/ns/bank/sa/db");
            for (from, to) in [(web, db), ("world", "world")] {
                tell.send(Arc::new(decision(from, to, 1_000_000))).await.expect("room");
            }
            drop(tell);
            run(client.clone(), node.to_owned(), told, stopped.clone()).await.expect("no error");
        }
        assert_eq!(fake.writes(), [format!("POST {EVENTS}"), format!("POST {EVENTS}")], "nobody's denial is nowhere");
        let name = event("n1", &decision("spiffe://t/ns/shop/sa/web", "spiffe://t/ns/bank/sa/db", 1_000_000));
        let name = name.and_then(|e| e.metadata.name).expect("a name");
        let written = fake.get(EVENTS, &name).expect("written");
        assert_eq!(
            (&written["regarding"]["kind"], &written["regarding"]["name"]),
            (&"ServiceAccount".into(), &"web".into())
        );
        assert_eq!(written["reportingInstance"], "n1", "the second was refused");
        let note = written["note"].as_str().expect("a note");
        assert!(note.contains("sa/web to spiffe://t/ns/bank/sa/db on tcp/5432 (no-ingress-rule"), "{note}");
    }
}
