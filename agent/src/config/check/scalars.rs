//! The single values of the file: names, paths, IDs, addresses, ports. Each says what is wrong with it where it stands.

use super::{Check, low, position};
use crate::config::{INSTANCE, Position, widen, widen_prefix};
use crate::identity::SpiffeId;
use bulkhead_common::maps::{Control, PrefixKey};
use bulkhead_common::{Addr, proto};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

impl Check<'_> {
    pub(super) fn instance(&mut self, given: Option<Spanned<String>>) -> String {
        let Some(given) = given else { return INSTANCE.to_owned() };
        let name = &given.value;
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fine) {
            self.fault(
                position(&given),
                format!("`{name}` can't name an instance: it becomes the name of a folder"),
                "use 1 to 64 of a-z, A-Z, 0-9, - and _",
            );
        }
        given.value
    }

    pub(super) fn path(&mut self, given: &Spanned<String>) -> Option<PathBuf> {
        if given.value.starts_with('/') {
            return Some(PathBuf::from(&given.value));
        }
        self.fault(position(given), format!("`{}` isn't an absolute path", given.value), "begin it with /");
        None
    }

    pub(super) fn level(&mut self, given: &Spanned<String>) -> String {
        if given.value.parse::<tracing_subscriber::filter::Targets>().is_err() {
            self.fault(
                position(given),
                format!("`{}` isn't a log level", given.value),
                "use error, warn, info, debug or trace, or target=level pairs with commas between",
            );
        }
        given.value.clone()
    }

    pub(super) fn limit(&mut self, given: Option<Spanned<u32>>) -> Option<u32> {
        let given = given?;
        if !(64..=1 << 22).contains(&given.value) {
            self.fault(position(&given), format!("{} entries are out of range", given.value), "between 64 and 4194304");
        }
        Some(given.value)
    }

    pub(super) fn built_ins(&mut self, given: &BTreeMap<String, Spanned<bool>>) -> u32 {
        let mut bits = Control::PASS_ALL;
        for (name, on) in given {
            match Control::BUILT_INS.iter().find(|(_, n)| n == name) {
                Some((bit, _)) if on.value => bits |= bit,
                Some((bit, _)) => bits &= !bit,
                None => {
                    let known: Vec<_> = Control::BUILT_INS.iter().map(|(_, n)| *n).collect();
                    self.fault(
                        position(on),
                        format!("there is no built-in `{name}`"),
                        &format!("the built-ins are {}", known.join(", ")),
                    );
                }
            }
        }
        bits
    }

    pub(super) fn id(&mut self, given: &Spanned<String>) -> Option<SpiffeId> {
        given
            .value
            .parse()
            .map_err(|e: crate::identity::BadSpiffeId| {
                self.fault(
                    position(given),
                    format!("`{}` isn't a SPIFFE ID: {}", e.text, e.why),
                    "write spiffe://trust-domain/path",
                );
            })
            .ok()
    }

    pub(super) fn address(&mut self, given: &Spanned<String>) -> Option<Addr> {
        given
            .value
            .parse::<IpAddr>()
            .map(widen)
            .map_err(|_| {
                self.fault(
                    position(given),
                    format!("`{}` isn't an IP address", given.value),
                    "write one such as 10.0.0.7 or fd00::7; names aren't looked up",
                );
            })
            .ok()
    }

    pub(super) fn prefix(&mut self, given: &Spanned<String>) -> Option<PrefixKey> {
        match given.value.parse::<ipnet::IpNet>() {
            Ok(net) if net.trunc() == net => Some(widen_prefix(net)),
            Ok(net) => {
                self.fault(
                    position(given),
                    format!("`{net}` has bits beyond its length"),
                    &format!("write {}, or {}/{} for the one address", net.trunc(), net.addr(), net.max_prefix_len()),
                );
                None
            }
            Err(_) => {
                self.fault(
                    position(given),
                    format!("`{}` isn't a prefix", given.value),
                    "write one such as 10.0.0.0/24 or fd00::/64",
                );
                None
            }
        }
    }

    pub(super) fn port(&mut self, given: &Spanned<low::Scalar>) -> Option<(u8, u16)> {
        let text = given.value.0.as_str();
        let (name, number) = text.split_once('/').unwrap_or(("tcp", text));
        let at = position(given);
        let proto = self.protocol_at(name, at)?;
        match number.parse::<u16>() {
            Ok(n) if n > 0 => Some((proto, n)),
            _ => {
                self.fault(at, format!("`{text}` isn't a port"), "write 8080, tcp/8080 or udp/53");
                None
            }
        }
    }

    pub(super) fn protocol(&mut self, given: &Spanned<String>) -> Option<u8> {
        self.protocol_at(&given.value, position(given))
    }

    pub(super) fn protocol_at(&mut self, name: &str, at: Position) -> Option<u8> {
        match name.to_ascii_lowercase().as_str() {
            "tcp" => Some(proto::TCP),
            "udp" => Some(proto::UDP),
            "sctp" => Some(proto::SCTP),
            "udplite" => Some(proto::UDPLITE),
            _ => {
                self.fault(at, format!("there is no protocol `{name}`"), "use tcp, udp, sctp or udplite");
                None
            }
        }
    }
}
