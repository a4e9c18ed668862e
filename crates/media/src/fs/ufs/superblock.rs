//! The superblock: `struct fs` of FreeBSD's sys/ufs/ffs/fs.h.

use crate::{Error, Fields, Result, SourceRef};

/// Where superblocks are: UFS2's place, UFS1's, none before it, and after a large boot loader.
const PLACES: [u64; 4] = [65536, 8192, 0, 262_144];
/// SBLOCKSIZE is 8192; its last field ends here.
const LEN: usize = 1376;
/// FS_UFS1_MAGIC.
const UFS1: u32 = 0x0001_1954;
/// FS_UFS2_MAGIC.
const UFS2: u32 = 0x1954_0119;
/// FS_44INODEFMT: directory entries hold a kind.
const FORMAT_44: u32 = 2;

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) version: u8,
    big: bool,
    pub(super) old_directories: bool,
    /// Bytes of a block and of a fragment.
    pub(super) bsize: u64,
    pub(super) fsize: u64,
    /// Fragments from the start of a cylinder group to its inodes.
    inodes: u64,
    /// UFS1 shifts the start of each group by a part of this.
    group_shift: u64,
    group_mask: u32,
    groups: u64,
    inodes_each: u64,
    fragments_each: u64,
    /// Symbolic links shorter than this are in the inode.
    pub(super) max_short_link: u64,
    pub(super) id: [u32; 2],
    pub(super) label: Option<String>,
    pub(super) time: i64,
}

impl Superblock {
    /// The superblock, if there is one.
    pub(super) fn find(source: &SourceRef) -> Result<Option<Self>> {
        let mut refusal = None;
        for place in PLACES {
            if place + LEN as u64 > source.size() {
                continue;
            }
            let bytes = source.read_vec(place, LEN)?;
            let Some((version, big)) = magic(&bytes) else { continue };
            // With blocks of 64 KiB, UFS1 has a copy where UFS2 has its superblock; fs_sblockloc tells.
            let here = if big { bytes.u64_be(1000) } else { bytes.u64_at(1000) };
            if version == 1 && place == 65536 && here != Some(place) {
                continue;
            }
            match Self::parse(&bytes, version, big) {
                Some(found) => return Ok(Some(found)),
                None => refusal = Some(Error::corrupt("ufs", format!("superblock at {place}"))),
            }
        }
        refusal.map_or(Ok(None), Err)
    }

    fn parse(bytes: &[u8], version: u8, big: bool) -> Option<Self> {
        let u32_at = |at| if big { bytes.u32_be(at) } else { bytes.u32_at(at) };
        let u64_at = |at| if big { bytes.u64_be(at) } else { bytes.u64_at(at) };
        let label = bytes.get(680..712)?.split(|byte| *byte == 0).next()?;
        let found = Self {
            version,
            big,
            old_directories: version == 1 && u32_at(1324)? != FORMAT_44,
            inodes: u64::from(u32_at(16)?),
            group_shift: if version == 1 { u64::from(u32_at(24)?) } else { 0 },
            group_mask: u32_at(28)?,
            groups: u64::from(u32_at(44)?),
            bsize: u64::from(u32_at(48)?),
            fsize: u64::from(u32_at(52)?),
            inodes_each: u64::from(u32_at(184)?),
            fragments_each: u64::from(u32_at(188)?),
            max_short_link: u64::from(u32_at(1320)?),
            id: [u32_at(144)?, u32_at(148)?],
            label: Some(String::from_utf8_lossy(label).into_owned()).filter(|label| !label.is_empty()),
            time: if version == 1 { i64::from(u32_at(32)? as i32) } else { u64_at(1072)? as i64 },
        };
        let sane = found.bsize.is_power_of_two()
            && (4096..=65536).contains(&found.bsize)
            && found.fsize.is_power_of_two()
            && (512..=found.bsize).contains(&found.fsize)
            && found.bsize / found.fsize <= 8
            && found.groups > 0
            && found.inodes_each > 0
            && found.fragments_each > 0
            && found.inodes < found.fragments_each;
        sane.then_some(found)
    }

    /// GRUB's name of the kind.
    pub(super) fn kind(&self) -> &'static str {
        match (self.version, self.big) {
            (1, false) => "ufs1",
            (1, true) => "ufs1_be",
            _ => "ufs2",
        }
    }

    /// First byte of inode `number`.
    pub(super) fn inode_at(&self, number: u64) -> Option<u64> {
        let group = number / self.inodes_each;
        if group >= self.groups {
            return None;
        }
        let shift = self.group_shift * (group & u64::from(!self.group_mask));
        let start = self.fragments_each * group + shift + self.inodes;
        start.checked_mul(self.fsize)?.checked_add(number % self.inodes_each * self.inode_size())
    }

    pub(super) fn inode_size(&self) -> u64 {
        if self.version == 1 { 128 } else { 256 }
    }

    /// Bytes of a block address.
    pub(super) fn pointer_size(&self) -> u64 {
        if self.version == 1 { 4 } else { 8 }
    }

    pub(super) fn u16_at(&self, bytes: &[u8], at: usize) -> Option<u16> {
        if self.big { bytes.u16_be(at) } else { bytes.u16_at(at) }
    }

    pub(super) fn u32_at(&self, bytes: &[u8], at: usize) -> Option<u32> {
        if self.big { bytes.u32_be(at) } else { bytes.u32_at(at) }
    }

    pub(super) fn u64_at(&self, bytes: &[u8], at: usize) -> Option<u64> {
        if self.big { bytes.u64_be(at) } else { bytes.u64_at(at) }
    }

    /// The block address at `at`.
    pub(super) fn pointer(&self, bytes: &[u8], at: usize) -> Option<u64> {
        if self.version == 1 { self.u32_at(bytes, at).map(u64::from) } else { self.u64_at(bytes, at) }
    }
}

/// Version and byte order.
fn magic(bytes: &[u8]) -> Option<(u8, bool)> {
    let magic = |big| if big { bytes.u32_be(1372) } else { bytes.u32_at(1372) };
    [false, true].into_iter().find_map(|big| match magic(big) {
        Some(UFS1) => Some((1, big)),
        Some(UFS2) => Some((2, big)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Bytes;

    fn superblock(magic: u32, blocks: u32) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        for (at, value) in
            [(16, 24), (44, 1), (48, 4096), (52, 512), (184, blocks), (188, 1000), (680, 0x41), (1372, magic)]
        {
            bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        bytes
    }

    fn find(places: &[(usize, u32, u32)]) -> Result<Option<Superblock>> {
        let mut disk = vec![0; 300_000];
        for (place, magic, inodes) in places {
            disk[*place..*place + LEN].copy_from_slice(&superblock(*magic, *inodes));
        }
        let source: SourceRef = Arc::new(Bytes(disk));
        Superblock::find(&source)
    }

    #[test]
    fn the_first_place_wins() {
        for place in [65536, 8192, 0, 262_144] {
            let found = find(&[(place, UFS2, 77)]).unwrap().unwrap();
            assert_eq!((found.version, found.inodes_each, found.label.as_deref()), (2, 77, Some("A")));
        }
        let both = find(&[(8192, UFS1, 5), (65536, UFS2, 6)]).unwrap().unwrap();
        assert_eq!((both.version, both.inodes_each), (2, 6));
        // A copy of UFS1's superblock is not the superblock.
        let copy = find(&[(8192, UFS1, 5), (65536, UFS1, 6)]).unwrap().unwrap();
        assert_eq!(copy.inodes_each, 5);
        assert!(find(&[]).unwrap().is_none());
        assert!(find(&[(8192, UFS1, 0)]).is_err());
    }
}
