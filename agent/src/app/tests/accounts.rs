//! What is written down: the history, the decision log, the report, and what /metrics says of them.

use super::*;
use crate::declog::verify::Verified;
use crate::declog::{Entry, Told};
use crate::history::History;
use crate::report::Report;
use std::collections::{BTreeMap, BTreeSet};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_outlives_the_agent_and_a_restart_counts_nothing_twice() {
    let key = EdgeKey { src: 256, dst: 257, port: 5432, proto: 6, ..EdgeKey::default() };
    let rig = Rig::start().await;
    let attempts = |h: &History| h.records.iter().map(|r| r.counts.attempts).sum::<u64>();
    rig.memory().edges = vec![(key, 7)];
    rig.until("it is stored", || async { attempts(&rig.get("/history").await) == 7 }).await;
    let folder = rig.stop().await;

    // The maps are the same, and counted on while nobody looked.
    let rig = Rig::start_in(folder).await;
    rig.memory().edges = vec![(key, 9)];
    rig.until("the rest is added", || async { attempts(&rig.get("/history").await) == 9 }).await;
    let h: History = rig.get("/history?since=0").await;
    let r = &h.records[0];
    assert_eq!((r.link.source.id.as_str(), r.link.destination.id.as_str()), ("spiffe://t/web", "spiffe://t/db"));
    assert!(h.window.watched > 0 && h.window.watched <= h.window.to - h.window.from, "{:?}", h.window);
    assert!(rig.get::<History>("/history?until=5").await.records.is_empty());
    let folder = rig.stop().await;

    // A damaged file is said, and service goes on.
    std::fs::write(folder.path().join("state/default/history.db"), "x".repeat(9000)).expect("written");
    let rig = Rig::start_in(folder).await;
    rig.memory().edges = vec![(key, 9)];
    rig.until("a new one is begun", || async { attempts(&rig.get("/history").await) == 9 }).await;
    rig.until("it is told", || async { rig.status().await.faults.iter().any(|f| f.contains("damaged-1")) }).await;
    rig.stop().await;
}

fn with_log(folder: &Path) {
    let text = Rig::config_text(folder, "audit");
    let f = folder.display();
    let log = format!(
        "metrics: {{listen: \"127.0.0.1:0\"}}\n\
         decisionLog: {{path: {f}/log/decisions.jsonl, interval: 1s, revisionFile: {f}/REVISION}}\n"
    );
    std::fs::write(folder.join("bulkhead.yaml"), text + &log).expect("written");
    std::fs::write(folder.join("REVISION"), "4f2c1d\n").expect("written");
}

