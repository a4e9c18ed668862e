//! Chains of clusters, of FAT and of exFAT.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use crate::fs::support::BlockCache;
use crate::{Error, Result, SourceRef};

/// Most clusters of a chain whose place is remembered.
const MAX_MARKS: u64 = 1 << 16;
/// Bytes of the allocation table in one cached block, and how many blocks are cached.
const TABLE_BLOCK: usize = 4096;
const TABLE_BLOCKS: usize = 64;
/// How much of a directory is read at once.
const CHUNK: u64 = 32 << 10;
/// Size of a directory entry.
pub(in crate::fs) const ENTRY: usize = 32;

/// Bits of an entry of the allocation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) enum Width {
    Bits12,
    Bits16,
    /// 28 of them.
    Bits32,
    /// exFAT's, all 32.
    Ex,
}

/// Clusters and the table that links them.
pub(in crate::fs) struct Heap {
    pub(in crate::fs) kind: &'static str,
    pub(in crate::fs) source: SourceRef,
    table: BlockCache,
    pub(in crate::fs) width: Width,
    /// First byte of the table.
    pub(in crate::fs) table_start: u64,
    /// First byte of cluster 2.
    pub(in crate::fs) start: u64,
    /// Bytes of a cluster.
    pub(in crate::fs) cluster: u64,
    /// How many clusters there are.
    pub(in crate::fs) clusters: u32,
}

/// Where a heap is.
pub(in crate::fs) struct Layout {
    pub(in crate::fs) width: Width,
    pub(in crate::fs) table_start: u64,
    pub(in crate::fs) start: u64,
    pub(in crate::fs) cluster: u64,
    pub(in crate::fs) clusters: u32,
}

impl Heap {
    pub(in crate::fs) fn new(kind: &'static str, source: &SourceRef, layout: &Layout) -> Self {
        let &Layout { width, table_start, start, cluster, clusters } = layout;
        let table = BlockCache::new(source.clone(), TABLE_BLOCK, TABLE_BLOCKS);
        Self { kind, source: source.clone(), table, width, table_start, start, cluster, clusters }
    }

    /// The cluster after `cluster`; `None` at the end of its chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = u64::from(cluster);
        let value = match self.width {
            Width::Bits12 => {
                let pair = u16::from_le_bytes(self.table.array(self.table_start + at + at / 2)?);
                u32::from(if cluster & 1 == 0 { pair & 0xfff } else { pair >> 4 })
            }
            Width::Bits16 => u32::from(u16::from_le_bytes(self.table.array(self.table_start + at * 2)?)),
            Width::Bits32 => u32::from_le_bytes(self.table.array(self.table_start + at * 4)?) & 0x0fff_ffff,
            Width::Ex => u32::from_le_bytes(self.table.array(self.table_start + at * 4)?),
        };
        let end = match self.width {
            Width::Bits12 => 0xff8,
            Width::Bits16 => 0xfff8,
            Width::Bits32 => 0x0fff_fff8,
            Width::Ex => 0xffff_fff8,
        };
        if value >= end { Ok(None) } else { self.valid(value).map(Some) }
    }

    /// `cluster`, if there is such a cluster.
    pub(in crate::fs) fn valid(&self, cluster: u32) -> Result<u32> {
        if cluster >= 2 && cluster - 2 < self.clusters {
            return Ok(cluster);
        }
        Err(Error::corrupt(self.kind, format!("cluster {cluster} (of {})", self.clusters)))
    }

    fn cluster_at(&self, cluster: u32) -> u64 {
        self.start + u64::from(cluster - 2) * self.cluster
    }
}

/// The clusters of a file.
pub(in crate::fs) struct Chain {
    pub(in crate::fs) first: u32,
    /// The clusters follow each other, and the table says nothing of them.
    contiguous: bool,
    /// Each so many clusters of the file there is a mark.
    step: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Where cluster 0, `step`, 2 · `step` … of the file are.
    marks: Vec<u32>,
    /// The cluster last looked for: its number in the file, and where it is.
    last: (u64, u32),
}

impl Chain {
    /// A chain of probably `clusters` clusters that starts at `first`.
    pub(in crate::fs) fn new(first: u32, contiguous: bool, clusters: u64) -> Self {
        let step = clusters.div_ceil(MAX_MARKS).max(1);
        let known = Mutex::new(Known { marks: vec![first], last: (0, first) });
        Self { first, contiguous, step, known }
    }

