//! LUKS1 (LUKS On-Disk Format Specification 1.2.3).

use super::cipher::Cipher;
use super::hash::Hash;
use super::{KIND, Opened, key_material, text};
use crate::disks::SECTOR;
use crate::{Error, Fields, Result, SourceRef};

const HEADER: usize = 592;
const SLOTS: usize = 8;
const SLOT: usize = 48;
const FIRST_SLOT: usize = 208;
/// A slot with a key.
const ACTIVE: u32 = 0x00ac_71f3;
/// Largest key.
const MAX_KEY: u32 = 128;
/// Most parts of a split key; cryptsetup makes 4000.
const MAX_STRIPES: u32 = 10_000;

/// Opens the volume.
pub fn unlock(source: &SourceRef, passphrase: &[u8]) -> Result<Opened> {
    let header = source.read_vec(0, HEADER)?;
    let bad = || Error::corrupt(KIND, "header");
    let word = |at| header.u32_be(at).ok_or_else(bad);
    let cipher = format!("{}-{}", text(&header, 8, 32), text(&header, 40, 32));
    let hash = Hash::new(&text(&header, 72, 32))?;
    let len = word(108)?;
    if len == 0 || len > MAX_KEY {
        return Err(bad());
    }
    let len = len as usize;
    let digest: [u8; 20] = header.array(112).ok_or_else(bad)?;
    let salt: [u8; 32] = header.array(132).ok_or_else(bad)?;
    let rounds = word(164)?;
    let mut refusal = Error::WrongPassphrase;
    for slot in (0..SLOTS).map(|n| FIRST_SLOT + SLOT * n) {
        if word(slot)? != ACTIVE {
            continue;
        }
        let slot_salt: [u8; 32] = header.array(slot + 8).ok_or_else(bad)?;
        let (start, stripes) = (u64::from(word(slot + 40)?) * SECTOR, word(slot + 44)?);
        if stripes == 0 || stripes > MAX_STRIPES {
            refusal = bad();
            continue;
        }
        let open = || -> Result<Vec<u8>> {
            let key = hash.pbkdf2(passphrase, &slot_salt, word(slot + 4)?, len)?;
            let area = Cipher::new(&cipher, &key)?;
            let key = hash.merge(&key_material(source, &area, start, len * stripes as usize)?, len);
            let check = hash.pbkdf2(&key, &salt, rounds, digest.len())?;
            if check == digest { Ok(key) } else { Err(Error::WrongPassphrase) }
        };
        match open() {
            Ok(key) => {
                let start = u64::from(word(104)?) * SECTOR;
                let size = source.size().checked_sub(start).ok_or_else(bad)?;
                return Ok(Opened {
                    cipher: Cipher::new(&cipher, &key)?,
                    start,
                    size,
                    sector: SECTOR,
                    tweak: 0,
                });
            }
            Err(Error::WrongPassphrase) => {}
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}
