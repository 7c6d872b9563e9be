//! The kernel side as the agent's loop sees it. [`crate::datapath::Datapath`] is one; the tests have another.

mod datapath;

pub use datapath::{features, open};

use crate::datapath::{Drift, Walk};
use crate::flows::outside::Reading;
use crate::image::Image;
use crate::revocation::Reach;
use crate::serve::api::{Commit, Feature, MapFill, Program};
use bulkhead_common::PeerId;
use bulkhead_common::event::{Answer, Event};
use bulkhead_common::maps::{EdgeKey, Traffic};
use std::future::Future;
use std::pin::Pin;

/// Tables, programs and counters.
pub trait Kernel: Send + 'static {
    /// Something out of order.
    type Fault: std::fmt::Display + Send;
    /// Where events come from.
    type Events: Records<Event>;
    /// Where DNS answers come from.
    type Answers: Records<Answer>;

    /// The number of this set of maps.
    fn generation(&self) -> u64;
    /// What is in force, read back from the tables of this set; `None`: nothing was ever put into force by it.
    fn in_force(&self) -> Option<Image>;
    /// Applies a ruleset.
    ///
    /// # Errors
    /// Then the last one stays in force, whole.
    fn commit(&mut self, image: &Image) -> anyhow::Result<Commit>;
    /// Whether nobody reads the former ruleset any more, so that settling waits for nobody.
    fn is_alone(&self) -> bool;
    /// Does what a commit left for later: waits until nobody reads the former ruleset, and takes away what it had.
    ///
    /// # Errors
    /// Then the next commit does it first.
    fn settle(&mut self) -> anyhow::Result<()>;
    /// Whether a former agent's programs were attached already when this one came.
    fn adopted(&self) -> bool;
    /// Compares what stands in the tables with what should be; `None` while that can't be told.
    ///
    /// # Errors
    /// When they can't be read.
    fn verify(&self, image: &Image) -> anyhow::Result<Option<Drift>>;
    /// Puts a ruleset into force, going by what stands in the tables.
    ///
    /// # Errors
    /// When that isn't possible.
    fn realign(&mut self, image: &Image) -> anyhow::Result<Commit>;
    /// Attaches the programs, after the first commit.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn attach(&mut self) -> anyhow::Result<()>;
    /// Whether events are sent for what is allowed, too.
    ///
    /// # Errors
    /// When the switch can't be written.
    fn set_emit_allowed(&mut self, on: bool) -> anyhow::Result<()>;
    /// Whether DNS answers are sent.
    ///
    /// # Errors
    /// When the switch can't be written.
    fn set_tell_answers(&mut self, on: bool) -> anyhow::Result<()>;
    /// Every counter.
    ///
    /// # Errors
    /// When they can't be read.
    fn edges(&self) -> anyhow::Result<Vec<(EdgeKey, u64)>>;
    /// What became of TCP connections, by edge.
    ///
    /// # Errors
    /// When it can't be read.
    fn traffic(&self) -> anyhow::Result<Vec<(EdgeKey, Traffic)>>;
    /// Has live TCP connections count what they have carried, for the next reading.
    fn tick(&self);
    /// What is counted of peers outside, by address. Read it after the edges.
    ///
    /// # Errors
    /// When it can't be read.
    fn outside(&self) -> anyhow::Result<Reading>;
    /// Begins another era of these counts.
    ///
    /// # Errors
    /// When the former era's counts are still there.
    fn begin_era(&mut self) -> anyhow::Result<()>;
    /// Removes the former era's counts.
    ///
    /// # Errors
    /// When that isn't possible.
    fn empty_former_era(&mut self) -> anyhow::Result<()>;
    /// How many entries of the present era an identity has.
    fn outside_share(&self, of: PeerId) -> u32;
    /// The totals, by [`bulkhead_common::maps::totals`].
    ///
    /// # Errors
    /// When they can't be read.
    fn totals(&self) -> anyhow::Result<Vec<u64>>;
    /// How full the tables are.
    ///
    /// # Errors
    /// When they can't be read.
    fn fill(&self) -> anyhow::Result<Vec<MapFill>>;
    /// Finds the live connections within reach that don't pass by this image, and ends them if asked to.
    ///
    /// # Errors
    /// When the sockets can't be listed at all.
    fn walk(&self, image: &Image, reach: &Reach, destroy: bool) -> anyhow::Result<Walk>;
    /// The stream of events; once.
    fn take_events(&mut self) -> Option<Self::Events>;
    /// The stream of DNS answers; once.
    fn take_answers(&mut self) -> Option<Self::Answers>;
    /// What passes the programs' own log on to ours until it breaks; once, and only if they were told to log.
    fn take_log(&mut self) -> Option<Pin<Box<dyn Future<Output = anyhow::Error> + Send>>>;
    /// What is out of order now.
    ///
    /// # Errors
    /// When it can't be looked at.
    fn inspect(&self) -> anyhow::Result<Vec<Self::Fault>>;
    /// Whether that can be put right from here.
    fn is_repairable(fault: &Self::Fault) -> bool;
    /// Puts it right.
    ///
    /// # Errors
    /// When that isn't possible.
    fn repair(&mut self, fault: &Self::Fault) -> anyhow::Result<()>;
    /// The programs.
    fn programs(&self) -> Vec<Program>;
    /// What this kernel can and can't do.
    fn features(&self) -> Vec<Feature>;
}

/// A stream of what the programs send.
pub trait Records<T>: Send + 'static {
    /// The next ones; at least one.
    ///
    /// # Errors
    /// When the stream broke.
    fn next(&mut self) -> impl Future<Output = anyhow::Result<Vec<T>>> + Send;
}
