//! Bulkhead: keeps workloads apart by who they are.
//!
//! Dependencies run one way: `common <- pure modules <- I/O modules <- app <- main`. The pure modules (see
//! `xtask/src/lint.rs` for the list that is checked) name neither aya, kube, tokio, spiffe nor prometheus.
//!
//! | module | what it is |
//! |---|---|
//! | [`identity`] | SPIFFE IDs, patterns over them, and what makes two workloads the same |
//! | [`inventory`] | what the sources know: workloads, addresses, postures |
//! | [`policy`] | documents, the checked model, the compiler, the reference evaluator, diagnostics |
//! | [`image`] | everything the kernel's tables hold, as plain collections |
//! | [`plan`] | from one image to the next: the writes, in an order that is whole at each step |
//! | [`time`] | times as files and people write them |
//! | [`revocation`] | which live sockets a ruleset doesn't let pass any more |
//! | [`flows`] | counters and events turned into edges |
//! | [`dns`] | what DNS answers say: names of addresses |
//! | [`history`] | what was seen over time |
//! | [`store`] | the history of this host, on disk |
//! | [`graph`] | a history drawn: dot, mermaid, SVG, HTML, text |
//! | [`declog`] | the decision log: lines, their chain, their files |
//! | [`report`] | whom each identity can reach |
//! | [`judge`] | a policy set that can be asked about the links of a history |
//! | [`effect`] | two policy sets compared by what they allow |
//! | [`suggest`] | rules for what was seen, with the evidence and the proof |
//! | [`export`] | our policies in the words of other kinds |
//! | [`import`] | policies of other kinds read as ours |
//! | [`simulate`] | what another policy set would have done to what was seen |
//! | [`config`] | the agent's file |
//! | [`cluster`] | the API server's objects: pods, Services, policies |
//! | [`sources`] | cgroups, files, addresses: what changes on the host |
//! | [`datapath`] | the kernel side: load, pin, attach, commit, watch |
//! | [`serve`] | metrics, probes and the control socket |
//! | [`app`] | the agent's life: one task that compiles, plans and applies |
//! | [`probe`] | tricks that try to get data through |
//! | [`cli`] | the commands |

pub mod app;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod datapath;
pub mod declog;
pub mod dns;
pub mod effect;
pub mod export;
pub mod flows;
pub mod graph;
pub mod history;
pub mod identity;
pub mod image;
pub mod import;
pub mod inventory;
pub mod judge;
pub mod plan;
pub mod policy;
pub mod probe;
pub mod report;
pub mod revocation;
pub mod serve;
pub mod simulate;
pub mod sources;
pub mod store;
pub mod suggest;
pub mod time;
