//! The real kernel side.

use super::{Kernel, Records};
use crate::app::Failure;
use crate::config::{Capacities, Config};
use crate::datapath::{self, AttachError, Committed, Datapath, Drift, Fault, Limits, OpenError, Options, Origin, Walk};
use crate::flows::outside::Reading;
use crate::image::Image;
use crate::revocation::Reach;
use crate::serve::api::{Commit, Feature, MapFill, Program};
use crate::sources::hierarchy::Hierarchy;
use anyhow::Context;
use bulkhead_common::event::{Answer, Event};
use bulkhead_common::maps::{self, EdgeKey, Traffic};
use bulkhead_common::{Direction, Outcome, PeerId, Reason};
use std::pin::Pin;
use std::sync::LazyLock;

/// Loads the programs, or adopts what is pinned.
///
/// # Errors
/// As the kernel says.
pub fn open(config: &Config, hierarchy: &Hierarchy, verbose_kernel_log: bool) -> Result<Datapath, Failure> {
    let Capacities { addresses, rules, edges, flows, outside } = config.limits;
    let usual = Limits::default();
    let limits = Limits {
        addresses: addresses.unwrap_or(usual.addresses),
        rules: rules.unwrap_or(usual.rules),
        edges: edges.unwrap_or(usual.edges),
        flows: flows.unwrap_or(usual.flows),
        outside: outside.unwrap_or(usual.outside),
        ..usual
    };
    let opened = Datapath::open(Options {
        instance: config.instance.clone(),
        bpffs: config.bpffs.clone(),
        attach: config.attach.iter().map(|p| hierarchy.directory(p)).collect(),
        limits,
        verbose_kernel_log,
    });
    let datapath = opened.map_err(|e| match e {
        OpenError::NoObject | OpenError::BadObject(_) => Failure::NoObject,
        OpenError::NotPermitted => Failure::Capability("CAP_BPF".to_owned()),
        OpenError::NoBpffs { .. } => Failure::Bpffs(e.into()),
        OpenError::AnotherAgent { instance, .. } => Failure::AlreadyRunning(instance),
        OpenError::BadInstance(_) | OpenError::Maps(_) | OpenError::Refused { .. } | OpenError::Io { .. } => {
            Failure::Load(e.into())
        }
    })?;
    match datapath.origin() {
        Origin::New => tracing::info!("new tables"),
        Origin::Adopted => {
            tracing::info!("the tables of a former agent are adopted; its ruleset is in force until the next")
        }
        Origin::Replacing(why) => {
            tracing::warn!("the tables of a former agent are replaced once ours are attached: {why}")
        }
    }
    Ok(datapath)
}

impl Kernel for Datapath {
    type Fault = Fault;
    type Events = datapath::Events;
    type Answers = datapath::Answers;

    fn generation(&self) -> u64 {
        Self::generation(self)
    }

    fn in_force(&self) -> Option<Image> {
        (self.epoch() != 0).then(|| self.state().image())
    }

    fn commit(&mut self, image: &Image) -> anyhow::Result<Commit> {
        Ok(told(Self::commit(self, image)?))
    }

    fn adopted(&self) -> bool {
        self.found_attached()
    }

    fn verify(&self, image: &Image) -> anyhow::Result<Option<Drift>> {
        Ok(Self::verify(self, image)?)
    }

    fn realign(&mut self, image: &Image) -> anyhow::Result<Commit> {
        Ok(told(Self::realign(self, image)?))
    }

    fn is_alone(&self) -> bool {
        Self::is_alone(self)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        Ok(Self::settle(self)?)
    }

    fn attach(&mut self) -> anyhow::Result<()> {
        Self::attach(self).map_err(AttachError::into)
    }

    fn set_emit_allowed(&mut self, on: bool) -> anyhow::Result<()> {
        Self::set_emit_allowed(self, on);
        Ok(())
    }

    fn set_tell_answers(&mut self, on: bool) -> anyhow::Result<()> {
        Self::set_tell_answers(self, on);
        Ok(())
    }

    fn edges(&self) -> anyhow::Result<Vec<(EdgeKey, u64)>> {
        Ok(Self::edges(self)?)
    }

    fn traffic(&self) -> anyhow::Result<Vec<(EdgeKey, Traffic)>> {
        Ok(Self::traffic(self)?)
    }

    fn tick(&self) {
        Self::tick(self);
    }

