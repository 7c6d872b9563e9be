//! Orders over the control socket, and what ends by itself.

use super::*;
use crate::app::overrides::Target;
use crate::policy::Scope;
use crate::serve::orders::{Cutting, Done, Order};
use http_body_util::Full;

const WEB: &str = "spiffe://t/web";

impl Rig {
    async fn order(&self, order: &Order) -> Result<Done, String> {
        let stream = tokio::net::UnixStream::connect(self.path("run/b.sock")).await.expect("it listens");
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
        tokio::spawn(connection);
        let body = Full::<Bytes>::from(serde_json::to_vec(order).expect("JSON"));
        let request = hyper::Request::post("/orders").header("host", "x").header("content-type", "application/json");
        let answer = sender.send_request(request.body(body).expect("a request")).await.expect("an answer");
        let status = answer.status();
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&bytes).expect("JSON"));
        }
        Err(format!("{} {}", status.as_u16(), String::from_utf8_lossy(&bytes)))
    }

    fn last(&self) -> Image {
        self.memory().images.last().expect("one is in force").clone()
    }

    fn passes(&self) -> bool {
        let flow = Flow { src: PeerId(256), dst: PeerId(257), proto: 6, port: 5432 };
        verdict::judge(&self.last(), &flow).outcome().passes()
    }
}

fn revoke(id: &str, dry_run: bool) -> Order {
    Order::Revoke { id: id.parse().expect("an ID"), reason: "stolen\u{1b}".to_owned(), dry_run, unseen: false }
}

