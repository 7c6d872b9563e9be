//! A closure run as a workload: in a forked child, inside a cgroup and a network namespace.
//!
//! The child is a copy of a program that may have threads, so its closure keeps to what works after fork(): system
//! calls, memory, and the [`Turn`] it is given; no environment variables, no stdout, no logging, and no threads that
//! need any of these. The closure must be `Copy`, hence captures only plain values and references, and nothing of the parent's is dropped twice.
//! All file descriptors are closed except stdin, stdout, stderr and the child's link to its parent.
//!
//! Two steps make most uses: the closure prepares its sockets, waits in [`Turn::ready`] until the parent says
//! [`Process::go`], then acts, and tells what it received by [`Turn::received`].

use super::cgroup::Cgroup;
use super::netns::Netns;
use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// The longest message between the two.
const MESSAGE: usize = 64 * 1024;

/// What a child ended with instead of finishing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was doing, as it last told by [`Turn::doing`].
    pub doing: String,
    /// The error number; 0 if it panicked or the error had none.
    pub errno: i32,
}

/// A running child. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    maker: u32,
    link: OwnedFd,
    // When the last copy of this end closes, the child gets a SIGIO, and ends.
    _lifeline: OwnedFd,
    ready: bool,
    ended: Option<Result<(), Failure>>,
    log: Vec<Vec<u8>>,
    sockets: Vec<OwnedFd>,
}

/// The child's side of it.
#[derive(Debug)]
pub struct Turn {
    link: OwnedFd,
    doing: &'static str,
}

// The first byte of a message.
const READY: u8 = b'R';
const GO: u8 = b'G';
const RECEIVED: u8 = b'L';
const SOCKET: u8 = b'S';
const FAILED: u8 = b'E';
const DONE: u8 = b'D';

