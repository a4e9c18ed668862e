//! Master boot record with logical partitions.

use std::collections::HashSet;

use super::{PartitionKind, Slot};
use crate::disks::SECTOR;
use crate::{Error, Fields, Result, SourceRef};

/// First of the four entries.
const TABLE: usize = 446;
/// Where the disk's signature is.
const DISK_SIGNATURE: usize = 440;
/// The last two bytes.
const SIGNATURE: u16 = 0xaa55;
/// Type of the entry that protects a GPT.
const PROTECTIVE: u8 = 0xee;
/// Most links of the chain of logical partitions.
const MAX_LOGICAL: usize = 256;

/// One of the four entries.
#[derive(Clone, Copy)]
pub struct Raw {
    flag: u8,
    /// Type byte.
    pub kind: u8,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub sectors: u64,
}

impl Raw {
    fn is_extended(self) -> bool {
        // Extended (CHS), extended (LBA), Linux extended.
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The entries of the record in a sector.
pub fn entries(source: &SourceRef, sector: u64) -> Result<([Raw; 4], u32)> {
    let bad = || Error::corrupt("msdos", format!("no partition table in sector {sector}"));
    let record = source.read_vec(sector.checked_mul(SECTOR).ok_or_else(bad)?, SECTOR as usize)?;
    if record.u16_at(510) != Some(SIGNATURE) {
        return Err(bad());
    }
    let mut raws = [Raw { flag: 0, kind: 0, start: 0, sectors: 0 }; 4];
    for (n, raw) in raws.iter_mut().enumerate() {
        let at = TABLE + 16 * n;
        *raw = Raw {
            flag: record.u8_at(at).ok_or_else(bad)?,
            kind: record.u8_at(at + 4).ok_or_else(bad)?,
            start: record.u32_at(at + 8).ok_or_else(bad)?.into(),
            sectors: record.u32_at(at + 12).ok_or_else(bad)?.into(),
        };
        // Only the highest bit of the flag has a meaning; a boot sector of a file system, which has
        // the same signature, seldom gets that right four times.
        if raw.flag & 0x7f != 0 {
            return Err(bad());
        }
    }
    Ok((raws, record.u32_at(DISK_SIGNATURE).ok_or_else(bad)?))
}

/// Primary and logical partitions. A record that protects a GPT has none.
pub fn read(source: &SourceRef) -> Result<Vec<Slot>> {
    let (primary, signature) = entries(source, 0)?;
    if primary.iter().any(|raw| raw.kind == PROTECTIVE) {
        return Ok(Vec::new());
    }
    let mut slots = Vec::new();
    for (number, raw) in (1..).zip(primary) {
        if raw.kind != 0 && !raw.is_extended() {
            slots.push(slot(raw, number, 0, signature));
        }
    }
    if let Some(extended) = primary.iter().find(|raw| raw.is_extended()) {
        logical(source, extended.start, signature, &mut slots);
    }
    Ok(slots)
}

/// Follows the chain from the extended partition at sector `base`.
fn logical(source: &SourceRef, base: u64, signature: u32, slots: &mut Vec<Slot>) {
    let mut seen = HashSet::new();
    let mut here = base;
    let mut number = 5;
    while seen.len() < MAX_LOGICAL && seen.insert(here) {
        let Ok((raws, _)) = entries(source, here) else { break };
        for raw in raws.iter().filter(|raw| raw.kind != 0 && !raw.is_extended()) {
            slots.push(slot(*raw, number, here, signature));
            number += 1;
        }
        // The next link is relative to the extended partition, not to this link.
        let Some(next) = raws.iter().find(|raw| raw.is_extended() && raw.sectors != 0) else { break };
        here = base + next.start;
    }
}

fn slot(raw: Raw, number: u32, base: u64, signature: u32) -> Slot {
    Slot {
        number,
        start: (base + raw.start) * SECTOR,
        size: raw.sectors * SECTOR,
        kind: PartitionKind::Msdos(raw.kind),
        uuid: (signature != 0).then(|| format!("{signature:08x}-{number:02x}")),
        label: None,
        active: raw.flag & 0x80 != 0,
    }
}

/// Whether an entry of the record protects a GPT.
pub fn is_protective(source: &SourceRef) -> bool {
    entries(source, 0).is_ok_and(|(raws, _)| raws.iter().any(|raw| raw.kind == PROTECTIVE))
}
