//! Directories. Hashed ones too are read from front to back: their indices look like unused space.

use std::ops::ControlFlow;

use super::inode::Inode;
use super::{KIND, Volume};
use crate::{Error, Fields, Kind, Result};

/// Largest directory, in bytes, as Linux has it without `large_dir`.
const MAX_BYTES: u64 = 2 << 30;
/// How much is read at once.
const CHUNK: u64 = 64 << 10;

/// An entry as it is on disk.
pub struct Raw<'a> {
    pub inode: u32,
    pub name: &'a [u8],
    pub kind: Option<Kind>,
}

/// Called for each entry, never for `.` and `..`.
pub type Visit<'a> = dyn FnMut(&Raw) -> ControlFlow<()> + 'a;

/// Visits all entries of a directory.
pub fn scan(volume: &Volume, inode: &Inode, visit: &mut Visit) -> Result<()> {
    inode.readable()?;
    if let Some(more) = &inode.inline {
        // The first four bytes are the parent's number.
        if block(volume, &inode.block[4..], visit)?.is_continue() {
            let _ = block(volume, more, visit)?;
        }
        return Ok(());
    }
    let size = volume.sb.block_size;
    let blocks = inode.size.div_ceil(size);
    if inode.size > MAX_BYTES || blocks > volume.sb.blocks {
        return Err(Error::corrupt(KIND, format!("a directory of {} bytes", inode.size)));
    }
    let chunk = (CHUNK / size).max(1);
    let mut buffer = Vec::new();
    volume.runs(inode, 0..blocks, &mut |run| {
        let mut done = 0;
        while done < run.count {
            let count = chunk.min(run.count - done);
            buffer.resize((count * size) as usize, 0);
            volume.read_blocks(run.physical + done, &mut buffer)?;
            for bytes in buffer.chunks_exact(size as usize) {
                if block(volume, bytes, visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            done += count;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Visits the entries of one block.
fn block(volume: &Volume, bytes: &[u8], visit: &mut Visit) -> Result<ControlFlow<()>> {
    let bad = || Error::corrupt(KIND, "an entry of a directory");
    let mut at = 0;
    // Data in the inode may end with less than an entry.
    while bytes.len() - at >= 8 {
        let inode = bytes.u32_at(at).ok_or_else(bad)?;
        let record = record_len(bytes.u16_at(at + 4).ok_or_else(bad)?, bytes.len());
        let len = bytes.u8_at(at + 6).ok_or_else(bad)?;
        let kind = bytes.u8_at(at + 7).ok_or_else(bad)?;
        if record < 8 + usize::from(len) || !record.is_multiple_of(4) || record > bytes.len() - at {
            return Err(bad());
        }
        let name = bytes.get(at + 8..at + 8 + usize::from(len)).ok_or_else(bad)?;
        at += record;
        if inode == 0 || name.is_empty() || name == b"." || name == b".." {
            continue;
        }
        let kind = if volume.sb.filetype() { file_type(kind) } else { None };
        if visit(&Raw { inode, name, kind }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// `rec_len`: a multiple of 4, so its two lowest bits hold what doesn't fit in blocks of 64 KiB.
fn record_len(len: u16, block: usize) -> usize {
    let len = usize::from(len);
    if block < 65536 {
        len
    } else if len == 0 || len == 65535 {
        block
    } else {
        len & 0xfffc | (len & 3) << 16
    }
}

/// `file_type`; Lustre keeps flags in the high bits.
fn file_type(kind: u8) -> Option<Kind> {
    match kind & 0xf {
        1 => Some(Kind::File),
        2 => Some(Kind::Directory),
        3..=6 => Some(Kind::Other),
        7 => Some(Kind::Symlink),
        _ => None,
    }
}

/// The number of the inode that `name` stands for.
pub fn find(volume: &Volume, inode: &Inode, name: &[u8]) -> Result<Option<u32>> {
    let (mut exact, mut folded) = (None, None);
    let wanted = inode.casefold.then(|| fold(name));
    scan(volume, inode, &mut |entry| {
        if entry.name == name {
            exact = Some(entry.inode);
            return ControlFlow::Break(());
        }
        if let Some(wanted) = &wanted
            && folded.is_none()
            && fold(entry.name) == *wanted
        {
            folded = Some(entry.inode);
        }
        ControlFlow::Continue(())
    })?;
    Ok(exact.or(folded))
}

/// A name without its case. The kernel's folding also ignores how accents are composed.
fn fold(name: &[u8]) -> Vec<u8> {
    std::str::from_utf8(name).map_or_else(|_| name.to_vec(), |name| name.to_lowercase().into_bytes())
}
