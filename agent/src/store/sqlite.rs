//! The store of one host: a SQLite file.
//!
//! A file that is damaged, or that isn't ours, is kept aside under another name and a new one is begun: the agent's
//! work doesn't hang on its history. Whatever goes wrong is told in [`Health`], and tried again with the next batch.
//!
//! Texts (IDs, executables, DNS names) are only ever bound as parameters.

mod read;
mod tidy;
mod write;

use super::{Batch, Bounds, Health, PARTS, Store};
use crate::history::{Counts, History};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The schema's version. A file with another one is kept aside, unless it can be brought up to date.
const VERSION: i64 = 2;
/// From version 1 to version 2: names are a workload's. There were none before.
const UPDATE: &str = "DROP TABLE names;
    CREATE TABLE names (
      peer INTEGER NOT NULL, address TEXT NOT NULL, name TEXT NOT NULL, last INTEGER NOT NULL,
      PRIMARY KEY (peer, address, name)
    ) WITHOUT ROWID;";
/// Says that the file is ours: `Bulk`.
const APPLICATION: i64 = 0x4275_6c6b;
/// How many files are kept aside; the oldest goes first.
const ASIDE: usize = 3;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// Why the store couldn't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room, on the disk or within the store's bounds.
    #[error("there is no room for the history: {0} (is the disk full? else raise `history.maxSize`)")]
    Full(rusqlite::Error),
    /// What is in the file can't be.
    #[error("the history is damaged: {0}")]
    Damaged(String),
    /// Anything else that SQLite says.
    #[error("the history can't be used: {0}")]
    Sqlite(rusqlite::Error),
    /// The file system.
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        match &e {
            E::SqliteFailure(f, _) => match f.code {
                ErrorCode::DiskFull => Self::Full(e),
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Damaged(e.to_string()),
                _ => Self::Sqlite(e),
            },
            E::InvalidColumnType(..) | E::IntegralValueOutOfRange(..) | E::FromSqlConversionFailure(..) => {
                Self::Damaged(e.to_string())
            }
            _ => Self::Sqlite(e),
        }
    }
}

/// A history in one file.
pub struct Sqlite {
    path: PathBuf,
    bounds: Bounds,
    /// `None` until it could be opened.
    open: Option<Open>,
    health: Health,
    /// What last went wrong, until something goes well.
    failing: Option<String>,
    /// What is wrong with the bounds: said until the next tidying.
    crowded: Option<String>,
}

/// An open file, and what of it is kept in memory.
struct Open {
    connection: Connection,
    generation: u64,
    readings: HashMap<write::Key, write::Known>,
    /// The era of the last batch.
    era: u32,
    unattributed: u64,
    /// The row of the time in which this agent has been counting.
    watching: Option<i64>,
    /// When the last batch was read.
    last: Option<u64>,
}

impl Sqlite {
    /// The store in this file, which needn't exist. Whatever is wrong with it is told by [`Store::health`].
    pub fn new(path: &Path, bounds: Bounds) -> Self {
        let mut store =
            Self { path: path.to_owned(), bounds, open: None, health: Health::default(), failing: None, crowded: None };
        if let Err(e) = store.opened() {
            store.failing = Some(e.to_string());
        }
        store
    }

    /// When the last batch was read that is stored, milliseconds since 1970.
    pub fn last(&self) -> Option<u64> {
        self.open.as_ref().and_then(|o| o.last)
    }

    /// The open file; a damaged one is first put aside.
    fn opened(&mut self) -> Result<&mut Open, StoreError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => match Open::at(&self.path, self.bounds) {
                Err(StoreError::Damaged(why)) => {
                    set_aside(&self.path)?;
                    tracing::error!(
                        "the history at {} is damaged ({why}); it is kept aside, and a new one is begun",
                        self.path.display()
                    );
                    Open::at(&self.path, self.bounds)?
                }
                other => other?,
            },
        };
        Ok(self.open.insert(open))
    }

    /// Does something with the open file. One that turns out to be damaged is put aside, and it is done with a new one.
    fn with<T>(&mut self, mut work: impl FnMut(&mut Open, Bounds) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let bounds = self.bounds;
        let mut done = self.opened().and_then(|o| work(o, bounds));
        if let Err(StoreError::Damaged(why)) = &done {
            tracing::error!("the history is damaged ({why}); it is kept aside, and a new one is begun");
            self.open = None;
            set_aside(&self.path)?;
            done = self.opened().and_then(|o| work(o, bounds));
        }
        self.failing = done.as_ref().err().map(ToString::to_string);
        done
    }
}

impl Store for Sqlite {
    fn record(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let done = self.with(|open, bounds| open.record(batch, bounds));
        match &done {
            Ok(overflow) => {
                self.health.overflow = self.health.overflow.saturating_add(*overflow);
                self.health.written = batch.at;
            }
            Err(_) => self.health.failures += 1,
        }
        done.map(|_| ())
    }

    fn history(&mut self, since: u64, until: u64) -> Result<History, StoreError> {
        self.with(|open, _| open.history(since, until))
    }

    fn tidy(&mut self, now: u64, trusted: bool) -> Result<(), StoreError> {
        let (rows, crowded) = self.with(|open, bounds| open.tidy(now, trusted, bounds))?;
        self.health.rows = rows;
        self.crowded = crowded;
        Ok(())
    }

