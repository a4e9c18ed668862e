//! The journal (jbd2): blocks of finished transactions that are not in place yet.
//!
//! Layout: `Documentation/filesystems/ext4/journal.rst`; all numbers are big-endian. What fast commits added since
//! the last full commit is not applied: the file system is read as of that commit, which is consistent.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use super::superblock::{JOURNAL_DEV, SUPERBLOCK};
use super::{KIND, Volume};
use crate::{Error, Fields, Kind, Result, SourceRef};

/// `h_magic` of every block of the journal that isn't a copy of another block.
const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

/// `s_feature_incompat`.
const HAS_64BIT: u32 = 2;
const HAS_CSUM2: u32 = 8;
const HAS_CSUM3: u32 = 0x10;
const HAS_FAST_COMMIT: u32 = 0x20;
/// Those, revocations and asynchronous commits.
const KNOWN: u32 = 0x3f;

/// Tag flag: the block began with the magic number, which was replaced by zeros.
const ESCAPED: u32 = 1;
/// Tag flag: no UUID follows.
const SAME_UUID: u32 = 2;
/// Tag flag: the last one.
const LAST: u32 = 8;

/// Most blocks of a journal that are kept in mind: 4 GiB of 4 KiB, about 40 MB of ours.
const MAX_BLOCKS: usize = 1 << 20;

/// Where the newest copy of a block is in the journal.
struct Copy {
    at: u64,
    escaped: bool,
}

/// What is read instead of blocks in place.
pub struct Overlay {
    source: SourceRef,
    blocks: BTreeMap<u64, Copy>,
}

impl Overlay {
    /// Replaces what was read from `offset` into `to`.
    pub fn apply(&self, offset: u64, to: &mut [u8], size: u64) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        let end = offset + to.len() as u64;
        for (block, copy) in self.blocks.range(offset / size..end.div_ceil(size)) {
            let mut bytes = vec![0; size as usize];
            self.source.read_at(copy.at, &mut bytes)?;
            if copy.escaped {
                bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
            }
            let start = block * size;
            let (first, last) = (start.max(offset), (start + size).min(end));
            to[(first - offset) as usize..(last - offset) as usize]
                .copy_from_slice(&bytes[(first - start) as usize..(last - start) as usize]);
        }
        Ok(())
    }
}

/// First block in the log and on its device, and how many.
type Runs = Vec<(u64, u64, u64)>;

/// The log and where its blocks are.
struct Log {
    source: SourceRef,
    block_size: usize,
    runs: Runs,
    first: u64,
    end: u64,
    incompat: u32,
    seed: u32,
}

fn bad(what: &str) -> Error {
    Error::corrupt(KIND, format!("journal: {what}"))
}

/// Reads the journal. `None` if it is empty or on a device that isn't there.
pub fn replay(volume: &Volume, peers: &[SourceRef]) -> Result<Option<Overlay>> {
    let Some((source, runs, start)) = locate(volume, peers)? else { return Ok(None) };
    let block_size = volume.sb.block_size as usize;
    let mut log = Log { source, block_size, runs, first: 0, end: 0, incompat: 0, seed: 0 };
    let sb = log.block(start)?;
    let kind = sb.u32_be(4);
    if sb.u32_be(0) != Some(MAGIC) || !matches!(kind, Some(SUPERBLOCK_V1 | SUPERBLOCK_V2)) {
        return Err(bad("no superblock"));
    }
    let field = |at| sb.u32_be(at).unwrap_or(0);
    if kind == Some(SUPERBLOCK_V2) {
        log.incompat = field(0x28);
    }
    if log.incompat & !KNOWN != 0 {
        return Err(Error::unsupported(KIND, format!("journal with feature {:#x}", log.incompat & !KNOWN)));
    }
    if field(0xc) as usize != block_size {
        return Err(bad("block size"));
    }
    // `s_num_fc_blks`, 256 if not set.
    let fast = match (log.incompat & HAS_FAST_COMMIT, field(0x54)) {
        (0, _) => 0,
        (_, 0) => 256,
        (_, blocks) => blocks,
    };
    log.first = field(0x14).into();
    log.end = field(0x10).saturating_sub(fast).into();
    log.seed = crc32c(!0, sb.get(0x30..0x40).unwrap_or_default());
    let (start, sequence) = (field(0x1c), field(0x18));
    if start == 0 {
        return Ok(None);
    }
    if log.first == 0 || !(log.first..log.end).contains(&start.into()) {
        return Err(bad("start of the log"));
    }
    let blocks = log.collect(start.into(), sequence)?;
    Ok(Some(Overlay { source: log.source, blocks }))
}

