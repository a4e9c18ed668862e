//! Directories: in the inode, in one block, or in many. Those have an index by hash too, which lies far behind the
//! entries and isn't used: reading the entries from front to back is fast enough.

use std::ops::ControlFlow;

use super::inode::Inode;
use super::{KIND, Volume};
use crate::{Error, Fields, Kind, Result};

/// Where the index starts (`XFS_DIR2_LEAF_OFFSET`): entries end before.
const INDEX: u64 = 32 << 30;
/// Largest directory that is read.
const MAX_BYTES: u64 = 2 << 30;

/// An entry as it is on disk.
pub struct Raw<'a> {
    pub inode: u64,
    pub name: &'a [u8],
    pub kind: Option<Kind>,
}

/// Called for each entry, never for `.` and `..`.
pub type Visit<'a> = dyn FnMut(&Raw) -> ControlFlow<()> + 'a;

fn bad(what: &str) -> Error {
    Error::corrupt(KIND, format!("directory: {what}"))
}

/// Visits all entries of a directory.
pub fn scan(volume: &Volume, inode: &Inode, visit: &mut Visit) -> Result<()> {
    if let Some(bytes) = inode.local() {
        return short(volume, bytes, visit);
    }
    let sb = &volume.sb;
    if inode.size > MAX_BYTES.min(INDEX) || inode.size > sb.blocks * sb.block_size {
        return Err(bad("size"));
    }
    // A block of a directory may be made of several blocks, and those of several runs.
    let mut buffer = vec![0; sb.directory_block as usize];
    let per_block = sb.directory_block / sb.block_size;
    let mut have = 0;
    volume.runs(inode, &(0..inode.size.div_ceil(sb.block_size)), &mut |run| {
        for index in 0..run.count {
            let within = (run.logical + index) % per_block;
            if within != have {
                return Err(bad("a hole in a block"));
            }
            let part = (within * sb.block_size) as usize..((within + 1) * sb.block_size) as usize;
            let start = sb.block(run.physical + index, 1)?;
            volume.read(start, buffer.get_mut(part).ok_or_else(|| bad("a block"))?)?;
            have = (have + 1) % per_block;
            if have == 0 && block(volume, &buffer, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Visits the entries of a directory in an inode.
fn short(volume: &Volume, bytes: &[u8], visit: &mut Visit) -> Result<()> {
    let error = || bad("entries in an inode");
    // `count`, `i8count`: how many inode numbers need 64 bits; then all have them, the parent's too.
    let count = bytes.u8_at(0).ok_or_else(error)?;
    let width = if bytes.u8_at(1) == Some(0) { 4 } else { 8 };
    let mut at = 2 + width;
    for _ in 0..count {
        let len = usize::from(bytes.u8_at(at).ok_or_else(error)?);
        // Two bytes of offset precede the name.
        let name = bytes.get(at + 3..at + 3 + len).ok_or_else(error)?;
        at += 3 + len;
        let kind = if volume.sb.ftype { file_type(bytes.u8_at(at)) } else { None };
        at += usize::from(volume.sb.ftype);
        let inode = if width == 4 { bytes.u32_be(at).map(u64::from) } else { bytes.u64_be(at) };
        at += width;
        if visit(&Raw { inode: inode.ok_or_else(error)?, name, kind }).is_break() {
            break;
        }
    }
    Ok(())
}

/// Visits the entries of one block.
fn block(volume: &Volume, bytes: &[u8], visit: &mut Visit) -> Result<ControlFlow<()>> {
    let header = if volume.sb.v5 { 64 } else { 16 };
    let single = match (bytes.get(..4), volume.sb.v5) {
        (Some(b"XD2B"), false) | (Some(b"XDB3"), true) => true,
        (Some(b"XD2D"), false) | (Some(b"XDD3"), true) => false,
        _ => return Err(bad("a block without its magic number")),
    };
    let mut end = bytes.len();
    if single {
        // The index is at the end: entries of 8 bytes, then how many, then how many of them are stale.
        let index = bytes.u32_be(end - 8).unwrap_or(0) as usize;
        end = index
            .checked_mul(8)
            .and_then(|index| (end - 8).checked_sub(index))
            .ok_or_else(|| bad("its index"))?;
    }
    let mut at = header;
    while at < end {
        let error = || bad("an entry");
        // `freetag`: unused space
        if bytes.u16_be(at) == Some(0xffff) {
            let len = usize::from(bytes.u16_be(at + 2).ok_or_else(error)?);
            if len < 8 || len % 8 != 0 {
                return Err(bad("unused space"));
            }
            at += len;
            continue;
        }
        let inode = bytes.u64_be(at).ok_or_else(error)?;
        let len = usize::from(bytes.u8_at(at + 8).ok_or_else(error)?);
        let name = bytes.get(at + 9..at + 9 + len).ok_or_else(error)?;
        let kind = if volume.sb.ftype { file_type(bytes.u8_at(at + 9 + len)) } else { None };
        // Number, length, name, type, and the tag, which is the entry's own offset.
        let size = (9 + len + usize::from(volume.sb.ftype) + 2).next_multiple_of(8);
        at += size;
        if len == 0 || at > end {
            return Err(error());
        }
        if name == b"." || name == b".." {
            continue;
        }
        if visit(&Raw { inode, name, kind }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// `XFS_DIR3_FT_*`
fn file_type(kind: Option<u8>) -> Option<Kind> {
    match kind? {
        1 => Some(Kind::File),
        2 => Some(Kind::Directory),
        3..=6 => Some(Kind::Other),
        7 => Some(Kind::Symlink),
        _ => None,
    }
}

/// The number of the inode that `name` stands for.
pub fn find(volume: &Volume, inode: &Inode, name: &[u8]) -> Result<Option<u64>> {
    let (mut exact, mut folded) = (None, None);
    scan(volume, inode, &mut |entry| {
        if entry.name == name {
            exact = Some(entry.inode);
            return ControlFlow::Break(());
        }
        if volume.sb.any_case && folded.is_none() && entry.name.eq_ignore_ascii_case(name) {
            folded = Some(entry.inode);
        }
        ControlFlow::Continue(())
    })?;
    Ok(exact.or(folded))
}
