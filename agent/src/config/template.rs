//! From a pod to its SPIFFE ID: the template that the configuration gives.
//!
//! Pure. `{trustDomain}`, `{namespace}`, `{serviceAccount}`, `{pod}` and `{owner}` stand for what the API server says of
//! the pod; everything else stands for itself. A template that could not give a valid ID is refused when it is read.

use crate::identity::{BadSpiffeId, SpiffeId};
use crate::policy::IdPattern;

/// What a template is filled with.
#[derive(Clone, Copy, Debug)]
pub struct Filling<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// Its service account.
    pub service_account: &'a str,
    /// Its name.
    pub pod: &'a str,
    /// What runs it, as `Kind/name`; the name alone gets into the ID.
    pub owner: &'a str,
}

/// What a pod's ID is unless the configuration says otherwise.
pub(super) const DEFAULT: &str = "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}";
/// The trust domain unless the configuration says otherwise.
pub(super) const TRUST_DOMAIN: &str = "cluster.local";

/// A checked template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    trust_domain: String,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    TrustDomain,
    Namespace,
    ServiceAccount,
    Pod,
    Owner,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Field(Field),
}

const FIELDS: [(&str, Field); 5] = [
    ("trustDomain", Field::TrustDomain),
    ("namespace", Field::Namespace),
    ("serviceAccount", Field::ServiceAccount),
    ("pod", Field::Pod),
    ("owner", Field::Owner),
];

/// A template that can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadTemplate {
    /// A brace without its other half.
    #[error("`{{` and `}}` don't match")]
    Braces,
    /// A name in braces that isn't known.
    #[error(
        "`{{{0}}}` isn't known; there are {{trustDomain}}, {{namespace}}, {{serviceAccount}}, {{pod}} and {{owner}}"
    )]
    Field(String),
    /// No namespace: two namespaces' workloads would be one.
    #[error("without `{{namespace}}` the workloads of two namespaces would be one identity")]
    NoNamespace,
    /// It never gives a SPIFFE ID.
    #[error(transparent)]
    Id(#[from] BadSpiffeId),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When it isn't one, or what it gives is no SPIFFE ID.
    pub fn new(text: &str, trust_domain: &str) -> Result<Self, BadTemplate> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, behind) = after.split_once('}').ok_or(BadTemplate::Braces)?;
            let field = FIELDS.iter().find(|(n, _)| *n == name).ok_or_else(|| BadTemplate::Field(name.to_owned()))?.1;
            parts.extend([Part::Text(before.to_owned()), Part::Field(field)]);
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        if parts.iter().any(|p| matches!(p, Part::Text(t) if t.contains('}'))) {
            return Err(BadTemplate::Braces);
        }
        if !parts.contains(&Part::Field(Field::Namespace)) {
            return Err(BadTemplate::NoNamespace);
        }
        let this = Self { trust_domain: trust_domain.to_owned(), parts };
        this.id(Filling { namespace: "n", service_account: "s", pod: "p", owner: "Deployment/o" })?;
        Ok(this)
    }

    /// The pod's ID.
    ///
    /// # Errors
    /// When what the pod says doesn't fit into a SPIFFE ID.
    pub fn id(&self, of: Filling<'_>) -> Result<SpiffeId, BadSpiffeId> {
        let Filling { namespace, service_account, pod, owner } = of;
        let text: String = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Text(t) => t.as_str(),
                Part::Field(Field::TrustDomain) => &self.trust_domain,
                Part::Field(Field::Namespace) => namespace,
                Part::Field(Field::ServiceAccount) => service_account,
                Part::Field(Field::Pod) => pod,
                Part::Field(Field::Owner) => owner.rsplit('/').next().unwrap_or(owner),
            })
            .collect();
        text.parse()
    }

    /// The pattern of everybody in a namespace, or in all: what varies within it is a wildcard. `None` where that is only
    /// a part of a segment, for which there is no pattern.
    pub fn glob(&self, namespace: Option<&str>) -> Option<IdPattern> {
        let text: String = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Text(t) => t.as_str(),
                Part::Field(Field::TrustDomain) => &self.trust_domain,
                Part::Field(Field::Namespace) => namespace.unwrap_or("*"),
                Part::Field(Field::ServiceAccount | Field::Pod | Field::Owner) => "*",
            })
            .collect();
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Filling<'_> =
        Filling { namespace: "shop", service_account: "web", pod: "web-1", owner: "Deployment/front" };

    #[test]
    fn fills_what_is_in_braces() {
        let id = |t: &str| Template::new(t, "example.org").expect("a template").id(POD).expect("an ID").to_string();
        assert_eq!(id(DEFAULT), "spiffe://example.org/ns/shop/sa/web");
        assert_eq!(id("spiffe://fixed/{namespace}/{owner}/{pod}"), "spiffe://fixed/shop/front/web-1");
    }

    #[test]
    fn a_pattern_stands_for_everybody_in_a_namespace() {
        let glob = |t: &str, n| Template::new(t, "example.org").expect("a template").glob(n).map(|g| g.to_string());
        assert_eq!(glob(DEFAULT, Some("shop")).as_deref(), Some("spiffe://example.org/ns/shop/sa/*"));
        assert_eq!(glob(DEFAULT, None).as_deref(), Some("spiffe://example.org/ns/*/sa/*"));
        assert_eq!(glob("spiffe://t/{namespace}-{owner}", None), None, "parts of segments can't be wildcards");
    }

    #[test]
    fn a_template_that_gives_no_id_is_refused() {
        let why = |t: &str| Template::new(t, "example.org").expect_err("not a template").to_string();
        assert!(why("spiffe://x/{namespace").contains("don't match"));
        assert!(why("spiffe://x/{namespace}}").contains("don't match"));
        assert!(why("spiffe://x/{namespace}/{label}").contains("`{label}` isn't known"));
        assert!(why("spiffe://x/{serviceAccount}").contains("one identity"));
        assert!(why("http://x/{namespace}").contains("spiffe://"));
    }
}
