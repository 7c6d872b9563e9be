//! A namespace with a bridge in it, to which other namespaces are connected: one link-layer segment, so that
//! broadcast, multicast and hand-made frames get through as well as anything routed.
//!
//! The addresses are the same in every sandbox, since no two of them are connected.

use super::netlink::{Route, index};
use super::netns::Netns;
use anyhow::{Context as _, Result};
use netlink_packet_route::AddressFamily;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

/// The link's name inside a plugged namespace.
const LINK: &str = "eth0";
/// The bridge's name in the switch's own namespace.
const BRIDGE: &str = "br0";

/// The namespace with the bridge.
#[derive(Debug)]
pub struct Switch {
    netns: Netns,
    bridge: u32,
    next: AtomicU8,
}

/// A namespace connected to a switch.
#[derive(Debug)]
pub struct Plug {
    netns: Netns,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Switch {
    /// The prefix of every plug's IPv4 address.
    pub const V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 77, 0, 0), 24);
    /// The prefix of every plug's IPv6 address.
    pub const V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0), 64);

    /// A switch with nothing connected.
    pub fn new() -> Result<Self> {
        let netns = Netns::new().context("can't make a network namespace")?;
        let bridge = netns.run(|| {
            // Nobody has an address here, so nothing is sent from here either.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
            let route = Route::open()?;
            route.add_bridge(BRIDGE)?;
            index(BRIDGE)
        })?;
        Ok(Self { netns, bridge: bridge.context("can't make a bridge")?, next: AtomicU8::new(0) })
    }

    /// The namespace with the bridge.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Gives the switch itself an address pair, as a node has one that is the gateway of its pods.
    pub fn address(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        self.netns.sysctl(&format!("ipv6/conf/{BRIDGE}/disable_ipv6"), "0").context("IPv6 stays off on the bridge")?;
        let added = self.netns.run(|| {
            let route = Route::open()?;
            route.add_address(self.bridge, v4.into(), Self::V4.1)?;
            route.add_address(self.bridge, v6.into(), Self::V6.1)
        })?;
        added.context("can't give the bridge an address")
    }

    /// Connects a new namespace and gives it the next address pair.
    pub fn plug(&self) -> Result<Plug> {
        let n = self.number()?;
        let v4 = Ipv4Addr::from(u32::from(Self::V4.0) | u32::from(n));
        let v6 = Ipv6Addr::from(u128::from(Self::V6.0) | u128::from(n));
        self.plug_as(n, v4, v6)
    }

    /// Connects a new namespace that has addresses of its own, from any prefix: a party of the outside world.
    pub fn plug_at(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Plug> {
        self.plug_as(self.number()?, v4, v6)
    }

    fn number(&self) -> Result<u8> {
        let n = self.next.fetch_add(1, Ordering::Relaxed).checked_add(1).filter(|n| *n < 255);
        n.context("a switch takes 254 namespaces")
    }

    fn plug_as(&self, n: u8, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Plug> {
        let netns = Netns::new().context("can't make a network namespace")?;
        let port = format!("port{n}");
        self.netns
            .run(|| Route::open()?.add_veth(&port, self.bridge, LINK, &netns))?
            .context("can't make a veth pair")?;
        netns
            .run(|| {
                let route = Route::open()?;
                let link = index(LINK)?;
                route.add_address(link, v4.into(), Self::V4.1)?;
                route.add_address(link, v6.into(), Self::V6.1)?;
                route.up(link)?;
                route.add_default(link, AddressFamily::Inet)?;
                route.add_default(link, AddressFamily::Inet6)
            })?
            .context("can't set up the link inside the namespace")?;
        Ok(Plug { netns, v4, v6 })
    }
}

impl Plug {
    /// The name of the link to the switch, inside the namespace.
    pub const LINK: &'static str = LINK;

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Makes the namespace answer for all addresses of a prefix.
    pub fn answer_for(&self, prefix: (Ipv4Addr, u8)) -> Result<()> {
        let added = self.netns.run(|| Route::open()?.add_local(prefix, index("lo")?))?;
        added.with_context(|| format!("can't make {}/{} local", prefix.0, prefix.1))
    }

    /// Sends what goes to a prefix to that neighbour on the switch.
    pub fn reach_by(&self, prefix: (Ipv4Addr, u8), neighbour: Ipv4Addr) -> Result<()> {
        let added = self.netns.run(|| Route::open()?.add_via(prefix, neighbour))?;
        added.with_context(|| format!("can't route {}/{} to {neighbour}", prefix.0, prefix.1))
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }
}
