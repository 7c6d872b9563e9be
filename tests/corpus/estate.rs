//! An estate: who there is, what truly depends on what, what was seen while learning, and what happens afterwards.
//!
//! docs/estate-format.md describes the folder that one is read from; what is written there is what stands here.

use anyhow::{Context, Result, bail};
use bulkhead::flows::PeerName;
use bulkhead::history::{History, Link};
use bulkhead::identity::{Identity, SpiffeId};
use bulkhead::inventory::{IdentityFacts, Inventory, Posture};
use bulkhead::policy::model::protocol_number;
use bulkhead_common::{Class, PeerId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The description, as its file has it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    workloads: Vec<Workload>,
    dependencies: Vec<Dependency>,
}

/// One identity.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workload {
    /// Its SPIFFE IDs.
    pub(crate) ids: BTreeSet<SpiffeId>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
}

/// Something that must work.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dependency {
    /// Who opens the connection: one of the SPIFFE IDs of a workload, or a class.
    pub(crate) from: String,
    /// Who is connected to.
    pub(crate) to: String,
    /// TCP, UDP, SCTP, UDPLite or ICMP.
    #[serde(default = "tcp", skip_serializing_if = "is_tcp")]
    pub(crate) protocol: String,
    /// The destination's port; 0 for ICMP.
    #[serde(default)]
    pub(crate) port: u16,
}

fn tcp() -> String {
    "TCP".to_owned()
}

fn is_tcp(text: &str) -> bool {
    text == "TCP"
}

impl std::fmt::Display for Dependency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, to, protocol, port } = self;
        write!(f, "{from} to {to} on {protocol}")?;
        if *port > 0 { write!(f, "/{port}") } else { Ok(()) }
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Estate {
    pub(crate) name: String,
    pub(crate) workloads: Vec<Workload>,
    /// The truth.
    pub(crate) dependencies: BTreeSet<Dependency>,
    /// What was seen while learning.
    pub(crate) seen: History,
    /// What happens outside that window.
    pub(crate) outside: History,
}

impl Estate {
    /// Reads one from its folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("estate.yaml");
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        let Described { name, workloads, dependencies } =
            describe(&text).with_context(|| file.display().to_string())?;
        let history = |name: &str| -> Result<Option<History>> {
            let file = folder.join(name);
            match fs::read_to_string(&file) {
                Ok(text) => {
                    let read = serde_json::from_str(&text);
                    read.map(Some).with_context(|| format!("{} isn't a history", file.display()))
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e).with_context(|| format!("can't read {}", file.display())),
            }
        };
        let Some(seen) = history("history.json")? else {
            bail!("{} has no history.json: docs/estate-format.md says what belongs there", folder.display());
        };
        let outside = history("outside.json")?.unwrap_or_default();
        Ok(Self { name, workloads, dependencies: dependencies.into_iter().collect(), seen, outside })
    }

    /// Writes it in the form in which [`Estate::read`] takes it.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        let described = Described {
            name: self.name.clone(),
            workloads: self.workloads.clone(),
            dependencies: self.dependencies.iter().cloned().collect(),
        };
        for (name, text) in [
            // JSON is YAML too.
            ("estate.yaml", serde_json::to_string_pretty(&described)?),
            ("history.json", serde_json::to_string(&self.seen)?),
            ("outside.json", serde_json::to_string(&self.outside)?),
        ] {
            fs::write(folder.join(name), text).with_context(|| format!("can't write {name}"))?;
        }
        Ok(())
    }

    /// Everybody, under this posture.
    pub(crate) fn inventory(&self, posture: Posture) -> Inventory {
        let numbers = (PeerId::FIRST_IDENTITY.0..).map(PeerId);
        let facts = |w: &Workload| IdentityFacts { identity: w.identity(), posture, ports: BTreeMap::new() };
        let identities = numbers.zip(self.workloads.iter().map(facts)).collect();
        Inventory { identities, ..Inventory::default() }
    }

    /// The link of a dependency, by the names that histories have.
    pub(crate) fn link(&self, d: &Dependency) -> Result<Link> {
        let end = |text: &str| -> Result<PeerName> {
            if Class::from_name(text).is_some() {
                return Ok(PeerName { id: text.to_owned(), namespace: String::new() });
            }
            let having = |w: &&Workload| w.ids.iter().any(|id| id.as_str() == text);
            let w = self.workloads.iter().find(having);
            let w = w.with_context(|| format!("{text} is neither a workload of this estate nor a class"))?;
            Ok(bulkhead::judge::name_of(&w.identity()))
        };
        let protocol = protocol_number(&d.protocol).with_context(|| format!("`{}` isn't a protocol", d.protocol))?;
        Ok(Link { source: end(&d.from)?, destination: end(&d.to)?, protocol, port: d.port })
    }
}

impl Workload {
    pub(crate) fn identity(&self) -> Identity {
        Identity { namespace: self.namespace.clone(), ids: self.ids.clone() }
    }
}

/// Reads a description.
fn describe(text: &str) -> Result<Described> {
    let described: Described = serde_saphyr::from_str(text).context("this isn't an estate")?;
    if let Some(w) = described.workloads.iter().find(|w| w.ids.is_empty()) {
        bail!("a workload of namespace `{}` has no SPIFFE IDs", w.namespace);
    }
    Ok(described)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"
name: shop
workloads:
  - {ids: ["spiffe://example.org/ns/shop/sa/cart"], namespace: shop}
  - ids: ["spiffe://example.org/ns/shop/sa/orders"]
dependencies:
  - {from: "spiffe://example.org/ns/shop/sa/cart", to: "spiffe://example.org/ns/shop/sa/orders", port: 8080}
  - {from: "spiffe://example.org/ns/shop/sa/cart", to: world, protocol: UDP, port: 123}
"#;

    #[test]
    fn an_estate_reads_what_it_writes() {
        let Described { name, workloads, dependencies } = describe(GOOD).expect("a good one");
        let dependencies = dependencies.into_iter().collect();
        let (seen, outside) = Default::default();
        let estate = Estate { name, workloads, dependencies, seen, outside };
        let folder = tempfile::tempdir().expect("a folder");
        estate.write(folder.path()).expect("written");
        let back = Estate::read(folder.path()).expect("read");
        assert_eq!((&back.workloads, &back.dependencies), (&estate.workloads, &estate.dependencies));
        for d in &back.dependencies {
            back.link(d).expect("both ends are known");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("name: x\nworkloads: []\n", "dependencies"),
            ("name: x\nworkloads: [{ids: []}]\ndependencies: []\n", "has no SPIFFE IDs"),
            ("name: x\nworkloads: [{ids: [\"http://x\"]}]\ndependencies: []\n", "isn't a SPIFFE ID"),
            ("name: x\nhosts: []\nworkloads: []\ndependencies: []\n", "hosts"),
        ] {
            let said = format!("{:#}", describe(text).expect_err(text));
            assert!(said.contains(expected), "{said}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let said = format!("{:#}", Estate::read(folder.path()).expect_err("nothing there"));
        assert!(said.contains("estate.yaml"), "{said}");
    }

    proptest! {
        /// Whatever is done to a good description: it is read or refused, and nothing panics.
        #[test]
        fn any_text_is_read_or_refused(at in 0..GOOD.len(), cut in 0usize..60, put in "[ -~\n\u{0}]{0,12}") {
            let text = format!("{}{put}{}", &GOOD[..at], &GOOD[(at + cut).min(GOOD.len())..]);
            if let Ok(d) = describe(&text) {
                prop_assert!(d.workloads.iter().all(|w| !w.ids.is_empty()));
            }
        }
    }
}
