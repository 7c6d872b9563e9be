//! Looking a log over: is each line as it was written, and does each follow on the one before?

use super::chain::{Hash, open};
use serde::Serialize;
use std::io::{self, BufRead, Read};

/// The longest line that can be ours, bytes.
const LONGEST: u64 = 1 << 20;

/// Something wrong with a log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// The line in it, from 1; 0: the file as a whole.
    pub line: u64,
    /// What.
    pub what: String,
}

/// What was found in a log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Verified {
    /// How many lines were read.
    pub lines: u64,
    /// The number of the first.
    pub first: Option<u64>,
    /// The number of the last.
    pub last: Option<u64>,
    /// The hash of the last.
    pub hash: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// A hash that was kept elsewhere and has to be in the log.
    #[serde(skip)]
    pub wanted: Option<String>,
}

impl Verified {
    /// After the last file: whether the wanted hash was there.
    pub fn end(&mut self) {
        if let Some(hash) = self.wanted.take() {
            let what = format!("no line has the hash {hash}: the log was cut off before it, or made anew");
            self.findings.push(Finding { file: "the log".to_owned(), line: 0, what });
        }
    }

    /// Takes up the next file, in the order in which they were written.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&mut self, name: &str, mut text: impl BufRead) -> io::Result<()> {
        for number in 1.. {
            let mut bytes = Vec::new();
            text.by_ref().take(LONGEST).read_until(b'\n', &mut bytes)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let whole = bytes.pop_if(|b| *b == b'\n').is_some();
            self.lines += 1;
            let what = if whole { self.line(&bytes) } else { Some("the line isn't complete".to_owned()) };
            if let Some(what) = what {
                self.findings.push(Finding { file: name.to_owned(), line: number, what });
            }
        }
        Ok(())
    }

    fn line(&mut self, bytes: &[u8]) -> Option<String> {
        let Some(sealed) = std::str::from_utf8(bytes).ok().and_then(open) else {
            return Some(
                "the line isn't one of a decision log, or was changed so much that it isn't any more".to_owned(),
            );
        };
        let sequence = sealed.sequence;
        if sealed.holds {
            self.wanted.take_if(|w| w == sealed.hash.as_str());
        }
        let before = self.last.zip(self.hash.as_ref());
        let what = match before {
            Some(_) if sealed.holds && sequence == 1 && sealed.previous == Hash::none() => {
                self.last = None;
                Some("a new log begins here: it doesn't follow on what is before".to_owned())
            }
            _ if !sealed.holds => {
                Some(format!("the line (number {sequence}) was changed: its hash isn't that of its text"))
            }
            Some((last, hash)) if sealed.previous.as_str() == hash && sequence == last.saturating_add(1) => None,
            Some((last, _)) if sequence > last.saturating_add(1) => {
                let missing = sequence - last - 1;
                Some(format!("before this line (number {sequence}) {missing} are missing, after number {last}"))
            }
            Some((last, _)) if sequence <= last => {
                Some(format!("the line (number {sequence}) is out of order or repeated: number {last} is before it"))
            }
            Some((last, _)) => Some(format!(
                "the line (number {sequence}) doesn't follow on the one before (number {last}): one was replaced"
            )),
            None if sequence == 1 && sealed.previous != Hash::none() => {
                Some("the first line says that another is before it".to_owned())
            }
            None => None,
        };
        self.first.get_or_insert(sequence);
        // From a line that is out of order nothing can follow.
        if what.is_none() || self.last.is_none_or(|last| sequence > last) {
            self.last = Some(sequence);
            self.hash = Some(sealed.hash.as_str().to_owned());
        }
        what
    }
}
