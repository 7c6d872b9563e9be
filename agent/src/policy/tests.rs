//! The compiler against the reference, over random policies, inventories and flows; and the table of cases.

mod cases;
mod checks;
mod damage;
mod files;
mod table;

use super::model::*;
use super::*;
use crate::identity::Identity;
use crate::image::Image;
use crate::inventory::{
    AttachPoint, Endpoint, IdentityFacts, Inventory, Owner, Place, Posture, Service, WorkloadCgroup,
};
use bulkhead_common::maps::{AddrPort, PrefixKey};
use bulkhead_common::verdict::{self, Flow};
use bulkhead_common::{Addr, Class, PeerId, proto};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use std::net::IpAddr;
use std::sync::Arc;

/// A value that stands nowhere in a file.
fn at<T>(value: T) -> At<T> {
    At { value, line: 1, column: 1 }
}

fn addr(a: IpAddr) -> Addr {
    match a {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr(v6.octets()),
    }
}

const ADDRESSES: [&str; 14] = [
    "10.1.2.3",
    "10.1.0.0",
    "10.9.0.1",
    "11.0.0.1",
    "169.254.169.254",
    "224.0.0.5",
    "255.255.255.255",
    "0.0.0.1",
    "::2",
    "2001:db8::1",
    "2001:db8:1::1",
    "fd00:ec2::254",
    "ff02::1",
    "::fffe:0:1",
];

const NETS: [&str; 9] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "0.0.0.0/0",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "::/64",
];

const IDS: [&str; 5] = [
    "spiffe://a/ns/x/sa/one",
    "spiffe://a/ns/x/sa/two",
    "spiffe://a/ns/y/sa/one",
    "spiffe://b/ns/x/sa/one",
    "spiffe://b/z",
];

fn patterns() -> impl Strategy<Value = IdPattern> {
    let globs = vec![
        "spiffe://**",
        "spiffe://*/**",
        "spiffe://a/**",
        "spiffe://a/ns/x/**",
        "spiffe://*/ns/*/sa/one",
        "spiffe://c/*",
    ];
    prop_oneof![select(&IDS[..]), select(globs)].prop_map(|s| s.parse().expect("a pattern"))
}

fn nets() -> impl Strategy<Value = IpNet> {
    select(&NETS[..]).prop_map(|s| s.parse().expect("a prefix"))
}

fn peer() -> impl Strategy<Value = At<Peer>> {
    let class = select(&[Class::World, Class::Host, Class::Unknown, Class::Metadata, Class::Multicast][..]);
    let cidr = (nets(), prop::collection::vec(nets(), 0..2)).prop_map(|(net, mut except)| {
        except.retain(|e| net.contains(e) && *e != net);
        Peer::Cidr { net, except }
    });
    prop_oneof![5 => patterns().prop_map(Peer::Id), 1 => class.prop_map(Peer::Class), 2 => cidr].prop_map(at)
}

fn peers() -> impl Strategy<Value = Vec<At<Peer>>> {
    prop::collection::vec(peer(), 1..3)
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = prop_oneof![
        Just(PortRange::All),
        (1u16..12).prop_map(|p| PortRange::Range(p, p)),
        (1u16..12, 0u16..6).prop_map(|(p, n)| PortRange::Range(p, p + n)),
        Just(PortRange::Range(3, u16::MAX)),
        select(vec!["http", "dns"]).prop_map(|n| PortRange::Named(n.into())),
    ];
    let spec = (select(vec![proto::TCP, proto::UDP]), range).prop_map(|(proto, ports)| at(PortSpec { proto, ports }));
    prop::option::weighted(0.8, prop::collection::vec(spec, 1..3))
}

fn text(words: &impl std::fmt::Debug) -> Arc<str> {
    format!("{words:?}").into()
}

fn rule() -> impl Strategy<Value = At<Rule>> {
    (peers(), ports()).prop_map(|(peers, ports)| {
        let text = text(&(listed(&peers), ports_listed(&ports)));
        at(Rule { peers, ports, text, expires: None })
    })
}

