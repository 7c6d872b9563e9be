//! Bulkhead's own tasks: `cargo xtask help` lists them.
//!
//! One file per task, each with its `Args` and a `run`; a new task is a line in [`Task`] and a line in [`main`]. What a
//! task needs is installed by [`setup`], so that a fresh machine needs nothing but Rust.

mod bench;
mod build;
mod ci;
mod cluster;
mod corpus;
mod demo;
mod e2e;
mod guest;
mod image;
mod lint;
mod manifests;
mod matrix;
mod object;
mod programs;
mod run;
mod setup;
mod tally;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::Parser;

/// Bulkhead's own tasks
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Install what the other tasks need (they call it themselves)
    Setup(setup::Args),
    /// Build the kernel programs and the agent
    Build(build::Args),
    /// Tell the story on this kernel: a small bank, before and after (needs root)
    Demo(demo::Args),
    /// Run all tests on this kernel (needs root)
    Test(test::Args),
    /// Check format, clippy, purity, file lengths, licences
    Lint(lint::Args),
    /// Score suggested rules on estates whose true dependencies are known
    Corpus(corpus::Args),
    /// Measure what Bulkhead costs, and hold it against the bars
    Bench(bench::Args),
    /// Write the parts of deploy/ that are made from others
    Manifests(manifests::Args),
    /// A Kubernetes cluster on this machine, for tests (needs root)
    Cluster(cluster::Args),
    /// Tell the story on a real cluster, from observe to the last fault (needs root)
    E2e(e2e::Args),
    /// Run every check there is, one after the other
    Ci(ci::Args),
    /// Make the container image, without a container engine
    Image(image::Args),
    /// Run the kernel tests on other kernels, in QEMU
    Matrix(matrix::Args),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup(args) => args.run(),
        Task::Build(args) => args.run(),
        Task::Demo(args) => args.run(),
        Task::Test(args) => args.run(),
        Task::Lint(args) => args.run(),
        Task::Corpus(args) => args.run(),
        Task::Bench(args) => args.run(),
        Task::Manifests(args) => args.run(),
        Task::Cluster(args) => args.run(),
        Task::E2e(args) => args.run(),
        Task::Ci(args) => args.run(),
        Task::Image(args) => args.run(),
        Task::Matrix(args) => args.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
