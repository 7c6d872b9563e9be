//! A member of an estate: it answers on one port, and tries whoever it is told to, over and over.
//!
//! Everything goes by files in a folder that is shared with the node, so that orders and results don't depend on the
//! network under test, nor on the API server:
//!
//! | file | lines |
//! |---|---|
//! | `NAME.orders` | `KEY tcp\|udp\|hold ADDRESS:PORT`; replaced as a whole, looked at twenty times a second |
//! | `NAME.tried` | `KEY SENT DONE OUTCOME`, when an attempt is over |
//! | `NAME.heard` | `AT tcp\|udp PEER KEY SENT`, when somebody else's attempt arrived here |
//! | `NAME.held`, `NAME.kept` | connections that last: see [`hold`](crate::hold) |
//!
//! What arrived is written down before it is answered, by whom it reached: that line decides whether a pair may talk,
//! whatever the sender believes. Times are microseconds of CLOCK_MONOTONIC, which all containers of a machine share.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Protocol, Type};

use crate::{hold, serve};

/// How many attempts are under way at a time.
const WORKERS: usize = 8;
/// A worker takes at least so long for all of its targets.
const ROUND: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(2);
/// For an answer once there is a connection, and for the question: only a machine that is busy takes that long.
const SLOW: Duration = Duration::from_secs(8);
/// A datagram may get lost, and is sent once more.
const AGAIN: Duration = Duration::from_millis(500);

/// Whom to try.
#[derive(Clone)]
struct Target {
    key: u64,
    tcp: bool,
    address: SocketAddr,
}

/// A file to which whole lines are added.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Mutex<File>>);

impl Journal {
    fn open(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self(Arc::new(Mutex::new(file.with_context(|| format!("can't open {}", path.display()))?))))
    }

    pub(crate) fn add(&self, line: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            eprintln!("pod: a line is lost: {error}");
        }
    }
}

/// Answers and tries until the process ends.
pub(crate) fn start(port: u16, folder: &Path, name: &str) -> Result<()> {
    let journal = |kind: &str| Journal::open(&folder.join(format!("{name}.{kind}")));
    listen(port, &journal("heard")?, &journal("kept")?)?;
    let (tried, held) = (journal("tried")?, journal("held")?);
    let orders: Arc<RwLock<Vec<Target>>> = Arc::default();
    for worker in 0..WORKERS {
        let (orders, tried) = (Arc::clone(&orders), tried.clone());
        thread::spawn(move || work(worker, &orders, &tried));
    }
    let file = folder.join(format!("{name}.orders"));
    thread::spawn(move || follow(&file, &orders, &held));
    Ok(())
}

/// Microseconds since the machine started.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

fn listen(port: u16, heard: &Journal, kept: &Journal) -> Result<()> {
    let tcp = serve::open(Type::STREAM, Protocol::TCP, port)?;
    tcp.listen(1024).context("can't listen")?;
    let (tcp, udp) = (TcpListener::from(tcp), UdpSocket::from(serve::open(Type::DGRAM, Protocol::UDP, port)?));
    thread::spawn({
        let (heard, kept) = (heard.clone(), kept.clone());
        move || {
            for stream in tcp.incoming().flatten() {
                let (heard, kept) = (heard.clone(), kept.clone());
                // One that has hung up already, as a probe does, said nothing.
                thread::spawn(move || hear(stream, &heard, &kept).ok());
            }
        }
    });
    let heard = heard.clone();
    thread::spawn(move || {
        let mut said = [0; 256];
        loop {
            // An error here is of an earlier answer that nobody took.
            let Ok((length, peer)) = udp.recv_from(&mut said) else { continue };
            if let Some(nonce) = nonce(&said[..length]) {
                heard.add(&format!("{} udp {} {nonce}", now(), plain(peer)));
                udp.send_to(b"heard", peer).ok();
            }
        }
    });
    Ok(())
}

