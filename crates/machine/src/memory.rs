//! Guest RAM: how much, where, and on what.

use config::{Tree, value};
use firmware::MemoryMap;
use memory::{Backing, GuestMemory, PAGE_SIZE};
use rustix::mm::Advice;

use crate::{Error, Result};

/// The key that asks for RAM.
const SIZE: &str = "memory.size";

/// Least RAM of a PC: what lies below 1 MiB, and the first MiB that a kernel can go to.
const MIN_SIZE: u64 = 2 << 20;

/// Reads `memory.size` and refuses what the host can't back.
pub fn map(tree: &Tree) -> Result<MemoryMap> {
    let expected = "expected a memory size such as 512M or 4G";
    let size = tree.node("").read(SIZE, expected, value::parse_memory_size)?.unwrap_or(0);
    check(tree, size, host_ram()?)?;
    Ok(MemoryMap::new(size.next_multiple_of(PAGE_SIZE)))
}

fn check(tree: &Tree, size: u64, host: u64) -> Result<()> {
    let refuse = |why: String| Err(tree.error(SIZE, why).into());
    if size < MIN_SIZE {
        return refuse(format!("{} of guest memory is too little, a PC needs 2 MiB", spell(size)));
    }
    if size > host {
        return refuse(format!(
            "{} of guest memory is more than this host's RAM ({})",
            spell(size),
            spell(host)
        ));
    }
    Ok(())
}

fn spell(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

/// RAM of the host in bytes.
fn host_ram() -> Result<u64> {
    const MEMINFO: &str = "/proc/meminfo";
    let text =
        std::fs::read_to_string(MEMINFO).map_err(|source| Error::File { path: MEMINFO.into(), source })?;
    parse_total(&text)
        .ok_or_else(|| Error::Part(format!("{MEMINFO} does not say how much RAM this host has")))
}

/// The `MemTotal` line, which counts KiB.
fn parse_total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Maps guest RAM as `memory.wired` and `memory.guest_in_core` say.
pub fn create(tree: &Tree, map: &MemoryMap) -> Result<GuestMemory> {
    let memory = GuestMemory::new(&map.layout(), &Backing::Anonymous)
        .map_err(|source| Error::Memory { at: tree.origin(SIZE), source })?;
    let in_core = tree.flag("memory.guest_in_core")?;
    let wired = tree.flag("memory.wired")?;
    for region in memory.regions() {
        let host =
            memory.host(region.gpa(), region.len()).map_or(std::ptr::null_mut(), |p| p.as_ptr().cast());
        let len = region.len() as usize;
        if in_core {
            // SAFETY: the range is guest RAM that `memory` keeps mapped; the advice changes no byte.
            unsafe { rustix::mm::madvise(host, len, Advice::LinuxDoDump) }
                .map_err(|e| Error::host("memory.guest_in_core")(e.into()))?;
        }
        if wired {
            // SAFETY: as above; pages are only faulted in and kept.
            unsafe { rustix::mm::mlock(host, len) }.map_err(|e| {
                Error::Part(format!("{}: cannot wire guest memory: {e}", tree.origin("memory.wired")))
            })?;
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(size: &str) -> Tree {
        let mut tree = Tree::new();
        tree.set(SIZE, size).unwrap();
        tree
    }

    #[test]
    fn sizes_that_no_guest_can_have_are_refused_in_the_users_words() {
        let error = |size: &str| map(&tree(size)).unwrap_err();
        let zero = error("0");
        assert_eq!(
            (zero.to_string().as_str(), zero.exit_code()),
            ("memory.size=0: 0 bytes of guest memory is too little, a PC needs 2 MiB", 4)
        );
        let huge = error("1000T").to_string();
        assert!(huge.starts_with("memory.size=1000T: 1048576000 MiB of guest memory is more than"), "{huge}");
        assert!(error("x").to_string().contains("expected a memory size"));
    }

    #[test]
    fn the_default_and_odd_sizes_make_whole_pages() {
        assert_eq!(map(&Tree::new()).unwrap().size(), 256 << 20);
        assert_eq!(map(&tree("4097K")).unwrap().size(), (4 << 20) + 4096);
        assert_eq!(map(&tree("4198000")).unwrap().size() % PAGE_SIZE, 0);
    }

    #[test]
    fn the_hosts_ram_is_read_from_meminfo() {
        assert_eq!(parse_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(parse_total("MemFree: 1 kB\n"), None);
        assert!(host_ram().unwrap() > 1 << 20);
    }

    #[test]
    fn ram_is_made_as_asked() {
        let mut t = tree("4M");
        t.set("memory.guest_in_core", "true").unwrap();
        let memory = create(&t, &map(&t).unwrap()).unwrap();
        assert!(memory.contains(0, 4 << 20) && !memory.contains(4 << 20, 1));
    }
}
