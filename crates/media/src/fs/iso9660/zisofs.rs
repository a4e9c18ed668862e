//! zisofs: transparently compressed files (the ZF field; version 1, as in Linux).

use std::sync::{Arc, PoisonError};

use flate2::{Decompress, FlushDecompress, Status};

use super::record::Record;
use super::{KIND, Volume};
use crate::{Error, Fields, Result};

/// What a compressed file starts with.
const MAGIC: [u8; 8] = [0x37, 0xe4, 0x53, 0x96, 0xc9, 0xdb, 0xd6, 0x07];

/// How a file is compressed.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// zlib is the only algorithm of version 1.
    known: bool,
    /// Bytes before the table of blocks.
    header: u64,
    block_log: u8,
    size: u32,
}

/// The block unpacked last, with its file and number.
pub(super) type Last = Option<(u64, u64, Arc<Vec<u8>>)>;

impl Packed {
    /// The system use field `ZF`.
    pub(super) fn parse(field: &[u8]) -> Option<Self> {
        let algorithm = field.get(4..6)?;
        let block_log = field.u8_at(7)?;
        Some(Self {
            known: algorithm == b"pz" && (15..=17).contains(&block_log),
            header: u64::from(field.u8_at(6)?) * 4,
            block_log,
            size: field.u32_at(8)?,
        })
    }

    pub(super) fn size(&self) -> u64 {
        u64::from(self.size)
    }

    /// Fills `to` from `offset` of the uncompressed file. All of it is in the file.
    pub(super) fn read(&self, volume: &Volume, record: &Record, offset: u64, to: &mut [u8]) -> Result<()> {
        if !self.known {
            return Err(Error::unsupported(KIND, "compression other than zisofs version 1"));
        }
        let mut magic = [0; 8];
        stored(volume, record, 0, &mut magic)?;
        if magic != MAGIC {
            return Err(Error::corrupt(KIND, "the head of a compressed file"));
        }
        let mut at = offset;
        let mut rest = to;
        while !rest.is_empty() {
            let block = self.block(volume, record, at >> self.block_log)?;
            let within = (at % (1 << self.block_log)) as usize;
            let part = block.len().saturating_sub(within).min(rest.len());
            if part == 0 {
                return Err(Error::corrupt(KIND, "a compressed block that is too short"));
            }
            let (now, later) = rest.split_at_mut(part);
            now.copy_from_slice(block.get(within..within + part).unwrap_or_default());
            rest = later;
            at += part as u64;
        }
        Ok(())
    }

    /// Block `number`, unpacked.
    fn block(&self, volume: &Volume, record: &Record, number: u64) -> Result<Arc<Vec<u8>>> {
        let last = volume.unpacked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((file, block, bytes)) = last
            && (file, block) == (record.id(), number)
        {
            return Ok(bytes);
        }
        let mut pointers = [0; 8];
        stored(volume, record, self.header + number * 4, &mut pointers)?;
        let (from, to) = (pointers.u32_at(0).unwrap_or(0), pointers.u32_at(4).unwrap_or(0));
        let size = 1u64 << self.block_log;
        let want = (self.size() - number * size).min(size) as usize;
        // A block that doesn't shrink grows by little; zlib's own bound is less than this.
        let len = to.checked_sub(from).filter(|len| u64::from(*len) <= size * 2);
        let len = len.ok_or_else(|| Error::corrupt(KIND, format!("compressed block {number}")))?;
        let mut unpacked = vec![0; want];
        // A block without bytes is all zeros.
        if len > 0 {
            let mut packed = vec![0; len as usize];
            stored(volume, record, u64::from(from), &mut packed)?;
            let mut zlib = Decompress::new(true);
            let done = zlib.decompress(&packed, &mut unpacked, FlushDecompress::Finish);
            if !matches!(done, Ok(Status::StreamEnd | Status::Ok)) || zlib.total_out() != want as u64 {
                return Err(Error::corrupt(KIND, format!("compressed block {number}")));
            }
        }
        let unpacked = Arc::new(unpacked);
        *volume.unpacked.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((record.id(), number, unpacked.clone()));
        Ok(unpacked)
    }
}

/// Bytes of the compressed file.
fn stored(volume: &Volume, record: &Record, offset: u64, to: &mut [u8]) -> Result<()> {
    crate::source::check(record.stored(), offset, to.len() as u64)?;
    volume.read(&record.extents, offset, to)
}
