//! The estate as objects for the API server: namespaces, service accounts, pods, Services, policies.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{
    ASKED, BY_HAND, CONTROL_PLANE, DATABASE, EXTERNAL, Extra, INTENDED, Kind, MASQUERADED_PORT, MEMBER, NAMESPACES,
    NIGHTLY_KEY, NODE_PORT, PORT, Probe, SIDECAR, TALK, WEBHOOK, WORKLOADS, Workload, own_sides, workload,
};
use crate::cluster::POD_IMAGE;

/// Namespaces, service accounts, pods and Services.
pub(in crate::e2e) fn objects() -> Value {
    let all = NAMESPACES.iter().map(|name| namespace(name, "observe")).chain(WORKLOADS.iter().flat_map(of_workload));
    let more = [
        service(&WORKLOADS[3], BY_HAND, json!({"selector": null})),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere", "namespace": "shop"},
            "spec": {"type": "ExternalName", "externalName": "db.data.svc.cluster.local"}}),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": all.chain(more).collect::<Vec<_>>()})
}

/// One namespace with all that is in it.
pub(in crate::e2e) fn objects_of(name: &str, posture: &str) -> Value {
    let all = WORKLOADS.iter().filter(|w| w.namespace == name).flat_map(of_workload);
    json!({"apiVersion": "v1", "kind": "List", "items": std::iter::once(namespace(name, posture)).chain(all).collect::<Vec<_>>()})
}

fn namespace(name: &str, posture: &str) -> Value {
    let labels = if posture == "observe" { json!({}) } else { json!({"bulkhead.dev/posture": posture}) };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn of_workload(w: &Workload) -> Vec<Value> {
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(w, w.name)}),
        match w.kind {
            Kind::CronJob => nightly(w),
            _ => pods(w),
        },
    ];
    if w.is_served() {
        items.push(service(w, w.name, json!({})));
    }
    if w.kind == Kind::StatefulSet {
        items.push(service(w, &format!("{}-members", w.name), json!({"clusterIP": "None"})));
    }
    items
}

fn metadata(w: &Workload, name: &str) -> Value {
    json!({"name": name, "namespace": w.namespace})
}

fn pods(w: &Workload) -> Value {
    let labels = json!({(MEMBER): w.name});
    let mut spec = json!({
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod(w)},
    });
    if w.kind != Kind::DaemonSet {
        spec["replicas"] = w.replicas.into();
    }
    if w.kind == Kind::StatefulSet {
        spec["serviceName"] = format!("{}-members", w.name).into();
        spec["podManagementPolicy"] = "Parallel".into();
    }
    json!({"apiVersion": "apps/v1", "kind": format!("{:?}", w.kind), "metadata": metadata(w, w.name), "spec": spec})
}

