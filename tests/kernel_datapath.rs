//! The datapath on the real kernel: load, commit, attach, adopt, replace, watch, take off.
//!
//! Every test has a BPF file system and an instance of its own, removed also after a panic.

use bulkhead::datapath::{Datapath, Fault, Limits, Options, Origin, uninstall};
use bulkhead::image::Image;
use bulkhead_common::maps::{Control, PrefixKey, RuleKey};
use bulkhead_common::slots::{Baseline, Binding, PairHeader, Permit, Sides};
use bulkhead_common::{Addr, Class, PeerId};
use bulkhead_tests::{Estate, Via, at, passes, sandbox, slowness};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A BPF file system that is gone again with the test.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn bpffs(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    fn options(&self, attach: &Path) -> Options {
        Options {
            instance: "test".into(),
            bpffs: self.bpffs(),
            attach: vec![attach.to_owned()],
            limits: Limits::default(),
            verbose_kernel_log: false,
        }
    }

    fn pins(&self) -> PathBuf {
        self.bpffs().join("bulkhead/test")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Links that the test has left go with their pins; unmounting removes whatever else is there.
        if let Err(error) = uninstall("test", &self.bpffs()) {
            eprintln!("uninstall after the test: {error}");
        }
        if let Err(error) = rustix::mount::unmount(self.bpffs(), rustix::mount::UnmountFlags::DETACH) {
            eprintln!("unmount after the test: {error}");
        }
    }
}

const CLIENT: PeerId = PeerId(256);
const SERVER: PeerId = PeerId(257);
const PORT: u16 = 7000;

/// Two workloads; the client may talk to the server's port by TCP, or to nobody.
fn image(estate: &Estate, allowed: bool) -> Image {
    let mut image = Image { built_ins: Control::PASS_ALL, ..Image::default() };
    let parent = estate.sandbox().cgroup();
    let point = Binding { peer: PeerId::UNKNOWN_WORKLOAD, instance: 0, flags: Binding::ATTACH_POINT };
    image.cgroups.insert(parent.id(), point);
    image.levels |= 1 << parent.level();
    for (name, peer) in [("client", CLIENT), ("server", SERVER)] {
        let workload = estate.get(name);
        let binding = Binding { peer, instance: peer.0, flags: 0 };
        image.cgroups.insert(workload.cgroup().id(), binding);
        image.levels |= 1 << workload.cgroup().level();
        image.addresses.insert(Addr::v4(workload.v4().octets()), binding);
        image.addresses.insert(Addr(workload.v6().octets()), binding);
    }
    image.prefixes.insert(PrefixKey::default(), Binding::of(Class::World.id()));
    let deny = Baseline { sides: Sides::NONE, sockets_now: 0, sockets_audited: 0 };
    image.baselines.extend([(PeerId::UNKNOWN_WORKLOAD, deny), (CLIENT, deny), (SERVER, deny)]);
    if allowed {
        let key = RuleKey { src: CLIENT.0, dst: SERVER.0, port: PORT, proto: 6, size: 16 };
        image.rules.insert(key, Permit { sides: Sides::ALL, egress_rule: 1, ingress_rule: 1 }.encode());
    }
    image
}

/// Whether the client reaches the server by TCP.
fn reaches(estate: &Estate) -> bool {
    let server = estate.get("server");
    let mut receiver = server.serve(&[PORT], sandbox::Reply::Nothing).expect("a server");
    passes(estate.get("client"), at(server, false, PORT), Via::Tcp, &mut receiver).0
}

#[test]
fn what_is_committed_is_in_force_from_attach_to_uninstall() {
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    assert!(reaches(&estate), "nothing is attached yet");

    let mut datapath = Datapath::open(bench.options(estate.sandbox().cgroup().path())).expect("open");
    assert_eq!(*datapath.origin(), Origin::New);
    assert_ne!(datapath.generation(), 0);
    assert_eq!(datapath.commit(&image(&estate, true)).expect("commit").epoch, 1);
    datapath.attach().expect("attach");
    println!("{:?} {:#?}", datapath.timings(), datapath.programs());
    assert!(datapath.programs().iter().all(|p| p.attached && p.id != 0));
    assert!(reaches(&estate), "the rule allows it");

    let committed = datapath.commit(&image(&estate, false)).expect("commit");
    assert_eq!((committed.epoch, committed.removals), (2, 1));
    assert!(!reaches(&estate), "no rule allows it");
    datapath.settle().expect("settle");
    assert!(!reaches(&estate), "no rule allows it");

    drop(datapath);
    assert!(!reaches(&estate), "in force without the agent");
    let report = uninstall("test", &bench.bpffs()).expect("uninstall");
    assert_eq!(report.removed.len(), 9 + 9 + 24, "{report:?}");
    assert!(!bench.bpffs().join("bulkhead").exists());
    assert!(reaches(&estate), "nothing is attached any more");
}

