//! What the tests of this module share.

/// An object as people write it.
pub(crate) fn yaml(text: &str) -> serde_json::Value {
    serde_saphyr::from_str(text).expect("YAML")
}
