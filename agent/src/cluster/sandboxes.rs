//! The addresses that network plugins gave to this node's pods, from the records that container runtimes keep of that.
//!
//! A pod's own address comes with its status, which the kubelet writes about a second after the pod's first instruction.
//! What the plugins answered is on disk before anything of the pod runs (containernetworking/cni: libcni's cache in
//! `/var/lib/cni/results`, written by containerd and CRI-O alike), so other nodes can be told in time. Only root writes
//! there; a record counts for a pod that the API server binds to this node, and only as long as its status says nothing.
//! A folder that isn't there, or a record that can't be read, is none: then the status tells.

use bulkhead_common::Addr;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::SystemTime;

/// Where the records are.
pub const FOLDER: &str = "/var/lib/cni/results";
/// The pod's own interface; others are further networks, of which the cluster knows nothing.
const INTERFACE: &str = "eth0";
/// In the plugins' arguments.
const POD_UID: &str = "K8S_POD_UID";
/// A record has some kilobytes.
const LARGEST: u64 = 1 << 20;

/// By the pod's UID.
pub type Given = BTreeMap<String, Vec<Addr>>;

/// What was read of each file, so that it is read once.
#[derive(Default)]
pub struct Sandboxes(BTreeMap<OsString, (Version, Option<Sandbox>)>);

/// Which form of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    written: SystemTime,
    size: u64,
}

/// What a record says.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sandbox {
    uid: String,
    id: String,
    addresses: Vec<Addr>,
}

impl Sandboxes {
    /// Reads what is new in the folder, and gives what all of it says. Of two sandboxes of one pod the later one counts.
    pub fn read(&mut self, folder: &Path) -> Given {
        let former = std::mem::take(&mut self.0);
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let Ok(written) = meta.modified() else { continue };
            if !meta.is_file() || meta.len() > LARGEST {
                continue;
            }
            let (name, version) = (entry.file_name(), Version { written, size: meta.len() });
            let read = match former.get(&name) {
                Some((known, sandbox)) if *known == version => sandbox.clone(),
                _ => std::fs::read(entry.path()).ok().and_then(|text| parse(&text)),
            };
            self.0.insert(name, (version, read));
        }
        let mut latest: BTreeMap<&str, (SystemTime, &str)> = BTreeMap::new();
        for (version, sandbox) in self.records() {
            let at = (version.written, sandbox.id.as_str());
            let kept = latest.entry(&sandbox.uid).or_insert(at);
            *kept = at.max(*kept);
        }
        let mut given: BTreeMap<String, BTreeSet<Addr>> = BTreeMap::new();
        for (_, sandbox) in self.records() {
            if latest.get(sandbox.uid.as_str()).is_some_and(|(_, id)| *id == sandbox.id) {
                given.entry(sandbox.uid.clone()).or_default().extend(&sandbox.addresses);
            }
        }
        given.into_iter().map(|(uid, addresses)| (uid, addresses.into_iter().collect())).collect()
    }

    fn records(&self) -> impl Iterator<Item = (&Version, &Sandbox)> {
        self.0.values().filter_map(|(version, sandbox)| Some((version, sandbox.as_ref()?)))
    }
}

/// A record as it stands on disk (containernetworking/cni: `cachedInfo` in libcni/api.go).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    container_id: String,
    if_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    result: Answer,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
}

/// What the record says of a pod's own interface; `None` if it is of another one, or can't be read.
fn parse(text: &[u8]) -> Option<Sandbox> {
    let record: Record = serde_json::from_slice(text).ok()?;
    let uid = record.cni_args.into_iter().find(|(name, _)| name == POD_UID)?.1;
    let read = |ip: &Ip| super::pod::address(ip.address.split('/').next()?);
    // All of them or none.
    let addresses: Option<Vec<Addr>> = record.result.ips.iter().map(read).collect();
    let addresses = addresses?;
    let whole = record.if_name == INTERFACE && !uid.is_empty() && !addresses.is_empty();
    whole.then_some(Sandbox { uid, id: record.container_id, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(uid: &str, id: &str, interface: &str, ips: &[&str]) -> String {
        let ips: Vec<_> = ips.iter().map(|ip| serde_json::json!({"address": ip, "gateway": "10.0.0.254"})).collect();
        serde_json::json!({
            "kind": "cniCacheV1", "containerId": id, "config": "e30=", "ifName": interface, "networkName": "pods",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_UID", uid]],
            "capabilityArgs": {"dns": {}},
            "result": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": ips, "dns": {}},
        })
        .to_string()
    }

    fn at(text: &str) -> Addr {
        super::super::pod::address(text).expect("an address")
    }

    #[test]
    fn the_pods_interface_of_the_latest_sandbox_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str, age: u64| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            let then = SystemTime::now() - Duration::from_secs(age);
            std::fs::File::options().write(true).open(path).and_then(|f| f.set_modified(then)).expect("dated");
        };
        put("cni-loopback-s2-lo", &record("a", "s2", "lo", &["127.0.0.1/8"]), 1);
        put("pods-s1-eth0", &record("a", "s1", "eth0", &["10.0.0.1/24"]), 9);
        put("pods-s2-eth0", &record("a", "s2", "eth0", &["10.0.0.2/24", "fd00::2/64"]), 1);
        put("more-s2-net1", &record("a", "s2", "net1", &["192.0.2.1/24"]), 1);
        put("pods-s3-eth0", &record("b", "s3", "eth0", &["10.0.0.3/24"]), 5);
        put("pods-s4-eth0", &record("c", "s4", "eth0", &["10.0.0.4/24", "nonsense"]), 5);
        put("pods-s5-eth0", "{\"containerId\": \"s5\", ", 5);
        let mut sandboxes = Sandboxes::default();
        let given = sandboxes.read(dir.path());
        let expected = [("a", vec![at("10.0.0.2"), at("fd00::2")]), ("b", vec![at("10.0.0.3")])];
        assert_eq!(given, expected.map(|(uid, all)| (uid.to_owned(), all)).into());

        put("pods-s5-eth0", &record("d", "s5", "eth0", &["10.0.0.5/24"]), 0);
        std::fs::remove_file(dir.path().join("pods-s3-eth0")).expect("removed");
        let given = sandboxes.read(dir.path());
        assert_eq!(given.keys().collect::<Vec<_>>(), ["a", "d"]);
        assert!(sandboxes.read(Path::new("/nonexistent/folder")).is_empty());
    }
}
