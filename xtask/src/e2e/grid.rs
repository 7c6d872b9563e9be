//! Every ordered pair of members, all ways from one to the other, tried all the time; and what came of it.
//!
//! Members are told whom to try, and tell what they tried and heard, by files on their nodes (tests/cluster/pod). An
//! attempt arrived if some member wrote down that it heard it, whatever the sender saw. It is judged between the sender
//! and whoever heard it, so an address that has gone to somebody else shows as what it is.
//!
//! Beside attempts there are connections that last: one from each member to each other, and one to each Service, used
//! twice a second for as long as they work.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::estate::{BY_HAND, MEMBER, PORT, TALK, Truth, WORKLOADS};
use crate::cluster::State;
use crate::run;

/// A pod of the estate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) workload: &'static str,
    pub(super) node: String,
    pub(super) addresses: Vec<String>,
    pub(super) ready: bool,
}

/// How a Service is called in [`Way::by`].
const SERVICE: &str = "service ";

/// One way from one member to somebody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Way {
    pub(super) from: String,
    pub(super) to: &'static str,
    /// The member that is meant, or the Service.
    pub(super) by: String,
    /// `tcp` or `udp` for attempts, `hold` for a connection that lasts.
    pub(super) protocol: &'static str,
    pub(super) address: String,
    /// A node puts its own address in the place of the member's on the way: what arrives may be the node's as far as
    /// anybody can tell, so that silence says nothing.
    pub(super) masked: bool,
}

/// How a connection that lasts is told in [`Way::protocol`].
pub(super) const HOLD: &str = "hold";

impl Way {
    /// Whether what arrives may be the node's as far as anybody can tell, so that no silence is held against it. So it is
    /// where a member may meet itself, by its own Service: kube-proxy then puts the node's address in the place of the
    /// pod's.
    pub(super) fn may_be_the_nodes(&self, from: &str) -> bool {
        self.masked || self.to == from && self.by.starts_with(SERVICE)
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {} {} {}", self.from, self.by, self.protocol, self.address)
    }
}

/// One attempt on a [`Way`].
#[derive(Clone, Debug, Default)]
pub(super) struct Attempt {
    /// The sender's word; `None` while it is under way, and when the sender ended with it.
    pub(super) outcome: Option<String>,
    /// Which members heard it.
    pub(super) heard: Vec<String>,
    /// Where they heard it from: two pods of a Job have the same key, and may send in the same microsecond.
    pub(super) from: Vec<String>,
}

/// A connection that works has had a message within this time, in microseconds.
pub(super) const RECENT: u64 = 2_000_000;

/// A connection that lasts, or lasted.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// When the last message arrived.
    pub(super) last: u64,
    /// At whom.
    pub(super) at: String,
    /// Why it broke, as its opener saw it.
    pub(super) broke: Option<String>,
}

pub(super) struct Grid {
    /// The nodes' folders.
    folders: Vec<(String, PathBuf)>,
    pub(super) members: Vec<Member>,
    /// All that ever were: key, way. Keys are never given twice.
    pub(super) ways: BTreeMap<u64, Way>,
    /// Those that are tried now.
    pub(super) tried: BTreeMap<Way, u64>,
    /// By the moment of sending, then key.
    pub(super) attempts: BTreeMap<(u64, u64), Attempt>,
    /// By key, then the moment of opening.
    pub(super) kept: BTreeMap<(u64, u64), Kept>,
    /// While it is there, only ways that it allows are tried.
    pub(super) only: Option<Truth>,
    /// Who every name ever belonged to.
    workloads: BTreeMap<String, &'static str>,
    read: BTreeMap<PathBuf, u64>,
    /// Packets that members wrote down, all in all.
    pub(super) sent: u64,
}

/// Microseconds since the machine started, as the members count.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

impl Grid {
    pub(super) fn new(state: &State) -> Result<Self> {
        let folders: Result<Vec<_>> = state.nodes().map(|n| Ok((n.to_owned(), state.var(n)?.join(TALK)))).collect();
        Ok(Self {
            folders: folders?,
            members: Vec::new(),
            ways: BTreeMap::new(),
            tried: BTreeMap::new(),
            attempts: BTreeMap::new(),
            kept: BTreeMap::new(),
            only: None,
            workloads: BTreeMap::new(),
            read: BTreeMap::new(),
            sent: 0,
        })
    }