    /// Cluster `index` of the file; `None` after the last one.
    fn cluster(&self, heap: &Heap, index: u64) -> Result<Option<u32>> {
        heap.valid(self.first)?;
        if self.contiguous {
            let cluster = u64::from(self.first).saturating_add(index);
            return heap.valid(u32::try_from(cluster).unwrap_or(u32::MAX)).map(Some);
        }
        // No chain is longer than the heap.
        if index >= u64::from(heap.clusters) {
            return Ok(None);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = (index / self.step).min(known.marks.len() as u64 - 1);
        let (mut at, mut cluster) = (mark * self.step, known.marks[mark as usize]);
        if known.last.0 <= index && known.last.0 > at {
            (at, cluster) = known.last;
        }
        while at < index {
            let Some(next) = heap.next(cluster)? else { return Ok(None) };
            (at, cluster) = (at + 1, next);
            if at == known.marks.len() as u64 * self.step && (known.marks.len() as u64) < MAX_MARKS {
                known.marks.push(cluster);
            }
        }
        known.last = (at, cluster);
        Ok(Some(cluster))
    }

    /// Fills `to` from `offset`; an error if the chain ends before.
    pub(in crate::fs) fn read(&self, heap: &Heap, mut offset: u64, mut to: &mut [u8]) -> Result<()> {
        let short = || Error::corrupt(heap.kind, "a file shorter than its size");
        while !to.is_empty() {
            let within = offset % heap.cluster;
            let mut index = offset / heap.cluster;
            let first = self.cluster(heap, index)?.ok_or_else(short)?;
            let mut last = first;
            let mut len = heap.cluster - within;
            // Clusters that follow each other are read together.
            while len < to.len() as u64 {
                index += 1;
                let next = self.cluster(heap, index)?.ok_or_else(short)?;
                if next != last + 1 {
                    break;
                }
                last = next;
                len += heap.cluster;
            }
            let (now, rest) = to.split_at_mut(len.min(to.len() as u64) as usize);
            heap.source.read_at(heap.cluster_at(first) + within, now)?;
            offset += now.len() as u64;
            to = rest;
        }
        Ok(())
    }
}

/// Where a directory is.
pub(in crate::fs) enum Space {
    /// The root directory of FAT12 and FAT16.
    Fixed { start: u64, len: u64 },
    /// A chain, how long it is if that is known, and how long it may be.
    Chain { chain: Chain, len: Option<u64>, max: u64 },
}

/// Takes the place of a directory entry and its bytes.
pub(in crate::fs) type Visit<'a> = dyn FnMut(u64, &[u8; ENTRY]) -> Result<ControlFlow<()>> + 'a;

impl Space {
    /// Calls `visit` with the place of each entry from `from` on and its bytes.
    pub(in crate::fs) fn each(&self, heap: &Heap, from: u64, visit: &mut Visit) -> Result<()> {
        let mut at = from;
        let mut bytes = Vec::new();
        loop {
            let chunk = if bytes.is_empty() && from > 0 { 1024 } else { CHUNK };
            let (start, len) = match self {
                Self::Fixed { start, len } => (*start + at, len.saturating_sub(at)),
                Self::Chain { len: Some(len), .. } if at >= *len => return Ok(()),
                Self::Chain { chain, max, .. } => {
                    if at >= *max {
                        return Err(Error::corrupt(
                            heap.kind,
                            format!("a directory of more than {max} bytes"),
                        ));
                    }
                    let within = at % heap.cluster;
                    match chain.cluster(heap, at / heap.cluster)? {
                        Some(cluster) => (heap.cluster_at(cluster) + within, heap.cluster - within),
                        None => return Ok(()),
                    }
                }
            };
            bytes.resize(len.min(chunk) as usize, 0);
            if bytes.len() < ENTRY {
                return Ok(());
            }
            heap.source.read_at(start, &mut bytes)?;
            for entry in bytes.as_chunks::<ENTRY>().0 {
                if visit(at, entry)?.is_break() {
                    return Ok(());
                }
                at += ENTRY as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Bytes;

    /// A heap whose clusters of 16 bytes hold their numbers.
    fn heap(width: Width, table: &[u8]) -> Heap {
        let mut bytes = table.to_vec();
        bytes.resize(4096, 0);
        for cluster in 2..100u8 {
            bytes.extend([cluster; 16]);
        }
        let source: SourceRef = Arc::new(Bytes(bytes));
        Heap::new("fat", &source, &Layout { width, table_start: 0, start: 4096, cluster: 16, clusters: 98 })
    }

    #[test]
    fn twelve_bits_share_bytes() {
        // Clusters 2 → 3 → 5, and 4 is the end of a chain of its own.
        let heap = heap(Width::Bits12, &[0, 0, 0, 0x03, 0x50, 0x00, 0xff, 0xff, 0xff]);
        let chain = Chain::new(2, false, 3);
        let mut bytes = [0; 40];
        chain.read(&heap, 8, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[8], bytes[23], bytes[24], bytes[39]), (2, 3, 3, 5, 5));
        assert!(chain.read(&heap, 0, &mut [0; 49]).is_err());
    }

    #[test]
    fn a_chain_is_walked_from_the_nearest_mark() {
        let links: Vec<u8> =
            (0..100u32).flat_map(|n| (if n < 99 { n + 1 } else { 0x0fff_ffff }).to_le_bytes()).collect();
        let heap = heap(Width::Bits32, &links);
        let mut chain = Chain::new(2, false, 98);
        chain.step = 7;
        for index in [0u64, 97, 3, 50, 49, 51, 97] {
            assert_eq!(chain.cluster(&heap, index).unwrap(), Some(index as u32 + 2));
        }
        assert_eq!(chain.cluster(&heap, 98).unwrap(), None);
        assert_eq!(chain.known.lock().unwrap().marks.len(), 14);
    }

    #[test]
    fn loops_and_strays_are_found() {
        let heap = heap(Width::Bits16, &[0, 0, 0, 0, 3, 0, 2, 0, 0xf7, 0xff]);
        let space = Space::Chain { chain: Chain::new(2, false, 1), len: None, max: 1000 };
        let mut count = 0;
        let visit = &mut |_, _: &[u8; ENTRY]| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        };
        // Clusters smaller than an entry end the directory at once.
        assert!(space.each(&heap, 0, visit).is_ok());
        let wide = Heap { cluster: 32, ..heap };
        assert!(space.each(&wide, 0, visit).is_err());
        assert!(count < 40);
        assert!(Chain::new(4, false, 1).read(&wide, 0, &mut [0; 33]).is_err());
        assert!(Chain::new(1, false, 1).read(&wide, 0, &mut [0; 1]).is_err());
        assert!(Chain::new(90, true, 1).read(&wide, 20 * 32, &mut [0; 1]).is_err());
    }
}
