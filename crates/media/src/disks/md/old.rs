//! Superblocks of version 0.90 (`include/uapi/linux/raid/md_p.h`, `mdp_super_t`), little endian.

use super::superblock::{MAGIC, Superblock};
use crate::{Fields, SourceRef};

/// It has this size and is on the last boundary of this size that leaves room for it.
const RESERVED: u64 = 64 << 10;
const SIZE: usize = 4096;
/// Descriptors of the devices: where, how large, how many.
const DEVICES: usize = 128 * 4;
const DEVICE: usize = 32 * 4;
const MAX_DEVICES: usize = 27;
/// The descriptor of the device itself.
const THIS: usize = 992 * 4;
/// State of a device that works: active and in sync, not faulty.
const FAULTY: u32 = 1;
const WORKING: u32 = 2 | 4;

/// The superblock, if there is one.
pub fn read(source: &SourceRef) -> Option<Superblock> {
    let end = (source.size() & !(RESERVED - 1)).checked_sub(RESERVED)?;
    let bytes = source.read_vec(end, SIZE).ok()?;
    let word = |n: usize| bytes.u32_at(4 * n);
    if word(0)? != MAGIC || word(1)? != 0 || checksum(&bytes) != word(38)? {
        return None;
    }
    let size = u64::from(word(8)?) * 1024;
    if size > end {
        return None;
    }
    let mut uuid = [0; 16];
    for (place, n) in uuid.chunks_exact_mut(4).zip([5, 13, 14, 15]) {
        // As mdadm prints it.
        place.copy_from_slice(&word(n)?.to_be_bytes());
    }
    let mut roles = Vec::new();
    for n in 0..MAX_DEVICES {
        let at = DEVICES + DEVICE * n;
        let (place, state) = (bytes.u32_at(at + 12)?, bytes.u32_at(at + 16)?);
        let works = state & FAULTY == 0 && state & WORKING == WORKING;
        roles.push(u16::try_from(place).ok().filter(|_| works));
    }
    let minor = word(2)?;
    let refused = match minor {
        90 => None,
        // 0.91 marks an array while it is reshaped.
        91 => Some("an array that is being reshaped".to_owned()),
        _ => Some(format!("superblock version 0.{minor}")),
    };
    Some(Superblock {
        uuid,
        name: format!("md{}", word(11)?),
        level: word(7)? as i32,
        layout: word(64)?,
        size,
        chunk: word(65)?.into(),
        devices: word(10)? as usize,
        data_start: 0,
        data_size: end,
        number: bytes.u32_at(THIS)?,
        events: u64::from(word(39)?) | u64::from(word(40)?) << 32,
        roles,
        rebuilding: false,
        replacement: false,
        refused,
        is_old: true,
    })
}

/// The sum of all words without the field itself; carries are added again.
fn checksum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(4).enumerate().filter(|(n, _)| *n != 38);
    let sum: u64 = words.filter_map(|(_, word)| word.u32_at(0)).map(u64::from).sum();
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}
