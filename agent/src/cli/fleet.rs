//! `--cluster`: the same question to every agent of a cluster.
//!
//! The command runs in each agent's pod, by way of the API server's `pods/exec`, against the control socket there, which
//! stays root's. Nothing new listens anywhere, and who may ask is decided by the rights of whoever's kubeconfig it is:
//! listing pods in the agents' namespace, and `pods/exec` there.

mod follow;

pub(super) use follow::Heard;

use super::client;
use crate::cluster::crd::{NodeEndpoints, SegmentationNode};
use crate::history::History;
use anyhow::{Context, bail};
use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, DeleteParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The agents' pods.
const LABELS: &str = "app.kubernetes.io/name=bulkhead,app.kubernetes.io/component=agent";
/// The container, and the program in it.
const CONTAINER: &str = "agent";
const PROGRAM: &str = "/bulkhead";
/// How many are asked at once.
const AT_ONCE: usize = 16;
/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much one may say, bytes.
const LONGEST: u64 = 256 << 20;

#[derive(clap::Args)]
pub(super) struct Fleet {
    /// Ask every agent of the cluster that the kubeconfig names
    #[arg(long, help_heading = "A whole cluster")]
    pub(super) cluster: bool,
    /// Another context of the kubeconfig than the present one
    #[arg(long, value_name = "NAME", requires = "cluster", help_heading = "A whole cluster")]
    context: Option<String>,
    /// The namespace in which the agents run
    #[arg(
        long,
        value_name = "NAME",
        default_value = "bulkhead-system",
        requires = "cluster",
        help_heading = "A whole cluster"
    )]
    agents_in: String,
}

/// What one agent's command said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Said {
    /// Its exit code.
    pub(super) code: i32,
    /// Its standard output.
    pub(super) out: Vec<u8>,
    /// Its standard error.
    pub(super) err: String,
}

/// What came back, by node.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// From those that could be asked.
    pub(super) said: BTreeMap<String, Said>,
    /// Why the others couldn't.
    pub(super) failed: BTreeMap<String, String>,
}

impl Answers {
    /// The answers as JSON, one value each; what can't be read is one that failed.
    pub(super) fn json<T: DeserializeOwned>(self) -> (BTreeMap<String, T>, BTreeMap<String, String>) {
        self.read(|out| serde_json::from_slice(out))
    }

    /// The same where each line is a value.
    pub(super) fn lines<T: DeserializeOwned>(self) -> (BTreeMap<String, Vec<T>>, BTreeMap<String, String>) {
        self.read(|out| {
            let lines = out.split(|b| *b == b'\n').filter(|l| !l.is_empty());
            lines.map(serde_json::from_slice).collect()
        })
    }

    fn read<T>(self, read: impl Fn(&[u8]) -> serde_json::Result<T>) -> (BTreeMap<String, T>, BTreeMap<String, String>) {
        let Self { said, mut failed } = self;
        let mut all = BTreeMap::new();
        for (node, said) in said {
            // 1 is an answer, too: findings.
            if said.code > 1 {
                failed.insert(node, format!("exit code {}: {}", said.code, said.err.trim()));
                continue;
            }
            match read(&said.out) {
                Ok(value) => drop(all.insert(node, value)),
                Err(e) => {
                    failed.insert(node, format!("its answer isn't understood ({e}): is it of another version?"));
                }
            }
        }
        (all, failed)
    }
}

/// Says who couldn't be asked.
pub(super) fn complain(failed: &BTreeMap<String, String>) {
    for (node, why) in failed {
        eprintln!("bulkhead: {node} couldn't be asked: {why}");
    }
}

