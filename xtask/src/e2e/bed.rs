//! The cluster with Bulkhead and the estate in it, and what every step has in common.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::estate::{self, Truth, WORKLOADS};
use super::evidence::Evidence;
use super::grid::{self, Grid, RECENT, items, now, text};
use super::interrupt::{check, wait};
use super::judge::{self, Lasting, Times, Tried};
use super::oracle::{Above, Oracle};
use crate::cluster::State;
use crate::run::{self, note, root, step};

pub(super) const SYSTEM: &str = "bulkhead-system";
/// How the API server knows an agent.
const AGENT: &str = "system:serviceaccount:bulkhead-system:bulkhead-agent";

pub(super) struct Bed {
    pub(super) state: State,
    pub(super) grid: Grid,
    pub(super) evidence: Evidence,
    /// What is meant to work now.
    truth: Truth,
    /// Members that a step ends or begins.
    pub(super) shaky: BTreeSet<String>,
    /// What a step looked at that wasn't so.
    pub(super) wrong: Vec<String>,
    /// How many processes a step ended.
    pub(super) kills: usize,
    /// What is decided above the policies.
    pub(super) above: Above,
    /// Whether there are agents, so that anything is enforced.
    pub(super) deployed: bool,
    /// There is a policy that can't be read, so the last good form of it holds, which nobody else knows.
    pub(super) unreadable: bool,
    /// Connections that last may be cut by this step, as docs/kubernetes.md says.
    pub(super) may_cut: bool,
    /// A node on which nothing was in force from one moment to another, because a step took it away.
    pub(super) unguarded: Option<(&'static str, u64, u64)>,
    pub(super) oracle: Oracle,
    last: u64,
    /// Up to here the API server's record of requests was looked through.
    searched: usize,
}

/// A pod of the DaemonSet.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) uid: String,
    /// As containerd names it.
    pub(super) container: String,
    pub(super) restarts: u64,
    pub(super) ready: bool,
}

impl Bed {
    /// Puts the estate there, without any agent.
    pub(super) fn make(state: State, program: &Path) -> Result<Self> {
        step("the estate: three namespaces, ten workloads");
        let grid = Grid::new(&state)?;
        let nodes = state.nodes().count();
        let mut bed = Self {
            state,
            grid,
            evidence: Evidence::new(nodes),
            truth: Truth::All,
            shaky: BTreeSet::new(),
            wrong: Vec::new(),
            kills: 0,
            above: Above::default(),
            deployed: false,
            unreadable: false,
            may_cut: false,
            unguarded: None,
            oracle: Oracle::new(program),
            last: now(),
            searched: 0,
        };
        let name = format!("{}.{}.svc", estate::WEBHOOK.2, estate::NAMESPACES[0]);
        let key = rcgen::generate_simple_self_signed([name]).context("can't make the webhook's certificate")?;
        bed.apply("estate", &estate::objects())?;
        bed.apply("webhook", &estate::webhook(&key.cert.pem(), &key.signing_key.serialize_pem()))?;
        bed.settle()?;
        bed.warm_up()?;
        Ok(bed)
    }

    /// Waits until every way has led somewhere once: kube-proxy takes a moment for new Services.
    fn warm_up(&mut self) -> Result<()> {
        let mut silent = Vec::new();
        wait("every way to lead somewhere", Duration::from_secs(90), || {
            self.grid.read()?;
            let heard: BTreeSet<u64> =
                self.grid.attempts.iter().filter(|(_, a)| !a.heard.is_empty()).map(|((_, key), _)| *key).collect();
            silent = self.grid.attempted().filter(|(_, key)| !heard.contains(key)).map(|(w, _)| w.clone()).collect();
            Ok(silent.is_empty().then_some(()))
        })
        .with_context(|| match silent.first() {
            Some(way) => format!("without an agent {} ways lead nowhere, such as {way}", silent.len()),
            None => "before the first step".to_owned(),
        })?;
        self.last = now();
        self.grid.forget(self.last);
        Ok(())
    }

