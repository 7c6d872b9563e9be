//! Service addresses. kube-proxy translates in the node's network namespace, so inside a pod every hook sees the
//! Service's own address: it is judged by who answers there. Pure.

use super::pod::{address, protocol};
use bulkhead_common::Addr;
use bulkhead_common::maps::AddrPort;
use k8s_openapi::api::core::v1::Service as Object;
use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointPort, EndpointSlice};
use std::collections::{BTreeMap, BTreeSet};

/// The label that names a slice's Service.
const OF_SERVICE: &str = "kubernetes.io/service-name";

/// One port of a Service at one family's addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Front {
    /// `namespace/name:port`.
    pub title: String,
    /// Where it is reached.
    pub places: Vec<AddrPort>,
    /// The port of a node's address at which it is reached, too.
    pub node_port: Option<u16>,
    /// The IP protocol.
    pub proto: u8,
    /// Who answers: addresses and ports that are ready. Empty: nobody does.
    pub backends: BTreeSet<(Addr, u16)>,
}

/// What of an EndpointSlice matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    namespace: String,
    service: String,
    /// Name, IP protocol and number.
    ports: Box<[(String, u8, u16)]>,
    /// Those that may answer.
    addresses: Box<[Addr]>,
}

impl Slice {
    /// Takes what matters. `None` if it belongs to no Service.
    pub fn of(object: &EndpointSlice) -> Option<Self> {
        let meta = &object.metadata;
        let service = meta.labels.as_ref()?.get(OF_SERVICE)?.clone();
        let port = |p: &EndpointPort| {
            let number = u16::try_from(p.port?).ok()?;
            Some((p.name.clone().unwrap_or_default(), protocol(p.protocol.as_deref())?, number))
        };
        // `ready` that isn't there means ready; one that is ending and still serves may get connections as well.
        let may_answer =
            |c: Option<&EndpointConditions>| c.is_none_or(|c| c.ready.unwrap_or(true) || c.serving.unwrap_or(false));
        let answering = object.endpoints.iter().filter(|e| may_answer(e.conditions.as_ref()));
        Some(Self {
            namespace: meta.namespace.clone()?,
            service,
            ports: object.ports.iter().flatten().filter_map(port).collect(),
            addresses: answering.flat_map(|e| &e.addresses).filter_map(|a| address(a)).collect(),
        })
    }
}

/// The ports of all Services. Headless ones and names for other hosts have no address of their own.
pub fn fronts<'a>(
    services: impl IntoIterator<Item = &'a Object>,
    slices: impl IntoIterator<Item = &'a Slice>,
) -> Vec<Front> {
    let mut by_service: BTreeMap<(&str, &str), Vec<&Slice>> = BTreeMap::new();
    for slice in slices {
        by_service.entry((&slice.namespace, &slice.service)).or_default().push(slice);
    }
    let mut all = Vec::new();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (&service.metadata.namespace, &service.metadata.name, &service.spec)
        else {
            continue;
        };
        let load_balancer = service.status.iter().filter_map(|s| s.load_balancer.as_ref()?.ingress.as_ref()).flatten();
        let given = spec.cluster_ips.iter().flatten().chain(spec.external_ips.iter().flatten());
        let addresses: BTreeSet<Addr> =
            given.chain(load_balancer.filter_map(|i| i.ip.as_ref())).filter_map(|text| address(text)).collect();
        let slices = by_service.get(&(namespace.as_str(), name.as_str())).map_or(&[][..], Vec::as_slice);
        for port in spec.ports.iter().flatten() {
            let (Some(proto), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port)) else {
                continue;
            };
            for family in [false, true] {
                let node_port = port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
                let places: Vec<AddrPort> = addresses
                    .iter()
                    .filter(|a| a.is_v4() != family)
                    .map(|a| AddrPort { addr: *a, port: number, proto, pad: 0 })
                    .collect();
                if places.is_empty() && node_port.is_none() {
                    continue;
                }
                let backends = backends(slices, port.name.as_deref(), proto).filter(|(a, _)| a.is_v4() != family);
                let title =
                    format!("{namespace}/{name}:{}", port.name.as_deref().map_or(number.to_string(), str::to_owned));
                all.push(Front { title, places, node_port, proto, backends: backends.collect() });
            }
        }
    }
    all.sort();
    all
}

/// Who is ready to answer at the port of that name.
fn backends<'a>(slices: &'a [&Slice], name: Option<&'a str>, proto: u8) -> impl Iterator<Item = (Addr, u16)> + 'a {
    slices.iter().flat_map(move |slice| {
        let port = slice.ports.iter().find(|(n, p, _)| n == name.unwrap_or_default() && *p == proto);
        port.into_iter().flat_map(|(_, _, number)| slice.addresses.iter().map(|a| (*a, *number)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::yaml;

    fn read(services: &[&str], slices: &[&str]) -> Vec<Front> {
        let services: Vec<Object> =
            services.iter().map(|t| serde_json::from_value(yaml(t)).expect("a service")).collect();
        let slice = |t: &&str| Slice::of(&serde_json::from_value(yaml(t)).expect("a slice")).expect("a Service's");
        let slices: Vec<Slice> = slices.iter().map(slice).collect();
        fronts(&services, &slices)
    }

    const SLICE: &str = "
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.4]}";

    #[test]
    fn each_port_has_its_backends() {
        let service = "
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.5, 'fd00::5']
  externalIPs: [192.0.2.9]
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.4}, {hostname: lb.example}]}}";
        let all = read(&[service], &[SLICE]);
        let by = |title: &str, v4: bool| {
            all.iter().find(|f| f.title == title && f.places.iter().all(|p| p.addr.is_v4() == v4)).expect(title)
        };
        let http = by("shop/web:http", true);
        assert_eq!(http.places.len(), 3);
        assert!(http.places.iter().all(|p| (p.port, p.proto) == (80, 6)));
        assert_eq!(http.node_port, Some(30080));
        let at = |last: u8, port| (Addr::v4([10, 0, 0, last]), port);
        assert_eq!(http.backends, BTreeSet::from([at(1, 8080), at(3, 8080), at(4, 8080)]));
        assert_eq!(by("shop/web:dns", true).backends.first(), Some(&at(1, 5353)));
        assert!(by("shop/web:http", false).backends.is_empty(), "the slice is of the other family");
    }

    #[test]
    fn no_address_no_front() {
        let headless = "
metadata: {name: web, namespace: shop}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: http, port: 80}]}";
        let external = "
metadata: {name: out, namespace: shop}
spec: {type: ExternalName, externalName: example.org, ports: [{port: 80}]}";
        assert!(read(&[headless, external], &[SLICE]).is_empty());
    }
}