impl Fleet {
    /// Runs `bulkhead COMMAND` in the pod of every agent, or in that of one node alone.
    pub(super) fn ask(&self, command: &[String], only: Option<&str>) -> anyhow::Result<Answers> {
        // An API server that hangs up is an error like any other.
        let _deaf = client::Deaf::new();
        client::block_on(async {
            let client = connect(self.context.as_deref()).await?;
            let api: Api<Pod> = Api::namespaced(client, &self.agents_in);
            let list = api.list(&ListParams::default().labels(LABELS)).await;
            let pods = list.with_context(|| format!("listing the agents' pods in {}", self.agents_in))?.items;
            let mut answers = Answers::default();
            let mut running = Vec::new();
            for pod in pods {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
                let name = pod.metadata.name.clone().unwrap_or_default();
                if only.is_some_and(|only| only != node) {
                    continue;
                }
                match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
                    Some("Running") if pod.metadata.deletion_timestamp.is_none() => running.push((node, name)),
                    phase => {
                        let why = format!("its pod {name} is {}", phase.unwrap_or("in no phase"));
                        answers.failed.insert(node, why);
                    }
                }
            }
            if running.is_empty() && answers.failed.is_empty() {
                bail!("no agent's pod in namespace {} (labels {LABELS}): see --agents-in", self.agents_in);
            }
            let asked = running.into_iter().map(|(node, pod)| {
                let api = &api;
                async move {
                    let said = tokio::time::timeout(PATIENCE, exec(api, &pod, command)).await;
                    let late = || anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs());
                    (node, said.unwrap_or_else(|_| Err(late())))
                }
            });
            let mut asked = futures_util::stream::iter(asked).buffer_unordered(AT_ONCE);
            while let Some((node, said)) = asked.next().await {
                match said {
                    // While a pod is replaced, a node may have two.
                    Ok(said) => {
                        answers.failed.remove(&node);
                        answers.said.insert(node, said);
                    }
                    Err(e) => drop(answers.failed.insert(node, format!("{e:#}"))),
                }
            }
            let Answers { said, failed } = &mut answers;
            failed.retain(|node, _| !said.contains_key(node));
            Ok(answers)
        })
    }

    /// What all agents have seen in the last so many seconds, each connection once.
    pub(super) fn history(&self, since: Option<Duration>) -> anyhow::Result<(History, BTreeMap<String, String>)> {
        let mut command = words(&["graph", "--as", "history"]);
        command.extend(since.into_iter().flat_map(|s| ["--since".to_owned(), format!("{}s", s.as_secs())]));
        let (all, failed) = self.ask(&command, None)?.json::<History>();
        if all.is_empty() {
            complain(&failed);
            bail!("no agent could be asked");
        }
        Ok((History::merged(all.into_values()), failed))
    }
}

/// The API server that the kubeconfig names, in that context or the present one.
pub(super) async fn connect(context: Option<&str>) -> anyhow::Result<Client> {
    let config = match context {
        None => Config::infer().await.context("no kubeconfig (KUBECONFIG or ~/.kube/config) and no pod's account")?,
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
            let file = Kubeconfig::read().context("reading the kubeconfig")?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .with_context(|| format!("the kubeconfig's context {context}"))?
        }
    };
    Client::try_from(config).context("the kubeconfig can't be used")
}

impl Fleet {
    /// Deletes the DaemonSets that run the agents; their names.
    pub(super) fn delete_agents(&self) -> anyhow::Result<Vec<String>> {
        client::block_on(async {
            let api: Api<DaemonSet> = Api::namespaced(connect(self.context.as_deref()).await?, &self.agents_in);
            let all = api.list(&ListParams::default().labels(LABELS)).await.context("listing DaemonSets")?;
            let mut gone = Vec::new();
            for name in all.items.into_iter().filter_map(|set| set.metadata.name) {
                api.delete(&name, &DeleteParams::background()).await.with_context(|| format!("deleting {name}"))?;
                gone.push(format!("DaemonSet {}/{name}", self.agents_in));
            }
            Ok(gone)
        })
    }

    /// Deletes what the agents told of their nodes; the names of these kinds.
    pub(super) fn delete_told(&self) -> anyhow::Result<Vec<&'static str>> {
        let _deaf = client::Deaf::new();
        client::block_on(async { delete_told(&connect(self.context.as_deref()).await?).await })
    }

    /// All objects of a kind, in all namespaces.
    pub(super) fn list<K>(&self, dynamic: K::DynamicType, what: &str) -> anyhow::Result<Vec<K>>
    where
        K: Resource + Clone + Debug + DeserializeOwned,
    {
        let _deaf = client::Deaf::new();
        client::block_on(async {
            let api: Api<K> = Api::all_with(connect(self.context.as_deref()).await?, &dynamic);
            let list = api.list(&ListParams::default()).await;
            Ok(list.with_context(|| format!("listing {what} (may you?)"))?.items)
        })
    }
}

async fn delete_told(client: &Client) -> anyhow::Result<Vec<&'static str>> {
    delete_all::<NodeEndpoints>(client).await?;
    delete_all::<SegmentationNode>(client).await?;
    Ok(vec!["NodeEndpoints", "SegmentationNodes"])
}

/// Deletes every object of a kind that has no namespace.
async fn delete_all<K>(client: &Client) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    match api.delete_collection(&DeleteParams::default(), &ListParams::default()).await {
        Ok(_) => Ok(()),
        // The kind itself has gone.
        Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
        Err(e) => Err(e).with_context(|| format!("deleting all {} (deletecollection: may you?)", K::plural(&()))),
    }
}

