//! Waiting for a condition, with an end.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `done` until it says yes, and fails after `limit`. An error ends it at once.
pub(super) fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !done()? {
        if Instant::now() > end {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}
