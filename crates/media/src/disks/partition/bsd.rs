//! BSD disklabels, of whole disks and in slices of a master boot record.

use super::{PartitionKind, Slot, msdos};
use crate::disks::SECTOR;
use crate::{Error, Fields, Result, SourceRef};

/// Types of slices.
pub const FREEBSD: u8 = 0xa5;
const OPENBSD: u8 = 0xa6;
const NETBSD: u8 = 0xa9;

/// At the start of the label and at 132.
const MAGIC: u32 = 0x8256_4557;
/// The label is in the second sector of what it describes.
const LABEL_SECTOR: u64 = 1;
/// Where the entries begin, and the size of one.
const ENTRIES: usize = 148;
const ENTRY: usize = 16;
/// Most entries in one sector: OpenBSD has 52 since 7.8, the others 8 to 22.
const MAX_ENTRIES: u16 = 64;
/// The entry that is the whole disk or slice.
const WHOLE: usize = 2;

/// Which system's details apply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    WholeDisk,
    FreeBsd,
    NetBsd,
    OpenBsd,
}

/// A label of a whole disk.
pub fn whole_disk(source: &SourceRef) -> Result<Vec<Slot>> {
    label(source, LABEL_SECTOR, Dialect::WholeDisk)
}

/// A label in a FreeBSD slice.
pub fn slice(slice: &SourceRef) -> Result<Vec<Slot>> {
    label(slice, LABEL_SECTOR, Dialect::FreeBsd)
}

/// The label in a NetBSD slice; its offsets count from the start of the disk.
pub fn netbsd(source: &SourceRef) -> Result<Vec<Slot>> {
    in_slice(source, NETBSD, Dialect::NetBsd)
}

/// The label in an OpenBSD slice; its offsets count from the start of the disk.
pub fn openbsd(source: &SourceRef) -> Result<Vec<Slot>> {
    in_slice(source, OPENBSD, Dialect::OpenBsd)
}

fn in_slice(source: &SourceRef, kind: u8, dialect: Dialect) -> Result<Vec<Slot>> {
    let (raws, _) = msdos::entries(source, 0)?;
    for raw in raws.iter().filter(|raw| raw.kind == kind) {
        if let Ok(slots) = label(source, raw.start + LABEL_SECTOR, dialect) {
            return Ok(slots);
        }
    }
    Err(Error::corrupt("disklabel", "no slice with a label"))
}

/// Reads the label in a sector.
fn label(source: &SourceRef, sector: u64, dialect: Dialect) -> Result<Vec<Slot>> {
    let bad = |what: &str| Error::corrupt("disklabel", format!("in sector {sector}: {what}"));
    let start = sector.checked_mul(SECTOR).ok_or_else(|| bad("out of the disk"))?;
    let head = source.read_vec(start, SECTOR as usize)?;
    if head.u32_at(0) != Some(MAGIC) || head.u32_at(132) != Some(MAGIC) {
        return Err(bad("no signature"));
    }
    let count = head.u16_at(138).filter(|n| *n <= MAX_ENTRIES).ok_or_else(|| bad("number of partitions"))?;
    let len = ENTRIES + ENTRY * usize::from(count);
    let bytes = source.read_vec(start, len.max(SECTOR as usize))?;
    let covered = bytes.get(..len).ok_or_else(|| bad("too short"))?;
    // The sum, which is in the label itself, makes the exclusive or of all words zero.
    if covered.chunks_exact(2).filter_map(|w| w.u16_at(0)).fold(0, |sum, word| sum ^ word) != 0 {
        return Err(bad("checksum"));
    }
    let unit = match bytes.u32_at(40) {
        Some(size @ (512 | 1024 | 2048 | 4096)) => u64::from(size),
        _ => SECTOR,
    };
    let entry = |n: usize| bytes.get(ENTRIES + ENTRY * n..ENTRIES + ENTRY * (n + 1));
    // Old FreeBSD slices count from the start of the disk, new ones from their own: the entry of
    // the whole slice tells.
    let base = match entry(WHOLE) {
        Some(whole) if dialect == Dialect::FreeBsd && usize::from(count) > WHOLE => {
            u64::from(whole.u32_at(4).unwrap_or(0)) * unit
        }
        _ => 0,
    };
    let big = dialect == Dialect::OpenBsd && bytes.u16_at(114).is_some_and(|version| version >= 1);
    let mut slots = Vec::new();
    for (n, number) in (0..usize::from(count)).zip(1..) {
        let Some(raw) = entry(n).filter(|_| n != WHOLE) else { continue };
        let (Some(mut size), Some(mut offset)) = (raw.u32_at(0).map(u64::from), raw.u32_at(4).map(u64::from))
        else {
            continue;
        };
        if big {
            // OpenBSD's high halves of offset and size.
            offset |= u64::from(raw.u16_at(8).unwrap_or(0)) << 32;
            size |= u64::from(raw.u16_at(10).unwrap_or(0)) << 32;
        }
        // Both have at most 48 bits, and a unit 12.
        let Some(start) = (offset * unit).checked_sub(base) else { continue };
        let kind = PartitionKind::Bsd(raw.u8_at(12).unwrap_or(0));
        slots.push(Slot { number, start, size: size * unit, kind, uuid: None, label: None, active: false });
    }
    Ok(slots)
}
