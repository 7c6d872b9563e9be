//! The runner itself, on the real kernel but with walls of straw: it must not call anything contained that isn't.

use super::*;

/// Enforces nothing; reports the denials that it is given.
#[derive(Default)]
struct Straw {
    calls: Vec<&'static str>,
    denials: Vec<Denial>,
}

impl Enforcement for Straw {
    fn off(&mut self) -> Result<()> {
        self.calls.push("off");
        Ok(())
    }
    fn deny_all(&mut self, _: &Ground, _: Option<Hook>) -> Result<()> {
        self.calls.push("deny");
        Ok(())
    }
    fn denials(&mut self) -> Result<Vec<Denial>> {
        Ok(self.denials.clone())
    }
}

#[test]
fn calls_nothing_contained_where_nothing_is() {
    // Even while denials are "recorded" for whatever is tried.
    let every = (10_000..12_000).map(|dport| Denial {
        hook: Hook::Connect,
        reason: Reason::NoEgressRule,
        pid: 0,
        sport: 0,
        dport,
    });
    let mut straw = Straw { denials: every.collect(), ..Straw::default() };
    let report = Probe::new(&mut straw).expect("needs root").run(false).expect("a report");
    assert_eq!(report.count(Outcome::Contained), 0, "{}", report.table(100));
    assert!(report.count(Outcome::NotContained) >= 60, "{}", report.table(100));
    assert!(!report.findings(None).is_empty());
    assert_eq!(straw.calls.last(), Some(&"off"), "nothing stays enforced");
}