#[test]
fn the_next_agent_adopts_what_is_pinned_and_swaps_the_programs_in_place() {
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    let options = bench.options(estate.sandbox().cgroup().path());
    let mut first = Datapath::open(options.clone()).expect("open");
    first.commit(&image(&estate, true)).expect("commit");
    first.attach().expect("attach");
    let (generation, state) = (first.generation(), first.state().clone());
    let before: Vec<u32> = first.programs().iter().map(|p| p.id).collect();
    let edges = first.edges().expect("edges").len();
    assert!(reaches(&estate));
    assert!(first.edges().expect("edges").len() > edges, "the connection was counted");
    // As if killed: the commit isn't settled, so half of it is left for the next agent to clear away.
    first.commit(&image(&estate, false)).expect("commit");
    drop(first);

    let mut second = Datapath::open(options.clone()).expect("open");
    assert_eq!(*second.origin(), Origin::Adopted);
    assert_eq!((second.generation(), second.epoch()), (generation, 2));
    assert_eq!(second.state().entries().len(), state.entries().len() - 1, "the rule is gone");
    assert!(!second.edges().expect("edges").is_empty(), "counters live on");
    assert!(!reaches(&estate), "what is committed stays in force while the next agent starts");
    second.attach().expect("attach");
    let after = second.programs();
    assert!(after.iter().all(|p| p.attached && !before.contains(&p.id)), "{after:?}");
    assert!(second.inspect().expect("inspect").is_empty());
    assert!(!reaches(&estate));
    assert_eq!(second.commit(&image(&estate, false)).expect("commit").epoch, 2, "it is in force already");
    assert_eq!(second.commit(&image(&estate, true)).expect("commit").epoch, 3);
    assert!(reaches(&estate));
}

#[test]
fn an_instance_has_one_agent_at_a_time() {
    let bench = Bench::new();
    let estate = Estate::new(&[]);
    let options = bench.options(estate.sandbox().cgroup().path());
    let first = Datapath::open(options.clone()).expect("open");
    let refused = Datapath::open(options.clone()).err().expect("the first one is there").to_string();
    assert!(refused.contains("another agent already runs as instance `test`"), "{refused}");
    let refused = uninstall("test", &bench.bpffs()).expect_err("the first one is there").to_string();
    assert!(refused.contains("stop it first"), "{refused}");
    drop(first);
    Datapath::open(options).expect("the first one has gone");
}

#[test]
fn nothing_is_attached_before_the_first_commit() {
    let bench = Bench::new();
    let estate = Estate::new(&[]);
    let mut datapath = Datapath::open(bench.options(estate.sandbox().cgroup().path())).expect("open");
    let refused = datapath.attach().expect_err("there is no ruleset").to_string();
    assert!(refused.contains("commit first"), "{refused}");
    assert!(datapath.programs().iter().all(|p| !p.attached));
}

#[test]
fn maps_of_another_shape_are_replaced_without_a_moment_unenforced() {
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    let options = bench.options(estate.sandbox().cgroup().path());
    let mut first = Datapath::open(options.clone()).expect("open");
    first.commit(&image(&estate, false)).expect("commit");
    first.attach().expect("attach");
    let generation = first.generation();
    drop(first);

    let other = Options { limits: Limits { rules: 1 << 10, ..Limits::default() }, ..options };
    let mut second = Datapath::open(other).expect("open");
    let Origin::Replacing(why) = second.origin() else { panic!("{:?}", second.origin()) };
    assert!(why.contains("RULES"), "{why}");
    assert_ne!(second.generation(), generation);
    second.commit(&image(&estate, true)).expect("commit");
    assert!(!reaches(&estate), "the former set is in force until the new one is attached");
    second.attach().expect("attach");
    assert!(reaches(&estate), "the former set is off");
    let sets: Vec<_> = std::fs::read_dir(bench.pins()).expect("pins").flatten().map(|e| e.file_name()).collect();
    assert_eq!(sets.len(), 1, "{sets:?}");
    assert!(second.inspect().expect("inspect").is_empty());
}

