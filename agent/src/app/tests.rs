//! The whole loop with a kernel side in memory: real files, real watches, a real control socket.

mod accounts;
mod again;
mod cluster;
mod cover;
mod orders;

use super::kernel::{Kernel, Records};
use super::*;
use crate::datapath::{Cut, Drift, Walk};
use crate::flows::outside::Reading;
use crate::image::Image;
use crate::revocation::Reach;
use crate::serve::api::{Commit, Decision, EdgeLine, Explained, Feature, MapFill, Program, Status};
use bulkhead_common::event::{Answer, Event};
use bulkhead_common::maps::{EdgeKey, Traffic, totals};
use bulkhead_common::slots::{Baseline, Sides};
use bulkhead_common::verdict::{self, Flow};
use bulkhead_common::{Class, Outcome, PeerId, Reason};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use serde::de::DeserializeOwned;
use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;
use tokio::sync::{mpsc, oneshot};

/// What the kernel side was told, and what it answers.
#[derive(Default)]
struct Memory {
    images: Vec<Image>,
    attached: bool,
    /// Whether a former agent's programs are attached.
    adopted: bool,
    emit_allowed: bool,
    edges: Vec<(EdgeKey, u64)>,
    traffic: Vec<(EdgeKey, Traffic)>,
    outside: Reading,
    faults: Vec<String>,
    repaired: Vec<String>,
    refuse_commits: bool,
    overflow: u64,
    /// Whether web is connected to db.
    live: bool,
    walks: Vec<(Reach, bool)>,
    /// Entries that got lost.
    missing: u64,
}

pub(super) struct Fake {
    memory: Arc<Mutex<Memory>>,
    events: Option<Stream>,
}

pub(super) struct Stream(mpsc::Receiver<Event>);

impl Records<Event> for Stream {
    async fn next(&mut self) -> anyhow::Result<Vec<Event>> {
        Ok(vec![self.0.recv().await.context("no more events")?])
    }
}

/// No answer ever comes.
pub(super) struct Silence;

impl Records<Answer> for Silence {
    async fn next(&mut self) -> anyhow::Result<Vec<Answer>> {
        std::future::pending().await
    }
}

impl Fake {
    /// Over tables that an agent has left.
    pub(super) fn with(images: Vec<Image>) -> Self {
        Self { memory: Arc::new(Mutex::new(Memory { images, ..Memory::default() })), events: None }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().expect("no test panics with it")
    }
}

impl Kernel for Fake {
    type Fault = String;
    type Events = Stream;
    type Answers = Silence;

