//! SquashFS 4, read-only.
//!
//! Layouts are those of the kernel's `fs/squashfs/squashfs_fs.h`; everything is little-endian.
//! Memory: at most 4 MiB of metadata and 20 unpacked blocks of up to 1 MiB.

mod inode;
mod metadata;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use inode::Inode;
use metadata::{Cache, Metadata, Place};

use crate::{Error, Fields, FileSystem, NodeRef, Result, SourceRef, decompress};

/// GRUB's name of version 4.
const KIND: &str = "squash4";
/// "hsqs", and what images before version 4 may begin with, big-endian.
const MAGIC: [u8; 4] = *b"hsqs";
const OLD_MAGIC: [u8; 4] = *b"sqsh";
const SUPERBLOCK: usize = 96;
/// In the size of a block: it is stored as it is.
const STORED: u32 = 1 << 24;
/// Fragments in a metadata block of their table.
const FRAGMENTS: u64 = 512;
/// Unpacked data blocks and fragments that are kept.
const KEPT_BLOCKS: usize = 4;
const KEPT_FRAGMENTS: usize = 16;

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(KIND, what)
}

#[derive(Clone, Copy, Debug)]
enum Compression {
    Zlib,
    Lzo,
    Xz,
    Lz4,
    Zstd,
}

impl Compression {
    fn new(number: u16) -> Result<Self> {
        match number {
            1 => Ok(Self::Zlib),
            2 => Err(Error::unsupported(KIND, "lzma compression")),
            3 => Ok(Self::Lzo),
            4 => Ok(Self::Xz),
            5 => Ok(Self::Lz4),
            6 => Ok(Self::Zstd),
            _ => Err(Error::unsupported(KIND, format!("compression {number}"))),
        }
    }

    fn unpack(self, packed: &[u8], max: usize) -> Result<Vec<u8>> {
        match self {
            Self::Zlib => decompress::zlib(packed, max),
            Self::Lzo => decompress::lzo1x(packed, max),
            Self::Xz => decompress::xz(packed, max),
            Self::Lz4 => decompress::lz4(packed, max),
            Self::Zstd => decompress::zstd(packed, max),
        }
    }
}

/// What all nodes of an image share.
struct Shared {
    source: SourceRef,
    metadata: Metadata,
    compression: Compression,
    block_size: u32,
    made: u32,
    root: u64,
    inodes: u64,
    directories: u64,
    fragment_table: u64,
    fragments: u32,
    blocks: Mutex<Cache<Arc<Vec<u8>>>>,
    unpacked_fragments: Mutex<Cache<Arc<Vec<u8>>>>,
}

/// A SquashFS.
struct Squashfs(Arc<Shared>);

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    if source.size() < SUPERBLOCK as u64 {
        return Ok(None);
    }
    let block = source.read_vec(0, SUPERBLOCK)?;
    if block.array(0) == Some(OLD_MAGIC) {
        return Err(Error::unsupported(KIND, "a version before 4"));
    }
    if block.array(0) != Some(MAGIC) {
        return Ok(None);
    }
    let shared = parse(source, &block).ok_or_else(|| bad("superblock"))??;
    Ok(Some(Arc::new(Squashfs(Arc::new(shared)))))
}

fn parse(source: &SourceRef, block: &[u8]) -> Option<Result<Shared>> {
    let version = (block.u16_at(28)?, block.u16_at(30)?);
    if version != (4, 0) {
        return Some(Err(Error::unsupported(KIND, format!("version {}.{}", version.0, version.1))));
    }
    let block_size = block.u32_at(12)?;
    // The limits of SQUASHFS_FILE_MAX_SIZE and of mksquashfs.
    if !block_size.is_power_of_two() || !(4096..=1 << 20).contains(&block_size) {
        return None;
    }
    let compression = match Compression::new(block.u16_at(20)?) {
        Ok(compression) => compression,
        Err(error) => return Some(Err(error)),
    };
    Some(Ok(Shared {
        source: source.clone(),
        metadata: Metadata::new(source.clone(), compression),
        compression,
        block_size,
        made: block.u32_at(8)?,
        root: block.u64_at(32)?,
        inodes: block.u64_at(64)?,
        directories: block.u64_at(72)?,
        fragment_table: block.u64_at(80)?,
        fragments: block.u32_at(16)?,
        blocks: Mutex::new(Cache::new(KEPT_BLOCKS)),
        unpacked_fragments: Mutex::new(Cache::new(KEPT_FRAGMENTS)),
    }))
}

impl Shared {
    /// The inode that a reference (block and offset in it) names.
    fn inode(self: &Arc<Self>, reference: u64) -> Result<Inode> {
        let block = self.inodes.checked_add(reference >> 16).ok_or_else(|| bad("an inode's place"))?;
        Inode::load(self, Place { block, offset: (reference & 0xffff) as usize })
    }

    /// A data block of `size` (with its flag) at `start`, unpacked.
    fn block(&self, start: u64, size: u32, cache: &Mutex<Cache<Arc<Vec<u8>>>>) -> Result<Arc<Vec<u8>>> {
        let lock = || cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = lock().get(start) {
            return Ok(block);
        }
        let len = size & (STORED - 1);
        if len > self.block_size {
            return Err(bad(format!("the block at {start:#x} is too long")));
        }
        let bytes = self.source.read_vec(start, len as usize)?;
        let bytes = if size & STORED == 0 {
            self.compression.unpack(&bytes, self.block_size as usize)?
        } else {
            bytes
        };
        let block = Arc::new(bytes);
        lock().put(start, block.clone());
        Ok(block)
    }

    /// The block of fragments with this number.
    fn fragment(&self, number: u32) -> Result<Arc<Vec<u8>>> {
        if number >= self.fragments {
            return Err(bad(format!("there is no fragment {number}")));
        }
        let table = (u64::from(number) / FRAGMENTS * 8).checked_add(self.fragment_table);
        let table = table.ok_or_else(|| bad("the table of fragments"))?;
        let block = self.source.read_vec(table, 8)?.u64_at(0).unwrap_or_default();
        let mut place = Place { block, offset: (u64::from(number) % FRAGMENTS * 16) as usize };
        let entry: [u8; 16] = self.metadata.array(&mut place)?;
        let (start, size) = entry.u64_at(0).zip(entry.u32_at(8)).unwrap_or_default();
        self.block(start, size, &self.unpacked_fragments)
    }
}

impl FileSystem for Squashfs {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        None
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn modified(&self) -> Option<i64> {
        Some(self.0.made.into())
    }

    fn root(&self) -> Result<NodeRef> {
        Ok(Arc::new(self.0.inode(self.0.root)?))
    }
}