impl Process {
    /// Forks a child that enters the cgroup and the namespace and runs `body`. Without them it stays in the caller's.
    pub fn spawn<F>(cgroup: Option<&Cgroup>, netns: Option<&Netns>, body: F) -> io::Result<Self>
    where
        F: FnOnce(&mut Turn) -> io::Result<()> + Copy,
    {
        hush_panics_of_children();
        let (link, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (ears, lifeline) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let procs = cgroup.map(|c| CString::new(c.path().join("cgroup.procs").as_os_str().as_bytes())).transpose()?;

        // SAFETY: the child runs `child`, which never returns, and under the restrictions that the module's head lists.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => child(theirs, ears, procs.as_deref(), netns, body),
            pid => {
                let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork() gave no process"))?;
                let (maker, log, sockets) = (std::process::id(), Vec::new(), Vec::new());
                Ok(Self { pid, maker, link, _lifeline: lifeline, ready: false, ended: None, log, sockets })
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until it has come to [`Turn::ready`].
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + within;
        while !self.ready && self.ended.is_none() && self.pump(deadline) {}
        match &self.ended {
            Some(Err(failure)) => Err(failure.clone()),
            _ if self.ready => Ok(()),
            _ => Err(Failure { doing: "getting ready".into(), errno: libc::ETIMEDOUT }),
        }
    }

    /// Lets it continue after its (next) [`Turn::ready`], which returns `message`.
    pub fn go(&mut self, message: &[u8]) -> io::Result<()> {
        self.ready = false;
        tell(self.link.as_fd(), GO, message, None)
    }

    /// Hands it a file descriptor; [`Turn::take_socket`] gives it there.
    pub fn hand_over(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        tell(self.link.as_fd(), SOCKET, &[], Some(socket))
    }

    /// The file descriptor that it gave away by [`Turn::give_socket`].
    pub fn take_socket(&mut self, within: Duration) -> Option<OwnedFd> {
        let deadline = Instant::now() + within;
        while self.sockets.is_empty() && self.ended.is_none() && self.pump(deadline) {}
        if self.sockets.is_empty() { None } else { Some(self.sockets.remove(0)) }
    }

    /// Waits until the closure has returned. `None` if it still runs.
    pub fn finish(&mut self, within: Duration) -> Option<Result<(), Failure>> {
        let deadline = Instant::now() + within;
        while self.ended.is_none() && self.pump(deadline) {}
        self.ended.clone()
    }

    /// Everything that it said it received until now.
    pub fn received(&mut self) -> &[Vec<u8>] {
        while self.ended.is_none() && self.pump(Instant::now()) {}
        &self.log
    }

    /// Waits until it says that it received these bytes, by themselves or within more.
    pub fn receives(&mut self, bytes: &[u8], within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            if self.log.iter().any(|got| got.windows(bytes.len()).any(|w| w == bytes)) {
                return true;
            }
            if self.ended.is_some() || !self.pump(deadline) {
                return false;
            }
        }
    }

    /// Takes in one message; false if there was none in time.
    fn pump(&mut self, deadline: Instant) -> bool {
        match hear(self.link.as_fd(), Some(deadline)) {
            Ok(Some((READY, ..))) => self.ready = true,
            Ok(Some((RECEIVED, bytes, _))) => self.log.push(bytes),
            Ok(Some((SOCKET, _, Some(fd)))) => self.sockets.push(fd),
            Ok(Some((DONE, ..))) => self.ended = Some(Ok(())),
            Ok(Some((FAILED, bytes, _))) => self.ended = Some(Err(Failure::decode(&bytes))),
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(_) => self.ended = Some(Err(Failure { doing: "ended without a word".into(), errno: 0 })),
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A forked child holds a copy of the guard, but not the duty.
        if self.maker == std::process::id() {
            // It is our own child and not yet waited for, so the number can't be anybody else's.
            kill_process(self.pid, Signal::KILL).ok();
            while let Err(rustix::io::Errno::INTR) = waitpid(Some(self.pid), WaitOptions::empty()) {}
        }
    }
}

impl Turn {
    /// Says what comes next, for the note on a failure.
    pub fn doing(&mut self, what: &'static str) {
        self.doing = what;
    }

    /// Says that everything is prepared, and waits for the parent's word.
    pub fn ready(&mut self) -> io::Result<Vec<u8>> {
        tell(self.link.as_fd(), READY, &[], None)?;
        loop {
            if let Some((GO, message, _)) = hear(self.link.as_fd(), None)? {
                return Ok(message);
            }
        }
    }

    /// Waits for as long as the parent lives: for a child whose sockets only have to exist.
    pub fn stay(&mut self) -> io::Result<()> {
        self.ready().map(drop)
    }

    /// Tells the parent what was received.
    pub fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        tell(self.link.as_fd(), RECEIVED, bytes.get(..MESSAGE - 1).unwrap_or(bytes), None)
    }

    /// Gives the parent a copy of a file descriptor.
    pub fn give_socket(&mut self, socket: impl AsFd) -> io::Result<()> {
        tell(self.link.as_fd(), SOCKET, &[], Some(socket.as_fd()))
    }

    /// Waits for a file descriptor from the parent.
    pub fn take_socket(&mut self) -> io::Result<OwnedFd> {
        loop {
            if let Some((SOCKET, _, Some(fd))) = hear(self.link.as_fd(), None)? {
                return Ok(fd);
            }
        }
    }
}

impl std::error::Error for Failure {}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.errno {
            0 => f.write_str(&self.doing),
            errno => write!(f, "{}: {}", self.doing, io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Failure {
    fn encode(&self) -> Vec<u8> {
        [&self.errno.to_ne_bytes()[..], self.doing.as_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Self {
        let (errno, doing) = bytes.split_first_chunk().unwrap_or((&[0; 4], bytes));
        Self { errno: i32::from_ne_bytes(*errno), doing: String::from_utf8_lossy(doing).into_owned() }
    }
}

/// The whole life of the child.
fn child<F>(link: OwnedFd, ears: OwnedFd, procs: Option<&std::ffi::CStr>, netns: Option<&Netns>, body: F) -> !
where
    F: FnOnce(&mut Turn) -> io::Result<()>,
{
    let mut turn = Turn { link, doing: "entering the workload" };
    FORKED.store(true, Ordering::Relaxed);
    let run = std::panic::AssertUnwindSafe(|| {
        default_signals();
        end_with_parent(&ears)?;
        if let Some(procs) = procs {
            let procs = rustix::fs::open(procs, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())?;
            std::fs::File::from(procs).write_all(b"0")?;
        }
        if let Some(netns) = netns {
            netns.enter()?;
        }
        close_all_but([ears.as_raw_fd(), turn.link.as_raw_fd()]);
        turn.doing = "running";
        body(&mut turn)
    });
    let (tag, message) = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => (DONE, Vec::new()),
        Ok(Err(e)) => {
            let failure = match e.raw_os_error() {
                Some(errno) => Failure { doing: turn.doing.to_owned(), errno },
                None => Failure { doing: format!("{}: {e}", turn.doing), errno: 0 },
            };
            (FAILED, failure.encode())
        }
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            let doing = format!("{}: panicked: {}", turn.doing, text.unwrap_or("without a message"));
            (FAILED, Failure { doing, errno: 0 }.encode())
        }
    };
    tell(turn.link.as_fd(), tag, &message, None).ok();
    // SAFETY: ends this process without running what the parent registered to run at exit, and without dropping
    // anything on the copied stack.
    unsafe { libc::_exit(0) }
}

/// Whether this process is such a child.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Keeps the panic hook from running in the children: it may want locks that another of the parent's threads held at
/// the fork. A child's panic message goes through its link instead.
fn hush_panics_of_children() {
    static ONCE: Once = Once::new();
    if !std::thread::panicking() {
        ONCE.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !FORKED.load(Ordering::Relaxed) {
                    hook(info);
                }
            }));
        });
    }
}

