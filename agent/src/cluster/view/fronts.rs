//! What Services' addresses stand for, and who answers where the cluster itself calls. Pure.

use super::super::services::{self, Front};
use super::claims::Claims;
use super::{Objects, View};
use crate::config::{Backend, Peer, Service as Facade, Who};
use crate::identity::SpiffeId;
use crate::inventory::Place;
use bulkhead_common::maps::{AddrPort, PrefixKey};
use bulkhead_common::{Addr, Class, proto};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The cluster's DNS, by the name of its Service.
const DNS: (&str, &str) = ("kube-system", "kube-dns");
/// The API server, by the name of its Service.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// How many places Services may have at other nodes' addresses. Beyond, only this node's are told apart.
const NODE_PORTS: usize = 16_384;

/// Who answers, for the built-ins.
#[derive(Debug, Default)]
pub(super) struct Answering {
    /// For the cluster's DNS, and at which ports.
    pub(super) dns: BTreeSet<(SpiffeId, u8, u16)>,
    /// To the API server, and at which TCP ports.
    pub(super) called: BTreeSet<(SpiffeId, u16)>,
    /// Whether the API server has an address of this node.
    pub(super) api_server_here: bool,
}

impl View {
    /// Reads the Services. Gives who answers where the cluster needs it.
    pub(super) fn read_services(&mut self, objects: &Objects, claims: &Claims<'_>) -> Answering {
        let class_at = std::mem::take(&mut self.classes);
        let ranges: BTreeSet<PrefixKey> = self.ranges.iter().copied().collect();
        let inside = |a: &Addr| ranges.iter().any(|r| crate::image::masked(a, r.bits) == r.addr);
        let who = |a: &Addr| match (class_at.get(a), claims.first(a)) {
            (Some(c), _) => Backend::Class(*c),
            (None, Some(claim)) => Backend::Identity(Arc::clone(claim.identity)),
            (None, None) if inside(a) => Backend::Class(Class::Unknown),
            (None, None) => Backend::Class(Class::World),
        };
        let nodes: Vec<Addr> = objects.nodes.iter().flat_map(|n| n.addresses.iter().copied()).collect();
        let own: BTreeSet<Addr> = class_at.iter().filter(|(_, c)| **c == Class::Host).map(|(a, _)| *a).collect();
        let services = objects.services.iter().map(|s| &**s);
        let fronts = services::fronts(services, objects.slices.iter().filter_map(|s| Option::as_ref(s)));
        let on_nodes = fronts.iter().filter(|f| f.node_port.is_some()).count();
        let everywhere = on_nodes * nodes.len() <= NODE_PORTS;
        if !everywhere {
            let text = format!(
                "{on_nodes} node ports at {} addresses are too many: only this node's are judged as their Services",
                nodes.len()
            );
            self.warn("Services".to_owned(), text);
        }
        let called: BTreeSet<(&str, &str, u16)> =
            objects.callers.iter().flat_map(|c| &c.called).map(|c| (&*c.namespace, &*c.name, c.port())).collect();
        let mut answering = Answering::default();
        for front in fronts {
            let name = (front.service.0.as_str(), front.service.1.as_str());
            if name == API_SERVER {
                answering.api_server_here |= self.api_server(&front, &own);
                continue;
            }
            let backends: BTreeSet<(Backend, u16)> = front.backends.iter().map(|(a, port)| (who(a), *port)).collect();
            let ids = backends.iter().filter_map(|(backend, port)| match backend {
                Backend::Identity(identity) => Some(identity.ids.iter().map(|id| (id.clone(), *port))),
                Backend::Class(_) => None,
            });
            if name == DNS {
                answering.dns.extend(ids.clone().flatten().map(|(id, port)| (id, front.proto, port)));
            }
            if front.proto == proto::TCP && called.contains(&(name.0, name.1, front.port)) {
                answering.called.extend(ids.flatten());
            }
            let mut places = front.places;
            if let Some(port) = front.node_port {
                let at = nodes.iter().filter(|a| everywhere || own.contains(a));
                places.extend(at.map(|a| AddrPort { addr: *a, port, proto: front.proto, pad: 0 }));
            }
            self.services.push(Facade { title: front.title, places, backends: backends.into_iter().collect() });
        }
        answering
    }

    /// The API server is a class of its own, at its Service's address and at its own; and so is what comes from there,
    /// which is looked up without a port. Where it runs on this node, what comes from it is the node's: it can't be told
    /// from the kubelet's. Gives whether it does.
    fn api_server(&mut self, front: &Front, own: &BTreeSet<Addr>) -> bool {
        let here = front.backends.iter().any(|(addr, _)| own.contains(addr));
        let at = |addr: &Addr, port| AddrPort { addr: *addr, port, proto: proto::TCP, pad: 0 };
        let answers = front.backends.iter().map(|(addr, port)| at(addr, *port));
        let calls = front.backends.iter().filter(|(addr, _)| !own.contains(addr)).map(|(addr, _)| at(addr, 0));
        for place in front.places.iter().copied().chain(answers).chain(calls) {
            self.endpoints.push(Peer { place: Place::Port(place), who: Who::Class(Class::KubeApiserver) });
        }
        here
    }
}
