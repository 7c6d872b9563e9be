//! The part of the file that makes this host a cluster's node.

use super::template::{BadTemplate, DEFAULT, TRUST_DOMAIN, Template};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// How long the name of an instance may be.
const LONGEST: usize = 64;
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
    /// Whom the API server calls: backends of webhooks, APIServices and conversions, from it alone, at that port alone.
    Webhooks,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::KubeletProbes, Self::ClusterDns, Self::ApiServer, Self::Webhooks];

    /// The name in the configuration, and of the policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KubeletProbes => "kubelet-probes",
            Self::ClusterDns => "cluster-dns",
            Self::ApiServer => "api-server",
            Self::Webhooks => "webhooks",
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
    /// Whether what is in force stays when Bulkhead is taken off the cluster.
    pub keep_when_deleted: bool,
    /// Whether a namespace is enforced though another agent's sockets carry what its pods are told.
    pub enforce_in_ambient_mesh: bool,
    /// Whether denied connections are told as Events.
    pub denial_events: bool,
    /// The key of the taint that is taken off this node once it is ready.
    pub startup_taint: Option<String>,
    /// The built-ins that are on.
    pub built_ins: BTreeSet<BuiltIn>,
}

impl Cluster {
    /// The name of this node's pins and state, so that several nodes can share one kernel: the node's, without the dots,
    /// which bpffs keeps for itself.
    pub fn instance(&self) -> String {
        let name: String =
            self.node.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        if name.len() <= LONGEST {
            return name;
        }
        let digest = Sha256::digest(self.node.as_bytes());
        let told: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        format!("{}-{told}", &name[..LONGEST - 17])
    }

    /// What holds where the file says nothing else.
    ///
    /// # Errors
    /// When the trust domain can't be part of an ID.
    pub fn new(node: &str, id: Option<&str>, trust_domain: Option<&str>) -> Result<Self, BadTemplate> {
        Ok(Self {
            node: node.to_owned(),
            template: Template::new(id.unwrap_or(DEFAULT), trust_domain.unwrap_or(TRUST_DOMAIN))?,
            exempt: EXEMPT.iter().map(|s| (*s).to_owned()).collect(),
            keep_when_deleted: false,
            enforce_in_ambient_mesh: false,
            denial_events: false,
            startup_taint: None,
            built_ins: BuiltIn::ALL.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_an_instance_of_its_own() {
        let of = |node: &str| Cluster::new(node, None, None).expect("fine").instance();
        assert_eq!(of("ip-10-0-0-1.ec2.internal"), "ip-10-0-0-1_ec2_internal");
        let (a, b) = (of(&format!("{}a", "x".repeat(70))), of(&format!("{}b", "x".repeat(70))));
        assert_eq!((a.len(), b.len()), (64, 64));
        assert_ne!(a, b);
    }
}