fn pod(w: &Workload) -> Value {
    let probe = match w.probe {
        Probe::Tcp => json!({"tcpSocket": {"port": PORT}}),
        Probe::Http => json!({"httpGet": {"port": "talk", "path": "/"}}),
        Probe::Exec => json!({"exec": {"command": ["/pod", "alive", PORT.to_string()]}}),
    };
    let with = |more: Value| {
        let mut probe = probe.clone();
        probe["timeoutSeconds"] = 5.into();
        merge(&mut probe, more);
        probe
    };
    let first = json!({
        "name": "first", "image": POD_IMAGE, "imagePullPolicy": "Never",
        "args": ["once", w.first_key().to_string(), "tcp", format!("{DATABASE}:{PORT}")],
    });
    let mut pod = json!({
        "serviceAccountName": w.name,
        "hostNetwork": w.host_network,
        "terminationGracePeriodSeconds": 1,
        // On both nodes, where there are several.
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {(MEMBER): w.name}},
        }],
        "initContainers": if w.connects_first { vec![first] } else { Vec::new() },
        "containers": [{
            "name": "member", "image": POD_IMAGE, "imagePullPolicy": "Never",
            "args": ["talk", PORT.to_string(), "/talk", "$(NAME)"],
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [
                {"name": "talk", "containerPort": PORT, "protocol": "TCP"},
                {"name": "talk-udp", "containerPort": PORT, "protocol": "UDP"},
            ],
            "readinessProbe": with(json!({"periodSeconds": 2})),
            // A pod that enforcement cuts off from its kubelet would be started again.
            "livenessProbe": with(json!({"periodSeconds": 10, "failureThreshold": 3})),
            "volumeMounts": [{"name": "talk", "mountPath": "/talk"}],
        }],
        "volumes": [{"name": "talk", "hostPath": {"path": format!("/var/{TALK}"), "type": "DirectoryOrCreate"}}],
    });
    let mut add = |list: &str, item: Value| {
        pod[list].as_array_mut().into_iter().for_each(|all| all.push(item.clone()));
    };
    if w.meshed {
        let (port, user) = SIDECAR;
        add("volumes", json!({"name": "host", "hostPath": {"path": "/", "type": "Directory"}}));
        add(
            "initContainers",
            json!({
                "name": "redirect", "image": POD_IMAGE, "imagePullPolicy": "Never",
                "args": ["redirect", "/host", port.to_string(), user.to_string()],
                "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
                "volumeMounts": [{"name": "host", "mountPath": "/host", "readOnly": true}],
            }),
        );
        add(
            "containers",
            json!({
                "name": "sidecar", "image": POD_IMAGE, "imagePullPolicy": "Never",
                "args": ["proxy", port.to_string()], "securityContext": {"runAsUser": user},
            }),
        );
    }
    let (name, port, secret) = WEBHOOK;
    if w.name == name {
        let container = json!({
            "name": "webhook", "image": POD_IMAGE, "imagePullPolicy": "Never",
            "args": ["webhook", port.to_string(), "/tls"],
            "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": true}],
        });
        let volume = json!({"name": "tls", "secret": {"secretName": secret}});
        add("containers", container);
        add("volumes", volume);
    }
    pod
}

/// The webhook: certificate, Service, and that nothing with the label is created in its namespace without it.
pub(in crate::e2e) fn webhook(certificate: &str, key: &str) -> Value {
    let (name, port, service) = WEBHOOK;
    let namespace = workload(name).map_or("", |w| w.namespace);
    let base64 = |text: &str| STANDARD.encode(text);
    let items = json!([
        {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
         "metadata": {"name": service, "namespace": namespace},
         "data": {"tls.crt": base64(certificate), "tls.key": base64(key)}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": namespace},
         "spec": {"selector": {(MEMBER): name}, "ports": [{"port": 443, "targetPort": port}]}},
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
         "metadata": {"name": "e2e"},
         "webhooks": [{
             "name": "asked.e2e.bulkhead.dev", "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 5,
             "admissionReviewVersions": ["v1"],
             "clientConfig": {
                 "caBundle": base64(certificate),
                 "service": {"name": service, "namespace": namespace, "port": 443},
             },
             "objectSelector": {"matchExpressions": [{"key": ASKED, "operator": "Exists"}]},
             "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
         }]},
    ]);
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// The CronJob. When it would run by itself nobody is there any more: a run is made when it is wanted.
fn nightly(w: &Workload) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata(w, w.name),
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": {
            "serviceAccountName": w.name, "restartPolicy": "Never",
            "containers": [{
                "name": "nightly", "image": POD_IMAGE, "imagePullPolicy": "Never",
                "args": ["once", NIGHTLY_KEY.to_string(), "tcp", format!("{DATABASE}:{PORT}")],
            }],
        }}}}},
    })
}

