//! The superblock, and the addresses that it gives a meaning to.

use super::KIND;
use crate::{Error, Fields, Result};

/// `sb_magicnum`: `XFSB`.
const MAGIC: u32 = 0x5846_5342;

/// `sb_versionnum`: directories of version 2.
const DIRECTORY2: u16 = 0x2000;
/// `sb_versionnum`: names are the same if only the case of ASCII letters differs.
const ANY_CASE: u16 = 0x4000;
/// `sb_versionnum`: `sb_features2` is valid.
const MORE: u16 = 0x8000;
/// `sb_features2`: entries of directories say what they name.
const FTYPE2: u32 = 0x200;
/// `sb_features_incompat`, version 5: the same.
const FTYPE: u32 = 1;
/// `sb_features_incompat`: the UUID was changed, but not the one in metadata.
const META_UUID: u32 = 4;
/// `sb_features_incompat`: files are on a zoned realtime device.
const ZONED: u32 = 0x200;
/// What a reader may meet: FTYPE, SPINODES, META_UUID, BIGTIME, NEEDSREPAIR, NREXT64, EXCHRANGE, PARENT, METADIR.
const KNOWN: u32 = 0x1ff;

/// What a reader needs of the superblock.
#[derive(Debug)]
pub struct Superblock {
    pub v5: bool,
    pub block_size: u64,
    pub blocks: u64,
    pub uuid: [u8; 16],
    /// The one that is in metadata.
    pub metadata_uuid: [u8; 16],
    pub label: Vec<u8>,
    pub root: u64,
    pub inode_size: usize,
    /// Bytes in a block of a directory.
    pub directory_block: u64,
    pub ftype: bool,
    pub any_case: bool,
    /// Block of the log, in this file system's addresses, and its length in blocks.
    pub log: (u64, u64),
    ag_blocks: u64,
    ags: u64,
    ag_log: u32,
    inodes_log: u32,
}

