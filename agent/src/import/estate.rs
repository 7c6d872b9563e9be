//! Who there is: pods with their labels, and the identity that each has.
//!
//! Labels select pods, and an identity is a namespace with a service account. So a selector picks an identity wholly, if
//! it picks all its pods, or in part; what becomes of the latter is the business of whoever asked, since the safe side is
//! another for what allows than for what denies.

use super::selector::{Labels, NAME, Selector};
use crate::config::Template;
use crate::identity::SpiffeId;
use crate::policy::IdPattern;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A pod that hasn't ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who it is to Bulkhead.
    pub id: SpiffeId,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses; none in the node's network.
    pub addresses: Vec<IpAddr>,
    /// Its node's.
    pub node_addresses: Vec<IpAddr>,
    /// Whether it is in the node's network, where no NetworkPolicy reaches it.
    pub host_network: bool,
    /// What its port names mean: IP protocol and port.
    pub ports: BTreeMap<String, BTreeSet<(u8, u16)>>,
}

impl Pod {
    fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Everybody.
#[derive(Clone, Debug)]
pub struct Estate {
    pods: Vec<Pod>,
    namespaces: BTreeMap<String, Labels>,
    template: Template,
    given: bool,
    /// Empty: not known.
    api_servers: Vec<IpAddr>,
}

/// In which namespaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    Own(String),
    Matching(Selector),
}

/// What a selector picks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pick {
    /// All pods of these.
    pub(super) whole: Vec<IdPattern>,
    /// Some pods of these.
    pub(super) part: Vec<Part>,
    /// Pods whose labels fit, in the node's network: nothing picks those.
    pub(super) host: Vec<String>,
    /// All pods picked, by number.
    pub(super) pods: BTreeSet<usize>,
}

/// An identity some of whose pods are picked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) id: IdPattern,
    pub(super) picked: Vec<usize>,
    pub(super) others: Vec<usize>,
}

impl Pick {
    /// Everybody of whom at least one pod is picked.
    pub(super) fn any(&self) -> Vec<IdPattern> {
        self.whole.iter().chain(self.part.iter().map(|p| &p.id)).cloned().collect()
    }
}

/// What a port's name means to some identities.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Meaning {
    /// Identities whose pods don't agree, or mean two things by it.
    pub(crate) unclear: BTreeSet<SpiffeId>,
    /// Every port that any of their pods means.
    pub(crate) ports: BTreeSet<(u8, u16)>,
}

impl Estate {
    /// Nobody: for policies that need no labels.
    pub fn unknown(template: Template) -> Self {
        Self { pods: Vec::new(), namespaces: BTreeMap::new(), template, given: false, api_servers: Vec::new() }
    }

    /// These, with the labels of their namespaces.
    ///
    /// # Errors
    /// When a pod's namespace isn't there: its labels can't be guessed.
    pub fn new(
        template: Template,
        pods: Vec<Pod>,
        mut namespaces: BTreeMap<String, Labels>,
    ) -> Result<Self, UnknownNamespace> {
        if let Some(pod) = pods.iter().find(|p| !namespaces.contains_key(&p.namespace)) {
            return Err(UnknownNamespace { namespace: pod.namespace.clone(), pod: pod.title() });
        }
        for (name, labels) in &mut namespaces {
            labels.insert(NAME.to_owned(), name.clone());
        }
        Ok(Self { pods, namespaces, template, given: true, api_servers: Vec::new() })
    }

    /// The same, with the addresses at which the API server answers.
    #[must_use]
    pub fn with_api_servers(self, api_servers: Vec<IpAddr>) -> Self {
        Self { api_servers, ..self }
    }

    /// Whether anybody said who there is.
    pub(crate) fn is_given(&self) -> bool {
        self.given
    }

    /// Whether it is an ID as meshes have it.
    pub(super) fn has_mesh_ids(&self) -> bool {
        let glob = self.template.glob(Some("n")).map(|g| g.as_str().to_owned());
        glob.is_some_and(|g| g.ends_with("/ns/n/sa/*") && g.matches('/').count() == 6)
    }

    /// Everybody in a namespace, or in all.
    pub(crate) fn glob(&self, namespace: Option<&str>) -> Option<IdPattern> {
        self.template.glob(namespace)
    }

    /// Whom the selector picks; `None` if that takes pods, and nobody gave them.
    pub(super) fn pick(&self, scope: &Scope, pods: &Selector) -> Option<Pick> {
        let named = match scope {
            Scope::Own(name) => Some(vec![name.clone()]),
            Scope::Matching(selector) => selector.names(),
        };
        let inside = |namespace: &String| match (scope, &named) {
            (_, Some(names)) => names.contains(namespace),
            (Scope::Matching(selector), None) => self.namespaces.get(namespace).is_some_and(|l| selector.matches(l)),
            (Scope::Own(_), None) => false,
        };
        let everywhere = matches!(scope, Scope::Matching(s) if s.is_empty());
        if !self.given && !(pods.is_empty() && (everywhere || named.is_some())) {
            return None;
        }
        let mut pick = Pick::default();
        let mut by_id: BTreeMap<&SpiffeId, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for (n, pod) in self.pods.iter().enumerate() {
            let fits = (everywhere || inside(&pod.namespace)) && pods.matches(&pod.labels);
            if fits && pod.host_network {
                pick.host.push(pod.title());
            }
            let (picked, others) = by_id.entry(&pod.id).or_default();
            if fits && !pod.host_network {
                picked.push(n);
                pick.pods.insert(n);
            } else {
                others.push(n);
            }
        }
        let globs: Option<Vec<IdPattern>> = match (pods.is_empty(), everywhere, &named) {
            (false, ..) => None,
            (true, true, _) => self.glob(None).map(|g| vec![g]),
            (true, false, Some(names)) => names.iter().map(|n| self.glob(Some(n))).collect(),
            (true, false, None) => self.namespaces.keys().filter(|n| inside(n)).map(|n| self.glob(Some(n))).collect(),
        };
        if let Some(globs) = globs {
            pick.whole = globs;
            return Some(pick);
        }
        if !self.given {
            return None;
        }
        for (id, (picked, others)) in by_id {
            // An ID is a pattern, too.
            let Ok(pattern) = id.as_str().parse::<IdPattern>() else { continue };
            match (picked.is_empty(), others.is_empty()) {
                (true, _) => {}
                (false, true) => pick.whole.push(pattern),
                (false, false) => pick.part.push(Part { id: pattern, picked, others }),
            }
        }
        Some(pick)
    }

