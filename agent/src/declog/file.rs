//! The files of the log: the current one, and older ones beside it with `.1` (the latest) to `.N` added.
//!
//! Lines are written whole or not at all: what the disk took only a part of is taken off again, and the chain goes on
//! from the last whole line. So a full disk costs the lines of that time, never those before or after.

use super::chain::{Chain, Hash, open};
use crate::config::DecisionLog;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest line that is looked for at the end of a file, bytes.
const LONGEST: u64 = 1 << 17;

/// The current file, open.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    file: File,
    length: u64,
    /// The end of the chain on disk.
    chain: Chain,
}

impl LogFile {
    /// Opens the current file, or makes it, and finds the end of the chain. Gives, too, how many bytes of an unfinished
    /// line were taken off.
    ///
    /// # Errors
    /// When it can't be opened, made, or put aside.
    pub fn open(config: &DecisionLog) -> io::Result<(Self, u64)> {
        let path = config.path.clone();
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file = create(&path)?;
        let end = end_of(&mut file)?;
        let mut log = Self {
            path,
            max_size: config.max_size,
            keep: config.keep,
            length: end.length,
            chain: Chain::default(),
            file,
        };
        if end.torn > 0 {
            log.file.set_len(end.length)?;
        }
        match end.last {
            Last::Line(chain) => log.chain = chain,
            Last::Nothing => log.chain = log.before_rotation()?.unwrap_or_default(),
            // Not ours, or changed: nothing is added to it.
            Last::Strange => log.rotate()?,
        }
        Ok((log, end.torn))
    }

    /// The end of the chain on disk.
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Appends lines, all of them or none; `chain` is its end after them.
    ///
    /// # Errors
    /// When the disk doesn't take them. The file is as it was.
    pub fn append(&mut self, lines: &str, chain: Chain) -> io::Result<()> {
        let more = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.length > 0 && self.length.saturating_add(more) > self.max_size {
            self.rotate()?;
        }
        if let Err(e) = self.file.write_all(lines.as_bytes()) {
            self.file.set_len(self.length)?;
            return Err(e);
        }
        self.length += more;
        self.chain = chain;
        Ok(())
    }

    /// How many bytes fit before the next file is begun.
    pub const fn room(&self) -> u64 {
        self.max_size.saturating_sub(self.length)
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// When the disk says so.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Puts the current file aside and begins a new one; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        self.sync()?;
        for n in (1..self.keep).rev() {
            let from = if n == 1 { self.path.clone() } else { numbered(&self.path, n - 1) };
            match std::fs::rename(&from, numbered(&self.path, n)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if self.keep == 1 {
            std::fs::remove_file(&self.path)?;
        }
        self.file = create(&self.path)?;
        self.length = 0;
        Ok(())
    }

    /// The end of the chain in the file that was put aside last: the agent may have ended right after that.
    fn before_rotation(&self) -> io::Result<Option<Chain>> {
        match File::open(numbered(&self.path, 1)) {
            Ok(mut file) => Ok(match end_of(&mut file)?.last {
                Last::Line(chain) => Some(chain),
                Last::Nothing | Last::Strange => None,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The name of an older file.
pub fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    // A link that somebody put there would lead the log elsewhere.
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

/// What a file ends with.
struct End {
    last: Last,
    /// Up to the end of the last whole line.
    length: u64,
    /// What comes after that.
    torn: u64,
}

enum Last {
    Nothing,
    Line(Chain),
    Strange,
}

fn end_of(file: &mut File) -> io::Result<End> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(LONGEST);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    let Some(newline) = bytes.iter().rposition(|b| *b == b'\n') else {
        let torn = if from == 0 { size } else { 0 };
        let last = if from == 0 { Last::Nothing } else { Last::Strange };
        return Ok(End { last, length: size - torn, torn });
    };
    let torn = u64::try_from(bytes.len() - newline - 1).unwrap_or(0);
    let begin = bytes[..newline].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let line = std::str::from_utf8(&bytes[begin..newline]).ok().and_then(open);
    let last = match line {
        Some(s) if s.holds => Last::Line(Chain { sequence: s.sequence, hash: Hash::clone(&s.hash) }),
        _ => Last::Strange,
    };
    Ok(End { last, length: size - torn, torn })
}
