//! What stops to hold by itself: policies and rules with an `expiresAt`.
//!
//! The time is handed in, so the same policies at the same time always mean the same. An expired policy is as if it
//! weren't there, and an expired rule speaks of nobody; the others keep their places.

use super::diagnostic::{At, Diagnostic, Severity};
use super::model::Policy;
use super::set::PolicySet;
use crate::time::rfc3339;

/// How long before its end something is warned about, milliseconds.
const SOON: u64 = 24 * 3600 * 1000;

/// The policies as they hold at this time.
pub fn at(set: PolicySet, now: u64) -> PolicySet {
    let over = |expires: &Option<At<u64>>| expires.as_ref().is_some_and(|t| t.value <= now);
    let some = |policy: &Policy| times(policy).iter().any(|(at, _)| at.value <= now);
    set.only(|policy| !over(&policy.expires)).each(some, |policy| {
        let Policy { ingress, egress, edges, denies, .. } = policy;
        for rule in ingress.iter_mut().chain(egress).flatten().filter(|r| over(&r.expires)) {
            rule.value.peers.clear();
        }
        for edge in edges.iter_mut().filter(|e| over(&e.expires)) {
            edge.value.from.clear();
        }
        for deny in denies.iter_mut().filter(|d| over(&d.expires)) {
            deny.value.from.clear();
        }
    })
}

/// The first time after this one at which something expires.
pub fn next(set: &PolicySet, now: u64) -> Option<u64> {
    set.iter().flat_map(times).map(|(at, _)| at.value).filter(|t| *t > now).min()
}

/// What has expired, and what will within a day.
pub fn findings(set: &PolicySet, now: u64) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for policy in set.iter() {
        for (at, what) in times(policy) {
            let (time, tell) = (rfc3339(at.value), |message: String, hint: &str| {
                at.diagnose(&policy.file, Severity::Warning, message, hint)
            });
            if at.value <= now {
                let message = format!("{what} has expired at {time}, so it isn't in force");
                findings.push(tell(message, "remove it, or give it a later time"));
            } else if at.value - now <= SOON {
                let message = format!("{what} expires within a day, at {time}; what it alone allows is cut then");
                findings.push(tell(message, "give it a later time if it is still needed"));
            }
        }
    }
    findings
}

/// Every end in a policy, with what ends.
fn times(policy: &Policy) -> Vec<(&At<u64>, String)> {
    let Policy { ingress, egress, edges, denies, .. } = policy;
    let rules = ingress.iter().chain(egress).flatten().map(|r| (&r.value.expires, "this rule"));
    let edges = edges.iter().map(|e| (&e.value.expires, "this edge"));
    let denies = denies.iter().map(|d| (&d.value.expires, "this deny"));
    let own = policy.expires.iter().map(|t| (t, policy.name.to_string()));
    own.chain(rules.chain(edges).chain(denies).filter_map(|(t, what)| Some((t.as_ref()?, what.to_owned())))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;
    use crate::time::parse_rfc3339;

    const TEXT: &str = "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {name: a}\nspec:\n  \
        mode: enforce\n  expiresAt: \"2026-03-01T00:00:00Z\"\n  edges:\n  \
        - {from: [{id: \"spiffe://t/a\"}], to: [{id: \"spiffe://t/b\"}], expiresAt: 2026-01-01T12:00:00Z}\n  \
        - {from: [{id: \"spiffe://t/a\"}], to: [{id: \"spiffe://t/c\"}]}\n";

    fn time(text: &str) -> u64 {
        parse_rfc3339(text).expect("a time")
    }

    #[test]
    fn rules_and_policies_end_in_their_places() {
        let (set, findings) = PolicySet::assemble(policy::read("f", TEXT), &PolicySet::default());
        assert!(findings.is_empty(), "{findings:?}");
        let edges = |now: &str| -> Option<Vec<usize>> {
            let set = at(set.clone(), time(now));
            let policy = set.iter().next()?;
            Some(policy.edges.iter().map(|e| e.value.from.len()).collect())
        };
        assert_eq!(edges("2026-01-01T11:59:59Z"), Some(vec![1, 1]));
        assert_eq!(edges("2026-01-01T12:00:00Z"), Some(vec![0, 1]));
        assert_eq!(edges("2026-03-01T00:00:00Z"), None);
        assert_eq!(next(&set, 0), Some(time("2026-01-01T12:00:00Z")));
        assert_eq!(next(&set, time("2026-01-01T12:00:00Z")), Some(time("2026-03-01T00:00:00Z")));
        assert_eq!(next(&set, time("2026-03-01T00:00:00Z")), None);
    }

    #[test]
    fn what_ends_is_warned_about_a_day_before_and_afterwards() {
        let (set, _) = PolicySet::assemble(policy::read("f", TEXT), &PolicySet::default());
        let said = |now: &str| findings(&set, time(now)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(said("2025-12-31T11:00:00Z").is_empty());
        assert!(
            said("2025-12-31T13:00:00Z")[0].contains("f:8:")
                && said("2025-12-31T13:00:00Z")[0].contains("within a day")
        );
        let late = said("2026-04-01T00:00:00Z");
        assert!(late.len() == 2 && late.iter().all(|l| l.contains("has expired")), "{late:?}");
        let bad = TEXT.replace("2026-01-01T12:00:00Z", "tomorrow");
        let (_, findings) = PolicySet::assemble(policy::read("f", &bad), &PolicySet::default());
        assert!(findings[0].to_string().contains("isn't a time"), "{findings:?}");
    }
}