    fn generation(&self) -> u64 {
        42
    }
    fn in_force(&self) -> Option<Image> {
        self.memory().images.last().cloned()
    }
    fn commit(&mut self, image: &Image) -> anyhow::Result<Commit> {
        let mut m = self.memory();
        anyhow::ensure!(!m.refuse_commits, "no room");
        m.images.push(image.clone());
        Ok(Commit { epoch: u32::try_from(m.images.len())?, ..Commit::default() })
    }
    fn is_alone(&self) -> bool {
        true
    }
    fn settle(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    fn adopted(&self) -> bool {
        self.memory().adopted
    }
    fn verify(&self, _: &Image) -> anyhow::Result<Option<Drift>> {
        let missing = self.memory().missing;
        Ok(Some(Drift { missing, ..Drift::default() }))
    }
    fn realign(&mut self, image: &Image) -> anyhow::Result<Commit> {
        self.memory().missing = 0;
        self.commit(image)
    }
    fn attach(&mut self) -> anyhow::Result<()> {
        let mut m = self.memory();
        anyhow::ensure!(!m.images.is_empty(), "attached before the first commit");
        m.attached = true;
        Ok(())
    }
    fn set_emit_allowed(&mut self, on: bool) -> anyhow::Result<()> {
        self.memory().emit_allowed = on;
        Ok(())
    }
    fn edges(&self) -> anyhow::Result<Vec<(EdgeKey, u64)>> {
        Ok(self.memory().edges.clone())
    }
    fn traffic(&self) -> anyhow::Result<Vec<(EdgeKey, Traffic)>> {
        Ok(self.memory().traffic.clone())
    }
    fn set_tell_answers(&mut self, _: bool) -> anyhow::Result<()> {
        Ok(())
    }
    fn tick(&self) {}
    fn outside(&self) -> anyhow::Result<Reading> {
        Ok(self.memory().outside.clone())
    }
    fn begin_era(&mut self) -> anyhow::Result<()> {
        self.memory().outside.era += 1;
        Ok(())
    }
    fn empty_former_era(&mut self) -> anyhow::Result<()> {
        let outside = &mut self.memory().outside;
        let era = outside.era;
        outside.counts.retain(|(of, _, _)| *of == era);
        Ok(())
    }
    fn outside_share(&self, of: PeerId) -> u32 {
        u32::from(of == PeerId(256))
    }
    fn totals(&self) -> anyhow::Result<Vec<u64>> {
        let mut all = vec![0; usize::try_from(totals::LEN)?];
        all[usize::try_from(totals::OVERFLOW)?] = self.memory().overflow;
        Ok(all)
    }
    fn fill(&self) -> anyhow::Result<Vec<MapFill>> {
        Ok(vec![MapFill { name: "RULES".to_owned(), used: 1, capacity: 10 }])
    }
    fn walk(&self, image: &Image, reach: &Reach, destroy: bool) -> anyhow::Result<Walk> {
        let mut m = self.memory();
        m.walks.push((reach.clone(), destroy));
        let flow = Flow { src: PeerId(256), dst: PeerId(257), proto: 6, port: 5432 };
        let judgement = verdict::judge(image, &flow);
        let fails = m.live && !judgement.outcome().passes();
        m.live &= !(fails && destroy);
        let end: std::net::SocketAddr = "10.0.0.1:1".parse()?;
        let cut = Cut { flow, judgement, local: end, remote: end, destroyed: destroy };
        Ok(Walk { namespaces: 1, sockets: 1, cuts: if fails { vec![cut] } else { Vec::new() }, faults: Vec::new() })
    }
    fn take_events(&mut self) -> Option<Stream> {
        self.events.take()
    }
    fn take_answers(&mut self) -> Option<Silence> {
        None
    }
    fn take_log(&mut self) -> Option<Pin<Box<dyn Future<Output = anyhow::Error> + Send>>> {
        None
    }
    fn inspect(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.memory().faults.clone())
    }
    fn is_repairable(fault: &String) -> bool {
        !fault.contains("foreign")
    }
    fn repair(&mut self, fault: &String) -> anyhow::Result<()> {
        let mut m = self.memory();
        m.faults.retain(|f| f != fault);
        m.repaired.push(fault.clone());
        Ok(())
    }
    fn programs(&self) -> Vec<Program> {
        let attached = self.memory().attached;
        vec![Program { name: "connect4".to_owned(), attached, ..Program::default() }]
    }
    fn features(&self) -> Vec<Feature> {
        Vec::new()
    }
}

/// A running agent in a folder of its own. Its "cgroups" are plain folders.
struct Rig {
    folder: tempfile::TempDir,
    memory: Arc<Mutex<Memory>>,
    events: mpsc::Sender<Event>,
    end: Option<oneshot::Sender<()>>,
    agent: tokio::task::JoinHandle<Result<(), Failure>>,
}

const POLICY: &str = "apiVersion: bulkhead.dev/v1alpha1\nkind: SegmentationPolicy\nmetadata: {name: db}\nspec:\n  \
    mode: enforce\n  selector: {ids: [\"spiffe://t/db\"]}\n  \
    ingress: {rules: [{from: [{id: \"spiffe://t/web\"}], ports: [{protocol: TCP, port: 5432}]}]}\n";

