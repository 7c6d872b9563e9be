//! Patterns over SPIFFE IDs: an ID, or a glob on whole segments of its path.
//!
//! `*` stands for one segment, `**` for any number of them, also none; neither stands for a part of a segment, so a
//! pattern never matches more than can be seen at a glance. The trust domain is exact or `*`. `spiffe://**` is every
//! workload that has an identity.

use crate::identity::{BadSpiffeId, SCHEME, SpiffeId};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A SPIFFE ID or a glob over them. Compared as the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdPattern(Arc<str>);

/// One segment of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment<'a> {
    Literal(&'a str),
    One,
    Many,
}

impl<'a> Segment<'a> {
    fn of(text: &'a str) -> Self {
        match text {
            "*" => Self::One,
            "**" => Self::Many,
            literal => Self::Literal(literal),
        }
    }
}

/// The pattern of every workload that has an identity.
pub const ANY: &str = "spiffe://**";

impl IdPattern {
    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it matches every ID.
    pub fn is_any(&self) -> bool {
        let rest = self.rest();
        rest == "**" || rest.strip_prefix("*/").is_some_and(|path| path.split('/').all(|s| s == "**"))
    }

    /// Whether it is an ID and no glob.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// What every ID that matches begins with.
    pub fn literal_prefix(&self) -> &str {
        match self.0.find('*') {
            Some(n) => &self.0[..n],
            None => &self.0,
        }
        .trim_end_matches('/')
    }

    /// Whether the pattern matches this ID.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        self.matches_text(id.as_str())
    }

    /// The same for the text of an ID.
    pub(crate) fn matches_text(&self, id: &str) -> bool {
        if self.is_exact() {
            return *self.0 == *id;
        }
        self.subsumes(id.strip_prefix(SCHEME).unwrap_or(id))
    }

    /// Whether it matches every ID that the other one matches. It may say no for two patterns that only differ in
    /// how many neighbouring `*` and `**` they have, never yes where it isn't so.
    pub fn covers(&self, other: &Self) -> bool {
        self.subsumes(other.rest())
    }

    fn rest(&self) -> &str {
        self.0.strip_prefix(SCHEME).unwrap_or(&self.0)
    }

    fn subsumes(&self, other: &str) -> bool {
        if self.is_any() {
            return true;
        }
        let (Some((domain, path)), Some((other_domain, other_path))) =
            (self.rest().split_once('/'), other.split_once('/'))
        else {
            return false;
        };
        (domain == "*" || domain == other_domain) && segments(path, other_path)
    }
}

