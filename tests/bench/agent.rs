//! The real agent, looked at from outside: what it says, and what it takes up.

use anyhow::{Context, Result, bail, ensure};
use bulkhead_tests::Agent;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Memory of a process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Memory {
    /// Resident, all kinds together.
    pub(crate) resident: u64,
    /// Of that, its own heap, stacks and the like.
    pub(crate) anonymous: u64,
    /// The greatest that it ever had.
    pub(crate) peak: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/status");
        Self::read(&fs::read_to_string(&file).with_context(|| format!("{file}: has the agent ended?"))?)
    }

    fn read(status: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.parse::<u64>().ok());
            Ok::<_, anyhow::Error>(number.with_context(|| format!("no {name} in kB"))? << 10)
        };
        Ok(Self { resident: field("VmRSS")?, anonymous: field("RssAnon")?, peak: field("VmHWM")? })
    }
}

/// What the kernel holds in the maps that a process has open, in bytes.
pub(crate) fn map_memory(pid: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("has the agent ended?")? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        maps.extend(map_of(&text));
    }
    ensure!(!maps.is_empty(), "the agent holds no maps");
    Ok(maps.values().sum())
}

/// The id of the map and its bytes, if the descriptor is a map's.
fn map_of(fdinfo: &str) -> Option<(u32, u64)> {
    let field = |name: &str| fdinfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    Some((field("map_id")?.parse().ok()?, field("memlock")?.parse().ok()?))
}

/// How many processor seconds it has had.
pub(crate) fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("has the agent ended?")?;
    // The name is in parentheses and may hold anything; what counts comes after it (proc(5): fields 14 and 15).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok());
    let both = ticks(14).zip(ticks(15)).context("/proc/PID/stat isn't as expected")?;
    Ok((both.0 + both.1) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Asks it by the real command for one document of JSON.
pub(crate) fn document(agent: &Agent, command: &str, arguments: &[&str]) -> Result<Value> {
    let out = agent.ask(command, arguments);
    serde_json::from_slice(&out.stdout).with_context(|| {
        format!("bulkhead {command} {}: {}", arguments.join(" "), String::from_utf8_lossy(&out.stderr).trim())
    })
}

/// Waits until its status is as wanted.
pub(crate) fn status_when(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = document(agent, "status", &["--json"])?;
        if wanted(&status) {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within a minute\n{}", agent.log());
        }
        sleep(Duration::from_millis(50));
    }
}

/// How many entries a table holds, as the status tells it.
pub(crate) fn fill(status: &Value, map: &str) -> u64 {
    let maps = status["maps"].as_array().into_iter().flatten();
    maps.filter(|m| m["name"] == map).filter_map(|m| m["used"].as_u64()).sum()
}

/// Bytes of all files in a folder that aren't folders.
pub(crate) fn bytes_in(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))? {
        let meta = entry?.metadata()?;
        sum += if meta.is_file() { meta.len() } else { 0 };
    }
    Ok(sum)
}

/// Bytes as MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes_and_what_is_missing_is_an_error() {
        let status = "Name:\tbulkhead\nVmPeak:\t  999 kB\nVmHWM:\t   80 kB\nVmRSS:\t   64 kB\nRssAnon:\t   40 kB\n";
        let memory = Memory { resident: 64 << 10, anonymous: 40 << 10, peak: 80 << 10 };
        assert_eq!(Memory::read(status).expect("all there"), memory);
        assert!(Memory::read("Name:\tbulkhead\n").is_err(), "a process that has ended has no memory");
        let own = Memory::of(std::process::id()).expect("our own");
        assert!(own.peak >= own.resident && own.resident >= own.anonymous && own.anonymous > 0, "{own:?}");
    }

    #[test]
    fn maps_are_told_from_programs_and_files() {
        let map = "pos:\t0\nflags:\t02000002\nmap_type:\t2\nmax_entries:\t4\nmemlock:\t4096\nmap_id:\t17\n";
        assert_eq!(map_of(map), Some((17, 4096)));
        assert_eq!(map_of("pos:\t0\nprog_type:\t8\nmemlock:\t8192\nprog_id:\t3\n"), None);
        assert_eq!(map_of("pos:\t0\nflags:\t0100002\n"), None);
    }
}
