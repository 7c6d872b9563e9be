//! The rings, as batches for one async reader each.

use super::Datapath;
use aya::maps::{MapData, RingBuf};
use bulkhead_common::event::{Answer, Event};
use bulkhead_common::maps;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use zerocopy::FromBytes;

/// The reader of the records of a ring. There is one; the kernel keeps its place, also from one agent to the next.
pub struct Records<T> {
    ring: Source,
    malformed: u64,
    /// When events were last taken.
    last: Option<Instant>,
    of: PhantomData<fn() -> T>,
}

/// The reader of the events.
pub type Events = Records<Event>;
/// The reader of the DNS answers.
pub type Answers = Records<Answer>;

enum Source {
    Idle(Option<RingBuf<MapData>>),
    Polled(AsyncFd<RingBuf<MapData>>),
}

impl Datapath {
    /// The events, the first time that it is called.
    pub fn take_events(&mut self) -> Option<Events> {
        self.take_ring(maps::EVENTS)
    }

    /// The DNS answers, the first time that it is called.
    pub fn take_answers(&mut self) -> Option<Answers> {
        self.take_ring(maps::ANSWERS)
    }

    fn take_ring<T>(&mut self, name: &str) -> Option<Records<T>> {
        let ring = RingBuf::try_from(self.ebpf.take_map(name)?).ok()?;
        Some(Records { ring: Source::Idle(Some(ring)), malformed: 0, last: None, of: PhantomData })
    }

    /// What passes the programs' own log on to ours, the first time that it is called; `None` when they are silent
    /// ([`super::Options::verbose_kernel_log`]). To be run within a tokio runtime; it ends only with an error.
    pub fn take_kernel_log(&mut self) -> Option<impl Future<Output = io::Error> + Send + use<>> {
        if !self.options.verbose_kernel_log {
            return None;
        }
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf).ok()?;
        let forward = async move || -> io::Result<()> {
            // SAFETY: the logger owns its descriptor and gives the same one as long as it lives.
            let mut logger = unsafe { AsyncFd::register(logger)? };
            loop {
                let mut guard = logger.readable_mut().await?;
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        };
        Some(async move { forward().await.err().unwrap_or_else(|| io::Error::other("the kernel's log has ended")) })
    }
}

impl<T: FromBytes> Records<T> {
    /// At most so many records make a batch, so that a flood doesn't keep the reader from its other work.
    const BATCH: usize = 1024;
    /// So long lies between two batches, at least: the kernel wakes a reader that has read everything for the very next
    /// event, and a flood would have it run once for each, in the way of everybody else. A lone event comes at once.
    /// The ring has room for many times as long.
    const GATHER: Duration = Duration::from_millis(5);

    /// Waits until there are records, and takes them. To be called within a tokio runtime.
    pub async fn next(&mut self) -> io::Result<Vec<T>> {
        if let Source::Idle(ring) = &mut self.ring {
            let ring = ring.take().ok_or_else(|| io::Error::other("the ring couldn't be polled before"))?;
            // SAFETY: the ring owns its descriptor and gives the same one as long as it lives.
            self.ring = Source::Polled(unsafe { AsyncFd::register(ring)? });
        }
        let Source::Polled(ring) = &mut self.ring else {
            return Err(io::Error::other("the ring isn't polled"));
        };
        loop {
            let mut guard = ring.readable_mut().await?;
            if let Some(last) = self.last {
                sleep_until(last + Self::GATHER).await;
            }
            self.last = Some(Instant::now());
            let mut batch = Vec::new();
            while batch.len() < Self::BATCH
                && let Some(item) = guard.get_inner_mut().next()
            {
                match T::read_from_bytes(&item) {
                    Ok(record) => batch.push(record),
                    Err(_) => self.malformed += 1,
                }
            }
            if batch.len() < Self::BATCH {
                guard.clear_ready();
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// Records of another length, which were skipped. No program of ours writes such.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}
