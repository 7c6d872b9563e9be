//! What is written can be checked: every changed, removed or reordered line is found, and a full disk only costs lines.

use super::chain::{Hash, open};
use super::file::{LogFile, numbered};
use super::verify::Verified;
use super::*;
use crate::config::DecisionLog;
use crate::flows::PeerName;
use proptest::prelude::*;
use std::path::Path;
use std::time::Duration;

fn config(folder: &Path, max_size: u64, keep: u32) -> DecisionLog {
    DecisionLog {
        path: folder.join("log/decisions.jsonl"),
        format: LogForm::Json,
        max_size,
        keep,
        interval: Duration::from_secs(60),
        revision_file: None,
    }
}

fn edge(id: &str) -> Edge {
    let name = |id: &str| PeerName { id: id.to_owned(), namespace: "shop".to_owned() };
    Edge {
        source: name(id),
        destination: name("spiffe://t/db"),
        port: 5432,
        protocol: 6,
        direction: "egress".to_owned(),
        outcome: "denied".to_owned(),
        reason: "no-egress-rule".to_owned(),
    }
}

fn denial(id: &str, comm: &str) -> Entry {
    let decision = Decision {
        time: 1_700_000_000_123,
        epoch: 7,
        edge: edge(id),
        hook: "connect".to_owned(),
        source_address: String::new(),
        destination_address: "[2001:db8::1]:5432".to_owned(),
        name: None,
        pid: 42,
        comm: comm.to_owned(),
        executable: Some("/usr/bin/psql".to_owned()),
        egress_rule: None,
        ingress_rule: Some("SegmentationPolicy db ingress[0]".to_owned()),
        break_glass: true,
    };
    let policy = Revision { hash: "ab".repeat(16), commit: Some("deadbeef".to_owned()) };
    Entry { at: rfc3339(1_700_000_000_123), told: Told::Decision(decision), policy }
}

fn allowed() -> Entry {
    let told = Told::Allowed(Allowed {
        edge: Edge { outcome: "allowed".to_owned(), ..edge("spiffe://t/web") },
        count: 12,
        egress_rule: Some("SegmentationPolicy web egress[0]".to_owned()),
        ingress_rule: None,
        since: 1_700_000_000_000,
        epoch: 7,
    });
    Entry { at: rfc3339(1_700_000_060_000), told, policy: Revision::default() }
}

fn entries() -> [Entry; 4] {
    let dropped = Dropped { kernel: 1, queue: 2, disk: 3 };
    [
        denial("spiffe://t/web", "psql"),
        allowed(),
        Entry { told: Told::Dropped(dropped), ..denial("a", "") },
        Entry { told: Told::Begin { version: "1".to_owned(), torn: 5 }, ..denial("a", "") },
    ]
}

fn log_of(n: usize, form: LogForm) -> Vec<String> {
    let mut chain = Chain::default();
    let mut lines = Vec::new();
    for i in 0..n {
        let (text, next) = line(&entries()[i % 4], 1_700_000_000_123, form, &chain).expect("plain data");
        chain = next;
        lines.push(text);
    }
    lines
}

fn verified(text: &str) -> Verified {
    let mut v = Verified::default();
    v.read("f", text.as_bytes()).expect("readable");
    v.end();
    v
}

#[test]
fn a_line_has_everything_and_reads_back() {
    let lines = log_of(4, LogForm::Json);
    let first: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    for (field, value) in [
        ("/kind", "decision"),
        ("/at", "2023-11-14T22:13:20.123Z"),
        ("/source/id", "spiffe://t/web"),
        ("/destination/id", "spiffe://t/db"),
        ("/outcome", "denied"),
        ("/reason", "no-egress-rule"),
        ("/ingress_rule", "SegmentationPolicy db ingress[0]"),
        ("/policy/commit", "deadbeef"),
        ("/executable", "/usr/bin/psql"),
    ] {
        assert_eq!(first.pointer(field).and_then(|v| v.as_str()), Some(value), "{field} in {first:#}");
    }
    assert_eq!((first["epoch"].as_u64(), first["pid"].as_u64(), first["seq"].as_u64()), (Some(7), Some(42), Some(1)));
    for (text, entry) in lines.iter().zip(entries()) {
        assert_eq!(serde_json::from_str::<Entry>(text).expect("an entry"), entry);
    }
}

