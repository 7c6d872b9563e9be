//! What goes wrong on purpose, one after another, while enforcement must hold.
//!
//! Connections that last go through all of it ([`grid`](super::grid)). Each makes sure that its fault happened: a kill by the container's count of restarts, an outage by asking the API
//! server, a new agent by its pod's UID.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bed::{Bed, SYSTEM};
use super::estate::{self, Truth, WORKLOADS, workload};
use super::grid::{Member, get, items, now};
use super::interrupt::{check, wait};
use crate::run::{self, step};

mod reboot;
mod rollout;

/// All of them.
pub(super) fn tell(bed: &mut Bed) -> Result<()> {
    step("what goes wrong");
    killed(bed)?;
    rolled(bed)?;
    restarted(bed, "kubelets restarted", &["kubelet@node1", "kubelet@node2"])?;
    restarted(bed, "containerd restarted", &["containerd@node1", "containerd@node2"])?;
    restarted(bed, "etcd restarted", &["etcd"])?;
    second(bed)?;
    bad_policy(bed)?;
    outage(bed)?;
    reused(bed)?;
    namespace_deleted(bed)?;
    reboot::run(bed)?;
    rollout::run(bed)?;
    deleted(bed)
}

/// Lets the estate go on for a while.
fn pause(length: Duration) -> Result<()> {
    let end = now() + u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
    while now() < end {
        check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Agents killed without a word, again and again.
fn killed(bed: &mut Bed) -> Result<()> {
    bed.harm("agents killed with -9", |bed| {
        for agent in bed.agents()? {
            let mut kill = bed.state.ctr(&agent.node)?;
            run::run_quietly(kill.args(["tasks", "kill", "--signal", "SIGKILL", &agent.container]))?;
            bed.kills += 1;
            wait("the killed agent to be started again and ready", Duration::from_secs(120), || {
                let now = bed.agents()?.into_iter().find(|a| a.uid == agent.uid).context("the agent's pod is gone")?;
                Ok((now.restarts > agent.restarts && now.ready).then_some(()))
            })?;
        }
        Ok(())
    })
}

/// Every agent replaced, as for a new version.
fn rolled(bed: &mut Bed) -> Result<()> {
    bed.harm("DaemonSet rolled under load", |bed| {
        let before = bed.agents()?;
        bed.kubectl(&["rollout", "restart", "daemonset/bulkhead-agent", "--namespace", SYSTEM])?;
        bed.rolled_out()?;
        let after = bed.agents()?;
        let new = after.iter().filter(|a| before.iter().all(|b| b.uid != a.uid)).count();
        bed.kills += new;
        ensure!(new == before.len(), "{new} of {} agents were replaced", before.len());
        Ok(())
    })
}

/// What agents and pods stand on, ended without a word and started again.
fn restarted(bed: &mut Bed, name: &str, daemons: &[&str]) -> Result<()> {
    bed.harm(name, |bed| {
        for daemon in daemons {
            bed.state.stop(daemon, Duration::ZERO)?;
            bed.kills += 1;
            pause(Duration::from_secs(2))?;
            bed.state.start(daemon)?;
        }
        wait("the API server to answer again", Duration::from_secs(90), || {
            Ok(bed.kubectl(&["get", "nodes", "--request-timeout=2s"]).is_ok().then_some(()))
        })?;
        bed.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "node", "--all"])?;
        bed.rolled_out()
    })
}