fn service(w: &Workload, name: &str, more: Value) -> Value {
    let own = name == w.name;
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": PORT, "protocol": protocol});
    let mut ports = ["TCP", "UDP"].map(port);
    if w.extra == Extra::Masqueraded && own {
        ports[0]["targetPort"] = "talk".into();
        ports[1]["targetPort"] = "talk-udp".into();
    }
    let node_port = match w.extra {
        Extra::Local => Some((NODE_PORT, "Local")),
        Extra::Masqueraded => Some((MASQUERADED_PORT, "Cluster")),
        Extra::No => None,
    };
    let mut spec = json!({"ipFamilyPolicy": "RequireDualStack", "selector": {(MEMBER): w.name}});
    if let Some((number, policy)) = node_port.filter(|_| own) {
        ports.iter_mut().for_each(|p| p["nodePort"] = number.into());
        spec["type"] = "NodePort".into();
        spec["externalTrafficPolicy"] = policy.into();
    }
    if w.extra == Extra::Local && own {
        spec["externalIPs"] = json!(EXTERNAL);
    }
    if w.kind == Kind::StatefulSet && own {
        spec["clusterIP"] = DATABASE.into();
    }
    spec["ports"] = ports.into();
    merge(&mut spec, more);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(w, name), "spec": spec})
}

/// The endpoints of the Service that selects nobody: those of the workload's pods at present.
pub(in crate::e2e) fn endpoints_by_hand(addresses: &[String]) -> Value {
    let slice = |family: &str, of: Vec<&String>| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("{BY_HAND}-{}", family.to_lowercase()), "namespace": WORKLOADS[3].namespace,
                "labels": {"kubernetes.io/service-name": BY_HAND},
            },
            "ports": [
                {"name": "tcp", "port": PORT, "protocol": "TCP"}, {"name": "udp", "port": PORT, "protocol": "UDP"},
            ],
            "endpoints": of.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect::<Vec<_>>(),
        })
    };
    let (v6, v4) = addresses.iter().partition(|a| a.contains(':'));
    json!({"apiVersion": "v1", "kind": "List", "items": [slice("IPv4", v4), slice("IPv6", v6)]})
}

/// Adds fields; null takes one away.
fn merge(into: &mut Value, more: Value) {
    let (Value::Object(into), Value::Object(more)) = (into, more) else { return };
    for (key, value) in more {
        if value.is_null() {
            into.remove(&key);
        } else {
            into.insert(key, value);
        }
    }
}

/// The policies that open what is intended: namespaces open their own sides, and the cluster's opens both at once.
pub(in crate::e2e) fn policies(mode: &str) -> Value {
    let ports = json!([{"port": PORT}, {"protocol": "UDP", "port": PORT}]);
    let peer = |name: &str| workload(name).map_or(Value::Null, |w| json!([{"id": w.id()}]));
    let edge = |(from, to): &(&str, &str)| json!({"from": peer(from), "to": peer(to), "ports": ports});
    let (name, port, _) = WEBHOOK;
    let server = CONTROL_PLANE.map(|address| json!({"cidr": address}));
    let asks = json!({"from": server, "to": peer(name), "ports": [{"port": port}]});
    let mut items = vec![json!({
        "apiVersion": "bulkhead.dev/v1alpha1", "kind": "ClusterSegmentationPolicy",
        "metadata": {"name": "story"},
        "spec": {"mode": mode, "edges": INTENDED.iter().filter(|pair| !own_sides(pair)).map(edge).chain([asks]).collect::<Vec<_>>()},
    })];
    for w in &WORKLOADS {
        let of = |own: fn(&(&'static str, &'static str)) -> &'static str,
                  other: fn(&(&'static str, &'static str)) -> &'static str,
                  word: &str|
         -> Vec<Value> {
            let mine = INTENDED.iter().filter(|pair| own_sides(pair) && own(pair) == w.name);
            mine.map(|pair| json!({word: peer(other(pair)), "ports": ports})).collect()
        };
        let (ingress, egress) = (of(|p| p.1, |p| p.0, "from"), of(|p| p.0, |p| p.1, "to"));
        if ingress.is_empty() && egress.is_empty() {
            continue;
        }
        let mut spec = json!({"mode": mode, "selector": {"ids": [w.id()]}});
        for (section, rules) in [("ingress", ingress), ("egress", egress)] {
            if !rules.is_empty() {
                spec[section] = json!({"rules": rules});
            }
        }
        items.push(json!({
            "apiVersion": "bulkhead.dev/v1alpha1", "kind": "SegmentationPolicy",
            "metadata": metadata(w, w.name), "spec": spec,
        }));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