    fn health(&self) -> Health {
        let aside = aside(&self.path);
        let mut faults: Vec<String> = self.failing.iter().chain(&self.crowded).cloned().collect();
        faults.extend(aside.iter().map(|p| {
            format!("a damaged history is kept at {}: look at it or send it in, then remove it", p.display())
        }));
        Health {
            faults,
            bytes: fs::metadata(&self.path).map_or(0, |m| m.len()),
            aside: u64::try_from(aside.len()).unwrap_or(u64::MAX),
            ..self.health.clone()
        }
    }
}

impl Open {
    /// Opens the file, makes the tables if it is new, and checks it if it isn't.
    fn at(path: &Path, bounds: Bounds) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(32);
        let version: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
        let application: i64 = connection.pragma_query_value(None, "application_id", |r| r.get(0))?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
        let is_new = version == 0 && application == 0 && tables == 0;
        connection.execute_batch("PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL;")?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 4194304;
             PRAGMA temp_store = MEMORY; PRAGMA cache_size = -2048; PRAGMA trusted_schema = OFF;
             PRAGMA cell_size_check = ON;",
        )?;
        if is_new {
            connection.execute_batch(&format!(
                "BEGIN; {} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;",
                include_str!("sqlite/schema.sql")
            ))?;
        } else if application == APPLICATION && version == 1 {
            check(&connection)?;
            connection
                .execute_batch(&format!("BEGIN; {UPDATE} PRAGMA user_version = {VERSION}; COMMIT;"))
                .map_err(|e| StoreError::Damaged(e.to_string()))?;
        } else if application != APPLICATION || version != VERSION {
            return Err(StoreError::Damaged(format!("it is of version {version}, and this agent knows {VERSION}")));
        } else {
            check(&connection)?;
        }
        limit(&connection, bounds.bytes)?;
        Self::read_back(connection).map_err(|e| match e {
            // The tables aren't those of this version.
            StoreError::Sqlite(e) if !is_new && is_malformed(&e) => StoreError::Damaged(e.to_string()),
            e => e,
        })
    }
}

/// Whether what is in the file fits together.
fn check(connection: &Connection) -> Result<(), StoreError> {
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if said == "ok" { Ok(()) } else { Err(StoreError::Damaged(said)) }
}

/// SQLite takes no more than that for the file.
fn limit(connection: &Connection, bytes: u64) -> Result<(), StoreError> {
    Ok(connection.pragma_update(None, "max_page_count", signed((bytes / PAGE).max(64)))?)
}

/// Whether a statement doesn't fit the tables that are there.
fn is_malformed(e: &rusqlite::Error) -> bool {
    match e {
        rusqlite::Error::SqliteFailure(f, _) => f.code == ErrorCode::Unknown,
        rusqlite::Error::SqlInputError { .. } => true,
        _ => false,
    }
}

/// Moves a file and what belongs to it out of the way. Of those that lie there already, only the latest stay.
fn set_aside(path: &Path) -> Result<(), StoreError> {
    let io = |what: &Path| {
        let what = what.display().to_string();
        move |e| StoreError::Io(format!("the damaged history at {what} can't be kept aside"), e)
    };
    let number = aside(path).iter().filter_map(|p| number_of(p)).max().unwrap_or(0) + 1;
    let target = path.with_added_extension(format!("damaged-{number}"));
    for part in ["-wal", "-shm"] {
        let (from, to) = (suffixed(path, part), suffixed(&target, part));
        match fs::rename(&from, &to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(&from)(e)),
            _ => {}
        }
    }
    match fs::rename(path, &target) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(path)(e)),
        _ => {}
    }
    let all = aside(path);
    for old in all.iter().rev().skip(ASIDE) {
        for part in ["", "-wal", "-shm"] {
            let file = suffixed(old, part);
            match fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(&file)(e)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The damaged files that were kept, oldest first.
fn aside(path: &Path) -> Vec<PathBuf> {
    let Some((folder, name)) = path.parent().zip(path.file_name().and_then(|n| n.to_str())) else { return Vec::new() };
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let prefix = format!("{name}.damaged-");
    let mut all: Vec<PathBuf> = entries
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&prefix)))
        .filter(|p| number_of(p).is_some())
        .collect();
    all.sort_by_key(|p| number_of(p));
    all
}

fn number_of(aside: &Path) -> Option<u64> {
    aside.extension()?.to_str()?.strip_prefix("damaged-")?.parse().ok()
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A number as SQLite has it. What doesn't fit stays at the greatest.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A number out of the file. None of ours is negative.
fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The eight numbers that begin at this column.
fn counts_at(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Counts> {
    let mut parts = [0; PARTS];
    for (i, part) in parts.iter_mut().enumerate() {
        *part = unsigned(row.get(first + i)?);
    }
    Ok(super::whole(parts))
}

/// Which day and hour that is, since 1970.
const fn day_and_hour(ms: u64) -> (u64, u64) {
    (ms / 86_400_000, ms / 3_600_000 % 24)
}

/// The hour that means a whole day.
const WHOLE_DAY: u64 = 24;
/// The name of the first day of which all hours are there.
const HOURLY: &str = "hourly";

#[cfg(test)]
mod tests;
