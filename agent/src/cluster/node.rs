//! What of a node matters here, taken from the API server's object. Pure.

use super::pod::address;
use crate::config::widen_prefix;
use bulkhead_common::Addr;
use bulkhead_common::maps::PrefixKey;
use k8s_openapi::api::core::v1::Node as Object;

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its object's UID.
    pub uid: String,
    /// Its addresses.
    pub addresses: Box<[Addr]>,
    /// Where its pods' addresses are.
    pub pods: Box<[PrefixKey]>,
}

impl Node {
    /// Takes what matters. Names among the addresses are left out.
    pub fn of(object: &Object) -> Self {
        let addresses = object.status.iter().filter_map(|s| s.addresses.as_ref()).flatten();
        let ranges = object.spec.iter().filter_map(|s| s.pod_cidrs.as_ref()).flatten();
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            addresses: addresses.filter_map(|a| address(&a.address)).collect(),
            pods: ranges.filter_map(|text| text.parse().ok()).map(widen_prefix).collect(),
        }
    }
}
