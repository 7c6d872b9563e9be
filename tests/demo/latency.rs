//! What a connect() costs: real TCP connects from `web` to `payments`, timed one by one.

use crate::bank::PARTIES;
use crate::estate::Estate;
use anyhow::{Context as _, Result};
use bulkhead::probe::sandbox::Turn;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// At most so many connects ...
const COUNT: usize = 2000;
/// ... and at most for so long.
const LIMIT: Duration = Duration::from_millis(1500);

/// The median, in nanoseconds.
pub(crate) fn median_connect(estate: &Estate) -> Result<u64> {
    let party = |name| PARTIES.iter().position(|p| p.name == name).context("a party of that name");
    let to = estate.address(party("payments")?, false);
    let mut process = estate.spawn(party("web")?, "web", |turn| measure(turn, to))?;
    process.finish(4 * LIMIT).context("the connects took too long")??;
    let said = process.received().first().context("no measurement")?;
    Ok(u64::from_ne_bytes(said.as_slice().try_into()?))
}

fn measure(turn: &mut Turn, to: SocketAddr) -> io::Result<()> {
    turn.doing("timing connects");
    let began = Instant::now();
    let mut times = Vec::with_capacity(COUNT);
    while times.len() < COUNT && began.elapsed() < LIMIT {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        // Closed by a reset: no port is held by TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        let at = Instant::now();
        socket.connect(&to.into())?;
        times.push(at.elapsed());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    turn.received(&u64::try_from(median.as_nanos()).unwrap_or(u64::MAX).to_ne_bytes())
}
