//! Inodes and where their blocks are (`struct ufs1_dinode`, `ufs2_dinode` of sys/ufs/ufs/dinode.h).

use super::superblock::Superblock;
use super::{ROOT, Volume};
use crate::{Error, Kind, Result};

/// Block addresses in the inode itself (UFS_NDADDR).
const DIRECT: u64 = 12;
/// Levels of indirect blocks (UFS_NIADDR).
const LEVELS: usize = 3;
/// Most bytes that are read at once where the blocks of a file follow each other.
const MAX_RUN: u64 = 1 << 20;

/// An inode.
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) modified: i64,
    /// Sectors that it has, blocks of addresses too.
    sectors: u64,
    /// The block addresses, or a short link.
    map: Vec<u8>,
}

impl Inode {
    /// Reads inode `number`.
    pub(super) fn load(volume: &Volume, number: u64) -> Result<Self> {
        let sb = &volume.sb;
        let bad = || Error::corrupt(sb.kind(), format!("inode {number}"));
        let at = sb.inode_at(number).filter(|_| number >= ROOT).ok_or_else(bad)?;
        let bytes = volume.source.read_vec(at, sb.inode_size() as usize)?;
        let mode = sb.u16_at(&bytes, 0).ok_or_else(bad)?;
        let kind = match mode & 0o170_000 {
            0o040_000 => Kind::Directory,
            0o100_000 => Kind::File,
            0o120_000 => Kind::Symlink,
            0 => return Err(bad()),
            _ => Kind::Other,
        };
        let seconds = |at| sb.u32_at(&bytes, at).map(|time| i64::from(time as i32));
        // di_size, di_mtime, di_blocks and di_db.
        let (size, modified, sectors, map) = if sb.version == 1 {
            (8, seconds(24), sb.u32_at(&bytes, 104).map(u64::from), bytes.get(40..100))
        } else {
            let modified = sb.u64_at(&bytes, 40).map(|time| time as i64);
            (16, modified, sb.u64_at(&bytes, 24), bytes.get(112..232))
        };
        Ok(Self {
            number,
            kind,
            size: sb.u64_at(&bytes, size).ok_or_else(bad)?,
            modified: modified.ok_or_else(bad)?,
            sectors: sectors.ok_or_else(bad)?,
            map: map.ok_or_else(bad)?.to_vec(),
        })
    }

    /// The target of a symbolic link that is in the inode.
    pub(super) fn short_link(&self, sb: &Superblock) -> Option<&[u8]> {
        // Before 4.4BSD no superblock said so, and only the missing blocks showed it.
        if self.size < sb.max_short_link || self.sectors == 0 {
            self.map.get(..self.size as usize)
        } else {
            None
        }
    }

    /// Fills `to` from `offset`. All of it is in the file.
    pub(super) fn read(&self, volume: &Volume, mut offset: u64, mut to: &mut [u8]) -> Result<()> {
        let sb = &volume.sb;
        while !to.is_empty() {
            let within = offset % sb.bsize;
            let mut index = offset / sb.bsize;
            let first = self.block(volume, index)?;
            let mut len = sb.bsize - within;
            // Blocks that follow each other are read together.
            while len < (to.len() as u64).min(MAX_RUN) {
                index += 1;
                let next = first.map(|first| first + (within + len) / sb.fsize);
                if self.block(volume, index)? != next {
                    break;
                }
                len += sb.bsize;
            }
            let (now, rest) = to.split_at_mut(len.min(to.len() as u64) as usize);
            match first {
                None => now.fill(0),
                Some(fragment) => {
                    let start = fragment.checked_mul(sb.fsize).and_then(|start| start.checked_add(within));
                    let start = start.ok_or_else(|| self.bad(sb))?;
                    volume.source.read_at(start, now)?;
                }
            }
            offset += now.len() as u64;
            to = rest;
        }
        Ok(())
    }

    fn bad(&self, sb: &Superblock) -> Error {
        Error::corrupt(sb.kind(), format!("inode {}: a block address", self.number))
    }

    /// The fragment at which block `index` of the file starts; `None` in a hole.
    fn block(&self, volume: &Volume, index: u64) -> Result<Option<u64>> {
        let sb = &volume.sb;
        let fragments = volume.source.size() / sb.fsize;
        let valid = |address: Option<u64>| match address {
            Some(0) => Ok(None),
            Some(address) if address < fragments => Ok(Some(address)),
            _ => Err(self.bad(sb)),
        };
        let pointer = |number: u64| valid(sb.pointer(&self.map, (number * sb.pointer_size()) as usize));
        if index < DIRECT {
            return pointer(index);
        }
        let each = sb.bsize / sb.pointer_size();
        let mut rest = index - DIRECT;
        let mut covered = 1;
        for level in 0..LEVELS {
            // What one address in the topmost block of this level covers.
            let whole = covered * each;
            if rest >= whole {
                rest -= whole;
                covered = whole;
                continue;
            }
            let mut at = pointer(DIRECT + level as u64)?;
            while let Some(block) = at {
                let byte = (rest / covered) * sb.pointer_size();
                at = valid(indirect(volume, block, byte)?)?;
                if covered == 1 {
                    return Ok(at);
                }
                rest %= covered;
                covered /= each;
            }
            return Ok(None);
        }
        Err(Error::corrupt(sb.kind(), format!("inode {}: larger than can be", self.number)))
    }
}

/// The address at `byte` of the indirect block that starts at fragment `block`.
fn indirect(volume: &Volume, block: u64, byte: u64) -> Result<Option<u64>> {
    let sb = &volume.sb;
    let fragment = volume.pointers.get(block + byte / sb.fsize)?;
    Ok(sb.pointer(&fragment, (byte % sb.fsize) as usize))
}
