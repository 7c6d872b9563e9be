//! The numbers by which the kernel names rules and parts of the world, and what they mean.
//!
//! A rule keeps its number from commit to commit for as long as it says the same, wherever in its policy it stands. A
//! part of the world keeps its number for good: counters are kept under it. The agent saves the table beside the
//! identities that go with a set of maps.

use super::diagnostic::At;
use super::model::{Policy, PolicyName};
use bulkhead_common::PeerId;
use bulkhead_common::slots::Permit;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// Which list of a policy a rule stands in. The order is the order in which rules are looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// `ingress.rules`
    Ingress,
    /// `egress.rules`
    Egress,
    /// `edges`
    Edges,
    /// `denies`
    Denies,
    /// No list of a policy: a revoked ID.
    Revoked,
}

impl Section {
    /// The name of the list.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Edges => "edges",
            Self::Denies => "denies",
            Self::Revoked => "revoked",
        }
    }
}

/// One rule of one policy.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct RuleRef {
    /// The policy.
    pub policy: Arc<PolicyName>,
    /// The list.
    pub section: Section,
    /// Where in the list, from 0; the first of those that say the same.
    pub index: usize,
    /// What it says, in one line.
    pub text: Arc<str>,
    /// The file.
    pub file: Arc<str>,
    /// The line in it.
    pub line: u32,
}

impl RuleRef {
    /// The name of a rule of this policy.
    pub(super) fn of<T>(policy: &Policy, section: Section, index: usize, text: &Arc<str>, at: &At<T>) -> Self {
        Self {
            policy: Arc::clone(&policy.name),
            section,
            index,
            text: Arc::clone(text),
            file: Arc::clone(&policy.file),
            line: at.line,
        }
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.section {
            Section::Revoked => f.write_str(&self.text),
            section => write!(f, "{} {}[{}]", self.policy, section.as_str(), self.index),
        }
    }
}

/// What makes two rules the same.
type Key = (Arc<PolicyName>, Section, Arc<str>);

/// How many commits the meaning of a number outlives its rule, so that late events can still be explained.
const KEPT_COMMITS: u64 = 16;

/// The numbers in use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Saved", into = "Saved")]
pub struct RuleTable {
    /// How many numbers were given out since it was read.
    given: u64,
    commit: u64,
    last: u32,
    rules: BTreeMap<u32, (RuleRef, u64)>,
    numbers: HashMap<Key, u32>,
    parts: BTreeMap<PeerId, IpNet>,
    part_numbers: HashMap<IpNet, PeerId>,
}

/// The table as it is written down.
#[derive(Serialize, Deserialize)]
struct Saved {
    last: u32,
    rules: Vec<(u32, RuleRef)>,
    parts: Vec<(u32, IpNet)>,
}

impl From<RuleTable> for Saved {
    fn from(table: RuleTable) -> Self {
        let rules = table.rules.into_iter().map(|(n, (rule, _))| (n, rule)).collect();
        Self { last: table.last, rules, parts: table.parts.into_iter().map(|(n, net)| (n.0, net)).collect() }
    }
}

impl From<Saved> for RuleTable {
    fn from(saved: Saved) -> Self {
        let key = |r: &RuleRef| (Arc::clone(&r.policy), r.section, Arc::clone(&r.text));
        Self {
            given: 0,
            commit: 0,
            last: saved.last,
            numbers: saved.rules.iter().map(|(n, rule)| (key(rule), *n)).collect(),
            rules: saved.rules.into_iter().map(|(n, rule)| (n, (rule, 0))).collect(),
            part_numbers: saved.parts.iter().map(|(n, net)| (*net, PeerId(*n))).collect(),
            parts: saved.parts.into_iter().map(|(n, net)| (PeerId(n), net)).collect(),
        }
    }
}

impl RuleTable {
    /// What a rule's number means; also for a while after the rule is gone. 0 is no rule.
    pub fn rule(&self, number: u32) -> Option<&RuleRef> {
        self.rules.get(&number).map(|(rule, _)| rule)
    }

    /// Which part of the world a peer is.
    pub fn part(&self, peer: PeerId) -> Option<IpNet> {
        self.parts.get(&peer).copied()
    }

