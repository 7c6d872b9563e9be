//! A taint that keeps pods off a node until its agent is ready: whoever makes nodes puts it on (a kubelet's
//! `--register-with-taints`, a node group's setting), and the agent takes it off. It never puts one on.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Between two looks: the kubelet may register the node anew.
const AGAIN: Duration = Duration::from_secs(60);
/// After a refusal.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes the taint of this key off this node, as often as it comes, until `stopped`. To be begun once the agent is ready.
///
/// # Errors
/// Never: what can't be done is tried again and logged.
pub async fn run(client: Client, node: String, key: String, mut stopped: watch::Receiver<bool>) -> anyhow::Result<()> {
    let api: Api<Node> = Api::all(client);
    let mut said = String::new();
    loop {
        let done = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            done = take_off(&api, &node, &key) => done,
        };
        let pause = match done {
            Ok(true) => {
                tracing::info!(node, "the taint {key} is off: pods may come");
                AGAIN
            }
            Ok(false) => AGAIN,
            // Somebody else changed the taints meanwhile.
            Err(kube::Error::Api(e)) if matches!(e.code, 409 | 422) => PATIENCE,
            Err(e) => {
                let why = e.to_string();
                if why != said {
                    tracing::warn!("the taint {key} can't be taken off node {node} yet, so no pod comes: {why}");
                    said = why;
                }
                PATIENCE
            }
        };
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            () = sleep(pause) => {}
        }
    }
}

/// Gives whether it was there.
async fn take_off(api: &Api<Node>, node: &str, key: &str) -> kube::Result<bool> {
    let object = api.get(node).await?;
    let taints: Vec<Taint> = object.spec.and_then(|s| s.taints).unwrap_or_default();
    let left: Vec<&Taint> = taints.iter().filter(|t| t.key != key).collect();
    if left.len() == taints.len() {
        return Ok(false);
    }
    // With the version that was read: a taint that somebody adds meanwhile isn't lost.
    let patch = json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "spec": {"taints": left}});
    api.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::Fake;

    const NODES: &str = "/api/v1/nodes";

    #[tokio::test(flavor = "multi_thread")]
    async fn only_its_own_taint_goes_and_a_conflict_is_tried_again() {
        let (fake, client) = Fake::start().await;
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        let key = "bulkhead.dev/agent-not-ready";
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "spec": {"taints": [taint("other"), taint(key)]}});
        fake.put(NODES, node);
        fake.conflict(1);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(client.clone(), "n1".to_owned(), key.to_owned(), stopped));
        let left = || fake.get(NODES, "n1").expect("the node")["spec"]["taints"].clone();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while left().as_array().map(Vec::len) != Some(1) {
            assert!(tokio::time::Instant::now() < deadline, "{}", left());
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(left()[0]["key"], "other");
        assert_eq!(fake.writes().len(), 2, "one was refused");
        stop.send_replace(true);
        task.await.expect("it ends").expect("no error");
        assert!(!take_off(&Api::all(client), "n1", key).await.expect("asked"), "nothing to do");
    }
}
