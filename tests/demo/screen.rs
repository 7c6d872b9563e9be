//! What the person at the terminal sees: at most 100 columns, colours on a terminal only. Everything printed is kept,
//! so that a picture can be made of it.

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use std::io::{IsTerminal as _, Write as _};

/// What belongs to a step stands so far in.
const INDENT: &str = "  ";

/// A step's title.
pub(crate) const TITLE: Style = AnsiColor::Cyan.on_default().bold();
/// As it should be.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// As it shouldn't be.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// Worth a look.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// A command line.
pub(crate) const COMMAND: Style = Style::new().bold();
/// Beside the point.
pub(crate) const FAINT: Style = AnsiColor::BrightBlack.on_default();

/// The terminal, or whatever stands for it.
#[derive(Default)]
pub(crate) struct Screen {
    transcript: String,
}

impl Screen {
    /// Opens a step.
    pub(crate) fn step(&mut self, title: &str, what: &str) {
        self.print("");
        self.print(&format!("{TITLE}{title}{TITLE:#}  {FAINT}{what}{FAINT:#}"));
    }

    /// Says something that belongs to the step.
    pub(crate) fn say(&mut self, text: &str) {
        for line in text.lines() {
            self.print(format!("{INDENT}{line}").trim_end());
        }
    }

    /// Shows a command line.
    pub(crate) fn command(&mut self, line: &str) {
        self.say(&format!("{FAINT}${FAINT:#} {COMMAND}{line}{COMMAND:#}"));
    }

    /// Shows a table, further in.
    pub(crate) fn table(&mut self, table: &Table) {
        for line in table.to_string().lines() {
            self.say(&format!("{INDENT}{}", without_blanks_at_the_end(line)));
        }
    }

    /// Says what is going on, until something else is said. On a terminal only.
    pub(crate) fn doing(&self, what: &str) {
        if std::io::stdout().is_terminal() {
            let mut out = anstream::stdout().lock();
            write!(out, "\r\x1b[2K{INDENT}{FAINT}{what} …{FAINT:#}").and_then(|()| out.flush()).ok();
        }
    }

    /// Wipes what [`Screen::doing`] said.
    pub(crate) fn done(&self) {
        if std::io::stdout().is_terminal() {
            let mut out = anstream::stdout().lock();
            write!(out, "\r\x1b[2K").and_then(|()| out.flush()).ok();
        }
    }

    /// One line. Whoever reads may have had enough; that is no reason to stop in the middle.
    pub(crate) fn print(&mut self, line: &str) {
        let mut out = anstream::stdout().lock();
        let wipe = if std::io::stdout().is_terminal() { "\r\x1b[2K" } else { "" };
        writeln!(out, "{wipe}{line}").ok();
        self.transcript.push_str(line);
        self.transcript.push('\n');
    }

    /// A picture of everything printed until now, under the command that began it.
    pub(crate) fn picture(&self, command: &str) -> String {
        let text = format!("{FAINT}${FAINT:#} {COMMAND}{command}{COMMAND:#}\n{}", self.transcript);
        anstyle_svg::Term::new().palette(anstyle_svg::WIN10_CONSOLE).min_width_px(900).render_svg(&text)
    }
}

/// Also those before the code that ends a colour.
fn without_blanks_at_the_end(line: &str) -> String {
    let line = line.trim_end();
    match line.rfind('\u{1b}').map(|at| line.split_at(at)) {
        Some((text, code)) if code.ends_with('m') && code.find('m') == Some(code.len() - 1) => {
            format!("{}{code}", text.trim_end())
        }
        _ => line.to_owned(),
    }
}

/// Text in a style.
pub(crate) fn in_style(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A table's cell in a style: the table counts columns, so it has to know what is text.
pub(crate) fn cell(style: Style, text: impl std::fmt::Display) -> Cell {
    let colour = match style {
        GOOD => Color::DarkGreen,
        BAD => Color::DarkRed,
        FAINT => Color::DarkGrey,
        _ => return Cell::new(text.to_string()),
    };
    Cell::new(text.to_string()).fg(colour)
}

/// An empty table with these headings.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(96).force_no_tty().enforce_styling();
    table.set_header(headings.iter().map(|h| h.to_uppercase()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
