//! Several policies that are asked in an order become Bulkhead's, where a deny wins over whatever allows.
//!
//! * **A policy that isolates** becomes one that isolates the same, with the same rules: those add up here as there.
//! * **A deny of a tier** becomes a deny, except for what an earlier rule of its tier accepts or passes on. One of the
//!   baseline leaves out whoever is isolated, too, and what the admin tier accepts.
//! * **An accept** matters where something would deny: as such an exception, and as a rule for those who are isolated.
//!   Where an earlier rule passes on some of what it accepts, it is left out, unless it is passed on altogether.

use super::estate::Pick;
use super::model::{Action, Clause, Errs, Everything, Isolation, Ordered, Source, Tier};
use super::resolve::{Ports, Resolver, covers, overlap, patterns, patterns_overlap, ports_cover, ports_overlap};
use super::tree::Spot;
use crate::policy::IdPattern;
use crate::policy::model::{Kind, Peer};
use std::collections::BTreeSet;

/// How many exceptions a deny may have in a cluster.
const EXCEPTIONS: usize = 16;

/// A rule of the result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    pub(super) peers: Vec<Peer>,
    pub(super) ports: Ports,
}

/// A deny of the result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Deny {
    pub(super) from: Vec<Peer>,
    pub(super) to: Vec<Peer>,
    pub(super) ports: Ports,
    pub(super) except: Vec<Except>,
}

/// What a deny leaves to the rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Except {
    pub(super) from: Option<Vec<Peer>>,
    pub(super) to: Option<Vec<Peer>>,
    pub(super) ports: Ports,
}

/// A policy of the result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Woven {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    /// What it should be called, if nobody else is.
    pub(super) name: String,
    pub(super) description: String,
    pub(super) selector: Vec<IdPattern>,
    pub(super) ingress: Option<Vec<Rule>>,
    pub(super) egress: Option<Vec<Rule>>,
    pub(super) denies: Vec<Deny>,
}

/// Which side of a connection is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Ingress,
    Egress,
}

/// A rule of a tier, resolved on both sides of what is sure.
struct Step<'a> {
    policy: usize,
    source: &'a Source,
    spot: &'a Spot,
    tier: Tier,
    priority: Option<i64>,
    action: Action,
    side: Side,
    subject: &'a Pick,
    /// What surely fits.
    sure: Option<Half>,
    /// What may fit.
    perhaps: Option<Half>,
    unless: Vec<Except>,
}

/// Peers and ports.
#[derive(Clone)]
struct Half {
    peers: Vec<Peer>,
    ports: Ports,
}

impl Step<'_> {
    /// Whether the other surely comes first.
    fn surely_after(&self, other: &Step<'_>) -> bool {
        other.policy != self.policy && matches!((other.priority, self.priority), (Some(a), Some(b)) if a < b)
    }

    /// Whether the other may come first.
    fn perhaps_after(&self, other: &Step<'_>) -> bool {
        other.policy != self.policy && !other.surely_after(self)
    }
}

/// Who is isolated on one side.
#[derive(Default)]
struct Isolated {
    /// All of whose pods are.
    whole: Vec<IdPattern>,
    /// Some of whose pods are.
    any: Vec<IdPattern>,
    /// The pods themselves.
    pods: BTreeSet<usize>,
}

/// Everything, woven together.
pub(super) fn weave(all: &Everything, resolver: &mut Resolver<'_>) -> Vec<Woven> {
    let isolations: Vec<(&Isolation, Pick)> =
        all.isolations.iter().map(|i| (i, resolver.pick(&i.source, &i.subject))).collect();
    let isolated = |side: Side| {
        let mut isolated = Isolated::default();
        let on = |i: &&(&Isolation, Pick)| match side {
            Side::Ingress => i.0.ingress.is_some(),
            Side::Egress => i.0.egress.is_some(),
        };
        for (_, pick) in isolations.iter().filter(on) {
            isolated.whole.extend(pick.whole.iter().cloned());
            isolated.any.extend(pick.any());
            isolated.pods.extend(&pick.pods);
        }
        isolated
    };
    let sides = [(Side::Ingress, isolated(Side::Ingress)), (Side::Egress, isolated(Side::Egress))];
    let mut woven = Vec::new();
    for (isolation, pick) in &isolations {
        isolate(isolation, pick, &sides, resolver, &mut woven);
    }
    let picks: Vec<Pick> = all.ordered.iter().map(|o| subject(o, resolver)).collect();
    for (side, isolated) in &sides {
        let steps = steps(all, &picks, *side, resolver);
        say_ties(&all.ordered, &steps, resolver);
        for (n, policy) in all.ordered.iter().enumerate() {
            denies(n, policy, &steps, isolated, resolver, &mut woven);
            accepts(n, policy, &steps, isolated, resolver, &mut woven);
        }
    }
    woven
}

