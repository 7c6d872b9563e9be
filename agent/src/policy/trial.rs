//! Tables of cases: who opens a connection to whom on which port, and what must come of it. Run offline against
//! policies, by the reference evaluator, with a count of the rules that no case touched.
//!
//! A file is taken whole or not at all, and each fault in it is named with its place.

use super::diagnostic::{At, Diagnostic, Severity};
use super::document::Protocol;
use super::explain::{Explanation, Party, explain};
use super::model::Policy;
use super::parse::yaml_fault;
use super::rules::{RuleRef, Section};
use super::set::PolicySet;
use crate::inventory::Inventory;
use bulkhead_common::{Outcome, Reason, proto};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;

/// One row of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// What people call it.
    pub name: Option<String>,
    /// Who opens the connection.
    pub from: Party,
    /// Who is connected to.
    pub to: Party,
    /// The IP protocol.
    pub protocol: u8,
    /// The destination's port; 0 for ICMP.
    pub port: u16,
    /// What must come of it.
    pub outcome: Outcome,
    /// Why, if that matters.
    pub reason: Option<Reason>,
}

/// What came of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// The file.
    pub file: Arc<str>,
    /// The line of the case.
    pub line: u32,
    /// The column.
    pub column: u32,
    /// Its name, or what it is about.
    pub name: String,
    /// Whether it came out as it must.
    pub passed: bool,
    /// What must have come of it: the outcome, and the reason if one is given.
    pub expected: String,
    /// The whole story.
    pub got: Explanation,
}

/// How many of the rules any case touched.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coverage {
    /// Rules, edges and denies of all policies.
    pub rules: usize,
    /// Those that decided some case.
    pub covered: usize,
    /// The others.
    pub untouched: Vec<RuleRef>,
}

impl Coverage {
    /// In percent, rounded down; no rules at all are covered wholly.
    pub fn percent(&self) -> usize {
        (self.covered * 100).checked_div(self.rules).unwrap_or(100)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cases: At<Vec<At<Row>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(default)]
    name: Option<String>,
    from: At<String>,
    to: At<String>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    port: Option<At<i64>>,
    outcome: At<String>,
    #[serde(default)]
    reason: Option<At<String>>,
}

/// Reads a file of cases.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_cases(file: &str, text: &str) -> Result<Vec<At<Case>>, Vec<Diagnostic>> {
    let file: Arc<str> = file.into();
    let File { cases } = serde_saphyr::from_str(text).map_err(|e| vec![yaml_fault(&file, &e)])?;
    let mut faults = Vec::new();
    if cases.is_empty() {
        faults.push(cases.diagnose(&file, Severity::Error, "there are no cases", "write at least one item"));
    }
    let rows = cases.value.into_iter();
    let taken: Vec<At<Case>> = rows.filter_map(|row| case(&file, row, &mut faults)).collect();
    if faults.is_empty() { Ok(taken) } else { Err(faults) }
}

fn case(file: &Arc<str>, row: At<Row>, faults: &mut Vec<Diagnostic>) -> Option<At<Case>> {
    let place = row.with(());
    let Row { name, from, to, protocol, port, outcome, reason } = row.value;
    let before = faults.len();
    let mut fault = |at: At<()>, message: String, hint: String| {
        faults.push(at.diagnose(file, Severity::Error, message, hint));
    };
    let mut party = |text: &At<String>| match text.parse::<Party>() {
        Ok(party) => Some(party),
        Err(e) => {
            fault(text.with(()), format!("`{}` names nobody", text.value), e.to_string());
            None
        }
    };
    let (from, to) = (party(&from), party(&to));
    let protocol = match protocol.unwrap_or(Protocol::TCP) {
        Protocol::TCP => proto::TCP,
        Protocol::UDP => proto::UDP,
        Protocol::SCTP => proto::SCTP,
        Protocol::UDPLite => proto::UDPLITE,
        Protocol::ICMP => proto::ICMP,
    };
    let number = match (&port, protocol) {
        (None, proto::ICMP) => Some(0),
        (Some(port), proto::ICMP) => {
            fault(port.with(()), "ICMP has no ports".to_owned(), "remove `port`".to_owned());
            None
        }
        (None, _) => {
            fault(place, "the field `port` is missing".to_owned(), "add the destination's `port:`".to_owned());
            None
        }
        (Some(port), _) => {
            let number = u16::try_from(port.value).ok().filter(|n| *n > 0);
            if number.is_none() {
                fault(port.with(()), format!("{} isn't a port", port.value), "use 1 to 65535".to_owned());
            }
            number
        }
    };
    let one_of =
        |words: &mut dyn Iterator<Item = &'static str>| format!("one of {}", words.collect::<Vec<_>>().join(", "));
    let came = Outcome::from_name(&outcome);
    if came.is_none() {
        let hint = one_of(&mut Outcome::ALL.iter().map(|o| o.as_str()));
        fault(outcome.with(()), format!("`{}` isn't an outcome", outcome.value), hint);
    }
    let why = reason.as_ref().and_then(|r| Reason::from_name(r));
    if let (Some(reason), None) = (&reason, why) {
        let hint = one_of(&mut Reason::ALL.iter().map(|r| r.as_str()));
        fault(reason.with(()), format!("`{}` isn't a reason", reason.value), hint);
    }
    if faults.len() > before {
        return None;
    }
    let case = Case { name, from: from?, to: to?, protocol, port: number?, outcome: came?, reason: why };
    Some(place.with(case))
}

