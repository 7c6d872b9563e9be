//! What the loaded programs let through, by real sockets; the receiver decides.

use bulkhead::inventory::Posture;
use bulkhead_common::{Outcome, Reason};
use bulkhead_tests::{Enforced, Estate, Reply, Via, at, passes};

const WEB_TO_DATABASE: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentationPolicy
metadata: {name: web-to-database}
spec:
  mode: enforce
  edges:
    - from: [{id: spiffe://test/web}]
      to: [{id: spiffe://test/database}]
      ports: [{protocol: TCP, port: 5432}, {protocol: UDP, port: 5432}]
";

/// Every way from one workload to another's port: all of them must get through, or none.
fn try_all(
    estate: &Estate,
    from: &str,
    to: &str,
    port: u16,
    server: &mut bulkhead_tests::Process,
) -> Vec<(Via, bool, bool)> {
    let mut seen = Vec::new();
    for v6 in [false, true] {
        for via in Via::ALL {
            let (got, told) = passes(estate.get(from), at(estate.get(to), v6, port), via, server);
            eprintln!("{from} to {to}:{port} by {via:?} v6={v6}: received={got} told={told:?}");
            seen.push((via, v6, got));
        }
    }
    seen
}

#[test]
fn enforce_lets_through_what_a_rule_allows_and_nothing_else() {
    let estate = Estate::new(&["web", "database", "intruder"]);
    let mut server = estate.get("database").serve(&[5432, 9999], Reply::Echo).expect("a server");
    let mut enforced = Enforced::over(&estate, Posture::Enforce, WEB_TO_DATABASE);
    assert!(try_all(&estate, "web", "database", 5432, &mut server).iter().all(|(.., got)| *got));
    assert!(try_all(&estate, "web", "database", 9999, &mut server).iter().all(|(.., got)| !*got));
    assert!(try_all(&estate, "intruder", "database", 5432, &mut server).iter().all(|(.., got)| !*got));
    let (web, database, intruder) = (enforced.peer("web"), enforced.peer("database"), enforced.peer("intruder"));
    // Each of six ways is counted once at either end.
    assert_eq!(enforced.counted(web, database, Outcome::Allowed), 12);
    assert_eq!(enforced.counted(intruder, database, Outcome::Denied), 6);
    let denied = enforced.edges().into_iter().filter(|(k, _)| k.outcome == Outcome::Denied as u8);
    for (k, n) in denied {
        assert_eq!(Reason::from_u8(k.reason), Some(Reason::NoEgressRule), "{k:?} {n}");
    }
}

#[test]
fn observe_and_audit_let_everything_through_and_say_what_they_saw() {
    let estate = Estate::new(&["web", "database", "intruder"]);
    let mut server = estate.get("database").serve(&[5432], Reply::Echo).expect("a server");
    let mut enforced = Enforced::over(&estate, Posture::Observe, "");
    assert!(try_all(&estate, "intruder", "database", 5432, &mut server).iter().all(|(.., got)| *got));
    let (intruder, database) = (enforced.peer("intruder"), enforced.peer("database"));
    assert_eq!(enforced.counted(intruder, database, Outcome::Allowed), 12);

    enforced.apply(Posture::Audit, WEB_TO_DATABASE);
    assert!(try_all(&estate, "intruder", "database", 5432, &mut server).iter().all(|(.., got)| *got));
    assert_eq!(enforced.counted(intruder, database, Outcome::WouldDeny), 12);
    assert_eq!(enforced.counted(intruder, database, Outcome::Denied), 0);
}
