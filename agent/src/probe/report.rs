//! What the probe found, and whether it is good: as a table, as JSON, and against what is expected of a kernel.

use super::runner::Denial;
use super::tricks::{Trick, Wall};
use bulkhead_common::Hook;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What became of a trick.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It gets data through when nothing is enforced, and not when everything is denied.
    Contained,
    /// It gets data through although everything is denied.
    NotContained,
    /// It gets no data through even when nothing is enforced.
    Unavailable,
}

impl Outcome {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Contained => "contained",
            Self::NotContained => "not-contained",
            Self::Unavailable => "unavailable",
        }
    }
}

/// One trick's line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// The trick.
    pub trick: &'static str,
    /// What it sends by.
    pub family: &'static str,
    /// What became of it.
    pub result: Outcome,
    /// The hook that recorded the denial.
    pub by: Option<&'static str>,
    /// What the sender was told, why it isn't available, or what would contain it.
    pub note: String,
    #[serde(skip)]
    wall: Wall,
}

impl Row {
    pub(super) fn of(trick: &Trick, result: Outcome, by: Option<Denial>, told: String) -> Self {
        let Trick { name, family, wall, .. } = *trick;
        let note = match (result, by, wall) {
            (Outcome::NotContained, _, Wall::Lsm(hook)) => format!("an LSM program at {hook} would contain it"),
            (Outcome::NotContained, _, Wall::Hook(hook)) => format!("{} should contain it", hook.as_str()),
            (Outcome::Contained, Some(denial), _) if told.is_empty() => denial.reason.as_str().to_owned(),
            (Outcome::Contained, Some(denial), _) => format!("{}; {told}", denial.reason.as_str()),
            (Outcome::Contained, None, _) if told.is_empty() => "no denial was recorded".to_owned(),
            (Outcome::Contained, None, _) => format!("no denial was recorded; {told}"),
            (Outcome::Unavailable, ..) => told,
        };
        Self { trick: name, family: family.as_str(), result, by: by.map(|d| d.hook.as_str()), note, wall }
    }

    /// The name in expectation files.
    fn key(&self) -> String {
        format!("{} {}", self.trick, self.family)
    }
}

/// What the probe found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Each trick.
    pub rows: Vec<Row>,
    /// With each hook left out in turn: what changed. Empty if that wasn't asked for.
    pub hooks: Vec<(Hook, Vec<String>)>,
}

/// What is known of a kernel: the tricks that may not be available there, and those that nothing contains there, each
/// as `"name family": "why"`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Expectations {
    /// These may be unavailable. Any others that are count as a finding: the probe has lost a test.
    pub unavailable: BTreeMap<String, String>,
    /// These get through, and status says so.
    pub not_contained: BTreeMap<String, String>,
}

impl Report {
    /// What is wrong. Without expectations any trick may be unavailable, and those that only an LSM program could
    /// contain may get through.
    pub fn findings(&self, expected: Option<&Expectations>) -> Vec<String> {
        let mut findings = Vec::new();
        for row in &self.rows {
            let key = row.key();
            match row.result {
                Outcome::Contained if row.by.is_none() => {
                    findings.push(format!("{key}: nothing arrived, but no hook recorded a denial: look why"));
                }
                Outcome::Contained => {}
                Outcome::NotContained => {
                    let known = match expected {
                        Some(e) => e.not_contained.contains_key(&key),
                        None => matches!(row.wall, Wall::Lsm(_)),
                    };
                    if !known {
                        findings.push(format!("{key}: gets data through; {}", row.note));
                    }
                }
                Outcome::Unavailable => {
                    if expected.is_some_and(|e| !e.unavailable.contains_key(&key)) {
                        findings.push(format!("{key}: isn't available, and should be: {}", row.note));
                    }
                }
            }
        }
        for (hook, _) in self.hooks.iter().filter(|(_, flips)| flips.is_empty()) {
            findings
                .push(format!("{}: leaving it out changes nothing: it isn't tested, or isn't needed", hook.as_str()));
        }
        findings
    }

    /// How many tricks ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|r| r.result == outcome).count()
    }

    /// The table, at most `width` columns wide, and what follows from it.
    pub fn table(&self, width: u16) -> String {
        use comfy_table::{ContentArrangement, Table, presets::NOTHING};
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        table.set_header(["TRICK", "FAMILY", "RESULT", "BY", "NOTE"]);
        for Row { trick, family, result, by, note, .. } in &self.rows {
            table.add_row([trick, *family, result.as_str(), by.unwrap_or("-"), note]);
        }
        let mut text = format!(
            "{table}\n\n{} contained, {} not contained, {} not available here\n",
            self.count(Outcome::Contained),
            self.count(Outcome::NotContained),
            self.count(Outcome::Unavailable)
        );
        for (hook, flips) in &self.hooks {
            text += &format!("without {}: {} change\n", hook.as_str(), flips.len());
            for flip in flips {
                text += &format!("    {flip}\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tricks;

    fn row(result: Outcome, by: Option<&'static str>, wall: Wall) -> Row {
        Row { trick: "t", family: "ipv4", result, by, note: String::new(), wall }
    }

    fn findings(row: Row, expected: Option<&Expectations>) -> usize {
        Report { rows: vec![row], hooks: Vec::new() }.findings(expected).len()
    }

    #[test]
    fn what_gets_through_is_a_finding_unless_it_is_known_to() {
        let hook = Wall::Hook(Hook::Connect);
        let known: Expectations =
            serde_json::from_str(r#"{"unavailable": {}, "not-contained": {"t ipv4": "why"}}"#).expect("valid");
        assert_eq!(findings(row(Outcome::NotContained, None, hook), None), 1);
        assert_eq!(findings(row(Outcome::NotContained, None, hook), Some(&known)), 0);
        assert_eq!(findings(row(Outcome::NotContained, None, Wall::Lsm("x")), None), 0);
        assert_eq!(findings(row(Outcome::NotContained, None, Wall::Lsm("x")), Some(&Expectations::default())), 1);
        assert_eq!(findings(row(Outcome::Contained, Some("connect"), hook), None), 0);
        assert_eq!(findings(row(Outcome::Contained, None, hook), None), 1, "silence is no containment");
    }

    #[test]
    fn a_trick_that_is_lost_is_a_finding_where_a_kernel_is_known() {
        let gone = || row(Outcome::Unavailable, None, Wall::Hook(Hook::Connect));
        assert_eq!(findings(gone(), None), 0);
        assert_eq!(findings(gone(), Some(&Expectations::default())), 1);
    }

    #[test]
    fn a_hook_that_changes_nothing_is_a_finding() {
        let hooks = vec![(Hook::Egress, Vec::new()), (Hook::Connect, vec!["tcp-connect ipv4: …".to_owned()])];
        assert_eq!(Report { rows: Vec::new(), hooks }.findings(None).len(), 1);
    }

    #[test]
    fn expectation_files_name_tricks_that_exist() {
        let names: Vec<_> = tricks::all().iter().map(|t| format!("{} {}", t.name, t.family.as_str())).collect();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/expectations");
        let mut seen = 0;
        for file in std::fs::read_dir(folder).expect("the folder exists") {
            let path = file.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("a file");
            let expected: Expectations = serde_json::from_str(&text).expect("valid");
            for name in expected.unavailable.keys().chain(expected.not_contained.keys()) {
                assert!(names.contains(name), "{}: {name}", path.display());
            }
            seen += 1;
        }
        assert!(seen >= 3, "one for each kernel");
    }
}
