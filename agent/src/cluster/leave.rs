//! Whether an agent that was asked to end takes its enforcement along.
//!
//! A mere SIGTERM never does: a restart, a new version or a drained node leave what is in force pinned. It ends only when
//! somebody took Bulkhead off the cluster, which is known from the API server: the DaemonSet that made the agent's pod is
//! gone or going, or its namespace is. No answer, a refusal or any doubt means that it stays.

use super::kept::Kept;
use super::pod::Pod;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use std::time::Duration;

/// The environment variable with the UID of the agent's own pod.
const POD_UID: &str = "POD_UID";
/// How long the API server is asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the agent's own objects.
pub struct Leave {
    client: Client,
    pods: Kept<Option<Pod>>,
    namespaces: Kept<Namespace>,
}

/// What made the agent's pod.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Maker {
    namespace: String,
    name: String,
    uid: String,
}

/// What the API server says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Said {
    /// It doesn't exist.
    Nothing,
    /// There is one of this name.
    There { uid: String, going: bool },
    /// It can't be told.
    Unclear(String),
}

impl Leave {
    pub(super) fn new(client: Client, pods: Kept<Option<Pod>>, namespaces: Kept<Namespace>) -> Self {
        Self { client, pods, namespaces }
    }

    /// Whether Bulkhead is being taken off this cluster. Asks the API server, a few seconds at most.
    pub async fn is_final(&self) -> bool {
        let Some(maker) = std::env::var(POD_UID).ok().and_then(|uid| self.maker(&uid)) else { return false };
        let own = self.namespaces.get("", &maker.namespace);
        let ending = own.is_some_and(|n| n.metadata.deletion_timestamp.is_some());
        let said = if ending { Said::Unclear("its namespace is going".to_owned()) } else { self.ask(&maker).await };
        let last = decide(&maker, ending, &said);
        tracing::info!(last, ending, daemon_set = maker.name, ?said, "asked whether Bulkhead is being taken off");
        last
    }

    fn maker(&self, uid: &str) -> Option<Maker> {
        let pod = self.pods.find(|p| p.as_ref().is_some_and(|p| p.object_uid == uid))?;
        pod.as_ref().as_ref().and_then(maker)
    }

    async fn ask(&self, maker: &Maker) -> Said {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &maker.namespace);
        match tokio::time::timeout(PATIENCE, api.get_opt(&maker.name)).await {
            Ok(Ok(None)) => Said::Nothing,
            Ok(Ok(Some(set))) => {
                Said::There { uid: set.uid().unwrap_or_default(), going: set.metadata.deletion_timestamp.is_some() }
            }
            Ok(Err(e)) => Said::Unclear(e.to_string()),
            Err(_) => Said::Unclear(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }
}

/// The DaemonSet that made a pod.
fn maker(pod: &Pod) -> Option<Maker> {
    let (name, uid) = pod.daemon_set.clone()?;
    Some(Maker { namespace: pod.namespace.clone(), name, uid })
}

/// Another one of the same name is there to stay: its agents take over.
fn decide(maker: &Maker, namespace_ending: bool, said: &Said) -> bool {
    namespace_ending
        || match said {
            Said::Nothing => true,
            Said::There { uid, going } => *going && *uid == maker.uid,
            Said::Unclear(_) => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_that_it_is_over_takes_it_off() {
        let maker = Maker { namespace: "s".to_owned(), name: "agent".to_owned(), uid: "a".to_owned() };
        let there = |uid: &str, going| Said::There { uid: uid.to_owned(), going };
        for (ending, said, last) in [
            (false, Said::Nothing, true),
            (false, there("a", true), true),
            (false, there("a", false), false),
            (false, there("b", false), false),
            (false, there("b", true), false),
            (false, Said::Unclear("Forbidden".to_owned()), false),
            (true, Said::Unclear("Forbidden".to_owned()), true),
        ] {
            assert_eq!(decide(&maker, ending, &said), last, "{ending} {said:?}");
        }
    }

    #[test]
    fn an_agent_that_no_daemon_set_made_stays() {
        let pod = |kind: &str| {
            let text = format!(
                "{{metadata: {{name: p, namespace: s, uid: u, ownerReferences: [{{apiVersion: v, kind: {kind}, \
                 name: agent, uid: a, controller: true}}]}}}}"
            );
            Pod::of(&serde_json::from_value(crate::cluster::tests::yaml(&text)).expect("a pod")).expect("whole")
        };
        assert_eq!(maker(&pod("DaemonSet")).map(|m| (m.namespace, m.uid)), Some(("s".to_owned(), "a".to_owned())));
        assert_eq!(maker(&pod("ReplicaSet")), None);
    }
}
