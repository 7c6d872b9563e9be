//! `pod`: what runs in the pods of the test cluster, and holds their sandboxes.
//!
//! The image has this one static file and nothing else, so it takes addresses, never names: the C library's resolver
//! doesn't work without its shared objects. `resolve` therefore asks the DNS server itself. What an answer says is what
//! the receiver saw, so that a test can tell who really talked to whom.

mod ask;
mod hold;
mod mesh;
mod serve;
mod talk;
mod webhook;

use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const USAGE: &str = "\
pod pause                       wait for SIGTERM
pod serve PORT                  answer on TCP and UDP, and log who asked
pod talk PORT FOLDER NAME       answer, and try whom FOLDER/NAME.orders names
pod once KEY tcp|udp ADDRESS:PORT
                                try once, at the first instruction; print outcome and microseconds
pod storm KEY SECONDS ADDRESS:PORT...
                                try all by TCP, over and over, from the first instruction on; print how often
pod webhook PORT FOLDER         let everything pass that an API server asks about; FOLDER has tls.crt and tls.key
pod redirect HOST PORT USER     send the pod's TCP to PORT, but for USER's; HOST is the node's root
pod proxy PORT                  hand on what is redirected to PORT
pod alive PORT                  exit code 1 unless what this pod runs answers there
pod ask tcp|udp ADDRESS:PORT    print the answer; exit code 1 if there is none within 2 s
pod resolve SERVER:PORT NAME    print the addresses of NAME, one per line";

/// How long a first connection may take: what is slow is to be measured, not to be given up.
const FIRST: Duration = Duration::from_secs(20);

/// How long one connection of many may take.
const STORM: Duration = Duration::from_millis(250);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["pause"] => wait_for_the_end(),
        ["serve", port] => {
            serve::start(port.parse().context("PORT is a number up to 65535")?)?;
            wait_for_the_end()
        }
        ["talk", port, folder, name] => {
            talk::start(port.parse().context("PORT is a number up to 65535")?, folder.as_ref(), name)?;
            wait_for_the_end()
        }
        ["redirect", host, port, user] => mesh::redirect(
            host.as_ref(),
            port.parse().context("PORT is a number up to 65535")?,
            user.parse().context("USER is a number")?,
        ),
        ["proxy", port] => {
            mesh::proxy(port.parse().context("PORT is a number up to 65535")?)?;
            wait_for_the_end()
        }
        ["webhook", port, folder] => {
            webhook::start(port.parse().context("PORT is a number up to 65535")?, folder.as_ref())?;
            wait_for_the_end()
        }
        ["once", key, protocol @ ("tcp" | "udp"), address] => {
            let (key, sent) = (key.parse().context("KEY is a number")?, talk::now());
            let outcome = talk::attempt(protocol == "tcp", parse(address)?, key, sent, FIRST);
            say(format!("{outcome} {}", talk::now() - sent))
        }
        ["storm", key, seconds, ref addresses @ ..] if !addresses.is_empty() => {
            let key = key.parse().context("KEY is a number")?;
            let seconds: u64 = seconds.parse().context("SECONDS is a number")?;
            let addresses = addresses.iter().map(|a| parse(a)).collect::<Result<Vec<_>>>()?;
            let (start, mut tried) = (talk::now(), 0);
            while talk::now() < start + seconds * 1_000_000 {
                for address in &addresses {
                    talk::attempt(true, *address, key, talk::now(), STORM);
                    tried += 1;
                }
                std::thread::sleep(STORM / 5);
            }
            say(format!("tried {tried} since {start}"))
        }
        ["alive", port] => {
            let address = parse(&format!("127.0.0.1:{port}"))?;
            match &talk::attempt(true, address, 0, talk::now(), FIRST)[..] {
                "heard" => Ok(()),
                otherwise => bail!("{address}: {otherwise}"),
            }
        }
        ["ask", "tcp", address] => say(ask::tcp(parse(address)?)?),
        ["ask", "udp", address] => say(ask::udp(parse(address)?)?),
        ["resolve", server, name] => {
            let addresses: Vec<String> =
                ask::addresses(parse(server)?, name)?.iter().map(ToString::to_string).collect();
            say(addresses.join("\n"))
        }
        _ => bail!("what to do?\n{USAGE}"),
    }
}

fn say(answer: String) -> Result<()> {
    println!("{answer}");
    Ok(())
}

fn parse(address: &str) -> Result<SocketAddr> {
    address.parse().with_context(|| format!("`{address}` isn't ADDRESS:PORT or [ADDRESS]:PORT"))
}

/// Waits for SIGTERM or SIGINT, which a container's first process must ask for, and buries orphans until then.
fn wait_for_the_end() -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD]).context("can't wait for signals")?;
    for signal in signals.forever() {
        if signal != SIGCHLD {
            break;
        }
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
    }
    Ok(())
}