    /// How many numbers were given out since it was read: as long as this is the same, what is on disk says enough.
    pub const fn given(&self) -> u64 {
        self.given
    }

    /// Begins a compilation: rules named from here on are in use, the others are forgotten in time.
    pub(super) fn begin(&mut self) {
        self.commit += 1;
    }

    /// Ends a compilation.
    pub(super) fn end(&mut self) {
        let oldest = self.commit.saturating_sub(KEPT_COMMITS);
        let numbers = &mut self.numbers;
        self.rules.retain(|_, (rule, used)| {
            let keep = *used >= oldest;
            if !keep {
                numbers.remove(&(Arc::clone(&rule.policy), rule.section, Arc::clone(&rule.text)));
            }
            keep
        });
    }

    /// The number of a rule, the one that it had before if it had one.
    pub(super) fn number(&mut self, rule: RuleRef) -> u32 {
        let key = (Arc::clone(&rule.policy), rule.section, Arc::clone(&rule.text));
        if let Some(&number) = self.numbers.get(&key) {
            if let Some((known, used)) = self.rules.get_mut(&number)
                && *used != self.commit
            {
                *known = rule;
                *used = self.commit;
            }
            return number;
        }
        loop {
            self.last = if self.last >= Permit::MAX_RULE { 1 } else { self.last + 1 };
            if !self.rules.contains_key(&self.last) {
                break;
            }
        }
        self.given += 1;
        self.rules.insert(self.last, (rule, self.commit));
        self.numbers.insert(key, self.last);
        self.last
    }

    /// The peer that stands for a part of the world.
    pub(super) fn part_number(&mut self, net: IpNet) -> PeerId {
        if let Some(&peer) = self.part_numbers.get(&net) {
            return peer;
        }
        let next = self.parts.last_key_value().map_or(PeerId::FIRST_CIDR, |(last, _)| PeerId(last.0.saturating_add(1)));
        self.given += 1;
        self.parts.insert(next, net);
        self.part_numbers.insert(net, next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Kind;
    use super::*;

    fn rule(text: &str, index: usize) -> RuleRef {
        let policy = PolicyName { kind: Kind::SegmentationPolicy, namespace: String::new(), name: "p".to_owned() };
        let policy = Arc::new(policy);
        RuleRef { policy, section: Section::Ingress, index, text: text.into(), file: "f".into(), line: 1 }
    }

    #[test]
    fn a_rule_keeps_its_number_while_it_says_the_same() {
        let mut t = RuleTable::default();
        t.begin();
        let (a, b) = (t.number(rule("a", 0)), t.number(rule("b", 1)));
        assert!(a != b && a > 0);
        assert_eq!(t.number(rule("a", 2)), a);
        t.end();
        t.begin();
        assert_eq!(t.number(rule("b", 0)), b);
        t.end();
        assert_eq!(t.rule(b).map(|r| r.index), Some(0));
        assert_eq!(t.rule(a).map(|r| r.text.to_string()), Some("a".to_owned()));
        for _ in 0..=KEPT_COMMITS {
            t.begin();
            t.end();
        }
        assert_eq!(t.rule(a), None);
        assert_ne!(t.number(rule("a", 0)), b);
    }

    #[test]
    fn a_part_of_the_world_keeps_its_number_over_a_restart() {
        let net = |s: &str| s.parse::<IpNet>().expect(s);
        let mut t = RuleTable::default();
        let a = t.part_number(net("10.0.0.0/8"));
        let b = t.part_number(net("2001:db8::/32"));
        assert!(a.is_cidr() && b.is_cidr() && a != b);
        t.begin();
        let r = t.number(rule("a", 0));
        let text = serde_json::to_string(&t).expect("plain data");
        let mut t: RuleTable = serde_json::from_str(&text).expect("what was written");
        assert_eq!((t.part_number(net("10.0.0.0/8")), t.part(b)), (a, Some(net("2001:db8::/32"))));
        t.begin();
        assert_eq!(t.number(rule("a", 0)), r);
        assert_ne!(t.part_number(net("10.0.0.0/9")), b);
    }
}
