//! Guest RAM: how much, where, and on what.

use config::{Tree, value};
use firmware::MemoryMap;
use memory::{Backing, GuestMemory};

use crate::identity::SIZE;
use crate::{Error, Result};

/// Reads `memory.size` and refuses what the host can't back.
pub fn map(tree: &Tree) -> Result<MemoryMap> {
    let expected = "expected a memory size such as 512M or 4G";
    let size = tree.node("").read(SIZE, expected, value::parse_memory_size)?.unwrap_or(0);
    Ok(vm::memory_map(size).map_err(|e| tree.error(SIZE, e.to_string()))?)
}

/// Maps memory that nobody else needs.
pub fn create(tree: &Tree, map: &MemoryMap) -> Result<GuestMemory> {
    GuestMemory::new(&map.layout(), &Backing::Anonymous)
        .map_err(|source| Error::Memory { at: tree.origin(SIZE), source })
}

/// Does what `memory.wired` and `memory.guest_in_core` say; `wired`: a loader asked for it.
pub fn prepare(tree: &Tree, memory: &GuestMemory, wired: bool) -> Result<()> {
    let fail = |key: &'static str| move |source| Error::Memory { at: tree.origin(key), source };
    if tree.flag("memory.guest_in_core")? {
        memory.include_in_core().map_err(fail("memory.guest_in_core"))?;
    }
    if wired || tree.flag("memory.wired")? {
        memory.wire().map_err(fail("memory.wired"))?;
    }
    Ok(())
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
        assert_eq!(map(&tree("4198000")).unwrap().size() % 4096, 0);
    }

    #[test]
    fn ram_is_made_as_asked() {
        let mut t = tree("4M");
        t.set("memory.guest_in_core", "true").unwrap();
        let memory = create(&t, &map(&t).unwrap()).unwrap();
        prepare(&t, &memory, false).unwrap();
        assert!(memory.contains(0, 4 << 20) && !memory.contains(4 << 20, 1));
    }
}
