//! Who there is on a cluster and which policies exist, as its API server has them.
//!
//! The same way as on a node: the objects come to a view, the view to an inventory. What is built in for single nodes (the
//! kubelet's probes, the API server) isn't among it, since it is made from each node's own pods.

use super::files::Present;
use crate::cli::fleet::Fleet;
use crate::cluster::crd::{NodeEndpoints, POLICIES};
use crate::cluster::node::Node;
use crate::cluster::peers::Reader;
use crate::cluster::sandboxes::Given;
use crate::cluster::services::Slice;
use crate::cluster::view::{Document, Here, Objects, view};
use crate::config::{self, Cluster};
use crate::policy::{self, Overrides, PolicySet};
use crate::sources::assemble::assemble;
use crate::sources::hierarchy::Scan;
use crate::sources::roster::Roster;
use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::DynamicObject;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Asks the API server. Takes the right to list these kinds.
pub(super) fn present(fleet: &Fleet) -> anyhow::Result<Present> {
    let mut reader = Reader::default();
    let mut policies = Vec::new();
    for kind in POLICIES {
        let all = fleet.list::<DynamicObject>(kind.resource(), kind.plural)?;
        policies.extend(all.iter().map(|o| Arc::new(Document::of(o))));
    }
    let objects = Objects {
        peers: fleet.list::<NodeEndpoints>((), "nodeendpoints")?.iter().map(|e| Arc::new(reader.read(e))).collect(),
        namespaces: fleet.list::<Namespace>((), "namespaces")?.into_iter().map(Arc::new).collect(),
        services: fleet.list::<Service>((), "services")?.into_iter().map(Arc::new).collect(),
        slices: fleet.list::<EndpointSlice>((), "endpointslices")?.iter().map(|s| Arc::new(Slice::of(s))).collect(),
        nodes: fleet.list::<NodeObject>((), "nodes")?.iter().map(|n| Arc::new(Node::of(n))).collect(),
        policies,
        ..Objects::default()
    };
    of(&objects)
}

/// What these objects come to.
fn of(objects: &Objects) -> anyhow::Result<Present> {
    let base = config::parse("", "posture: observe\n").map_err(|_| anyhow::anyhow!("an empty configuration"))?;
    let settings = Cluster::new("", None, None).context("the usual template")?;
    let (given, postures) = (Given::new(), BTreeMap::new());
    let mut view = view(&settings, objects, &base, Here { pods_at: &[], given: &given, postures: &postures });
    let mut config = base.clone();
    view.over(&mut config);
    let known = assemble("", &config, &Scan::default(), &BTreeSet::new(), &mut Roster::new(0))?;
    let documents = view.texts.iter().flat_map(|(file, text)| policy::read(file, text));
    let (policies, findings) = PolicySet::assemble(documents, &PolicySet::default());
    for finding in findings.iter().filter(|f| f.is_error()) {
        eprintln!("warning: {finding}");
    }
    let policies = policies.under(Overrides { lowered: view.lowered.clone(), ..Overrides::default() });
    let texts = view.texts.iter().map(|(file, text)| (file.to_string(), text.to_string())).collect();
    Ok(Present { inventory: known.inventory, policies, texts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::yaml;
    use crate::inventory::Posture;

    fn object<K: serde::de::DeserializeOwned>(text: &str) -> K {
        serde_json::from_value(yaml(text)).expect("well-formed")
    }

    #[test]
    fn a_cluster_has_its_pods_postures_and_policies() {
        let endpoints: NodeEndpoints = object(
            "{apiVersion: bulkhead.dev/v1alpha1, kind: NodeEndpoints, metadata: {name: n1}, spec: {publishedBy: n1,
              workloads: [{uid: a, namespace: shop, ids: ['spiffe://t/ns/shop/sa/web'], addresses: [10.0.0.1],
                ports: {http: TCP/8080}}]}}",
        );
        let good = "{apiVersion: bulkhead.dev/v1alpha1, kind: SegmentationPolicy, metadata: {name: p, namespace: shop},
            spec: {mode: audit, selector: {ids: ['spiffe://t/ns/shop/sa/web']}, ingress: {rules: []}}}";
        let objects = Objects {
            peers: vec![Arc::new(Reader::default().read(&endpoints))],
            namespaces: vec![Arc::new(object("{metadata: {name: shop, labels: {bulkhead.dev/posture: enforce}}}"))],
            policies: [good, &good.replace("mode: audit", "mode: x").replace("name: p", "name: q")]
                .map(|text| Arc::new(Document::of(&object(text))))
                .into(),
            ..Objects::default()
        };
        let present = of(&objects).expect("an inventory");
        let [facts] = &present.inventory.identities.values().collect::<Vec<_>>()[..] else { panic!("one") };
        assert_eq!((facts.posture, facts.ports["http"]), (Posture::Enforce, (6, 8080)));
        assert_eq!(facts.identity.to_string(), "spiffe://t/ns/shop/sa/web");
        assert!(present.policies.iter().any(|p| p.name.name == "p"));
        assert_eq!(present.texts.len(), 2);
    }
}
