//! What was commanded, and holds until it is withdrawn or over: revoked IDs, break-glass, and postures and policies that
//! were turned to enforce on trial.
//!
//! It is one file on disk, written whole before anything of it is in force, and read before anything else at a start.
//! Pure but for the two functions that read and write it; the time is handed in.

use super::clock::{Clock, Deadline};
use crate::identity::SpiffeId;
use crate::inventory::{Inventory, Posture};
use crate::policy::{self, Mode, Policy, PolicySet, Scope};
use crate::sources::state::State;
use crate::time::rfc3339;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Its name in the state folder.
const STORED: &str = "overrides.json";
/// A file that root may put into the state folder to break the glass without the binary.
pub const BREAK_GLASS: &str = "break-glass";
/// The longest that break-glass and a trial may be asked for.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How long break-glass lasts when its file doesn't say.
const UNSAID: Duration = Duration::from_secs(3600);

/// Everything that was commanded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Overrides {
    /// By ID.
    pub revoked: BTreeMap<SpiffeId, Revoked>,
    /// By scope.
    pub break_glass: BTreeMap<Scope, BreakGlass>,
    /// By what was turned to enforce.
    pub enforced: BTreeMap<Target, Enforced>,
}

/// An ID that was withdrawn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revoked {
    /// When, milliseconds since 1970.
    pub since: u64,
    /// Why.
    pub reason: String,
}

/// Enforcement that is off for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BreakGlass {
    /// Until when.
    pub deadline: Deadline,
    /// Why.
    pub reason: String,
}

/// Something that was turned to enforce.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enforced {
    /// When, milliseconds since 1970.
    pub since: u64,
    /// When it is turned back unless confirmed; `None`: it was.
    pub confirm_by: Option<Deadline>,
}

/// What can be turned to enforce.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// The posture of every workload.
    Node,
    /// The posture of a namespace's workloads.
    Namespace(String),
    /// The mode of the policy of this name, or of `NAMESPACE/NAME`.
    Policy(String),
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "node" => Ok(Self::Node),
            Some(("namespace", name)) => Ok(Self::Namespace(name.to_owned())),
            Some(("policy", name)) => Ok(Self::Policy(name.to_owned())),
            _ => Err(format!("`{text}` is neither node nor namespace=NAME nor policy=NAME")),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Namespace(name) => write!(f, "namespace={name}"),
            Self::Policy(name) => write!(f, "policy={name}"),
        }
    }
}

impl Target {
    fn is(&self, policy: &Policy) -> bool {
        let Self::Policy(name) = self else { return false };
        let full = format!("{}/{}", policy.name.namespace, policy.name.name);
        *name == policy.name.name || *name == full
    }

    /// Whether there is anything that it names.
    pub fn exists(&self, set: &PolicySet, inventory: &Inventory) -> bool {
        match self {
            Self::Node => true,
            Self::Namespace(name) => inventory.identities.values().any(|f| f.identity.namespace == *name),
            Self::Policy(_) => set.iter().any(|p| self.is(p)),
        }
    }
}

impl Overrides {
    /// What is on disk.
    ///
    /// # Errors
    /// When it is there and can't be read: forgetting what was revoked would bring it back.
    pub fn stored(state: &State) -> anyhow::Result<Self> {
        let Some(text) = state.text(STORED)? else { return Ok(Self::default()) };
        serde_json::from_str(&text).with_context(|| {
            format!("{STORED} in the state folder is damaged: put it right, or remove it and revoke anew what it had")
        })
    }

    /// Stores it.
    ///
    /// # Errors
    /// When it didn't reach the disk.
    pub fn store(&self, state: &State) -> anyhow::Result<()> {
        state.put(STORED, &serde_json::to_vec_pretty(self)?)
    }

    /// Takes away what is over, and says what that was, a line each.
    pub fn sweep(&mut self, clock: &Clock) -> Vec<String> {
        let mut ended = Vec::new();
        self.break_glass.retain(|scope, b| {
            let over = b.deadline.is_over(clock);
            if over {
                ended.push(format!("break-glass for {scope} is over: enforcing again"));
            }
            !over
        });
        self.enforced.retain(|target, e| {
            let over = e.confirm_by.as_ref().is_some_and(|d| d.is_over(clock));
            if over {
                ended.push(format!("nobody confirmed enforcement of {target} in time: it is turned back"));
            }
            !over
        });
        ended
    }

    /// Breaks the glass as root asked by a file: its first word is the end (RFC 3339), what follows is the reason. Without
    /// a time that can be read it is an hour, and never more than [`LONGEST`] from when the file was written.
    pub fn from_file(&mut self, text: &str, written: u64, clock: &Clock) {
        let mut words = text.trim().splitn(2, char::is_whitespace);
        let first = words.next().unwrap_or_default();
        let until = crate::time::parse_rfc3339(first);
        let reason = if until.is_ok() { words.next().unwrap_or_default() } else { text }.trim();
        let asked = until.map_or(UNSAID, |u| Duration::from_millis(u.saturating_sub(written)));
        let passed = Duration::from_millis(clock.wall.saturating_sub(written));
        let left = asked.min(LONGEST).saturating_sub(passed);
        let reason = format!("by file: {}", crate::serve::api::printable(reason.as_bytes()));
        self.break_glass.insert(Scope::Node, BreakGlass { deadline: Deadline::after(clock, left), reason });
    }

    /// What is above the policies.
    pub fn above(&self) -> policy::Overrides {
        policy::Overrides {
            revoked: self.revoked.keys().cloned().collect(),
            open: self.break_glass.keys().cloned().collect(),
            lowered: BTreeMap::new(),
        }
    }

    /// Raises the postures of what was turned to enforce.
    pub fn raise(&self, inventory: &mut Inventory) {
        for target in self.enforced.keys() {
            for facts in inventory.identities.values_mut() {
                let meant = match target {
                    Target::Node => true,
                    Target::Namespace(name) => facts.identity.namespace == *name,
                    Target::Policy(_) => false,
                };
                if meant {
                    facts.posture = Posture::Enforce;
                }
            }
        }
    }

    /// The policies as they are in force, where these namespaces are lowered.
    pub fn over(&self, set: PolicySet, lowered: BTreeMap<String, policy::Lowered>) -> PolicySet {
        let meant = |policy: &Policy| self.enforced.keys().any(|t| t.is(policy));
        let above = policy::Overrides { lowered, ..self.above() };
        set.each(meant, |policy| policy.mode = Mode::Enforce).under(above)
    }

    /// The trial that is going on.
    pub fn trial(&self) -> Option<(&Target, &Deadline)> {
        self.enforced.iter().find_map(|(t, e)| Some((t, e.confirm_by.as_ref()?)))
    }

    /// What should be known while it holds, a line each.
    pub fn notices(&self) -> Vec<String> {
        let glass = self.break_glass.iter().map(|(scope, b)| {
            format!(
                "break-glass for {scope} until {}: nothing is enforced there ({})",
                rfc3339(b.deadline.until),
                b.reason
            )
        });
        let trial = self.trial().map(|(target, by)| {
            let by = rfc3339(by.until);
            format!("{target} is enforced on trial and turned back at {by}, unless `bulkhead enforce --confirm` comes")
        });
        glass.chain(trial).collect()
    }
}

#[cfg(test)]
mod tests;