#[test]
fn ocsf_has_its_fields() {
    let lines = log_of(4, LogForm::Ocsf);
    let all: Vec<serde_json::Value> = lines.iter().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    for event in &all {
        for field in ["activity_id", "category_uid", "class_uid", "type_uid", "time", "metadata", "severity_id"] {
            assert!(!event[field].is_null(), "{field} in {event:#}");
        }
        assert_eq!(event["class_uid"], 4001);
        let kind = event["class_uid"].as_u64().zip(event["activity_id"].as_u64()).map(|(c, a)| c * 100 + a);
        assert_eq!(event["type_uid"].as_u64(), kind);
    }
    let denied = &all[0];
    assert_eq!(
        (&denied["activity_id"], &denied["action_id"], &denied["disposition_id"]),
        (&5.into(), &2.into(), &2.into())
    );
    assert_eq!(denied["dst_endpoint"]["ip"], "2001:db8::1");
    assert_eq!(denied["dst_endpoint"]["name"], "spiffe://t/db");
    assert_eq!(denied["actor"]["process"]["file"]["path"], "/usr/bin/psql");
    assert_eq!(denied["unmapped"]["reason"], "no-egress-rule");
    assert_eq!((&all[1]["activity_id"], &all[1]["count"]), (&6.into(), &12.into()));
}

#[test]
fn a_whole_log_has_no_findings_in_either_form() {
    for form in [LogForm::Json, LogForm::Ocsf] {
        let v = verified(&log_of(20, form).concat());
        assert_eq!((v.findings.len(), v.lines, v.first, v.last), (0, 20, Some(1), Some(20)));
        // The oldest files are gone: it begins later.
        assert!(verified(&log_of(20, form)[7..].concat()).findings.is_empty());
    }
}

#[test]
fn what_was_done_to_a_line_is_said_with_its_number() {
    let lines = log_of(9, LogForm::Json);
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut all = lines.clone();
        change(&mut all);
        verified(&all.concat()).findings.iter().map(|f| (f.line, f.what.clone())).collect::<Vec<_>>()
    };
    let changed = with(&|l| l[4] = l[4].replace("denied", "allowed"));
    assert!(changed.len() == 1 && changed[0].0 == 5 && changed[0].1.contains("changed"), "{changed:?}");
    let removed = with(&|l| drop(l.drain(3..5)));
    assert!(removed.len() == 1 && removed[0].0 == 4 && removed[0].1.contains("2 are missing"), "{removed:?}");
    let swapped = with(&|l| l.swap(2, 3));
    assert!(swapped[0].0 == 3 && swapped.iter().any(|f| f.1.contains("out of order")), "{swapped:?}");
    let doubled = with(&|l| l.insert(3, l[2].clone()));
    assert!(doubled.len() == 1 && doubled[0].0 == 4 && doubled[0].1.contains("repeated"), "{doubled:?}");
    let torn = with(&|l| l[8].truncate(50));
    assert!(torn.len() == 1 && torn[0].0 == 9 && torn[0].1.contains("complete"), "{torn:?}");
    let strange = with(&|l| l[1] = "hello\n".to_owned());
    assert!(strange[0].0 == 2, "{strange:?}");
    let forged = with(&|l| {
        let (text, _) = line(&denial("spiffe://t/x", ""), 0, LogForm::Json, &Chain { sequence: 4, hash: Hash::none() })
            .expect("plain data");
        l[4] = text;
    });
    assert!(forged[0].0 == 5 && forged[0].1.contains("doesn't follow"), "{forged:?}");
    let anew = with(&|l| l.extend(log_of(3, LogForm::Json)));
    assert!(anew.len() == 1 && anew[0].0 == 10 && anew[0].1.contains("new log"), "{anew:?}");
}

#[test]
fn a_hash_that_was_kept_shows_what_the_chain_alone_cannot() {
    let lines = log_of(9, LogForm::Json);
    let kept = open(lines[6].trim_end()).expect("a line").hash;
    let look = |lines: &[String]| {
        let mut v = Verified { wanted: Some(kept.as_str().to_owned()), ..Verified::default() };
        v.read("f", lines.concat().as_bytes()).expect("readable");
        v.end();
        v.findings.len()
    };
    assert_eq!((look(&lines), look(&lines[..7]), look(&lines[..6])), (0, 0, 1));
}

