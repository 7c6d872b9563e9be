//! The bank's daily business: requests that go on through every step, each of which must be answered.
//!
//! What the table of intentions says is sent, each time over a new connection or socket, and over one that is held from
//! before Bulkhead came. One party is silent but for a job now and then ([`job`]). A request is lost if no answer comes within [`PATIENCE`], and falsely
//! denied if the kernel refuses it. The children count in memory that they share with the parent.

use crate::bank::{self, BATCH, PARTIES, Proto};
use crate::estate::Estate;
use crate::server::{MESSAGE, REQUEST};
use anyhow::{Context as _, Result, bail};
use bulkhead::probe::sandbox::{Process, Turn};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long an answer may take. Loaded machines are slow; refused or dropped requests never come back.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two rounds of requests of one party.
const PACE: Duration = Duration::from_millis(40);
/// How long all connections together may take to be opened at the start.
const OPEN_WITHIN: Duration = Duration::from_secs(20);

/// What became of the requests until now.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Business {
    /// Answered.
    pub(crate) answered: u64,
    /// Never answered.
    pub(crate) lost: u64,
    /// Refused by the kernel.
    pub(crate) refused: u64,
}

/// The processes that send it.
pub(crate) struct Traffic {
    processes: Vec<Process>,
    names: Vec<&'static str>,
    /// How many words of each process's log were passed on already.
    told: Vec<usize>,
    counters: Counters,
}

/// In memory that outlives a fork: set or added to by the children, read by the parent.
type Counters = &'static [AtomicU64];

const ANSWERED: usize = 0;
const LOST: usize = 1;
const REFUSED: usize = 2;
/// Set by the parent when it is enough.
const ENOUGH: usize = 3;
const COUNTERS: usize = 4;

/// A request that is sent in each round.
#[derive(Clone, Copy)]
struct Errand {
    to: SocketAddr,
    by: By,
}

#[derive(Clone, Copy, Debug)]
enum By {
    NewConnection,
    HeldConnection,
    NewSocket,
    HeldSocket,
}

impl Traffic {
    /// Starts it; from here on it goes on until [`Traffic::stop`].
    pub(crate) fn start(estate: &Estate) -> Result<Self> {
        let counters = shared(COUNTERS)?;
        let (mut processes, mut names) = (Vec::new(), Vec::new());
        for (party, who) in PARTIES.iter().enumerate() {
            let errands = errands(estate, party);
            let errands = errands.as_slice();
            if !errands.is_empty() && who.name != BATCH {
                names.push(who.name);
                processes.push(estate.spawn(party, who.name, |turn| run(turn, errands, counters))?);
            }
        }
        for process in &mut processes {
            process.wait_ready(OPEN_WITHIN).context("the bank's business doesn't start")?;
        }
        for process in &mut processes {
            process.go(&[])?;
        }
        let told = vec![0; processes.len()];
        Ok(Self { processes, names, told, counters })
    }

    /// What became of it until now.
    pub(crate) fn so_far(&self) -> Business {
        let at = |n: usize| self.counters[n].load(Ordering::Relaxed);
        Business { answered: at(ANSWERED), lost: at(LOST), refused: at(REFUSED) }
    }

    /// What went wrong since this was last asked, in words.
    pub(crate) fn troubles(&mut self) -> Vec<String> {
        let mut troubles = Vec::new();
        for ((name, told), process) in self.names.iter().zip(&mut self.told).zip(&mut self.processes) {
            let log = process.received();
            troubles.extend(log[*told..].iter().map(|text| format!("{name}, {}", String::from_utf8_lossy(text))));
            *told = log.len();
        }
        troubles
    }

    /// Lets every request that is under way come to its end, and gives the final count.
    pub(crate) fn stop(&mut self) -> Result<Business> {
        self.counters[ENOUGH].store(1, Ordering::Relaxed);
        for process in &mut self.processes {
            match process.finish(2 * PATIENCE) {
                Some(ended) => ended.context("a sender of the bank's business failed")?,
                None => bail!("a sender of the bank's business didn't end"),
            }
        }
        Ok(self.so_far())
    }
}

/// Everything that a party is there for, in each way of asking.
fn errands(estate: &Estate, party: usize) -> Vec<Errand> {
    let ways = bank::ways().into_iter().filter(|w| w.from == party && w.intended());
    let errands = ways.flat_map(|way| {
        let to = estate.address(way.to, way.v6);
        let by = match way.proto {
            Proto::Tcp => [By::NewConnection, By::HeldConnection],
            Proto::Udp => [By::NewSocket, By::HeldSocket],
        };
        by.map(|by| Errand { to, by })
    });
    errands.collect()
}

