//! What `cargo xtask bench` measures. It prints one line of JSON for each figure, and on stderr what it is doing;
//! the bars are xtask's business.
//!
//! Each figure is taken with no programs, with empty programs on the same hooks, and with Bulkhead, in turn
//! ([`rounds`]), on destinations drawn at random from all rules ([`keys`]).
#![expect(clippy::cast_precision_loss, reason = "durations in nanoseconds and counts are far below 2^53")]

mod agent;
mod bulk;
mod commit;
mod counted;
mod empty;
mod flood;
mod k8s;
mod keys;
mod lane;
mod learnt;
mod least;
mod memory;
mod numbers;
mod pins;
mod revocation;
mod rounds;
mod work;

use anyhow::{Context, Result, ensure};
use keys::{Keys, Protocol};
use lane::Kind;
use rounds::{Effort, Pair, Samples};
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One figure. Without lanes to compare, only `bulkhead` is there.
#[derive(Default)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    none: Option<f64>,
    empty: Option<f64>,
    bulkhead: f64,
    ratio: Option<f64>,
    /// What Bulkhead takes more than nothing does.
    added: Option<f64>,
    /// What else there is to say of it.
    note: String,
}

impl Figure {
    /// Of samples whose lanes are: nothing, empty programs, Bulkhead.
    fn compared(name: &'static str, samples: &Samples) -> Self {
        Self {
            name,
            unit: "ns",
            none: Some(samples.median(0)),
            empty: Some(samples.median(1)),
            bulkhead: samples.median(2),
            ratio: Some(samples.paired(|lane| lane(2) / lane(0))),
            added: Some(samples.paired(|lane| lane(2) - lane(0))),
            note: String::new(),
        }
    }

    /// Says beside it what the last lane's programs take, which do [the least].
    ///
    /// [the least]: least
    fn beside_the_least(mut self, samples: &Samples, lane: usize) -> Self {
        let (added, ratio) = (samples.paired(|l| l(lane) - l(0)), samples.paired(|l| l(lane) / l(0)));
        self.note = format!("a program that only reads and counts at random places takes {added:+.0} ns, {ratio:.2} x");
        self
    }

    /// Of Bulkhead alone.
    fn alone(name: &'static str, unit: &'static str, bulkhead: f64, note: String) -> Self {
        Self { name, unit, bulkhead, note, ..Self::default() }
    }

    fn print(&self) {
        let Self { name, unit, none, empty, bulkhead, ratio, added, note } = self;
        let value = serde_json::json!({
            "name": name, "unit": unit, "none": none, "empty": empty, "bulkhead": bulkhead, "ratio": ratio, "added": added,
            "note": note,
        });
        println!("{value}");
    }
}

/// How a figure is taken: the factor says how many times the usual rounds.
type Take = fn(f64) -> Result<Vec<Figure>>;

const FIGURES: [(&str, Take); 15] = [
    ("udp-connect", udp_connect),
    ("tcp-connect", tcp_connect),
    ("tcp-request", tcp_request),
    ("udp-ping-pong", udp_ping_pong),
    ("tcp-bulk", bulk::take),
    ("verdict", verdict),
    ("commit", commit::take),
    ("load", commit::load),
    ("counted", counted::take),
    ("revocation", revocation::take),
    ("denied-flood", flood::take),
    ("agent-memory", memory::take),
    ("suggest-graph", learnt::take),
    ("k8s-react", k8s::react),
    ("k8s-scale", k8s::scale),
];

fn main() -> Result<()> {
    let mut factor = 1.0;
    let mut only = Vec::new();
    for argument in env::args().skip(1) {
        if argument == "--quick" {
            factor = 0.25;
        } else {
            ensure!(FIGURES.iter().any(|(name, _)| *name == argument), "no figure is called {argument}");
            only.push(argument);
        }
    }
    if !rounds::prefer() {
        eprintln!("    no real-time priority here: expect noise");
    }
    ensure!(env::var_os("BULKHEAD").is_some(), "BULKHEAD names no agent: run this by `cargo xtask bench`");
    // Ctrl-C ends the measured processes, and what waits for them cleans up.
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&asked)).context("can't handle signals")?;
    }
    for (name, take) in FIGURES {
        ensure!(!asked.load(Ordering::Relaxed), "interrupted");
        if only.is_empty() || only.iter().any(|o| o == name) {
            eprintln!("==> {name}");
            take(factor)?.iter().for_each(Figure::print);
        }
    }
    Ok(())
}

