//! What is commanded over its life: stored, applied, ended.

use super::*;
use crate::identity::Identity;
use crate::inventory::IdentityFacts;
use bulkhead_common::PeerId;

fn clock(seconds: u64) -> Clock {
    Clock { wall: 1_000_000_000 + seconds * 1000, boot: "a".to_owned(), up: seconds * 1000 }
}

#[test]
fn it_comes_back_from_disk_and_damage_is_not_taken_for_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = State::open(dir.path(), "i").expect("state");
    assert_eq!(Overrides::stored(&state).expect("none yet"), Overrides::default());
    let mut o = Overrides::default();
    let id: SpiffeId = "spiffe://t/a".parse().expect("an ID");
    o.revoked.insert(id, Revoked { since: 1, reason: "stolen".to_owned() });
    o.from_file("", clock(0).wall, &clock(0));
    let by = Deadline::after(&clock(0), Duration::from_secs(600));
    o.enforced.insert(Target::Policy("x/db".to_owned()), Enforced { since: 2, confirm_by: Some(by) });
    o.store(&state).expect("stored");
    assert_eq!(Overrides::stored(&state).expect("back"), o);
    state.put(STORED, b"{\"revoked\":").expect("written");
    assert!(Overrides::stored(&state).expect_err("damaged").to_string().contains("damaged"));
}

#[test]
fn what_is_over_goes_and_what_was_confirmed_or_revoked_stays() {
    let mut o = Overrides::default();
    let until = |s| Deadline::after(&clock(0), Duration::from_secs(s));
    o.break_glass.insert(Scope::Node, BreakGlass { deadline: until(60), reason: String::new() });
    o.enforced.insert(Target::Node, Enforced { since: 0, confirm_by: Some(until(30)) });
    o.enforced.insert(Target::Namespace("x".to_owned()), Enforced { since: 0, confirm_by: None });
    let id: SpiffeId = "spiffe://t/a".parse().expect("an ID");
    o.revoked.insert(id, Revoked { since: 0, reason: String::new() });
    assert!(o.sweep(&clock(29)).is_empty());
    assert_eq!(o.trial().map(|(t, _)| t), Some(&Target::Node));
    assert_eq!(o.sweep(&clock(30)), ["nobody confirmed enforcement of node in time: it is turned back"]);
    assert_eq!(o.sweep(&clock(60)), ["break-glass for node is over: enforcing again"]);
    assert_eq!((o.revoked.len(), o.enforced.len(), o.break_glass.len()), (1, 1, 0));
}

#[test]
fn a_file_breaks_the_glass_for_as_long_as_it_says_and_never_for_more_than_a_day() {
    let ends = |text: &str, written: u64, now: u64| -> u64 {
        let mut o = Overrides::default();
        o.from_file(text, clock(written).wall, &clock(now));
        (o.break_glass[&Scope::Node].deadline.until - clock(0).wall) / 1000
    };
    let at = |seconds: u64| rfc3339(clock(seconds).wall);
    assert_eq!(ends("", 0, 0), 3600);
    assert_eq!(ends("the database is down", 0, 60), 3600, "counted from when it was written");
    assert_eq!(ends(&format!("{} the database is down", at(120)), 0, 60), 120);
    assert_eq!(ends(&at(10_000_000), 0, 60), 24 * 3600);
    assert_eq!(ends("", 0, 5000), 5000, "over already");
}

#[test]
fn a_trial_turns_what_it_names_to_enforce_and_nothing_else() {
    let mut inventory = Inventory::default();
    for (n, namespace) in [(256, "x"), (257, "y")] {
        let ids = [format!("spiffe://t/{namespace}").parse().expect("an ID")].into();
        let identity = Identity { namespace: namespace.to_owned(), ids };
        let facts = IdentityFacts { identity, posture: Posture::Audit, ports: BTreeMap::new() };
        inventory.identities.insert(PeerId(n), facts);
    }
    let text = "apiVersion: bulkhead.dev/v1alpha1\nkind: SegmentationPolicy\nmetadata: {name: p, namespace: x}\n\
                spec: {mode: audit, selector: {ids: [spiffe://t/x]}, ingress: {rules: []}}\n";
    let (set, _) = PolicySet::assemble(policy::read("f", text), &PolicySet::default());
    let turned = |target: Target| {
        assert!(target.exists(&set, &inventory), "{target}");
        let mut o = Overrides::default();
        o.enforced.insert(target, Enforced { since: 0, confirm_by: None });
        let mut inventory = inventory.clone();
        o.raise(&mut inventory);
        let set = o.over(set.clone(), BTreeMap::new());
        let postures: Vec<Posture> = inventory.identities.values().map(|f| f.posture).collect();
        (postures, set.iter().next().map(|p| p.mode))
    };
    let (a, e) = (Posture::Audit, Posture::Enforce);
    assert_eq!(turned(Target::Node), (vec![e, e], Some(Mode::Audit)));
    assert_eq!(turned(Target::Namespace("x".to_owned())), (vec![e, a], Some(Mode::Audit)));
    assert_eq!(turned(Target::Policy("p".to_owned())), (vec![a, a], Some(Mode::Enforce)));
    assert_eq!(turned(Target::Policy("x/p".to_owned())), (vec![a, a], Some(Mode::Enforce)));
    assert!(!Target::Policy("q".to_owned()).exists(&set, &inventory));
}
