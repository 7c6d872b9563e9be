//! How little of the program's own code stays in memory.
//!
//! A start runs through much that isn't needed again: arguments and files are read, programs loaded, everything listed.
//! The kernel keeps those pages mapped for as long as nothing else wants the memory. Mapped anew they come out of the page
//! cache, so giving them up costs a few faults, and what is in use is back at once.

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use rustix::mm::{Advice, madvise};

/// Gives up every page of code. What can't be given up stays, which does no harm.
pub fn give_up() {
    let Ok(all) = Process::myself().and_then(|me| me.maps()) else { return };
    for MemoryMap { address: (start, end), .. } in all.iter().filter(|map| is_code(map)) {
        let (Ok(start), Ok(length)) = (usize::try_from(*start), usize::try_from(end - start)) else { continue };
        // SAFETY: a mapping of a file that is never written to through it reads the same when it is mapped anew; it is
        // code, so nobody holds a reference into memory of Rust's there.
        if let Err(e) = unsafe { madvise(std::ptr::with_exposed_provenance_mut(start), length, Advice::LinuxDontNeed) }
        {
            tracing::debug!("pages of code can't be given up: {e}");
        }
    }
}

/// Whether it is code out of a file. Not what the loader wrote addresses into: that would be lost.
fn is_code(map: &MemoryMap) -> bool {
    let MemoryMap { perms, pathname, .. } = map;
    perms.contains(MMPermissions::EXECUTE | MMPermissions::PRIVATE)
        && !perms.contains(MMPermissions::WRITE)
        && matches!(pathname, MMapPath::Path(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of code that are resident.
    fn resident() -> u64 {
        let all = Process::myself().and_then(|me| me.smaps()).expect("what is mapped");
        all.iter().filter(|map| is_code(map)).filter_map(|map| map.extension.map.get("Rss")).sum()
    }

    #[test]
    fn code_that_was_given_up_goes_on() {
        // Whatever ran until here in this process.
        let before = resident();
        give_up();
        assert!(resident() < before, "{} of {before}", resident());
    }
}