    /// Looks who is there, and tells everybody whom to try.
    pub(super) fn tell(&mut self, state: &State) -> Result<()> {
        self.members = members(state)?;
        for m in &self.members {
            self.workloads.insert(m.name.clone(), m.workload);
        }
        let services = services(state)?;
        let mut all: BTreeMap<Way, u64> = BTreeMap::new();
        let mut next = self.ways.keys().next_back().map_or(1, |last| last + 1);
        let mut add = |way: Way, tried: &BTreeMap<Way, u64>, ways: &mut BTreeMap<u64, Way>| {
            let key = tried.get(&way).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            ways.insert(key, way.clone());
            all.insert(way, key);
        };
        for from in &self.members {
            let others = self.members.iter().filter(|to| to.name != from.name);
            let direct = others.flat_map(|to| {
                let all = to.addresses.iter().enumerate();
                all.map(|(n, a)| (to.workload, to.name.clone(), a.clone(), PORT, false, n == 0))
            });
            let by_service = services.iter().flat_map(|s| {
                let here = s.places.iter().filter(|p| p.node.as_ref().is_none_or(|node| *node == from.node));
                let lasting =
                    move |n: usize, p: &Place| n + 1 == s.own && p.node.is_none() && s.workload != from.workload;
                here.enumerate().map(move |(n, p)| {
                    let by = format!("{SERVICE}{}", s.name);
                    (s.workload, by, p.address.clone(), p.port, p.masked, lasting(n, p))
                })
            });
            for (to, by, address, port, masked, lasting) in direct.chain(by_service) {
                // By a way on which a node may stand for the member it isn't learned who connects.
                let clear = |only: &Truth| only.allows(from.workload, to) && by != own(from.workload) && !masked;
                if self.only.as_ref().is_some_and(|only| !clear(only)) {
                    continue;
                }
                let address =
                    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
                for protocol in ["tcp", "udp", HOLD].into_iter().filter(|p| *p != HOLD || lasting) {
                    let (from, by, address) = (from.name.clone(), by.clone(), address.clone());
                    let way = Way { from, to, by, protocol, address, masked };
                    add(way, &self.tried, &mut self.ways);
                }
            }
        }
        self.tried = all;
        for from in &self.members {
            let mine = self.tried.iter().filter(|(way, _)| way.from == from.name);
            let text: String = mine.map(|(way, key)| format!("{key} {} {}\n", way.protocol, way.address)).collect();
            let folder = self.folders.iter().find(|(node, _)| *node == from.node).context("a member without a node")?;
            run::write_if_changed(&folder.1.join(format!("{}.orders", from.name)), text.as_bytes())?;
        }
        Ok(())
    }

    /// Reads what members wrote since.
    pub(super) fn read(&mut self) -> Result<()> {
        for (_, folder) in self.folders.clone() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for path in entries.flatten().map(|e| e.path()) {
                let Some(name) = path.file_stem().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
                match path.extension().and_then(|e| e.to_str()) {
                    Some("tried") => self.news(&path)?.lines().try_for_each(|l| self.tried_line(l))?,
                    Some("kept") => self.news(&path)?.lines().try_for_each(|l| self.kept_line(&name, l))?,
                    Some("held") => self.news(&path)?.lines().try_for_each(|l| self.held_line(l))?,
                    Some("heard") => self.news(&path)?.lines().try_for_each(|l| self.heard_line(&name, l))?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The whole lines that a file has got since it was last read.
    fn news(&mut self, path: &Path) -> Result<String> {
        let mut file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
        let at = self.read.entry(path.to_owned()).or_default();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(*at)).and_then(|_| file.read_to_end(&mut bytes)).context("can't read")?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        bytes.truncate(whole);
        *at += whole as u64;
        String::from_utf8(bytes).context("a member wrote something that isn't text")
    }

    fn tried_line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [key, sent, _done, outcome] = words[..] else { return odd(line) };
        let at = (number(sent)?, number(key)?);
        self.attempts.entry(at).or_default().outcome = Some(outcome.to_owned());
        self.sent += 1;
        Ok(())
    }

    fn heard_line(&mut self, by: &str, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [_at, _protocol, peer, key, sent] = words[..] else { return odd(line) };
        let at = (number(sent)?, number(key)?);
        let Attempt { heard, from, .. } = self.attempts.entry(at).or_default();
        for (all, one) in [(heard, by), (from, peer)] {
            if !all.iter().any(|known| known == one) {
                all.push(one.to_owned());
            }
        }
        Ok(())
    }

    fn kept_line(&mut self, by: &str, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [at, key, opened, _count] = words[..] else { return odd(line) };
        let kept = self.kept.entry((number(key)?, number(opened)?)).or_default();
        kept.last = number(at)?;
        if kept.at != by {
            by.clone_into(&mut kept.at);
        }
        self.sent += 1;
        Ok(())
    }

    fn held_line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [key, opened, _now, _count, why] = words[..] else { return odd(line) };
        self.kept.entry((number(key)?, number(opened)?)).or_default().broke = Some(why.to_owned());
        Ok(())
    }

    /// The attempts' ways that are tried now.
    pub(super) fn attempted(&self) -> impl Iterator<Item = (&Way, u64)> {
        self.tried.iter().filter(|(way, _)| way.protocol != HOLD).map(|(way, key)| (way, *key))
    }