fn entries(file: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn denied(comm: &[u8]) -> Event {
    let mut event = Event {
        src: 256,
        dst: 257,
        dport: 22,
        proto: 6,
        outcome: Outcome::Denied as u8,
        reason: Reason::NoIngressRule as u8,
        epoch: 1,
        pid: std::process::id(),
        ..Event::default()
    };
    event.comm[..comm.len()].copy_from_slice(comm);
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn each_denial_is_written_down_and_each_allowed_edge_now_and_then() {
    let folder = Rig::start().await.stop().await;
    with_log(folder.path());
    let rig = Rig::start_in(folder).await;
    let file = rig.path("log/decisions.jsonl");
    for n in 0..50 {
        rig.events.send(denied(format!("p{n}\x1b").as_bytes())).await.expect("sent");
    }
    let key = EdgeKey { src: 256, dst: 257, port: 5432, proto: 6, ..EdgeKey::default() };
    let mirrored = EdgeKey { direction: 1, ..key };
    rig.memory().edges = vec![(key, 7), (mirrored, 7)];
    let told = |kind: fn(&Told) -> bool| entries(&file).into_iter().filter(|e| kind(&e.told)).collect::<Vec<_>>();
    rig.until("they are written", || async { told(|t| matches!(t, Told::Decision(_))).len() == 50 }).await;
    rig.until("the allowed edge is", || async { !told(|t| matches!(t, Told::Allowed(_))).is_empty() }).await;

    let denials = told(|t| matches!(t, Told::Decision(_)));
    let Told::Decision(d) = &denials[0].told else { unreachable!("filtered") };
    assert_eq!((d.edge.source.id.as_str(), d.edge.destination.id.as_str()), ("spiffe://t/web", "spiffe://t/db"));
    assert_eq!((d.edge.reason.as_str(), d.epoch), ("no-ingress-rule", 1));
    assert!(d.executable.is_some() && d.comm == "p0\\u{1b}", "{d:?}");
    assert_eq!(denials[0].policy.commit.as_deref(), Some("4f2c1d"));
    let first = denials[0].policy.hash.clone();
    assert_eq!(first.len(), 32);
    let allowed = told(|t| matches!(t, Told::Allowed(_)));
    let Told::Allowed(a) = &allowed[0].told else { unreachable!("filtered") };
    assert_eq!((a.count, a.ingress_rule.as_deref()), (7, Some("SegmentationPolicy db ingress[0]")));
    assert_eq!(allowed.len(), 1, "counted by both ends, written once");

    // Other policies, another revision.
    std::fs::write(rig.path("policies/db.yaml"), POLICY.replace("5432", "5433")).expect("written");
    rig.until("another ruleset is in force", || async { rig.status().await.epoch == 2 }).await;
    rig.until("its revision is known", || async {
        rig.status().await.decision_log.is_some_and(|l| l.policy.hash != first)
    })
    .await;
    let status = rig.status().await;
    let kept = status.decision_log.expect("one is written").hash;

    // A restart goes on where the last agent ended, and the whole holds together.
    let folder = rig.stop().await;
    let rig = Rig::start_in(folder).await;
    rig.until("it begins again", || async { told(|t| matches!(t, Told::Begin { .. })).len() == 2 }).await;
    rig.stop_and(|| {
        let bytes = std::fs::read(&file).expect("there");
        let mut v = Verified { wanted: Some(kept.clone()), ..Verified::default() };
        v.read("f", &bytes[..]).expect("readable");
        v.end();
        assert!(v.findings.is_empty() && v.lines > 52, "{:?}", v.findings);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_is_said_and_counted_and_harms_nothing() {
    let folder = Rig::start().await.stop().await;
    with_log(folder.path());
    // A file where the folder should be.
    std::fs::write(folder.path().join("log"), "").expect("written");
    let rig = Rig::start_in(folder).await;
    for _ in 0..3 {
        rig.events.send(denied(b"x")).await.expect("sent");
    }
    let dropped = || async { rig.status().await.decision_log.map_or(0, |l| l.dropped.disk) };
    rig.until("what is missing is counted", || async { dropped().await == 3 }).await;
    let status = rig.status().await;
    assert!(status.ready && status.faults.iter().any(|f| f.contains("decision log")), "{:?}", status.faults);

    std::fs::remove_file(rig.path("log")).expect("removed");
    rig.events.send(denied(b"x")).await.expect("sent");
    let file = rig.path("log/decisions.jsonl");
    rig.until("it is told in the log", || async {
        entries(&file).iter().any(|e| matches!(e.told, Told::Dropped(d) if d.disk == 3))
    })
    .await;
    rig.until("and not a fault any more", || async { rig.status().await.faults.is_empty() }).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_is_of_what_is_in_force() {
    let rig = Rig::start().await;
    let report: Report = rig.get("/report").await;
    // The posture audits; the policy enforces what reaches db.
    assert_eq!((report.surface.pairs, report.surface.reachable, report.surface.audited_reachable), (2, 2, 0));
    rig.stop().await;
}

/// The metrics with their labels, as they are served when there is something of each kind.
async fn served() -> BTreeMap<String, BTreeSet<String>> {
    let folder = Rig::start().await.stop().await;
    with_log(folder.path());
    // Free a moment ago; nobody else asks for this one.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let file = folder.path().join("bulkhead.yaml");
    let text = std::fs::read_to_string(&file).expect("there");
    std::fs::write(&file, text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"))).expect("written");
    let rig = Rig::start_in(folder).await;
    rig.memory().edges =
        vec![(EdgeKey { src: 256, dst: 257, port: 22, proto: 6, outcome: 3, ..EdgeKey::default() }, 7)];
    rig.memory().overflow = 5;
    let mut page = String::new();
    for what in ["bulkhead_refused_connections_total{", "bulkhead_unattributed_flows_total{", "_surface_ratio{"] {
        while !page.contains(what) {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("HTTP");
            tokio::spawn(connection);
            let request = hyper::Request::get("/metrics").header("host", "x").body(Empty::<Bytes>::new()).expect("one");
            let body = sender.send_request(request).await.expect("an answer").into_body().collect().await.expect("all");
            page = String::from_utf8(body.to_bytes().to_vec()).expect("text");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    rig.stop().await;
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).expect("a sample"));
        all.entry(name.to_owned()).or_default().extend(labels(rest));
    }
    all
}

/// The names before `=` of a selector that the text begins with.
fn labels(text: &str) -> Vec<String> {
    let Some(inside) = text.strip_prefix('{').and_then(|t| t.split_once('}')) else { return Vec::new() };
    // Values have no commas in what we look at but those of samples, which come with a quote before.
    let pairs = inside.0.split("\",").filter(|p| !p.is_empty());
    pairs.filter_map(|p| Some(p.split_once('=')?.0.trim_end_matches('!').trim().to_owned())).collect()
}

/// Everything that Prometheus would be asked.
fn expressions(value: &serde_json::Value, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, v) in map {
                match v.as_str() {
                    Some(text) if key == "expr" || key == "definition" => out.push(text.to_owned()),
                    _ => expressions(v, out),
                }
            }
        }
        serde_json::Value::Array(all) => all.iter().for_each(|v| expressions(v, out)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_dashboard_name_only_metrics_and_labels_that_are_served() {
    let served = tokio::time::timeout(Duration::from_secs(60), served()).await.expect("in time");
    let alerts = serde_saphyr::from_str(include_str!("../../../../deploy/alerts.yaml")).expect("YAML");
    let dashboard = serde_json::from_str(include_str!("../../../../deploy/dashboard.json")).expect("JSON");
    for (file, value) in [("alerts.yaml", &alerts), ("dashboard.json", &dashboard)] {
        let mut all = Vec::new();
        expressions(value, &mut all);
        assert!(all.len() > 10, "{file}");
        for expression in all {
            let mut named = 0;
            for (at, _) in expression.match_indices("bulkhead_") {
                let rest = &expression[at..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let own = served.get(&rest[..end]).unwrap_or_else(|| panic!("{file}: {} isn't served", &rest[..end]));
                for label in labels(&rest[end..]) {
                    // Prometheus adds this one itself.
                    assert!(label == "instance" || own.contains(&label), "{file}: {label} of {}", &rest[..end]);
                }
                named += 1;
            }
            assert!(named > 0, "{file}: {expression}");
        }
    }
}

#[test]
fn promtool_takes_the_alerts_and_their_tests_pass() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        match std::process::Command::new("promtool").args(arguments).current_dir(&deploy).output() {
            Ok(done) => {
                let said = [done.stdout, done.stderr].concat();
                assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                println!("SKIPPED: promtool isn't installed: `cargo xtask setup --for lint` brings it");
                return;
            }
            Err(e) => panic!("promtool: {e}"),
        }
    }
}
