//! The log: what was written to it since metadata was last in place, as transactions.
//!
//! Layout: the kernel's `fs/xfs/libxfs/xfs_log_format.h`. The log is a ring of sectors; each starts with the number of
//! the round in which it was written (its cycle), so the newest is where that number drops.

use std::collections::HashMap;

use super::superblock::Superblock;
use super::{KIND, Volume};
use crate::{Error, Fields, Result, SourceRef};

/// `XLOG_HEADER_MAGIC_NUM`
const MAGIC: u32 = 0xfeed_babe;
/// A basic block; the log's unit whatever sectors are.
const SECTOR: u64 = 512;
/// `h_fmt`: items are little-endian (`XLOG_FMT_LINUX_LE`).
const LITTLE_ENDIAN: u32 = 1;
/// Largest record (`XLOG_MAX_RECORD_BSIZE`), and with its padding to the log's stripe.
const MAX_RECORD: u64 = 512 << 10;
/// How much a header says the first words of (`XLOG_HEADER_CYCLE_SIZE`).
const PER_HEADER: u64 = 32 << 10;
/// How far back from the end the last sound record is looked for: eight records may be in flight.
const SEARCH: u64 = 8 * MAX_RECORD / SECTOR;
/// Most bytes of transactions that are kept.
const MAX_BYTES: usize = 96 << 20;

/// `oh_flags`
const START: u8 = 1;
const COMMIT: u8 = 2;
const CONTINUE: u8 = 4;
const WAS_CONTINUED: u8 = 8;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;
/// `th_magic`: `TRAN`.
const TRANSACTION: u32 = 0x5452_414e;
/// Bytes of a transaction's header.
const HEADER: usize = 16;

/// A change of one thing: a description, then data.
pub struct Item {
    total: usize,
    /// The pieces that were logged; the first one describes the others.
    pub regions: Vec<Vec<u8>>,
}

/// Changes that are all made or none.
#[derive(Default)]
pub struct Transaction {
    /// Where it started in the log.
    pub lsn: u64,
    pub items: Vec<Item>,
    header: Vec<u8>,
}

/// A record: transactions' pieces that were written at once.
struct Record {
    lsn: u64,
    tail: u64,
    operations: u32,
    payload: Vec<u8>,
    /// Its length in the log.
    sectors: u64,
}

struct Log {
    source: SourceRef,
    start: u64,
    sectors: u64,
    checksums: bool,
}

fn bad(what: &str) -> Error {
    Error::corrupt(KIND, format!("log: {what}"))
}

/// The finished transactions that may not be in place. None if the file system was unmounted.
pub fn transactions(volume: &Volume) -> Result<Vec<Transaction>> {
    let sb: &Superblock = &volume.sb;
    let start = sb.block(sb.log.0, sb.log.1)?;
    let log = Log {
        source: volume.source.clone(),
        start,
        sectors: sb.log.1 * sb.block_size / SECTOR,
        checksums: sb.v5,
    };
    let Some(last) = log.last()? else { return Ok(Vec::new()) };
    if last.operations == 1 && last.payload.u8_at(9).is_some_and(|flags| flags & UNMOUNT != 0) {
        return Ok(Vec::new());
    }
    let mut at = last.tail & 0xffff_ffff;
    let mut assembler = Assembler::default();
    let mut left = log.sectors;
    // Up to the last record, or to the first one that is torn.
    while let Some(record) = log.record(at)? {
        let (lsn, sectors) = (record.lsn, record.sectors);
        if lsn > last.lsn || lsn < last.tail || sectors > left {
            break;
        }
        assembler.feed(&record)?;
        left -= sectors;
        at = (at + sectors) % log.sectors;
        if lsn == last.lsn {
            break;
        }
    }
    Ok(assembler.done)
}

