//! Block pointers: where a block is, how it is packed, and its checksum.

use crate::{Error, Fields, Result};

use super::KIND;

/// Bytes of a pointer.
pub const POINTER: usize = 128;
/// Largest block: SPA_MAXBLOCKSIZE.
pub const MAX_BLOCK: usize = 16 << 20;
/// The unit of sizes and places: SPA_MINBLOCKSIZE.
const SECTOR: u64 = 512;

/// One of up to three places of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dva {
    /// Top-level vdev.
    pub vdev: u32,
    /// Bytes from the start of that vdev's allocatable space.
    pub offset: u64,
    /// Bytes that are allocated there.
    pub allocated: u64,
    /// A header of a gang stands there, not the block.
    pub gang: bool,
}

impl Dva {
    /// The address in 16 bytes; `None` if it is empty.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (first, second) = (bytes.u64_at(0)?, bytes.u64_at(8)?);
        (first != 0 || second != 0).then_some(Self {
            vdev: (first >> 32) as u32 & 0xff_ffff,
            offset: (second & !(1 << 63)).saturating_mul(SECTOR),
            allocated: (first & 0xff_ffff) * SECTOR,
            gang: second >> 63 == 1,
        })
    }
}

/// What a pointer points to.
#[derive(Clone, Debug)]
pub enum Pointer {
    /// Zeros.
    Hole,
    /// Data in the pointer itself.
    Embedded(Embedded),
    /// A block on disk.
    Block(Block),
}

/// Data in a pointer.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Size when unpacked.
    pub size: usize,
    /// How it is packed.
    pub compression: u8,
    /// Level above the data.
    pub level: u8,
    /// The packed bytes.
    pub bytes: Vec<u8>,
}

/// A block on disk.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its places; all hold the same.
    pub places: Vec<Dva>,
    /// Size when unpacked.
    pub size: usize,
    /// Size on disk.
    pub stored: usize,
    /// How it is packed.
    pub compression: u8,
    /// Which checksum.
    pub checksum: u8,
    /// Level above the data.
    pub level: u8,
    /// Encrypted or authenticated by a key.
    pub encrypted: bool,
    /// Written by a machine of our byte order.
    pub little: bool,
    /// When it was stored.
    pub stored_at: u64,
    /// The checksum.
    pub sum: [u8; 32],
    /// Tells this pointer from others, for the cache.
    pub key: [u64; 4],
}

impl Pointer {
    /// Parses 128 bytes (`blkptr_t`).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::fields(bytes).ok_or_else(|| Error::corrupt(KIND, "a block pointer is cut off"))?
    }

    fn fields(bytes: &[u8]) -> Option<Result<Self>> {
        let bytes = bytes.get(..POINTER)?;
        let prop = bytes.u64_at(48)?;
        let compression = (prop >> 32) as u8 & 0x7f;
        let level = (prop >> 56) as u8 & 0x1f;
        if prop >> 39 & 1 == 1 {
            return Some(embedded(bytes, prop, compression, level));
        }
        if Dva::parse(bytes).is_none() {
            return Some(Ok(Self::Hole));
        }
        let size = ((prop & 0xffff) + 1) * SECTOR;
        let stored = ((prop >> 16 & 0xffff) + 1) * SECTOR;
        if size > MAX_BLOCK as u64 || stored > MAX_BLOCK as u64 {
            return Some(Err(Error::corrupt(KIND, format!("a block of {size} bytes in {stored}"))));
        }
        let birth = bytes.u64_at(80)?;
        let physical = bytes.u64_at(72)?;
        Some(Ok(Self::Block(Block {
            places: (0..3).filter_map(|index| Dva::parse(&bytes[index * 16..])).collect(),
            size: size as usize,
            stored: stored as usize,
            compression,
            checksum: (prop >> 40) as u8,
            level,
            encrypted: prop >> 61 & 1 == 1,
            little: prop >> 63 == 1,
            stored_at: if physical == 0 { birth } else { physical },
            sum: bytes.array(96)?,
            key: [bytes.u64_at(0)?, bytes.u64_at(8)?, prop, bytes.u64_at(96)?],
        })))
    }

    /// Level above the data; a hole is at any.
    pub fn level(&self) -> Option<u8> {
        match self {
            Self::Hole => None,
            Self::Embedded(data) => Some(data.level),
            Self::Block(block) => Some(block.level),
        }
    }
}

/// All words but those of the properties (6) and the birth (10) hold data.
fn embedded(bytes: &[u8], prop: u64, compression: u8, level: u8) -> Result<Pointer> {
    match (prop >> 40) as u8 {
        0 => {}
        // BP_EMBEDDED_TYPE_REDACTED
        2 => return Err(Error::unsupported(KIND, "a redacted block")),
        kind => return Err(Error::unsupported(KIND, format!("embedded data of type {kind}"))),
    }
    let size = (prop & 0x1ff_ffff) as usize + 1;
    let stored = (prop >> 25 & 0x7f) as usize + 1;
    let mut data = [&bytes[..48], &bytes[56..80], &bytes[88..]].concat();
    if stored > data.len() || size > MAX_BLOCK {
        return Err(Error::corrupt(KIND, format!("{stored} bytes of {size} in a block pointer")));
    }
    data.truncate(stored);
    Ok(Pointer::Embedded(Embedded { size, compression, level, bytes: data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(words: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; POINTER];
        for (index, word) in words {
            bytes[index * 8..index * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn fields_are_where_they_should_be() {
        let prop = 1 << 63 | 2 << 56 | 19 << 48 | 7 << 40 | 15 << 32 | 7 << 16 | 255;
        let bytes =
            pointer(&[(0, 3 << 32 | 8), (1, 100), (2, 1 << 32), (3, 1 << 63 | 5), (6, prop), (10, 77)]);
        let Pointer::Block(block) = Pointer::parse(&bytes).unwrap() else { panic!("not a block") };
        let first = Dva { vdev: 3, offset: 51200, allocated: 4096, gang: false };
        let second = Dva { vdev: 1, offset: 2560, allocated: 0, gang: true };
        assert_eq!(block.places, [first, second]);
        assert_eq!((block.size, block.stored, block.level), (131072, 4096, 2));
        assert_eq!((block.compression, block.checksum, block.stored_at), (15, 7, 77));
        assert!(block.little && !block.encrypted);
        assert!(matches!(Pointer::parse(&pointer(&[])), Ok(Pointer::Hole)));
        assert!(Pointer::parse(&bytes[1..]).is_err());
        let huge = pointer(&[(0, 1), (6, 0xffff)]);
        assert!(Pointer::parse(&huge).is_err());
    }

    #[test]
    fn embedded_data_skips_two_words() {
        let prop = 1 << 39 | 111 << 25 | 0x95;
        let words: Vec<_> = (0..16).map(|word| (word, if word == 6 { prop } else { word as u64 })).collect();
        let Pointer::Embedded(data) = Pointer::parse(&pointer(&words)).unwrap() else {
            panic!("not embedded")
        };
        assert_eq!((data.size, data.bytes.len()), (150, 112));
        assert_eq!((data.bytes[48], data.bytes[72]), (7, 11));
        assert!(Pointer::parse(&pointer(&[(6, 1 << 39 | 112 << 25)])).is_err());
        assert!(Pointer::parse(&pointer(&[(6, 1 << 39 | 2 << 40)])).is_err());
    }
}