fn subject(policy: &Ordered, resolver: &mut Resolver<'_>) -> Pick {
    let pick = resolver.pick(&policy.source, &policy.subject);
    for part in &pick.part {
        let reason = format!(
            "of the pods of {}, {} are selected and {} aren't: what it denies is denied to all of them, what it accepts \
             to none",
            part.id,
            resolver.estate.titles(&part.picked),
            resolver.estate.titles(&part.others)
        );
        resolver.findings.add(&policy.source, &policy.subject.spot, Errs::Stricter, reason);
    }
    if !pick.host.is_empty() && policy.subject.pods.is_empty() {
        let who = super::estate::shortened(pick.host.clone());
        let reason = format!("{who} in the node's own network are denied what it denies, too");
        resolver.findings.add(&policy.source, &policy.subject.spot, Errs::Stricter, reason);
    }
    pick
}

/// A policy that isolates, with what surely may be allowed to those who are isolated.
fn isolate(
    isolation: &Isolation,
    pick: &Pick,
    sides: &[(Side, Isolated); 2],
    resolver: &mut Resolver<'_>,
    woven: &mut Vec<Woven>,
) {
    let Isolation { source, subject, ingress, egress } = isolation;
    let (mut whole, mut shared) = (pick.whole.clone(), Vec::new());
    for part in &pick.part {
        // What it allows may be allowed to those pods, too, that nothing isolates.
        let free = sides.iter().all(|(side, isolated)| {
            let isolates = match side {
                Side::Ingress => ingress.is_some(),
                Side::Egress => egress.is_some(),
            };
            !isolates || part.others.iter().all(|n| !isolated.pods.contains(n))
        });
        let what =
            if free { "it isolates all of them" } else { "all of them are isolated, and its rules allow them nothing" };
        let reason = format!(
            "of the pods of {}, {} are selected and {} aren't: {what}; give them service accounts of their own",
            part.id,
            resolver.estate.titles(&part.picked),
            resolver.estate.titles(&part.others)
        );
        resolver.findings.add(source, &subject.spot, Errs::Stricter, reason);
        if free { &mut whole } else { &mut shared }.push(part.id.clone());
    }
    if !pick.host.is_empty() {
        let errs = if subject.pods.is_empty() { Errs::Stricter } else { Errs::Neither };
        let who = super::estate::shortened(pick.host.clone());
        let reason = format!("{who} are in the node's own network, where the CNI leaves them alone");
        resolver.findings.add(source, &subject.spot, errs, reason);
    }
    if whole.is_empty() && shared.is_empty() {
        if resolver.faults.is_empty() {
            let reason = "it selects no pod at present, so nothing is written for it";
            resolver.findings.add(source, &subject.spot, Errs::Neither, reason);
        }
        return;
    }
    // A namespace's own policy selects nobody else; what is in a mesh's root selects in all.
    let own = matches!(&subject.scope, super::estate::Scope::Own(_));
    let kind = if own { Kind::SegmentationPolicy } else { Kind::ClusterSegmentationPolicy };
    let policy = |name: String, description: String, selector, ingress, egress| Woven {
        kind,
        namespace: if own { source.namespace.clone() } else { String::new() },
        name,
        description,
        selector,
        ingress,
        egress,
        denies: Vec::new(),
    };
    let mut rules = |clauses: &Option<Vec<Clause>>, side: Side| {
        clauses.as_ref().map(|all| all.iter().filter_map(|c| rule(source, c, side, &whole, resolver)).collect())
    };
    let (ingress_rules, egress_rules) = (rules(ingress, Side::Ingress), rules(egress, Side::Egress));
    if !whole.is_empty() {
        let description = format!("imported from {source}");
        woven.push(policy(source.name.clone(), description, whole, ingress_rules, egress_rules));
    }
    if !shared.is_empty() {
        let description =
            format!("of these, {source} selects some pods and not all: isolated, and allowed nothing by it");
        let nothing = |clauses: &Option<Vec<Clause>>| clauses.as_ref().map(|_| Vec::new());
        woven.push(policy(format!("{}-shared", source.name), description, shared, nothing(ingress), nothing(egress)));
    }
}

fn rule(source: &Source, clause: &Clause, side: Side, subject: &[IdPattern], r: &mut Resolver<'_>) -> Option<Rule> {
    let peers = r.allowed(source, &clause.peers);
    if peers.is_empty() {
        return None;
    }
    let whose = if side == Side::Ingress { subject.to_vec() } else { patterns(&peers) };
    let ports = r.allowed_ports(source, &clause.ports, &whose)?;
    Some(Rule { peers, ports })
}

