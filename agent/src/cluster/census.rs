//! Pods and namespaces as `kubectl get -o json` writes them, or the API server gives them: who there is, for an import.
//! Pure.

use super::pod::{Pod, protocol};
use crate::config::Template;
use crate::import::{self, Estate, Labels};
use crate::policy::parse::split;
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Objects that tell who there is.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// The pods.
    pub pods: Vec<PodObject>,
    /// The namespaces, for their labels.
    pub namespaces: Vec<Namespace>,
    /// Slices, of which the API server's matter.
    pub slices: Vec<EndpointSlice>,
}

impl Census {
    /// Adds the objects of a file. Kinds that don't matter are left out.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        if text.trim_start().starts_with('{') {
            let value = serde_json::from_str(text).map_err(|e| format!("{}:{}: {e}", e.line(), e.column()))?;
            return self.object(value, "");
        }
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_nodes: 50_000_000, max_events: 100_000_000, max_total_scalar_bytes: 1 << 30 },
            strict_booleans: true,
        };
        for (before, part) in split(text) {
            let value = serde_saphyr::from_str_with_options(&part, options.clone()).map_err(|e| {
                let line = e.location().map_or(0, |l| l.line()) + u64::from(before);
                format!("{line}: {}", e.without_snippet().to_string().lines().next().unwrap_or_default())
            })?;
            self.object(value, "")?;
        }
        Ok(())
    }

    /// The items of a list have no kind of their own where the API server itself wrote it.
    fn object(&mut self, mut value: Value, of: &str) -> Result<(), String> {
        let kind = value["kind"].as_str().unwrap_or(of).to_owned();
        if let Some(inner) = kind.strip_suffix("List") {
            let Value::Array(items) = value["items"].take() else { return Err(format!("a {kind} without items")) };
            return items.into_iter().try_for_each(|item| self.object(item, inner));
        }
        match kind.as_str() {
            "Pod" => self.pods.push(typed(&kind, value)?),
            "Namespace" => self.namespaces.push(typed(&kind, value)?),
            "EndpointSlice" => self.slices.push(typed(&kind, value)?),
            "" => return Err("an object without a kind".to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// Who there is.
    ///
    /// # Errors
    /// When a pod can't have an ID, or its namespace isn't there.
    pub fn estate(&self, template: Template) -> Result<Estate, String> {
        let labels = |n: &Namespace| {
            let labels = n.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
            Some((n.metadata.name.clone()?, labels))
        };
        let namespaces: BTreeMap<String, Labels> = self.namespaces.iter().filter_map(labels).collect();
        let mut pods = Vec::new();
        for object in &self.pods {
            let title = || object.metadata.name.clone().unwrap_or_default();
            let pod = Pod::of(object).ok_or_else(|| format!("a pod {} without name or UID", title()))?;
            if pod.over {
                continue;
            }
            pods.push(import::Pod {
                id: template.id(pod.filling()).map_err(|e| format!("pod {}: {e}", pod.title()))?,
                labels: object.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
                addresses: pod.addresses.iter().map(crate::config::narrow).collect(),
                node_addresses: node_addresses(object),
                host_network: pod.host_network,
                ports: ports(object),
                namespace: pod.namespace,
                name: pod.name,
            });
        }
        let estate = Estate::new(template, pods, namespaces).map_err(|e| e.to_string())?;
        Ok(estate.with_api_servers(self.api_servers()))
    }

    fn api_servers(&self) -> Vec<IpAddr> {
        let its = |s: &&EndpointSlice| {
            let of = s.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
            s.metadata.namespace.as_deref() == Some("default") && of.is_some_and(|name| name == "kubernetes")
        };
        let addresses = self.slices.iter().filter(its).flat_map(|s| &s.endpoints).flat_map(|e| &e.addresses);
        addresses.filter_map(|a| a.parse().ok()).collect()
    }
}

fn typed<T: DeserializeOwned>(kind: &str, value: Value) -> Result<T, String> {
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    serde_json::from_value(value).map_err(|e| format!("{kind} {name}: {e}"))
}

fn node_addresses(object: &PodObject) -> Vec<IpAddr> {
    let status = object.status.iter();
    let (one, all) = (status.clone().filter_map(|s| s.host_ip.as_ref()), status.filter_map(|s| s.host_ips.as_ref()));
    let all = all.flatten().map(|h| &h.ip);
    one.chain(all).filter_map(|a| a.parse().ok()).collect::<BTreeSet<IpAddr>>().into_iter().collect()
}

/// What the names of ports mean; of a name that means two things, both.
fn ports(object: &PodObject) -> BTreeMap<String, BTreeSet<(u8, u16)>> {
    let mut all: BTreeMap<String, BTreeSet<(u8, u16)>> = BTreeMap::new();
    let spec = object.spec.iter();
    for c in spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten())) {
        for p in c.ports.iter().flatten() {
            if let (Some(name), Some(proto), Ok(port)) =
                (&p.name, protocol(p.protocol.as_deref()), u16::try_from(p.container_port))
            {
                all.entry(name.clone()).or_default().insert((proto, port));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {stage: prod}}}
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}}
- apiVersion: v1
  kind: Pod
  metadata: {name: web-1, namespace: shop, uid: a, labels: {app: web}}
  spec: {serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}
  status: {hostIP: 192.0.2.1, podIPs: [{ip: 10.0.0.1}]}
- {apiVersion: v1, kind: Pod, metadata: {name: job-1, namespace: shop, uid: b}, status: {phase: Succeeded}}
";

    fn template() -> Template {
        Template::new("spiffe://t/{namespace}/{serviceAccount}", "t").expect("a template")
    }

    #[test]
    fn reads_what_kubectl_writes() {
        let mut census = Census::default();
        census.add(TEXT).expect("read");
        assert_eq!((census.pods.len(), census.namespaces.len()), (2, 1));
        census.estate(template()).expect("an estate");
        let mut json = Census::default();
        json.add(r#"{"kind": "PodList", "items": [{"metadata": {"name": "a", "namespace": "n", "uid": "u"}}]}"#)
            .expect("read");
        assert_eq!(json.pods.len(), 1);
        let said = json.estate(template()).expect_err("no namespace");
        assert!(said.contains("namespace n of pod n/a isn't among the objects"), "{said}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let said = |text: &str| Census::default().add(text).expect_err("not read");
        assert!(said("kind: Pod\nmetadata: {name: x}\nspec: {containers: 7}\n").starts_with("Pod x: "));
        assert!(said("kind: List\n").contains("without items"));
        assert!(said("kind: X\n---\nb: [").starts_with('3'), "{}", said("kind: X\n---\nb: ["));
        assert!(said("a: 1\n").contains("without a kind"));
    }
}