impl Rig {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |p: &str| folder.path().join(p);
        for p in ["cgroup/s/web.service", "cgroup/s/db.service", "policies"] {
            std::fs::create_dir_all(at(p)).expect("a folder");
        }
        std::fs::write(at("policies/db.yaml"), POLICY).expect("written");
        std::fs::write(at("bulkhead.yaml"), Self::config_text(folder.path(), "audit")).expect("written");
        Self::start_in(folder).await
    }

    fn config_text(folder: &Path, posture: &str) -> String {
        let f = folder.display();
        format!(
            "posture: {posture}\npolicies: [{f}/policies]\nsocket: {f}/run/b.sock\nstate: {f}/state\n\
             workloads:\n- {{name: web, id: spiffe://t/web, cgroup: /s/web*.service}}\n\
             - {{name: db, id: spiffe://t/db, cgroup: /s/db.service}}\n"
        )
    }

    async fn start_in(folder: tempfile::TempDir) -> Self {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let (events, stream) = mpsc::channel(100);
        let kernel = Fake { memory: Arc::clone(&memory), events: Some(Stream(stream)) };
        let file = folder.path().join("bulkhead.yaml");
        let text = std::fs::read_to_string(&file).expect("there");
        let config = crate::config::parse("bulkhead.yaml", &text).unwrap_or_else(|e| panic!("{}", e[0]));
        let hierarchy = Hierarchy { mount: folder.path().join("cgroup"), hybrid: false };
        let (end, ended) = oneshot::channel();
        let start = Start { file, config, hierarchy };
        let agent = tokio::spawn(run(start, |_, _| Ok(kernel), async {
            // Told, or the test is gone: both end it.
            ended.await.unwrap_or_default()
        }));
        let rig = Self { folder, memory, events, end: Some(end), agent };
        rig.until("it answers", || async { rig.ask("/status").await.is_ok() }).await;
        rig
    }

    fn path(&self, p: &str) -> PathBuf {
        self.folder.path().join(p)
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().expect("no test panics with it")
    }

    async fn until<F: Future<Output = bool>>(&self, what: &str, mut condition: impl FnMut() -> F) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !condition().await {
            assert!(tokio::time::Instant::now() < deadline, "it never came to: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask(&self, target: &str) -> anyhow::Result<hyper::Response<Incoming>> {
        let stream = tokio::net::UnixStream::connect(self.path("run/b.sock")).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender.send_request(hyper::Request::get(target).header("host", "x").body(Empty::<Bytes>::new())?).await?)
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> T {
        let body = self.ask(target).await.expect("an answer").into_body().collect().await.expect("a body").to_bytes();
        serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&body)))
    }

    async fn status(&self) -> Status {
        self.get("/status").await
    }

    async fn stop_and(self, look: impl FnOnce()) {
        // The folder goes with what is returned here.
        let _folder = self.stop().await;
        look();
    }

    async fn stop(mut self) -> tempfile::TempDir {
        drop(self.end.take());
        self.agent.await.expect("no panic").unwrap_or_else(|e| panic!("{e}"));
        self.folder
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_before_it_attaches_and_follows_new_cgroups() {
    let rig = Rig::start().await;
    let status = rig.status().await;
    assert!(status.ready && status.programs[0].attached && status.faults.is_empty(), "{status:?}");
    assert_eq!(status.workloads[0].cgroups, ["/s/web.service"]);
    assert_eq!(status.policies.len(), 1);
    assert_eq!(rig.memory().images.len(), 1);
    // Nothing is unlisted yet; what is belongs to the host, which may do what it likes.
    assert!(!rig.memory().images[0].baselines.contains_key(&Class::Host.id()));

    std::fs::create_dir(rig.path("cgroup/s/web-2.service")).expect("made");
    rig.until("the new instance is known", || async { rig.memory().images.len() == 2 }).await;
    std::fs::remove_dir(rig.path("cgroup/s/web-2.service")).expect("removed");
    rig.until("it is gone again", || async { rig.memory().images.len() == 3 }).await;
    {
        let m = rig.memory();
        assert_eq!(m.images[0], m.images[2]);
        assert_eq!(m.images[1].cgroups.len(), m.images[0].cgroups.len() + 1);
    }
    std::fs::create_dir(rig.path("cgroup/s/sshd.service")).expect("made");
    rig.until("the host's is known", || async { rig.memory().images.len() == 4 }).await;
    {
        let m = rig.memory();
        let host = m.images[3].baselines[&Class::Host.id()];
        assert!(host.sides == Sides::ALL && host.sockets_now & Baseline::RAW != 0);
        assert!(m.images[3].cgroups.values().any(|b| b.peer == Class::Host.id()));
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_numbers_and_a_second_agent_is_refused() {
    let rig = Rig::start().await;
    let first = rig.memory().images[0].clone();
    let text = std::fs::read_to_string(rig.path("bulkhead.yaml")).expect("there");
    let config = crate::config::parse("f", &text).expect("fine");
    let hierarchy = Hierarchy { mount: rig.path("cgroup"), hybrid: false };
    let start = Start { file: rig.path("bulkhead.yaml"), config, hierarchy };
    let never = |_: &Config, _: &Hierarchy| -> Result<Fake, Failure> { panic!("opened in spite of the lock") };
    let refused = run(start, never, std::future::pending()).await;
    assert!(matches!(refused, Err(Failure::AlreadyRunning(_))));

    let folder = rig.stop().await;
    let again = Rig::start_in(folder).await;
    assert_eq!(again.memory().images[0], first);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_leaves_the_last_good_state_and_is_told() {
    let rig = Rig::start().await;
    std::fs::write(rig.path("policies/db.yaml"), POLICY.replace("5432", "70000")).expect("written");
    rig.until("the policy's fault is told", || async {
        rig.status().await.findings.iter().any(|f| f.error && f.text.contains("db.yaml:"))
    })
    .await;
    std::fs::write(rig.path("bulkhead.yaml"), "posture: nonsense\n").expect("written");
    rig.until("the configuration's fault is told", || async {
        rig.status().await.findings.iter().any(|f| f.error && f.text.contains("bulkhead.yaml:1:10"))
    })
    .await;
    assert_eq!(rig.memory().images.len(), 1, "nothing was committed");

    std::fs::write(rig.path("policies/db.yaml"), POLICY).expect("written");
    let good = Rig::config_text(rig.folder.path(), "enforce");
    std::fs::write(rig.path("new"), good).expect("written");
    std::fs::rename(rig.path("new"), rig.path("bulkhead.yaml")).expect("renamed");
    rig.until("the good ones are in force", || async {
        let s = rig.status().await;
        s.epoch >= 2 && s.findings.iter().all(|f| !f.error)
    })
    .await;
    let deny = Baseline { sides: Sides(0), sockets_now: 0, sockets_audited: 0 };
    let last = rig.memory().images.last().expect("one").clone();
    assert_eq!(last.baselines[&PeerId(256)].sides, deny.sides);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_needs_a_restart_is_refused_on_reload() {
    let rig = Rig::start().await;
    let text = Rig::config_text(rig.folder.path(), "audit");
    std::fs::write(rig.path("bulkhead.yaml"), format!("instance: other\n{text}")).expect("written");
    rig.until("that is told", || async {
        rig.status().await.findings.iter().any(|f| f.error && f.text.contains("restart the agent"))
    })
    .await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_put_right_and_a_failed_commit_is_tried_again() {
    let rig = Rig::start().await;
    rig.memory().faults.push("a link is gone".to_owned());
    rig.until("it is put right", || async { rig.memory().repaired == ["a link is gone"] }).await;
    rig.memory().refuse_commits = true;
    std::fs::create_dir(rig.path("cgroup/s/web-3.service")).expect("made");
    rig.until("the failure is told", || async { rig.status().await.faults.iter().any(|f| f.contains("no room")) })
        .await;
    rig.memory().refuse_commits = false;
    rig.until("it is in force", || async { rig.memory().images.len() == 2 }).await;
    rig.until("nothing is told any more", || async { rig.status().await.faults.is_empty() }).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_get_what_they_asked_for_and_edges_add_up() {
    let rig = Rig::start().await;
    let key = EdgeKey {
        src: 256,
        dst: 257,
        port: 5432,
        proto: 6,
        outcome: Outcome::WouldDeny as u8,
        reason: Reason::NoEgressRule as u8,
        ..EdgeKey::default()
    };
    rig.memory().edges = vec![(key, 7)];
    rig.until("the edge is read", || async { rig.get::<Vec<EdgeLine>>("/edges?port=5432").await.len() == 1 }).await;
    let edges: Vec<EdgeLine> = rig.get("/edges?id=spiffe%3A%2F%2Ft%2Fdb").await;
    assert_eq!((edges[0].edge.source.id.as_str(), edges[0].count.total), ("spiffe://t/web", 7));
    assert!(rig.get::<Vec<EdgeLine>>("/edges?verdict=denied").await.is_empty());

    let mut body = rig.ask("/observe?port=80").await.expect("an answer").into_body();
    rig.until("allowed flows are asked for", || async { rig.memory().emit_allowed }).await;
    for dport in [81, 80] {
        let event = Event { src: 256, dst: 257, dport, proto: 6, ..Event::default() };
        rig.events.send(event).await.expect("sent");
    }
    let decision: Decision = loop {
        let frame = body.frame().await.expect("a line").expect("whole").into_data().expect("data");
        // Empty lines say that the agent is there.
        if frame.as_ref() != b"\n" {
            break serde_json::from_slice(&frame).expect("JSON");
        }
    };
    assert_eq!((decision.edge.port, decision.edge.outcome.as_str()), (80, "allowed"));
    drop(body);
    rig.until("they aren't any more", || async { !rig.memory().emit_allowed }).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explains_from_what_is_in_force() {
    let rig = Rig::start().await;
    let ask =
        |port: u16| format!("/explain?from=spiffe%3A%2F%2Ft%2Fweb&to=spiffe%3A%2F%2Ft%2Fdb&port={port}&protocol=6");
    let good: Explained = rig.get(&ask(5432)).await;
    let bad: Explained = rig.get(&ask(22)).await;
    assert!(good.passes && !bad.passes, "{}\n{}", good.text, bad.text);
    let nonsense = rig.ask("/explain?from=x&to=world&port=1&protocol=6").await.expect("an answer");
    assert_eq!(nonsense.status(), 400);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ends_early_ends_the_agent() {
    let rig = Rig::start().await;
    let Rig { folder: _folder, memory: _memory, events, end: _end, agent } = rig;
    drop(events);
    let ended = tokio::time::timeout(Duration::from_secs(10), agent).await.expect("in time").expect("no panic");
    assert!(matches!(ended, Err(Failure::Other(e)) if format!("{e:#}").contains("events failed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_drifted_are_put_right_and_counted() {
    let rig = Rig::start().await;
    rig.memory().missing = 3;
    rig.until("they are put right", || async { rig.memory().missing == 0 }).await;
    rig.until("that is told", || async { rig.status().await.drift.repaired == 1 }).await;
    let status = rig.status().await;
    assert_eq!((status.drift.found, status.drift.last.map(|d| d.missing)), (1, Some(3)), "{status:?}");
    assert_eq!(status.epoch, 2);
    rig.stop().await;
}

/// In a large cluster addresses change hands all the time, and each may be anybody's peer.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_looked_at_when_addresses_changed_hands_but_not_each_time() {
    let rig = Rig::start().await;
    let config = Rig::config_text(rig.folder.path(), "audit");
    let everything = |rig: &Rig| rig.memory().walks.iter().filter(|(reach, _)| *reach == Reach::Everything).count();
    let at = |n: usize| format!("{config}endpoints: [{{address: 10.9.0.{n}, id: spiffe://t/far}}]\n");
    let (begun, before) = (std::time::Instant::now(), everything(&rig));
    for n in 1..=8 {
        let address = bulkhead_common::Addr::v4([10, 9, 0, u8::try_from(n).expect("few")]);
        std::fs::write(rig.path("bulkhead.yaml"), at(n)).expect("written");
        rig.until("the address is known", || async {
            rig.memory().images.last().is_some_and(|image| image.addresses.contains_key(&address))
        })
        .await;
    }
    let known = everything(&rig);
    rig.until("somebody looked", || async { everything(&rig) > known }).await;
    // The first change's, the second look after the start, and one for each second begun.
    let most = before + 3 + usize::try_from(begun.elapsed().as_secs()).expect("few");
    assert!(everything(&rig) <= most, "{} looks, not {most}", everything(&rig));
    rig.stop_and(|| {}).await;
}
