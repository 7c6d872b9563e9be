//! Which policies are in force, in one word: a hash over what they mean.
//!
//! Comments, files and the order of documents don't count; names, modes, selectors and rules do, and what was commanded
//! above them (revoked IDs, break-glass, lowered namespaces).

use super::chain::Hash;
use crate::policy::{Overrides, Policy, PolicySet};
use std::fmt::Write;

/// The hash of a set of policies, 32 hexadecimal digits.
pub fn of(set: &PolicySet) -> String {
    let mut text = String::new();
    for policy in set.iter() {
        describe(policy, &mut text);
    }
    let Overrides { revoked, open, lowered } = set.overrides();
    for (key, all) in [
        ("revoked", revoked.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ("open", open.iter().map(ToString::to_string).collect()),
        ("lowered", lowered.iter().map(|(namespace, to)| format!("{namespace} to {}", to.as_str())).collect()),
    ] {
        for what in all {
            text.push_str(&format!("{key}={what}\0"));
        }
    }
    Hash::of(&[text.as_bytes()]).as_str()[..32].to_owned()
}

/// A form that is the same for the same meaning. Each value ends with a character that is in none of them.
fn describe(policy: &Policy, out: &mut String) {
    let Policy { name, file: _, mode, description: _, selector, ingress, egress, edges, denies, sockets, expires } =
        policy;
    let mut put = |key: &str, value: &dyn std::fmt::Display| {
        // Writing into a String doesn't fail.
        write!(out, "{key}={value}\0").unwrap_or_default();
    };
    put("policy", &**name);
    put("mode", &mode.as_str());
    put("sockets", sockets);
    if let Some(expires) = expires {
        put("expires", &**expires);
    }
    for pattern in selector {
        put("select", &pattern.as_str());
    }
    for (key, rules) in [("ingress", ingress), ("egress", egress)] {
        if let Some(rules) = rules {
            put(key, &rules.len());
            for rule in rules {
                put(key, &rule.text);
            }
        }
    }
    for edge in edges {
        put("edge", &edge.text);
    }
    for deny in denies {
        put("deny", &deny.text);
    }
}
