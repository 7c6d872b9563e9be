//! AuthorizationPolicies: an evaluator of requests, and random policies. A connection that the import lets through may
//! carry any request, so all of them must be allowed.

use super::obvious::{Pod, Who, World, file, lies_in};
use super::random::world;
use super::{Tally, cases, compare};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestCaseError, TestRunner};
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;

type Lists = BTreeMap<&'static str, Vec<String>>;

#[derive(Clone, Debug)]
struct Rule {
    from: Vec<Lists>,
    to: Vec<Lists>,
    /// A condition on a header.
    when: bool,
}

#[derive(Clone, Debug)]
struct Authorization {
    namespace: &'static str,
    name: String,
    labels: BTreeMap<String, String>,
    action: &'static str,
    rules: Vec<Rule>,
}

/// A request, as far as these policies tell them apart.
#[derive(Clone, Copy)]
struct Request {
    method: &'static str,
    header: bool,
}

/// "Exact match, prefix match (abc*), suffix match (*abc) and presence match (*)."
fn matches(pattern: &str, value: &str) -> bool {
    match (pattern, pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        ("*", ..) => !value.is_empty(),
        (_, Some(prefix), _) => value.starts_with(prefix),
        (_, _, Some(suffix)) => value.ends_with(suffix),
        _ => pattern == value,
    }
}

fn source_fits(world: &World, source: &Lists, who: Who) -> bool {
    let pod = world.pod(who);
    let principal = pod.map(|p| p.id().replace("spiffe://", "")).unwrap_or_default();
    let namespace = pod.map(|p| p.namespace.clone()).unwrap_or_default();
    source.iter().all(|(field, values)| match *field {
        "principals" => values.iter().any(|v| matches(v, &principal)),
        "notPrincipals" => !values.iter().any(|v| matches(v, &principal)),
        "namespaces" => values.iter().any(|v| matches(v, &namespace)),
        "notNamespaces" => !values.iter().any(|v| matches(v, &namespace)),
        "ipBlocks" => values.iter().any(|v| lies_in(world.address(who), v)),
        other => panic!("no field {other}"),
    })
}

fn operation_fits(operation: &Lists, port: u16, request: Request) -> bool {
    operation.iter().all(|(field, values)| match *field {
        "ports" => values.contains(&port.to_string()),
        "notPorts" => !values.contains(&port.to_string()),
        "methods" => values.iter().any(|v| matches(v, request.method)),
        "notMethods" => !values.iter().any(|v| matches(v, request.method)),
        other => panic!("no field {other}"),
    })
}

impl Authorization {
    fn applies(&self, pod: &Pod) -> bool {
        let there = self.namespace == "istio-system" || self.namespace == pod.namespace;
        there && self.labels.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
    }

    fn fits(&self, world: &World, from: Who, port: u16, request: Request) -> bool {
        self.rules.iter().any(|rule| {
            (rule.from.is_empty() || rule.from.iter().any(|s| source_fits(world, s, from)))
                && (rule.to.is_empty() || rule.to.iter().any(|o| operation_fits(o, port, request)))
                && (!rule.when || request.header)
        })
    }
}

/// CUSTOM, then DENY, then ALLOW; without an ALLOW policy, everything. The authorizer refuses.
fn request_allowed(world: &World, all: &[Authorization], from: Who, to: &Pod, port: u16, request: Request) -> bool {
    let about = |action: &'static str| all.iter().filter(move |a| a.action == action && a.applies(to));
    let fits = |a: &Authorization| a.fits(world, from, port, request);
    if about("CUSTOM").any(fits) || about("DENY").any(fits) {
        return false;
    }
    about("ALLOW").next().is_none() || about("ALLOW").any(fits)
}

fn allowed(world: &World, all: &[Authorization], from: Who, to: Who, port: u16) -> bool {
    let Some(pod) = world.pod(to) else { return true };
    let requests =
        ["GET", "DELETE"].into_iter().flat_map(|method| [true, false].map(|header| Request { method, header }));
    requests.into_iter().all(|request| request_allowed(world, all, from, pod, port, request))
}

