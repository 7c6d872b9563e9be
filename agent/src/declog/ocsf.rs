//! The same lines in the words of OCSF 1.3: Network Activity (class 4001) with the profile `security_control`.
//!
//! What OCSF has no place for is in `unmapped`, at the end, and the chain with it.

use super::chain::Hash;
use super::{Allowed, Dropped, Entry, Revision, Told};
use crate::flows::{self, PeerName};
use crate::serve::api::Decision;
use bulkhead_common::Outcome;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

const CLASS: u32 = 4001;
/// activity_id: a connection is opened, refused, goes on; or something of our own.
const OPEN: u32 = 1;
const REFUSE: u32 = 5;
const TRAFFIC: u32 = 6;
const OTHER: u32 = 99;

/// The event; `unmapped` is its last field, and `prev` the last of that.
#[derive(Serialize)]
pub(super) struct Activity<'a> {
    #[serde(flatten)]
    fields: Map<String, Value>,
    unmapped: Unmapped<'a>,
}

#[derive(Serialize)]
struct Unmapped<'a> {
    #[serde(flatten)]
    own: Map<String, Value>,
    seq: u64,
    prev: &'a Hash,
}

/// An entry as an event.
pub(super) fn activity<'a>(entry: &Entry, at: u64, seq: u64, prev: &'a Hash) -> Activity<'a> {
    let Entry { at: time, told, policy } = entry;
    let (activity, severity, fields, own) = match told {
        Told::Decision(d) => decision(d),
        Told::Allowed(a) => allowed(a, at),
        Told::Begin { version, torn } => {
            let own = json!({"kind": "begin", "version": version, "torn": torn});
            (OTHER, 1, json!({"activity_name": "Begin"}), own)
        }
        Told::Dropped(d) => {
            let Dropped { kernel, queue, disk } = d;
            let own = json!({"kind": "dropped", "kernel": kernel, "queue": queue, "disk": disk});
            (OTHER, 2, json!({"activity_name": "Dropped"}), own)
        }
    };
    let Revision { hash, commit } = policy;
    let common = json!({
        "class_uid": CLASS, "class_name": "Network Activity", "category_uid": 4, "category_name": "Network Activity",
        "activity_id": activity, "type_uid": CLASS * 100 + activity, "severity_id": severity, "time": at,
        "metadata": {
            "version": "1.3.0", "profiles": ["security_control"], "original_time": time, "sequence": seq,
            "product": {"name": "Bulkhead", "vendor_name": "Bulkhead", "version": env!("CARGO_PKG_VERSION")},
        },
        "policy": {"uid": hash, "version": commit, "is_applied": true},
    });
    let mut all = object(common);
    all.append(&mut object(fields));
    Activity { fields: all, unmapped: Unmapped { own: object(own), seq, prev } }
}

fn decision(d: &Decision) -> (u32, u32, Value, Value) {
    let passes = Outcome::from_name(&d.edge.outcome).is_some_and(Outcome::passes);
    let fields = json!({
        "src_endpoint": endpoint(&d.edge.source, &d.source_address, None),
        "dst_endpoint": endpoint(&d.edge.destination, &d.destination_address, Some(d.edge.port)),
        "connection_info": connection(d.edge.protocol, &d.edge.direction),
        "actor": {"process": {
            "pid": d.pid, "name": d.comm,
            "file": d.executable.as_ref().map(|e| json!({"path": e, "name": e.rsplit('/').next(), "type_id": 1})),
        }},
        // Let through, and written down because the audited policies would deny it: 17 is "Logged".
        "action_id": if passes { 1 } else { 2 },
        "disposition_id": if passes { 17 } else { 2 },
        "status_detail": d.edge.reason,
        "firewall_rule": rule(d.egress_rule.as_ref(), d.ingress_rule.as_ref()),
    });
    let own = json!({
        "kind": "decision", "outcome": d.edge.outcome, "reason": d.edge.reason, "epoch": d.epoch, "hook": d.hook,
        "break_glass": d.break_glass, "egress_rule": d.egress_rule, "ingress_rule": d.ingress_rule,
    });
    if passes { (OPEN, 2, fields, own) } else { (REFUSE, 3, fields, own) }
}

fn allowed(a: &Allowed, at: u64) -> (u32, u32, Value, Value) {
    let fields = json!({
        "src_endpoint": endpoint(&a.edge.source, "", None),
        "dst_endpoint": endpoint(&a.edge.destination, "", Some(a.edge.port)),
        "connection_info": connection(a.edge.protocol, &a.edge.direction),
        "action_id": 1, "disposition_id": 1, "count": a.count, "start_time": a.since, "end_time": at,
        "status_detail": a.edge.reason,
        "firewall_rule": rule(a.egress_rule.as_ref(), a.ingress_rule.as_ref()),
    });
    let own = json!({
        "kind": "allowed", "outcome": a.edge.outcome, "reason": a.edge.reason, "epoch": a.epoch,
        "egress_rule": a.egress_rule, "ingress_rule": a.ingress_rule,
    });
    (TRAFFIC, 1, fields, own)
}

/// An end: its identity is the name, its namespace the zone.
fn endpoint(peer: &PeerName, address: &str, port: Option<u16>) -> Value {
    let address: Option<SocketAddr> = address.parse().ok();
    let mut e = Map::new();
    e.insert("name".to_owned(), json!(peer.id));
    if !peer.namespace.is_empty() {
        e.insert("zone".to_owned(), json!(peer.namespace));
    }
    if let Some(a) = address {
        e.insert("ip".to_owned(), json!(a.ip().to_string()));
    }
    if let Some(port) = port.or(address.map(|a| a.port())).filter(|p| *p != 0) {
        e.insert("port".to_owned(), json!(port));
    }
    Value::Object(e)
}

fn connection(protocol: u8, direction: &str) -> Value {
    let (id, name) = if direction == "ingress" { (1, "Inbound") } else { (2, "Outbound") };
    json!({
        "protocol_num": protocol, "protocol_name": flows::protocol(protocol), "direction_id": id, "direction": name,
    })
}

fn rule(egress: Option<&String>, ingress: Option<&String>) -> Value {
    egress.or(ingress).map_or(Value::Null, |name| json!({"name": name}))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        // OCSF has no nulls: what isn't known isn't there.
        Value::Object(map) => map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, pruned(v))).collect(),
        _ => Map::new(),
    }
}

fn pruned(value: Value) -> Value {
    if value.is_object() { Value::Object(object(value)) } else { value }
}