impl Log {
    /// `count` sectors from `at`, around the end.
    fn read(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (count * SECTOR) as usize];
        let before = count.min(self.sectors.saturating_sub(at));
        let (first, second) = bytes.split_at_mut((before * SECTOR) as usize);
        self.source.read_at(self.start + at * SECTOR, first)?;
        if !second.is_empty() {
            self.source.read_at(self.start, second)?;
        }
        Ok(bytes)
    }

    fn cycle(&self, at: u64) -> Result<u32> {
        let mut word = [0; 8];
        self.source.read_at(self.start + at * SECTOR, &mut word)?;
        let cycle = word.u32_be(0).filter(|cycle| *cycle != MAGIC).or(word.u32_be(4));
        Ok(cycle.unwrap_or(0))
    }

    /// About where the next record would be written.
    fn head(&self) -> Result<u64> {
        let newest = self.cycle(0)?;
        let (mut low, mut high) = (0, self.sectors);
        // Everything below `low` is of the newest cycle, nothing from `high` on.
        while low < high {
            let middle = u64::midpoint(low, high);
            if self.cycle(middle)? == newest { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The last record that was written whole.
    fn last(&self) -> Result<Option<Record>> {
        if self.sectors == 0 || self.cycle(0)? == 0 {
            return Ok(None);
        }
        let mut at = self.head()?;
        let mut left = SEARCH.min(self.sectors);
        while left > 0 {
            if at == 0 {
                at = self.sectors;
            }
            let count = left.min(at).min(128);
            let bytes = self.read(at - count, count)?;
            for index in (0..count).rev() {
                if bytes.u32_be((index * SECTOR) as usize) == Some(MAGIC)
                    && let Some(record) = self.record(at - count + index)?
                {
                    return Ok(Some(record));
                }
            }
            at -= count;
            left -= count;
        }
        Ok(None)
    }

    /// The record at a sector; `None` if it isn't there or isn't whole.
    fn record(&self, at: u64) -> Result<Option<Record>> {
        if at >= self.sectors {
            return Ok(None);
        }
        let header = self.read(at, 1)?;
        let field = |at| header.u32_be(at).unwrap_or(0);
        let (cycle, version, len, size) = (field(4), field(8), u64::from(field(12)), u64::from(field(320)));
        // `h_lsn` is where the record is.
        let lsn = u64::from(cycle) << 32 | at;
        if field(0) != MAGIC || header.u64_be(16) != Some(lsn) || field(300) != LITTLE_ENDIAN {
            return Ok(None);
        }
        let headers = if version & 2 != 0 { size.div_ceil(PER_HEADER).max(1) } else { 1 };
        let sectors = headers + len.div_ceil(SECTOR);
        if len > MAX_RECORD || headers > MAX_RECORD / PER_HEADER || sectors > self.sectors {
            return Ok(None);
        }
        let mut bytes = self.read(at, sectors)?;
        for (index, sector) in bytes.chunks_exact(SECTOR as usize).enumerate().skip(1) {
            // What has gone around the end is of the next cycle, which is never the magic number.
            let mut expected = cycle.wrapping_add(u32::from(at + index as u64 >= self.sectors));
            if expected == MAGIC {
                expected += 1;
            }
            if sector.u32_be(0) != Some(expected) {
                return Ok(None);
            }
        }
        if self.checksums && !checksum(&bytes, headers as usize, len as usize) {
            return Ok(None);
        }
        let headers = (headers * SECTOR) as usize;
        let mut payload = bytes.split_off(headers);
        // The headers hold the words that the cycle numbers replaced.
        for (index, sector) in payload.chunks_exact_mut(SECTOR as usize).enumerate() {
            let word = if index < 64 { 44 + index * 4 } else { index / 64 * 512 + 4 + index % 64 * 4 };
            if let (Some(word), Some(to)) = (bytes.get(word..word + 4), sector.get_mut(..4)) {
                to.copy_from_slice(word);
            }
        }
        payload.truncate(len as usize);
        Ok(Some(Record {
            lsn,
            tail: header.u64_be(24).unwrap_or(0),
            operations: field(40),
            payload,
            sectors,
        }))
    }
}

/// Whether a record's checksum is right, or was not set. `bytes` are as on disk.
fn checksum(bytes: &[u8], headers: usize, len: usize) -> bool {
    let Some(wanted) = bytes.u32_at(32).filter(|sum| *sum != 0) else { return true };
    // Compilers differ in how long the header's structure is: 328 bytes or, on 32-bit x86, 324.
    [328, 324].into_iter().any(|size| {
        let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
        let mut sum = crc32c::crc32c(part(0, 32));
        sum = crc32c::crc32c_append(sum, &[0; 4]);
        sum = crc32c::crc32c_append(sum, part(36, size));
        // Only those headers count that describe something.
        for index in 1..len.div_ceil(PER_HEADER as usize) {
            sum = crc32c::crc32c_append(sum, part(index * 512, index * 512 + 260));
        }
        crc32c::crc32c_append(sum, part(headers * 512, headers * 512 + len)) == wanted
    })
}

/// Puts transactions together, which are cut into regions, and those into records.
#[derive(Default)]
struct Assembler {
    open: HashMap<u32, Transaction>,
    done: Vec<Transaction>,
    bytes: usize,
}

impl Assembler {
    fn feed(&mut self, record: &Record) -> Result<()> {
        let mut rest = record.payload.as_slice();
        for _ in 0..record.operations {
            let (Some(id), Some(len), Some(flags)) = (rest.u32_be(0), rest.u32_be(4), rest.u8_at(9)) else {
                return Err(bad("an operation"));
            };
            let end = (len as usize).checked_add(12).ok_or_else(|| bad("an operation"))?;
            let data = rest.get(12..end).ok_or_else(|| bad("an operation"))?;
            rest = rest.get(end..).unwrap_or_default();
            self.bytes += data.len() + 64;
            if self.bytes > MAX_BYTES {
                return Err(Error::TooLarge("the log of a file system".into()));
            }
            self.operation(id, flags, data, record.lsn)?;
        }
        Ok(())
    }

    fn operation(&mut self, id: u32, flags: u8, data: &[u8], lsn: u64) -> Result<()> {
        if flags & START != 0 {
            self.open.insert(id, Transaction { lsn, ..Transaction::default() });
            return Ok(());
        }
        if flags & UNMOUNT != 0 {
            return Ok(());
        }
        if flags & COMMIT != 0 {
            self.done.extend(self.open.remove(&id));
            return Ok(());
        }
        let Some(transaction) = self.open.get_mut(&id) else { return Ok(()) };
        match flags & !END {
            0 | CONTINUE => transaction.add(data),
            flags if flags & WAS_CONTINUED != 0 => transaction.append(data),
            _ => Err(bad("flags of an operation")),
        }
    }
}

impl Transaction {
    /// Another region.
    fn add(&mut self, data: &[u8]) -> Result<()> {
        if self.header.len() < HEADER {
            return self.append(data);
        }
        if let Some(item) = self.items.last_mut().filter(|item| item.regions.len() < item.total) {
            item.regions.push(data.to_vec());
            return Ok(());
        }
        // Each description starts with a type and the number of regions.
        let total = data.u16_at(2).filter(|total| *total > 0).ok_or_else(|| bad("an item"))?;
        self.items.push(Item { total: total.into(), regions: vec![data.to_vec()] });
        Ok(())
    }

    /// More of the last region.
    fn append(&mut self, data: &[u8]) -> Result<()> {
        if self.header.len() < HEADER {
            self.header.extend_from_slice(data);
            let magic = self.header.u32_at(0).is_none_or(|magic| magic == TRANSACTION);
            return if magic && self.header.len() <= HEADER {
                Ok(())
            } else {
                Err(bad("header of a transaction"))
            };
        }
        let region = self.items.last_mut().and_then(|item| item.regions.last_mut());
        region.ok_or_else(|| bad("a region"))?.extend_from_slice(data);
        Ok(())
    }
}
