//! Where the kubelet puts pods: the cgroup above all of a node's pods, and which cgroup below it is which pod.
//!
//! Two drivers name them differently (kubernetes: pkg/kubelet/cm/cgroup_manager_linux.go): cgroupfs
//! `…/kubepods/burstable/pod<uid>`, systemd `…/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`
//! with the UID's hyphens as underscores. Both may have folders above them (kind: `/kubelet`, k3s, a node in a
//! container), which systemd repeats in the names. Guaranteed pods have no folder for their class.

use crate::config::{CgroupGlob, Position};
use crate::sources::hierarchy::{Cgroup, Hierarchy};
use std::path::Path;

/// How deep below the root the pods' cgroup is looked for: a node in a container in a pod is six.
const DEEPEST: u32 = 8;

/// The environment variable that a DaemonSet sets from `metadata.uid`: several nodes may share one kernel, and the agent's
/// own pod tells which of them is its.
const POD_UID: &str = "POD_UID";

/// The cgroup above this node's pods.
///
/// # Errors
/// When there is none, or it isn't clear which.
pub fn attach(hierarchy: &Hierarchy) -> anyhow::Result<Vec<String>> {
    let own = std::env::var(POD_UID).ok().filter(|uid| !uid.is_empty());
    let found = match &own {
        Some(uid) => Pods::holding(hierarchy, uid),
        None => Pods::find(hierarchy),
    };
    match &found[..] {
        [one] => Ok(vec![one.path.clone()]),
        [] => anyhow::bail!(
            "no kubepods cgroup{} below {}: is the host's /sys/fs/cgroup mounted? Or name it under `attach`",
            own.map(|uid| format!(" with the agent's own pod {uid}")).unwrap_or_default(),
            hierarchy.mount.display()
        ),
        several => anyhow::bail!(
            "{} kubepods cgroups ({}): name this node's under `attach`, or set POD_UID from metadata.uid",
            several.len(),
            several.iter().map(|p| p.path.as_str()).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The cgroup of the agent's own pod, if it runs in one below these attach points.
pub fn own(hierarchy: &Hierarchy, attach: &[String]) -> Option<Cgroup> {
    let uid = std::env::var(POD_UID).ok().filter(|uid| !uid.is_empty())?;
    let names = attach.iter().filter_map(|path| Pods::at(path)).flat_map(|pods| pods.names(&uid));
    names.filter_map(|path| hierarchy.cgroup(&path).ok()).next()
}

/// Where a node's pods are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pods {
    /// The cgroup above all of them, from the root of the hierarchy.
    pub path: String,
}

impl Pods {
    /// The pods' cgroup at this path, if it is named like one.
    pub fn at(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next()?;
        let systemd = name == "kubepods.slice" || name.ends_with("-kubepods.slice");
        (name == "kubepods" || systemd).then(|| Self { path: path.to_owned() })
    }

    /// All there are in the hierarchy. What lies below one isn't looked at: a node in a pod has its own agent.
    pub fn find(hierarchy: &Hierarchy) -> Vec<Self> {
        let mut found = Vec::new();
        walk(&hierarchy.mount, "", 0, &mut found);
        found.sort();
        found
    }

    /// Those that hold the pod with this UID.
    pub fn holding(hierarchy: &Hierarchy, uid: &str) -> Vec<Self> {
        let mut all = Self::find(hierarchy);
        all.retain(|pods| pods.names(uid).iter().any(|name| hierarchy.directory(name).is_dir()));
        all
    }

    /// Where this pod's cgroup may be, one path per class of service.
    fn names(&self, uid: &str) -> [String; 3] {
        let path = &self.path;
        match path.strip_suffix(".slice") {
            None => ["", "/burstable", "/besteffort"].map(|class| format!("{path}{class}/pod{uid}")),
            Some(_) => {
                let stem = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".slice");
                let uid = uid.replace('-', "_");
                ["", "burstable", "besteffort"].map(|class| {
                    if class.is_empty() {
                        format!("{path}/{stem}-pod{uid}.slice")
                    } else {
                        format!("{path}/{stem}-{class}.slice/{stem}-{class}-pod{uid}.slice")
                    }
                })
            }
        }
    }

    /// The patterns for the cgroup of this pod. None for a UID that no pod can have, so that nobody's cgroup fits.
    pub fn patterns(&self, uid: &str) -> Vec<CgroupGlob> {
        if uid.is_empty() || !uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Vec::new();
        }
        self.names(uid).iter().filter_map(|path| CgroupGlob::fixed(path, Position::default())).collect()
    }
}

fn walk(directory: &Path, path: &str, depth: u32, found: &mut Vec<Pods>) {
    if depth > DEEPEST {
        return;
    }
    // A cgroup that goes away meanwhile held no pods.
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let child = format!("{path}/{name}");
        match Pods::at(&child) {
            Some(pods) => found.push(pods),
            None => walk(&entry.path(), &child, depth + 1, found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f1c2c3a-0b1d-4e2f-8a9b-0c1d2e3f4a5b";

    #[test]
    fn finds_every_layout() {
        let dir = tempfile::tempdir().expect("a folder");
        let under = UID.replace('-', "_");
        let pods = [
            format!("kubepods/pod{UID}"),
            format!("kubelet/kubepods/besteffort/pod{UID}"),
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice"),
            format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice"),
            "system.slice/docker-1.scope/kubepods/burstable".to_owned(),
            "kubepods-other/pod1".to_owned(),
        ];
        for path in &pods {
            std::fs::create_dir_all(dir.path().join(path)).expect("a folder");
        }
        let h = Hierarchy { mount: dir.path().to_owned(), hybrid: false };
        let paths = |all: Vec<Pods>| all.into_iter().map(|p| p.path).collect::<Vec<_>>();
        let holding = [
            "/kubelet.slice/kubelet-kubepods.slice",
            "/kubelet/kubepods",
            "/kubepods",
            "/kubepods.slice",
            "/system.slice/docker-1.scope/kubepods",
        ];
        assert_eq!(paths(Pods::find(&h)), holding);
        assert_eq!(paths(Pods::holding(&h, UID)), &holding[..4]);
        for (n, path) in pods[..4].iter().enumerate() {
            let path = format!("/{path}");
            let takers: Vec<_> =
                Pods::find(&h).into_iter().filter(|p| p.patterns(UID).iter().any(|g| g.matches(&path))).collect();
            assert_eq!(takers.len(), 1, "{n}: {path}");
        }
    }

    #[test]
    fn a_uid_is_never_a_pattern() {
        let pods = Pods::at("/kubepods").expect("pods");
        for uid in ["", "*", "a/../b", "a{b}", "x y"] {
            assert!(pods.patterns(uid).is_empty(), "{uid}");
        }
        assert!(Pods::at("/kubepods/burstable").is_none() && Pods::at("/a/kubepods-burstable.slice").is_none());
    }
}
