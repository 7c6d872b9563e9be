//! What this kernel's verifier makes of the programs.

use bulkhead::inventory::Posture;
use bulkhead_tests::{Enforced, Estate};
use std::time::Duration;

/// Well below the verifier's own limit of a million, since other kernels count otherwise.
const MOST: u32 = 100_000;
const LONGEST: Duration = Duration::from_secs(2);

#[test]
fn no_program_takes_the_verifier_long() {
    let estate = Estate::new(&["web"]);
    let mut enforced = Enforced::over(&estate, Posture::Enforce, "");
    let (programs, timings) = (enforced.datapath().programs(), enforced.datapath().timings());
    for program in &programs {
        eprintln!("{:<12} {:>7?} instructions", program.name, program.verified_insns);
    }
    eprintln!("loaded in {:?}, attached in {:?}", timings.load, timings.attach);
    assert_eq!(programs.len(), 9);
    for program in programs {
        let insns = program.verified_insns.expect("kernels since 5.16 tell");
        assert!(insns > 0 && insns <= MOST, "{}: {insns}", program.name);
    }
    // A guest interprets each instruction of its own; there the time means nothing.
    let emulated = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU"));
    assert!(emulated || timings.load + timings.attach < LONGEST, "{timings:?}");
}
