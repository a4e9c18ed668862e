//! Applies the log's transactions in memory.
//!
//! Only what a reader looks at is brought up to date: inodes, and blocks of directories, extents and links. What the
//! kernel would finish from the log's intents (freeing, reference counts) changes none of that, but for exchanges of
//! files' contents that were cut short.

use std::collections::{BTreeMap, HashMap};

use super::log::{Item, Transaction};
use super::{KIND, Volume};
use crate::{Error, Fields, Result, SourceRef};

/// Types of items: `XFS_LI_INODE`, `XFS_LI_BUF`, `XFS_LI_ICREATE`.
const INODE: u16 = 0x123b;
const BUFFER: u16 = 0x123c;
const CREATE: u16 = 0x123f;

/// Flags of a buffer: pointers of unlinked inodes only; no longer in use; quotas of three kinds.
const UNLINKED: u16 = 1;
const CANCEL: u16 = 2;
const QUOTA: u16 = 0x1c;
/// Unit in which changes of buffers are logged (`XFS_BLF_CHUNK`).
const CHUNK: usize = 128;

/// `ilf_fields`: which form of the data fork was logged: data or extents, or the root of a tree.
const FORK_BYTES: u32 = 2 | 4;
const FORK_ROOT: u32 = 8;

const SECTOR: u64 = 512;
/// Most sectors that are kept: 64 MiB.
const MAX_SECTORS: usize = 128 << 10;

/// Sectors that are read instead of those in place.
#[derive(Default)]
pub struct Overlay {
    sectors: BTreeMap<u64, Box<[u8; 512]>>,
}

impl Overlay {
    /// Reads, with what is here instead of what is in place.
    pub fn read(&self, source: &SourceRef, offset: u64, to: &mut [u8]) -> Result<()> {
        source.read_at(offset, to)?;
        let end = offset + to.len() as u64;
        for (number, sector) in self.sectors.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let start = number * SECTOR;
            let (first, last) = (start.max(offset), (start + SECTOR).min(end));
            if first < last {
                to[(first - offset) as usize..(last - offset) as usize]
                    .copy_from_slice(&sector[(first - start) as usize..(last - start) as usize]);
            }
        }
        Ok(())
    }

    /// Puts bytes here.
    fn write(&mut self, source: &SourceRef, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= source.size());
        let end = end.ok_or_else(|| bad("an address"))?;
        for number in offset / SECTOR..end.div_ceil(SECTOR) {
            let start = number * SECTOR;
            let mut sector = Box::new([0; 512]);
            self.read(source, start, &mut sector[..])?;
            let (first, last) = (start.max(offset), (start + SECTOR).min(end));
            sector[(first - start) as usize..(last - start) as usize]
                .copy_from_slice(&bytes[(first - offset) as usize..(last - offset) as usize]);
            if self.sectors.len() >= MAX_SECTORS {
                return Err(Error::TooLarge("the log of a file system".into()));
            }
            self.sectors.insert(number, sector);
        }
        Ok(())
    }
}

fn bad(what: &str) -> Error {
    Error::corrupt(KIND, format!("log: {what}"))
}

/// What must be read instead of blocks in place.
pub fn replay(volume: &Volume, transactions: &[Transaction]) -> Result<Overlay> {
    let mut replay = Replay { volume, overlay: Overlay::default(), cancelled: HashMap::new() };
    for item in transactions.iter().flat_map(|transaction| &transaction.items) {
        if let Some(buffer) = Buffer::new(item)
            && buffer.flags & CANCEL != 0
        {
            *replay.cancelled.entry(buffer.key).or_default() += 1;
        }
    }
    for transaction in transactions {
        replay.transaction(transaction)?;
    }
    Ok(replay.overlay)
}

/// `xfs_buf_log_format`
struct Buffer<'a> {
    flags: u16,
    /// Sector and how many.
    key: (u64, u16),
    /// Which chunks were logged.
    map: &'a [u8],
    regions: &'a [Vec<u8>],
}

impl<'a> Buffer<'a> {
    fn new(item: &'a Item) -> Option<Self> {
        let (format, regions) = item.regions.split_first()?;
        if format.u16_at(0)? != BUFFER {
            return None;
        }
        let words = format.u32_at(16)? as usize;
        let map = format.get(20..20usize.checked_add(words.checked_mul(4)?)?)?;
        Some(Self { flags: format.u16_at(4)?, key: (format.u64_at(8)?, format.u16_at(6)?), map, regions })
    }

    fn logged(&self, chunk: usize) -> bool {
        self.map.get(chunk / 8).is_some_and(|byte| byte >> (chunk % 8) & 1 != 0)
    }
}

