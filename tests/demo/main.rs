//! What `cargo xtask demo` runs once everything is built: a small bank on this kernel, an intruder in it, and the real
//! agent with its shipped files, asked by its real commands. The receivers' logs decide what got through.
//!
//! It changes nothing of the host's network, and takes away whatever it made, also when it fails or is interrupted.

mod agent;
mod bank;
mod estate;
mod evidence;
mod flows;
mod held;
mod interrupt;
mod latency;
mod look;
mod screen;
mod server;
mod story;
mod traffic;
mod tries;

use anyhow::{Context as _, Result};
use clap::Parser;
use screen::Screen;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// A small bank on this kernel, before Bulkhead and after
#[derive(Parser)]
#[command(name = "demo", max_term_width = 100)]
struct Args {
    /// The agent's binary
    #[arg(long, value_name = "FILE")]
    bulkhead: PathBuf,
    /// The folder with the demo's configuration and policies
    #[arg(long, value_name = "FOLDER")]
    shipped: PathBuf,
    /// Where to draw who talks to whom
    #[arg(long, value_name = "FOLDER")]
    pictures: PathBuf,
    /// Write what was measured
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw what was printed
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Leave it running until Enter or Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) if e.is::<interrupt::Interrupted>() => {
            eprintln!("demo: interrupted; everything is taken away again");
            ExitCode::from(130)
        }
        Err(e) => {
            eprintln!("demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the story held.
fn run(args: &Args) -> Result<bool> {
    interrupt::watch()?;
    agent::clear_leftovers(&args.bulkhead).context("an earlier demo left something that can't be removed")?;
    let mut screen = Screen::default();
    fs::create_dir_all(&args.pictures).with_context(|| format!("can't make {}", args.pictures.display()))?;
    let files = story::Files { program: &args.bulkhead, shipped: &args.shipped, pictures: &args.pictures };
    let evidence = story::tell(&mut screen, &files, args.keep)?;
    if let Some(file) = &args.json {
        let text = format!("{:#}\n", evidence.json());
        fs::write(file, text).with_context(|| format!("can't write {}", file.display()))?;
    }
    if let Some(file) = &args.svg {
        let picture = screen.picture("cargo xtask demo");
        fs::write(file, picture).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(evidence.held())
}