fn hear(mut stream: TcpStream, heard: &Journal, kept: &Journal) -> Result<()> {
    stream.set_read_timeout(Some(SLOW))?;
    let (peer, mut said) = (stream.peer_addr()?, Vec::new());
    let mut byte = [0];
    while said.len() < 256 && stream.read(&mut byte)? == 1 && byte != *b"\n" {
        said.extend(byte);
    }
    if let Some(nonce) = nonce(&said) {
        heard.add(&format!("{} tcp {} {nonce}", now(), plain(peer)));
        stream.write_all(b"heard")?;
    } else if said.starts_with(hold::WORD.as_bytes()) {
        hold::answer(stream, &String::from_utf8_lossy(&said), kept)?;
    } else if said.starts_with(b"GET ") {
        // A kubelet's probe. What is left unread when the socket closes would take the answer back.
        while said.len() < 4096 && !said.ends_with(b"\n\r") && stream.read(&mut byte)? == 1 {
            said.extend(byte);
        }
        stream.read_exact(&mut byte)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")?;
    }
    Ok(())
}

fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// What was said, if it is `KEY SENT`.
fn nonce(said: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(said).ok()?.trim_end();
    let (key, sent) = text.split_once(' ')?;
    (key.parse::<u64>().is_ok() && sent.parse::<u64>().is_ok()).then_some(text)
}

/// Takes the orders whenever their file was replaced.
fn follow(file: &PathBuf, orders: &RwLock<Vec<Target>>, held: &Journal) {
    let (mut last, wanted) = (String::new(), hold::Wanted::default());
    loop {
        if let Ok(text) = fs::read_to_string(file)
            && text != last
        {
            let (mut targets, mut lasting) = (Vec::new(), BTreeMap::new());
            for (key, kind, address) in text.lines().filter_map(order) {
                match kind {
                    "hold" => drop(lasting.insert(key, address)),
                    kind => targets.push(Target { key, tcp: kind == "tcp", address }),
                }
            }
            *orders.write().unwrap_or_else(PoisonError::into_inner) = targets;
            hold::follow(&wanted, lasting, held);
            last = text;
        }
        sleep(Duration::from_millis(50));
    }
}

fn order(line: &str) -> Option<(u64, &str, SocketAddr)> {
    let mut words = line.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?, words.next()?.parse().ok()?))
}

fn work(worker: usize, orders: &RwLock<Vec<Target>>, tried: &Journal) {
    loop {
        let started = Instant::now();
        let mine: Vec<Target> = {
            let all = orders.read().unwrap_or_else(PoisonError::into_inner);
            all.iter().skip(worker).step_by(WORKERS).cloned().collect()
        };
        for target in mine {
            let sent = now();
            let outcome = attempt(target.tcp, target.address, target.key, sent, PATIENCE);
            tried.add(&format!("{} {sent} {} {outcome}", target.key, now()));
        }
        sleep(ROUND.saturating_sub(started.elapsed()).max(Duration::from_millis(50)));
    }
}

/// One attempt; a TCP connection may take `patience`. Its outcome in a word: `heard` or why not.
pub(crate) fn attempt(tcp: bool, address: SocketAddr, key: u64, sent: u64, patience: Duration) -> String {
    let done = if tcp { by_tcp(address, key, sent, patience) } else { by_udp(address, key, sent) };
    done.map_or_else(|error| word(&error), |()| "heard".to_owned())
}

/// Why not, in a word.
pub(crate) fn word(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => "denied".to_owned(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "silence".to_owned(),
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        _ => format!("{error}").replace(' ', "-"),
    }
}

fn by_tcp(address: SocketAddr, key: u64, sent: u64, patience: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(SLOW))?;
    stream.write_all(format!("{key} {sent}\n").as_bytes())?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)
}

fn by_udp(address: SocketAddr, key: u64, sent: u64) -> std::io::Result<()> {
    let any: SocketAddr = if address.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { ([0; 4], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    let mut last = None;
    for patience in [AGAIN, PATIENCE - AGAIN] {
        socket.set_read_timeout(Some(patience))?;
        socket.send(format!("{key} {sent}").as_bytes())?;
        match socket.recv(&mut [0; 16]) {
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    last.map_or(Ok(()), Err)
}