#[test]
fn a_set_without_one_of_its_maps_is_replaced() {
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    let options = bench.options(estate.sandbox().cgroup().path());
    let mut first = Datapath::open(options.clone()).expect("open");
    first.commit(&image(&estate, false)).expect("commit");
    first.attach().expect("attach");
    drop(first);
    std::fs::remove_file(bench.pins().join(format!("v{}/maps/RULES", bulkhead_common::ABI))).expect("the pin is there");

    let mut second = Datapath::open(options).expect("open");
    let Origin::Replacing(why) = second.origin() else { panic!("{:?}", second.origin()) };
    assert!(why.contains("RULES is gone"), "{why}");
    second.commit(&image(&estate, false)).expect("commit");
    second.attach().expect("attach");
    assert!(!reaches(&estate));
}

#[test]
fn what_is_taken_away_is_noticed_and_put_back() {
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    let cgroup = estate.sandbox().cgroup().path().to_owned();
    let mut datapath = Datapath::open(bench.options(&cgroup)).expect("open");
    datapath.commit(&image(&estate, false)).expect("commit");
    datapath.attach().expect("attach");
    assert_eq!(datapath.inspect().expect("inspect"), []);

    // A pin, and then the whole folder: still in force, since the agent holds everything.
    let set = bench.pins().join(format!("v{}", bulkhead_common::ABI));
    std::fs::remove_file(set.join("maps/SLOTS")).expect("the pin is there");
    let faults = datapath.inspect().expect("inspect");
    assert_eq!(faults, [Fault::Unpinned { path: set.join("maps/SLOTS") }]);
    std::fs::remove_dir_all(&set).expect("the folder is there");
    let faults = datapath.inspect().expect("inspect");
    assert_eq!(faults.len(), 24 + 9 + 9);
    assert!(!reaches(&estate));
    datapath.repair(&faults[0]).expect("repair");
    assert_eq!(datapath.inspect().expect("inspect"), []);
    assert!(set.join("maps/SLOTS").exists());

    // A link that was detached behind the agent's back.
    let pin = std::fs::read_dir(set.join("links")).expect("links").flatten().next().expect("a cgroup").path();
    detach(&pin.join("connect4"));
    let faults = datapath.inspect().expect("inspect");
    let fault = Fault::Detached { program: "connect4", attach_point: cgroup.clone() };
    assert_eq!(faults, [fault]);
    assert!(!datapath.programs().iter().any(|p| p.name == "connect4" && p.attached));
    datapath.repair(&faults[0]).expect("repair");
    assert_eq!(datapath.inspect().expect("inspect"), []);
    assert!(datapath.programs().iter().all(|p| p.attached));
}

/// BPF_LINK_DETACH on a pinned link.
fn detach(pin: &Path) {
    use std::os::fd::FromRawFd;
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(pin.as_os_str().as_bytes()).expect("a path");
    let get = (path.as_ptr().addr() as u64, 0u64);
    // SAFETY: BPF_OBJ_GET takes the path's address and two words of zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 7, &raw const get, size_of_val(&get)) };
    assert!(fd >= 0, "{}: {}", pin.display(), std::io::Error::last_os_error());
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: it was given to us just now.
    let _link = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
    // SAFETY: BPF_LINK_DETACH takes the descriptor.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 34, &raw const fd, size_of_val(&fd)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn an_image_that_does_not_fit_changes_nothing() {
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    let limits = Limits { rules: 4, ..Limits::default() };
    let options = Options { limits, ..bench.options(estate.sandbox().cgroup().path()) };
    let mut datapath = Datapath::open(options).expect("open");
    datapath.commit(&image(&estate, true)).expect("commit");
    datapath.attach().expect("attach");
    let mut full = image(&estate, false);
    for port in 1..=5 {
        let key = RuleKey { src: CLIENT.0, dst: SERVER.0, port, proto: 6, size: 16 };
        full.rules.insert(key, Permit { sides: Sides::ALL, egress_rule: 1, ingress_rule: 1 }.encode());
    }
    let refused = datapath.commit(&full).expect_err("five don't fit four").to_string();
    assert!(refused.contains("the map RULES holds 4 entries"), "{refused}");
    assert_eq!(datapath.epoch(), 1);
    assert!(reaches(&estate), "the former ruleset is in force");
    let rules = datapath.fill().expect("fill").into_iter().find(|f| f.name == "RULES").expect("it can be full");
    assert_eq!((rules.used, rules.capacity), (1, 4));
}

