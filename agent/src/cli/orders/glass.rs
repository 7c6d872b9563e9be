//! `bulkhead break-glass`: by the agent if it lives, else on what it left pinned.

use super::cluster::Deed;
use super::{length, show};
use crate::app::clock::{Clock, Deadline};
use crate::app::overrides::{BreakGlass, LONGEST, Overrides};
use crate::cli::client;
use crate::cli::exit::Answer;
use crate::cli::fleet::{Fleet, words};
use crate::config::{self, BPFFS};
use crate::datapath;
use crate::policy::Scope;
use crate::serve::api::printable;
use crate::serve::orders::{Done, Order};
use crate::sources::state::State;
use crate::time::rfc3339;
use anyhow::{Context, bail, ensure};
use bulkhead_common::PeerId;
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long is tried while an agent that keeps crashing is just there.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["scope", "end"])))]
pub(in crate::cli) struct Glass {
    #[command(flatten)]
    fleet: Fleet,
    /// The agent's control socket [default: the configuration's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The configuration that the agent runs with, to find what it left if it is dead
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where: `workload=ID`, `namespace=NAME` or `node`
    #[arg(long, requires_all = ["for_", "reason"])]
    scope: Option<Scope>,
    /// For how long; at most 24h
    #[arg(long = "for", id = "for_", value_name = "TIME", value_parser = length)]
    length: Option<Duration>,
    /// Why: it is kept, logged and shown
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Also if nothing here is in the scope, or not yet; so it always is with --cluster
    #[arg(long, requires = "scope")]
    unseen: bool,
    /// End it, everywhere
    #[arg(long)]
    end: bool,
    /// No error if it isn't on; so it always is with --cluster
    #[arg(long, requires = "end")]
    again: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Where an agent keeps its things.
struct Place {
    socket: PathBuf,
    state: PathBuf,
    bpffs: PathBuf,
    instance: String,
}

impl Place {
    fn of(args: &Glass) -> anyhow::Result<Self> {
        let mut place = Self {
            socket: config::SOCKET.into(),
            state: config::STATE.into(),
            bpffs: BPFFS.into(),
            instance: config::INSTANCE.to_owned(),
        };
        if let Some(file) = &args.config {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
            let c = config::parse(&name, &text)
                .map_err(|all| anyhow::anyhow!("{}", all.first().map(ToString::to_string).unwrap_or_default()))?;
            place = Self { socket: c.socket, state: c.state, bpffs: c.bpffs, instance: c.instance };
        }
        if let Some(socket) = &args.socket {
            place.socket.clone_from(socket);
        }
        Ok(place)
    }
}

pub(in crate::cli) fn break_glass(args: &Glass) -> crate::cli::Result {
    if args.fleet.cluster {
        return cluster(args);
    }
    let place = Place::of(args)?;
    let order = match (&args.scope, args.length, &args.reason) {
        (Some(scope), Some(length), Some(reason)) => {
            let (scope, reason) = (scope.clone(), reason.clone());
            Order::BreakGlass { scope, seconds: length.as_secs(), reason, unseen: args.unseen }
        }
        _ => Order::EndBreakGlass { again: args.again },
    };
    let done = done(&place, order)?;
    show(&done, args.json)?;
    Ok(Answer::Fine)
}

/// Has it done by whoever can: an agent that answers, or this process while none runs. One that crashes again and again
/// may have done it and be gone before it has answered: then it is no error that nothing is left to end.
fn done(place: &Place, mut order: Order) -> anyhow::Result<Done> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if UnixStream::connect(&place.socket).is_ok() {
            let asked = client::block_on(async {
                tokio::time::timeout(PATIENCE, client::post(&place.socket, "/orders", &order)).await.ok().transpose()
            });
            match asked {
                Ok(Some(done)) => return Ok(done),
                Err(e) if !client::hung_up(&e) => return Err(e),
                Ok(None) | Err(_) => {}
            }
            if let Order::EndBreakGlass { again } = &mut order {
                *again = true;
            }
        }
        if let Some(done) = alone(place, &order)? {
            return Ok(done);
        }
        if Instant::now() >= deadline {
            return Err(stuck(place));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// On every node.
fn cluster(args: &Glass) -> crate::cli::Result {
    let mut command = words(&["break-glass", "--json"]);
    let otherwise = match (&args.scope, args.length, &args.reason) {
        (Some(scope), Some(length), Some(reason)) => {
            command.extend(words(&["--scope", &scope.to_string(), "--for", &format!("{}s", length.as_secs())]));
            command.extend([format!("--reason={reason}"), "--unseen".to_owned()]);
            "there everything stays enforced"
        }
        _ => {
            command.extend(words(&["--end", "--again"]));
            "there break-glass holds until its time is over"
        }
    };
    let deed = Deed { command, otherwise: otherwise.to_owned(), named: "the scope".to_owned(), later: None };
    super::cluster::tell(&args.fleet, &deed, args.json)
}

/// An agent that holds its things and doesn't listen.
fn stuck(place: &Place) -> anyhow::Error {
    anyhow::anyhow!(
        "an agent of instance `{0}` is there and doesn't answer at {1}: end it (systemctl kill -s KILL bulkhead), then try \
         again; without this program, remove {2}/bulkhead/{0}/*/links, which takes everything off",
        place.instance,
        place.socket.display(),
        place.bpffs.display()
    )
}

/// Without an agent; `None` if there is one after all.
fn alone(place: &Place, order: &Order) -> anyhow::Result<Option<Done>> {
    let state = State::open(&place.state, &place.instance)?;
    let Some(_lock) = state.lock()? else { return Ok(None) };
    let mut overrides = Overrides::stored(&state)?;
    let Order::BreakGlass { scope, seconds, reason, .. } = order else {
        if overrides.break_glass.is_empty() && matches!(order, Order::EndBreakGlass { again: true }) {
            return Ok(Some(Done { text: "break-glass isn't on".to_owned(), already: true, ..Done::default() }));
        }
        ensure!(!overrides.break_glass.is_empty(), "break-glass isn't on");
        overrides.break_glass.clear();
        overrides.store(&state)?;
        let text = "break-glass is over; no agent runs, and what is pinned enforces again once one does: start it";
        return Ok(Some(Done { text: text.to_owned(), ..Done::default() }));
    };
    let length = Duration::from_secs(*seconds);
    ensure!(
        !length.is_zero() && length <= LONGEST,
        "ask for at least a second and at most {} h",
        LONGEST.as_secs() / 3600
    );
    if *scope != Scope::Node {
        bail!("no agent runs at {}, and without one only `--scope node` can be done", place.socket.display());
    }
    let deadline = Deadline::after(&Clock::now(), length);
    let until = rfc3339(deadline.until);
    let glass = BreakGlass { deadline, reason: printable(reason.as_bytes()) };
    // On disk first: an agent that starts from here on keeps to it.
    overrides.break_glass.insert(scope.clone(), glass);
    overrides.store(&state)?;
    let epoch =
        datapath::open_up(&place.instance, &place.bpffs, |g| revoked(&overrides, &state, g)).with_context(|| {
            format!("what is pinned can't be changed; `bulkhead uninstall --instance {}` takes it off", place.instance)
        })?;
    let Some(epoch) = epoch else {
        let text = format!("nothing was in force; an agent that starts before {until} enforces nothing until then");
        return Ok(Some(Done { text, ..Done::default() }));
    };
    let text = format!(
        "no agent runs, so what it left pinned was opened: nothing is enforced on this node; an agent that runs ends that \
         at {until}"
    );
    Ok(Some(Done { text, epoch, ..Done::default() }))
}

/// The numbers of those who stay denied. Where they can't be told, that is said and nobody does.
fn revoked(overrides: &Overrides, state: &State, generation: u64) -> BTreeSet<PeerId> {
    if overrides.revoked.is_empty() {
        return BTreeSet::new();
    }
    let above = overrides.above();
    match state.roster(generation) {
        Ok(roster) => roster.identities().filter(|(_, i)| above.revokes(i).is_some()).map(|(peer, _)| peer).collect(),
        Err(e) => {
            eprintln!("revoked IDs are opened too: {e:#}");
            BTreeSet::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_agent_that_did_it_and_crashed_before_it_answered_is_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place {
            socket: folder.path().join("socket"),
            state: folder.path().join("state"),
            bpffs: folder.path().join("bpffs"),
            instance: "test".to_owned(),
        };
        let end = || Order::EndBreakGlass { again: false };
        let e = done(&place, end()).expect_err("nothing is on");
        assert!(e.to_string().contains("isn't on"), "{e}");

        let listener = UnixListener::bind(&place.socket).expect("a socket");
        let agent = std::thread::spawn(move || {
            // The first is asked whether it is there, the second is told.
            listener.accept().expect("a visit");
            let (mut told, _) = listener.accept().expect("an order");
            told.read_exact(&mut [0; 16]).expect("it begins");
        });
        let done = done(&place, end()).expect("it is over");
        agent.join().expect("an agent");
        assert!(done.already, "{done:?}");
    }
}