fn sockets(done: &Done) -> Option<(u64, bool)> {
    done.cut.as_ref().map(|Cutting { sockets, dry_run, .. }| (*sockets, *dry_run))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_id_is_cut_and_stays_so_over_a_restart_until_restored() {
    let rig = Rig::start().await;
    rig.memory().live = true;
    let unknown = rig.order(&revoke("spiffe://t/nobody", false)).await.expect_err("nobody has it");
    assert!(unknown.starts_with("422") && unknown.contains("spiffe://t/nobody"), "{unknown}");

    let dry = rig.order(&revoke(WEB, true)).await.expect("asked");
    assert_eq!((sockets(&dry), rig.memory().images.len()), (Some((1, true)), 1), "{dry:?}");
    assert!(rig.memory().live && rig.status().await.overrides.revoked.is_empty());

    let done = rig.order(&revoke(WEB, false)).await.expect("done");
    assert_eq!(sockets(&done), Some((1, false)), "{done:?}");
    let line = &done.cut.expect("a cut").connections[0];
    assert_eq!((line.source.id.as_str(), line.reason.as_str()), (WEB, "deny-rule"));
    assert_eq!(line.rule.as_deref(), Some("spiffe://t/web is revoked"));
    let status = rig.status().await;
    assert_eq!((status.overrides.revoked[0].reason.as_str(), status.cut_sockets), ("stolen\\u{1b}", 1));
    assert!(status.workloads.iter().any(|w| w.revoked && w.name == "web"), "{status:?}");
    let told: Explained =
        rig.get("/explain?from=spiffe%3A%2F%2Ft%2Fweb&to=spiffe%3A%2F%2Ft%2Fdb&port=5432&protocol=6").await;
    assert!(!told.passes && told.text.contains("spiffe://t/web is revoked"), "{}", told.text);

    let again = Rig::start_in(rig.stop().await).await;
    assert!(!again.passes(), "forgotten over a restart");
    again.order(&Order::Restore { id: WEB.parse().expect("an ID"), again: false }).await.expect("restored");
    assert!(again.passes());
    let restore = |again| Order::Restore { id: WEB.parse().expect("an ID"), again };
    let twice = again.order(&restore(false)).await.expect_err("it isn't revoked");
    assert!(twice.contains("isn't revoked"), "{twice}");
    let twice = again.order(&restore(true)).await.expect("nothing to do");
    assert!(twice.already && twice.text.contains("isn't revoked"), "{twice:?}");
    again.stop().await;
}

/// As the command line gives it to every node of a cluster.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_can_be_given_twice_and_ahead_of_whom_it_is_about() {
    let rig = Rig::start().await;
    let id = "spiffe://t/tomorrow";
    let ahead = Order::Revoke { id: id.parse().expect("an ID"), reason: String::new(), dry_run: false, unseen: true };
    let first = rig.order(&ahead).await.expect("revoked");
    assert!(first.unseen && !first.already, "{first:?}");
    let second = rig.order(&ahead).await.expect("revoked");
    assert!(second.unseen && second.already, "{second:?}");
    assert!(rig.status().await.overrides.revoked.iter().any(|r| r.what == id));
    for order in [
        Order::Confirm { again: true },
        Order::Revert { target: None, again: true },
        Order::Revert { target: Some(Target::Node), again: true },
        Order::EndBreakGlass { again: true },
    ] {
        assert!(rig.order(&order).await.expect("nothing to do").already, "{order:?}");
    }
    let target = Target::Namespace("later".to_owned());
    let trial = Order::Enforce { target, seconds: 60, dry_run: false, unseen: true };
    assert!(rig.order(&trial).await.expect("a trial").unseen);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_in_force_is_taken_back() {
    let rig = Rig::start().await;
    rig.memory().refuse_commits = true;
    let refused = rig.order(&revoke(WEB, false)).await.expect_err("no room");
    assert!(refused.contains("nothing has changed") && refused.contains("no room"), "{refused}");
    assert!(rig.status().await.overrides.revoked.is_empty());
    let stored = std::fs::read_to_string(rig.path("state/default/overrides.json")).expect("written");
    assert!(!stored.contains(WEB), "{stored}");
    rig.memory().refuse_commits = false;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_is_turned_back_unless_confirmed_also_by_the_next_agent() {
    let rig = Rig::start().await;
    let enforce = |seconds| Order::Enforce { target: Target::Node, seconds, dry_run: false, unseen: false };
    // web to db is allowed by a rule on one side alone.
    assert!(rig.passes(), "audited only");
    rig.order(&enforce(3600)).await.expect("a trial");
    assert!(!rig.passes());
    let other = Order::Enforce { target: Target::Policy("db".to_owned()), seconds: 5, dry_run: false, unseen: false };
    assert!(rig.order(&other).await.expect_err("one at a time").contains("node is on trial"));
    rig.order(&Order::Revert { target: None, again: false }).await.expect("reverted");
    assert!(rig.passes());

    rig.order(&enforce(1)).await.expect("a trial");
    rig.until("it is turned back", || async { rig.passes() }).await;
    assert!(rig.order(&Order::Confirm { again: false }).await.expect_err("nothing is on trial").contains("no trial"));

    rig.order(&enforce(1)).await.expect("a trial");
    let folder = rig.stop().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let again = Rig::start_in(folder).await;
    assert!(again.passes() && again.memory().images.len() == 1, "never in force with the next agent");
    again.order(&enforce(1)).await.expect("a trial");
    again.order(&Order::Confirm { again: false }).await.expect("confirmed");
    let kept = Rig::start_in(again.stop().await).await;
    assert!(!kept.passes(), "confirmed for good");
    let e = &kept.status().await.overrides.enforced[0];
    assert_eq!((e.what.as_str(), e.until), ("node", None));
    kept.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn break_glass_opens_its_scope_for_its_time_by_command_or_by_file() {
    let rig = Rig::start().await;
    rig.order(&Order::Enforce { target: Target::Node, seconds: 3600, dry_run: false, unseen: false })
        .await
        .expect("a trial");
    let glass = |scope: &str, seconds| Order::BreakGlass {
        scope: scope.parse().expect("a scope"),
        seconds,
        reason: "an outage".to_owned(),
        unseen: false,
    };
    for scope in ["node", "workload=spiffe://t/web", "workload=spiffe://t/db", "namespace="] {
        assert!(!rig.passes(), "{scope}");
        rig.order(&glass(scope, 3600)).await.expect("broken");
        assert!(rig.passes(), "{scope}");
        let status = rig.status().await;
        assert!(status.overrides.break_glass[0].until.is_some() && status.workloads.iter().any(|w| w.break_glass));
        rig.order(&Order::EndBreakGlass { again: false }).await.expect("ended");
    }
    assert!(rig.order(&glass("namespace=elsewhere", 60)).await.expect_err("nobody is there").contains("nothing here"));
    let Order::BreakGlass { scope, seconds, reason, .. } = glass("namespace=elsewhere", 60) else { panic!("an order") };
    rig.order(&Order::BreakGlass { scope, seconds, reason, unseen: true }).await.expect("for whoever comes");
    assert!(!rig.passes(), "it is nobody here for whom it holds");
    rig.order(&Order::EndBreakGlass { again: false }).await.expect("ended");
    assert!(rig.order(&glass("node", 0)).await.expect_err("no time").contains("at least a second"));
    assert!(rig.order(&glass("node", 90_000)).await.expect_err("too long").contains("24 hours"));

    // A revoked ID stays out.
    rig.order(&revoke(WEB, false)).await.expect("revoked");
    rig.order(&glass("node", 3600)).await.expect("broken");
    assert!(!rig.passes());
    rig.order(&Order::Restore { id: WEB.parse().expect("an ID"), again: false }).await.expect("restored");
    assert!(rig.passes());
    rig.order(&Order::EndBreakGlass { again: false }).await.expect("ended");

    rig.order(&glass("node", 1)).await.expect("broken");
    rig.until("it ends by itself", || async { !rig.passes() }).await;

    std::fs::write(rig.path("state/default/break-glass"), "the database is down\n").expect("written");
    rig.until("the file is seen", || async { rig.passes() }).await;
    // What is in force is told a moment later.
    rig.until("it is told", || async { !rig.status().await.overrides.break_glass.is_empty() }).await;
    let status = rig.status().await;
    let b = &status.overrides.break_glass[0];
    assert_eq!(
        (b.what.as_str(), b.reason.as_str()),
        (Scope::Node.to_string().as_str(), "by file: the database is down")
    );
    assert!(!rig.path("state/default/break-glass").exists());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_set_can_be_asked_what_it_would_cut() {
    let rig = Rig::start().await;
    rig.memory().live = true;
    let ask = |text: &str, enforce| Order::Live { policies: [("db.yaml".to_owned(), text.to_owned())].into(), enforce };
    let same = rig.order(&ask(POLICY, None)).await.expect("asked");
    assert_eq!(sockets(&same), Some((0, true)));
    let shut = rig.order(&ask(&POLICY.replace("5432", "5433"), None)).await.expect("asked");
    assert_eq!(sockets(&shut), Some((1, true)));
    let enforced = rig.order(&ask(POLICY, Some(Target::Node))).await.expect("asked");
    assert_eq!(sockets(&enforced), Some((1, true)), "web's own side would deny");
    let bad = rig.order(&ask(&POLICY.replace("ports", "prots"), None)).await.expect_err("no policy");
    assert!(bad.contains("db.yaml:"), "{bad}");
    assert!(rig.memory().live && rig.memory().images.len() == 1, "only asked");
    rig.stop().await;
}
