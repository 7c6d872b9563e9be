//! `/metrics` in the OpenMetrics text format, `/livez` and `/readyz`.
//!
//! Each scrape is made from one snapshot, so its numbers belong together. Labels are the stable names of
//! [`bulkhead_common::outcome`], never Debug; combinations are bounded ([`crate::flows::series`]).

use crate::app::Snapshot;
use crate::flows;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What a scraper is told that this is.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many objects with faults have a series of their own.
const OBJECTS: usize = 100;

/// Serves until told to stop.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .with_state(snapshots);
    let end = async move {
        // Either it was told, or the sender is gone: in both cases it's over.
        while !*stopped.borrow_and_update() && stopped.changed().await.is_ok() {}
    };
    Ok(axum::serve(listener, router).with_graceful_shutdown(end).await?)
}

async fn readyz(State(snapshots): State<watch::Receiver<Arc<Snapshot>>>) -> Response {
    if snapshots.borrow().status.ready {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "no ruleset is in force yet\n").into_response()
}

async fn metrics(State(snapshots): State<watch::Receiver<Arc<Snapshot>>>) -> Response {
    let snapshot = Arc::clone(&snapshots.borrow());
    match render(snapshot) {
        Ok(text) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// A snapshot as OpenMetrics text.
///
/// # Errors
/// Never in practice: writing into a String doesn't fail.
pub fn render(snapshot: Arc<Snapshot>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("bulkhead");
    registry.register_collector(Box::new(Page(snapshot)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page(Arc<Snapshot>);

type Labels = Vec<(&'static str, String)>;

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let Snapshot { status, edges, series, history, surface, .. } = &*self.0;

        let build = vec![("version", status.version.clone()), ("instance", status.instance.clone())];
        info(e, "build", "The agent", &build)?;
        gauge(e, "ready", "1 once a ruleset is in force and the programs are attached", u64::from(status.ready))?;
        gauge(
            e,
            "untold_nodes",
            "Nodes of whose pods nobody has told, which a first start waits for or has gone ahead without",
            u64::try_from(status.untold_nodes.len()).unwrap_or(u64::MAX),
        )?;
        gauge(e, "epoch", "The ruleset in force", u64::from(status.epoch))?;
        counter(e, "commits", "Rulesets applied since the agent started", status.commits)?;
        if let Some(c) = status.last_commit {
            gauge(
                e,
                "last_commit_microseconds",
                "How long the last ruleset took to come into force",
                c.in_force_after_us,
            )?;
        }
        counter(
            e,
            "lost_events",
            "Events that the kernel had no room to send; counters have them",
            status.lost_events,
        )?;
        counter(
            e,
            "outside_without_address",
            "Connections with peers outside whose address found no room in the kernel's counters",
            status.without_address,
        )?;
        counter(
            e,
            "lost_dns_answers",
            "DNS answers that weren't read for names: too many in a second, or no room",
            status.lost_answers,
        )?;
        counter(
            e,
            "sockets_without_place",
            "Sockets whose place in the table was taken, so that making them took longer",
            status.sockets_without_place,
        )?;
        gauge(
            e,
            "edges",
            "Kinds of event between two peers that were counted",
            u64::try_from(edges.len()).unwrap_or(u64::MAX),
        )?;

        let refused = series.iter().map(|(l, n)| {
            let labels = vec![
                ("source", l.source.id.clone()),
                ("source_namespace", l.source.namespace.clone()),
                ("destination", l.destination.id.clone()),
                ("destination_namespace", l.destination.namespace.clone()),
                ("direction", l.direction.clone()),
                ("outcome", l.outcome.clone()),
                ("reason", l.reason.clone()),
            ];
            (labels, n)
        });
        counters(e, "refused_connections", "Connections that were denied, or would be (outcome)", refused)?;
        let mut by_outcome = std::collections::BTreeMap::<(String, String), u64>::new();
        for (key, n) in edges.totals() {
            let sum = by_outcome.entry((flows::direction(key.0), flows::outcome(key.1))).or_default();
            *sum = sum.saturating_add(n);
        }
        let flows = by_outcome.into_iter().map(|((d, o), n)| (vec![("direction", d), ("outcome", o)], n));
        counters(e, "flows", "Connections and datagram flows judged", flows)?;
        let overflow = edges.overflow().iter().map(|((d, o, r), n)| {
            (
                vec![
                    ("direction", flows::direction(*d)),
                    ("outcome", flows::outcome(*o)),
                    ("reason", flows::reason(*r)),
                ],
                *n,
            )
        });
        counters(e, "unattributed_flows", "Judged flows whose peers found no room in the kernel's counters", overflow)?;

        let used = status.maps.iter().map(|m| (vec![("map", m.name.clone())], m.used));
        gauges(e, "map_entries", "Entries in a table of the kernel", used)?;
        let capacity = status.maps.iter().map(|m| (vec![("map", m.name.clone())], m.capacity));
        gauges(e, "map_capacity", "Entries that fit in a table of the kernel", capacity)?;
        let outside = status.workloads.iter().map(|w| (vec![("workload", w.name.clone())], u64::from(w.outside)));
        gauges(e, "outside_addresses", "Addresses outside that are counted for a workload's identity", outside)?;
        let attached = status.programs.iter().map(|p| {
            let labels =
                vec![("program", p.name.clone()), ("hook", p.hook.clone()), ("attach_point", p.attach_point.clone())];
            (labels, u64::from(p.attached))
        });
        gauges(e, "program_attached", "1 while a program is attached", attached)?;

        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        gauge(e, "history_bytes", "What the history takes up on disk", history.bytes)?;
        gauge(e, "history_rows", "Rows of the history, when it was last tidied", history.rows)?;
        gauge(
            e,
            "history_written_timestamp_seconds",
            "When the history was last written; 0: not yet by this agent",
            history.written / 1000,
        )?;
        counter(
            e,
            "history_failures",
            "Writes of the history that failed; the next one makes up for it",
            history.failures,
        )?;
        gauge(e, "history_faults", "What is wrong with the history now; status says it", count(history.faults.len()))?;
        gauge(e, "history_damaged_files", "Damaged histories that were kept aside and still lie there", history.aside)?;
        counter(
            e,
            "history_overflow",
            "Executables, addresses and names that found no room in the history; their connections are counted",
            history.overflow,
        )?;
        if let Some(s) = surface {
            let pairs = [
                ("all", s.pairs),
                ("direct", s.direct),
                ("reachable", s.reachable),
                ("audited-direct", s.audited_direct),
                ("audited-reachable", s.audited_reachable),
            ];
            let pairs = pairs.map(|(which, n)| (vec![("which", which.to_owned())], n));
            gauges(
                e,
                "identity_pairs",
                "Pairs of identities: all, and those of which one can get to the other",
                pairs,
            )?;
            let mut m = e.encode_descriptor(
                "lateral_movement_surface_ratio",
                "The part of all pairs of identities of which one can get to the other, also by way of others",
                None,
                MetricType::Gauge,
            )?;
            for (verdict, n) in [("now", s.now()), ("audited", s.audited())] {
                ConstGauge::new(n).encode(family(&mut m, &vec![("verdict", verdict.to_owned())])?)?;
            }
        }
        if let Some(log) = &status.decision_log {
            counter(e, "decision_log_lines", "Lines of the decision log written since the agent started", log.written)?;
            let dropped = [("kernel", log.dropped.kernel), ("queue", log.dropped.queue), ("disk", log.dropped.disk)];
            let dropped = dropped.map(|(at, n)| (vec![("at", at.to_owned())], n));
            counters(e, "decision_log_dropped", "Lines missing in the decision log, by where they were lost", dropped)?;
            gauge(
                e,
                "decision_log_faulty",
                "1 while the decision log can't be written",
                u64::from(log.fault.is_some()),
            )?;
        }
        let findings = [true, false].map(|error| {
            let n = status.findings.iter().filter(|f| f.error == error).count();
            (vec![("severity", if error { "error" } else { "warning" }.to_owned())], count(n))
        });
        gauges(e, "file_findings", "Complaints about the configuration and the policies", findings)?;
        let refused: BTreeSet<&str> =
            status.findings.iter().filter(|f| f.error && !f.file.is_empty()).map(|f| f.file.as_str()).collect();
        let refused = refused.into_iter().map(|file| (vec![("file", file.to_owned())], 1));
        gauges(e, "file_refused", "1 for a file or policy object that isn't taken as it is now", refused)?;
        let objects: BTreeSet<&str> = status.object_faults.iter().map(|f| f.object.as_str()).collect();
        let objects = objects.into_iter().take(OBJECTS).map(|object| (vec![("object", object.to_owned())], 1));
        gauges(e, "object_fault", "1 for an object of the cluster with which something is wrong", objects)?;
        gauge(e, "faults", "What was out of order at the last look", count(status.faults.len()))?;
        gauge(e, "not_contained", "Sockets and the like that aren't kept apart", count(status.not_contained.len()))?;
        counter(
            e,
            "tables_verified",
            "How often the kernel's tables were read back and compared",
            status.drift.verified,
        )?;
        counter(e, "drift_found", "How often they didn't say what was compiled", status.drift.found)?;
        counter(e, "drift_repaired", "How often that was put right", status.drift.repaired)?;
        if let Some(ms) = status.open_since_boot_ms {
            gauge(e, "open_since_boot_milliseconds", "For how long nothing was attached since the boot", ms)?;
        }
        let o = &status.overrides;
        gauge(e, "revoked_ids", "SPIFFE IDs that are revoked", count(o.revoked.len()))?;
        let glass = o.break_glass.iter().map(|b| (vec![("scope", b.what.clone())], b.until.unwrap_or(0) / 1000));
        gauges(e, "break_glass_until_seconds", "When enforcement comes back, seconds since 1970", glass)?;
        gauge(e, "break_glass", "In how many scopes enforcement is off by break-glass", count(o.break_glass.len()))?;
        gauge(
            e,
            "lowered_namespaces",
            "Namespaces where enforcement is off, by annotation or for a mesh",
            count(o.lowered.len()),
        )?;
        let trials = o.enforced.iter().filter(|t| t.until.is_some()).count();
        gauge(e, "enforce_unconfirmed", "1 while something is enforced on trial", count(trials))?;
        counter(e, "cut_sockets", "Live sockets that were ended since they don't pass any more", status.cut_sockets)?;
        let postures = ["observe", "audit", "enforce"].map(|p| {
            let n = status.workloads.iter().filter(|w| w.posture.as_str() == p).count();
            (vec![("posture", p.to_owned())], count(n))
        });
        gauges(e, "workloads", "Workloads of the configuration", postures)
    }
}

fn info(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, labels: &Labels) -> fmt::Result {
    e.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
}

fn gauge(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, n: u64) -> fmt::Result {
    ConstGauge::new(signed(n)).encode(e.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, n: u64) -> fmt::Result {
    let mut m = e.encode_descriptor(name, help, None, MetricType::Counter)?;
    m.encode_counter::<NoLabelSet, _, u64>(&n, None)
}

fn gauges(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut m = e.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, n) in all {
        ConstGauge::new(signed(n)).encode(family(&mut m, &labels)?)?;
    }
    Ok(())
}

fn counters(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut m = e.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, n) in all {
        ConstCounter::new(n).encode(family(&mut m, &labels)?)?;
    }
    Ok(())
}

fn family<'s>(
    m: &'s mut prometheus_client::encoding::MetricEncoder<'_>,
    labels: &'s Labels,
) -> Result<prometheus_client::encoding::MetricEncoder<'s>, fmt::Error> {
    fn set<S: EncodeLabelSet>(s: &S) -> &S {
        s
    }
    m.encode_family(set(labels))
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
