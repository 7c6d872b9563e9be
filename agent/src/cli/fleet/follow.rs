//! A command of every agent's pod that goes on: its lines as they come, from whatever agents there are at the time.

use super::{CONTAINER, Fleet, LABELS, PROGRAM};
use crate::cli::client;
use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked which agents there are.
const LOOK: Duration = Duration::from_secs(3);

/// What comes from a node.
pub(in crate::cli) enum Heard<'a> {
    /// A line.
    Line(&'a str),
    /// It isn't followed any more, and why. It is tried again.
    Ended(&'a str),
}

enum Message {
    Line(String),
    Ended(String),
}

impl Fleet {
    /// Follows all agents until `hear`, which is told what comes from which node, doesn't want to go on.
    ///
    /// # Errors
    /// When it isn't known at the beginning which agents there are.
    pub(in crate::cli) fn follow(
        &self,
        command: &[String],
        mut hear: impl FnMut(&str, Heard<'_>) -> bool,
    ) -> anyhow::Result<()> {
        let _deaf = client::Deaf::new();
        client::block_on(async {
            let api: Api<Pod> = Api::namespaced(super::connect(self.context.as_deref()).await?, &self.agents_in);
            let pods = running(&api).await?;
            anyhow::ensure!(
                !pods.is_empty(),
                "no agent runs in namespace {} (labels {LABELS}): see --agents-in",
                self.agents_in
            );
            let mut followed: BTreeMap<String, String> = BTreeMap::new();
            let (tell, mut told) = unbounded_channel::<(String, Message)>();
            let mut look = interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let (pod, message) = tokio::select! {
                    _ = look.tick() => {
                        match running(&api).await {
                            Ok(pods) => for (pod, node) in pods {
                                if followed.insert(pod.clone(), node).is_none() {
                                    tokio::spawn(run(api.clone(), pod, command.to_vec(), tell.clone()));
                                }
                            },
                            // Those that are followed go on.
                            Err(e) => eprintln!("bulkhead: which agents there are can't be told now: {e:#}"),
                        }
                        continue;
                    }
                    Some(message) = told.recv() => message,
                };
                let node = followed.get(&pod).cloned().unwrap_or_default();
                let goes_on = match &message {
                    Message::Line(line) => hear(&node, Heard::Line(line)),
                    Message::Ended(why) => {
                        followed.remove(&pod);
                        hear(&node, Heard::Ended(why))
                    }
                };
                if !goes_on {
                    return Ok(());
                }
            }
        })
    }
}

/// The agents' pods that run, with their nodes.
async fn running(api: &Api<Pod>) -> anyhow::Result<BTreeMap<String, String>> {
    let list = api.list(&ListParams::default().labels(LABELS)).await.context("listing the agents' pods")?;
    let running = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    };
    let named = |pod: Pod| Some((pod.metadata.name?, pod.spec?.node_name?));
    Ok(list.items.into_iter().filter(running).filter_map(named).collect())
}

async fn run(api: Api<Pod>, pod: String, command: Vec<String>, tell: UnboundedSender<(String, Message)>) {
    let why = match lines(&api, &pod, &command, &tell).await {
        Ok(said) if said.is_empty() => "its command ended".to_owned(),
        Ok(said) => said,
        Err(e) => format!("{e:#}"),
    };
    // Whoever listens may have had enough.
    drop(tell.send((pod, Message::Ended(why))));
}

/// What it said on standard error, in the end.
async fn lines(
    api: &Api<Pod>,
    pod: &str,
    command: &[String],
    tell: &UnboundedSender<(String, Message)>,
) -> anyhow::Result<String> {
    let parameters = AttachParams::default().container(CONTAINER).stdin(false).stdout(true).stderr(true);
    let argv = std::iter::once(PROGRAM).chain(command.iter().map(String::as_str));
    let mut process = api.exec(pod, argv, &parameters).await.context("pods/exec (may you?)")?;
    let (out, err) = (process.stdout().context("no output")?, process.stderr());
    let said = async { super::read(err).await.map(|e| String::from_utf8_lossy(&e).trim().to_owned()) };
    let read = async {
        let mut lines = BufReader::new(out).lines();
        while let Some(line) = lines.next_line().await.context("the connection broke")? {
            if !line.is_empty() && tell.send((pod.to_owned(), Message::Line(line))).is_err() {
                break;
            }
        }
        anyhow::Ok(())
    };
    let (said, read) = tokio::join!(said, read);
    read?;
    said
}
