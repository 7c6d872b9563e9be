//! The host's own addresses: whoever is there and isn't a workload is class `host`.

use bulkhead_common::Addr;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Every address of every interface of this network namespace.
///
/// # Errors
/// When the kernel doesn't say.
pub fn host() -> io::Result<BTreeSet<Addr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes a list to `first` that freeifaddrs below takes back.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut all = BTreeSet::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: a non-null entry of the list, which lives until freeifaddrs.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: non-null, and every sockaddr begins with its family.
        match i32::from(unsafe { (*entry.ifa_addr).sa_family }) {
            libc::AF_INET => {
                // SAFETY: the family says that this is a sockaddr_in; libc aligns it.
                let a = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in>() };
                all.insert(Addr::v4(Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)).octets()));
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that this is a sockaddr_in6; libc aligns it.
                let a = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in6>() };
                all.insert(Addr(Ipv6Addr::from(a.sin6_addr.s6_addr).octets()));
            }
            _ => {}
        }
    }
    // SAFETY: `first` came from getifaddrs, and nothing borrows from the list any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_loopback_address() {
        assert!(host().expect("addresses").contains(&Addr::v4([127, 0, 0, 1])));
    }
}