/// The parent's handlers mean nothing here. Writing to a closed connection gives EPIPE.
fn default_signals() {
    for signal in 1..32 {
        // SAFETY: sets a disposition, not a handler; for the two that can't be set the call fails, which is fine.
        unsafe { libc::signal(signal, if signal == libc::SIGPIPE { libc::SIG_IGN } else { libc::SIG_DFL }) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is read; the process has one thread.
    unsafe {
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Asks for a SIGIO, which ends a process that doesn't handle it, when nobody holds the pipe's other end any more.
/// PR_SET_PDEATHSIG would go by the thread that forked, not by the process.
fn end_with_parent(ears: &OwnedFd) -> io::Result<()> {
    let fd = ears.as_raw_fd();
    // SAFETY: both calls take integers and change this process's own descriptor.
    let set = unsafe {
        libc::fcntl(fd, libc::F_SETOWN, libc::getpid())
            | libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn close_all_but(mut keep: [RawFd; 2]) {
    keep.sort_unstable();
    let [low, high] = keep.map(RawFd::unsigned_abs);
    for (first, last) in [(3, low.wrapping_sub(1)), (low + 1, high.wrapping_sub(1)), (high + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: the descriptors closed here belong to the parent's objects, which this process never touches
            // nor drops.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Sends one message.
fn tell(link: BorrowedFd<'_>, tag: u8, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(link, &[IoSlice::new(&[tag]), IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

type Message = (u8, Vec<u8>, Option<OwnedFd>);

/// Waits for one message, `None` if there is none by the deadline.
fn hear(link: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Option<Message>> {
    loop {
        let left = deadline.map(|d| rustix::time::Timespec::try_from(d.saturating_duration_since(Instant::now())));
        let left = left.transpose().map_err(io::Error::other)?;
        match poll(&mut [PollFd::from_borrowed_fd(link, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut bytes = vec![0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let n = recvmsg(link, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    bytes.truncate(n);
    let (&tag, rest) = bytes.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Some((tag, rest.to_vec(), fd)))
}
