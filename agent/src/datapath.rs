//! The kernel side: load, pin, adopt, commit, attach, watch.
//!
//! [`Datapath::open`] loads the programs over the maps that are pinned, or over new ones; [`Datapath::commit`] puts an
//! image into force; [`Datapath::attach`] brings the programs to the cgroups, or swaps them for the ones that a former
//! agent left there. Dropping a datapath takes nothing off: what is pinned stays in force, and the next agent adopts
//! it. [`uninstall`] takes everything off.
//!
//! The invariant: from the first attach to [`uninstall`] there is no moment at which a cgroup of ours is without a
//! complete set of programs and a whole ruleset.

mod counters;
mod destroy;
mod drift;
mod error;
mod events;
mod features;
pub mod folders;
mod links;
mod memory;
pub mod netns_id;
mod object;
mod old_sockets;
mod open_up;
mod options;
mod outside;
mod pins;
pub mod redirects;
mod retired;
pub mod sock_diag;
mod sys;
mod tables;
mod uninstall;
mod watch;

pub use counters::{MapFill, Totals};
pub use destroy::{Cut, Walk};
pub use drift::Drift;
pub use error::{AttachError, CommitError, OpenError, UninstallError};
pub use events::{Answers, Events, Records};
pub use features::{Feature, features};
pub use open_up::open_up;
pub use options::{Committed, Limits, Options, Origin, ProgramStatus, Timings};
pub use uninstall::{Report, pinned, uninstall};
pub use watch::Fault;

use crate::image::Image;
use crate::plan::State;
use crate::plan::protocol::{self, Kernel, Pending};
use aya::Ebpf;
use bulkhead_common::maps::{self, Control};
use bulkhead_common::{ABI, Hook};
use error::During;
use links::{AttachPoint, Link};
use object::{MOUNTS, Mount, PINNED_MAPS};
use pins::{Fit, Set};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tables::{RestoreError, Tables};

/// The programs and maps of one agent.
pub struct Datapath {
    options: Options,
    set: Set,
    origin: Origin,
    found_attached: bool,
    /// Sets that this one replaces; they go once this one is attached.
    superseded: Vec<Set>,
    ebpf: Ebpf,
    maps: BTreeMap<&'static str, OwnedFd>,
    tables: Tables,
    state: State,
    pending: Option<Pending>,
    links: Vec<Link>,
    disabled: BTreeSet<Hook>,
    timings: Timings,
    /// Closed last: as long as it is open no other agent takes the instance.
    _lock: OwnedFd,
}

impl Datapath {
    /// Loads the programs, over the pinned maps of a former agent if they fit and over new ones if not. Nothing is
    /// attached or swapped yet.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let started = Instant::now();
        object::check()?;
        let shapes = object::shapes(&options.limits)?;
        if let Err(error) = tables::Grace::new() {
            return Err(match error.raw_os_error() {
                Some(libc::EPERM) => OpenError::NotPermitted,
                _ => OpenError::Maps(error.to_string()),
            });
        }
        pins::ensure_bpffs(&options.bpffs)?;
        let folder = pins::instance_folder(&options.bpffs, &options.instance)?;
        pins::make_folder(&folder).opening(|| format!("making the folder {}", folder.display()))?;
        let lock = pins::lock(&folder).opening(|| format!("locking {}", folder.display()))?;
        let lock =
            lock.ok_or_else(|| OpenError::AnotherAgent { instance: options.instance.clone(), path: folder.clone() })?;