fn written(a: &Authorization) -> Value {
    let lists = |l: &Lists| Value::Object(l.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<Map<_, _>>());
    let rule = |r: &Rule| {
        let mut map = Map::new();
        if !r.from.is_empty() {
            map.insert("from".to_owned(), r.from.iter().map(|s| json!({"source": lists(s)})).collect());
        }
        if !r.to.is_empty() {
            map.insert("to".to_owned(), r.to.iter().map(|o| json!({"operation": lists(o)})).collect());
        }
        if r.when {
            map.insert("when".to_owned(), json!([{"key": "request.headers[x]", "values": ["y"]}]));
        }
        Value::Object(map)
    };
    let mut spec = json!({"action": a.action, "rules": a.rules.iter().map(rule).collect::<Vec<_>>()});
    if !a.labels.is_empty() {
        spec["selector"] = json!({"matchLabels": a.labels});
    }
    if a.action == "CUSTOM" {
        spec["provider"] = json!({"name": "opa"});
    }
    let metadata = json!({"name": a.name, "namespace": a.namespace});
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
}

fn lists(fields: Vec<(&'static str, Vec<&'static str>, f64)>) -> impl Strategy<Value = Lists> {
    let fields: Vec<_> = fields
        .into_iter()
        .map(|(name, values, chance)| {
            prop::option::weighted(chance, prop::collection::vec(select(values), 1..3))
                .prop_map(move |v| v.map(|all| (name, all.into_iter().map(str::to_owned).collect())))
        })
        .collect();
    fields.prop_map(|all| all.into_iter().flatten().collect())
}

fn policies() -> impl Strategy<Value = Vec<Authorization>> {
    let principals = vec![
        "cluster.local/ns/n0/sa/s0",
        "cluster.local/ns/n1/sa/s1",
        "cluster.local/ns/n0/*",
        "cluster.local/ns/n0/sa/s*",
        "*/sa/s1",
        "*s0",
        "*",
    ];
    let source = lists(vec![
        ("principals", principals.clone(), 0.5),
        ("namespaces", vec!["n0", "n1", "n*", "*1"], 0.2),
        ("notPrincipals", principals, 0.1),
        ("notNamespaces", vec!["n0", "n1"], 0.08),
        ("ipBlocks", vec!["198.51.100.0/24", "10.0.1.0/24"], 0.1),
    ]);
    let operation = lists(vec![
        ("ports", vec!["80", "81", "443"], 0.7),
        ("notPorts", vec!["80", "443"], 0.15),
        ("methods", vec!["GET", "D*"], 0.1),
        ("notMethods", vec!["GET"], 0.05),
    ]);
    let some = |l: &Lists| !l.is_empty();
    let from = prop::collection::vec(source.prop_filter("not empty", some), 0..3);
    let to = prop::collection::vec(operation.prop_filter("not empty", some), 0..3);
    let rule = (from, to, prop::bool::weighted(0.06)).prop_map(|(from, to, when)| Rule { from, to, when });
    let action = prop_oneof![5 => Just("ALLOW"), 3 => Just("DENY"), 1 => Just("CUSTOM"), 1 => Just("AUDIT")];
    let labels = prop::option::weighted(0.4, select(vec![("app", "x"), ("app", "y"), ("tier", "f")]));
    let policy =
        (select(vec!["n0", "n1", "n0", "n1", "istio-system"]), labels, action, prop::collection::vec(rule, 0..3));
    prop::collection::vec(policy, 0..4).prop_map(|all| {
        let named = all.into_iter().enumerate().map(|(n, (namespace, labels, action, rules))| Authorization {
            namespace,
            name: format!("auth-{n}"),
            labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            action,
            rules,
        });
        named.collect()
    })
}

#[test]
fn an_imported_authorizationpolicy_lets_no_connection_through_that_may_carry_a_refused_request() {
    let tally = Cell::new(Tally::default());
    let mut runner = TestRunner::new(cases(800));
    let ran = runner.run(&(world(), policies()), |(world, policies)| {
        let about = |object: &str, pod: &Pod| {
            policies.iter().any(|a| object.ends_with(&format!("/{}", a.name)) && a.applies(pod))
        };
        let standard = |from, to, _, port| allowed(&world, &policies, from, to, port);
        let text = file(&policies.iter().map(written).collect::<Vec<_>>());
        let more = compare(&world, &text, &[(6, 80), (6, 81), (6, 443), (6, 9000)], about, standard);
        let mut sum = tally.get();
        sum += more.map_err(TestCaseError::fail)?;
        tally.set(sum);
        Ok(())
    });
    if let Err(e) = ran {
        panic!("{e}");
    }
    let Tally { exact, all, denied } = tally.get();
    println!("{exact} of {all} connections claimed to be exact, {denied} of them denied");
    assert!(exact * 3 > all && denied * 10 > exact, "the cases say little: {:?}", tally.get());
}
