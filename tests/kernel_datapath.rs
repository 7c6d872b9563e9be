//! The datapath on the real kernel: load, commit, attach, adopt, replace, watch, take off.
//!
//! Every test has a BPF file system and an instance of its own, removed also after a panic.

use bulkhead::datapath::{Datapath, Limits, Options, Origin, uninstall};
use bulkhead::image::Image;
use bulkhead_common::maps::{Control, PrefixKey, RuleKey};
use bulkhead_common::slots::{Baseline, Binding, Permit, Sides};
use bulkhead_common::{Addr, Class, Hook, PeerId};
use bulkhead_tests::{Estate, SOON, Via, any, at, passes, sandbox};
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
    assert_eq!(report.removed.len(), 7 + 7 + 16, "{report:?}");
    assert!(!bench.bpffs().join("bulkhead").exists());
    assert!(reaches(&estate), "nothing is attached any more");
}