    /// How many attempts with this key, sent since, were heard by anybody.
    pub(super) fn heard_since(&self, key: u64, since: u64) -> usize {
        self.attempts.range((since, 0)..).filter(|((_, k), _)| *k == key).map(|(_, a)| a.from.len()).sum()
    }

    /// Whose pod has, or had, this name.
    pub(super) fn workload_of(&self, member: &str) -> &'static str {
        self.workloads.get(member).copied().unwrap_or("somebody else")
    }

    /// Where a member is.
    pub(super) fn node_of(&self, member: &str) -> Option<&str> {
        self.members.iter().find(|m| m.name == member).map(|m| m.node.as_str())
    }

    /// Forgets attempts from before.
    pub(super) fn forget(&mut self, before: u64) {
        self.attempts = self.attempts.split_off(&(before, 0));
        // What broke was judged. What works has its last message from just before.
        self.kept.retain(|_, kept| kept.broke.is_none() && kept.last + RECENT >= before);
    }
}

fn odd(line: &str) -> Result<()> {
    anyhow::bail!("a member wrote `{line}`, which says nothing")
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("`{text}` isn't a number"))
}

/// The pods of the estate that have addresses and aren't on their way out.
fn members(state: &State) -> Result<Vec<Member>> {
    let said = get(state, &["pods", "--all-namespaces", "--selector", MEMBER])?;
    let mut members = Vec::new();
    for pod in items(&said) {
        let label = text(&pod["metadata"]["labels"][MEMBER]);
        let Some(workload) = WORKLOADS.iter().find(|w| w.name == label) else { continue };
        let addresses: Vec<String> =
            pod["status"]["podIPs"].as_array().into_iter().flatten().map(|a| text(&a["ip"])).collect();
        if pod["metadata"]["deletionTimestamp"].is_string() || pod["status"]["phase"] != "Running" {
            continue;
        }
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.clone().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let name = text(&pod["metadata"]["name"]);
        ensure!(addresses.len() == 2, "{name} doesn't have addresses of both families");
        members.push(Member { name, workload: workload.name, node: text(&pod["spec"]["nodeName"]), addresses, ready });
    }
    Ok(members)
}

struct Service {
    name: &'static str,
    workload: &'static str,
    /// Its own addresses come first: so many.
    own: usize,
    places: Vec<Place>,
}

struct Place {
    address: String,
    port: u16,
    /// Only from this node: its own address. By another node's a pod's answer would come back by a shorter way than the
    /// question took, which nobody understands.
    node: Option<String>,
    masked: bool,
}

/// How a workload's own Service is called in [`Way::by`].
fn own(workload: &str) -> String {
    format!("{SERVICE}{workload}")
}

/// The Services that have addresses: their own, and for some those of the nodes, and from outside.
fn services(state: &State) -> Result<Vec<Service>> {
    let said = get(state, &["nodes"])?;
    let mut nodes = Vec::new();
    for node in items(&said) {
        let all = node["status"]["addresses"].as_array().into_iter().flatten();
        let internal = all.filter(|a| a["type"] == "InternalIP");
        nodes.extend(internal.map(|a| (text(&node["metadata"]["name"]), text(&a["address"]))));
    }
    let said = get(state, &["services", "--all-namespaces"])?;
    let by_hand = WORKLOADS.iter().find(|w| w.name == "cache").map(|w| (BY_HAND, w));
    let all = WORKLOADS.iter().filter(|w| w.is_served()).map(|w| (w.name, w)).chain(by_hand);
    let mut services = Vec::new();
    for (name, w) in all {
        // One whose namespace is being deleted isn't there.
        let is_it = |s: &&Value| s["metadata"]["name"] == name && s["metadata"]["namespace"] == w.namespace;
        let Some(spec) = items(&said).find(is_it).map(|s| &s["spec"]) else { continue };
        let list = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
        let (own, outside) = (list(&spec["clusterIPs"]), list(&spec["externalIPs"]));
        let count = own.len();
        let place = |address: String| Place { address, port: PORT, node: None, masked: false };
        let mut places: Vec<Place> = own.into_iter().chain(outside).map(place).collect();
        // The same for both protocols, as it was asked to be.
        let node_port = spec["ports"][0]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
        let masked = spec["externalTrafficPolicy"] == "Cluster";
        if let Some(port) = node_port {
            let at = |(node, address): &(String, String)| Place {
                address: address.clone(),
                port,
                node: Some(node.clone()),
                masked,
            };
            places.extend(nodes.iter().map(at));
        }
        services.push(Service { name, workload: w.name, own: count, places });
    }
    Ok(services)
}

/// What `kubectl get` says.
pub(super) fn get(state: &State, words: &[&str]) -> Result<Value> {
    let said = run::output_of(state.kubectl().arg("get").args(words).arg("--output=json"))?;
    serde_json::from_str(&said).context("kubectl printed JSON that isn't its own")
}

pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