#[test]
fn a_commit_is_in_force_within_loose_limits() {
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    let mut datapath = Datapath::open(bench.options(estate.sandbox().cgroup().path())).expect("open");
    let mut many = image(&estate, true);
    for n in 0..10_000u32 {
        let key = RuleKey { src: 300 + n / 16, dst: 1000 + n % 16, port: 443, proto: 6, size: 16 };
        many.rules.insert(key, Permit { sides: Sides::ALL, egress_rule: 1, ingress_rule: 1 }.encode());
    }
    let all = datapath.commit(&many).expect("commit");
    datapath.settle().expect("settle");
    many.rules.insert(
        RuleKey { src: 300, dst: 2000, port: 443, proto: 6, size: 16 },
        Permit { sides: Sides::ALL, egress_rule: 1, ingress_rule: 1 }.encode(),
    );
    let one = datapath.commit(&many).expect("commit");
    println!("10,000 rules in force after {:?}, one more after {:?}", all.in_force_after, one.in_force_after);
    // The bars are 250 ms and 5 ms, and are `cargo xtask bench`'s to hold: this is a debug build on a busy machine.
    assert!(all.in_force_after < Duration::from_secs(2) * slowness(), "{all:?}");
    assert!(one.in_force_after < Duration::from_millis(500) * slowness(), "{one:?}");
}

#[test]
fn no_datagram_meets_a_mixture_of_two_rulesets() {
    const DENIED: u16 = 7001;
    let bench = Bench::new();
    let estate = Estate::new(&["client", "server"]);
    let mut datapath = Datapath::open(bench.options(estate.sandbox().cgroup().path())).expect("open");
    let key = |port, size| RuleKey { src: CLIENT.0, dst: SERVER.0, port, proto: 17, size };
    let permit = |sides, rule| Permit { sides, egress_rule: rule, ingress_rule: rule }.encode();
    // Both allow the one port and deny the other, in ways that have no entry in common.
    let mut single = image(&estate, false);
    single.rules.insert(key(PORT, 16), permit(Sides::ALL, 1));
    let mut block = image(&estate, false);
    let mask = PORT & bulkhead_common::verdict::block_mask(8);
    let header = PairHeader { sides: Sides::NONE, sizes: 1 << 8 | 1 << 16 };
    block.rules.insert(key(0, RuleKey::HEADER), header.encode());
    block.rules.insert(key(mask, 8), permit(Sides::ALL, 2));
    block.rules.insert(key(DENIED, 16), permit(Sides::NONE, 3));
    datapath.commit(&single).expect("commit");
    datapath.attach().expect("attach");

    let (allowed, denied) = (at(estate.get("server"), false, PORT), at(estate.get("server"), false, DENIED));
    let mut server = estate.get("server").serve(&[PORT, DENIED], sandbox::Reply::Nothing).expect("a server");
    let mut sender = estate
        .get("client")
        .spawn(|turn| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            let end = std::time::Instant::now() + Duration::from_secs(2);
            while std::time::Instant::now() < end {
                turn.doing("send what both allow");
                socket.send_to(b"allowed", allowed)?;
                turn.doing("be refused what both deny");
                if socket.send_to(b"denied", denied).is_ok() {
                    return Err(std::io::Error::from_raw_os_error(libc::EBADE));
                }
            }
            Ok(())
        })
        .expect("a process");
    let mut commits = 0;
    let told = loop {
        datapath.commit(if commits % 2 == 0 { &block } else { &single }).expect("commit");
        commits += 1;
        if let Some(told) = sender.finish(Duration::ZERO) {
            break told;
        }
    };
    told.expect("every datagram met one ruleset");
    assert!(commits > 10, "only {commits} commits");
    assert!(server.receives(b"allowed", Duration::from_secs(1)));
    assert!(!server.received().iter().any(|bytes| bytes == b"denied"));
}
