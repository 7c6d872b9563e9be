//! The check of `cluster`.

use super::super::{BuiltIn, Cluster, low};
use super::{Check, position};
use serde_saphyr::Spanned;

/// The environment variable that a DaemonSet sets from `spec.nodeName`.
const NODE: &str = "NODE_NAME";

impl Check<'_> {
    pub(super) fn cluster(&mut self, given: Spanned<low::Cluster>) -> Option<Cluster> {
        let at = position(&given);
        let low::Cluster {
            node,
            id,
            trust_domain,
            exempt,
            keep_when_deleted,
            enforce_in_ambient_mesh,
            denial_events,
            startup_taint,
            built_ins,
        } = given.value;
        let node = node.map(|n| n.value).or_else(|| std::env::var(NODE).ok()).filter(|n| !n.is_empty());
        let Some(node) = node else {
            let hint = "set `node`, or the variable NODE_NAME from spec.nodeName as deploy/daemonset.yaml does";
            self.fault(at, "this node's name isn't known".to_owned(), hint);
            return None;
        };
        let text = |s: &Option<Spanned<String>>| s.as_ref().map(|s| s.value.clone());
        let made = Cluster::new(&node, text(&id).as_deref(), text(&trust_domain).as_deref());
        let mut cluster = match made {
            Ok(cluster) => cluster,
            Err(e) => {
                let at = id.as_ref().or(trust_domain.as_ref()).map_or(at, position);
                let hint = "for example spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}";
                self.fault(at, format!("`id` can't name pods: {e}"), hint);
                return None;
            }
        };
        if let Some(exempt) = exempt {
            cluster.exempt = exempt.into_iter().collect();
        }
        cluster.keep_when_deleted = keep_when_deleted;
        cluster.enforce_in_ambient_mesh = enforce_in_ambient_mesh;
        cluster.denial_events = denial_events;
        if let Some(key) = startup_taint {
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
            if key.value.is_empty() || key.value.len() > 316 || !key.value.chars().all(fine) {
                let message = format!("`{}` is no taint's key", key.value);
                self.fault(position(&key), message, "such as bulkhead.dev/agent-not-ready");
            }
            cluster.startup_taint = Some(key.value);
        }
        for (name, on) in &built_ins {
            match BuiltIn::ALL.iter().find(|b| b.as_str() == name) {
                Some(b) if !on.value => {
                    cluster.built_ins.remove(b);
                }
                Some(_) => {}
                None => {
                    let known = BuiltIn::ALL.map(BuiltIn::as_str).join(", ");
                    self.fault(position(on), format!("there is no built-in `{name}`"), &format!("they are {known}"));
                }
            }
        }
        Some(cluster)
    }
}
