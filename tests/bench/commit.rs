//! How long it takes to put rules into force, and to get the programs into the kernel.

use crate::keys::{Keys, Protocol};
use crate::lane::{Kind, Lane};
use crate::numbers::median;
use crate::pins::Pins;
use crate::{Figure, effort};
use anyhow::{Context, Result, ensure};
use bulkhead_common::PeerId;
use bulkhead_common::slots::{Permit, Sides};
use std::time::Duration;

const KEYS: Keys = Keys::usual(Protocol::Tcp);

fn milliseconds(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// All rules into empty tables, then one rule changed, until it is in force each time.
pub(crate) fn take(factor: f64) -> Result<Vec<Figure>> {
    let lane = Lane::new(Kind::None)?;
    let mut image = KEYS.image(lane.cgroup(), &lane.client, &lane.server)?;
    let (mut whole, mut single) = (Vec::new(), Vec::new());
    for _ in 0..effort(factor, 20, 0).rounds {
        let mut pins = Pins::open(lane.cgroup(), KEYS)?;
        let committed = pins.datapath().commit(&image)?;
        ensure!(committed.inserts > KEYS.rules() as usize, "{committed:?}");
        whole.push(milliseconds(committed.in_force_after));
        pins.datapath().settle()?;
        pins.datapath().attach()?;
        for n in 0..10 {
            // The other verdict for one pair and port.
            let mut blocks = image.rules.iter_mut().filter(|(k, _)| k.size == 16 && k.dst >= PeerId::FIRST_IDENTITY.0);
            let (_, payload) = blocks.nth(n * 997).context("a rule")?;
            let permit = Permit::decode(*payload).context("a permit")?;
            *payload = Permit { sides: Sides(permit.sides.0 ^ Sides::ALL.0), ..permit }.encode();
            let committed = pins.datapath().commit(&image)?;
            ensure!((committed.inserts, committed.writes, committed.removals) == (0, 1, 0), "{committed:?}");
            single.push(milliseconds(committed.in_force_after));
            pins.datapath().settle()?;
        }
    }
    let figure = |name, all| Figure { name, unit: "ms", bulkhead: median(all), ..Figure::default() };
    Ok(vec![figure("commit-all", whole), figure("commit-one", single)])
}

/// What the verifier went through for the largest program, and how long it takes to load and attach all of them.
pub(crate) fn load(factor: f64) -> Result<Vec<Figure>> {
    let lane = Lane::new(Kind::None)?;
    let image = KEYS.image(lane.cgroup(), &lane.client, &lane.server)?;
    let (mut most, mut took) = (0, Vec::new());
    for _ in 0..effort(factor, 20, 0).rounds {
        let mut pins = Pins::open(lane.cgroup(), KEYS)?;
        pins.datapath().commit(&image)?;
        pins.datapath().attach()?;
        let timings = pins.datapath().timings();
        took.push(milliseconds(timings.load + timings.attach));
        for program in pins.datapath().programs() {
            let insns = program.verified_insns.context("this kernel doesn't tell what the verifier did")?;
            most = most.max(insns);
            if took.len() == 1 {
                eprintln!("    {:<12} {insns:>7} instructions verified", program.name);
            }
        }
    }
    Ok(vec![
        Figure { name: "verifier", unit: "insns", bulkhead: f64::from(most), ..Figure::default() },
        Figure { name: "load-attach", unit: "ms", bulkhead: median(took), ..Figure::default() },
    ])
}
