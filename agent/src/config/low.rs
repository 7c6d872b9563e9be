//! The file as it is written: field for field what serde reads, nothing checked beyond the types.
//!
//! Whatever may be wrong in itself is [`Spanned`], so that the check can say where.

use crate::inventory::Posture;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::fmt;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) instance: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) workloads: Vec<Spanned<Workload>>,
    pub(super) attach: Option<Vec<Spanned<String>>>,
    pub(super) unlisted: Option<super::Unlisted>,
    #[serde(default)]
    pub(super) endpoints: Vec<Spanned<Endpoint>>,
    #[serde(default)]
    pub(super) ranges: Vec<Spanned<String>>,
    pub(super) posture: Option<Posture>,
    #[serde(default)]
    pub(super) postures: BTreeMap<String, Posture>,
    #[serde(default)]
    pub(super) policies: Vec<Spanned<String>>,
    pub(super) metrics: Option<Metrics>,
    pub(super) socket: Option<Spanned<String>>,
    pub(super) state: Option<Spanned<String>>,
    pub(super) bpffs: Option<Spanned<String>>,
    pub(super) log: Option<Log>,
    pub(super) dns: Option<bool>,
    #[serde(default)]
    pub(super) built_ins: BTreeMap<String, Spanned<bool>>,
    #[serde(default)]
    pub(super) limits: Limits,
    pub(super) history: Option<History>,
    pub(super) decision_log: Option<DecisionLog>,
    pub(super) cluster: Option<Spanned<Cluster>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Cluster {
    pub(super) node: Option<Spanned<String>>,
    pub(super) id: Option<Spanned<String>>,
    pub(super) trust_domain: Option<Spanned<String>>,
    pub(super) exempt: Option<Vec<String>>,
    #[serde(default)]
    pub(super) keep_when_deleted: bool,
    #[serde(default)]
    pub(super) enforce_in_ambient_mesh: bool,
    #[serde(default)]
    pub(super) denial_events: bool,
    pub(super) startup_taint: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) built_ins: BTreeMap<String, Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workload {
    pub(super) name: Option<Spanned<String>>,
    pub(super) id: Option<Spanned<String>>,
    pub(super) ids: Option<Vec<Spanned<String>>>,
    pub(super) cgroup: Spanned<OneOrMany>,
    pub(super) namespace: Option<String>,
    pub(super) posture: Option<Posture>,
    #[serde(default)]
    pub(super) ports: BTreeMap<String, Spanned<Scalar>>,
    #[serde(default)]
    pub(super) addresses: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Endpoint {
    pub(super) address: Option<Spanned<String>>,
    pub(super) prefix: Option<Spanned<String>>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) protocol: Option<Spanned<String>>,
    pub(super) id: Option<Spanned<String>>,
    pub(super) namespace: Option<String>,
    pub(super) class: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<Spanned<String>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) addresses: Option<Spanned<u32>>,
    pub(super) rules: Option<Spanned<u32>>,
    pub(super) edges: Option<Spanned<u32>>,
    pub(super) flows: Option<Spanned<u32>>,
    pub(super) outside: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct History {
    pub(super) keep: Option<Spanned<String>>,
    pub(super) hourly: Option<Spanned<String>>,
    pub(super) max_size: Option<Spanned<String>>,
    pub(super) max_rows: Option<Spanned<u64>>,
    pub(super) addresses: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DecisionLog {
    pub(super) path: Spanned<String>,
    pub(super) format: Option<super::LogForm>,
    pub(super) max_size: Option<Spanned<String>>,
    pub(super) keep: Option<Spanned<u32>>,
    pub(super) interval: Option<Spanned<String>>,
    pub(super) revision_file: Option<Spanned<String>>,
}

/// A text or a list of texts.
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<Spanned<String>>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany::One(v.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut all = Vec::new();
                while let Some(v) = seq.next_element()? {
                    all.push(v);
                }
                Ok(OneOrMany::Many(all))
            }
        }
        d.deserialize_any(Reader)
    }
}

/// A text or a number, as text.
pub(super) struct Scalar(pub(super) String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 8080, tcp/8080 or udp/53")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Scalar, E> {
                Ok(Scalar(v.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
        }
        d.deserialize_any(Reader)
    }
}
