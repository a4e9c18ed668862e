//! GUID partition table (UEFI 2.10, chapter 5.3).

use super::{PartitionKind, Slot, guid, msdos};
use crate::{Error, Fields, Result, SourceRef};

const MAGIC: &[u8; 8] = b"EFI PART";
/// Sizes of sectors that disks have; the header is in the second sector.
const SECTORS: [u64; 4] = [512, 4096, 2048, 1024];
/// Smallest and largest header.
const HEADER: std::ops::RangeInclusive<u32> = 92..=512;
/// Most entries; the usual number is 128.
const MAX_ENTRIES: u32 = 1024;
/// Largest entry; the usual size is 128.
const MAX_ENTRY: u32 = 4096;
/// Attribute "legacy BIOS bootable".
const BOOTABLE: u64 = 1 << 2;

struct Header {
    sector: u64,
    entries: u64,
    count: u32,
    entry: u32,
    checksum: u32,
}

/// Partitions of the primary table, or of the backup at the end if the primary is damaged.
pub fn read(source: &SourceRef) -> Result<Vec<Slot>> {
    // Without the protective record the table is an old one that is no longer in use.
    if !msdos::is_protective(source) {
        return Ok(Vec::new());
    }
    let mut last = Error::corrupt("gpt", "no table where the protective record promises one");
    for sector in SECTORS {
        match header(source, sector, 1).and_then(|h| entries(source, &h)) {
            Ok(slots) => return Ok(slots),
            Err(error) => last = error,
        }
    }
    for sector in SECTORS {
        let Some(lba) = (source.size() / sector).checked_sub(1) else { continue };
        if let Ok(slots) = header(source, sector, lba).and_then(|h| entries(source, &h)) {
            return Ok(slots);
        }
    }
    Err(last)
}

fn header(source: &SourceRef, sector: u64, lba: u64) -> Result<Header> {
    let bad = |what: &str| Error::corrupt("gpt", format!("header in sector {lba}: {what}"));
    let mut bytes = source.read_vec(lba * sector, 512)?;
    if !bytes.starts_with(MAGIC) {
        return Err(bad("no signature"));
    }
    let short = || bad("too short");
    let len = bytes.u32_at(12).filter(|len| HEADER.contains(len)).ok_or_else(|| bad("size"))?;
    let sum = bytes.u32_at(16).ok_or_else(short)?;
    bytes.get_mut(16..20).ok_or_else(short)?.fill(0);
    if crc32(bytes.get(..len as usize).ok_or_else(short)?) != sum {
        return Err(bad("checksum"));
    }
    if bytes.u64_at(24) != Some(lba) {
        return Err(bad("meant for another sector"));
    }
    let header = Header {
        sector,
        entries: bytes.u64_at(72).ok_or_else(short)?,
        count: bytes.u32_at(80).ok_or_else(short)?,
        entry: bytes.u32_at(84).ok_or_else(short)?,
        checksum: bytes.u32_at(88).ok_or_else(short)?,
    };
    if header.count > MAX_ENTRIES || !(128..=MAX_ENTRY).contains(&header.entry) {
        return Err(bad("number or size of entries"));
    }
    Ok(header)
}

fn entries(source: &SourceRef, header: &Header) -> Result<Vec<Slot>> {
    let bad = |what: &str| Error::corrupt("gpt", what);
    let start = header.entries.checked_mul(header.sector).ok_or_else(|| bad("entries out of the disk"))?;
    let table = source.read_vec(start, header.count as usize * header.entry as usize)?;
    if crc32(&table) != header.checksum {
        return Err(bad("checksum of the entries"));
    }
    let mut slots = Vec::new();
    for (number, entry) in (1..).zip(table.chunks_exact(header.entry as usize)) {
        let (Some(kind), Some(id)) = (entry.array::<16>(0), entry.array::<16>(16)) else { continue };
        let (Some(first), Some(last)) = (entry.u64_at(32), entry.u64_at(40)) else { continue };
        if kind == [0; 16] || last < first {
            continue;
        }
        let Some(start) = first.checked_mul(header.sector) else { continue };
        let size = (last - first).saturating_add(1).saturating_mul(header.sector);
        slots.push(Slot {
            number,
            start,
            size,
            kind: PartitionKind::Gpt(guid(&kind)),
            uuid: Some(guid(&id)),
            label: label(entry.get(56..128).unwrap_or_default()),
            active: entry.u64_at(48).is_some_and(|flags| flags & BOOTABLE != 0),
        });
    }
    Ok(slots)
}

/// UTF-16, ended by a zero.
fn label(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).filter_map(|pair| pair.u16_at(0)).take_while(|unit| *unit != 0);
    let text =
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>();
    (!text.is_empty()).then_some(text)
}

/// CRC-32 (IEEE 802.3), as UEFI uses it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