impl Superblock {
    /// Takes it out of the first 512 bytes; `None` if it is of something else.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.u32_be(0) != Some(MAGIC) {
            return Ok(None);
        }
        let u32_at = |at| bytes.u32_be(at).unwrap_or(0);
        let u64_at = |at| bytes.u64_be(at).unwrap_or(0);
        let log2 = |at| u32::from(bytes.u8_at(at).unwrap_or(0));
        let version = bytes.u16_be(100).unwrap_or(0);
        let v5 = match version & 0xf {
            4 if version & DIRECTORY2 != 0 => false,
            4 => return Err(Error::unsupported(KIND, "version 1 of directories")),
            5 => true,
            other => return Err(Error::unsupported(KIND, format!("version {other}"))),
        };
        let incompat = if v5 { u32_at(216) } else { 0 };
        if incompat & ZONED != 0 {
            return Err(Error::unsupported(KIND, "a zoned realtime device"));
        }
        if incompat & !KNOWN != 0 {
            return Err(Error::unsupported(KIND, format!("incompatible feature {:#x}", incompat & !KNOWN)));
        }
        let ftype2 = version & MORE != 0 && u32_at(200) & FTYPE2 != 0;
        let block_size = u64::from(u32_at(4));
        let parsed = Self {
            v5,
            block_size,
            blocks: u64_at(8),
            uuid: bytes.array(32).unwrap_or_default(),
            metadata_uuid: bytes.array(if incompat & META_UUID != 0 { 248 } else { 32 }).unwrap_or_default(),
            label: bytes
                .get(108..120)
                .unwrap_or_default()
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default()
                .to_vec(),
            root: u64_at(56),
            inode_size: usize::from(bytes.u16_be(104).unwrap_or(0)),
            directory_block: block_size.checked_shl(log2(192)).unwrap_or(0),
            ftype: if v5 { incompat & FTYPE != 0 } else { ftype2 },
            any_case: version & ANY_CASE != 0,
            log: (u64_at(48), u32_at(96).into()),
            ag_blocks: u32_at(84).into(),
            ags: u32_at(88).into(),
            ag_log: log2(124),
            inodes_log: log2(123),
        };
        parsed.check(log2(120), log2(122))?;
        Ok(Some(parsed))
    }

    fn check(&self, block_log: u32, inode_log: u32) -> Result<()> {
        let bad = |what: &str| Err(Error::corrupt(KIND, format!("superblock: {what}")));
        let size = self.block_size;
        if !(512..=65536).contains(&size) || 1u64.checked_shl(block_log) != Some(size) {
            return bad("block size");
        }
        // Blocks of directories are at most 64 KiB (XFS_MAX_BLOCKSIZE).
        if !(size..=65536).contains(&self.directory_block) {
            return bad("size of blocks of directories");
        }
        let inode = self.inode_size as u64;
        if !(256..=2048).contains(&inode) || 1u64.checked_shl(inode_log) != Some(inode) || inode > size {
            return bad("inode size");
        }
        if size / inode != 1u64.checked_shl(self.inodes_log).unwrap_or(0) {
            return bad("inodes in a block");
        }
        // `sb_agblklog` is the logarithm of `sb_agblocks`, rounded up.
        if self.ag_blocks == 0 || self.ag_log > 32 || 1 << self.ag_log < self.ag_blocks || self.ags == 0 {
            return bad("allocation groups");
        }
        if self.blocks == 0 || self.blocks > self.ag_blocks * self.ags || self.blocks > u64::MAX >> 17 {
            return bad("number of blocks");
        }
        if self.log.0 == 0 {
            return Err(Error::unsupported(KIND, "an external log"));
        }
        Ok(())
    }

    /// The byte at which `count` blocks at the address `block` start.
    pub fn block(&self, block: u64, count: u64) -> Result<u64> {
        let (group, within) = (block >> self.ag_log, block & ((1 << self.ag_log) - 1));
        let linear = group.checked_mul(self.ag_blocks).and_then(|start| start.checked_add(within));
        // Runs don't leave their group.
        linear
            .filter(|_| within.saturating_add(count) <= self.ag_blocks)
            .filter(|linear| group < self.ags && linear.saturating_add(count) <= self.blocks)
            .map(|linear| linear * self.block_size)
            .ok_or_else(|| Error::corrupt(KIND, format!("block {block:#x} does not exist")))
    }

    /// The byte at which `count` blocks from `block` of a group start.
    pub fn group_block(&self, group: u64, block: u64, count: u64) -> Result<u64> {
        if block >> self.ag_log != 0 || group >= self.ags {
            return Err(Error::corrupt(KIND, format!("block {block:#x} of group {group} does not exist")));
        }
        self.block(group << self.ag_log | block, count)
    }

    /// The byte at which inode `number` starts.
    pub fn inode(&self, number: u64) -> Result<u64> {
        let bad = |_| Error::corrupt(KIND, format!("inode {number:#x} does not exist"));
        let start = self.block(number >> self.inodes_log, 1).map_err(bad)?;
        let within = number & ((1 << self.inodes_log) - 1);
        Ok(start + within * self.inode_size as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_the_group_above_the_rounded_logarithm() {
        let sb = Superblock {
            v5: true,
            block_size: 4096,
            blocks: 3900,
            uuid: [0; 16],
            metadata_uuid: [0; 16],
            label: Vec::new(),
            root: 64,
            inode_size: 512,
            directory_block: 4096,
            ftype: true,
            any_case: false,
            log: (1, 1),
            ag_blocks: 1000,
            ags: 4,
            ag_log: 10,
            inodes_log: 3,
        };
        assert_eq!(sb.block(1024 + 5, 10).unwrap(), 1005 * 4096);
        assert!(sb.block(1000, 1).is_err() && sb.block(995, 6).is_err() && sb.block(4096, 1).is_err());
        // The last group is shorter.
        assert!(sb.block(3 * 1024 + 899, 1).is_ok() && sb.block(3 * 1024 + 900, 1).is_err());
        assert_eq!(sb.inode((1024 + 5) * 8 + 3).unwrap(), 1005 * 4096 + 3 * 512);
    }
}