/// The journal's device, its runs on it, and which of its blocks holds its superblock.
fn locate(volume: &Volume, peers: &[SourceRef]) -> Result<Option<(SourceRef, Runs, u64)>> {
    let mut runs = Vec::new();
    if volume.sb.journal_inode == 0 {
        for peer in peers {
            let mut sb = [0u8; 1024];
            if peer.read_at(SUPERBLOCK, &mut sb).is_ok()
                && sb.u16_at(0x38) == Some(0xef53)
                && sb.u32_at(0x60).is_some_and(|incompat| incompat & JOURNAL_DEV != 0)
                && sb.array(0x68) == Some(volume.sb.journal_uuid)
            {
                // Its blocks are numbered from the start of the device; its own superblock follows the other.
                let start = SUPERBLOCK / volume.sb.block_size + 1;
                let blocks = peer.size() / volume.sb.block_size;
                return Ok(Some((peer.clone(), vec![(0, 0, blocks)], start)));
            }
        }
        return Ok(None);
    }
    let inode = volume.inode(volume.sb.journal_inode)?;
    if inode.kind != Kind::File || inode.inline.is_some() {
        return Err(bad("not a file"));
    }
    let blocks = (inode.size / volume.sb.block_size).min(volume.sb.blocks);
    volume.runs(&inode, 0..blocks, &mut |run| {
        if runs.len() > MAX_BLOCKS / 4 || run.physical.saturating_add(run.count) > volume.sb.blocks {
            return Err(bad("its blocks"));
        }
        runs.push((run.logical, run.physical, run.count));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Some((volume.source.clone(), runs, 0)))
}

/// A transaction that is being read.
#[derive(Default)]
struct Transaction {
    copies: Vec<(u64, Copy)>,
    revoked: Vec<u64>,
}

impl Log {
    /// Where a block of the log is, in bytes.
    fn at(&self, logical: u64) -> Result<u64> {
        let index = self.runs.partition_point(|(first, ..)| *first <= logical).checked_sub(1);
        let run =
            index.and_then(|index| self.runs.get(index)).filter(|(first, _, count)| logical - first < *count);
        let (first, physical, _) = run.ok_or_else(|| bad("a block that doesn't exist"))?;
        Ok((physical + (logical - first)) * self.block_size as u64)
    }

    fn block(&self, logical: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.block_size];
        self.source.read_at(self.at(logical)?, &mut bytes)?;
        Ok(bytes)
    }

    fn next(&self, logical: u64) -> u64 {
        if logical + 1 >= self.end { self.first } else { logical + 1 }
    }

    fn checksums(&self) -> bool {
        self.incompat & (HAS_CSUM2 | HAS_CSUM3) != 0
    }

    /// The newest copy of each block in transactions that were finished.
    fn collect(&self, start: u64, mut sequence: u32) -> Result<BTreeMap<u64, Copy>> {
        let mut done: Vec<(u32, u64, Copy)> = Vec::new();
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let mut open = Transaction::default();
        let mut at = start;
        // The log can't have gone around.
        let mut left = self.end - self.first;
        while left > 0 {
            let block = self.block(at)?;
            if block.u32_be(0) != Some(MAGIC) || block.u32_be(8) != Some(sequence) {
                break;
            }
            let before = open.copies.len();
            match block.u32_be(4) {
                Some(DESCRIPTOR) if self.sound(&block, self.block_size - 4) => {
                    at = self.tags(&block, at, &mut open)?;
                }
                Some(REVOKE) if self.sound(&block, self.block_size - 4) => {
                    self.revocations(&block, &mut open);
                }
                // `h_chksum` in the commit block.
                Some(COMMIT) if self.sound(&block, 16) => {
                    for number in open.revoked.drain(..) {
                        revoked.insert(number, sequence);
                    }
                    done.extend(open.copies.drain(..).map(|(number, copy)| (sequence, number, copy)));
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
            if done.len() + open.copies.len() > MAX_BLOCKS || revoked.len() + open.revoked.len() > MAX_BLOCKS
            {
                return Err(Error::TooLarge("the journal of a file system".into()));
            }
            let passed = 1 + open.copies.len().saturating_sub(before) as u64;
            left = left.saturating_sub(passed);
            at = self.next(at);
        }
        let mut blocks = BTreeMap::new();
        for (sequence, number, copy) in done {
            // What was revoked later must not be brought back. Numbers wrap.
            if revoked.get(&number).is_none_or(|revoked| (sequence.wrapping_sub(*revoked) as i32) > 0) {
                blocks.insert(number, copy);
            }
        }
        Ok(blocks)
    }

    /// Takes the tags of a descriptor block at `at`; the last of the blocks that it describes.
    fn tags(&self, block: &[u8], mut at: u64, open: &mut Transaction) -> Result<u64> {
        let wide = self.incompat & HAS_64BIT != 0;
        let csum3 = self.incompat & HAS_CSUM3 != 0;
        let len = match (csum3, self.incompat & HAS_CSUM2 != 0, wide) {
            (true, _, _) => 16,
            (_, csum2, wide) => 8 + if csum2 { 2 } else { 0 } + if wide { 4 } else { 0 },
        };
        let end = self.block_size - if self.checksums() { 4 } else { 0 };
        let mut tag = 12;
        while tag + len <= end {
            let field = |at: usize| block.u32_be(tag + at).unwrap_or(0);
            let flags = if csum3 { field(4) } else { field(4) & 0xffff };
            let high = if wide { u64::from(field(8)) << 32 } else { 0 };
            let number = u64::from(field(0)) | high;
            at = self.next(at);
            open.copies.push((number, Copy { at: self.at(at)?, escaped: flags & ESCAPED != 0 }));
            if flags & LAST != 0 {
                break;
            }
            tag += len + if flags & SAME_UUID == 0 { 16 } else { 0 };
        }
        Ok(at)
    }

    fn revocations(&self, block: &[u8], open: &mut Transaction) {
        let width = if self.incompat & HAS_64BIT != 0 { 8 } else { 4 };
        let used = (block.u32_be(12).unwrap_or(0) as usize).min(block.len());
        for number in block.get(16..used).unwrap_or_default().chunks_exact(width) {
            let number = if width == 8 { number.u64_be(0) } else { number.u32_be(0).map(u64::from) };
            open.revoked.extend(number);
        }
    }

    /// Whether a block's checksum, which is at `at`, is right.
    fn sound(&self, block: &[u8], at: usize) -> bool {
        if !self.checksums() {
            return true;
        }
        let (Some(before), Some(after)) = (block.get(..at), block.get(at + 4..)) else { return false };
        let sum = crc32c(crc32c(crc32c(self.seed, before), &[0; 4]), after);
        block.u32_be(at) == Some(sum)
    }
}

/// CRC-32C as the kernel computes it, without inversions.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // Check value of CRC-32C.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