fn steps<'a>(all: &'a Everything, picks: &'a [Pick], side: Side, r: &mut Resolver<'_>) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for (n, (policy, subject)) in all.ordered.iter().zip(picks).enumerate() {
        let clauses = if side == Side::Ingress { &policy.ingress } else { &policy.egress };
        for clause in clauses {
            let source = &policy.source;
            let whose = |peers: &[Peer], subject: Vec<IdPattern>| match side {
                Side::Ingress => subject,
                Side::Egress => patterns(peers),
            };
            let perhaps = (clause.action != Action::Accept).then(|| {
                let peers = r.denied(source, &clause.peers);
                let ports = r.denied_ports(source, &clause.ports, &whose(&peers, subject.any()))?;
                (!peers.is_empty()).then_some(Half { peers, ports })
            });
            let sure = (clause.action != Action::Deny).then(|| {
                let peers = r.allowed(source, &clause.peers);
                let ports = r.allowed_ports(source, &clause.ports, &whose(&peers, subject.whole.clone()))?;
                (!peers.is_empty()).then_some(Half { peers, ports })
            });
            let unless = clause.unless.iter().filter_map(|peers| {
                let peers = r.allowed(source, peers);
                (!peers.is_empty()).then(|| except(side, None, Some(peers), None))
            });
            steps.push(Step {
                policy: n,
                source,
                spot: &clause.spot,
                tier: policy.tier,
                priority: policy.priority,
                action: clause.action,
                side,
                subject,
                unless: unless.collect(),
                sure: sure.flatten(),
                perhaps: perhaps.flatten(),
            });
        }
    }
    steps
}

fn ids(patterns: &[IdPattern]) -> Vec<Peer> {
    patterns.iter().cloned().map(Peer::Id).collect()
}

/// An exception about a subject and its peers.
fn except(side: Side, subject: Option<Vec<Peer>>, peers: Option<Vec<Peer>>, ports: Ports) -> Except {
    match side {
        Side::Ingress => Except { from: peers, to: subject, ports },
        Side::Egress => Except { from: subject, to: peers, ports },
    }
}