/// Arguments.
pub(super) fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|w| (*w).to_owned()).collect()
}

async fn exec(api: &Api<Pod>, pod: &str, command: &[String]) -> anyhow::Result<Said> {
    let parameters = AttachParams::default().container(CONTAINER).stdin(false).stdout(true).stderr(true);
    let argv = std::iter::once(PROGRAM).chain(command.iter().map(String::as_str));
    let mut process = api.exec(pod, argv, &parameters).await.context("pods/exec (may you?)")?;
    let status = process.take_status();
    let (out, err) = (process.stdout(), process.stderr());
    let (out, err) = tokio::join!(read(out), read(err));
    let (out, err) = (out?, String::from_utf8_lossy(&err?).into_owned());
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    process.join().await.context("the connection broke")?;
    let status = status.context("it never said how it ended")?;
    let code = match status.status.as_deref() {
        Some("Success") => 0,
        _ => {
            let causes = status.details.iter().flat_map(|d| d.causes.iter().flatten());
            let mut codes = causes.filter(|c| c.reason.as_deref() == Some("ExitCode"));
            let code = codes.next().and_then(|c| c.message.as_ref()?.parse().ok());
            code.with_context(|| status.message.clone().unwrap_or_else(|| "it couldn't be run".to_owned()))?
        }
    };
    Ok(Said { code, out, err })
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(stream) = stream {
        stream.take(LONGEST + 1).read_to_end(&mut all).await.context("reading its answer")?;
    }
    anyhow::ensure!(u64::try_from(all.len()).is_ok_and(|n| n <= LONGEST), "its answer is too long");
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::crd::{NodeEndpointsSpec, SegmentationNodeSpec};
    use crate::cluster::tests::Fake;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_agents_told_goes_and_a_refusal_names_what_stays() {
        const ENDPOINTS: &str = "/apis/bulkhead.dev/v1alpha1/nodeendpoints";
        const REPORTS: &str = "/apis/bulkhead.dev/v1alpha1/segmentationnodes";
        const NODES: &str = "/api/v1/nodes";
        let (fake, client) = Fake::start().await;
        let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
        fake.put(NODES, node);
        for name in ["n1", "n2"] {
            let of = |object: serde_json::Result<_>| object.expect("plain data");
            fake.put(ENDPOINTS, of(serde_json::to_value(NodeEndpoints::new(name, NodeEndpointsSpec::default()))));
            fake.put(REPORTS, of(serde_json::to_value(SegmentationNode::new(name, SegmentationNodeSpec::default()))));
        }
        fake.forbid(REPORTS);
        let refused = delete_told(&client).await.expect_err("forbidden");
        assert!(format!("{refused:#}").starts_with("deleting all segmentationnodes"), "{refused:#}");
        assert!(fake.get(ENDPOINTS, "n1").is_none() && fake.get(REPORTS, "n1").is_some());

        fake.permit(REPORTS);
        delete_told(&client).await.expect("deleted");
        // Again, where nothing is left.
        delete_told(&client).await.expect("nothing to do");
        assert!(["n1", "n2"].iter().all(|n| fake.get(ENDPOINTS, n).or(fake.get(REPORTS, n)).is_none()));
        assert!(fake.get(NODES, "n1").is_some());
    }

    #[test]
    fn findings_are_an_answer_and_everything_else_is_told_by_node() {
        let said = |code, out: &str| Said { code, out: out.as_bytes().to_vec(), err: "no agent's socket\n".to_owned() };
        let answers = || Answers {
            said: [("a", said(0, "[1]")), ("b", said(1, "[2]\n[3]\n")), ("c", said(2, "")), ("d", said(0, "?"))]
                .map(|(n, s)| (n.to_owned(), s))
                .into(),
            failed: [("e".to_owned(), "its pod is Pending".to_owned())].into(),
        };
        let (all, failed) = answers().lines::<Vec<u8>>();
        assert_eq!(all, [("a".to_owned(), vec![vec![1]]), ("b".to_owned(), vec![vec![2], vec![3]])].into());
        assert_eq!(failed["c"], "exit code 2: no agent's socket");
        assert!(failed["d"].contains("isn't understood") && failed.contains_key("e"));
        let (all, failed) = answers().json::<Vec<u8>>();
        assert_eq!((all.len(), failed.len()), (1, 4), "two values aren't one");
    }
}
