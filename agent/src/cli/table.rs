//! Tables for people: plain, at most 100 columns, coloured only on a terminal.

use comfy_table::{Cell, Color, ContentArrangement, Table};
use std::io::IsTerminal;

/// The greatest width.
pub(super) const WIDTH: u16 = 100;

/// An empty table with these headings.
pub(super) fn table(headings: &[&str]) -> Table {
    let mut t = Table::new();
    t.load_style(comfy_table::presets::NOTHING);
    t.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    if !std::io::stdout().is_terminal() {
        t.force_no_tty();
    }
    t.set_header(headings.iter().map(|h| Cell::new(h.to_uppercase())));
    t
}

/// A word in a colour that says how good it is.
pub(super) fn verdict(word: &str) -> Cell {
    let colour = match word {
        "allowed" | "yes" | "enforce" | "ok" => Color::Green,
        "would-deny" | "would-allow" | "audit" | "warning" => Color::Yellow,
        "denied" | "no" | "error" => Color::Red,
        _ => return Cell::new(word),
    };
    Cell::new(word).fg(colour)
}

/// A table as text, without blanks at the ends of lines.
pub(super) fn text(t: &Table) -> String {
    t.trim_fmt()
}

/// How long ago, in the greatest unit that fits.
pub(super) fn ago(then_ms: u64, now_ms: u64) -> String {
    let s = now_ms.saturating_sub(then_ms) / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..86400 => format!("{} h", s / 3600),
        _ => format!("{} d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_content_is_broken_and_not_run_over() {
        let mut t = table(&["who", "what"]);
        t.add_row(["spiffe://example.org/ns/a/sa/b".repeat(4), "x ".repeat(100)]);
        assert!(text(&t).lines().all(|l| l.chars().count() <= usize::from(WIDTH)));
        assert!(!text(&t).contains('\u{1b}'));
    }

    #[test]
    fn times_have_one_unit() {
        assert_eq!(ago(0, 59_999), "59 s");
        assert_eq!(ago(0, 3_600_000), "1 h");
        assert_eq!(ago(9, 3), "0 s");
    }
}
