//! What the file says of the history and the decision log: how long and how large.

use super::{Check, low, position};
use crate::config::{DecisionLog, LogForm};
use crate::store::Bounds;
use bytesize::ByteSize;
use serde_saphyr::Spanned;
use std::time::Duration;

/// The least that a store or a file of the log can be.
const LEAST: ByteSize = ByteSize::mib(1);
/// A day.
const DAY: Duration = Duration::from_secs(86_400);

impl Check<'_> {
    pub(super) fn history(&mut self, given: low::History) -> Bounds {
        let usual = Bounds::default();
        let low::History { keep, hourly, max_size, max_rows, addresses } = given;
        let days = keep.as_ref().map_or(usual.days, |d| self.days(d));
        let hourly_days = hourly.as_ref().map_or(usual.hourly_days.min(days), |d| self.days(d));
        if let Some(hourly) = hourly.filter(|_| hourly_days > days) {
            self.fault(
                position(&hourly),
                format!("hours are kept for {hourly_days} days, and everything only for {days}"),
                "make `hourly` no longer than `keep`",
            );
        }
        let rows = max_rows.map_or(usual.rows, |n| {
            if n.value < 10_000 {
                self.fault(position(&n), format!("{} rows are too few to be of use", n.value), "at least 10000");
            }
            n.value
        });
        Bounds {
            days,
            hourly_days,
            rows,
            bytes: max_size.map_or(usual.bytes, |s| self.size(&s)),
            addresses: addresses.map_or(usual.addresses, |n| n.value),
        }
    }

    pub(super) fn decision_log(&mut self, given: low::DecisionLog) -> Option<DecisionLog> {
        let low::DecisionLog { path, format, max_size, keep, interval, revision_file } = given;
        let keep = keep.map_or(5, |n| {
            if n.value == 0 {
                self.fault(position(&n), "no file at all can't be kept".to_owned(), "1 is the current file alone");
            }
            n.value
        });
        let interval = interval.map_or(Duration::from_secs(60), |i| {
            let given = self.duration(&i);
            if given < Duration::from_secs(1) {
                self.fault(position(&i), format!("`{}` is too often", i.value), "at least 1s");
            }
            given
        });
        Some(DecisionLog {
            max_size: max_size.map_or(ByteSize::mib(64).0, |s| self.size(&s)),
            revision_file: revision_file.and_then(|f| self.path(&f)),
            path: self.path(&path)?,
            format: format.unwrap_or(LogForm::Json),
            keep,
            interval,
        })
    }

    /// Whole days, at least one.
    fn days(&mut self, given: &Spanned<String>) -> u64 {
        let time = self.duration(given);
        if time < DAY {
            self.fault(position(given), format!("`{}` is less than a day", given.value), "write days, such as 30d");
        }
        time.as_secs() / DAY.as_secs()
    }

    fn duration(&mut self, given: &Spanned<String>) -> Duration {
        humantime::parse_duration(&given.value).unwrap_or_else(|_| {
            self.fault(
                position(given),
                format!("`{}` isn't a length of time", given.value),
                "write one such as 30s, 10m, 12h or 90d",
            );
            DAY
        })
    }

    fn size(&mut self, given: &Spanned<String>) -> u64 {
        let size: ByteSize = given.value.parse().unwrap_or_else(|_| {
            self.fault(position(given), format!("`{}` isn't a size", given.value), "write one such as 100MiB");
            LEAST
        });
        if size < LEAST {
            self.fault(position(given), format!("`{}` is too small to be of use", given.value), "at least 1MiB");
        }
        size.0
    }
}
