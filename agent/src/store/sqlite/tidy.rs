//! Thinning out: hours become days, days become too old, and what is too much makes room from its old end.

use super::write::{meta, set_meta};
use super::{HOURLY, Open, PAGE, StoreError, WHOLE_DAY, day_and_hour, limit, signed, unsigned};
use crate::store::Bounds;
use rusqlite::{Connection, params};
use std::collections::HashSet;

/// How many stretches of watched time are kept.
const STRETCHES: i64 = 10_000;
/// Of its greatest size, how full a store may be before it is thinned out.
const FULL: u64 = 90;
/// And how full it may be afterwards.
const ENOUGH: u64 = 80;

impl Open {
    /// Gives the number of rows that are left, and what to say if there was too much. Thinning out needs some room
    /// itself before it gives any back.
    pub(super) fn tidy(
        &mut self,
        now: u64,
        trusted: bool,
        bounds: Bounds,
    ) -> Result<(u64, Option<String>), StoreError> {
        limit(&self.connection, bounds.bytes.saturating_add(bounds.bytes / 8))?;
        let done = self.thin_out(now, trusted, bounds);
        limit(&self.connection, bounds.bytes)?;
        done
    }

    fn thin_out(&mut self, now: u64, trusted: bool, bounds: Bounds) -> Result<(u64, Option<String>), StoreError> {
        let (today, _) = day_and_hour(now);
        if trusted {
            self.whole_days_before(today.saturating_sub(bounds.hourly_days.saturating_sub(1)))?;
            let kept = today.saturating_sub(bounds.days.saturating_sub(1));
            for day in days(&self.connection, "1")?.into_iter().filter(|d| *d < kept) {
                self.remove_day(day)?;
            }
            let first = signed(kept.saturating_mul(86_400_000));
            self.connection.execute("DELETE FROM watched WHERE last < ?", [first])?;
            self.connection.execute("DELETE FROM unattributed WHERE day < ?", [signed(kept)])?;
            self.connection.execute("DELETE FROM names WHERE last < ?", [first])?;
            self.connection.execute("DELETE FROM executables WHERE last < ?", [first])?;
        }
        let latest = "DELETE FROM watched WHERE id NOT IN (SELECT id FROM watched ORDER BY id DESC LIMIT ?)";
        self.connection.execute(latest, [STRETCHES])?;

        let mut size = Size::of(&self.connection)?;
        let mut crowded = None;
        if size.exceeds(bounds, FULL) {
            let mut removed = 0_u64;
            let mut steps = 0;
            // The oldest hours first, then the oldest days; never the day that it is.
            while size.exceeds(bounds, ENOUGH) {
                let old = |days: Vec<u64>| days.into_iter().find(|d| *d != today);
                if let Some(day) = old(days(&self.connection, "hour < 24")?) {
                    self.whole_days_before(day + 1)?;
                } else if let Some(day) = old(days(&self.connection, "1")?) {
                    self.remove_day(day)?;
                    removed += 1;
                } else {
                    break;
                }
                steps += 1;
                size = Size::of(&self.connection)?;
            }
            self.remove_orphans()?;
            size = Size::of(&self.connection)?;
            tracing::warn!(steps, removed, "the history was too large and is thinned out before its time");
            if removed > 0 || size.exceeds(bounds, ENOUGH) {
                crowded = Some(format!(
                    "the history is at its bounds ({} rows, {} KiB): its {removed} oldest days went before their time; \
                     raise `history.maxSize` and `history.maxRows`, or keep it for fewer days",
                    size.rows,
                    size.bytes >> 10
                ));
            }
        } else {
            self.remove_orphans()?;
        }
        self.connection.execute_batch("PRAGMA incremental_vacuum; PRAGMA optimize;")?;
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok((size.rows, crowded))
    }

    /// Leaves of all days before this one only what they are as a whole.
    fn whole_days_before(&mut self, day: u64) -> Result<(), StoreError> {
        let t = self.connection.transaction()?;
        t.execute("DELETE FROM counts WHERE day < ?1 AND hour < ?2", params![signed(day), signed(WHOLE_DAY)])?;
        let known = meta(&t, HOURLY)?.unwrap_or(0);
        set_meta(&t, HOURLY, known.max(signed(day)))?;
        t.commit()?;
        Ok(())
    }

    fn remove_day(&mut self, day: u64) -> Result<(), StoreError> {
        self.connection.execute("DELETE FROM counts WHERE day = ?", [signed(day)])?;
        Ok(())
    }

    /// Removes edges without counts, and what only they named. A counter that still stands gets its edge back when it
    /// grows.
    fn remove_orphans(&mut self) -> Result<(), StoreError> {
        let t = self.connection.transaction()?;
        let orphans = "NOT EXISTS (SELECT 1 FROM counts c WHERE c.edge = edges.id)";
        let gone: HashSet<i64> = t
            .prepare(&format!("SELECT id FROM edges WHERE {orphans}"))?
            .query_map([], |r| r.get(0))?
            .collect::<Result<_, _>>()?;
        if gone.is_empty() {
            return Ok(());
        }
        t.execute(&format!("DELETE FROM edges WHERE {orphans}"), [])?;
        t.execute_batch(
            "UPDATE readings SET edge = NULL WHERE edge NOT IN (SELECT id FROM edges);
             DELETE FROM links WHERE id NOT IN (SELECT link FROM edges);
             DELETE FROM executables WHERE link NOT IN (SELECT id FROM links);
             DELETE FROM peers WHERE id NOT IN (SELECT source FROM links UNION SELECT destination FROM links);
             DELETE FROM names WHERE peer NOT IN (SELECT id FROM peers);",
        )?;
        t.commit()?;
        self.forget_edges(|id| gone.contains(&id));
        Ok(())
    }
}

/// The days in which there are counts of which that holds, oldest first. `which` is ours, not a stranger's.
fn days(connection: &Connection, which: &str) -> Result<Vec<u64>, StoreError> {
    let mut all = connection.prepare(&format!("SELECT DISTINCT day FROM counts WHERE {which} ORDER BY day"))?;
    let days = all.query_map([], |r| r.get::<_, i64>(0))?.map(|d| d.map(unsigned));
    Ok(days.collect::<Result<_, _>>()?)
}

/// What a store takes up.
struct Size {
    rows: u64,
    bytes: u64,
}

impl Size {
    fn of(connection: &Connection) -> Result<Self, StoreError> {
        let one = |sql: &str| connection.query_row(sql, [], |r| r.get::<_, i64>(0)).map(unsigned);
        let pages = one("PRAGMA page_count")?.saturating_sub(one("PRAGMA freelist_count")?);
        Ok(Self { rows: one("SELECT count(*) FROM counts")?, bytes: pages.saturating_mul(PAGE) })
    }

    const fn exceeds(&self, bounds: Bounds, percent: u64) -> bool {
        self.rows > bounds.rows / 100 * percent || self.bytes > bounds.bytes / 100 * percent
    }
}
