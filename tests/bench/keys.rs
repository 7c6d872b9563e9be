//! A ruleset and its keys: one client that may connect to some ports of each of many endpoints, and nothing else.
//!
//! Every rule can be met by a connection of that client, so keys can be drawn from all of them. The rules are written
//! and compiled as a user's are.

use anyhow::{Result, ensure};
use bulkhead::identity::Identity;
use bulkhead::image::Image;
use bulkhead::inventory::{AttachPoint, Endpoint, IdentityFacts, Inventory, Owner, Place, Posture, WorkloadCgroup};
use bulkhead::policy::{PolicySet, RuleTable, compile, read};
use bulkhead_common::maps::{Control, PrefixKey};
use bulkhead_common::{Addr, Class, PeerId};
use bulkhead_tests::Workload;
use bulkhead_tests::enforced::{id, widened};
use bulkhead_tests::sandbox::{Cgroup, Switch};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

/// So many endpoints, so many ports of each, one rule for every port of every endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Keys {
    pub(crate) endpoints: u16,
    pub(crate) ports: u16,
    pub(crate) protocol: Protocol,
}

/// What the rules are about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

const CLIENT: PeerId = PeerId::FIRST_IDENTITY;
const SERVER: PeerId = PeerId(CLIENT.0 + 1);
const FIRST_ENDPOINT: u32 = SERVER.0 + 1;

impl Keys {
    /// What the speed bars are set for.
    pub(crate) const fn usual(protocol: Protocol) -> Self {
        Self { endpoints: 1000, ports: 10, protocol }
    }
    /// The fewest rules that are measured.
    pub(crate) const FEW: Self = Self { endpoints: 10, ports: 1, protocol: Protocol::Udp };
    /// The most.
    pub(crate) const MANY: Self = Self { endpoints: 1000, ports: 100, protocol: Protocol::Udp };

    /// All endpoints' addresses.
    pub(crate) const ENDPOINTS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 78, 0, 0), 16);
    const FIRST_PORT: u16 = 2000;
    /// A port that no rule allows.
    pub(crate) const DENIED_PORT: u16 = 9;

    /// The number of rules.
    pub(crate) fn rules(self) -> u32 {
        u32::from(self.endpoints) * u32::from(self.ports)
    }

    /// The ports that rules allow, of every endpoint. No two are neighbours, or the compiler would make one block of
    /// them.
    pub(crate) fn all_ports(self) -> impl Iterator<Item = u16> {
        (0..self.ports).map(Self::port)
    }

    const fn port(number: u16) -> u16 {
        Self::FIRST_PORT + 2 * number
    }

    /// Which of the ports this is.
    pub(crate) const fn number(port: u16) -> u16 {
        (port - Self::FIRST_PORT) / 2
    }

    /// The destination of one rule.
    pub(crate) fn destination(self, rule: u32) -> SocketAddrV4 {
        let (endpoint, port) = (rule / u32::from(self.ports), rule % u32::from(self.ports));
        SocketAddrV4::new(address(endpoint), Self::port(u16::try_from(port).unwrap_or(0)))
    }

    /// One pair and port that no rule allows.
    pub(crate) fn denied(self) -> SocketAddrV4 {
        SocketAddrV4::new(address(0), Self::DENIED_PORT)
    }

    /// The rules as a file.
    fn policies(self) -> String {
        let mut text = String::new();
        let mut ports = String::new();
        for port in self.all_ports() {
            write!(ports, "{{protocol: {}, port: {port}}}, ", self.protocol.as_str()).expect("memory");
        }
        for n in 0..self.endpoints {
            let to = if n == 0 {
                format!("[{{id: {}}}, {{id: {}}}]", name(0), id("server"))
            } else {
                format!("[{{id: {}}}]", name(n))
            };
            write!(
                text,
                "---\napiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {{name: e{n}}}\n\
                 spec: {{mode: enforce, edges: [{{from: [{{id: {}}}], to: {to}, ports: [{ports}]}}]}}\n",
                id("client")
            )
            .expect("memory");
        }
        text
    }

    /// Everything that the kernel's tables hold for these rules.
    pub(crate) fn image(self, attach: &Cgroup, client: &Workload, server: &Workload) -> Result<Image> {
        let mut inventory = Inventory { built_ins: Control::PASS_ALL, ..Inventory::default() };
        inventory.attach_points.push(AttachPoint { id: attach.id(), level: attach.level() });
        for (instance, peer, workload) in [(1, CLIENT, client), (2, SERVER, server)] {
            let cgroup = workload.cgroup();
            inventory.identities.insert(peer, facts(&id(workload.name()))?);
            inventory.cgroups.push(WorkloadCgroup { id: cgroup.id(), level: cgroup.level(), peer, instance, flags: 0 });
            let place = Place::Addr(widened(workload.v4().into()));
            inventory.endpoints.push(Endpoint { place, owner: Owner::Workload { peer, instance } });
        }
        for n in 0..self.endpoints {
            let peer = PeerId(FIRST_ENDPOINT + u32::from(n));
            inventory.identities.insert(peer, facts(&name(n))?);
            let place = Place::Addr(Addr::v4(address(n.into()).octets()));
            inventory.endpoints.push(Endpoint { place, owner: Owner::Workload { peer, instance: 0 } });
        }
        for (addr, bits) in [Switch::V4, Self::ENDPOINTS] {
            let place = Place::Prefix(PrefixKey { bits: 96 + u32::from(bits), addr: widened(IpAddr::V4(addr)) });
            inventory.endpoints.push(Endpoint { place, owner: Owner::Class(Class::Unknown) });
        }
        let (set, findings) = PolicySet::assemble(read("bench.yaml", &self.policies()), &PolicySet::default());
        ensure!(findings.is_empty(), "{findings:?}");
        let image = compile(&set, &inventory, &mut RuleTable::default()).image;
        ensure!(image.rules.len() >= self.rules() as usize, "{} rules, not {}", image.rules.len(), self.rules());
        Ok(image)
    }
}

fn facts(id: &str) -> Result<IdentityFacts> {
    let identity = Identity { namespace: String::new(), ids: [id.parse()?].into() };
    Ok(IdentityFacts { identity, posture: Posture::Enforce, ports: BTreeMap::new() })
}

fn name(n: u16) -> String {
    id(&format!("endpoint-{n}"))
}

fn address(n: u32) -> Ipv4Addr {
    // Neither the prefix's own address nor anything that looks like a broadcast.
    Ipv4Addr::from(u32::from(Keys::ENDPOINTS.0) + (n / 200) * 256 + n % 200 + 1)
}

/// Draws from all rules, the same way again for the same seed.
pub(crate) struct Draw {
    state: u64,
    below: u32,
}

impl Draw {
    /// Draws numbers smaller than `below`.
    pub(crate) fn new(seed: u32, below: u32) -> Self {
        Self { state: u64::from(seed) << 1 | 1, below }
    }
}

impl Iterator for Draw {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        // splitmix64 (Steele, Lea, Flood 2014)
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The upper half times the bound, divided by 2^32.
        u32::try_from(((z >> 32) * u64::from(self.below)) >> 32).ok()
    }
}
