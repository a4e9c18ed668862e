//! How much memory a guest can have.

use firmware::MemoryMap;
use memory::PAGE_SIZE;

/// Least RAM of a PC: what lies below 1 MiB, and the first MiB that a kernel can go to.
const MIN_SIZE: u64 = 2 << 20;

/// Why a guest can't have this much memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Less than a PC needs.
    #[error("{} of guest memory is too little, a PC needs 2 MiB", spell(*.0))]
    Small(u64),
    /// More than the host has.
    #[error("{} of guest memory is more than this host's RAM ({})", spell(*.size), spell(*.host))]
    Large {
        /// What was asked for.
        size: u64,
        /// The host's RAM.
        host: u64,
    },
    /// The host keeps its size secret.
    #[error("{MEMINFO} does not say how much RAM this host has")]
    Unknown,
}

const MEMINFO: &str = "/proc/meminfo";

/// The memory map of a guest with `size` bytes, in whole pages; refuses what the host can't back.
pub fn memory_map(size: u64) -> Result<MemoryMap, SizeError> {
    let host = std::fs::read_to_string(MEMINFO).ok().and_then(|text| total(&text));
    check(size, host.ok_or(SizeError::Unknown)?)?;
    Ok(MemoryMap::new(size.next_multiple_of(PAGE_SIZE)))
}

fn check(size: u64, host: u64) -> Result<(), SizeError> {
    if size < MIN_SIZE {
        return Err(SizeError::Small(size));
    }
    if size > host {
        return Err(SizeError::Large { size, host });
    }
    Ok(())
}

/// A size for people.
pub(crate) fn spell(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

/// The `MemTotal` line, which counts KiB.
fn total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_guest_can_have_are_refused() {
        assert_eq!(
            memory_map(0).unwrap_err().to_string(),
            "0 bytes of guest memory is too little, a PC needs 2 MiB"
        );
        let error = memory_map(1000 << 40).unwrap_err().to_string();
        assert!(error.starts_with("1048576000 MiB of guest memory is more than"), "{error}");
        assert_eq!(memory_map(4198000).unwrap().size() % PAGE_SIZE, 0);
    }

    #[test]
    fn the_hosts_ram_is_read_from_meminfo() {
        assert_eq!(total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }
}
