//! A database, and who reaches it: what tests of an agent under orders have in common.

use crate::{Agent, Estate, Process, Via, at, passes};

/// Where the workload `database` listens.
pub const PORT: u16 = 5432;

/// Lets web and reports, and nobody else, reach the database.
pub const POLICY: &str = "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentationPolicy\nmetadata: {name: database}\n\
    spec:\n  mode: enforce\n  edges:\n    - from: [{id: spiffe://test/web}, {id: spiffe://test/reports}]\n      \
    to: [{id: spiffe://test/database}]\n      ports: [{port: 5432}]\n";

/// Starts an agent that enforces [`POLICY`], in `database.yaml`.
pub fn enforcing(estate: &Estate) -> Agent {
    let mut agent = Agent::over(estate, "posture: enforce");
    std::fs::write(agent.policies().join("database.yaml"), POLICY).expect("a file");
    agent.start(&[]);
    agent
}

/// Whether bytes get from this workload to the database by TCP, over IPv4; the server is a process of the database's.
pub fn reaches(estate: &Estate, from: &str, server: &mut Process) -> bool {
    passes(estate.get(from), at(estate.get("database"), false, PORT), Via::Tcp, server).0
}
