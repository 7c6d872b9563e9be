//! What is compared: the same two workloads in two network namespaces of the same shape, once without any programs,
//! once under programs that do nothing, and under Bulkhead with some number of rules.

use crate::empty;
use crate::keys::Keys;
use crate::least::{self, Least};
use crate::pins::Pins;
use anyhow::{Result, ensure};
use bulkhead::datapath::Datapath;
use bulkhead_tests::Workload;
use bulkhead_tests::sandbox::{Cgroup, Sandbox};
use std::os::fd::OwnedFd;

/// What is on a lane's hooks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Nothing.
    None,
    /// Programs that allow everything at once.
    Empty,
    /// Programs that do [the least](crate::least) for so many rules, and allow.
    Least(Keys),
    /// Bulkhead with that many rules.
    Bulkhead(Keys),
}

/// What keeps the programs attached.
enum Hold {
    Nothing,
    Links { _links: Vec<OwnedFd> },
    Least { _least: Least },
    Pins { pins: Box<Pins> },
}

/// A client and a server with something on their hooks.
pub(crate) struct Lane {
    pub(crate) kind: Kind,
    // Dropped in this order: links, then cgroups from the leaves upwards.
    hold: Hold,
    pub(crate) client: Workload,
    pub(crate) server: Workload,
    sandbox: Sandbox,
}

impl Lane {
    /// The cgroup above both.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        self.sandbox.cgroup()
    }

    /// The programs, where they are Bulkhead's.
    pub(crate) fn datapath(&mut self) -> Option<&mut Datapath> {
        match &mut self.hold {
            Hold::Pins { pins } => Some(pins.datapath()),
            Hold::Nothing | Hold::Links { .. } | Hold::Least { .. } => None,
        }
    }

    /// All endpoints' addresses lead to the server's network namespace.
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        let sandbox = Sandbox::new("bench")?;
        let (client, server) = (sandbox.workload("client")?, sandbox.workload("server")?);
        server.plug().answer_for(Keys::ENDPOINTS)?;
        client.plug().reach_by(Keys::ENDPOINTS, server.v4())?;
        let hold = match kind {
            Kind::None => Hold::Nothing,
            Kind::Empty => Hold::Links { _links: empty::attach(sandbox.cgroup().path())? },
            Kind::Least(keys) => {
                let least = least::attach(sandbox.cgroup().path(), keys.endpoints.into(), keys.rules())?;
                Hold::Least { _least: least }
            }
            Kind::Bulkhead(keys) => {
                let mut pins = Pins::open(sandbox.cgroup(), keys)?;
                pins.datapath().commit(&keys.image(sandbox.cgroup(), &client, &server)?)?;
                pins.datapath().attach()?;
                let ours: Vec<_> = pins.datapath().programs().into_iter().map(|p| p.name).collect();
                ensure!(empty::names().eq(ours.iter().copied()), "the empty programs don't cover the hooks: {ours:?}");
                Hold::Pins { pins: Box::new(pins) }
            }
        };
        Ok(Self { kind, hold, client, server, sandbox })
    }
}