    fn outside(&self) -> anyhow::Result<Reading> {
        Ok(Self::outside(self)?)
    }

    fn begin_era(&mut self) -> anyhow::Result<()> {
        Ok(Self::begin_era(self)?)
    }

    fn empty_former_era(&mut self) -> anyhow::Result<()> {
        Ok(Self::empty_former_era(self)?)
    }

    fn outside_share(&self, of: PeerId) -> u32 {
        Self::outside_share(self, of)
    }

    fn totals(&self) -> anyhow::Result<Vec<u64>> {
        let totals = Self::totals(self)?;
        let mut all = vec![0; usize::try_from(maps::totals::LEN)?];
        let mut set = |index: u32, n: u64| -> anyhow::Result<()> {
            *all.get_mut(usize::try_from(index)?).context("an index of the totals")? = n;
            Ok(())
        };
        set(maps::totals::LOST_EVENTS, totals.lost_events())?;
        set(maps::totals::OUTSIDE, totals.without_address())?;
        set(maps::totals::LOST_ANSWERS, totals.lost_answers())?;
        set(maps::totals::WITHOUT_PLACE, totals.without_place())?;
        for d in Direction::ALL {
            for o in Outcome::ALL {
                for r in Reason::ALL {
                    set(maps::totals::overflow(*d, *o, *r), totals.overflow(*d, *o, *r))?;
                }
            }
        }
        Ok(all)
    }

    fn fill(&self) -> anyhow::Result<Vec<MapFill>> {
        let fill = Self::fill(self)?.into_iter();
        Ok(fill.map(|m| MapFill { name: m.name.to_owned(), used: m.used, capacity: m.capacity }).collect())
    }

    fn walk(&self, image: &Image, reach: &Reach, destroy: bool) -> anyhow::Result<Walk> {
        Self::walk(self, image, reach, destroy).context("walking the sockets of the workloads' network namespaces")
    }

    fn take_events(&mut self) -> Option<datapath::Events> {
        Self::take_events(self)
    }

    fn take_answers(&mut self) -> Option<datapath::Answers> {
        Self::take_answers(self)
    }

    fn inspect(&self) -> anyhow::Result<Vec<Fault>> {
        Ok(Self::inspect(self)?)
    }

    fn is_repairable(fault: &Fault) -> bool {
        fault.is_repairable()
    }

    fn repair(&mut self, fault: &Fault) -> anyhow::Result<()> {
        Ok(Self::repair(self, fault)?)
    }

    fn programs(&self) -> Vec<Program> {
        let all = Self::programs(self).into_iter();
        all.map(|p| Program {
            name: p.name.to_owned(),
            hook: p.hook.as_str().to_owned(),
            attach_point: p.attach_point.display().to_string(),
            id: p.id,
            verified_instructions: p.verified_insns,
            attached: p.attached,
        })
        .collect()
    }

    fn features(&self) -> Vec<Feature> {
        // Trying takes some hundred milliseconds, and a running kernel doesn't change.
        static FEATURES: LazyLock<Vec<Feature>> = LazyLock::new(features);
        FEATURES.clone()
    }

    fn take_log(&mut self) -> Option<Pin<Box<dyn Future<Output = anyhow::Error> + Send>>> {
        let log = self.take_kernel_log()?;
        Some(Box::pin(async move { log.await.into() }))
    }
}

fn told(done: Committed) -> Commit {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Commit {
        epoch: done.epoch,
        inserts: count(done.inserts),
        writes: count(done.writes),
        removals: count(done.removals),
        in_force_after_us: u64::try_from(done.in_force_after.as_micros()).unwrap_or(u64::MAX),
    }
}

/// What this kernel has, and what follows where it hasn't.
pub fn features() -> Vec<Feature> {
    let all = datapath::features().into_iter();
    all.map(|f| Feature {
        name: f.name.to_owned(),
        available: f.available,
        required: f.required,
        note: match (f.available, f.used) {
            (true, true) => String::new(),
            (true, false) => format!("not used yet: {}", f.without),
            (false, _) => f.without.to_owned(),
        },
    })
    .collect()
}

impl Records<Event> for datapath::Events {
    async fn next(&mut self) -> anyhow::Result<Vec<Event>> {
        Ok(Self::next(self).await?)
    }
}

impl Records<Answer> for datapath::Answers {
    async fn next(&mut self) -> anyhow::Result<Vec<Answer>> {
        Ok(Self::next(self).await?)
    }
}