fn compared_kinds(protocol: Protocol) -> [Kind; 3] {
    [Kind::None, Kind::Empty, Kind::Bulkhead(Keys::usual(protocol))]
}

fn with_the_least(protocol: Protocol) -> [Kind; 4] {
    let [none, empty, bulkhead] = compared_kinds(protocol);
    [none, empty, bulkhead, Kind::Least(Keys::usual(protocol))]
}

fn effort(factor: f64, rounds: u32, operations: u32) -> Effort {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred rounds")]
    let rounds = (f64::from(rounds) * factor).max(8.0) as u32;
    Effort { rounds, operations }
}

fn udp_connect(factor: f64) -> Result<Vec<Figure>> {
    let keys = Keys::usual(Protocol::Udp);
    let samples = rounds::run(&with_the_least(Protocol::Udp), effort(factor, 80, 12_000), true, |lane| {
        Pair::alone(lane, |turn| work::connects_udp(turn, keys))
    })?;
    Ok(vec![Figure::compared("udp-connect", &samples).beside_the_least(&samples, 3)])
}

fn tcp_connect(factor: f64) -> Result<Vec<Figure>> {
    let keys = Keys::usual(Protocol::Tcp);
    let samples = rounds::run(&with_the_least(Protocol::Tcp), effort(factor, 40, 3000), false, |lane| {
        Pair::with_listeners(lane, keys, |turn| work::listens(turn, keys), |turn| work::connects_tcp(turn, keys))
    })?;
    Ok(vec![Figure::compared("tcp-connect", &samples).beside_the_least(&samples, 3)])
}

fn talk(name: &'static str, protocol: Protocol, factor: f64) -> Result<Vec<Figure>> {
    let keys = Keys::usual(protocol);
    let samples = rounds::run(&compared_kinds(protocol), effort(factor, 80, 4000), false, |lane| {
        Pair::talking(lane, |turn| work::answers(turn, keys), |turn| work::asks(turn, keys))
    })?;
    Ok(vec![Figure::compared(name, &samples)])
}

fn tcp_request(factor: f64) -> Result<Vec<Figure>> {
    talk("tcp-request", Protocol::Tcp, factor)
}

fn udp_ping_pong(factor: f64) -> Result<Vec<Figure>> {
    talk("udp-ping-pong", Protocol::Udp, factor)
}

/// What a verdict costs with many rules, as a multiple of what it costs with few.
fn verdict(factor: f64) -> Result<Vec<Figure>> {
    let (few, many) = (Keys::FEW, Keys::MANY);
    let kinds =
        [Kind::None, Kind::Empty, Kind::Bulkhead(many), Kind::Bulkhead(few), Kind::Least(many), Kind::Least(few)];
    let samples = rounds::run(&kinds, effort(factor, 40, 12_000), true, |lane| {
        let keys = if let Kind::Bulkhead(keys) | Kind::Least(keys) = lane.kind { keys } else { Keys::MANY };
        Pair::alone(lane, |turn| work::connects_udp(turn, keys))
    })?;
    let flat = |many: usize, few: usize| samples.paired(|lane| (lane(many) - lane(0)) / (lane(few) - lane(0)));
    let note = format!(
        "10 rules: {:.0} ns, 100,000 rules: {:.0} ns; of a program that only reads and counts at random places {:.2} x",
        samples.median(3),
        samples.median(2),
        flat(4, 5)
    );
    Ok(vec![Figure { ratio: Some(flat(2, 3)), note, ..Figure::compared("verdict", &samples) }])
}
