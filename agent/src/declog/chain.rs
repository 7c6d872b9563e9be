//! How lines hang together.
//!
//! A line is JSON that ends with its number, the hash of the line before and its own hash: `…,"seq":8,"prev":"H7",
//! "hash":"H8"}`, in OCSF one level deeper (`}}`). H8 is the SHA-256 of the whole line without `,"hash":"H8"`, so over
//! the record, its number and H7. The first line of a log has 64 zeros before it.
//!
//! This shows what was changed by hand or by accident. Whoever can write the file can also compute it all anew: only a
//! hash that was kept elsewhere shows that.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// A SHA-256 in hexadecimal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hash(String);

impl Hash {
    /// What stands before the first line.
    pub fn none() -> Self {
        Self("0".repeat(64))
    }

    /// Of these bytes, one part after the other.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or_default();
        Self(hash.finalize().iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect())
    }

    /// A text that can be one.
    pub fn read(text: &str) -> Option<Self> {
        let fits = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The end of a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The last line's number; 0: there is none yet.
    pub sequence: u64,
    /// The last line's hash.
    pub hash: Hash,
}

impl Default for Chain {
    fn default() -> Self {
        Self { sequence: 0, hash: Hash::none() }
    }
}

const KEY: &str = ",\"hash\":\"";

/// Adds the hash to an object that ends with `seq` and `prev`, and a newline.
pub fn seal(json: &str) -> (String, Hash) {
    let braces = json.bytes().rev().take_while(|b| *b == b'}').count();
    let (head, tail) = json.split_at(json.len() - braces);
    let hash = Hash::of(&[head.as_bytes(), tail.as_bytes()]);
    (format!("{head}{KEY}{hash}\"{tail}\n"), hash)
}

/// A line that was read, without its newline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// Its number.
    pub sequence: u64,
    /// The hash of the line before.
    pub previous: Hash,
    /// Its own hash, as it says.
    pub hash: Hash,
    /// Whether that is its hash.
    pub holds: bool,
}

/// Reads a line; `None` if it isn't one of ours.
pub fn open(line: &str) -> Option<Sealed> {
    let at = line.rfind(KEY)?;
    let (head, rest) = (&line[..at], &line[at + KEY.len()..]);
    let (hash, tail) = (Hash::read(rest.get(..64)?)?, rest.get(64..)?.strip_prefix('"')?);
    if tail.is_empty() || tail.len() > 2 || tail.bytes().any(|b| b != b'}') {
        return None;
    }
    #[derive(Deserialize)]
    struct Ends {
        seq: Option<u64>,
        prev: Option<String>,
        unmapped: Option<Box<Ends>>,
    }
    let whole: Ends = serde_json::from_str(&format!("{head}{tail}")).ok()?;
    let ends = if tail.len() == 2 { *whole.unmapped? } else { whole };
    let holds = Hash::of(&[head.as_bytes(), tail.as_bytes()]) == hash;
    Some(Sealed { sequence: ends.seq?, previous: Hash::read(&ends.prev?)?, hash, holds })
}
