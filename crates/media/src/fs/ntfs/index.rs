//! Directories: an index of file names, in a tree of which only the leaves' order matters to us.

use std::ops::ControlFlow;

use super::record::{Record, repair};
use super::stream::Stream;
use super::{KIND, Volume, attribute, units, utf8};
use crate::{Error, Fields, Kind, Result};

/// `$I30`, the index of names.
const NAME: &[u8] = b"$\0I\x003\x000\0";
/// Largest directory.
const MAX_DIRECTORY: u64 = 256 << 20;
/// Largest bitmap of a directory's blocks.
const MAX_BITMAP: u64 = 1 << 20;
/// Marks places that are not in the root of the index.
const IN_BLOCKS: u32 = 1 << 31;
/// Where a node's header is in a root and in a block.
const ROOT_HEADER: usize = 16;
const BLOCK_HEADER: usize = 24;

/// A name in a directory.
pub(super) struct Key {
    reference: u64,
    pub(super) name: Vec<u8>,
    namespace: u8,
    flags: u32,
}

impl Key {
    /// The file that has this name.
    pub(super) fn number(&self) -> u64 {
        self.reference & 0xffff_ffff_ffff
    }

    pub(super) fn sequence(&self) -> u16 {
        (self.reference >> 48) as u16
    }

    /// Whether it is only a short name for DOS; the file has another one.
    pub(super) fn is_dos(&self) -> bool {
        self.namespace == 2
    }

    /// The kind, where the flags can tell.
    pub(super) fn kind(&self) -> Option<Kind> {
        // 0x400 is a reparse point; 4, a system file, may be a link by Services for Unix.
        match (self.flags & 0x404, self.flags & 0x1000_0000) {
            (0, 0) => Some(Kind::File),
            (0 | 4, 1..) => Some(Kind::Directory),
            _ => None,
        }
    }

    fn parse(entry: &[u8]) -> Option<Self> {
        let key = entry.get(16..16 + usize::from(entry.u16_at(10)?))?;
        let len = usize::from(key.u8_at(64)?);
        Some(Self {
            reference: entry.u64_at(0)?,
            name: utf8(units(key.get(66..66 + 2 * len)?)),
            namespace: key.u8_at(65)?,
            flags: key.u32_at(56)?,
        })
    }
}

/// The nodes of an index.
struct Index {
    root: Vec<u8>,
    /// Bytes of a block, and the blocks.
    block: usize,
    blocks: Option<Stream>,
}

impl Index {
    fn open(volume: &Volume, record: &Record) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(KIND, format!("directory {}: {what}", record.number));
        let root =
            Stream::find(volume, record, attribute::INDEX_ROOT, NAME)?.ok_or_else(|| bad("no index"))?;
        let root = root.all(volume, 64 << 10)?;
        let block = root.u32_at(8).unwrap_or_default() as usize;
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(bad("size of index blocks"));
        }
        let blocks = Stream::find(volume, record, attribute::INDEX_ALLOCATION, NAME)?;
        if blocks.as_ref().is_some_and(|blocks| blocks.size() > MAX_DIRECTORY) {
            return Err(Error::TooLarge(format!("a directory of more than {MAX_DIRECTORY} bytes")));
        }
        Ok(Self { root, block, blocks })
    }

    fn count(&self) -> u64 {
        self.blocks.as_ref().map_or(0, |blocks| blocks.size() / self.block as u64)
    }

    /// Reads block `number` into `bytes`.
    fn read(&self, volume: &Volume, number: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let bad = || Error::corrupt(KIND, format!("block {number} of a directory"));
        let blocks = self.blocks.as_ref().filter(|_| number < self.count()).ok_or_else(bad)?;
        bytes.resize(self.block, 0);
        blocks.read(volume, number * self.block as u64, bytes)?;
        repair(bytes, *b"INDX").ok_or_else(bad)
    }
}

/// Calls `visit` with the place in the node and each entry of a node whose header is at `header`.
fn node(
    bytes: &[u8],
    header: usize,
    visit: &mut dyn FnMut(usize, Key) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let bad = || Error::corrupt(KIND, "a node of a directory");
    let start = bytes.u32_at(header).ok_or_else(bad)? as usize;
    let len = bytes.u32_at(header + 4).ok_or_else(bad)? as usize;
    let nodes = bytes.get(..header.saturating_add(len)).ok_or_else(bad)?;
    let mut at = header.saturating_add(start);
    loop {
        let entry = nodes.get(at..).unwrap_or_default();
        let len = usize::from(entry.u16_at(8).ok_or_else(bad)?);
        // The last entry has no name.
        if entry.u16_at(12).ok_or_else(bad)? & 2 != 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let entry = entry.get(..len).filter(|_| len >= 16 && len.is_multiple_of(8)).ok_or_else(bad)?;
        let key = Key::parse(entry).ok_or_else(bad)?;
        if visit(at, key).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        at += len;
    }
}

/// Calls `visit` with the place and each name of a directory.
pub(super) fn each(
    volume: &Volume,
    record: &Record,
    visit: &mut dyn FnMut(u32, Key) -> ControlFlow<()>,
) -> Result<()> {
    let index = Index::open(volume, record)?;
    if node(&index.root, ROOT_HEADER, &mut |at, key| visit(at as u32 / 8, key))?.is_break() {
        return Ok(());
    }
    let count = index.count();
    if count == 0 {
        return Ok(());
    }
    let bitmap = Stream::find(volume, record, attribute::BITMAP, NAME)?;
    let bitmap = match bitmap {
        Some(bitmap) => bitmap.all(volume, MAX_BITMAP)?,
        None => return Err(Error::corrupt(KIND, format!("directory {}: no bitmap", record.number))),
    };
    let mut bytes = Vec::new();
    for number in 0..count {
        let used = bitmap.get(number as usize / 8).is_some_and(|bits| bits >> (number % 8) & 1 != 0);
        if !used {
            continue;
        }
        index.read(volume, number, &mut bytes)?;
        let start = number * index.block as u64;
        let place = |at: usize| IN_BLOCKS | ((start + at as u64) / 8) as u32;
        if node(&bytes, BLOCK_HEADER, &mut |at, key| visit(place(at), key))?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// The name at a place.
pub(super) fn at(volume: &Volume, record: &Record, place: u32) -> Result<Option<Key>> {
    let index = Index::open(volume, record)?;
    let offset = u64::from(place & !IN_BLOCKS) * 8;
    let mut bytes = Vec::new();
    let (bytes, header, within) = if place & IN_BLOCKS == 0 {
        (&index.root, ROOT_HEADER, offset as usize)
    } else {
        index.read(volume, offset / index.block as u64, &mut bytes)?;
        (&bytes, BLOCK_HEADER, (offset % index.block as u64) as usize)
    };
    let mut found = None;
    let _ = node(bytes, header, &mut |at, key| {
        if at < within {
            return ControlFlow::Continue(());
        }
        found = (at == within).then_some(key);
        ControlFlow::Break(())
    })?;
    Ok(found)
}
