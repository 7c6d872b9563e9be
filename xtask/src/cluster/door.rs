//! The way from the host to the API server: connections to a loopback port of the host go on inside the cluster.
//!
//! A socket belongs to the network namespace in which it was made, not to the process that holds it. This process lives
//! in the control plane's namespace and is given a listening socket of the host's as its standard input: so the two meet
//! without a link, a route or an address on the host.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use anyhow::{Context, Result};

/// Hands on every connection of the listener that is the standard input, to `address`, until it is ended.
pub(super) fn serve(address: &str) -> Result<()> {
    let listener = io::stdin().as_fd().try_clone_to_owned().context("there is no standard input")?;
    for caller in TcpListener::from(listener).incoming() {
        let caller = caller.context("the standard input isn't a listening socket")?;
        let address = address.to_owned();
        thread::spawn(move || {
            // The caller sees a connection that is closed, as if nobody listened.
            if let Err(error) = hand_on(&caller, &address) {
                eprintln!("{address}: {error:#}");
            }
        });
    }
    Ok(())
}

fn hand_on(caller: &TcpStream, address: &str) -> Result<()> {
    let callee = TcpStream::connect(address)?;
    thread::scope(|scope| {
        scope.spawn(|| carry(caller, &callee));
        carry(&callee, caller);
    });
    Ok(())
}

/// Copies until the sender has said all.
fn carry(mut from: &TcpStream, mut to: &TcpStream) {
    // Whatever broke: the other side learns that nothing more comes.
    io::copy(&mut from, &mut to).ok();
    to.shutdown(Shutdown::Write).ok();
}