proptest! {
    /// Whatever single byte is changed, it is found.
    #[test]
    fn any_changed_byte_is_found(at in any::<prop::sample::Index>(), to in 32_u8..127, ocsf in any::<bool>()) {
        let form = if ocsf { LogForm::Ocsf } else { LogForm::Json };
        let mut bytes = log_of(6, form).concat().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        let mut v = Verified::default();
        v.read("f", &bytes[..]).expect("readable");
        prop_assert!(!v.findings.is_empty(), "{}", String::from_utf8_lossy(&bytes));
    }

    /// No name can end its line, or reach a terminal as anything but text.
    #[test]
    fn hostile_names_stay_in_their_line(id in any::<String>(), comm in any::<String>(), ocsf in any::<bool>()) {
        let form = if ocsf { LogForm::Ocsf } else { LogForm::Json };
        let (text, _) = line(&denial(&id, &comm), 1, form, &Chain::default()).expect("plain data");
        let body = text.strip_suffix('\n').expect("a line");
        prop_assert!(!body.chars().any(|c| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}')), "{body}");
        prop_assert!(verified(&text).findings.is_empty());
        let back: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let name = if ocsf { &back["src_endpoint"]["name"] } else { &back["source"]["id"] };
        prop_assert_eq!(name.as_str(), Some(id.as_str()));
    }
}

fn append(log: &mut LogFile, n: usize) {
    for i in 0..n {
        let (text, chain) = line(&entries()[i % 4], 0, LogForm::Json, log.chain()).expect("plain data");
        log.append(&text, chain).expect("written");
    }
}

#[test]
fn files_are_put_aside_and_the_chain_goes_on_through_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 4096, 3);
    let (mut log, _) = LogFile::open(&config).expect("made");
    append(&mut log, 60);
    let names = [numbered(&config.path, 2), numbered(&config.path, 1), config.path.clone()];
    let mut v = Verified::default();
    for name in &names {
        let bytes = std::fs::read(name).expect("there");
        assert!(bytes.len() <= 4096);
        v.read("f", &bytes[..]).expect("readable");
    }
    assert!(!numbered(&config.path, 3).exists());
    assert_eq!((v.findings.len(), v.last), (0, Some(60)), "{:?}", v.findings);

    // Goes on after a restart; also right after a rotation.
    drop(log);
    let (log, torn) = LogFile::open(&config).expect("opened");
    assert_eq!((log.chain().sequence, torn), (60, 0));
    drop(log);
    std::fs::rename(&config.path, numbered(&config.path, 1)).expect("renamed");
    assert_eq!(LogFile::open(&config).expect("opened").0.chain().sequence, 60);
}

#[test]
fn an_unfinished_line_is_taken_off_and_a_changed_end_is_put_aside() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 1 << 20, 3);
    let (mut log, _) = LogFile::open(&config).expect("made");
    append(&mut log, 5);
    drop(log);
    let whole = std::fs::read_to_string(&config.path).expect("there");
    std::fs::write(&config.path, format!("{whole}{{\"time\":\"2")).expect("written");
    let (log, torn) = LogFile::open(&config).expect("opened");
    assert_eq!((log.chain().sequence, torn), (5, 10));
    drop(log);
    assert_eq!(std::fs::read_to_string(&config.path).expect("there"), whole);

    std::fs::write(&config.path, whole.replace("no-egress", "no-ingress")).expect("written");
    std::fs::write(&config.path, format!("{}x\n", whole.trim_end())).expect("written");
    let (log, _) = LogFile::open(&config).expect("opened");
    assert_eq!(log.chain().sequence, 0, "nothing is added to what was changed");
    assert!(numbered(&config.path, 1).exists());
}

#[test]
fn a_full_disk_takes_a_line_whole_or_not_at_all() {
    // A file system of 64 KiB, in a mount namespace of this thread alone.
    std::thread::spawn(|| {
        let folder = tempfile::tempdir().expect("a folder");
        // SAFETY: only this thread's view of mounts changes, and the thread ends with the test.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
            .expect("root, as all tests here");
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private");
        mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k")).expect("mounted");
        let config = config(folder.path(), 1 << 20, 2);
        let (mut log, _) = LogFile::open(&config).expect("made");
        let mut refused = 0;
        for _ in 0..300 {
            let (text, chain) = line(&entries()[0], 0, LogForm::Json, log.chain()).expect("plain data");
            refused += u32::from(log.append(&text, chain).is_err());
        }
        assert!(refused > 0);
        let text = std::fs::read_to_string(&config.path).expect("there");
        let v = verified(&text);
        assert!(v.findings.is_empty() && v.lines == u64::from(300 - refused), "{:?}", v.findings);
        rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    })
    .join()
    .expect("no panic");
}
