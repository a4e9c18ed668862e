//! Guest-physical memory map: RAM below and above the PCI hole, and what e820 says of it.

/// Where RAM below 4 GiB ends at most; the rest lies above 4 GiB. Here the PCI window starts.
pub const LOW_LIMIT: u64 = 0xc000_0000;
/// Where RAM that does not fit below [`LOW_LIMIT`] continues.
pub const HIGH_BASE: u64 = 1 << 32;

/// VGA memory: not usable as RAM.
const HOLE_START: u64 = 0xa_0000;
/// Option ROM and firmware segments up to 1 MiB: not usable as RAM.
const HOLE_END: u64 = 0x10_0000;
/// Alignment of the 64-bit PCI window's start.
const HIGH_WINDOW_ALIGN: u64 = 32 << 30;
/// Size of the 64-bit PCI window.
const HIGH_WINDOW_SIZE: u64 = 32 << 30;

/// How much RAM is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    /// Bytes of RAM from 0.
    pub low: u64,
    /// Bytes of RAM from 4 GiB.
    pub high: u64,
}

/// Kind of an e820 entry (ACPI 6.4, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum E820Kind {
    /// Usable RAM.
    Ram = 1,
    /// Not usable.
    Reserved = 2,
}

/// One range of the map that an operating system is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// Guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: E820Kind,
}

impl MemoryMap {
    /// The map of a machine with `size` bytes of RAM.
    pub fn new(size: u64) -> Self {
        let low = size.min(LOW_LIMIT);
        Self { low, high: size - low }
    }

    /// Total RAM in bytes.
    pub fn size(&self) -> u64 {
        self.low + self.high
    }

    /// RAM ranges to map, as (gpa, length). RAM lies behind the VGA and ROM segments too.
    pub fn layout(&self) -> Vec<(u64, u64)> {
        let mut layout = vec![(0, self.low)];
        if self.high > 0 {
            layout.push((HIGH_BASE, self.high));
        }
        layout
    }

    /// First address behind all RAM above 4 GiB.
    pub fn high_end(&self) -> u64 {
        HIGH_BASE + self.high
    }

    /// The 64-bit PCI window as (first, last) address.
    pub fn high_window(&self) -> (u64, u64) {
        let start = self.high_end().next_multiple_of(HIGH_WINDOW_ALIGN);
        (start, start + HIGH_WINDOW_SIZE - 1)
    }

    /// What the operating system may use: RAM without the holes below 1 MiB.
    pub fn e820(&self) -> Vec<E820Entry> {
        let ram = |base: u64, end: u64| {
            (end > base).then_some(E820Entry { base, len: end - base, kind: E820Kind::Ram })
        };
        [ram(0, self.low.min(HOLE_START)), ram(HOLE_END, self.low), ram(HIGH_BASE, self.high_end())]
            .into_iter()
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn small_machines_have_low_ram_only() {
        let map = MemoryMap::new(512 * MIB);
        assert_eq!(map.layout(), [(0, 512 * MIB)]);
        let e820: Vec<_> = map.e820().iter().map(|e| (e.base, e.len)).collect();
        assert_eq!(e820, [(0, 0xa_0000), (MIB, 511 * MIB)]);
        assert_eq!(map.high_window(), (32 * GIB, 64 * GIB - 1));
    }

    #[test]
    fn ram_continues_above_the_hole() {
        let map = MemoryMap::new(6 * GIB);
        assert_eq!(map.layout(), [(0, 3 * GIB), (4 * GIB, 3 * GIB)]);
        assert_eq!(map.e820().last().map(|e| (e.base, e.len)), Some((4 * GIB, 3 * GIB)));
        assert_eq!(map.size(), 6 * GIB);
        assert_eq!(MemoryMap::new(3 * GIB).layout().len(), 1);
        assert_eq!(MemoryMap::new(100 * GIB).high_window().0, 128 * GIB);
    }
}
