//! The control plane: etcd, API server, controllers, scheduler, in a place of their own, as a managed cluster has them.
//!
//! The API server runs with what Kubernetes switches on by default (ValidatingAdmissionPolicy, pod security, tokens that
//! name their node), RBAC, NodeRestriction and the aggregation layer, and writes down every request of a service account,
//! so that a test can find one that was refused.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use super::keys::{self, Authority, User};
use super::network::{API_SERVICE, CONTROL, PODS, SERVICES};
use super::process::Process;
use super::state::State;
use super::wait;
use crate::run;

pub(super) const PLACE: &str = "control";

/// How nodes and pods reach the API server.
pub(super) const API: &str = "https://10.246.0.1:6443";

/// Names in the API server's certificate, besides its addresses.
const NAMES: [&str; 5] =
    ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

/// Requests of service accounts, and what became of them.
const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ['system:serviceaccounts']}
- {level: None}
";

/// Starts etcd and the API server, and answers the authority that signs everybody's certificates.
pub(super) fn start(state: &mut State) -> Result<Authority> {
    let folder = state.folder.clone();
    let names: Vec<&str> = NAMES.into_iter().chain(["127.0.0.1", "::1"]).chain(CONTROL).chain(API_SERVICE).collect();
    let keys = folder.join("keys");
    let authority = keys::make(&keys, &names)?;
    let place = state.place(PLACE)?.clone();
    let audit = place.write("audit.yaml", AUDIT)?;
    state.run("etcd", PLACE, "etcd", etcd(&place.folder))?;
    state.run("kube-apiserver", PLACE, "kube-apiserver", api_server(&keys, &audit, &folder.join("log/audit.log")))?;
    open_door(state, &authority)?;
    Ok(authority)
}

/// Waits for the API server, and starts what would give up without it.
pub(super) fn finish(state: &mut State, authority: &Authority) -> Result<()> {
    wait_for_api(state)?;
    let (keys, place) = (state.folder.join("keys"), state.place(PLACE)?.clone());
    for user in ["kube-controller-manager", "kube-scheduler"] {
        let kubeconfig = authority.kubeconfig(API, &User::new(&format!("system:{user}")))?;
        place.write(&format!("{user}.kubeconfig"), &kubeconfig)?;
    }
    state.run("kube-controller-manager", PLACE, "kube-controller-manager", controllers(&keys, &place.folder))?;
    let kubeconfig = option("--kubeconfig", place.folder.join("kube-scheduler.kubeconfig"));
    state.run("kube-scheduler", PLACE, "kube-scheduler", vec![kubeconfig, "--leader-elect=false".to_owned()])
}

/// Waits until the API server says that it is ready.
pub(super) fn wait_for_api(state: &State) -> Result<()> {
    wait::until("the API server", Duration::from_secs(120), || {
        state.require_alive(&["etcd", "kube-apiserver"])?;
        is_ready(state)
    })
}

/// Whether the API server says so.
pub(super) fn is_ready(state: &State) -> Result<bool> {
    Ok(run::collect(state.kubectl().args(["get", "--raw", "/readyz"]))?.status.success())
}

/// Lets the host reach the API server by a loopback port, and writes the administrator's kubeconfig.
fn open_door(state: &mut State, authority: &Authority) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("can't listen on loopback")?;
    let port = listener.local_addr()?.port();
    let xtask = std::env::current_exe().context("where is xtask?")?;
    let log = std::fs::File::create(state.log("door"))?;
    let mut door = state.place(PLACE)?.command(xtask)?;
    door.args(["cluster", "door", "127.0.0.1:6443"]).env(super::place::MARK, &state.folder);
    // The socket stays the host's although the process lives in the other namespace.
    door.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).stdout(log.try_clone()?).stderr(log);
    state.door = Some(Process::of(door.spawn().context("can't start the door")?.id())?);
    state.save()?;
    let admin = User { name: "admin", group: Some("system:masters") };
    let kubeconfig = authority.kubeconfig(&format!("https://127.0.0.1:{port}"), &admin)?;
    keys::write(&state.kubeconfig(), &kubeconfig)
}

fn etcd(folder: &Path) -> Vec<String> {
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    vec![
        option("--data-dir", folder.join("etcd")),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        // Nothing here has to survive the machine.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn api_server(keys: &Path, audit: &Path, log: &Path) -> Vec<String> {
    let key = |name: &str| keys.join(name);
    let mut arguments: Vec<String> = [
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        "--allow-privileged",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--kubelet-preferred-address-types=InternalIP",
        // There is no kube-proxy where the API server is: it talks to a Service's pods directly.
        "--enable-aggregator-routing=true",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--advertise-address={}", CONTROL[0]));
    arguments.push(format!("--service-cluster-ip-range={SERVICES}"));
    for (name, file) in [
        ("--client-ca-file", key("ca.crt")),
        ("--tls-cert-file", key("apiserver.crt")),
        ("--tls-private-key-file", key("apiserver.key")),
        ("--kubelet-client-certificate", key("apiserver-kubelet-client.crt")),
        ("--kubelet-client-key", key("apiserver-kubelet-client.key")),
        ("--requestheader-client-ca-file", key("front-proxy-ca.crt")),
        ("--proxy-client-cert-file", key("front-proxy-client.crt")),
        ("--proxy-client-key-file", key("front-proxy-client.key")),
        ("--service-account-key-file", key("sa.pub")),
        ("--service-account-signing-key-file", key("sa.key")),
        ("--audit-policy-file", audit.to_path_buf()),
        ("--audit-log-path", log.to_path_buf()),
    ] {
        arguments.push(option(name, file));
    }
    arguments
}

fn controllers(keys: &Path, folder: &Path) -> Vec<String> {
    vec![
        option("--kubeconfig", folder.join("kube-controller-manager.kubeconfig")),
        option("--service-account-private-key-file", keys.join("sa.key")),
        option("--root-ca-file", keys.join("ca.crt")),
        option("--cluster-signing-cert-file", keys.join("ca.crt")),
        option("--cluster-signing-key-file", keys.join("ca.key")),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--cluster-cidr={PODS}"),
        // Each node's share is fixed by its number.
        "--allocate-node-cidrs=false".to_owned(),
        "--use-service-account-credentials".to_owned(),
        "--leader-elect=false".to_owned(),
    ]
}

pub(super) fn option(name: &str, file: impl AsRef<Path>) -> String {
    format!("{name}={}", file.as_ref().display())
}
