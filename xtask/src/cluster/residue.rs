//! What a cluster could leave behind, and whether it did.
//!
//! Links, routes, nft tables and settings of the host are compared with those before; cgroups, processes and mounts are
//! ours by their names and namespaces, so that other work on the machine isn't taken for ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::groups::Hierarchies;
use super::place::{MARK, SETTINGS};
use super::process;
use crate::run::{self, find_program};

/// Settings of the host's network that a cluster makes in its own.
const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Things of the host's own that a cluster doesn't touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inventory {
    links: BTreeSet<String>,
    routes: BTreeSet<String>,
    tables: BTreeSet<String>,
    settings: BTreeSet<String>,
}

impl Inventory {
    pub(super) fn take() -> Result<Self> {
        let mut tables = BTreeSet::new();
        if let Some(nft) = find_program("nft") {
            tables.extend(lines(Command::new(nft).args(["list", "tables"]))?);
        }
        let mut routes: BTreeSet<String> = lines(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
        routes.extend(lines(Command::new("ip").args(["-6", "route", "show", "table", "all"]))?);
        // The name only: counters and flags change by themselves.
        let links = lines(Command::new("ip").args(["-oneline", "link"]))?;
        let links = links.iter().filter_map(|line| Some(line.split(": ").nth(1)?.to_owned())).collect();
        // Temporary routes count down.
        let routes = routes.into_iter().filter(|route| !route.contains(" expires ")).collect();
        let setting =
            |name: &str| Some(format!("{name} {}", fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim()));
        let settings = SETTINGS.iter().chain(&FORWARDING).filter_map(|name| setting(name)).collect();
        Ok(Self { links, routes, tables, settings })
    }

    /// What `self` has that `before` hadn't, for the reader.
    fn since(&self, before: &Self) -> Vec<String> {
        let Self { links, routes, tables, settings } = self;
        let pairs = [
            ("link", links, &before.links),
            ("route", routes, &before.routes),
            ("", tables, &before.tables),
            ("setting", settings, &before.settings),
        ];
        let new = |(kind, now, then): &(&str, &BTreeSet<String>, &BTreeSet<String>)| -> Vec<String> {
            now.difference(then).map(|name| format!("{kind} {name}").trim_start().to_owned()).collect()
        };
        pairs.iter().flat_map(new).collect()
    }
}

fn lines(command: &mut Command) -> Result<BTreeSet<String>> {
    Ok(run::output_of(command)?.lines().map(|line| line.trim_end().to_owned()).collect())
}

/// Traces of a cluster that have outlived it.
#[derive(Debug, Default)]
pub(super) struct Residue {
    /// Certainly ours: processes, cgroups, mounts, namespaces.
    pub(super) ours: Vec<String>,
    /// The host's own things that weren't there before; somebody else's, unless we have a bug.
    pub(super) new: Vec<String>,
}

impl Residue {
    /// Looks for what is left of the cluster in `folder` whose namespaces were `namespaces`.
    pub(super) fn find(
        folder: &Path,
        namespaces: &BTreeSet<String>,
        hierarchies: &Hierarchies,
        before: Option<&Inventory>,
    ) -> Result<Self> {
        let mut ours: Vec<String> =
            hierarchies.remaining().iter().map(|group| format!("cgroup {}", group.display())).collect();
        let mark = format!("{MARK}={}", folder.display());
        for pid in process::all()? {
            let held = namespaces_of(pid).into_iter().any(|held| namespaces.contains(&held));
            let marked = fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|text| text.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()));
            if held || marked {
                let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                ours.push(format!("process {pid} ({})", command.trim()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("can't read the mounts")?;
        let below = folder.display().to_string();
        ours.extend(mounts.lines().filter(|line| line.contains(&below)).map(|line| format!("mount {line}")));
        let namespace = |line: &&str| namespaces.iter().any(|name| line.contains(name.as_str()));
        ours.extend(mounts.lines().filter(namespace).map(|line| format!("namespace that is mounted: {line}")));
        let new = before.map(|before| Ok::<_, anyhow::Error>(Inventory::take()?.since(before))).transpose()?;
        Ok(Self { ours, new: new.unwrap_or_default() })
    }
}

/// The namespaces of a process, as `/proc` writes them (`net:[4026532]`), of the kinds that each place has its own of.
pub(super) fn namespaces_of(pid: u32) -> Vec<String> {
    let name = |kind: &&str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?.into_os_string().into_string().ok();
    ["net", "mnt", "uts"].iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn names_only_what_is_new() {
        let before = Inventory {
            links: set(&["lo", "eth0"]),
            routes: set(&["default"]),
            tables: set(&["table ip x"]),
            settings: set(&["a 1"]),
        };
        let after = Inventory {
            links: set(&["lo", "veth1"]),
            routes: set(&[]),
            tables: set(&["table ip x", "table ip y"]),
            settings: set(&["a 2"]),
        };
        assert_eq!(after.since(&before), ["link veth1", "table ip y", "setting a 2"]);
    }
}
