//! The probe with the real programs, on this kernel.

use bulkhead::probe;
use bulkhead::probe::report::{Expectations, Outcome};
use std::path::Path;

#[test]
fn every_trick_ends_as_expected_and_every_hook_is_needed() {
    let report = probe::run(Path::new("/sys/fs/bpf"), true).expect("a report");
    println!("{}", report.table(140));
    let expected: Option<Expectations> = expectations();
    let findings = report.findings(expected.as_ref());
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    assert!(report.count(Outcome::Contained) >= 20);
}

/// What is known of this kernel, by its series; of any other nothing is.
fn expectations() -> Option<Expectations> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let text = match release.splitn(3, '.').take(2).collect::<Vec<_>>().as_slice() {
        ["6", "1"] => include_str!("expectations/6.1.json"),
        ["6", "12"] => include_str!("expectations/6.12.json"),
        ["6", "18"] => include_str!("expectations/host.json"),
        _ => return None,
    };
    Some(serde_json::from_str(text).expect("a valid file"))
}
