//! Files with damage at random: whatever stands in them, the readers answer, and each error says where and what to do.

use super::super::{Diagnostic, read};
use super::cases;
use crate::config;
use proptest::prelude::*;
use proptest::sample::select;

const CONFIG: &str = include_str!("../../../../deploy/bulkhead.example.yaml");

/// What is done to a text: at which part of it, which of these, and what is put there.
fn damaged(text: &'static str) -> impl Strategy<Value = String> {
    let words = vec![
        "",
        " ",
        "\n",
        "\n---\n",
        ":",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "~",
        "*",
        "&a ",
        "*a",
        "'",
        "\"",
        "!!binary ",
        "65536",
        "-1",
        "spiffe://",
        "\u{0}",
        "\u{feff}",
        "é",
        "? ",
        "<<: *a",
        "0x",
        "1e999",
        "2026-12-31T18:00:00Z",
    ];
    let change = (0usize..10_000, 0usize..12, select(words));
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut all: Vec<char> = text.chars().collect();
        for (at, taken, put) in changes {
            let at = at * all.len() / 10_000;
            let end = (at + taken).min(all.len());
            drop(all.splice(at..end, put.chars()));
        }
        all.into_iter().collect()
    })
}

fn complete(d: &Diagnostic) -> bool {
    d.line > 0 && d.column > 0 && !d.message.is_empty() && d.hint.as_ref().is_some_and(|h| !h.is_empty())
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_damaged_policy_is_refused_with_place_and_hint(text in damaged(super::table::POLICIES)) {
        for rejected in read("p.yaml", &text).into_iter().filter_map(Result::err) {
            prop_assert!(!rejected.diagnostics.is_empty());
            for d in &rejected.diagnostics {
                prop_assert!(complete(d), "{d:?}\n{text}");
            }
        }
    }

    #[test]
    fn a_damaged_configuration_is_refused_with_place_and_hint(text in damaged(CONFIG)) {
        for d in config::parse("c.yaml", &text).err().unwrap_or_default() {
            prop_assert!(!d.message.is_empty() && d.hint.as_ref().is_some_and(|h| !h.is_empty()), "{d:?}\n{text}");
        }
    }
}