/// Lets the party whose work comes now and then do it once. Says how many requests were answered, and what went wrong
/// with the others.
pub(crate) fn job(estate: &Estate) -> Result<(usize, Vec<String>)> {
    let party = bank::index(BATCH);
    let errands = errands(estate, party);
    let errands = errands.as_slice();
    let mut process = estate.spawn(party, "batch-job", |turn| {
        for (errand, number) in errands.iter().zip(0..) {
            if let Err(e) = Channel::open(errand).and_then(|mut channel| channel.ask(errand, number)) {
                turn.received(format!("{:?} to {}: {e}", errand.by, errand.to).as_bytes())?;
            }
        }
        Ok(())
    })?;
    process.finish(OPEN_WITHIN).context("the batch job doesn't end")??;
    let troubles: Vec<String> = process.received().iter().map(|t| String::from_utf8_lossy(t).into_owned()).collect();
    Ok((errands.len() - troubles.len(), troubles))
}

/// Zeroed counters that a forked child shares with its parent. They stay until the process ends.
fn shared(count: usize) -> Result<Counters> {
    let length = count * size_of::<AtomicU64>();
    // SAFETY: a new anonymous mapping, page-aligned and zeroed, hence valid as AtomicU64s; it is never unmapped.
    unsafe {
        let memory =
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
        Ok(std::slice::from_raw_parts(memory.cast(), count))
    }
}

/// The child: opens what it holds, then goes on all its errands again and again.
fn run(turn: &mut Turn, errands: &[Errand], counters: Counters) -> io::Result<()> {
    turn.doing("opening the connections that are held");
    let mut channels = errands.iter().map(Channel::open).collect::<io::Result<Vec<_>>>()?;
    turn.ready()?;
    turn.doing("asking");
    for number in 0.. {
        for (errand, channel) in errands.iter().zip(&mut channels) {
            if counters[ENOUGH].load(Ordering::Relaxed) != 0 {
                return Ok(());
            }
            let became = match channel.ask(errand, number) {
                Ok(()) => ANSWERED,
                Err(e) => {
                    // A held connection that failed once is opened again, or its one loss would be counted for ever.
                    if let Ok(fresh) = Channel::open(errand) {
                        *channel = fresh;
                    }
                    let errand = format!("{:?} to {}: {e}", errand.by, errand.to);
                    turn.received(errand.as_bytes())?;
                    if e.kind() == ErrorKind::PermissionDenied { REFUSED } else { LOST }
                }
            };
            counters[became].fetch_add(1, Ordering::Relaxed);
        }
        sleep(PACE);
    }
    Ok(())
}

/// What an errand keeps between rounds.
enum Channel {
    None,
    Stream(TcpStream),
    Socket(UdpSocket),
}

impl Channel {
    fn open(errand: &Errand) -> io::Result<Self> {
        Ok(match errand.by {
            By::NewConnection | By::NewSocket => Self::None,
            By::HeldConnection => Self::Stream(connect(errand.to)?),
            By::HeldSocket => Self::Socket(bind(errand.to)?),
        })
    }

    /// Sends one request and waits for its answer.
    fn ask(&mut self, errand: &Errand, number: u64) -> io::Result<()> {
        let mut request = [0; MESSAGE];
        request[0] = REQUEST;
        request[1..9].copy_from_slice(&number.to_be_bytes());
        match (self, errand.by) {
            (Self::Stream(stream), _) => ask_stream(stream, &request),
            (Self::Socket(socket), _) => ask_datagram(socket, errand.to, &request),
            (Self::None, By::NewConnection | By::HeldConnection) => ask_stream(&mut connect(errand.to)?, &request),
            (Self::None, By::NewSocket | By::HeldSocket) => ask_datagram(&bind(errand.to)?, errand.to, &request),
        }
    }
}

/// A socket for datagrams to there, on a port of its own.
fn bind(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ask_stream(stream: &mut TcpStream, request: &[u8; MESSAGE]) -> io::Result<()> {
    stream.write_all(request)?;
    let mut answer = [0; MESSAGE];
    stream.read_exact(&mut answer)?;
    if answer == *request { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn ask_datagram(socket: &UdpSocket, to: SocketAddr, request: &[u8; MESSAGE]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    socket.send_to(request, to)?;
    let mut answer = [0; MESSAGE];
    while Instant::now() < deadline {
        // An earlier request's answer may come late.
        if socket.recv(&mut answer)? == MESSAGE && answer == *request {
            return Ok(());
        }
    }
    Err(ErrorKind::TimedOut.into())
}
