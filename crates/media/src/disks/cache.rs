//! A bounded cache of blocks: readers ask for a few bytes at a time, often the same ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::source::check;
use crate::{Result, Source, SourceRef};

/// Bytes of a block.
const BLOCK: u64 = 64 << 10;
/// Blocks kept (16 MiB).
const BLOCKS: usize = 256;
/// Reads from this size on are not worth keeping.
const LARGE: usize = 4 * BLOCK as usize;

/// A source with a cache before it. Large reads go straight to the source.
pub struct Cached {
    source: SourceRef,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    blocks: HashMap<u64, (u64, Arc<Vec<u8>>)>,
    clock: u64,
}

impl Cached {
    /// Caches what is read from `source`.
    pub fn new(source: SourceRef) -> Self {
        Self { source, kept: Mutex::default() }
    }

    fn block(&self, index: u64) -> Result<Arc<Vec<u8>>> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.clock += 1;
            let now = kept.clock;
            if let Some((used, block)) = kept.blocks.get_mut(&index) {
                *used = now;
                return Ok(block.clone());
            }
        }
        let start = index * BLOCK;
        let len = BLOCK.min(self.source.size().saturating_sub(start));
        let block = Arc::new(self.source.read_vec(start, len as usize)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.blocks.len() >= BLOCKS {
            kept.evict();
        }
        let now = kept.clock;
        kept.blocks.insert(index, (now, block.clone()));
        Ok(block)
    }
}

impl Kept {
    /// Drops the half that was not used for longest, so that this is rare.
    fn evict(&mut self) {
        let mut times: Vec<u64> = self.blocks.values().map(|(used, _)| *used).collect();
        let middle = times.len() / 2;
        let (_, limit, _) = times.select_nth_unstable(middle);
        let limit = *limit;
        self.blocks.retain(|_, (used, _)| *used > limit);
    }
}

impl Source for Cached {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size(), offset, to.len() as u64)?;
        if to.len() >= LARGE {
            return self.source.read_at(offset, to);
        }
        let mut done = 0;
        while done < to.len() {
            let at = offset + done as u64;
            let block = self.block(at / BLOCK)?;
            let skip = (at % BLOCK) as usize;
            let len = (to.len() - done).min(block.len() - skip);
            to[done..done + len].copy_from_slice(&block[skip..skip + len]);
            done += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Counted(AtomicU64, u64);

    impl Source for Counted {
        fn size(&self) -> u64 {
            self.1
        }

        fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
            check(self.1, offset, to.len() as u64)?;
            self.0.fetch_add(1, Ordering::Relaxed);
            for (n, byte) in to.iter_mut().enumerate() {
                let at = offset + n as u64;
                *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8;
            }
            Ok(())
        }
    }

    #[test]
    fn the_cache_is_bounded_and_right() {
        let size = (BLOCKS as u64 + 50) * BLOCK + 77;
        let counted = Arc::new(Counted(AtomicU64::new(0), size));
        let plain: SourceRef = counted.clone();
        let cached: SourceRef = Arc::new(Cached::new(plain.clone()));
        for (offset, len) in
            [(0, 1), (BLOCK - 3, 6), (size - 80, 80), (5, 3 * BLOCK as usize), (7, LARGE + 1), (size, 0)]
        {
            assert_eq!(cached.read_vec(offset, len).unwrap(), plain.read_vec(offset, len).unwrap());
        }
        let before = counted.0.load(Ordering::Relaxed);
        cached.read_vec(10, 100).unwrap();
        assert_eq!(counted.0.load(Ordering::Relaxed), before, "a kept block is not read again");
        assert!(cached.read_vec(size - 1, 2).is_err());
        let concrete = Cached::new(plain);
        for block in 0..size / BLOCK {
            concrete.read_at(block * BLOCK + 9, &mut [0; 4]).unwrap();
        }
        assert!(concrete.kept.lock().unwrap().blocks.len() <= BLOCKS);
    }
}
