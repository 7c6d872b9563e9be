//! On the real kernel, as root.

use super::*;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[test]
fn runs_as_the_workload_and_leaves_nothing() {
    let (paths, pid, netns) = {
        let sandbox = Sandbox::new("test").expect("needs root");
        let workload = sandbox.workload("one").expect("a workload");
        let mut process = workload
            .spawn(|turn| {
                turn.ready()?;
                turn.received(&std::fs::read("/proc/self/cgroup")?)?;
                let netns = std::fs::read_link("/proc/self/ns/net")?;
                turn.received(netns.as_os_str().as_encoded_bytes())?;
                turn.stay()
            })
            .expect("a process");
        process.wait_ready(SOON).expect("ready");
        process.go(b"").expect("go");
        let netns = format!("net:[{}]", workload.netns().id());
        assert!(process.receives(b"/one\n", SOON));
        assert!(process.receives(netns.as_bytes(), SOON));
        assert_eq!(workload.cgroup().processes().expect("the list"), [process.pid()]);
        assert_eq!(workload.cgroup().level(), sandbox.cgroup().level() + 1);
        ([sandbox.cgroup().path().to_owned(), workload.cgroup().path().to_owned()], process.pid(), netns)
    };
    assert!(paths.iter().all(|p| !p.exists()), "a cgroup is left");
    assert!(!exists(pid), "the process is left");
    let here = std::fs::read_link("/proc/self/ns/net").expect("a link");
    assert_ne!(here.to_string_lossy(), netns, "the test itself was moved");
}

#[test]
fn a_panic_leaves_nothing_either() {
    let left = std::sync::Mutex::new(None);
    let result = std::panic::catch_unwind(|| {
        let sandbox = Sandbox::new("test").expect("needs root");
        let workload = sandbox.workload("one").expect("a workload");
        // What a workload makes inside its cgroup goes too.
        let nested = workload.cgroup().child("nested").expect("a cgroup");
        let process = Process::spawn(Some(&nested), Some(workload.netns()), |turn| turn.stay()).expect("a process");
        *left.lock().expect("not poisoned yet") = Some((sandbox.cgroup().path().to_owned(), process.pid()));
        panic!("on purpose");
    });
    assert!(result.is_err());
    let (path, pid) = left.into_inner().expect("not poisoned").expect("set before the panic");
    assert!(!path.exists() && !exists(pid));
}

#[test]
fn workloads_reach_each_other_by_every_family() {
    let sandbox = Sandbox::new("test").expect("needs root");
    let (a, b) = (sandbox.workload("a").expect("a workload"), sandbox.workload("b").expect("a workload"));
    for to in b.addresses().map(|ip| SocketAddr::new(ip, 7000)) {
        let mut tcp = b
            .spawn(|turn| {
                let listener = TcpListener::bind(to)?;
                turn.ready()?;
                let mut got = Vec::new();
                listener.accept()?.0.read_to_end(&mut got)?;
                turn.received(&got)
            })
            .expect("a process");
        let mut udp = b
            .spawn(|turn| {
                let socket = UdpSocket::bind(to)?;
                turn.ready()?;
                let mut bytes = [0; 64];
                let n = socket.recv(&mut bytes)?;
                turn.received(&bytes[..n])
            })
            .expect("a process");
        for receiver in [&mut tcp, &mut udp] {
            receiver.wait_ready(SOON).expect("ready");
            receiver.go(b"").expect("go");
        }
        let mut sender = a
            .spawn(|turn| {
                turn.doing("connect");
                TcpStream::connect(to)?.write_all(b"by tcp")?;
                turn.doing("sendto");
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                UdpSocket::bind(any)?.send_to(b"by udp", to).map(drop)
            })
            .expect("a process");
        assert_eq!(sender.finish(SOON), Some(Ok(())));
        assert!(tcp.receives(b"by tcp", SOON) && udp.receives(b"by udp", SOON), "to {to}");
    }
}

#[test]
fn a_failure_says_what_was_tried() {
    let sandbox = Sandbox::new("test").expect("needs root");
    let a = sandbox.workload("a").expect("a workload");
    let to = SocketAddr::new(a.v4().into(), 9);
    let mut process = a
        .spawn(|turn| {
            turn.doing("connect");
            TcpStream::connect(to).map(drop)
        })
        .expect("a process");
    let failure = Failure { doing: "connect".into(), errno: libc::ECONNREFUSED };
    assert_eq!(process.finish(SOON), Some(Err(failure)));
    let mut process = a.spawn(|_| panic!("on purpose")).expect("a process");
    let failure = Failure { doing: "running: panicked: on purpose".into(), errno: 0 };
    assert_eq!(process.finish(SOON), Some(Err(failure)));
}

#[test]
fn sockets_pass_between_processes() {
    let sandbox = Sandbox::new("test").expect("needs root");
    let (a, b) = (sandbox.workload("a").expect("a workload"), sandbox.workload("b").expect("a workload"));
    let mut maker = b
        .spawn(|turn| {
            turn.give_socket(UdpSocket::bind("0.0.0.0:0")?)?;
            turn.stay()
        })
        .expect("a process");
    let mut user = a
        .spawn(|turn| {
            let socket = UdpSocket::from(turn.take_socket()?);
            turn.received(socket.local_addr()?.to_string().as_bytes())
        })
        .expect("a process");
    let socket = maker.take_socket(SOON).expect("a socket");
    user.hand_over(std::os::fd::AsFd::as_fd(&socket)).expect("handed over");
    assert!(user.receives(b"0.0.0.0:", SOON));
}