    /// The IDs of those who fit, with their namespaces.
    pub(crate) fn ids(&self, fits: impl Fn(&str, &SpiffeId) -> bool) -> BTreeSet<SpiffeId> {
        self.pods.iter().filter(|p| fits(&p.namespace, &p.id)).map(|p| p.id.clone()).collect()
    }

    /// The namespace of an identity, and labels that all its pods have and no other pod of the namespace has: as few as
    /// can be. `None`: there are none. Labels of these names don't count.
    pub(crate) fn apart(&self, id: &SpiffeId, without: &[&str]) -> Option<(String, Labels)> {
        let namespace = &self.pods.iter().find(|p| p.id == *id)?.namespace;
        let (own, others): (Vec<&Pod>, Vec<&Pod>) =
            self.pods.iter().filter(|p| p.namespace == *namespace && !p.host_network).partition(|p| p.id == *id);
        let shared: Vec<(&String, &String)> = own
            .first()?
            .labels
            .iter()
            .filter(|(k, v)| !without.contains(&k.as_str()) && own.iter().all(|p| p.labels.get(*k) == Some(v)))
            .collect();
        let apart = |chosen: &[(&String, &String)]| {
            others.iter().all(|p| chosen.iter().any(|(k, v)| p.labels.get(*k) != Some(v)))
        };
        let labels = |chosen: &[(&String, &String)]| chosen.iter().map(|(k, v)| ((*k).clone(), (*v).clone())).collect();
        let single = shared.iter().find(|one| apart(&[**one]));
        let chosen: Labels = match single {
            Some(one) => labels(&[*one]),
            None => Some(&shared).filter(|all| !all.is_empty() && apart(all)).map(|all| labels(all))?,
        };
        Some((namespace.clone(), chosen))
    }

    /// The names of namespaces that fit.
    pub(crate) fn namespaces(&self, fits: impl Fn(&str) -> bool) -> Vec<String> {
        self.namespaces.keys().filter(|n| fits(n)).cloned().collect()
    }

    /// The names of some pods, not too many.
    pub(super) fn titles(&self, pods: &[usize]) -> String {
        shortened(pods.iter().filter_map(|n| self.pods.get(*n)).map(Pod::title).collect())
    }

    /// The IDs of pods with an address there.
    pub(crate) fn inside(&self, net: &IpNet, except: &[IpNet]) -> BTreeSet<SpiffeId> {
        let fits = |a: &IpAddr| net.contains(a) && !except.iter().any(|e| e.contains(a));
        self.pods.iter().filter(|p| p.addresses.iter().any(fits)).map(|p| p.id.clone()).collect()
    }

    /// Whether a node has an address there.
    pub(crate) fn nodes_inside(&self, net: &IpNet, except: &[IpNet]) -> bool {
        let fits = |a: &IpAddr| net.contains(a) && !except.iter().any(|e| e.contains(a));
        self.pods.iter().any(|p| p.node_addresses.iter().any(fits))
    }

    /// Whether the API server has an address there; `None`: nobody said where it is.
    pub(super) fn api_server_inside(&self, net: &IpNet, except: &[IpNet]) -> Option<bool> {
        let fits = |a: &IpAddr| net.contains(a) && !except.iter().any(|e| e.contains(a));
        (!self.api_servers.is_empty()).then(|| self.api_servers.iter().any(fits))
    }

    /// What a port's name means to those whom any of these patterns matches; `None`: to anybody.
    pub(crate) fn meaning(&self, name: &str, whose: Option<&[IdPattern]>) -> Meaning {
        let mut by_id: BTreeMap<&SpiffeId, BTreeSet<BTreeSet<(u8, u16)>>> = BTreeMap::new();
        for pod in &self.pods {
            if whose.is_none_or(|all| all.iter().any(|p| p.matches(&pod.id))) {
                by_id.entry(&pod.id).or_default().insert(pod.ports.get(name).cloned().unwrap_or_default());
            }
        }
        let mut meaning = Meaning::default();
        for (id, sets) in by_id {
            if sets.len() > 1 || sets.iter().any(|s| s.len() > 1) {
                meaning.unclear.insert(id.clone());
            }
            meaning.ports.extend(sets.into_iter().flatten());
        }
        meaning
    }
}

/// A few of these, and how many more.
pub(super) fn shortened(mut all: Vec<String>) -> String {
    const SHOWN: usize = 3;
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    let shown = all.join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// A pod whose namespace wasn't given.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "namespace {namespace} of pod {pod} isn't among the objects, so its labels aren't known: \
     give `kubectl get pods,namespaces -A -o json`"
)]
pub struct UnknownNamespace {
    namespace: String,
    pod: String,
}
