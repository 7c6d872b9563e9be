//! Rounds: every lane gets its turn in each, forwards and backwards alternately, and only lanes of the same round are
//! compared.
//!
//! The machine has other things to do. So the measured processes stay on one CPU, with a real-time priority where the
//! kernel grants it, and the median over many rounds is what counts. A turn takes some tens of milliseconds: the kernel
//! frees a closed socket's memory a grace period later, which must fall into the turn of the lane that owes it.

use crate::keys::Keys;
use crate::lane::{Kind, Lane};
use crate::numbers::median;
use crate::work::Word;
use anyhow::{Context, Result, bail, ensure};
use bulkhead_tests::sandbox::{Process, Turn};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;
use std::time::{Duration, Instant};

/// How long a lane's turn may take before something is wrong.
const LONGEST: Duration = Duration::from_secs(60);

/// The processes of one lane.
pub(crate) struct Pair {
    pub(crate) kind: Kind,
    client: Process,
    /// A server that has to take part in each turn.
    server: Option<Process>,
    /// A server that only has to exist.
    _idle: Option<Process>,
}

impl Pair {
    /// A client by itself.
    pub(crate) fn alone<F>(lane: &Lane, client: F) -> Result<Self>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        let mut client = spawn(&lane.client, client)?;
        ready(&mut client)?;
        Ok(Self { kind: lane.kind, client, server: None, _idle: None })
    }

    /// A client that gets the server's listeners.
    pub(crate) fn with_listeners<F, G>(lane: &Lane, keys: Keys, server: F, client: G) -> Result<Self>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
        G: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        let mut server = spawn(&lane.server, server)?;
        let mut client = spawn(&lane.client, client)?;
        for _ in 0..keys.ports {
            let listener = server.take_socket(LONGEST).context("the server gave no listener")?;
            client.hand_over(std::os::fd::AsFd::as_fd(&listener))?;
        }
        ready(&mut client)?;
        Ok(Self { kind: lane.kind, client, server: None, _idle: Some(server) })
    }

    /// A client and a server that answers.
    pub(crate) fn talking<F, G>(lane: &Lane, server: F, client: G) -> Result<Self>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
        G: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        let mut server = spawn(&lane.server, server)?;
        ready(&mut server)?;
        let mut client = spawn(&lane.client, client)?;
        ready(&mut client)?;
        server.go(&[])?;
        ready(&mut server)?;
        Ok(Self { kind: lane.kind, client, server: Some(server), _idle: None })
    }

    fn tell(&mut self, word: Word) -> Result<u64> {
        let seen = self.client.received().len();
        // A refused connect is no business of the server's.
        let server = self.server.as_mut().filter(|_| !matches!(word, Word::Denied));
        if let Some(server) = server {
            server.go(&word.encode())?;
            self.client.go(&word.encode())?;
            ready(&mut self.client)?;
            ready(server)?;
        } else {
            self.client.go(&word.encode())?;
            ready(&mut self.client)?;
        }
        let answer = self.client.received().get(seen).context("the client gave no answer")?;
        Ok(u64::from_ne_bytes(answer.as_slice().try_into().context("the client's answer is no number")?))
    }

    /// Shows that the lane's rules are in force, or that it has none.
    fn prove(&mut self) -> Result<()> {
        let error = i32::try_from(self.tell(Word::Denied)?)?;
        let denied = error == libc::EPERM;
        ensure!(
            denied == matches!(self.kind, Kind::Bulkhead(_)),
            "{:?}: a connect that no rule allows gave {}",
            self.kind,
            io::Error::from_raw_os_error(error)
        );
        Ok(())
    }
}

fn spawn<F>(workload: &bulkhead_tests::Workload, body: F) -> Result<Process>
where
    F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
{
    let cpu = measuring_cpu()?;
    Ok(workload.spawn(|turn| {
        turn.doing("settling on one CPU");
        settle_on(cpu)?;
        prefer();
        body(turn)
    })?)
}

/// The CPUs that we may use.
pub(crate) fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect())
}

/// The last CPU that we may use: the first one has the most interrupts.
pub(crate) fn measuring_cpu() -> Result<usize> {
    cpus()?.last().copied().context("no CPU is allowed")
}

/// The calling process stays on this CPU from now on.
pub(crate) fn settle_on(cpu: usize) -> io::Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu);
    Ok(sched_setaffinity(None, &one)?)
}

/// Runs before everything without a real-time priority, and what it starts doesn't: an agent has none in real life.
/// Where that isn't granted, there is more noise.
pub(crate) fn prefer() -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a valid value that outlives the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &parameters) == 0 }
}

fn ready(process: &mut Process) -> Result<()> {
    match process.wait_ready(LONGEST) {
        Ok(()) => Ok(()),
        Err(failure) => bail!("a measured process failed: {failure}"),
    }
}

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: u32,
    pub(crate) operations: u32,
}

/// What each lane's operations took, nanoseconds each, round by round.
pub(crate) struct Samples {
    lanes: Vec<Vec<f64>>,
}

impl Samples {
    /// Runs the rounds. A connect that must be denied is tried before and after.
    pub(crate) fn take(pairs: &mut [Pair], effort: Effort, all_first: bool) -> Result<Self> {
        for pair in pairs.iter_mut() {
            pair.prove()?;
            if all_first {
                pair.tell(Word::All)?;
            }
        }
        let mut lanes = vec![Vec::new(); pairs.len()];
        for round in 0..effort.rounds {
            let word = Word::Measure { seed: 100 + round, operations: effort.operations };
            let mut order: Vec<usize> = (0..pairs.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for lane in order {
                lanes[lane].push(pairs[lane].tell(word)? as f64 / f64::from(effort.operations));
            }
        }
        for pair in pairs {
            pair.prove()?;
        }
        Ok(Self { lanes })
    }

    /// The median of one lane.
    pub(crate) fn median(&self, lane: usize) -> f64 {
        median(self.lanes[lane].clone())
    }

    /// The median of what `f` makes of each round.
    pub(crate) fn paired(&self, f: impl Fn(&dyn Fn(usize) -> f64) -> f64) -> f64 {
        let rounds = self.lanes.first().map_or(0, Vec::len);
        median((0..rounds).map(|round| f(&|lane: usize| self.lanes[lane][round])).collect())
    }
}

/// Sets lanes up side by side, with pairs of processes made by `pair`, and runs the rounds.
pub(crate) fn run(
    kinds: &[Kind],
    effort: Effort,
    all_first: bool,
    pair: impl Fn(&Lane) -> Result<Pair>,
) -> Result<Samples> {
    let started = Instant::now();
    let lanes = kinds.iter().map(|kind| Lane::new(*kind)).collect::<Result<Vec<_>>>()?;
    let mut pairs = lanes.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let set_up = started.elapsed();
    let samples = Samples::take(&mut pairs, effort, all_first)?;
    eprintln!(
        "    set up in {:.1} s, {} rounds in {:.1} s; a connect that no rule allows was denied before and after",
        set_up.as_secs_f64(),
        effort.rounds,
        (started.elapsed() - set_up).as_secs_f64()
    );
    Ok(samples)
}