/// Runs the cases of one file. `touched` gathers the rules that decided any of them.
pub fn run(
    file: &str,
    cases: &[At<Case>],
    set: &PolicySet,
    inventory: &Inventory,
    touched: &mut HashSet<RuleRef>,
) -> Vec<Ran> {
    let file: Arc<str> = file.into();
    let ran = |at: &At<Case>| {
        let Case { name, from, to, protocol, port, outcome, reason } = &at.value;
        let got = explain(set, inventory, from, to, *protocol, *port);
        for decision in [&got.egress.now, &got.egress.audited, &got.ingress.now, &got.ingress.audited] {
            touched.extend(decision.rule.clone());
        }
        let passed = got.outcome == *outcome && reason.is_none_or(|r| r.as_str() == got.reason);
        let about = || {
            format!(
                "{from} to {to} on {}",
                if *port == 0 { got.protocol.clone() } else { format!("{}/{port}", got.protocol) }
            )
        };
        let expected = match reason {
            Some(reason) => format!("{} ({})", outcome.as_str(), reason.as_str()),
            None => outcome.as_str().to_owned(),
        };
        Ran {
            file: Arc::clone(&file),
            line: at.line,
            column: at.column,
            name: name.clone().unwrap_or_else(about),
            passed,
            expected,
            got,
        }
    };
    cases.iter().map(ran).collect()
}

/// How much of the set the cases touched.
pub fn coverage(set: &PolicySet, touched: &HashSet<RuleRef>) -> Coverage {
    let all: Vec<RuleRef> = set.iter().flat_map(rules).collect();
    let (rules, untouched) = (all.len(), all.into_iter().filter(|r| !touched.contains(r)).collect::<Vec<_>>());
    Coverage { rules, covered: rules - untouched.len(), untouched }
}