/// One more agent on a node, by mistake: it finds that there is one, says so, and nothing changes.
fn second(bed: &mut Bed) -> Result<()> {
    /// "another agent of this instance is running": `bulkhead agent --help`.
    const ALREADY_RUNNING: u64 = 15;
    bed.harm("a second agent on each node", |bed| {
        let mut shipped = get(&bed.state, &["daemonset", "bulkhead-agent", "--namespace", SYSTEM])?;
        let mut spec = shipped["spec"]["template"]["spec"].take();
        spec["restartPolicy"] = "Never".into();
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            spec["containers"][0][probe] = json!(null);
        }
        let before = bed.agents()?;
        for agent in &before {
            let name = format!("second-{}", agent.node);
            spec["nodeName"] = agent.node.as_str().into();
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SYSTEM}, "spec": spec});
            bed.apply(&name, &pod)?;
            let code = wait("the second agent to end", Duration::from_secs(60), || {
                let pod = get(&bed.state, &["pod", &name, "--namespace", SYSTEM])?;
                Ok(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_u64())
            })?;
            let said = bed.kubectl(&["logs", "--namespace", SYSTEM, &name])?;
            bed.expect(
                code == ALREADY_RUNNING && said.contains("another agent"),
                format!("on {} a second agent ends with {code}: {said}", agent.node),
            );
            bed.kubectl(&["delete", "pod", &name, "--namespace", SYSTEM])?;
        }
        let untouched = |a: &super::bed::Agent| before.iter().any(|b| b.uid == a.uid && b.restarts == a.restarts);
        let after = bed.agents()?;
        bed.expect(after.iter().all(|a| a.ready && untouched(a)), format!("an agent was disturbed: {after:?}"));
        bed.examine()
    })
}

/// A namespace deleted with everything in it, policies too, and made anew, enforcing from the start.
fn namespace_deleted(bed: &mut Bed) -> Result<()> {
    const NAME: &str = "billing";
    bed.harm("a namespace deleted", |bed| {
        let gone: Vec<String> = bed.grid.members.iter().filter(|m| is_in(m, NAME)).map(|m| m.name.clone()).collect();
        bed.shaky.extend(gone.iter().cloned());
        bed.shaky.extend(["service report", "service intruder"].map(str::to_owned));
        bed.kubectl(&["delete", "namespace", NAME, "--timeout=120s"])?;
        bed.settle_with(WORKLOADS.iter().filter(|w| w.namespace != NAME).map(|w| w.members()).sum())
    })?;
    bed.harm("and made anew, enforcing", |bed| {
        let (start, keys) = (now(), ["report", "intruder"].map(workload).map(|w| w.map_or(0, |w| w.first_key())));
        bed.apply(NAME, &estate::objects_of(NAME, "enforce"))?;
        bed.apply("policies", &estate::policies("enforce"))?;
        bed.settle()?;
        bed.shaky.extend(bed.grid.members.iter().filter(|m| is_in(m, NAME)).map(|m| m.name.clone()));
        bed.shaky.extend(["service report", "service intruder"].map(str::to_owned));
        bed.grid.read()?;
        let [report, intruder] = keys.map(|key| bed.grid.heard_since(key, start));
        bed.expect(report > 0, "the init container that may reach the database didn't");
        bed.expect(intruder == 0, "the init container that may not reach the database did");
        Ok(())
    })
}

fn is_in(member: &Member, namespace: &str) -> bool {
    workload(member.workload).is_some_and(|w| w.namespace == namespace)
}

