//! On the real kernel, as root: with nothing enforced every trick gets through, or says why it can't.

use super::*;

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = all().iter().map(|t| (t.name, t.family)).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
}

#[test]
fn every_trick_works_where_nothing_is_enforced() {
    let ground = Ground::new().expect("needs root");
    let mut failed = Vec::new();
    for (n, trick) in (0..).zip(all()) {
        let started = std::time::Instant::now();
        let nonce = format!("<{}-{n}>", trick.name);
        let result = trick.set_up(&ground, n).map_err(|e| format!("{e:#}")).and_then(|mut stage| {
            let told = stage.play(nonce.as_bytes());
            if stage.got_through(nonce.as_bytes(), PATIENCE) { Ok(()) } else { Err(format!("nothing came: {told:?}")) }
        });
        println!("{:28} {:6} {:?} {:?}", trick.name, trick.family.as_str(), started.elapsed(), result);
        if let Err(why) = result {
            failed.push(format!("{} {}: {why}", trick.name, trick.family.as_str()));
        }
    }
    // What a kernel may lack: these protocols are modules or left out.
    let optional = ["sctp-connect", "dccp-connect", "vsock-loopback", "smc-connect", "tun-device", "nat-"];
    failed.retain(|f| !optional.iter().any(|o| f.starts_with(o)));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
