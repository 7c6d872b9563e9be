//! The part of the file that makes this host a cluster's node.

use super::template::{BadTemplate, DEFAULT, TRUST_DOMAIN, Template};
use std::collections::BTreeSet;

/// Namespaces that a posture for all doesn't reach: what the cluster itself runs on.
pub const EXEMPT: [&str; 6] =
    ["kube-system", "kube-node-lease", "bulkhead-system", "spire", "spire-server", "spire-system"];

/// What a cluster needs to go on working ([`crate::cluster::builtin`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BuiltIn {
    /// The kubelet's probes of this node's pods, to the ports that they declare.
    KubeletProbes,
    /// The cluster's DNS servers, to every workload.
    ClusterDns,
    /// The API server, to workloads that were given a token for it.
    ApiServer,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::KubeletProbes, Self::ClusterDns, Self::ApiServer];

    /// The name in the configuration, and of the policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KubeletProbes => "kubelet-probes",
            Self::ClusterDns => "cluster-dns",
            Self::ApiServer => "api-server",
        }
    }
}

/// How the cluster is to be read.
#[derive(Clone, PartialEq, Debug)]
pub struct Cluster {
    /// This node's name.
    pub node: String,
    /// What a pod's ID is.
    pub template: Template,
    /// Namespaces that stay in observe unless they are labelled.
    pub exempt: BTreeSet<String>,
    /// The built-ins that are on.
    pub built_ins: BTreeSet<BuiltIn>,
}

impl Cluster {
    /// What holds where the file says nothing else.
    ///
    /// # Errors
    /// When the trust domain can't be part of an ID.
    pub fn new(node: &str, id: Option<&str>, trust_domain: Option<&str>) -> Result<Self, BadTemplate> {
        Ok(Self {
            node: node.to_owned(),
            template: Template::new(id.unwrap_or(DEFAULT), trust_domain.unwrap_or(TRUST_DOMAIN))?,
            exempt: EXEMPT.iter().map(|s| (*s).to_owned()).collect(),
            built_ins: BuiltIn::ALL.into(),
        })
    }
}
