//! The superblock and the group descriptors.

use super::KIND;
use crate::{Error, Fields, Result};

/// Where the superblock starts, in bytes.
pub const SUPERBLOCK: u64 = 1024;
/// `s_magic`.
const MAGIC: u16 = 0xef53;

/// `s_feature_compat`: backup superblocks only in two groups.
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
/// `s_feature_ro_compat`: backup superblocks only in some groups.
const RO_SPARSE_SUPER: u32 = 1;
/// `s_feature_incompat`: entries of directories say what they name.
pub const FILETYPE: u32 = 0x2;
/// `s_feature_incompat`: the journal holds what must be read instead of what is in place.
pub const RECOVER: u32 = 0x4;
/// `s_feature_incompat`: not a file system but a journal.
pub const JOURNAL_DEV: u32 = 0x8;
const META_BG: u32 = 0x10;
const BITS64: u32 = 0x80;
/// `s_feature_incompat`: large directories.
pub const LARGEDIR: u32 = 0x4000;
/// What a reader may meet: the above, extents, MMP, FLEX_BG, EA_INODE, DIRDATA, CSUM_SEED, INLINE_DATA, ENCRYPT
/// (refused file by file) and CASEFOLD.
const KNOWN: u32 = FILETYPE
    | RECOVER
    | META_BG
    | 0x40
    | BITS64
    | 0x100
    | 0x200
    | 0x400
    | 0x1000
    | 0x2000
    | LARGEDIR
    | 0x38000;

/// What a reader needs of the superblock.
#[derive(Debug)]
pub struct Superblock {
    pub block_size: u64,
    pub blocks: u64,
    pub inodes: u32,
    pub inode_size: usize,
    pub incompat: u32,
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    pub written: u32,
    pub journal_inode: u32,
    pub journal_uuid: [u8; 16],
    first_data_block: u64,
    blocks_per_group: u64,
    inodes_per_group: u32,
    descriptor_size: u64,
    first_meta_group: u64,
    compat: u32,
    ro_compat: u32,
    backups: [u32; 2],
}