/// A policy that passes the schema and not the agent: what was in force stays in force, and it is said.
fn bad_policy(bed: &mut Bed) -> Result<()> {
    const BROKEN: &str = "ClusterSegmentationPolicy/story";
    let broken = json!({
        "apiVersion": "bulkhead.dev/v1alpha1", "kind": "ClusterSegmentationPolicy",
        "metadata": {"name": "story"},
        "spec": {"mode": "enforce", "edges": [{
            "from": [{"id": "spiffe://cluster.local/ns/**x/sa/web"}], "to": [{"id": "spiffe://**"}],
        }]},
    });
    bed.harm("a policy that can't be read", |bed| {
        bed.apply("broken", &broken)?;
        bed.unreadable = true;
        pause(Duration::from_secs(1))?;
        for agent in bed.agents()? {
            // The exit code alone says little: a sidecar's pod is a finding, too.
            let (said, code) = bed.bulkhead(&agent, &["status", "--json"])?;
            // kubectl adds a line about the exit code.
            let status = serde_json::Deserializer::from_str(&said).into_iter::<Value>().next();
            let status = status.and_then(Result::ok).with_context(|| format!("this isn't a status: {said}"))?;
            let named = |f: &Value| f["error"] == true && f["file"] == BROKEN;
            let findings = status["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
            bed.expect(
                code == 1 && findings.iter().any(named),
                format!("on {} status exits with {code} and finds {findings:?} for a broken policy", agent.node),
            );
        }
        Ok(())
    })?;
    bed.harm("and put right", |bed| bed.apply("policies", &estate::policies("enforce")))
}

/// The API server away while pods churn, and agents restarted without it.
fn outage(bed: &mut Bed) -> Result<()> {
    bed.harm("API server away, an agent killed", |bed| {
        let agents = bed.agents()?;
        bed.refusals()?;
        bed.state.stop("kube-apiserver", Duration::ZERO)?;
        ensure!(bed.kubectl(&["get", "nodes", "--request-timeout=2s"]).is_err(), "the API server answers after all");
        let agent = agents.first().context("no agent")?;
        run::run_quietly(bed.state.ctr(&agent.node)?.args(["tasks", "kill", "--signal", "SIGKILL", &agent.container]))?;
        bed.kills += 1;
        pause(Duration::from_secs(30))?;
        bed.state.start("kube-apiserver")?;
        wait("the API server to answer again", Duration::from_secs(90), || {
            Ok(bed.kubectl(&["get", "nodes", "--request-timeout=2s"]).is_ok().then_some(()))
        })?;
        // A scheduler that missed a pod of the same name on another node ends itself; elsewhere a kubelet starts it again.
        for daemon in ["kube-scheduler", "kube-controller-manager"] {
            bed.state.stop(daemon, Duration::from_secs(10))?;
            bed.state.start(daemon)?;
        }
        wait("the agent to be ready again", Duration::from_secs(120), || {
            let now = bed.agents()?.into_iter().find(|a| a.uid == agent.uid).context("the agent's pod is gone")?;
            Ok((now.restarts > agent.restarts && now.ready).then_some(()))
        })?;
        bed.excuse()
    })?;
    // Another pod at every address of the database.
    bed.harm("pods replaced", |bed| {
        let before: Vec<String> = bed.grid.members.iter().map(|m| m.name.clone()).collect();
        bed.shaky.extend(before.iter().cloned());
        bed.kubectl(&["rollout", "restart", "statefulset/db", "--namespace", "data"])?;
        bed.kubectl(&["rollout", "restart", "deployment/cache", "--namespace", "data"])?;
        bed.kubectl(&["rollout", "restart", "deployment/intruder", "--namespace", "billing"])?;
        bed.kubectl(&["rollout", "status", "statefulset/db", "--namespace", "data", "--timeout=120s"])?;
        bed.settle()?;
        bed.shaky.extend(bed.grid.members.iter().map(|m| m.name.clone()));
        bed.shaky.extend(WORKLOADS.iter().map(|w| format!("service {}", w.name)));
        bed.shaky.insert(format!("service {}", estate::BY_HAND));
        Ok(())
    })?;
    bed.harm("and a while later", |_| Ok(()))
}

/// Addresses of the database go to whom nobody lets in: who still believes in the old owner reaches nobody, and the new
/// owner is who it is.
fn reused(bed: &mut Bed) -> Result<()> {
    const MANY: usize = 8;
    bed.harm("addresses reused by another identity", |bed| {
        let all = bed.grid.members.len();
        bed.kubectl(&["scale", "statefulset/db", "--namespace", "data", "--replicas=1"])?;
        let gone: Vec<Member> =
            bed.grid.members.iter().filter(|m| m.name == "db-1" || m.name == "db-2").cloned().collect();
        bed.shaky.extend(gone.iter().map(|m| m.name.clone()));
        bed.shaky.insert("service db".to_owned());
        wait("two pods of the database to be gone", Duration::from_secs(60), || {
            let left = get(&bed.state, &["pods", "--namespace", "data", "--selector", "e2e-member=db"])?;
            Ok((items(&left).count() == 1).then_some(()))
        })?;
        // Every free address would have its turn before one is given again, so the turn is set to where it was given.
        for member in &gone {
            let given = bed.state.var(&member.node)?.join("lib/cni/networks/pods");
            for (family, address) in member.addresses.iter().enumerate() {
                let file = given.join(format!("last_reserved_ip.{family}"));
                ensure!(file.exists(), "{} isn't where addresses are given any more", file.display());
                std::fs::write(&file, before(address)?).with_context(|| format!("can't write {}", file.display()))?;
            }
        }
        bed.kubectl(&["scale", "deployment/intruder", "--namespace", "billing", &format!("--replicas={MANY}")])?;
        // Those who try the old owner go on, until they are told anew.
        wait("the new pods to be there", Duration::from_secs(120), || {
            let pods = get(&bed.state, &["pods", "--namespace", "billing", "--selector", "e2e-member=intruder"])?;
            Ok((items(&pods).filter(|p| p["status"]["podIP"].is_string()).count() == MANY).then_some(()))
        })?;
        pause(Duration::from_secs(5))?;
        bed.settle_with(all - gone.len() + MANY - 1)?;
        let new: Vec<&Member> = bed.grid.members.iter().filter(|m| m.workload == "intruder").collect();
        let taken = gone.iter().filter(|g| new.iter().any(|n| n.addresses.iter().any(|a| g.addresses.contains(a))));
        ensure!(taken.count() > 0, "no address of the database went to an intruder: {gone:?} {new:?}");
        Ok(())
    })?;
    bed.harm("and as before", |bed| {
        bed.shaky.extend(bed.grid.members.iter().filter(|m| m.workload == "intruder").map(|m| m.name.clone()));
        bed.kubectl(&["scale", "deployment/intruder", "--namespace", "billing", "--replicas=1"])?;
        bed.kubectl(&["scale", "statefulset/db", "--namespace", "data", "--replicas=3"])?;
        bed.settle()?;
        bed.shaky.extend(["db-1", "db-2", "service db", "service intruder"].map(str::to_owned));
        Ok(())
    })
}

/// The address before this one.
fn before(address: &str) -> Result<String> {
    Ok(match address.parse().with_context(|| format!("`{address}` is no address"))? {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() - 1).to_string(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() - 1).to_string(),
    })
}

