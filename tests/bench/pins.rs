//! A loaded Bulkhead of its own, whose pins go with it.

use crate::keys::Keys;
use anyhow::Result;
use bulkhead::datapath::{self, Datapath, Options};
use bulkhead_tests::enforced::{BPFFS, options};
use bulkhead_tests::sandbox::Cgroup;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// The programs and maps; dropping it removes them.
pub(crate) struct Pins {
    datapath: Option<Datapath>,
    instance: String,
}

impl Pins {
    /// Loads the programs for this cgroup, with room for all rules and for a counter of each.
    pub(crate) fn open(cgroup: &Cgroup, keys: Keys) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instance = format!("bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut options: Options = options(&instance, vec![cgroup.path().to_owned()]);
        options.limits.edges = options.limits.edges.max(2 * keys.rules());
        options.limits.rules = options.limits.rules.max(2 * keys.rules());
        Ok(Self { datapath: Some(Datapath::open(options)?), instance })
    }

    /// The programs.
    pub(crate) fn datapath(&mut self) -> &mut Datapath {
        self.datapath.as_mut().expect("open until dropped")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        drop(self.datapath.take());
        if let Err(e) = datapath::uninstall(&self.instance, Path::new(BPFFS)) {
            eprintln!("the pins of {} stay: {e}", self.instance);
        }
    }
}
