//! Names of ends as tables show them: printable, and without the trust domain where all share one, which is then said
//! once below the table.

use crate::graph::escape::{named, shortened};
use crate::identity::SCHEME;
use crate::serve::api::printable;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Names of ends as tables show them: printable, and without the trust domain where all share one.
pub(super) struct Names {
    domain: Option<String>,
}

impl Names {
    pub(super) fn of<'a>(ids: impl Iterator<Item = &'a String>) -> Self {
        Self { domain: shared_domain(ids) }
    }

    /// An end, with the address where it is one of the world.
    pub(super) fn end(&self, id: &str, world: Option<IpAddr>) -> String {
        self.named_end(id, world, None)
    }

    /// The same, with the name by which a workload had asked for the address.
    pub(super) fn named_end(&self, id: &str, world: Option<IpAddr>, name: Option<&str>) -> String {
        let id = printable(id.as_bytes());
        match (world, &self.domain) {
            (Some(address), _) if id == "world" && name.is_some() => shortened(&named(address, name), WIDEST),
            (Some(address), _) if id == "world" => format!("{address} (world)"),
            (_, Some(domain)) => id.replace(domain.as_str(), ""),
            (_, None) => id,
        }
    }

    /// The same in a sentence or a rule's name, which may hold several.
    pub(super) fn within(&self, text: &str) -> String {
        let text = printable(text.as_bytes());
        match &self.domain {
            Some(domain) => text.replace(&format!("{domain}/"), "/"),
            None => text,
        }
    }

    /// What to say below the table.
    pub(super) fn note(&self) -> Option<String> {
        self.domain.as_ref().map(|d| format!("IDs that begin with / are in {}.", printable(d.as_bytes())))
    }
}

/// How wide an address with its name may be.
const WIDEST: usize = 60;

/// The trust domain of all IDs, if there is only one: `spiffe://example.org`.
pub(super) fn shared_domain<'a>(ids: impl Iterator<Item = &'a String>) -> Option<String> {
    let mut domains = BTreeSet::new();
    for id in ids.flat_map(|id| id.split('+')) {
        let Some(rest) = id.trim().strip_prefix(SCHEME) else { continue };
        domains.insert(rest.split_once('/')?.0);
    }
    let only = domains.pop_first()?;
    domains.is_empty().then(|| format!("{SCHEME}{only}"))
}