impl Superblock {
    /// Takes it out of its 1024 bytes; `None` if it is of something else.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.u16_at(0x38) != Some(MAGIC) || bytes.len() < 1024 {
            return Ok(None);
        }
        let u32_at = |at| bytes.u32_at(at).unwrap_or(0);
        let (compat, incompat, ro_compat) = match u32_at(0x4c) {
            // Revision 0 had no features.
            0 => (0, 0, 0),
            _ => (u32_at(0x5c), u32_at(0x60), u32_at(0x64)),
        };
        let bits64 = incompat & BITS64 != 0;
        let inode_size = if u32_at(0x4c) == 0 { 128 } else { bytes.u16_at(0x58).unwrap_or(0).into() };
        let parsed = Self {
            block_size: 1024u64.checked_shl(u32_at(0x18)).unwrap_or(0),
            blocks: u64::from(u32_at(4)) | if bits64 { u64::from(u32_at(0x150)) << 32 } else { 0 },
            inodes: u32_at(0),
            inode_size,
            incompat,
            uuid: bytes.array(0x68).unwrap_or_default(),
            label: bytes[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
            written: u32_at(0x30),
            journal_inode: u32_at(0xe0),
            journal_uuid: bytes.array(0xd0).unwrap_or_default(),
            first_data_block: u32_at(0x14).into(),
            blocks_per_group: u32_at(0x20).into(),
            inodes_per_group: u32_at(0x28),
            descriptor_size: if bits64 { bytes.u16_at(0xfe).unwrap_or(0).into() } else { 32 },
            first_meta_group: u32_at(0x104).into(),
            compat,
            ro_compat,
            backups: [u32_at(0x24c), u32_at(0x250)],
        };
        // `s_log_block_size` of other systems with this magic number is nonsense: not for us.
        if !(1024..=65536).contains(&parsed.block_size) {
            return Ok(None);
        }
        parsed.check(bits64)?;
        Ok(Some(parsed))
    }

    fn check(&self, bits64: bool) -> Result<()> {
        let bad = |what: &str| Err(Error::corrupt(KIND, format!("superblock: {what}")));
        if self.incompat & JOURNAL_DEV != 0 {
            return Err(Error::unsupported(KIND, "a device that holds only a journal"));
        }
        if self.incompat & 1 != 0 {
            return Err(Error::unsupported(KIND, "compression (incompatible feature 0x1)"));
        }
        if self.incompat & !KNOWN != 0 {
            return Err(Error::unsupported(
                KIND,
                format!("incompatible feature {:#x}", self.incompat & !KNOWN),
            ));
        }
        if !self.inode_size.is_power_of_two()
            || self.inode_size < 128
            || self.inode_size as u64 > self.block_size
        {
            return bad("inode size");
        }
        let least = if bits64 { 64 } else { 32 };
        if !self.descriptor_size.is_power_of_two()
            || !(least..=self.block_size).contains(&self.descriptor_size)
        {
            return bad("size of group descriptors");
        }
        if self.blocks == 0
            || self.blocks > u64::MAX >> 16
            || self.blocks_per_group == 0
            || self.inodes_per_group == 0
        {
            return bad("size of file system or groups");
        }
        Ok(())
    }

    /// Whether entries of directories say what they name.
    pub fn filetype(&self) -> bool {
        self.incompat & FILETYPE != 0
    }

    /// Where the descriptor of the group with inode `number` starts, and where in that group's table the inode is.
    pub fn descriptor(&self, number: u32) -> Option<(u64, u64)> {
        let index = number.checked_sub(1).filter(|_| number <= self.inodes)?;
        let group = u64::from(index / self.inodes_per_group);
        let in_table = u64::from(index % self.inodes_per_group) * self.inode_size as u64;
        let per_block = self.block_size / self.descriptor_size;
        let nth = group / per_block;
        let block = if self.incompat & META_BG == 0 || nth < self.first_meta_group {
            SUPERBLOCK / self.block_size + 1 + nth
        } else {
            let first = nth * per_block;
            let start = self.first_data_block + first * self.blocks_per_group;
            // Block 0 is not part of any group, but with clusters of blocks of 1 KiB it is.
            let boot = u64::from(first == 0 && self.block_size == 1024 && self.first_data_block == 0);
            start + u64::from(self.has_backup(first)) + boot
        };
        let at = block.checked_mul(self.block_size)?.checked_add(group % per_block * self.descriptor_size)?;
        Some((at, in_table))
    }

    /// Block of the inode table out of a group's descriptor.
    pub fn inode_table(&self, descriptor: &[u8]) -> u64 {
        let high = if self.descriptor_size >= 64 { descriptor.u32_at(0x28).unwrap_or(0) } else { 0 };
        u64::from(descriptor.u32_at(8).unwrap_or(0)) | u64::from(high) << 32
    }

    /// Bytes in a group descriptor.
    pub fn descriptor_size(&self) -> usize {
        self.descriptor_size.min(64) as usize
    }

    /// Whether a group starts with a copy of the superblock.
    fn has_backup(&self, group: u64) -> bool {
        let power = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        if group == 0 {
            true
        } else if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            self.backups.iter().any(|backup| u64::from(*backup) == group)
        } else if self.ro_compat & RO_SPARSE_SUPER != 0 {
            group == 1 || power(3) || power(5) || power(7)
        } else {
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_found_in_meta_groups() {
        let mut bytes = vec![0; 1024];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x0, 1_000_000);
        put(0x4, 10_000_000);
        put(0x14, 1);
        put(0x20, 8192);
        put(0x28, 100);
        put(0x38, 0xef53);
        put(0x4c, 1);
        put(0x58, 128);
        put(0x60, META_BG);
        put(0x64, RO_SPARSE_SUPER);
        put(0x104, 1);
        let sb = Superblock::parse(&bytes).unwrap().unwrap();
        // 32 descriptors in a block of 1 KiB; the first block of them is at its old place.
        assert_eq!(sb.descriptor(1), Some((2048, 0)));
        assert_eq!(sb.descriptor(3200), Some((2048 + 31 * 32, 99 * 128)));
        // Group 32 has no backup, 96 neither, 2401 (7^4) is not the first of a meta group.
        assert_eq!(sb.descriptor(3201), Some(((1 + 32 * 8192) * 1024, 0)));
        assert_eq!(sb.descriptor(1_000_001), None);
        assert!(sb.has_backup(2401) && sb.has_backup(1) && !sb.has_backup(2) && !sb.has_backup(15));
    }
}
