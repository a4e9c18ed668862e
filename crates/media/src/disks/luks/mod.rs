//! LUKS1 and LUKS2 volumes with a passphrase.

use std::sync::Arc;

use crate::source::check;
use crate::{Error, Fields, Result, Source, SourceRef};

mod cipher;
mod hash;
mod one;
#[cfg(test)]
mod tests;
mod two;

use cipher::Cipher;

use super::SECTOR;

const KIND: &str = "luks";
const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// Decrypted at a time.
const STEP: usize = 256 << 10;

/// An opened volume.
pub struct Volume {
    /// Its UUID, digits only.
    pub uuid: String,
    /// What it holds.
    pub source: SourceRef,
}

/// What a passphrase opened.
struct Opened {
    cipher: Cipher,
    /// Where the data is.
    start: u64,
    size: u64,
    /// Bytes that are encrypted as one.
    sector: u64,
    /// Added to the number of each sector.
    tweak: u64,
}

/// The UUID of an encrypted volume, if it is one.
pub fn uuid(source: &SourceRef) -> Result<Option<String>> {
    if source.size() < SECTOR {
        return Ok(None);
    }
    let head = source.read_vec(0, SECTOR as usize)?;
    if !head.starts_with(MAGIC) {
        return Ok(None);
    }
    // Both versions have it in the same place.
    Ok(Some(text(&head, 168, 40).replace('-', "")))
}

/// Opens an encrypted volume.
pub fn unlock(source: &SourceRef, passphrase: &[u8]) -> Result<Volume> {
    let uuid = uuid(source)?.ok_or_else(|| Error::unsupported(KIND, "a device that is not encrypted"))?;
    let version = source.read_vec(6, 2)?.u16_be(0).unwrap_or(0);
    let opened = match version {
        1 => one::unlock(source, passphrase)?,
        2 => two::unlock(source, passphrase)?,
        _ => return Err(Error::unsupported(KIND, format!("version {version}"))),
    };
    check(source.size(), opened.start, opened.size)?;
    Ok(Volume { uuid, source: Arc::new(Plain { source: source.clone(), opened }) })
}

/// A string that zeros fill up.
fn text(bytes: &[u8], at: usize, len: usize) -> String {
    let field = bytes.get(at..at + len).unwrap_or_default();
    String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// Decrypts the material of a key; its sectors are counted from 0. The caller bounds `len`.
fn key_material(source: &SourceRef, cipher: &Cipher, start: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = source.read_vec(start, len.next_multiple_of(SECTOR as usize))?;
    for (sector, part) in (0..).zip(bytes.chunks_mut(SECTOR as usize)) {
        cipher.decrypt(sector, part);
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// The plain bytes of a volume.
struct Plain {
    source: SourceRef,
    opened: Opened,
}

impl Source for Plain {
    fn size(&self) -> u64 {
        self.opened.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size(), offset, to.len() as u64)?;
        let Opened { cipher, start, sector, tweak, .. } = &self.opened;
        let mut at = offset;
        for part in to.chunks_mut(STEP) {
            // Whole sectors, also where only a part of the first or last one is wanted.
            let first = at - at % sector;
            let end = (at + part.len() as u64).next_multiple_of(*sector);
            let mut bytes = self.source.read_vec(start + first, (end.min(self.size()) - first) as usize)?;
            for (number, block) in (first / sector..).zip(bytes.chunks_mut(*sector as usize)) {
                // Vectors count sectors of 512 bytes whatever is encrypted as one.
                cipher.decrypt((number * (sector / SECTOR)).wrapping_add(*tweak), block);
            }
            let skip = (at - first) as usize;
            part.copy_from_slice(bytes.get(skip..skip + part.len()).ok_or(Error::PastEnd {
                offset,
                len: part.len() as u64,
                size: self.opened.size,
            })?);
            at += part.len() as u64;
        }
        Ok(())
    }
}
