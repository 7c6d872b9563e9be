//! Patterns over cgroup paths: `*` and `?` stay within one segment, `**` spans segments, `[a-z]` and `{a,b}` as in a
//! shell. A pattern names the workload's own cgroup; what lies below that belongs to it and needs no pattern.

use globset::{GlobBuilder, GlobMatcher};
use std::fmt;

/// A pattern over cgroup paths below the root of the hierarchy.
#[derive(Clone)]
pub struct CgroupGlob {
    text: String,
    /// `None`: it is a path, and means that alone.
    matcher: Option<GlobMatcher>,
    /// Where it stands in the file.
    pub at: super::Position,
}

/// What is wrong with a pattern, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct BadGlob {
    pub(super) message: String,
    pub(super) hint: String,
}

impl CgroupGlob {
    /// The pattern for exactly this path; `None` if it has characters that mean something in a pattern.
    pub fn fixed(path: &str, at: super::Position) -> Option<Self> {
        if has_wildcard(path) { None } else { Self::new(path, at).ok() }
    }

    pub(super) fn new(text: &str, at: super::Position) -> Result<Self, BadGlob> {
        let bad = |message: String, hint: &str| BadGlob { message, hint: hint.to_owned() };
        if !text.starts_with('/') {
            return Err(bad(
                format!("the cgroup `{text}` doesn't start with /"),
                "write it from the root of the cgroup2 hierarchy, as /proc/PID/cgroup shows it after `0::`",
            ));
        }
        let trimmed = text.trim_end_matches('/');
        if trimmed.split('/').skip(1).any(|s| s.is_empty() || s == "." || s == "..") {
            return Err(bad(
                format!("the cgroup `{text}` has an empty, `.` or `..` segment, so it matches nothing"),
                "write the path as /proc/PID/cgroup shows it after `0::`",
            ));
        }
        let first = trimmed.split('/').nth(1).unwrap_or_default();
        if first.is_empty() || has_wildcard(first) {
            return Err(bad(
                format!("the cgroup pattern `{text}` matches everything: every process would be this workload"),
                "begin with a fixed segment, such as /system.slice/name.service or /name.slice/*",
            ));
        }
        if !has_wildcard(trimmed) {
            return Ok(Self { text: trimmed.to_owned(), matcher: None, at });
        }
        let glob = GlobBuilder::new(trimmed)
            .literal_separator(true)
            // systemd writes characters of a unit's name as \x2d, so a backslash stands for itself.
            .backslash_escape(false)
            .build()
            .map_err(|e| bad(format!("`{text}` isn't a pattern: {}", e.kind()), "use *, ?, **, [a-z] or {a,b}"))?;
        Ok(Self { text: trimmed.to_owned(), matcher: Some(glob.compile_matcher()), at })
    }

    /// The pattern as written, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the cgroup at this path (from the root of the hierarchy, with a leading slash) is meant.
    pub fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Some(matcher) => matcher.is_match(path),
            None => self.text == path,
        }
    }

    /// The one path that it means, if it means no more.
    pub fn as_path(&self) -> Option<&str> {
        self.matcher.is_none().then_some(&self.text)
    }

    /// Whether a cgroup below this path could be meant, so that it is worth looking there.
    pub fn may_match_below(&self, path: &str) -> bool {
        let mut pattern = segments(&self.text);
        for segment in segments(path) {
            match pattern.next() {
                // `**`, or braces that may hold a slash: anything can follow.
                Some(p) if p.contains("**") || p.contains('{') => return true,
                Some(p) if has_wildcard(p) => {
                    let one = GlobBuilder::new(p).literal_separator(true).backslash_escape(false).build();
                    if !one.is_ok_and(|g| g.compile_matcher().is_match(segment)) {
                        return false;
                    }
                }
                Some(p) if p == segment => {}
                _ => return false,
            }
        }
        pattern.next().is_some()
    }

    /// The deepest cgroup that certainly holds whatever matches: the folder of the first segment with a wildcard, or
    /// of the last segment. `None` when that is the root.
    pub fn parent(&self) -> Option<String> {
        let all: Vec<&str> = segments(&self.text).collect();
        let fixed = all.iter().position(|s| has_wildcard(s)).unwrap_or(all.len() - 1).min(all.len() - 1);
        (fixed > 0).then(|| format!("/{}", all[..fixed].join("/")))
    }

    /// Whether every match lies strictly below this path.
    pub fn lies_below(&self, path: &str) -> bool {
        let fixed: String =
            segments(&self.text).take_while(|s| !has_wildcard(s)).flat_map(|s| ["/", s]).collect::<String>();
        let wild = fixed.len() < self.text.len();
        let path = path.trim_end_matches('/');
        match fixed.strip_prefix(path) {
            Some("") => wild,
            Some(rest) => rest.starts_with('/'),
            None => false,
        }
    }
}

/// The segments of an absolute path.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|s| !s.is_empty())
}

fn has_wildcard(segment: &str) -> bool {
    segment.contains(['*', '?', '[', '{'])
}

impl PartialEq for CgroupGlob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for CgroupGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> CgroupGlob {
        CgroupGlob::new(text, super::super::Position::default()).expect(text)
    }

    #[test]
    fn a_star_stays_within_its_segment() {
        let g = glob("/system.slice/web-*.service");
        assert!(g.matches("/system.slice/web-1.service"));
        assert!(!g.matches("/system.slice/web-1.service/child"));
        assert!(!g.matches("/system.slice/web-/x.service"));
        assert!(glob("/a.slice/**/x.scope").matches("/a.slice/b/c/x.scope"));
    }

    #[test]
    fn a_backslash_is_itself() {
        assert!(glob(r"/system.slice/my\x2dapp.service").matches(r"/system.slice/my\x2dapp.service"));
    }

    #[test]
    fn looks_only_where_a_match_can_be() {
        let g = glob("/a.slice/b-*.slice/c.service");
        assert!(g.may_match_below("/") && g.may_match_below("/a.slice") && g.may_match_below("/a.slice/b-1.slice"));
        assert!(!g.may_match_below("/a.slice/b-1.slice/c.service") && !g.may_match_below("/a.slice/c.slice"));
        assert!(!g.may_match_below("/other"));
        assert!(glob("/a.slice/**").may_match_below("/a.slice/x/y/z"));
    }

    #[test]
    fn the_attach_point_is_the_fixed_folder_above() {
        assert_eq!(glob("/system.slice/x.service").parent().as_deref(), Some("/system.slice"));
        assert_eq!(glob("/a/b-*/c").parent().as_deref(), Some("/a"));
        assert_eq!(glob("/only.slice").parent(), None);
    }

    #[test]
    fn knows_what_lies_below_an_attach_point() {
        assert!(glob("/a/b").lies_below("/a") && glob("/a/*").lies_below("/a") && glob("/a").lies_below("/"));
        assert!(!glob("/a").lies_below("/a") && !glob("/ab/c").lies_below("/a") && !glob("/b/*").lies_below("/a"));
    }

    #[test]
    fn refuses_what_matches_everything_or_nothing() {
        for (text, word) in [
            ("/*", "everything"),
            ("/", "everything"),
            ("/**", "everything"),
            ("a/b", "start with /"),
            ("/a/../b", "nothing"),
            ("/a//b", "nothing"),
            ("/a/[b", "isn't a pattern"),
        ] {
            let e = CgroupGlob::new(text, super::super::Position::default()).expect_err(text);
            assert!(e.message.contains(word), "{text}: {}", e.message);
        }
    }
}
