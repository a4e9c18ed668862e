//! The superblock and its copies.

use super::checksum::{Checksum, uuid};
use super::{KIND, bad};
use crate::{Error, Fields, Result, SourceRef};

/// Where the superblock and its copies are.
const PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SIZE: usize = 4096;
const MAGIC: [u8; 8] = *b"_BHRfS_M";

/// Incompatible features that don't change what a reader has to do, or that are handled: mixed
/// backrefs, default subvolume, mixed groups, lzo, zstd, big metadata, extended backrefs, RAID 5/6,
/// skinny metadata, no holes, metadata UUID, RAID1C3/4, simple quotas.
const KNOWN: u64 = 0xfff | 1 << 16;
/// The others that have names.
const REFUSED: [(u64, &str); 4] = [
    (1 << 12, "zoned mode"),
    (1 << 13, "extent tree v2"),
    (1 << 14, "the RAID stripe tree"),
    (1 << 17, "the remap tree"),
];

/// Device, as a superblock or a chunk names it.
pub type DeviceUuid = [u8; 16];

/// What a superblock says.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// UUID of the file system.
    pub fsid: [u8; 16],
    pub uuid: String,
    pub label: String,
    /// Grows with every commit.
    pub generation: u64,
    /// The tree of trees.
    pub root: u64,
    pub root_level: u8,
    pub chunk_root: u64,
    pub chunk_root_level: u8,
    pub chunk_root_generation: u64,
    /// The directory in the tree of trees.
    pub root_dir: u64,
    pub sector_size: u32,
    pub node_size: u32,
    pub checksum: Checksum,
    /// Which device this is.
    pub device: DeviceUuid,
    /// Chunks that are needed to read the chunk tree.
    pub system_chunks: Vec<u8>,
}

impl Superblock {
    /// The newest sound superblock of a device; `None` if there is no file system of this kind.
    pub fn read(source: &SourceRef) -> Result<Option<Self>> {
        let mut best: Option<Self> = None;
        let mut refusal = None;
        for (number, place) in PLACES.into_iter().enumerate() {
            if source.size() < place + SIZE as u64 {
                break;
            }
            let block = source.read_vec(place, SIZE);
            let magic = block.as_ref().is_ok_and(|block| block.array(0x40) == Some(MAGIC));
            // Copies alone may be left over from what was here before.
            if number == 0 && !magic {
                return Ok(None);
            }
            if !magic {
                continue;
            }
            match block.and_then(|block| Self::parse(&block, place)) {
                Ok(found) if best.as_ref().is_none_or(|best| best.generation < found.generation) => {
                    best = Some(found);
                }
                Ok(_) => {}
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        match (best, refusal) {
            (None, Some(error)) => Err(error),
            (best, _) => Ok(best),
        }
    }

    fn parse(block: &[u8], place: u64) -> Result<Self> {
        let checksum = Checksum::new(block.u16_at(0xc4).unwrap_or_default())?;
        checksum.check_block(block, "the superblock")?;
        let features = block.u64_at(0xbc).unwrap_or_default();
        for (flag, name) in REFUSED {
            if features & flag != 0 {
                return Err(Error::unsupported(KIND, name));
            }
        }
        if features & !KNOWN != 0 {
            return Err(Error::unsupported(KIND, format!("feature flags {:#x}", features & !KNOWN)));
        }
        let found = Self::fields(block, place, checksum).ok_or_else(|| bad("superblock"))?;
        let powers = found.sector_size.is_power_of_two() && found.node_size.is_power_of_two();
        // The limits of `struct btrfs_super_block`: 64 KiB for both.
        if !powers
            || !(512..=65536).contains(&found.sector_size)
            || !(4096..=65536).contains(&found.node_size)
        {
            return Err(bad("sizes of sectors and nodes"));
        }
        Ok(found)
    }

    fn fields(block: &[u8], place: u64, checksum: Checksum) -> Option<Self> {
        if block.u64_at(0x30)? != place {
            return None;
        }
        let label: Vec<u8> = block.get(0x12b..0x22b)?.iter().copied().take_while(|byte| *byte != 0).collect();
        let system = block.u32_at(0xa0)? as usize;
        if system > 2048 {
            return None;
        }
        Some(Self {
            fsid: block.array(0x20)?,
            uuid: uuid(block, 0x20)?,
            label: String::from_utf8_lossy(&label).into_owned(),
            generation: block.u64_at(0x48)?,
            root: block.u64_at(0x50)?,
            root_level: block.u8_at(0xc6)?,
            chunk_root: block.u64_at(0x58)?,
            chunk_root_level: block.u8_at(0xc7)?,
            chunk_root_generation: block.u64_at(0xa4)?,
            root_dir: block.u64_at(0x80)?,
            sector_size: block.u32_at(0x90)?,
            node_size: block.u32_at(0x94)?,
            checksum,
            // In the device item at 0xc9.
            device: block.array(0xc9 + 66)?,
            system_chunks: block.get(0x32b..0x32b + system)?.to_vec(),
        })
    }
}
