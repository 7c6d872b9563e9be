//! Who a workload is.
//!
//! A workload's identity is its namespace (empty on a plain host) together with the set of its SPIFFE IDs, mostly one;
//! that is the whole of [`Identity`], so what makes two workloads the same is said in one place. An allow or a deny
//! matches when any of the IDs matches.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A SPIFFE ID as the SPIFFE-ID standard writes it: `spiffe://trust-domain/path`, at most 2048 bytes.
///
/// Cheap to clone. Ordered and compared as the text, which is canonical: the standard allows no second spelling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

/// A text that isn't a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` isn't a SPIFFE ID: {why} (expected spiffe://trust-domain/path)")]
pub struct BadSpiffeId {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl SpiffeId {
    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain, without the scheme.
    pub fn trust_domain(&self) -> &str {
        let rest = self.0.strip_prefix(SCHEME).unwrap_or(&self.0);
        rest.split('/').next().unwrap_or_default()
    }

    /// The segments of the path.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        let rest = self.0.strip_prefix(SCHEME).unwrap_or(&self.0);
        rest.split('/').skip(1)
    }
}

/// The scheme with which every SPIFFE ID begins.
pub const SCHEME: &str = "spiffe://";

impl FromStr for SpiffeId {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why: &str| BadSpiffeId { text: text.to_owned(), why: why.to_owned() };
        if text.len() > 2048 {
            return Err(bad("it is longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad("it doesn't start with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| bad("it has no path, so it names no workload"))?;
        if domain.is_empty() {
            return Err(bad("the trust domain is empty"));
        }
        if domain.len() > 255 {
            return Err(bad("the trust domain is longer than 255 bytes"));
        }
        if !domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_')) {
            return Err(bad("a trust domain has only a-z, 0-9, '.', '-' and '_'"));
        }
        for segment in path.split('/') {
            match segment {
                "" => return Err(bad("a path segment is empty")),
                "." | ".." => return Err(bad("a path segment is '.' or '..'")),
                _ => {}
            }
            if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
                return Err(bad("a path has only letters, digits, '.', '-' and '_'"));
            }
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SpiffeId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How the name of a Service begins; behind it stands `namespace/name:port`.
pub const SERVICE: &str = "service ";

/// What makes two workloads the same: equal values of this struct, and nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The namespace; empty on a plain host.
    pub namespace: String,
    /// Its SPIFFE IDs, at least one; none for a Service ([`Identity::service`]).
    pub ids: BTreeSet<SpiffeId>,
}

impl Identity {
    /// What stands at a Service's address where several may answer. It is nobody, so no policy selects it; its title,
    /// `namespace/name:port`, is no namespace that there can be.
    pub fn service(title: &str) -> Self {
        Self { namespace: title.to_owned(), ids: BTreeSet::new() }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ids.is_empty() {
            return write!(f, "{SERVICE}{}", self.namespace);
        }
        for (i, id) in self.ids.iter().enumerate() {
            if i > 0 {
                f.write_str("+")?;
            }
            fmt::Display::fmt(id, f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The `spiffe` crate is a second reading of the same standard. We take only its canonical spelling (it folds
        /// a trust domain's case), and only IDs that have a path.
        #[test]
        fn accepts_what_the_spiffe_crate_accepts(text in "(spiffe://|SPIFFE://|)[a-zA-Z0-9._-]{0,8}(/[a-zA-Z0-9._%é-]{0,4}){0,4}") {
            let theirs = spiffe::SpiffeId::new(&text).is_ok_and(|id| !id.path().is_empty() && id.to_string() == text);
            prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), theirs, "{}", text);
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        for (text, why) in [
            ("http://a/b", "spiffe://"),
            ("spiffe:///b", "trust domain is empty"),
            ("spiffe://A/b", "trust domain"),
            ("spiffe://a", "no path"),
            ("spiffe://a/", "empty"),
            ("spiffe://a/../b", "'..'"),
            ("spiffe://a/b c", "letters"),
        ] {
            let e = text.parse::<SpiffeId>().expect_err(text).to_string();
            assert!(e.contains(why), "{e}");
        }
    }
}
