//! What is compared: the same two workloads in the same two network namespaces, once without any programs, once under
//! programs that do nothing, and under Bulkhead with some number of rules.
//!
//! All lanes of a course exist at the same time, so that a round can take them one after the other.

use crate::empty;
use crate::keys::Keys;
use crate::pins::Pins;
use anyhow::{Result, ensure};
use bulkhead_tests::Workload;
use bulkhead_tests::sandbox::{Cgroup, Plug, Sandbox};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What is on a lane's hooks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Nothing.
    None,
    /// Programs that allow everything at once.
    Empty,
    /// Bulkhead with that many rules.
    Bulkhead(Keys),
}

/// What keeps the programs attached.
enum Hold {
    Nothing,
    Links { _links: Vec<OwnedFd> },
    Pins { _pins: Box<Pins> },
}

/// A client and a server with something on their hooks.
pub(crate) struct Lane {
    pub(crate) kind: Kind,
    // Dropped in this order: links, then cgroups from the leaves upwards.
    _hold: Hold,
    pub(crate) client: Workload,
    pub(crate) server: Workload,
    sandbox: Sandbox,
}

impl Lane {
    /// The cgroup above both.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        self.sandbox.cgroup()
    }

    fn new(kind: Kind, top: &Sandbox, client: &Arc<Plug>, server: &Arc<Plug>) -> Result<Self> {
        let sandbox = Sandbox::below(top.cgroup().path(), "lane")?;
        let client = sandbox.workload_on("client", client.clone())?;
        let server = sandbox.workload_on("server", server.clone())?;
        let hold = match kind {
            Kind::None => Hold::Nothing,
            Kind::Empty => Hold::Links { _links: empty::attach(sandbox.cgroup().path())? },
            Kind::Bulkhead(keys) => {
                let mut pins = Pins::open(sandbox.cgroup(), keys)?;
                pins.datapath().commit(&keys.image(sandbox.cgroup(), &client, &server)?)?;
                pins.datapath().attach()?;
                let ours: Vec<_> = pins.datapath().programs().into_iter().map(|p| p.name).collect();
                ensure!(empty::names().eq(ours.iter().copied()), "the empty programs don't cover the hooks: {ours:?}");
                Hold::Pins { _pins: Box::new(pins) }
            }
        };
        Ok(Self { kind, _hold: hold, client, server, sandbox })
    }
}

/// Lanes side by side.
pub(crate) struct Course {
    pub(crate) lanes: Vec<Lane>,
    _top: Sandbox,
}

impl Course {
    /// Sets the lanes up. All endpoints' addresses lead to the server's network namespace.
    pub(crate) fn new(kinds: &[Kind]) -> Result<Self> {
        let top = Sandbox::new("bench")?;
        let (client, server) = (Arc::new(top.switch().plug()?), Arc::new(top.switch().plug()?));
        server.answer_for(Keys::ENDPOINTS)?;
        client.reach_by(Keys::ENDPOINTS, server.v4())?;
        let lanes = kinds.iter().map(|kind| Lane::new(*kind, &top, &client, &server)).collect::<Result<_>>()?;
        Ok(Self { lanes, _top: top })
    }
}
