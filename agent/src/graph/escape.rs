//! Texts of strangers, made safe for each form that they are put into.
//!
//! First [`plain`]: no control character, no direction mark, no endless length, whatever the form. Then the form's own
//! escapes, after which the text is one text there and never markup.

use crate::serve::api::{is_obeyed, printable};
use std::net::IpAddr;

/// The longest text that is shown of a name, characters.
const LONGEST: usize = 200;

/// What a terminal or any text may show.
pub fn plain(text: &str) -> String {
    let safe = printable(text.as_bytes());
    match safe.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &safe[..end]),
        None => safe,
    }
}

/// The same, shortened in its middle to so many characters: both ends tell more.
pub fn shortened(text: &str, most: usize) -> String {
    let chars: Vec<char> = plain(text).chars().collect();
    if chars.len() <= most {
        return chars.into_iter().collect();
    }
    let tail = (most - 1) / 2;
    let head = most - 1 - tail;
    chars[..head].iter().chain(&['…']).chain(&chars[chars.len() - tail..]).collect()
}

/// An address after the name by which it was asked for. Not made safe yet.
pub fn named(address: IpAddr, name: Option<&str>) -> String {
    match name.filter(|n| !n.is_empty()) {
        Some(name) => format!("{name} ({address})"),
        None => address.to_string(),
    }
}

/// Text or an attribute's value in quotes, of XML and HTML.
pub fn markup(text: &str) -> String {
    let mut out = String::new();
    for c in plain(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no place for these, not even as a reference.
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A quoted string of DOT, with its quotes. Graphviz reads `\N`, `\G` and the like in labels, and `&…;` as references.
pub fn dot(text: &str) -> String {
    let mut out = String::from("\"");
    for c in plain(text).chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '&' => out.push_str("&amp;"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A quoted label of Mermaid, with its quotes: all but letters, digits and a few harmless signs as `#code;`.
pub fn mermaid(text: &str) -> String {
    let mut out = String::from("\"");
    for c in plain(text).chars() {
        if c.is_alphanumeric() || matches!(c, ' ' | '.' | ',' | '-' | '_' | '/' | ':' | '+' | '(' | ')' | '…' | '×')
        {
            out.push(c);
        } else {
            out.push_str(&format!("#{};", u32::from(c)));
        }
    }
    out.push('"');
    out
}

/// JSON that a terminal may show: control characters and direction marks, which JSON allows, as references.
pub fn json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // A line's end is the form's own: within a text it is a reference already.
        if c != '\n' && is_obeyed(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// JSON inside of a `<script>`: nothing in it ends the element or begins a comment.
pub fn script_json(text: &str) -> String {
    json(text).replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_markup() {
        let nasty = "a\"b'<c>&d;\\N\n\u{1b}[2J\u{202e}%%{init}%%`#35;";
        assert_eq!(markup(nasty), "a&quot;b&#39;&lt;c&gt;&amp;d;\\\\N\\n\\u{1b}[2J\\u{202e}%%{init}%%`#35;");
        assert_eq!(dot("a\"b\\N&c"), "\"a\\\"b\\\\\\\\N&amp;c\"");
        assert_eq!(mermaid("a\"b`<#"), "\"a#34;b#96;#60;#35;\"");
        assert_eq!(json("{\n\"a\": \"\u{9b}\u{202e}\\\\n\"}"), "{\n\"a\": \"\\u009b\\u202e\\\\n\"}");
        assert!(!script_json("{\"a\":\"</script><!--\"}").contains('<'));
    }

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shortened("abcdefghij", 10), "abcdefghij");
        assert_eq!(shortened("abcdefghijk", 10), "abcde…hijk");
        assert_eq!(plain(&"x".repeat(9999)).chars().count(), LONGEST + 1);
    }
}
