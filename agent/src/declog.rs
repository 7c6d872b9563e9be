//! The decision log: a line of JSON for each denial, and for each allowed edge now and then.
//!
//! Each line carries the hash of the one before ([`chain`]), so that a changed, removed or reordered line is found
//! ([`verify`]). The files are bounded in size and number ([`file`]); what couldn't be written is counted, and the next
//! line that can be says how much. Lines have our own names, or those of OCSF ([`ocsf`]).

pub mod chain;
pub mod file;
pub mod ocsf;
pub mod revision;
pub mod verify;

use crate::config::LogForm;
use crate::flows::Edge;
use crate::serve::api::Decision;
use chain::{Chain, Hash};
use serde::{Deserialize, Serialize};

/// What a line tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Told {
    /// One connection that was denied, or would be.
    Decision(Decision),
    /// What was allowed since the last such line of the same edge.
    Allowed(Allowed),
    /// The agent begins to write.
    Begin {
        /// Its version.
        version: String,
        /// Bytes of a line that a former agent didn't finish; they were taken off.
        torn: u64,
    },
    /// Lines that are missing here because they couldn't be written or read in time.
    Dropped(Dropped),
}

/// One allowed edge over an interval.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Allowed {
    /// Between whom.
    #[serde(flatten)]
    pub edge: Edge,
    /// How often in this interval.
    pub count: u64,
    /// The source's rule, if one allows it.
    pub egress_rule: Option<String>,
    /// The destination's rule.
    pub ingress_rule: Option<String>,
    /// When the interval began, milliseconds since 1970.
    pub since: u64,
    /// By which ruleset, at its end.
    pub epoch: u32,
}

/// What is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Dropped {
    /// Events for which the kernel's buffer had no room.
    pub kernel: u64,
    /// Decisions for which the way to the log had no room, or that came too fast.
    pub queue: u64,
    /// Lines that the disk didn't take.
    pub disk: u64,
}

impl Dropped {
    /// Whether nothing is.
    pub const fn is_none(&self) -> bool {
        self.kernel == 0 && self.queue == 0 && self.disk == 0
    }

    /// Adds up.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self {
            kernel: self.kernel.saturating_add(more.kernel),
            queue: self.queue.saturating_add(more.queue),
            disk: self.disk.saturating_add(more.disk),
        }
    }
}

/// Which policies were in force.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Revision {
    /// A hash over what they mean ([`revision::of`]).
    pub hash: String,
    /// What the configuration's `revisionFile` said, such as a Git commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// One line before it is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When, RFC 3339, UTC.
    pub at: String,
    /// What.
    #[serde(flatten)]
    pub told: Told,
    /// By which policies.
    pub policy: Revision,
}

/// How the log is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Health {
    /// The file.
    pub path: String,
    /// The number of the last line.
    pub sequence: u64,
    /// Its hash: who keeps that elsewhere can tell later that nothing before it was changed or cut off.
    pub hash: String,
    /// Lines written by this agent.
    pub written: u64,
    /// What is missing, since this agent began.
    pub dropped: Dropped,
    /// Which policies are in force.
    pub policy: Revision,
    /// What is wrong now.
    pub fault: Option<String>,
}

/// Milliseconds since 1970 as RFC 3339.
pub fn rfc3339(ms: u64) -> String {
    // The last millisecond of 9999: as far as the form goes.
    let ms = ms.min(253_402_300_799_999);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_millis(time).to_string()
}

/// A line, with its end, and the chain after it.
///
/// # Errors
/// Never in practice: it is plain data.
pub fn line(entry: &Entry, at: u64, form: LogForm, chain: &Chain) -> serde_json::Result<(String, Chain)> {
    let sequence = chain.sequence + 1;
    let json = match form {
        LogForm::Json => serde_json::to_string(&Linked { entry, seq: sequence, prev: &chain.hash })?,
        LogForm::Ocsf => serde_json::to_string(&ocsf::activity(entry, at, sequence, &chain.hash))?,
    };
    // What JSON allows in a text and a terminal obeys becomes a reference.
    let (line, hash) = chain::seal(&crate::graph::escape::json(&json));
    Ok((line, Chain { sequence, hash }))
}

#[derive(Serialize)]
struct Linked<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    // These two come last: the hash goes behind them.
    seq: u64,
    prev: &'a Hash,
}

#[cfg(test)]
mod tests;
