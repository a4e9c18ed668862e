//! Which guest-physical pages hold code that an engine has translated.
//!
//! A recompiler must learn of every store to bytes that it has translated, from vCPUs and from
//! devices alike. For each page of RAM this map keeps one 64-bit mask, one bit for each 64-byte
//! line that holds translated code.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::PAGE_SIZE;

/// Bytes that one mask bit stands for: 4096 bytes a page in 64 bits.
const LINE: u64 = 64;

/// Told of device writes that hit translated code.
pub trait CodeWatcher: Send + Sync {
    /// Bytes of the page at guest-physical `page` (page aligned), which holds translated code,
    /// have been written.
    fn code_written(&self, page: u64);
}

/// The masks of one memory region's pages, and whom to tell.
#[derive(Default)]
pub struct CodeMap {
    /// (first page's gpa, masks), sorted by gpa; one a region.
    regions: Vec<(u64, Box<[AtomicU64]>)>,
    watcher: OnceLock<Arc<dyn CodeWatcher>>,
}

impl CodeMap {
    pub(crate) fn new(ranges: impl Iterator<Item = (u64, u64)>) -> Self {
        let regions = ranges
            .map(|(gpa, len)| (gpa, (0..len.div_ceil(PAGE_SIZE)).map(|_| AtomicU64::new(0)).collect()))
            .collect();
        Self { regions, watcher: OnceLock::new() }
    }

    /// Registers the engine's watcher; the first one stays.
    pub fn watch(&self, watcher: Arc<dyn CodeWatcher>) {
        let _ = self.watcher.set(watcher);
    }

    /// The mask of the page that holds `gpa`, or `None` where there is no RAM.
    pub fn mask(&self, gpa: u64) -> Option<&AtomicU64> {
        self.regions.iter().find_map(|(base, masks)| {
            let index = gpa.checked_sub(*base)? / PAGE_SIZE;
            masks.get(usize::try_from(index).ok()?)
        })
    }

    /// Mask bits of the lines that `len` bytes at page offset `offset` touch; the range ends at
    /// the page's end.
    pub fn lines(offset: u64, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let first = (offset % PAGE_SIZE) / LINE;
        let last = ((offset % PAGE_SIZE + len - 1) / LINE).min(63);
        (u64::MAX >> (63 - (last - first))) << first
    }

    /// Tells the watcher of a completed write of `len` bytes at `gpa` by something other than a
    /// vCPU of the engine itself.
    pub fn note_write(&self, gpa: u64, len: u64) {
        let Some(watcher) = self.watcher.get() else { return };
        let (mut at, end) = (gpa, gpa.saturating_add(len));
        while at < end {
            let page = at & !(PAGE_SIZE - 1);
            let next = page.saturating_add(PAGE_SIZE).min(end);
            if let Some(mask) = self.mask(page)
                && mask.load(Ordering::SeqCst) & Self::lines(at, next - at) != 0
            {
                watcher.code_written(page);
            }
            if next <= at {
                break;
            }
            at = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cover_exactly_the_bytes_written() {
        assert_eq!(CodeMap::lines(0, 1), 1);
        assert_eq!(CodeMap::lines(63, 2), 3);
        assert_eq!(CodeMap::lines(0, 4096), u64::MAX);
        assert_eq!(CodeMap::lines(4032, 64), 1 << 63);
        assert_eq!(CodeMap::lines(4095, 100), 1 << 63);
        assert_eq!(CodeMap::lines(5, 0), 0);
    }
}