/// How much is pinned on a node.
fn pins(bed: &Bed, node: &str) -> Result<usize> {
    // The kernel has two files there itself.
    let found = ["/sys/fs/bpf", "-mindepth", "1", "-not", "-name", "*.debug"];
    Ok(run::output_of(bed.state.on(node, "find")?.args(found))?.lines().count())
}

/// Makes sure that there is something to take off.
fn pinned(bed: &Bed) -> Result<()> {
    for node in bed.state.nodes() {
        ensure!(pins(bed, node)? > 0, "nothing is pinned on {node}, so nothing can be taken off");
    }
    Ok(())
}

/// Notes every node on which something is left.
fn unpinned(bed: &mut Bed) -> Result<()> {
    for node in bed.nodes() {
        let left = pins(bed, &node)?;
        bed.expect(left == 0, format!("{left} pins are left on {node}"));
    }
    Ok(())
}

/// Everything that deploy/ ships taken away by hand: nobody is kept from anything, and nothing stays on the nodes.
fn deleted(bed: &mut Bed) -> Result<()> {
    bed.step("kubectl delete -k deploy/", Truth::All, |bed| {
        pinned(bed)?;
        bed.refusals()?;
        let shipped = run::root().join("deploy");
        bed.kubectl(&["delete", "-k", &shipped.to_string_lossy(), "--timeout=120s"])?;
        bed.deployed = false;
        bed.may_cut = true;
        bed.excuse()?;
        unpinned(bed)
    })
}