/// Every rule, edge and deny of a policy.
fn rules(policy: &Policy) -> Vec<RuleRef> {
    let mut all = Vec::new();
    for (section, list) in [(Section::Ingress, &policy.ingress), (Section::Egress, &policy.egress)] {
        let named = |(n, r): (usize, &At<super::model::Rule>)| RuleRef::of(policy, section, n, &r.text, r);
        all.extend(list.iter().flatten().enumerate().map(named));
    }
    all.extend(policy.edges.iter().enumerate().map(|(n, e)| RuleRef::of(policy, Section::Edges, n, &e.text, e)));
    all.extend(policy.denies.iter().enumerate().map(|(n, d)| RuleRef::of(policy, Section::Denies, n, &d.text, d)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"
cases:
  - name: the cart orders
    from: spiffe://example.org/ns/shop/sa/cart
    to: spiffe://example.org/ns/shop/sa/orders
    port: 8080
    outcome: allowed
    reason: rule
  - {from: world, to: 10.0.0.1, protocol: ICMP, outcome: denied}
"#;

    const POLICY: &str = r#"
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: p}
spec:
  mode: enforce
  selector: {ids: ["spiffe://**"]}
  ingress: {}
  egress: {}
  edges:
    - {from: [{id: "spiffe://example.org/ns/shop/sa/cart"}], to: [{id: "spiffe://**"}], ports: [{port: 8080}]}
    - {from: [{class: world}], to: [{id: "spiffe://**"}], ports: [{protocol: ICMP}]}
"#;

    #[test]
    fn cases_are_run_and_rules_counted() {
        let cases = read_cases("t.yaml", GOOD).expect("a good file");
        let set: PolicySet = super::super::parse("p.yaml", POLICY).expect("good").into_iter().collect();
        let mut touched = HashSet::new();
        let ran = run("t.yaml", &cases, &set, &Inventory::default(), &mut touched);
        assert_eq!(ran.iter().map(|r| (r.line, r.passed)).collect::<Vec<_>>(), [(3, true), (9, false)]);
        assert_eq!((ran[1].name.as_str(), ran[1].expected.as_str()), ("world to 10.0.0.1 on ICMP", "denied"));
        let coverage = coverage(&set, &touched);
        assert_eq!((coverage.rules, coverage.covered, coverage.percent()), (2, 1, 50));
        assert_eq!(coverage.untouched[0].to_string(), "ClusterSegmentationPolicy p edges[1]");
    }

    #[test]
    fn every_fault_is_named_with_its_place_and_a_hint() {
        let whole = |row: &str| format!("cases:\n  - {{{row}}}\n");
        for (text, expected) in [
            ("cases: []".to_owned(), "t.yaml:1:8: error: there are no cases"),
            ("case: 1".to_owned(), "t.yaml:1:1: error: `case` isn't a field here (hint: known here: cases)"),
            (whole("from: world, to: host"), "the field `outcome` is missing"),
            (whole("from: moon, to: host, port: 1, outcome: allowed"), "t.yaml:2:12: error: `moon` names nobody"),
            (whole("from: world, to: host, outcome: allowed"), "t.yaml:2:5: error: the field `port` is missing"),
            (whole("from: world, to: host, port: 0, outcome: allowed"), "t.yaml:2:35: error: 0 isn't a port"),
            (whole("from: world, to: host, port: 1, protocol: ICMP, outcome: denied"), "ICMP has no ports"),
            (
                whole("from: world, to: host, port: 1, outcome: yes"),
                "t.yaml:2:47: error: `yes` isn't an outcome (hint: one of allowed",
            ),
            (whole("from: world, to: host, port: 1, outcome: denied, reason: because"), "`because` isn't a reason"),
            (whole("from: world, to: host, port: 1, outcome: denied, why: x"), "`why` isn't a field here"),
        ] {
            let said: Vec<String> =
                read_cases("t.yaml", &text).expect_err(&text).iter().map(ToString::to_string).collect();
            assert!(said.join("\n").contains(expected), "{said:?}\n{expected}");
            assert!(said.iter().all(|s| s.contains("(hint: ")), "{said:?}");
        }
    }

    proptest! {
        /// Whatever is done to a good file: it is read or refused with a place, and nothing panics.
        #[test]
        fn any_text_is_read_or_refused(at in 0..GOOD.len(), cut in 0usize..40, put in "[ -~\n\u{0}\u{202e}é]{0,12}") {
            let start = (0..=at).rev().find(|n| GOOD.is_char_boundary(*n)).unwrap_or(0);
            let end = (start + cut).min(GOOD.len());
            let text = format!("{}{put}{}", &GOOD[..start], &GOOD[end..]);
            match read_cases("t.yaml", &text) {
                Ok(cases) => {
                    prop_assert!(!cases.is_empty());
                    let mut touched = HashSet::new();
                    let ran = run("t.yaml", &cases, &PolicySet::default(), &Inventory::default(), &mut touched);
                    prop_assert_eq!(ran.len(), cases.len());
                }
                Err(faults) => prop_assert!(!faults.is_empty() && faults.iter().all(Diagnostic::is_error)),
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(text in "(cases:\n)?( *(- )?[a-z]{1,8}: ?[ -~]{0,20}\n){0,6}") {
            if let Err(faults) = read_cases("t.yaml", &text) {
                prop_assert!(!faults.is_empty());
            }
        }
    }
}
