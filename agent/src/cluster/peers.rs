//! What the agents say of their nodes' pods, each object read once. Pure.
//!
//! There may be tens of thousands of pods, of far fewer identities: those are kept once, and shared. A node's addresses lie
//! side by side.

use super::crd::NodeEndpoints;
use super::pod;
use crate::identity::{Identity, SpiffeId};
use crate::policy::model::protocol_number;
use bulkhead_common::Addr;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Named ports: name to (IP protocol, port).
pub type Ports = BTreeMap<String, (u8, u16)>;

/// What is said of one node's pods.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePeers {
    /// The node.
    pub node: Box<str>,
    /// Whose agent says it.
    pub published_by: Box<str>,
    pods: Box<[One]>,
    /// All its pods' addresses, one after the other.
    addresses: Box<[Addr]>,
    /// What of it can't be taken, a line each.
    pub faults: Box<[String]>,
}

impl NodePeers {
    /// Whether that node's own agent says it.
    pub fn is_its_own(&self) -> bool {
        self.node == self.published_by
    }

    /// Its pods.
    pub fn pods(&self) -> impl Iterator<Item = PeerPod<'_>> {
        let starts = std::iter::once(0).chain(self.pods.iter().map(|one| one.end));
        self.pods.iter().zip(starts).map(|(one, start)| PeerPod {
            identity: &one.identity,
            ports: &one.ports,
            addresses: &self.addresses[start..one.end],
        })
    }

    /// How many addresses they have together.
    pub fn addresses(&self) -> usize {
        self.addresses.len()
    }
}

/// What is kept of a pod by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
struct One {
    identity: Arc<Identity>,
    ports: Arc<Ports>,
    /// Where its addresses end among all of them. They begin where those of the one before end.
    end: usize,
}

/// A pod of another node.
#[derive(Clone, Copy, Debug)]
pub struct PeerPod<'a> {
    /// Who it is.
    pub identity: &'a Arc<Identity>,
    /// Its named ports.
    pub ports: &'a Ports,
    /// Its addresses.
    pub addresses: &'a [Addr],
}

/// Values that are kept once.
#[derive(Default)]
pub struct Reader {
    identities: Shared<Identity>,
    ports: Shared<Ports>,
}

impl Reader {
    /// Reads an object.
    pub fn read(&mut self, object: &NodeEndpoints) -> NodePeers {
        let node = object.metadata.name.as_deref().unwrap_or_default();
        let (mut pods, mut addresses, mut faults) = (Vec::new(), Vec::new(), Vec::new());
        for w in &object.spec.workloads {
            let ids: Result<BTreeSet<SpiffeId>, _> = w.ids.iter().map(|id| id.parse()).collect();
            let ids = match ids {
                Ok(ids) if !ids.is_empty() => ids,
                Ok(_) => continue,
                Err(e) => {
                    faults.push(format!("node {node} says of pod {}: {e}", w.uid));
                    continue;
                }
            };
            for text in &w.addresses {
                match pod::address(text) {
                    Some(a) => addresses.push(a),
                    None => faults.push(format!("node {node} says of pod {}: `{text}` isn't an address", w.uid)),
                }
            }
            let named = w.ports.iter().filter_map(|(name, text)| Some((name.clone(), read_port(text)?))).collect();
            pods.push(One {
                identity: self.identities.one(Identity { namespace: w.namespace.clone(), ids }),
                ports: self.ports.one(named),
                end: addresses.len(),
            });
        }
        let published_by = object.spec.published_by.as_str().into();
        NodePeers {
            node: node.into(),
            published_by,
            pods: pods.into(),
            addresses: addresses.into(),
            faults: faults.into(),
        }
    }
}

/// A port as agents tell each other: `TCP/8080`.
fn read_port(text: &str) -> Option<(u8, u16)> {
    let (name, port) = text.split_once('/')?;
    Some((protocol_number(name)?, port.parse().ok()?))
}

/// Equal values as one.
struct Shared<T> {
    known: HashSet<Arc<T>>,
    /// With so many it is looked which are nobody's any more.
    sweep_at: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: 1024 }
    }
}

impl<T: Eq + std::hash::Hash> Shared<T> {
    fn one(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|one| Arc::strong_count(one) > 1);
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        let one = Arc::new(value);
        self.known.insert(Arc::clone(&one));
        one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut Reader, workloads: &str) -> NodePeers {
        let text = format!(
            "{{apiVersion: bulkhead.dev/v1alpha1, kind: NodeEndpoints, metadata: {{name: n2}}, \
             spec: {{publishedBy: n2, workloads: [{workloads}]}}}}"
        );
        reader.read(&serde_json::from_value(crate::cluster::tests::yaml(&text)).expect("well-formed"))
    }

    #[test]
    fn what_cannot_be_read_is_told_and_the_rest_counts() {
        let all = read(
            &mut Reader::default(),
            "{uid: a, namespace: s, ids: ['spiffe://t/a'], addresses: [10.0.0.1, nonsense], ports: {http: TCP/80, x: '1'}}, \
             {uid: b, namespace: s, ids: [bad], addresses: [10.0.0.2]}, {uid: c, namespace: s, ids: [], addresses: []}",
        );
        let pods: Vec<PeerPod<'_>> = all.pods().collect();
        assert_eq!(pods.len(), 1);
        assert_eq!((pods[0].addresses.len(), pods[0].ports["http"]), (1, (6, 80)));
        assert_eq!(pods[0].ports.len(), 1);
        let faults = all.faults.join("\n");
        assert!(faults.contains("n2 says of pod b") && faults.contains("`nonsense` isn't an address"), "{faults}");
    }

    #[test]
    fn one_identity_is_kept_once() {
        let mut reader = Reader::default();
        let pod = "{uid: a, namespace: s, ids: ['spiffe://t/a'], addresses: [10.0.0.1]}";
        let (one, two) = (read(&mut reader, pod), read(&mut reader, pod));
        let identity = |all: &NodePeers| all.pods().next().map(|pod| Arc::as_ptr(pod.identity));
        assert_eq!(identity(&one), identity(&two));
        assert_eq!(one, two);
    }

    #[test]
    fn each_pod_has_its_own_addresses() {
        let all = read(
            &mut Reader::default(),
            "{uid: a, namespace: s, ids: ['spiffe://t/a'], addresses: [10.0.0.1, 'fd00::1']}, \
             {uid: none, namespace: s, ids: ['spiffe://t/b'], addresses: []}, \
             {uid: bad, namespace: s, ids: [bad], addresses: [10.0.0.8]}, \
             {uid: c, namespace: s, ids: ['spiffe://t/c'], addresses: [10.0.0.2]}",
        );
        let address = |text: &str| pod::address(text).expect("an address");
        let pods: Vec<_> = all.pods().map(|pod| (pod.identity.to_string(), pod.addresses.to_vec())).collect();
        let (a, c) = (vec![address("10.0.0.1"), address("fd00::1")], vec![address("10.0.0.2")]);
        let id = |name: &str| format!("spiffe://t/{name}");
        assert_eq!(pods, [(id("a"), a), (id("b"), Vec::new()), (id("c"), c)]);
        assert_eq!(all.addresses(), 3);
    }
}
