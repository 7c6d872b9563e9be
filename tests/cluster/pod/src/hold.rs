//! Connections that last: opened once and used twice a second, for as long as the orders name them.
//!
//! One line each way a message, `hold KEY OPENED COUNT` and the count back. The receiver writes every message down
//! (`NAME.kept`), so its last line tells until when a connection worked. The end of each is written down by its opener
//! (`NAME.held`: `KEY OPENED NOW COUNT WHY`); one that broke is opened anew, one that isn't wanted any more is `unwanted`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::Duration;

use crate::talk::{Journal, now, word};

/// How a message begins.
pub(crate) const WORD: &str = "hold ";
const EVERY: Duration = Duration::from_millis(500);
/// An answer may be late by so much: what is sent again after a loss gets there in between.
const PATIENCE: Duration = Duration::from_secs(20);
const TO_OPEN: Duration = Duration::from_secs(2);

/// Those that the orders name, by key.
pub(crate) type Wanted = Arc<Mutex<BTreeMap<u64, SocketAddr>>>;

/// Opens what is wanted newly; what isn't any more ends by itself.
pub(crate) fn follow(wanted: &Wanted, orders: BTreeMap<u64, SocketAddr>, held: &Journal) {
    let mut now = wanted.lock().unwrap_or_else(PoisonError::into_inner);
    let new: Vec<(u64, SocketAddr)> =
        orders.iter().filter(|(key, _)| !now.contains_key(key)).map(|(key, at)| (*key, *at)).collect();
    *now = orders;
    drop(now);
    for (key, address) in new {
        let (wanted, held) = (Arc::clone(wanted), held.clone());
        thread::spawn(move || keep(key, address, &wanted, &held));
    }
}

fn keep(key: u64, address: SocketAddr, wanted: &Wanted, held: &Journal) {
    let is_wanted = || wanted.lock().unwrap_or_else(PoisonError::into_inner).get(&key) == Some(&address);
    while is_wanted() {
        if let Ok(stream) = TcpStream::connect_timeout(&address, TO_OPEN) {
            let (opened, mut count) = (now(), 0);
            let done = converse(stream, key, opened, &mut count, is_wanted);
            let why = done.map_or_else(|error| word(&error), |()| "unwanted".to_owned());
            held.add(&format!("{key} {opened} {} {count} {why}", now()));
        }
        sleep(EVERY * 2);
    }
}

/// Until it breaks, or isn't wanted any more.
fn converse(
    stream: TcpStream,
    key: u64,
    opened: u64,
    count: &mut u64,
    is_wanted: impl Fn() -> bool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let (mut back, mut out) = (BufReader::new(stream.try_clone()?), stream);
    while is_wanted() {
        out.write_all(format!("{WORD}{key} {opened} {count}\n").as_bytes())?;
        let mut answer = String::new();
        if back.read_line(&mut answer)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if answer.trim_end() != count.to_string() {
            return Err(Error::other("another answer"));
        }
        *count += 1;
        sleep(EVERY);
    }
    Ok(())
}

/// The other side: answers a connection whose first line is given, to its end.
pub(crate) fn answer(stream: TcpStream, first: &str, kept: &Journal) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE * 3))?;
    stream.set_nodelay(true)?;
    let (mut lines, mut out) = (BufReader::new(stream.try_clone()?), stream);
    let mut line = first.to_owned();
    while let Some(said) = line.strip_prefix(WORD) {
        let said = said.trim_end();
        let Some((_, count)) = said.rsplit_once(' ') else { break };
        kept.add(&format!("{} {said}", now()));
        out.write_all(format!("{count}\n").as_bytes())?;
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            break;
        }
    }
    Ok(())
}
