//! Checksums of metadata and data (`csum_type` of the superblock).

use sha2::Digest;

use super::{KIND, bad};
use crate::{Error, Fields, Result};

/// Which function a file system uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Crc32c,
    Xxhash64,
    Sha256,
    Blake2b,
}

impl Checksum {
    /// By the number in the superblock.
    pub fn new(number: u16) -> Result<Self> {
        match number {
            0 => Ok(Self::Crc32c),
            1 => Ok(Self::Xxhash64),
            2 => Ok(Self::Sha256),
            3 => Ok(Self::Blake2b),
            _ => Err(Error::unsupported(KIND, format!("checksum type {number}"))),
        }
    }

    /// Bytes of a checksum.
    pub fn len(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::Xxhash64 => 8,
            Self::Sha256 | Self::Blake2b => 32,
        }
    }

    /// Whether `sum`, of [`Self::len`] bytes, is that of `bytes`.
    pub fn fits(self, bytes: &[u8], sum: &[u8]) -> bool {
        match self {
            Self::Crc32c => sum == crc32c::crc32c(bytes).to_le_bytes(),
            Self::Xxhash64 => sum == twox_hash::XxHash64::oneshot(0, bytes).to_le_bytes(),
            Self::Sha256 => sum == sha2::Sha256::digest(bytes).as_slice(),
            Self::Blake2b => sum == blake2::Blake2b256::digest(bytes).as_slice(),
        }
    }

    /// Checks a superblock or node: all of it after the 32 bytes for the checksum.
    pub fn check_block(self, block: &[u8], what: &str) -> Result<()> {
        let sum = block.get(..self.len()).unwrap_or_default();
        let rest = block.get(32..).unwrap_or_default();
        if self.fits(rest, sum) { Ok(()) } else { Err(bad(format!("checksum of {what} differs"))) }
    }
}

/// The hash by which directories find a name: CRC-32C that starts with ~1 and isn't inverted at its end.
pub fn name_hash(name: &[u8]) -> u64 {
    u64::from(!crc32c::crc32c_append(1, name))
}

/// A UUID as it is written.
pub fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let [a, b] = [bytes.u64_be(at)?, bytes.u64_be(at + 8)?];
    Some(format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xffff,
        b >> 48,
        b & 0xffff_ffff_ffff
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 3720, B.4; the others are the published values of "abc" and of nothing.
        assert!(Checksum::Crc32c.fits(&[0; 32], &0x8a91_36aa_u32.to_le_bytes()));
        assert!(Checksum::Xxhash64.fits(b"", &0xef46_db37_51d8_e999_u64.to_le_bytes()));
        assert!(Checksum::Sha256.fits(b"abc", &sha2::Sha256::digest(b"abc")));
        assert_eq!(sha2::Sha256::digest(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert!(!Checksum::Blake2b.fits(b"abc", &[0; 32]));
        // The entry of every file system's default subvolume.
        assert_eq!(name_hash(b"default"), 0x8dbfc2d2);
    }
}
