//! Which blocks a file's bytes are in: a list of extents in the inode, or a tree of them.

use std::ops::{ControlFlow, Range};

use super::super::runs::{Run, Visit};
use super::{KIND, Volume};
use crate::{Error, Fields, Result};

/// Magic numbers of the tree's blocks, `BMAP` and, in version 5, `BMA3`.
const MAGIC: u32 = 0x424d_4150;
const MAGIC_V5: u32 = 0x424d_4133;
/// Deepest tree (`XFS_BTREE_MAXLEVELS`).
const MAX_LEVEL: u16 = 9;

fn bad(what: &str) -> Error {
    Error::corrupt(KIND, what)
}

/// Visits those extents of a list that are among the blocks `range`. `from` is where the last one ended.
pub fn list(
    records: &[u8],
    range: &Range<u64>,
    from: &mut u64,
    visit: &mut Visit,
) -> Result<ControlFlow<()>> {
    for record in records.chunks_exact(16) {
        // 1 bit: reserved but not written; 54: block in the file; 52: block on the disk; 21: how many.
        let (high, low) = (record.u64_be(0).unwrap_or(0), record.u64_be(8).unwrap_or(0));
        let start = high << 1 >> 10;
        let block = (high & 0x1ff) << 43 | low >> 21;
        let count = low & 0x1f_ffff;
        if start < *from {
            return Err(bad("extents out of order"));
        }
        *from = start + count;
        let (first, end) = (start.max(range.start), range.end.min(*from));
        if first >= range.end {
            break;
        }
        if first < end && high >> 63 == 0 {
            let run = Run { logical: first, physical: block + (first - start), count: end - first };
            if visit(run)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The same for a tree whose root is in an inode's fork.
pub fn tree(volume: &Volume, fork: &[u8], range: &Range<u64>, visit: &mut Visit) -> Result<()> {
    let (level, records) = (fork.u16_be(0).unwrap_or(0), fork.u16_be(2).unwrap_or(0));
    if level == 0 || level > MAX_LEVEL {
        return Err(bad("root of a tree of extents"));
    }
    let mut walk = Walk { volume, from: 0, visit };
    let _ = walk.node(fork, 4, level, records, range.clone())?;
    Ok(())
}

struct Walk<'a, 'b> {
    volume: &'a Volume,
    /// Where the last extent ended.
    from: u64,
    visit: &'a mut Visit<'b>,
}

impl Walk<'_, '_> {
    /// Keys ascend strictly and each child gets a part of the range: no more steps than there are blocks in it,
    /// times the depth.
    fn node(
        &mut self,
        node: &[u8],
        header: usize,
        level: u16,
        records: u16,
        range: Range<u64>,
    ) -> Result<ControlFlow<()>> {
        // All keys come first, then all pointers, each with the space for as many as fit.
        let most = node.len().saturating_sub(header) / 16;
        let records = usize::from(records);
        if records > most {
            return Err(bad("too many records in a tree of extents"));
        }
        let key = |index: usize| node.u64_be(header + index * 8);
        for index in 0..records {
            let start = key(index).unwrap_or(0);
            let next = if index + 1 < records { key(index + 1).unwrap_or(0) } else { u64::MAX };
            if next <= start {
                return Err(bad("keys of a tree of extents out of order"));
            }
            if start >= range.end {
                break;
            }
            let part = start.max(range.start)..next.min(range.end);
            if part.is_empty() {
                continue;
            }
            let child = node.u64_be(header + most * 8 + index * 8).unwrap_or(0);
            if self.child(child, level - 1, part)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn child(&mut self, block: u64, level: u16, range: Range<u64>) -> Result<ControlFlow<()>> {
        let sb = &self.volume.sb;
        let mut bytes = vec![0; sb.block_size as usize];
        self.volume.read(sb.block(block, 1)?, &mut bytes)?;
        let (magic, header) = if sb.v5 { (MAGIC_V5, 72) } else { (MAGIC, 24) };
        if bytes.u32_be(0) != Some(magic) || bytes.u16_be(4) != Some(level) {
            return Err(bad("a block of a tree of extents"));
        }
        let records = bytes.u16_be(6).unwrap_or(0);
        if level > 0 {
            return self.node(&bytes, header, level, records, range);
        }
        let end = header + usize::from(records) * 16;
        let records = bytes.get(header..end).ok_or_else(|| bad("too many records in a tree of extents"))?;
        list(records, &range, &mut self.from, self.visit)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::superblock::Superblock;
    use super::*;
    use crate::Bytes;

    /// A record of an extent.
    fn record(start: u64, block: u64, count: u64, unwritten: bool) -> [u8; 16] {
        let high = u64::from(unwritten) << 63 | start << 9 | block >> 43;
        (u128::from(high) << 64 | u128::from(block << 21 | count)).to_be_bytes()
    }

    /// A version 4 tree: a root in the inode, a node in block 1, two leaves in blocks 2 and 3 of 512 bytes.
    #[test]
    fn trees_of_version_4_are_walked() {
        let mut superblock = vec![0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| superblock[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"XFSB");
        put(4, &512u32.to_be_bytes());
        put(8, &64u64.to_be_bytes());
        put(48, &32u64.to_be_bytes());
        put(84, &64u32.to_be_bytes());
        put(88, &1u32.to_be_bytes());
        put(100, &0x2004u16.to_be_bytes());
        put(104, &256u16.to_be_bytes());
        // Logarithms: block, (sector), inode, inodes in a block, blocks in a group
        put(120, &[9, 9, 8, 1, 6]);
        let sb = Superblock::parse(&superblock).unwrap().unwrap();
        let mut image = vec![0u8; 64 * 512];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let most = (512 - 24) / 16 * 8;
        for (block, level, records) in [(1, 1u16, 2u16), (2, 0, 2), (3, 0, 2)] {
            put(block * 512, b"BMAP");
            put(block * 512 + 4, &level.to_be_bytes());
            put(block * 512 + 6, &records.to_be_bytes());
        }
        for (index, (key, child)) in [(0u64, 2u64), (100, 3)].into_iter().enumerate() {
            put(512 + 24 + index * 8, &key.to_be_bytes());
            put(512 + 24 + most + index * 8, &child.to_be_bytes());
        }
        put(1024 + 24, &record(0, 10, 5, false));
        put(1024 + 40, &record(50, 20, 5, true));
        put(1536 + 24, &record(100, 20, 3, false));
        put(1536 + 40, &record(1 << 40, 30, 3, false));
        let volume = Volume { source: Arc::new(Bytes(image)), sb, overlay: None };
        let mut root = vec![0u8; 156];
        root[1] = 2;
        root[3] = 1;
        let pointers = 4 + (156 - 4) / 16 * 8;
        root[pointers..pointers + 8].copy_from_slice(&1u64.to_be_bytes());
        let runs = |range: Range<u64>| {
            let mut runs = Vec::new();
            let mut visit = |run: Run| {
                runs.push((run.logical, run.physical, run.count));
                Ok(ControlFlow::Continue(()))
            };
            tree(&volume, &root, &range, &mut visit).map(|()| runs)
        };
        assert_eq!(runs(0..u64::MAX).unwrap(), [(0, 10, 5), (100, 20, 3), (1 << 40, 30, 3)]);
        assert_eq!(runs(4..102).unwrap(), [(4, 14, 1), (100, 20, 2)]);
        assert_eq!(runs(60..100).unwrap(), []);
        root[1] = 3;
        assert!(tree(&volume, &root, &(0..1), &mut |_| Ok(ControlFlow::Continue(()))).is_err());
    }
}