    /// Waits until the whole estate is there, and tells everybody whom to try.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.settle_with(WORKLOADS.iter().map(|w| w.members()).sum())
    }

    /// The same for another number of pods.
    pub(super) fn settle_with(&mut self, all: usize) -> Result<()> {
        let mut late = String::new();
        wait("the estate's pods to be ready", Duration::from_secs(120), || {
            self.grid.tell(&self.state)?;
            let (ready, not): (Vec<_>, Vec<_>) = self.grid.members.iter().partition(|m| m.ready);
            let names: Vec<&str> = not.iter().map(|m| m.name.as_str()).collect();
            late = format!("{} of {all} are ready; not ready: {}", ready.len(), names.join(", "));
            Ok((ready.len() == all && not.is_empty()).then_some(()))
        })
        .with_context(|| late)?;
        let by_hand = self.grid.members.iter().find(|m| m.workload == "cache").map(|m| m.addresses.clone());
        if let Some(addresses) = by_hand {
            self.apply("endpoints", &estate::endpoints_by_hand(&addresses))?;
        }
        self.proxies_know()
    }

    /// Waits until every node's kube-proxy leads to whoever is behind the Services now: after an outage of the API server it
    /// takes up to a minute to ask again, and until then who goes by a Service reaches nobody, with Bulkhead or without.
    fn proxies_know(&self) -> Result<()> {
        let slices = grid::get(&self.state, &["endpointslices", "--all-namespaces"])?;
        let ready = items(&slices)
            .filter(|slice| estate::NAMESPACES.iter().any(|n| slice["metadata"]["namespace"] == *n))
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
            .filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let wanted: BTreeSet<String> = ready.map(|endpoint| text(&endpoint["addresses"][0])).collect();
        for node in self.state.nodes() {
            let mut missing = Vec::new();
            wait("kube-proxy to know them", Duration::from_secs(120), || {
                let rules = run::output_of(self.state.on(node, "nft")?.args(["list", "ruleset"]))?;
                let known: BTreeSet<&str> = rules.split_whitespace().collect();
                missing = wanted.iter().filter(|address| !known.contains(address.as_str())).cloned().collect();
                Ok(missing.is_empty().then_some(()))
            })
            .with_context(|| format!("on {node} no Service leads to {}", missing.join(", ")))?;
        }
        Ok(())
    }

    /// From now on only ways that `only` allows are tried, or all of them. Returns when nothing else is under way.
    pub(super) fn try_only(&mut self, only: Option<Truth>) -> Result<()> {
        self.grid.only = only;
        self.grid.tell(&self.state)?;
        let mut quiet_since = now();
        wait("members to try only what they are told", Duration::from_secs(60), || {
            self.grid.read()?;
            let wanted: BTreeSet<u64> = self.grid.tried.values().copied().collect();
            let stray = self
                .grid
                .attempts
                .keys()
                .rev()
                .find(|(_, key)| self.grid.ways.contains_key(key) && !wanted.contains(key));
            quiet_since = quiet_since.max(stray.map_or(0, |(sent, _)| *sent));
            Ok((now() > quiet_since + 4_000_000).then_some(()))
        })
    }

    pub(super) fn kubectl(&self, words: &[&str]) -> Result<String> {
        check()?;
        run::output_of(self.state.kubectl().args(words))
    }

    /// Applies objects, through a file that stays for whoever wants to look.
    pub(super) fn apply(&self, name: &str, objects: &Value) -> Result<()> {
        let file = folder().join(format!("{name}.json"));
        run::write_if_changed(&file, &serde_json::to_vec_pretty(objects)?)?;
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// Everything that deploy/ ships, as a person would apply it.
    pub(super) fn deploy(&mut self) -> Result<()> {
        self.deploy_from(&root().join("deploy"))
    }

    /// The same with changes of one's own.
    pub(super) fn deploy_from(&mut self, folder: &Path) -> Result<()> {
        self.kubectl(&["apply", "--server-side", "-k", &folder.to_string_lossy()])?;
        self.deployed = true;
        self.rolled_out()
    }

    /// Waits until every node's agent is ready.
    pub(super) fn rolled_out(&self) -> Result<()> {
        let words = ["rollout", "status", "daemonset/bulkhead-agent", "--namespace", SYSTEM, "--timeout=240s"];
        self.kubectl(&words).with_context(|| self.last_words())?;
        Ok(())
    }

    pub(super) fn nodes(&self) -> Vec<String> {
        self.state.nodes().map(str::to_owned).collect()
    }

    pub(super) fn agents(&self) -> Result<Vec<Agent>> {
        let said = grid::get(&self.state, &["pods", "--namespace", SYSTEM])?;
        let alive = items(&said).filter(|pod| !pod["metadata"]["deletionTimestamp"].is_string());
        Ok(alive
            .map(|pod| {
                let container = &pod["status"]["containerStatuses"][0];
                Agent {
                    pod: text(&pod["metadata"]["name"]),
                    node: text(&pod["spec"]["nodeName"]),
                    uid: text(&pod["metadata"]["uid"]),
                    container: text(&container["containerID"]).trim_start_matches("containerd://").to_owned(),
                    restarts: container["restartCount"].as_u64().unwrap_or(0),
                    ready: container["ready"] == true,
                }
            })
            .collect())
    }

    /// Runs the command line in an agent's pod, and gives what it says and its exit code.
    pub(super) fn bulkhead(&self, agent: &Agent, words: &[&str]) -> Result<(String, i32)> {
        check()?;
        let mut exec = self.state.kubectl();
        exec.args(["exec", "--namespace", SYSTEM, &agent.pod, "--", "/bulkhead"]).args(words);
        let done = run::collect(&mut exec)?;
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        Ok((said, done.status.code().unwrap_or(-1)))
    }

    /// Notes every node whose agent isn't ready or finds fault with something. That a sidecar's pod isn't contained, which
    /// `status` exits with 1 for, is no fault.
    pub(super) fn examine(&mut self) -> Result<()> {
        let said = run::collect(self.cluster_command().args(["status", "--cluster", "--json"]))?;
        let told: Value = serde_json::from_slice(&said.stdout).context("it printed something that isn't JSON")?;
        self.expect(told["failed"] == json!({}), format!("not every agent answers: {}", told["failed"]));
        for node in self.nodes() {
            let status = &told["nodes"][&node];
            let attached = |all: &Vec<Value>| all.len() == 9 && all.iter().all(|p| p["attached"] == true);
            let fine = status["ready"] == true && status["faults"] == json!([]);
            self.expect(
                fine && status["programs"].as_array().is_some_and(attached),
                format!(
                    "{node}: ready {}, faults {}, programs {}",
                    status["ready"], status["faults"], status["programs"]
                ),
            );
        }
        Ok(())
    }

    /// The command line with the administrator's kubeconfig, as a person has it.
    pub(super) fn cluster_command(&self) -> Command {
        let mut command = Command::new(self.oracle.program());
        command.env("KUBECONFIG", self.state.kubeconfig());
        command
    }

    /// Asks or orders the whole cluster, which must go well, and gives what it prints.
    pub(super) fn whole_cluster(&self, words: &[&str]) -> Result<String> {
        check()?;
        run::output_of(self.cluster_command().args(words).arg("--cluster"))
    }

    /// Makes a change, and judges what came of it. What is meant to work from then on is what Bulkhead's reference makes of
    /// all that is applied; where `by_hand` says it too, both must say the same.
    pub(super) fn step(
        &mut self,
        name: &str,
        by_hand: impl Into<Option<Truth>>,
        change: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        check()?;
        let by_hand = by_hand.into();
        self.shaky.clear();
        self.wrong.clear();
        self.kills = 0;
        self.unreadable = false;
        self.may_cut = false;
        self.unguarded = None;
        let start = now();
        change(self).with_context(|| format!("step `{name}`"))?;
        let mut times = Times { last: self.last, start, changed: now(), end: u64::MAX };
        let after = self.meant(by_hand).with_context(|| format!("step `{name}`"))?;
        // Until every way was tried once more after the change had settled.
        let mut untried = Vec::new();
        wait("", Duration::from_secs(90), || {
            self.grid.read()?;
            let done: BTreeSet<u64> = self
                .grid
                .attempts
                .range((times.settled(), 0)..)
                .filter(|(_, a)| a.outcome.is_some())
                .map(|((_, key), _)| *key)
                .collect();
            untried = self.grid.attempted().filter(|(_, key)| !done.contains(key)).map(|(w, _)| w.clone()).collect();
            Ok(untried.is_empty().then_some(()))
        })
        .with_context(|| match untried.first() {
            Some(way) => format!("step `{name}`: {} ways weren't tried, such as {way}", untried.len()),
            None => format!("step `{name}`"),
        })?;
        times.end = now();
        // Those that are under way end by themselves.
        std::thread::sleep(Duration::from_millis(300));
        self.grid.read()?;
        let found = {
            let grid = &self.grid;
            let tried = grid.attempts.iter().filter_map(|((sent, key), attempt)| {
                let way = grid.ways.get(key)?;
                Some(Tried {
                    sent: *sent,
                    way,
                    attempt,
                    from: grid.workload_of(&way.from),
                    heard: attempt.heard.iter().map(|h| grid.workload_of(h)).collect(),
                    shaky: self.shaky.contains(&way.from)
                        || self.shaky.contains(&way.by)
                        || way.may_be_the_nodes(grid.workload_of(&way.from)),
                    unguarded: self.unguarded.is_some_and(|(node, from, to)| {
                        let here = |name: &str| grid.node_of(name) == Some(node);
                        (from..to).contains(sent) && here(&way.from) && attempt.heard.iter().all(|h| here(h))
                    }),
                })
            });
            let mut found = judge::judge(times, &self.truth, &after, tried);
            let lasting = grid.kept.iter().filter_map(|((key, opened), kept)| {
                let way = grid.ways.get(key)?;
                let shaky = self.may_cut || [&way.from, &way.by, &kept.at].iter().any(|end| self.shaky.contains(*end));
                let (from, at) = (grid.workload_of(&way.from), grid.workload_of(&kept.at));
                let unguarded = self.unguarded.is_some_and(|(node, since, to)| {
                    let here = |name: &str| grid.node_of(name) == Some(node);
                    (since..to + RECENT).contains(&kept.last) && here(&way.from) && here(&kept.at)
                });
                Some(Lasting { opened: *opened, way, kept, from, at, shaky, unguarded })
            });
            found.add_lasting(times, &self.truth, &after, lasting);
            found
        };
        self.truth = after;
        self.grid.forget(times.end);
        self.last = times.end;
        self.ask_webhook();
        let wrong = std::mem::take(&mut self.wrong);
        self.evidence.add(name, found, wrong, self.kills);
        Ok(())
    }

    /// The API server asks a pod of the estate, without whose answer nothing may be created: it must reach it, unless
    /// that identity is withdrawn.
    fn ask_webhook(&mut self) {
        let name = estate::WEBHOOK.0;
        let withdrawn = estate::workload(name).is_some_and(|w| self.above.revoked.contains(&w.id()));
        let asked = self.created_with_webhook();
        if asked.is_ok() == withdrawn {
            let otherwise = asked.map_or_else(|error| format!("{error:#}"), |()| "it answers".to_owned());
            self.wrong.push(format!("the API server asks {name} as a webhook: {otherwise}"));
        }
    }

    /// Has the API server ask, once.
    pub(super) fn created_with_webhook(&self) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": "asked", "namespace": estate::NAMESPACES[0], "labels": {(estate::ASKED): "yes"},
        }});
        let file = folder().join("asked.json");
        run::write_if_changed(&file, object.to_string().as_bytes())?;
        self.kubectl(&["create", "--dry-run=server", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// What is meant to work now.
    fn meant(&mut self, by_hand: Option<Truth>) -> Result<Truth> {
        if !self.deployed {
            return Ok(Truth::All);
        }
        if self.unreadable {
            return Ok(by_hand.unwrap_or_else(|| self.truth.clone()));
        }
        let reference = self.oracle.ask(&self.state, &self.above)?;
        for (from, to, allows) in by_hand.iter().flat_map(|by_hand| by_hand.differs(&reference)) {
            let (hand, other) = if allows { ("allowed", "denied") } else { ("denied", "allowed") };
            self.wrong.push(format!("{from} to {to} is {hand} by hand, and {other} by the reference"));
        }
        Ok(reference)
    }

    /// A step that leaves what is meant to work as it is.
    pub(super) fn harm(&mut self, name: &str, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.step(name, self.truth.clone(), change)
    }

    pub(super) fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Notes that something isn't as it should be; the run goes on, and fails.
    pub(super) fn expect(&mut self, holds: bool, otherwise: impl Into<String>) {
        if !holds {
            self.wrong.push(otherwise.into());
        }
    }

    /// Fails if the API server refused anything to an agent since the last look: then deploy/ doesn't grant what the agent
    /// needs.
    pub(super) fn refusals(&mut self) -> Result<()> {
        let log = self.requests()?;
        let refused: Vec<String> = log
            .get(self.searched..)
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains(AGENT))
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|entry| entry["user"]["username"] == AGENT && entry["responseStatus"]["code"] == 403)
            .map(|entry| format!("{} {}", text(&entry["verb"]), text(&entry["requestURI"])))
            .collect();
        if !refused.is_empty() {
            bail!("the API server refused {} requests of agents, such as {}", refused.len(), refused[0]);
        }
        self.searched = log.len();
        Ok(())
    }

    /// Looks past what was refused since the last look: an API server that has just started doesn't know anybody's rights,
    /// and while Bulkhead is being deleted agents lose theirs.
    pub(super) fn excuse(&mut self) -> Result<()> {
        self.searched = self.requests()?.len();
        Ok(())
    }

    fn requests(&self) -> Result<String> {
        let file = self.state.log("kube-apiserver").with_file_name("audit.log");
        fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))
    }

    /// The agents' logs, for whoever looks for what went wrong.
    pub(super) fn keep_logs(&self) {
        for agent in self.agents().unwrap_or_default() {
            for (suffix, previous) in [("", "--previous=false"), (".before", "--previous=true")] {
                let words = ["logs", "--namespace", SYSTEM, &agent.pod, previous];
                if let Ok(log) = run::output_of(self.state.kubectl().args(words)) {
                    let file = folder().join(format!("agent@{}{suffix}.log", agent.node));
                    run::write_if_changed(&file, log.as_bytes()).ok();
                    note(format!("the agent's log: {}", file.display()));
                }
            }
        }
    }

    fn last_words(&self) -> String {
        self.keep_logs();
        run::output_of(self.state.kubectl().args(["get", "pods", "--namespace", SYSTEM, "--output=wide"]))
            .unwrap_or_default()
    }
}

/// Where the run keeps what it applied, and the agents' logs.
pub(super) fn folder() -> PathBuf {
    run::target().join("e2e")
}