struct Replay<'a> {
    volume: &'a Volume,
    overlay: Overlay,
    /// Buffers that were later freed, and how often: what was logged before that must not be written, for it may
    /// be a file's data by now.
    cancelled: HashMap<(u64, u16), u32>,
}

impl Replay<'_> {
    fn transaction(&mut self, transaction: &Transaction) -> Result<()> {
        let kind = |item: &&Item| item.regions.first().and_then(|format| format.u16_at(0));
        let buffers = || transaction.items.iter().filter_map(Buffer::new);
        // Buffers first, inodes then, cancellations last.
        for item in transaction.items.iter().filter(|item| kind(item) == Some(CREATE)) {
            self.create(item)?;
        }
        for buffer in buffers().filter(|buffer| buffer.flags & CANCEL == 0) {
            self.buffer(&buffer, transaction.lsn)?;
        }
        for item in transaction.items.iter().filter(|item| kind(item) == Some(INODE)) {
            self.inode(item, transaction.lsn)?;
        }
        for buffer in buffers().filter(|buffer| buffer.flags & CANCEL != 0) {
            if let Some(times) = self.cancelled.get_mut(&buffer.key) {
                *times -= 1;
                if *times == 0 {
                    self.cancelled.remove(&buffer.key);
                }
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.overlay.read(&self.volume.source, offset, &mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.overlay.write(&self.volume.source, offset, bytes)
    }

    fn buffer(&mut self, buffer: &Buffer, lsn: u64) -> Result<()> {
        if buffer.flags & (UNLINKED | QUOTA) != 0 || self.cancelled.contains_key(&buffer.key) {
            return Ok(());
        }
        let start = buffer.key.0.checked_mul(SECTOR).ok_or_else(|| bad("an address"))?;
        let len = usize::from(buffer.key.1) * SECTOR as usize;
        if self.volume.sb.v5 && self.written(start)?.is_some_and(|written| written >= lsn) {
            return Ok(());
        }
        let mut chunk = 0;
        for region in buffer.regions {
            while chunk < len / CHUNK && !buffer.logged(chunk) {
                chunk += 1;
            }
            // A run of chunks may have been logged as several regions.
            let mut count = 0;
            while buffer.logged(chunk + count) && (count + 1) * CHUNK <= region.len() {
                count += 1;
            }
            let bytes = region.get(..count * CHUNK).unwrap_or_default();
            if (chunk + count) * CHUNK > len {
                return Err(bad("a change past the end of a buffer"));
            }
            self.write(start + (chunk * CHUNK) as u64, bytes)?;
            chunk += count;
        }
        Ok(())
    }

    /// Which transaction a block was written after, if it says so and is of this file system.
    fn written(&self, start: u64) -> Result<Option<u64>> {
        let head = self.read(start, 72)?;
        // Where the sequence number and the UUID are, by magic number.
        let (lsn, uuid) = match &head[..4] {
            b"BMA3" => (32, 40),
            b"XDB3" | b"XDD3" => (16, 24),
            b"XSLM" => (48, 16),
            _ => return Ok(None),
        };
        let ours = head.array(uuid) == Some(self.volume.sb.metadata_uuid);
        Ok(head.u64_be(lsn).filter(|lsn| ours && *lsn != 0 && *lsn != u64::MAX))
    }

    /// `xfs_icreate_log`: new inodes, unused so far. Its numbers are big-endian.
    fn create(&mut self, item: &Item) -> Result<()> {
        let format = item.regions.first().map(Vec::as_slice).unwrap_or_default();
        let field = |at| format.u32_be(at).map(u64::from).ok_or_else(|| bad("new inodes"));
        let (group, block, length) = (field(4)?, field(8)?, field(20)?);
        let sb = &self.volume.sb;
        let start = sb.group_block(group, block, length)?;
        let len = length * sb.block_size;
        // 64 inodes of 2 KiB, or one block.
        if len > 128 << 10 {
            return Err(bad("new inodes"));
        }
        let sectors = start / SECTOR..(start + len) / SECTOR;
        if self.cancelled.keys().any(|(sector, _)| sectors.contains(sector)) {
            return Ok(());
        }
        self.write(start, &vec![0; len as usize])
    }

    /// `xfs_inode_log_format`, the inode without its forks, and its forks if they changed.
    fn inode(&mut self, item: &Item, lsn: u64) -> Result<()> {
        let error = || bad("an inode");
        let format = item.regions.first().ok_or_else(error)?;
        // Some systems had no padding before the inode's number.
        let (number, sector) = if format.len() == 52 { (12, 36) } else { (16, 40) };
        let number = format.u64_at(number).ok_or_else(error)?;
        let key =
            (format.u64_at(sector).ok_or_else(error)?, format.u32_at(sector + 8).ok_or_else(error)? as u16);
        if self.cancelled.contains_key(&key) {
            return Ok(());
        }
        let at = self.volume.sb.inode(number)?;
        let mut raw = self.read(at, self.volume.sb.inode_size)?;
        let core = item.regions.get(1).ok_or_else(error)?;
        let version = core.u8_at(4).ok_or_else(error)?;
        if version >= 3 {
            if raw.u64_be(112).is_some_and(|written| written != u64::MAX && written > lsn) {
                return Ok(());
            }
        } else if let (Some(logged), Some(written)) = (core.u16_at(30), raw.u16_be(30))
            && logged < written
            && !(written == u16::MAX && logged < u16::MAX / 2)
        {
            // `di_flushiter` counts, around its end, how often the inode was written.
            return Ok(());
        }
        big_endian(core, &mut raw, lsn).ok_or_else(error)?;
        let fields = format.u32_at(4).ok_or_else(error)?;
        if fields & (FORK_BYTES | FORK_ROOT) != 0 {
            let logged = item.regions.get(2).ok_or_else(error)?;
            let start = if version >= 3 { 176 } else { 100 };
            let end = match usize::from(raw.u8_at(82).unwrap_or(0)) {
                0 => raw.len(),
                units => start + units * 8,
            };
            let fork = raw.get_mut(start..end).ok_or_else(error)?;
            if fields & FORK_ROOT != 0 {
                root(logged, fork, self.volume.sb.v5).ok_or_else(error)?;
            } else {
                // Logged lengths are rounded up.
                let len = logged.len().min(fork.len());
                fork[..len].copy_from_slice(&logged[..len]);
            }
        }
        self.write(at, &raw)
    }
}

/// The inode as it is on disk, out of how it is logged: little-endian.
fn big_endian(core: &[u8], raw: &mut [u8], lsn: u64) -> Option<()> {
    const NUMBERS: &[(usize, usize)] = &[
        (0, 2),
        (2, 2),
        (8, 4),
        (12, 4),
        (16, 4),
        (20, 2),
        (22, 2),
        (56, 8),
        (64, 8),
        (72, 4),
        (76, 4),
        (80, 2),
        (84, 4),
        (88, 2),
        (90, 2),
        (92, 4),
    ];
    const NUMBERS_3: &[(usize, usize)] = &[(104, 8), (120, 8), (128, 4), (152, 8)];
    if core.u16_at(0)? != 0x494e {
        return None;
    }
    let mut swap = |at: usize, len: usize| -> Option<()> {
        let to = raw.get_mut(at..at + len)?;
        to.copy_from_slice(core.get(at..at + len)?);
        to.reverse();
        Some(())
    };
    NUMBERS.iter().try_for_each(|(at, len)| swap(*at, *len))?;
    let new = core.u8_at(4)? >= 3;
    let flags2 = if new { core.u64_at(120)? } else { 0 };
    // Times are one number with BIGTIME (8), else seconds and nanoseconds; the extents' count has 64 bits with
    // NREXT64 (0x10).
    for at in [32, 40, 48, 144].into_iter().take(if new { 4 } else { 3 }) {
        if flags2 & 8 != 0 {
            swap(at, 8)?;
        } else {
            swap(at, 4)?;
            swap(at + 4, 4)?;
        }
    }
    if flags2 & 0x10 != 0 {
        swap(24, 8)?;
    }
    if new {
        NUMBERS_3.iter().try_for_each(|(at, len)| swap(*at, *len))?;
        raw.get_mut(112..120)?.copy_from_slice(&lsn.to_be_bytes());
        raw.get_mut(160..176)?.copy_from_slice(core.get(160..176)?);
    } else {
        raw.get_mut(30..32)?.fill(0);
    }
    // Version, format, and those of the attributes.
    for range in [4..6, 82..84] {
        raw.get_mut(range.clone())?.copy_from_slice(core.get(range)?);
    }
    Some(())
}

/// The root of a tree of extents. It is logged with the header of a block, and with the space that it has in memory.
fn root(logged: &[u8], fork: &mut [u8], v5: bool) -> Option<()> {
    let header = if v5 { 72 } else { 24 };
    let records = usize::from(logged.u16_be(6)?);
    let most_logged = logged.len().checked_sub(header)? / 16;
    let most = fork.len().checked_sub(4)? / 16;
    if records > most || records > most_logged {
        return None;
    }
    fork.get_mut(..4)?.copy_from_slice(logged.get(4..8)?);
    let parts = [(4, header), (4 + most * 8, header + most_logged * 8)];
    for (to, from) in parts {
        fork.get_mut(to..to + records * 8)?.copy_from_slice(logged.get(from..from + records * 8)?);
    }
    Some(())
}