fn edge() -> impl Strategy<Value = At<Edge>> {
    (peers(), peers(), ports()).prop_map(|(from, to, ports)| {
        let text = text(&(listed(&from), listed(&to), ports_listed(&ports)));
        at(Edge { from, to, ports, text, expires: None })
    })
}

fn deny() -> impl Strategy<Value = At<Deny>> {
    let except = (prop::option::of(peers()), prop::option::of(peers()), ports())
        .prop_map(|(from, to, ports)| at(Except { from, to, ports }));
    (peers(), peers(), ports(), prop::collection::vec(except, 0..3)).prop_map(|(from, to, ports, except)| {
        let text = text(&(&from, &to, &ports, &except));
        at(Deny { from, to, ports, except, text, expires: None })
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = || prop::option::of(prop::collection::vec(rule(), 0..4));
    let parts = (
        any::<bool>(),
        select(vec!["", "x"]),
        select(vec!["p", "q", "r"]),
        select(vec![Mode::Audit, Mode::Enforce]),
        prop::collection::vec(patterns().prop_map(at), 1..3),
        rules(),
        rules(),
        prop::collection::vec(edge(), 0..3),
        prop::collection::vec(deny(), 0..3),
    );
    parts.prop_map(|(cluster, namespace, name, mode, selector, ingress, egress, edges, denies)| {
        let kind = if cluster { Kind::ClusterSegmentationPolicy } else { Kind::SegmentationPolicy };
        let namespace = if cluster { "" } else { namespace }.to_owned();
        let name = at(Arc::new(PolicyName { kind, namespace, name: name.to_owned() }));
        let (edges, denies) = if cluster { (edges, denies) } else { Default::default() };
        Policy {
            name,
            file: "test.yaml".into(),
            mode,
            description: None,
            selector,
            ingress,
            egress,
            edges,
            denies,
            sockets: 0,
            expires: None,
        }
    })
}

fn overrides() -> impl Strategy<Value = Overrides> {
    let id = || select(&IDS[..]).prop_map(|i| i.parse::<crate::identity::SpiffeId>().expect("an ID"));
    let scope = prop_oneof![
        2 => id().prop_map(Scope::Workload),
        1 => select(vec!["", "x"]).prop_map(|n| Scope::Namespace(n.to_owned())),
        1 => Just(Scope::Node),
    ];
    let to = select(vec![Lowered::Observe, Lowered::Audit]);
    let lowered = prop::collection::btree_map(select(vec!["", "x"]).prop_map(str::to_owned), to, 0..2);
    let some = (prop::collection::btree_set(id(), 0..2), prop::collection::btree_set(scope, 0..2), lowered)
        .prop_map(|(revoked, open, lowered)| Overrides { revoked, open, lowered });
    prop_oneof![Just(Overrides::default()), some]
}

fn inventory() -> impl Strategy<Value = Inventory> {
    let facts = (
        select(vec!["", "x"]),
        prop::collection::btree_set(select(&IDS[..]), 1..3),
        select(vec![Posture::Observe, Posture::Audit, Posture::Enforce]),
        prop::collection::btree_map(
            select(vec!["http", "dns"]).prop_map(str::to_owned),
            (select(vec![proto::TCP, proto::UDP]), 1u16..12),
            0..3,
        ),
    )
        .prop_map(|(namespace, ids, posture, ports)| IdentityFacts {
            identity: Identity {
                namespace: namespace.to_owned(),
                ids: ids.into_iter().map(|i| i.parse().expect("an ID")).collect(),
            },
            posture,
            ports,
        });
    let identities = prop::collection::vec(facts, 0..5);
    (identities, prop::collection::vec(endpoint(), 0..6)).prop_map(|(identities, mut endpoints)| {
        let identities =
            (PeerId::FIRST_IDENTITY.0..).map(PeerId).zip(identities).collect::<std::collections::BTreeMap<_, _>>();
        endpoints.retain(|e| match e.owner {
            Owner::Workload { peer, .. } => identities.contains_key(&peer),
            Owner::Class(_) => true,
        });
        Inventory { identities, endpoints, ..Inventory::default() }
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let a = select(&ADDRESSES[..]).prop_map(|a| addr(a.parse().expect("an address")));
    let place = prop_oneof![
        a.clone().prop_map(Place::Addr),
        (a, 1u16..4).prop_map(|(addr, port)| Place::Port(AddrPort { addr, port, proto: proto::TCP, pad: 0 })),
        nets().prop_map(|net| Place::Prefix(match net {
            IpNet::V4(n) => PrefixKey { bits: u32::from(n.prefix_len()) + 96, addr: Addr::v4(n.network().octets()) },
            IpNet::V6(n) => PrefixKey { bits: n.prefix_len().into(), addr: Addr(n.network().octets()) },
        })),
    ];
    let owner = prop_oneof![
        (0u32..5).prop_map(|n| Owner::Workload { peer: PeerId(PeerId::FIRST_IDENTITY.0 + n), instance: n + 1 }),
        select(&Class::ALL[..]).prop_map(Owner::Class),
    ];
    (place, owner).prop_map(|(place, owner)| Endpoint { place, owner })
}

/// An end as a test names it: by number, or by address.
#[derive(Clone, Copy, Debug)]
enum Named {
    Peer(PeerId),
    Address(Addr),
}

fn named() -> impl Strategy<Value = Named> {
    prop_oneof![
        4 => (0u32..5).prop_map(|n| Named::Peer(PeerId(PeerId::FIRST_IDENTITY.0 + n))),
        1 => Just(Named::Peer(PeerId::UNKNOWN_WORKLOAD)),
        1 => select(&Class::ALL[..]).prop_map(|c| Named::Peer(c.id())),
        3 => select(&ADDRESSES[..]).prop_map(|a| Named::Address(addr(a.parse().expect("an address")))),
    ]
}

impl Named {
    fn in_image(self, image: &Image, proto: u8, port: u16) -> PeerId {
        match self {
            Self::Peer(p) => p,
            Self::Address(a) => verdict::resolve(image, &a, proto, port).peer,
        }
    }

    fn in_reference(self, inventory: &Inventory, proto: u8, port: u16) -> Option<reference::End<'_>> {
        match self {
            Self::Peer(p) => reference::end(inventory, p),
            Self::Address(a) => reference::at_address(inventory, &a, proto, port),
        }
    }
}

fn flows() -> impl Strategy<Value = Vec<(Named, Named, u8, u16)>> {
    let port = prop_oneof![6 => 0u16..18, 1 => select(vec![u16::MAX, 1024])];
    let proto = prop_oneof![4 => Just(proto::TCP), 2 => Just(proto::UDP), 1 => select(vec![proto::ICMP, proto::SCTP, proto::UDPLITE])];
    prop::collection::vec((named(), named(), proto, port), 24)
}

/// An inventory with everything that there can be in one.
fn settled() -> impl Strategy<Value = Inventory> {
    let peer = || (0u32..5).prop_map(|n| PeerId(PeerId::FIRST_IDENTITY.0 + n));
    let cgroup = (1u64..5, 1u32..4, peer(), 0u32..2).prop_map(|(id, level, peer, instance)| WorkloadCgroup {
        id,
        level,
        peer,
        instance,
        flags: 0,
    });
    let point = (5u64..7, 0u32..2).prop_map(|(id, level)| AttachPoint { id, level });
    let places = prop::collection::btree_set((select(vec![proto::TCP, proto::UDP]), 1u16..4), 1..3);
    let service = (10u32..12, places, prop::collection::btree_set((peer(), 1u16..12), 1..3))
        .prop_map(|(n, ports, backends)| Service { peer: PeerId(PeerId::FIRST_IDENTITY.0 + n), ports, backends });
    let more = (
        prop::collection::btree_set(peer(), 0..3),
        prop::collection::vec(cgroup, 0..4),
        prop::collection::vec(point, 0..2),
        prop::collection::vec(service, 0..3),
        0u32..4,
    );
    (inventory(), more).prop_map(|(inventory, (elsewhere, cgroups, attach_points, services, built_ins))| Inventory {
        elsewhere,
        cgroups,
        attach_points,
        services,
        built_ins,
        ..inventory
    })
}

/// At least this many; more by the environment's PROPTEST_CASES.
fn cases(least: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.max(least), max_shrink_iters: 20_000, ..config }
}

proptest! {
    #![proptest_config(cases(2000))]

    /// The one test that holds compiler, verdict and meaning together.
    #[test]
    fn the_tables_say_what_the_policies_mean(
        policies in prop::collection::vec(policy(), 0..4), mut inventory in inventory(), flows in flows(),
        overrides in overrides(), elsewhere in prop::collection::btree_set(0u32..5, 0..4),
    ) {
        let elsewhere = elsewhere.into_iter().map(|n| PeerId(PeerId::FIRST_IDENTITY.0 + n));
        inventory.elsewhere = elsewhere.filter(|peer| inventory.identities.contains_key(peer)).collect();
        let set = policies.into_iter().collect::<PolicySet>().under(overrides);
        let mut table = RuleTable::default();
        let image = compile(&set, &inventory, &mut table).image;
        for (from, to, proto, port) in flows {
            let (Some(src), Some(dst)) = (from.in_reference(&inventory, proto, 0), to.in_reference(&inventory, proto, port))
            else { continue };
            let expected = reference::judge(&set, &inventory, &reference::Connection { from: src, to: dst, proto, port });
            let flow = Flow { src: from.in_image(&image, proto, 0), dst: to.in_image(&image, proto, port), proto, port };
            // Between others, nobody asks here.
            let ends = [flow.src, flow.dst];
            let mine = |peer: &PeerId| match peer.class() {
                Some(class) => matches!(class, Class::Unknown | Class::Host),
                None => !peer.is_cidr() && !inventory.elsewhere.contains(peer),
            };
            if !inventory.elsewhere.is_empty() && !ends.iter().any(mine) {
                continue;
            }
            let got = verdict::judge(&image, &flow);
            let sides = expected.egress.bits() | expected.ingress.bits() << 2;
            prop_assert_eq!(got.sides.0, sides, "{:?}\n{:?}\n{:#?}", flow, got, expected);
            prop_assert_eq!(got.reason, expected.reason, "{:?}", flow);
            prop_assert_eq!(got.outcome(), expected.outcome);
            for (number, side) in [(got.egress_rule, &expected.egress), (got.ingress_rule, &expected.ingress)] {
                prop_assert_eq!(table.rule(number), side.named_rule(), "{:?}\n{:#?}", flow, expected);
            }
        }
    }
    /// A half that is taken over from what was compiled before is what would have come of it anew.
    #[test]
    fn what_is_taken_over_is_what_would_be_compiled(
        policies in [prop::collection::vec(policy(), 0..4), prop::collection::vec(policy(), 0..4)],
        overrides in [overrides(), overrides()], inventories in [settled(), settled()], differs in any::<[bool; 8]>(),
    ) {
        let [set, other] = [0, 1].map(|n| policies[n].iter().cloned().collect::<PolicySet>().under(overrides[n].clone()));
        let [was, other_inventory] = inventories;
        let one = |n: usize| if differs[n] { &other_inventory } else { &was };
        let is = Inventory {
            identities: one(0).identities.clone(),
            elsewhere: one(1).elsewhere.clone(),
            cgroups: one(2).cgroups.clone(),
            attach_points: one(3).attach_points.clone(),
            endpoints: one(4).endpoints.clone(),
            services: one(5).services.clone(),
            built_ins: one(6).built_ins,
        };
        let next = if differs[7] { &other } else { &set };

        let mut table = Arc::new(RuleTable::default());
        let Compiled { image, warnings } = compile_after(None, &set, &was, &mut table);
        let mut anew = RuleTable::clone(&table);
        let former = Former { set: &set, inventory: &was, image: &image, warnings: &warnings };
        let got = compile_after(Some(former), next, &is, &mut table);
        let expected = compile(next, &is, &mut anew);
        prop_assert_eq!(got.image, expected.image);
        prop_assert_eq!(got.warnings, expected.warnings);
    }
}