        let reading = || format!("reading the pins under {}", folder.display());
        let mut superseded = Set::all(&folder).opening(reading)?;
        let mut reason = None;
        // The set that is attached comes first: an interrupted replacement may have left two.
        superseded.sort_by_key(|set| set.all_links().map_or(true, |links| links.is_empty()));
        let attached = match superseded.first() {
            Some(set) => !set.all_links().opening(reading)?.is_empty(),
            None => false,
        };
        for position in 0..superseded.len() {
            match superseded[position].fit(&shapes).opening(reading)? {
                Fit::Different(why) => reason = reason.or(Some(why)),
                Fit::Adoptable => {
                    let set = superseded[position].clone();
                    let (ebpf, maps, mut tables) = load(&options, &set)?;
                    match tables.restore() {
                        Ok(state) => {
                            superseded.remove(position);
                            let parts = (set, Origin::Adopted, superseded, ebpf, maps, tables, state);
                            return Self::assemble(options, lock, parts, attached, started);
                        }
                        Err(RestoreError::BadIndex(bad)) => reason = Some(bad.to_string()),
                        Err(RestoreError::Io(error)) => {
                            return Err(error).opening(|| format!("reading the maps of {}", set.folder.display()));
                        }
                    }
                }
            }
        }

        let set = Set::unused(&folder);
        set.create().opening(|| format!("making the folder {}", set.folder.display()))?;
        let (ebpf, maps, mut tables) = load(&options, &set).inspect_err(|_| {
            // Half a set enforces nothing; if it can't be removed the next start supersedes it.
            drop(set.remove());
        })?;
        let drawn = || random().opening(|| "drawing a random number".into());
        let state = tables.begin(drawn()?).opening(|| "making the tables ready".into())?;
        tables.control.generation().store(drawn()?, Ordering::Release);
        tables.control.abi().store(ABI, Ordering::Release);
        let origin = reason.map_or(Origin::New, Origin::Replacing);
        let parts = (set, origin, superseded, ebpf, maps, tables, state);
        Self::assemble(options, lock, parts, attached, started)
    }

    fn assemble(
        options: Options,
        lock: OwnedFd,
        (set, origin, superseded, ebpf, maps, tables, state): (
            Set,
            Origin,
            Vec<Set>,
            Ebpf,
            BTreeMap<&'static str, OwnedFd>,
            Tables,
            State,
        ),
        found_attached: bool,
        started: Instant,
    ) -> Result<Self, OpenError> {
        let host = sock_diag::host_netns_cookie().opening(|| "finding the host's network namespace".into())?;
        tables.control.host_netns().store(host, Ordering::Release);
        tables.control.outside().store(options.limits.outside, Ordering::Release);
        let timings = Timings { load: started.elapsed(), attach: Duration::ZERO };
        let (links, disabled, pending) = (Vec::new(), BTreeSet::new(), None);
        Ok(Self {
            options,
            set,
            origin,
            found_attached,
            superseded,
            ebpf,
            maps,
            tables,
            state,
            pending,
            links,
            disabled,
            timings,
            _lock: lock,
        })
    }

    /// The random number that names this set of maps: as long as it stays, numbers of identities keep their meaning.
    pub fn generation(&self) -> u64 {
        self.tables.control.generation().load(Ordering::Acquire)
    }

    /// The epoch in force; 0: nothing has been committed to this set yet.
    pub fn epoch(&self) -> u32 {
        self.tables.epoch()
    }

    /// How the maps came about.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether programs of a former agent were attached when this one came, which tables alone don't mean.
    pub fn found_attached(&self) -> bool {
        self.found_attached
    }

    /// What is in force.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How long loading and attaching took.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Leaves a hook out of the next attach, to see what it is good for.
    pub fn disable_hook(&mut self, hook: Hook) {
        self.disabled.insert(hook);
    }

    /// Puts an image into force, whole or not at all. An image that is in force already changes nothing, not even the
    /// epoch.
    ///
    /// What an earlier commit left to be done is done first, which may take tens of milliseconds; call
    /// [`Datapath::settle`] once [`Datapath::is_alone`], so that a commit doesn't have to.
    pub fn commit(&mut self, image: &Image) -> Result<Committed, CommitError> {
        let started = Instant::now();
        self.settle()?;
        let plan = self.state.plan(image)?;
        let same_words = plan.levels == self.state.levels() && plan.built_ins == self.state.built_ins();
        if !(plan.is_empty() && same_words && self.epoch() != 0) {
            match protocol::commit(&mut self.tables, &mut self.state, &plan) {
                Ok(pending) => self.pending = Some(pending),
                Err((error, pending)) => {
                    self.pending = Some(pending);
                    return Err(error.into());
                }
            }
        }
        let in_force_after = started.elapsed();
        if self.pending.is_some() {
            self.tables.begin_to_wait();
        }
        Ok(Committed {
            epoch: self.epoch(),
            inserts: plan.inserts.len(),
            writes: plan.writes.len() + plan.baselines.len(),
            removals: plan.removals.len(),
            in_force_after,
        })
    }

    /// Whether every program run of the former epoch has ended, or none was waited for.
    pub fn is_alone(&self) -> bool {
        self.tables.is_alone()
    }

    /// Does what the last commit left: waits for program runs of the former epoch, and deletes what is in no ruleset
    /// any more. Blocks for tens of milliseconds.
    pub fn settle(&mut self) -> Result<(), CommitError> {
        if let Some(pending) = &mut self.pending {
            protocol::settle(&mut self.tables, &mut self.state, pending)?;
            self.pending = None;
            self.tables.unmap();
        }
        Ok(())
    }

    /// Whether [`Datapath::settle`] has something to do.
    pub fn is_settled(&self) -> bool {
        self.pending.is_none()
    }

    /// Brings the programs to the attach points. Where a former agent's are attached they are swapped in place, one by
    /// one and without a gap; links to cgroups that aren't attach points any more go, and so do superseded sets.
    pub fn attach(&mut self) -> Result<(), AttachError> {
        if self.epoch() == 0 {
            return Err(AttachError::NothingCommitted);
        }
        let started = Instant::now();
        let points: Vec<AttachPoint> =
            self.options.attach.iter().map(|path| AttachPoint::open(path)).collect::<Result<_, _>>()?;
        let mounts: Vec<Mount> = MOUNTS.into_iter().filter(|m| !self.disabled.contains(&m.hook)).collect();
        let mut links = Vec::new();
        let mut first_time = false;
        for mount in mounts {
            for point in &points {
                let (link, is_new) = self.link(mount, point)?;
                links.push(link);
                first_time |= is_new;
            }
            if first_time && mount.hook == Hook::SockCreate {
                // From here on new sockets are stamped; the older ones must be known before anything judges them.
                self.note_old_sockets()?;
            }
        }
        if first_time {
            // Connections that were made while the hooks came one by one.
            self.note_old_sockets()?;
        }
        self.links = links;
        self.pin_programs().attaching(|| format!("pinning the programs under {}", self.set.programs().display()))?;
        self.prune().attaching(|| format!("removing old links under {}", self.set.links().display()))?;
        for set in std::mem::take(&mut self.superseded) {
            set.remove().attaching(|| format!("removing {}", set.folder.display()))?;
        }
        self.timings.attach = started.elapsed();
        Ok(())
    }

    fn note_old_sockets(&self) -> Result<(), AttachError> {
        let what = || "listing the sockets that exist already".to_owned();
        let noted = old_sockets::note(&self.options.attach, self.map(maps::OLD_SOCKETS).attaching(what)?);
        let noted = noted.attaching(what)?;
        if noted.without_room > 0 {
            tracing::warn!(
                "{} of {} sockets that are older than the programs have no room in {}: where the posture enforces, \
                 their connections are cut off",
                noted.without_room,
                noted.sockets,
                maps::OLD_SOCKETS
            );
        }
        Ok(())
    }

    /// Makes sure that our program is at this attach point: swapped into the link that is there, or by a new one.
    fn link(&self, mount: Mount, point: &AttachPoint) -> Result<(Link, bool), AttachError> {
        let failed = |error| AttachError::Link { program: mount.program, path: point.path.clone(), error };
        let program = program_fd(&self.ebpf, mount.program).map_err(failed)?;
        match links::find(&self.set, mount, point).map_err(failed)? {
            Some(link) => {
                sys::link_update(link.fd.as_fd(), program).map_err(failed)?;
                Ok((link, false))
            }
            None => Ok((links::create(&self.set, mount, point, program).map_err(failed)?, true)),
        }
    }

    fn pin_programs(&self) -> io::Result<()> {
        for mount in MOUNTS {
            links::repin(program_fd(&self.ebpf, mount.program)?, &self.set.program(mount.program))?;
        }
        Ok(())
    }

    /// Removes the pins of links that aren't ours (any more): another attach point, or a hook that is left out.
    fn prune(&self) -> io::Result<()> {
        let ours: BTreeSet<PathBuf> = self.links.iter().map(|l| self.set.link(l.cgroup, l.mount.program)).collect();
        for pin in self.set.all_links()? {
            if !ours.contains(&pin) {
                sys::link_detach(sys::open_pin(&pin)?.as_fd())?;
                std::fs::remove_file(&pin)?;
            }
        }
        for point in pins::children(&self.set.links())? {
            if pins::children(&point)?.is_empty() {
                std::fs::remove_dir(&point)?;
            }
        }
        Ok(())
    }

    /// Whether the programs also send an event for each new allowed flow.
    pub fn set_emit_allowed(&mut self, on: bool) {
        self.tables.set_flags(Control::EMIT_ALLOWED, if on { Control::EMIT_ALLOWED } else { 0 });
    }

    /// Whether the programs send what workloads are answered by DNS servers.
    pub fn set_tell_answers(&mut self, on: bool) {
        self.tables.set_flags(Control::TELL_ANSWERS, if on { Control::TELL_ANSWERS } else { 0 });
    }

    /// Each program at each attach point.
    pub fn programs(&self) -> Vec<ProgramStatus> {
        let mut all = Vec::new();
        for mount in MOUNTS {
            let info = self.ebpf.program(mount.program).and_then(|p| p.info().ok());
            let id = info.as_ref().map_or(0, |i| i.id());
            let verified_insns = info.and_then(|i| i.verified_instruction_count());
            for point in &self.options.attach {
                let link = self.links.iter().find(|l| l.mount == mount && l.path == *point);
                let attached = link.and_then(|l| l.info().ok()).is_some_and(|i| i.cgroup != 0 && i.program == id);
                let (name, hook, attach_point) = (mount.program, mount.hook, point.clone());
                all.push(ProgramStatus { name, hook, attach_point, id, verified_insns, attached });
            }
        }
        all
    }

    fn map(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        self.maps.get(name).map(|fd| fd.as_fd()).ok_or_else(|| io::Error::other(format!("no map {name}")))
    }
}

/// Loads maps and programs of a set and maps the shared ones into memory.
fn load(options: &Options, set: &Set) -> Result<(Ebpf, BTreeMap<&'static str, OwnedFd>, Tables), OpenError> {
    let ebpf = object::load(options, set)?;
    let mut maps = BTreeMap::new();
    for name in PINNED_MAPS {
        let fd = sys::open_pin(&set.map(name)).opening(|| format!("opening the pin of {name}"))?;
        maps.insert(name, fd);
    }
    let find = |name: &str| {
        maps.get(name).map(|fd: &OwnedFd| fd.as_fd()).ok_or_else(|| io::Error::other(format!("no map {name}")))
    };
    let tables = Tables::new(find, options.limits.capacities()).opening(|| "mapping the tables into memory".into())?;
    Ok((ebpf, maps, tables))
}

fn program_fd<'e>(ebpf: &'e Ebpf, name: &str) -> io::Result<BorrowedFd<'e>> {
    let program = ebpf.program(name).ok_or_else(|| io::Error::other(format!("no program {name}")))?;
    Ok(program.fd().map_err(io::Error::other)?.as_fd())
}

fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}
