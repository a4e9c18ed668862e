//! File records and their attributes.

use super::{KIND, Volume};
use crate::{Error, Fields, Result};

/// What the update sequence protects.
const STRIDE: usize = 512;

/// A record of the master file table.
pub(super) struct Record {
    pub(super) number: u64,
    bytes: Vec<u8>,
}

/// An attribute of a record.
#[derive(Clone, Copy)]
pub(super) struct Attribute<'a> {
    pub(super) kind: u32,
    pub(super) id: u16,
    /// UTF-16, little-endian.
    pub(super) name: &'a [u8],
    /// 1 is compressed, 0x4000 encrypted, 0x8000 sparse.
    pub(super) flags: u16,
    pub(super) resident: bool,
    pub(super) bytes: &'a [u8],
}

/// Puts back the bytes at the ends of sectors, which the update sequence replaces. `None` if the
/// structure was torn, or isn't one.
pub(super) fn repair(bytes: &mut [u8], magic: [u8; 4]) -> Option<()> {
    if bytes.get(..4)? != magic.as_slice() {
        return None;
    }
    let start = usize::from(bytes.u16_at(4)?);
    let count = usize::from(bytes.u16_at(6)?);
    if count != bytes.len() / STRIDE + 1 {
        return None;
    }
    let sequence: [u8; 2] = bytes.array(start)?;
    for sector in 1..count {
        let saved: [u8; 2] = bytes.array(start + 2 * sector)?;
        let end = bytes.get_mut(sector * STRIDE - 2..sector * STRIDE)?;
        if end != sequence {
            return None;
        }
        end.copy_from_slice(&saved);
    }
    Some(())
}

impl Record {
    /// Record `number`; `sequence` is that of the reference, 0 if there is none.
    pub(super) fn load(volume: &Volume, number: u64, sequence: u16) -> Result<Self> {
        let bad = || Error::corrupt(KIND, format!("file {number} doesn't exist"));
        let offset = number.checked_mul(volume.record as u64).ok_or_else(bad)?;
        let end = offset.checked_add(volume.record as u64).ok_or_else(bad)?;
        if end > volume.mft.size() {
            return Err(bad());
        }
        let mut bytes = vec![0; volume.record];
        volume.mft.read(volume, offset, &mut bytes)?;
        let record = Self::parse(number, bytes)?;
        if sequence != 0 && record.bytes.u16_at(16) != Some(sequence) {
            return Err(Error::corrupt(KIND, format!("a stale reference to file {number}")));
        }
        Ok(record)
    }

    pub(super) fn parse(number: u64, mut bytes: Vec<u8>) -> Result<Self> {
        repair(&mut bytes, *b"FILE")
            .ok_or_else(|| Error::corrupt(KIND, format!("the record of file {number}")))?;
        let record = Self { number, bytes };
        if record.flags() & 1 == 0 {
            return Err(Error::corrupt(KIND, format!("file {number} is not in use")));
        }
        Ok(record)
    }

    fn flags(&self) -> u16 {
        self.bytes.u16_at(22).unwrap_or_default()
    }

    pub(super) fn is_directory(&self) -> bool {
        self.flags() & 2 != 0
    }

    /// The file that this record belongs to, if it is not its first one.
    pub(super) fn base(&self) -> u64 {
        self.bytes.u64_at(32).unwrap_or_default() & 0xffff_ffff_ffff
    }

    /// All attributes; what makes no sense ends them.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Attribute<'_>> {
        let used = self.bytes.u32_at(24).unwrap_or_default() as usize;
        let bytes = self.bytes.get(..used).unwrap_or(&self.bytes);
        let mut at = usize::from(self.bytes.u16_at(20).unwrap_or_default());
        std::iter::from_fn(move || {
            let rest = bytes.get(at..)?;
            let len = rest.u32_at(4)? as usize;
            let attribute = Attribute::parse(rest.get(..len)?)?;
            at += len;
            Some(attribute)
        })
    }
}

impl<'a> Attribute<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let kind = bytes.u32_at(0)?;
        let name = usize::from(bytes.u16_at(10)?);
        if kind == u32::MAX || bytes.len() < 24 {
            return None;
        }
        Some(Self {
            kind,
            id: bytes.u16_at(14)?,
            name: bytes.get(name..name + 2 * usize::from(bytes.u8_at(9)?))?,
            flags: bytes.u16_at(12)?,
            resident: bytes.u8_at(8)? == 0,
            bytes,
        })
    }

    /// The value of a resident attribute.
    pub(super) fn value(&self) -> Option<&'a [u8]> {
        let start = usize::from(self.bytes.u16_at(20)?);
        self.bytes.get(start..start.checked_add(self.bytes.u32_at(16)? as usize)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_structures_are_found() {
        let mut bytes = vec![0; 1024];
        bytes[..4].copy_from_slice(b"INDX");
        bytes[4] = 40;
        bytes[6] = 3;
        bytes[40..46].copy_from_slice(&[7, 0, 1, 2, 3, 4]);
        bytes[510] = 7;
        bytes[1022] = 7;
        let mut sound = bytes.clone();
        repair(&mut sound, *b"INDX").unwrap();
        assert_eq!((&sound[510..512], &sound[1022..]), ([1u8, 2].as_slice(), [3u8, 4].as_slice()));
        assert!(repair(&mut bytes.clone(), *b"FILE").is_none());
        bytes[1022] = 8;
        assert!(repair(&mut bytes, *b"INDX").is_none());
    }
}