/// Policies whose order nobody can tell.
fn say_ties(policies: &[Ordered], steps: &[Step<'_>], resolver: &mut Resolver<'_>) {
    let only_denies = |n: usize| steps.iter().filter(|s| s.policy == n).all(|s| s.action == Action::Deny);
    let speaks = |n: usize| steps.iter().any(|s| s.policy == n);
    for (n, a) in policies.iter().enumerate() {
        for (m, b) in policies.iter().enumerate().skip(n + 1) {
            let tied = a.tier == b.tier && (a.priority == b.priority || a.priority.is_none() || b.priority.is_none());
            if tied && speaks(n) && speaks(m) && !(only_denies(n) && only_denies(m)) {
                let reason = format!(
                    "it and {} have one priority, so nobody says which comes first: the denies of both hold",
                    b.source
                );
                resolver.findings.add(&a.source, &a.source.spot, Errs::Stricter, reason);
            }
        }
    }
}

/// What an earlier rule takes out of a deny.
fn exception(earlier: &Step<'_>) -> Option<Except> {
    let half = earlier.sure.as_ref()?;
    let subject = (!earlier.subject.whole.is_empty()).then(|| ids(&earlier.subject.whole))?;
    Some(except(earlier.side, Some(subject), Some(half.peers.clone()), half.ports.clone()))
}

/// Whether both may be about one connection.
fn meet(a: &Step<'_>, b: &Step<'_>) -> bool {
    let subject = a.subject.any().iter().any(|p| b.subject.any().iter().any(|q| patterns_overlap(p, q)));
    let (Some(a), Some(b)) = (a.perhaps.as_ref().or(a.sure.as_ref()), b.perhaps.as_ref().or(b.sure.as_ref())) else {
        return false;
    };
    subject && overlap(&a.peers, &b.peers) && ports_overlap(&a.ports, &b.ports)
}

fn denies(
    n: usize,
    policy: &Ordered,
    steps: &[Step<'_>],
    isolated: &Isolated,
    resolver: &mut Resolver<'_>,
    woven: &mut Vec<Woven>,
) {
    let mut denies = Vec::new();
    for (at, step) in steps.iter().enumerate().filter(|(_, s)| s.policy == n && s.action == Action::Deny) {
        let Some(half) = &step.perhaps else { continue };
        let subject = ids(&step.subject.any());
        if subject.is_empty() {
            continue;
        }
        let mut all = step.unless.clone();
        if step.tier == Tier::Baseline {
            let isolated: Vec<IdPattern> = isolated
                .whole
                .iter()
                .filter(|p| step.subject.any().iter().any(|q| patterns_overlap(p, q)))
                .cloned()
                .collect();
            if covers(&ids(&isolated), &subject) {
                continue;
            }
            if !isolated.is_empty() {
                all.push(except(step.side, Some(ids(&isolated)), None, None));
            }
        }
        for (earlier_at, earlier) in steps.iter().enumerate().filter(|(_, e)| e.action != Action::Deny) {
            let same_policy = earlier.policy == n && earlier_at < at;
            let before = match (earlier.tier, step.tier) {
                (Tier::Admin, Tier::Baseline) => {
                    earlier.action == Action::Accept && lives(earlier, earlier_at, steps, resolver)
                }
                (a, b) => a == b && (same_policy || step.surely_after(earlier)),
            };
            if before && meet(earlier, step) {
                all.extend(exception(earlier));
            }
        }
        if all.len() > EXCEPTIONS {
            let reason =
                format!("more than {EXCEPTIONS} earlier rules take something out of it: the last of them don't here");
            resolver.findings.add(step.source, step.spot, Errs::Stricter, reason);
            all.truncate(EXCEPTIONS);
        }
        let (from, to) = match step.side {
            Side::Ingress => (half.peers.clone(), subject),
            Side::Egress => (subject, half.peers.clone()),
        };
        denies.push(Deny { from, to, ports: half.ports.clone(), except: all });
    }
    if denies.is_empty() {
        return;
    }
    let suffix = match steps[0].side {
        Side::Ingress => "ingress",
        Side::Egress => "egress",
    };
    woven.push(cluster(policy, &format!("deny-{suffix}"), Vec::new(), None, None, denies));
}

/// Whether what an accept accepts is really accepted, because no earlier rule may pass it on.
fn lives(step: &Step<'_>, at: usize, steps: &[Step<'_>], resolver: &mut Resolver<'_>) -> bool {
    let Some(half) = &step.sure else { return false };
    for (earlier_at, earlier) in steps.iter().enumerate() {
        let before = earlier.tier == step.tier
            && if earlier.policy == step.policy { earlier_at < at } else { step.perhaps_after(earlier) };
        if earlier.action != Action::Pass || !before || !meet(earlier, step) {
            continue;
        }
        let whole = earlier.sure.as_ref().is_some_and(|e| {
            covers(&ids(&earlier.subject.whole), &ids(&step.subject.whole))
                && covers(&e.peers, &half.peers)
                && ports_cover(&e.ports, &half.ports)
        });
        if !whole {
            let reason =
                format!("an earlier Pass of {} may take some of it, so none of it is accepted here", earlier.source);
            resolver.findings.add(step.source, step.spot, Errs::Stricter, reason);
        }
        return false;
    }
    true
}

/// What the admin tier accepts, for those who are isolated.
fn accepts(
    n: usize,
    policy: &Ordered,
    steps: &[Step<'_>],
    isolated: &Isolated,
    resolver: &mut Resolver<'_>,
    woven: &mut Vec<Woven>,
) {
    let mut selector: Vec<IdPattern> = Vec::new();
    let mut rules = Vec::new();
    let mut side = None;
    for (at, step) in steps.iter().enumerate() {
        if step.policy != n || step.action != Action::Accept || step.tier != Tier::Admin {
            continue;
        }
        selector = both(&step.subject.whole, &isolated.any);
        if selector.is_empty() || !lives(step, at, steps, resolver) {
            continue;
        }
        if let Some(Half { peers, ports }) = step.sure.clone() {
            rules.push(Rule { peers, ports });
            side = Some(step.side);
        }
    }
    match side {
        Some(Side::Ingress) => woven.push(cluster(policy, "accept-ingress", selector, Some(rules), None, Vec::new())),
        Some(Side::Egress) => woven.push(cluster(policy, "accept-egress", selector, None, Some(rules), Vec::new())),
        None => {}
    }
}

/// What both lists are about.
fn both(a: &[IdPattern], b: &[IdPattern]) -> Vec<IdPattern> {
    let mut all: Vec<IdPattern> = Vec::new();
    for p in a {
        for q in b {
            let narrower = if p.covers(q) {
                q
            } else if q.covers(p) {
                p
            } else {
                continue;
            };
            if !all.contains(narrower) {
                all.push(narrower.clone());
            }
        }
    }
    all
}

fn cluster(
    policy: &Ordered,
    what: &str,
    selector: Vec<IdPattern>,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
    denies: Vec<Deny>,
) -> Woven {
    let source = &policy.source;
    let prefix = if source.namespace.is_empty() { String::new() } else { format!("{}-", source.namespace) };
    Woven {
        kind: Kind::ClusterSegmentationPolicy,
        namespace: String::new(),
        name: format!("{prefix}{}-{what}", source.name),
        description: format!("imported from {source}"),
        selector,
        ingress,
        egress,
        denies,
    }
}