/// Whether `pattern` takes every path that `path`, itself perhaps a pattern, stands for.
fn segments(pattern: &str, path: &str) -> bool {
    let pattern: Vec<Segment<'_>> = pattern.split('/').map(Segment::of).collect();
    let path: Vec<Segment<'_>> = path.split('/').map(Segment::of).collect();
    // Greedy with one point to come back to, as in any glob on a single wildcard: linear in practice, never exponential.
    let (mut p, mut s, mut star) = (0, 0, None);
    while s < path.len() {
        let fits = match (pattern.get(p), path[s]) {
            (Some(Segment::Many), _) => {
                star = Some((p + 1, s));
                p += 1;
                continue;
            }
            (Some(Segment::One), part) => part != Segment::Many,
            (Some(Segment::Literal(a)), Segment::Literal(b)) => *a == b,
            _ => false,
        };
        if fits {
            p += 1;
            s += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            p = after;
            s = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|s| *s == Segment::Many)
}

impl FromStr for IdPattern {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why: &str| BadSpiffeId { text: text.to_owned(), why: why.to_owned() };
        if text == ANY {
            return Ok(Self(text.into()));
        }
        // What remains when each wildcard that may stand where it stands is taken for a letter must be an ID.
        let Some((domain, path)) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')) else {
            return text.parse::<SpiffeId>().map(|id| Self(id.as_str().into()));
        };
        let segment = |s| if matches!(Segment::of(s), Segment::Literal(_)) { s } else { "x" };
        if domain != "*" && domain.contains('*') {
            return Err(bad("the trust domain of a pattern is a whole one or '*'"));
        }
        if path.split('/').any(|s| segment(s).contains('*')) {
            return Err(bad("'*' and '**' stand for whole segments only"));
        }
        let plain =
            format!("{SCHEME}{}/{}", segment(domain), path.split('/').map(segment).collect::<Vec<_>>().join("/"));
        match plain.parse::<SpiffeId>() {
            Ok(_) => Ok(Self(text.into())),
            Err(BadSpiffeId { why, .. }) => Err(bad(&why)),
        }
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> IdPattern {
        text.parse().expect(text)
    }

    fn id(text: &str) -> SpiffeId {
        text.parse().expect(text)
    }

    #[test]
    fn matches_whole_segments_only() {
        for (p, i, expected) in [
            ("spiffe://a/b", "spiffe://a/b", true),
            ("spiffe://a/b", "spiffe://a/bc", false),
            ("spiffe://a/*", "spiffe://a/b", true),
            ("spiffe://a/*", "spiffe://a/b/c", false),
            ("spiffe://a/**", "spiffe://a/b/c", true),
            ("spiffe://a/**", "spiffe://b/b/c", false),
            ("spiffe://*/b", "spiffe://any.domain/b", true),
            ("spiffe://*/b", "spiffe://any.domain/c", false),
            ("spiffe://a/**/d", "spiffe://a/d", true),
            ("spiffe://a/**/d", "spiffe://a/b/d/c/d", true),
            ("spiffe://a/**/d", "spiffe://a/b/d/c", false),
            ("spiffe://a/b/**", "spiffe://a/b", true),
            ("spiffe://a/b/**", "spiffe://a/bb", false),
            ("spiffe://a/*/**/x/*", "spiffe://a/1/x/2/x/3", true),
            ("spiffe://**", "spiffe://a/b", true),
        ] {
            assert_eq!(pattern(p).matches(&id(i)), expected, "{p} against {i}");
        }
    }

    #[test]
    fn knows_when_it_is_everybody() {
        for (p, any) in
            [("spiffe://**", true), ("spiffe://*/**", true), ("spiffe://a/**", false), ("spiffe://*/*", false)]
        {
            assert_eq!(pattern(p).is_any(), any, "{p}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        for (p, why) in [
            ("spiffe://a*/b", "trust domain"),
            ("spiffe://**/b", "trust domain"),
            ("spiffe://a/b*", "whole segments"),
            ("spiffe://a/***", "whole segments"),
            ("spiffe://a", "no path"),
            ("*", "spiffe://"),
            ("spiffe://a/*/", "empty"),
        ] {
            let e = p.parse::<IdPattern>().expect_err(p).to_string();
            assert!(e.contains(why), "{e}");
        }
    }

    /// The plainest possible matcher: every way to split at `**`.
    fn slowly(pattern: &[&str], path: &[&str]) -> bool {
        match pattern.split_first() {
            None => path.is_empty(),
            Some((&"**", rest)) => (0..=path.len()).any(|n| slowly(rest, &path[n..])),
            Some((&"*", rest)) => !path.is_empty() && slowly(rest, &path[1..]),
            Some((literal, rest)) => path.first() == Some(literal) && slowly(rest, &path[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_plainest_matcher(
            p in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "**"]), 1..6),
            s in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..7),
        ) {
            let glob = pattern(&format!("spiffe://t/{}", p.join("/")));
            let id = id(&format!("spiffe://t/{}", s.join("/")));
            prop_assert_eq!(glob.matches(&id), slowly(&p, &s));
            prop_assert!(!glob.matches(&id) || id.as_str().starts_with(glob.literal_prefix()));
        }

        #[test]
        fn a_pattern_that_covers_another_matches_what_it_matches(
            p in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "**"]), 1..5),
            q in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "**"]), 1..5),
            s in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..6),
        ) {
            let (p, q) = (pattern(&format!("spiffe://t/{}", p.join("/"))), pattern(&format!("spiffe://*/{}", q.join("/"))));
            let id = id(&format!("spiffe://t/{}", s.join("/")));
            prop_assert!(p.covers(&p) && !p.covers(&q) || q.is_any() || p.is_any());
            if q.covers(&p) && p.matches(&id) {
                prop_assert!(q.matches(&id));
            }
        }
    }
}
