//! Whoever the node masquerades isn't the node: what comes from the node's address without a socket of the node's.
//!
//! The sandbox's switch stands for the node, since the workload's veth pair leads there. A guest whose addresses are known
//! as the node's stands for whoever comes with the node's address, and isn't it.

use bulkhead::datapath::netns_id;
use bulkhead::inventory::{Endpoint, Owner, Place, Posture};
use bulkhead_common::Class;
use bulkhead_common::slots::Binding;
use bulkhead_tests::enforced::widened;
use bulkhead_tests::sandbox::{self, Netns, Plug};
use bulkhead_tests::{Enforced, Estate, NEVER, Process, Reply, SOON, Via, any, at};
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Open to the node, and to whoever it masquerades.
const TO_NODE: u16 = 80;
const TO_GUEST: u16 = 81;
/// From where the guest comes, and where the node listens.
const SHARED: u16 = 7777;

const POLICY: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: p}
spec:
  mode: enforce
  edges:
    - from: [{class: host}]
      to: [{id: spiffe://test/pod}]
      ports: [{port: 80}, {protocol: UDP, port: 80}]
    - from: [{class: snat-ingress}]
      to: [{id: spiffe://test/pod}]
      ports: [{port: 81}, {protocol: UDP, port: 81}]";

struct Ground {
    server: Process,
    guest: Plug,
    _enforced: Enforced,
    estate: Estate,
}

/// Who sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Node,
    Guest,
}

impl Ground {
    fn new(flags: u8) -> Self {
        let estate = Estate::new(&["pod"]);
        let pod = estate.get("pod");
        let switch = estate.sandbox().switch();
        let node = (Ipv4Addr::new(10, 77, 0, 250), Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0xfa));
        switch.address(node.0, node.1).expect("an address pair");
        let number = pod.netns().run(|| netns_id::known_as(switch.netns().as_fd(), Binding::NODE_NETNS));
        assert_eq!(number.expect("a thread").expect("an answer"), Some(Binding::NODE_NETNS));
        let guest = switch.plug().expect("a guest");
        let server = pod.serve(&[TO_NODE, TO_GUEST], Reply::Nothing).expect("a server");
        let mut enforced = Enforced::over(&estate, Posture::Enforce, POLICY);
        let addresses: [IpAddr; 4] = [node.0.into(), node.1.into(), guest.v4().into(), guest.v6().into()];
        let inventory = enforced.inventory();
        let known = addresses.map(|a| Endpoint { place: Place::Addr(widened(a)), owner: Owner::Class(Class::Host) });
        inventory.endpoints.extend(known);
        inventory.cgroups[0].flags = flags;
        enforced.apply(Posture::Enforce, POLICY);
        Self { server, guest, _enforced: enforced, estate }
    }

    fn netns(&self, who: Who) -> &Netns {
        match who {
            Who::Node => self.estate.sandbox().switch().netns(),
            Who::Guest => self.guest.netns(),
        }
    }

    /// Whether something arrives, sent from this port; 0: from any.
    fn arrives(&mut self, who: Who, own: u16, v6: bool, port: u16, via: Via) -> bool {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let nonce = format!("<masqueraded {}>", NEXT.fetch_add(1, Ordering::Relaxed));
        let (bytes, to) = (nonce.as_bytes(), at(self.estate.get("pod"), v6, port));
        let mut sender = Process::spawn(None, Some(self.netns(who)), |turn| {
            let kind = if via == Via::Tcp { Type::STREAM } else { Type::DGRAM };
            let socket = Socket::new(Domain::for_address(to), kind, None)?;
            // What was sent from there before may linger.
            socket.set_reuse_address(true)?;
            turn.doing("binding");
            socket.bind(&any(v6, own).into())?;
            if via == Via::Udp {
                return socket.send_to(bytes, &to.into()).map(drop);
            }
            turn.doing("connecting");
            socket.connect_timeout(&to.into(), NEVER)?;
            socket.send(bytes).map(drop)?;
            // The node is asked for its socket when the packet comes, so it stays until then.
            turn.ready().map(drop)
        })
        .expect("a process");
        // A connection that isn't let in is never ready.
        let connected = via != Via::Udp && sender.wait_ready(SOON).is_ok();
        let arrived = self.server.receives(bytes, NEVER);
        if connected {
            sender.go(&[]).expect("it goes on");
        }
        // What the sender is told differs by protocol; what arrives counts.
        drop(sender.finish(SOON).expect("it ends"));
        arrived
    }

    /// Whether it reaches the port that is open to the node, and that for whoever is masqueraded.
    fn reached(&mut self, who: Who, own: u16, v6: bool, via: Via) -> [bool; 2] {
        [TO_NODE, TO_GUEST].map(|port| self.arrives(who, own, v6, port, via))
    }
}

#[test]
fn the_node_is_told_from_whoever_comes_with_its_address() {
    let mut ground = Ground::new(Binding::KNOWS_NODE);
    for (v6, via) in [false, true].into_iter().flat_map(|v6| Via::ALL.map(|via| (v6, via))) {
        // A socket that isn't connected doesn't show to whom its datagrams go.
        let by_node = if via == Via::Udp { [false, true] } else { [true, false] };
        assert_eq!(ground.reached(Who::Node, 0, v6, via), by_node, "the node, {v6} {via:?}");
        assert_eq!(ground.reached(Who::Guest, 0, v6, via), [false, true], "the guest, {v6} {via:?}");
    }
}

#[test]
fn a_port_on_which_the_node_listens_makes_nobody_the_node() {
    let mut ground = Ground::new(Binding::KNOWS_NODE);
    let mut listeners = Process::spawn(None, Some(ground.netns(Who::Node)), |turn| {
        let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), SHARED);
        let _sockets = [sandbox::listen(everywhere)?, sandbox::bind_udp(everywhere)?];
        turn.ready().map(drop)
    })
    .expect("a process");
    listeners.wait_ready(SOON).expect("they listen");
    for (v6, via) in [false, true].into_iter().flat_map(|v6| Via::ALL.map(|via| (v6, via))) {
        assert_eq!(ground.reached(Who::Guest, SHARED, v6, via), [false, true], "{v6} {via:?}");
    }
}

#[test]
fn where_the_two_cant_be_told_apart_both_are_the_node() {
    let mut ground = Ground::new(0);
    for who in [Who::Node, Who::Guest] {
        assert_eq!(ground.reached(who, 0, false, Via::Tcp), [true, false], "{who:?}");
    }
}
