//! A sidecar that all TCP of its pod is redirected to on the way out, as service meshes have it.
//!
//! `redirect` puts the rule there, with the node's `nft` (its root is mounted, and entered); `proxy` is where connections
//! then arrive. It asks the kernel where each was meant to go, and goes there itself, under a user whose connections
//! aren't redirected.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Protocol, SockRef, Type};

use crate::serve;

const PATIENCE: Duration = Duration::from_secs(2);

/// Redirects the pod's own connections to `port`, but for those of `user`.
pub(crate) fn redirect(host: &Path, port: u16, user: u32) -> Result<()> {
    let rules = format!(
        "table inet mesh {{\nchain out {{\ntype nat hook output priority -100\nmeta skuid {user} return\n\
         oifname lo return\nmeta l4proto tcp redirect to :{port}\n}}\n}}\n"
    );
    rustix::process::chroot(host).with_context(|| format!("can't enter {}", host.display()))?;
    std::env::set_current_dir("/").context("can't enter the node's root")?;
    let mut nft = Command::new("/usr/sbin/nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("no nft")?;
    nft.stdin.take().context("no input")?.write_all(rules.as_bytes())?;
    let status = nft.wait()?;
    ensure!(status.success(), "nft: {status}");
    Ok(())
}

/// Hands on what is redirected to `port`.
pub(crate) fn proxy(port: u16) -> Result<()> {
    let socket = serve::open(Type::STREAM, Protocol::TCP, port)?;
    socket.listen(1024).context("can't listen")?;
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that leads nowhere is closed: that is all that whoever opened it gets to know.
            thread::spawn(move || hand_on(stream).ok());
        }
    });
    Ok(())
}

fn hand_on(near: TcpStream) -> Result<()> {
    let socket = SockRef::from(&near);
    let meant = if near.local_addr()?.ip().to_canonical().is_ipv4() {
        socket.original_dst_v4()?
    } else {
        socket.original_dst_v6()?
    };
    let meant: SocketAddr = meant.as_socket().context("it was meant for no address")?;
    let far = TcpStream::connect_timeout(&meant, PATIENCE)?;
    far.set_nodelay(true)?;
    near.set_nodelay(true)?;
    let (back, there) = (near.try_clone()?, far.try_clone()?);
    let answers = thread::spawn(move || copy(&far, &back));
    copy(&near, &there);
    answers.join().ok();
    Ok(())
}

/// All that comes, and then its end.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let whole = io::copy(&mut from, &mut to).is_ok();
    to.shutdown(if whole { Shutdown::Write } else { Shutdown::Both }).ok();
}
